//! A request in the steady state allocates nothing when its upstream connection was kept, or is new
//! and the answer is there at once. Where the loop has to watch a new one, tokio allocates: its
//! registration, and a list of those that ended in one turn of the loop (here, with one client, one
//! for each request).
//!
//! And what a client holds that reads nothing of a large response is bounded.
//!
//! The proxy runs in this process, app and client are threads that allocate nothing, and a counting
//! allocator sees all of it. One test after the other: a harness would run, and allocate, beside it.

#![allow(clippy::unwrap_used, reason = "in a test, a panic is the report")]

use std::alloc::System;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use bufproxy::config::{self, Config, Invocation, Sources};
use bufproxy::server::Server;
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

/// Enough for buffers to have grown, free lists to be full and the log to have gone round.
const WARM_UP: usize = 2000;
const REQUESTS: usize = 1000;
/// What the threads beside the requests may do meanwhile: timers, the log's writer.
const BESIDE: usize = REQUESTS / 20;
/// Clients that stall at the same time, and the heap that each may hold, in bytes.
const STALLED: usize = 100;
const HELD: isize = 4 * 1024;
/// More than anything of theirs waits for before it gives memory back.
const SETTLED: Duration = Duration::from_secs(3);
/// Only ends a test that has failed already.
const GUARD: Duration = Duration::from_secs(30);

fn main() {
    let dir = tempfile::tempdir().unwrap();
    for (upstream, options, at_most) in
        [("kept", &["--upstream-keepalive", "10s"][..], 0), ("new", &[][..], 2)]
    {
        let socket = dir.path().join(upstream);
        serve_app(&socket, ANSWER, upstream == "kept");
        let mut client = connect(start_proxy(&socket, options, dir.path()));
        (0..WARM_UP).for_each(|_| exchange(&mut client));
        let counted = Region::new(ALLOCATOR);
        (0..REQUESTS).for_each(|_| exchange(&mut client));
        let change = counted.change();
        let made = change.allocations + change.reallocations;
        println!("{upstream} upstream connection: {made} allocations in {REQUESTS} requests");
        assert!(made <= at_most * REQUESTS + BESIDE, "{upstream}: {change:?}");
    }
    stalled_readers(dir.path());
}

/// Those of a first round stay, and with them all that is allocated once.
fn stalled_readers(dir: &Path) {
    let socket = dir.join("large");
    let mut answer = b"HTTP/1.1 200 OK\r\nContent-Length: 1048576\r\n\r\n".to_vec();
    answer.resize(answer.len() + 1048576, b'x');
    serve_app(&socket, answer.leak(), false);
    // Little memory: the bodies go to disk.
    let address = start_proxy(&socket, &["--memory", "256k"], dir);
    let stall = || {
        let clients = (0..STALLED).map(|_| {
            let mut client = connect(address.clone());
            client.write_all(REQUEST).unwrap();
            client
        });
        clients.collect::<Vec<TcpStream>>()
    };
    let _first = stall();
    let before = settled();
    let _second = stall();
    let begun = Instant::now();
    let each = loop {
        // On a busy machine some are still at it, which looks as settled as the end.
        let each = (settled() - before) / STALLED as isize;
        if each <= HELD || begun.elapsed() > GUARD {
            break each;
        }
    };
    println!("{each} bytes of heap for each stalled reader");
    assert!(each <= HELD, "{each} bytes for each stalled reader");
}

/// Bytes allocated when they have not changed much for a while.
fn settled() -> isize {
    let held = || {
        let stats = ALLOCATOR.stats();
        stats.bytes_allocated as isize + stats.bytes_reallocated - stats.bytes_deallocated as isize
    };
    let (mut last, mut since) = (held(), Instant::now());
    while since.elapsed() < SETTLED {
        thread::sleep(Duration::from_millis(50));
        let now = held();
        if now.abs_diff(last) > 16 * 1024 {
            (last, since) = (now, Instant::now());
        }
    }
    last
}

/// A loop of its own in front of `socket`; gives its address.
fn start_proxy(socket: &Path, options: &[&str], dir: &Path) -> String {
    let mut args = vec!["--listen".to_string(), "127.0.0.1:0".into()];
    args.extend(["--upstream".into(), format!("unix:{}", socket.display())]);
    args.extend(["--concurrency".into(), "4".into()]);
    args.extend(["--access-log".into(), dir.join("access.log").display().to_string()]);
    args.extend(options.iter().map(ToString::to_string));
    let config = Arc::new(configure(args));
    let (sender, receiver) = std::sync::mpsc::channel();
    thread::spawn(move || {
        let mut runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = runtime.enable_all().build_local(Default::default()).unwrap();
        runtime.block_on(async {
            let server = Server::bind(config, Vec::new()).unwrap();
            server.open().unwrap();
            sender.send(server.local_addrs().remove(0)).unwrap();
            std::future::pending::<()>().await;
        });
    });
    receiver.recv().unwrap()
}

fn configure(args: Vec<String>) -> Config {
    let sources =
        Sources { args: args.into_iter().map(Into::into).collect(), ..Sources::of_process() };
    match config::parse_args(&sources) {
        Ok(Invocation::Run(config)) => *config,
        other => panic!("{other:?}"),
    }
}

/// Answers every request with the same bytes; closes after each unless `keep`.
fn serve_app(socket: &Path, answer: &'static [u8], keep: bool) {
    let listener = UnixListener::bind(socket).unwrap();
    thread::spawn(move || {
        loop {
            let (mut worker, _) = listener.accept().unwrap();
            loop {
                let mut buffer = [0; 4096];
                if worker.read(&mut buffer).unwrap() == 0 {
                    break;
                }
                worker.write_all(answer).unwrap();
                if !keep {
                    break;
                }
            }
        }
    });
}

const ANSWER: &[u8] =
    b"HTTP/1.1 200 OK\r\nContent-Type: text/html\r\nContent-Length: 5\r\n\r\nhello";
const REQUEST: &[u8] = b"GET /orders?page=2 HTTP/1.1\r\nHost: www.example.com\r\n\
    User-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\nAccept: */*\r\nX-Forwarded-For: 192.0.2.7\r\n\
    X-Request-Id: 8b6402de-d072-42c4-9854-0f71697b30e5\r\n\r\n";

fn connect(address: String) -> TcpStream {
    TcpStream::connect(address).unwrap()
}

fn exchange(client: &mut TcpStream) {
    client.write_all(REQUEST).unwrap();
    let (mut buffer, mut filled) = ([0; 4096], 0);
    while !buffer[..filled].ends_with(b"hello") {
        let read = client.read(&mut buffer[filled..]).unwrap();
        assert_ne!(read, 0, "{}", buffer[..filled].escape_ascii());
        filled += read;
    }
}
