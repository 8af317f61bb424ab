//! bufproxy: a buffering reverse proxy for few-worker app servers. This page is the map for those who
//! change it; README.md is for those who run it.
//!
//! # Words
//!
//! **client**, **app**, **upstream** (an address of the app), **worker** (one unit of the app's
//! concurrency) · **head**, **body** · **spool**: one body, in memory first, then in an unlinked file
//! · to **spill** · **slot**: the right to have one request at the app · **line** or queue: complete
//! requests that wait for a slot · **attempt**: one try to have a request answered · **exchange**: one
//! request and its response · **record**: what the access log knows of one exchange · **drain**:
//! finishing what was accepted before stopping.
//!
//! # Modules, lowest first
//!
//! | module | what it is |
//! |---|---|
//! | [`error`] | `Reason`: why an exchange ended; its status, its name in the log, its sentence. One table |
//! | [`metrics`] | counters, atomics |
//! | `sys` | the few calls that have no safe wrapper: the only `unsafe` |
//! | [`http1`] | the codec, sans I/O: heads, chunked; everything strict is here |
//! | [`config`] | flags, environment, file, platform → `Config`; each option once, in `settings` |
//! | [`trust`] | pure: client and scheme of a request, from those whose word counts |
//! | `net` | one socket type for TCP and Unix, client and app |
//! | `scratch`, `timer` | read buffers of the thread; deadlines of its connections |
//! | `text` | addresses, for heads and log lines |
//! | [`spool`] | one body in either direction; the budgets of all of them |
//! | [`access_log`] | `Record`, templates (every format is one), the writer's thread, diagnostics |
//! | `upstream` | slots and line (`queue`, pure), `names`, `connect`, `attempt` with `prompt`: an answer before the loop watches for it; `discard`: a worker whose client has left |
//! | [`exchange`] | the life of one request: `receive`, `forward` (pure), `retry` (pure), `deliver`, `gzip`, `client_head` and `reply` (pure) |
//! | [`server`] | listeners; `event_loop`, and `shared` by all of them; `connection`: the loop of one client; `parked`: clients idle for long |
//! | [`supervisor`] | the wrapped command: exec shim, readiness (`probe`, `notify`), its stderr, signals, the one reaper; its workers, counted |
//! | [`admin`] | health, metrics, status, drain on a thread of its own; `healthcheck` and `drain` ask it |
//! | [`lifecycle`] | boot → serving → draining → stopped: `machine` decides (pure), `lifecycle` does |
//! | [`demo`], [`probe`] | the proof on a machine that has nothing else; how a site that is there treats slow clients |
//!
//! `main` parses, runs, prints the error once and chooses the exit code. Imports go down this table,
//! with two exceptions that are pairs by nature: `exchange` works on the `Conn` and counts with the
//! `Gauge` of `server`, which calls it; and `config` compiles a log template and builds a trust table
//! to check them, whose modules read `Config`.
//!
//! # The life of a request
//!
//! 1. `server::accept` hands the socket to the loop with the fewest connections;
//!    `connection::serve` is its task. `connection::idle` waits for the first bytes without a buffer;
//!    after a second it gives the connection to `parked`, where it has no task either.
//! 2. `exchange::serve` runs `exchange::story`, the whole life in twenty lines, by the settings that
//!    hold when it begins; an `Err(Reason)` from anywhere in it becomes our answer, or a cut, in
//!    `Exchange::refuse`.
//! 3. `receive::head` reads and parses, under one deadline. `Exchange::admit` resolves the client
//!    (`trust::resolve`), writes the head for the app (`forward::ForwardedHead::write`) and refuses
//!    what the head already rules out.
//! 4. `receive::body` says `100 Continue` if asked, fills the spool, and completes the forwarded head
//!    with its exact length and the corrected start (`ForwardedHead::finish`).
//! 5. `Exchange::wait_for_slot`: `Upstreams::enter` gives a slot, a place in the line, or neither; in
//!    overload the line turns round (`upstream::queue`), and who waited too long is not dispatched.
//! 6. `Exchange::attempt`: `upstream::connect`, `Attempt::start` makes the first write at once,
//!    `Attempt::poll` writes the rest and reads the response head, both at once. What a failure
//!    allows is in `retry::Tries::after`; then the spool is rewound, and the same slot serves for
//!    another try (`Exchange::slot_again`: where there are several upstreams, one of another).
//! 7. `deliver::deliver` writes the client's head (`client_head::write`) and drives a `Pump`: what
//!    comes from the app goes to the client first (`Pump::pass`; all of a small response in one
//!    write), what it does not take into a second spool;
//!    with `gzip`, what `gzip::Gzip` makes of it.
//! 8. `Pump::end_upstream` closes the app's connection with the last byte and drops the `Slot`, which
//!    hands it to whoever has waited longest. A client that leaves earlier leaves the slot to
//!    `discard::finish`, which holds it until the worker is done. A 101 leads to `tunnel::tunnel`
//!    instead of `deliver`.
//! 9. `Exchange::end` writes the record. `connection::serve` goes back to 1, or closes (`linger`
//!    where the client may still be sending, a reset where what it has must not look complete).
//!
//! # What must stay true, and where it is kept
//!
//! 1. Nothing of a request goes upstream before its body is complete: the order of `story`.
//! 2. A slot is held until the worker is done, never while a client sends or reads: `upstream::Slot`,
//!    `Pump::end_upstream`, `upstream::discard`. Exceptions (streams, a spent disk budget) are marked
//!    in the record.
//! 3. Never more app connections than slots, none without a request to write, closed at the end of the
//!    message, no half-close: `upstream::attempt`, `Pump`. `discard` shuts down reading alone.
//! 4. All spools stay inside one budget of memory and one of disk; beyond them a response is no longer
//!    read and a request is refused; nobody takes them from the others: `spool::budget`. What only
//!    waits goes to disk: `Spool::relieve`.
//! 5. Each request, malformed and aborted ones too, is one record: `Exchange::end`, and its `Drop`
//!    for tasks that are dropped.
//! 6. A cut response never looks complete; nothing sent yet means a clean error: `Exchange::refuse`,
//!    `deliver::clean`, `Pump::poll_collect` for HTTP/1.0.
//! 7. What a worker may have read is sent again only if its method is idempotent; what none has read,
//!    always: `Attempt::verdict` is the proof, `exchange::retry` the table.
//! 8. An idle connection holds no buffer: `connection::idle`, `scratch`; a busy one gives its
//!    `Exchange` back to the thread's free list, and one idle for long is 80 bytes of `parked`.
//! 9. No disk and no log I/O on an event loop, no lock across an await: `spool` works on the blocking
//!    pool, `access_log::LogWriter` has a thread; clippy denies the rest.
//! 10. Everything has a limit: `config` has those that are options, a `const` beside its use the
//!     others.
//! 11. What is ambiguous is refused, never repaired: `http1`.
//! 12. Only `config` reads flags, environment and files; only `main` ends the process.
//! 13. Nothing is believed of a peer that is not trusted: `trust`, and the table in
//!     `exchange::forward`.
//!
//! # Threads
//!
//! The main thread is loop 0 and runs the lifecycle; it lives to the end, because the kernel tells the
//! child of the death of the *thread* that started it. `threads` beyond the first are more loops. Each
//! loop is a `current_thread` runtime that owns its connections, so `Rc` and `Cell` suffice. Shared are
//! the line (`upstream::Upstreams`, a mutex for nanoseconds), the budgets and counts (atomics), the
//! settings (swapped by a reload; each loop has a copy) and the log's buffer (a mutex for a memcpy).
//! Beside them: the writers of the log and of the diagnostics, the one that copies the command's stderr,
//! the admin thread if asked for, one that resolves names if an upstream has one, and blocking pools of four (loop 0) and two (the others).
//!
//! # Decisions that are not obvious
//!
//! - **One `story`, no state machine**: an async function reads in the order in which things happen.
//!   Only the pump of `deliver` is polled by hand, because there two directions move at once.
//! - **A slot is a permit and nothing else.** Connections that are kept (`upstream-keepalive`) lie
//!   beside the queue, newest last: most apps close anyway, and the queue stays pure and small.
//! - **Timers are coarse and wake the task** (`timer`): each connection has one entry in a table of its
//!   loop, moving a deadline is a store, and whoever waits asks `expired`. A tokio timer for each read
//!   would take the runtime's lock twice for each request.
//! - **Clients idle for a second have an epoll set of their own** (`server::parked`), which the runtime
//!   watches as one descriptor: a task with its registration, its timer and its future is 1.4 KiB. What
//!   they held goes back to the system only when asked (`sys::trim_heap`): 0.14 KiB for each is left.
//! - **Positions of a spool are offsets of its file** (sparse, holes punched behind the reader): no
//!   index, no rewriting, and a replay is `read = 0`.
//! - **A slow delivery has a small task** (`connection::deliver`, `deliver::Slow`): when the app is done and the
//!   client has taken nothing for 200 ms, the rest of its response goes on in a task without the room
//!   for all that a request may do, and without the request's bytes for the app.
//! - **The C library's allocator, and `malloc_trim` when a burst is over** (`server::event_loop::Heap`): what it
//!   keeps is given back, and no dependency is needed. 1,000 stalled readers of 1 MiB held 7.1 KiB each
//!   and left 1.4 MiB behind; with jemalloc 9.3 KiB and 4.8 MiB, with mimalloc 20.6 KiB and 3.4 MiB.
//! - **In a container spool files have 8 MiB of page cache, and O_DIRECT beyond** (`spool::file`): a burst
//!   cannot fill it with pages that are not written yet. Where no limit counts them, the page cache takes the
//!   burst, and is dropped beside the writers: a worker would be held for as long as the disk takes.
//! - **The log line is rendered on the loop, written by the log's thread.** The buffer is bounded; what
//!   does not fit is dropped and counted, because a client must never wait for a log.
//! - **The exec shim** is our own binary (`supervisor::exec`): code between fork and exec would have to
//!   be `unsafe`.
//! - **Sockets are `AsyncFd`**, not tokio's streams: a first write needs no registration, nor does an
//!   answer that is there when the loop's other clients have had their turn (`upstream::prompt`), and a
//!   short read takes the readiness back without the call that would only have said EAGAIN.

pub mod access_log;
pub mod admin;
pub mod config;
pub mod demo;
pub mod error;
pub mod exchange;
pub mod http1;
pub mod lifecycle;
pub mod metrics;
mod net;
pub mod probe;
mod scratch;
pub mod server;
pub mod spool;
pub mod supervisor;
mod sys;
mod text;
mod timer;
pub mod trust;
pub mod upstream;
