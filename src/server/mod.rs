//! The data path's outer part: listeners, event loops, what they share. The lifecycle drives it
//! through `Server`; `connection` is the loop of one client.
//!
//! Each event loop owns its connections. What the loops share is small: the queue, the budgets,
//! the log and the counts below. One loop accepts and hands sockets to the loop with the fewest
//! connections (closing an SO_REUSEPORT listener would reset what is queued on it).

pub(crate) mod connection;
mod saturation;

use std::cell::{Cell, RefCell};
use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::sync::{mpsc, watch};

use crate::access_log::{Format, FormatOptions, LogWriter, Record, Skip};
use crate::config::{Config, Peer, UpstreamAddr};
use crate::error::Reason;
use crate::metrics::METRICS;
use crate::net::{Acceptor, Listener};
use crate::spool::{self, Budget};
use crate::sys;
use crate::timer::Timers;
use crate::upstream::Upstreams;
pub use saturation::Saturation;

/// Connections beyond `max-connections` that are still taken to be told so.
const REFUSED_AT_ONCE: usize = 64;
/// Pause after EMFILE and ENFILE: descriptors come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often kept upstream connections are looked through, and memory that only waits.
const SWEEP: Duration = Duration::from_millis(500);
/// The same complaint is not said more often.
const SAY_AGAIN: Duration = Duration::from_secs(5);

/// Where the data path is in its life. Only ever moves on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
enum Phase {
    /// Bound, not listening.
    Bound,
    Open,
    /// Responses say `Connection: close`; accepting goes on.
    Announced,
    /// Accepts no more.
    Draining,
    /// Idle connections are closed.
    ClosingIdle,
    /// Everything is cut.
    Aborted,
}

/// What a reload swaps. An exchange keeps the settings that it began with.
pub(crate) struct Settings {
    pub(crate) config: Arc<Config>,
    pub(crate) format: Format,
    skip: Skip,
    log: LogWriter,
}

impl Settings {
    /// `running`: a log that goes on where its destination is the same.
    fn new(config: Arc<Config>, running: Option<&Settings>) -> io::Result<Arc<Settings>> {
        let same = running.filter(|s| s.config.access_log == config.access_log);
        let log = match same {
            Some(settings) => settings.log.clone(),
            None => LogWriter::open(&config.access_log, config.log_backlog)?,
        };
        let options = FormatOptions {
            name: &config.log_name,
            time: config.log_time,
            query: config.log_query,
            upstream: &config.upstream,
        };
        let format = Format::parse(&config.log_format, options).map_err(io::Error::other)?;
        Ok(Arc::new(Settings { format, skip: Skip::new(&config.log_skip), log, config }))
    }
}

/// What the event loops share.
pub(crate) struct Shared {
    /// As of the last reload; the loops have copies (`Loop::settings`).
    settings: Mutex<Arc<Settings>>,
    /// Counts reloads, so that the loops know when to copy.
    reloads: AtomicUsize,
    pub(crate) budget: Arc<Budget>,
    pub(crate) upstreams: Arc<Upstreams>,
    phase: AtomicU8,
    answered: AtomicBool,
    /// The last attempt got an answer, or none was made yet.
    reachable: AtomicBool,
    gone: AtomicBool,
    gauges: [AtomicUsize; 4],
    /// Of the last period.
    saturation: Mutex<Saturation>,
    connections: AtomicUsize,
    next_connection: AtomicU64,
    finished: AtomicU64,
    delivered: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    tunnels: AtomicUsize,
    /// The app is our own child.
    wrapped: bool,
    said_unreachable: Said,
    said_paced: Said,
    begun: Instant,
}

impl Shared {
    fn phase(&self) -> u8 {
        self.phase.load(Relaxed)
    }

    fn settings(&self) -> Arc<Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Connections end with the response that they are at.
    pub(crate) fn closing(&self) -> bool {
        self.phase() >= Phase::Announced as u8
    }

    pub(crate) fn closing_idle(&self) -> bool {
        self.phase() >= Phase::ClosingIdle as u8
    }

    pub(crate) fn aborted(&self) -> bool {
        self.phase() >= Phase::Aborted as u8
    }

    /// The app has ended and will not come back.
    pub(crate) fn app_is_gone(&self) -> bool {
        self.gone.load(Relaxed)
    }

    /// Why nothing can be dispatched once the app is gone.
    pub(crate) fn gone_reason(&self) -> Reason {
        if self.closing() { Reason::Draining } else { Reason::AppUnavailable }
    }

    pub(crate) fn app_answered(&self) {
        for flag in [&self.answered, &self.reachable] {
            // Read first: a store would take the cache line from the other loops each time.
            if !flag.load(Relaxed) {
                flag.store(true, Relaxed);
            }
        }
    }

    pub(crate) fn app_has_answered(&self) -> bool {
        self.answered.load(Relaxed)
    }

    /// An exchange has ended: counts it and writes its line.
    pub(crate) fn ended(&self, settings: &Settings, record: &Record) {
        METRICS.ended(record.end, record.status);
        METRICS.retries.add(u64::from(record.retry));
        if self.closing() && record.end == Reason::Ok {
            let total = if self.app_is_gone() { &self.delivered } else { &self.finished };
            total.fetch_add(1, Relaxed);
        }
        record.emit(&settings.format, &settings.skip, &settings.log);
    }

    pub(crate) fn count_refused(&self, reason: Reason) {
        const UNAVAILABLE: u16 = 503;
        if self.closing() && reason.status() == UNAVAILABLE {
            self.refused.fetch_add(1, Relaxed);
        }
    }

    pub(crate) fn tunnels(&self) -> usize {
        self.tunnels.load(Relaxed)
    }

    pub(crate) fn count_cut(&self) {
        self.cut.fetch_add(1, Relaxed);
    }

    /// Why there is no answer in time: our own app that has never answered is starting still.
    pub(crate) fn timeout_reason(&self) -> Reason {
        match self.wrapped && !self.app_has_answered() {
            true => Reason::AppStarting,
            false => Reason::AppTimeout,
        }
    }

    /// Why the app cannot be connected to.
    pub(crate) fn unavailable_reason(&self) -> Reason {
        match self.app_has_answered() {
            true => Reason::AppUnavailable,
            false => Reason::AppStarting,
        }
    }

    /// Whether this error of a connect means that the app will not come back. While we stop, a
    /// wrapped app whose socket is gone was stopped too: Heroku's TERM comes to every process.
    pub(crate) fn app_has_gone(&self, error: &io::Error) -> bool {
        use io::ErrorKind::{ConnectionRefused, NotFound};
        let absent = matches!(error.kind(), NotFound | ConnectionRefused);
        if self.wrapped && self.closing() && absent && !self.gone.swap(true, Relaxed) {
            self.upstreams.wake_line();
        }
        self.app_is_gone()
    }

    /// An upstream could not be reached: says so, not for every request.
    pub(crate) fn say_unreachable(&self, addr: &UpstreamAddr, tried: Duration, error: &io::Error) {
        self.reachable.store(false, Relaxed);
        if self.said_unreachable.due(self.begun) {
            tracing::warn!(
                "upstream {addr} cannot be reached within connect-retry {tried:?}: {error}"
            );
        }
    }

    /// A worker has to wait for its client: says so, not for every response.
    pub(crate) fn say_paced(&self, disk_failed: bool) {
        if self.said_paced.due(self.begun) {
            let why = match disk_failed {
                true => "the disk fails (spool-dir)",
                false => "the disk budget is spent (response-spool-max, spool-max)",
            };
            tracing::warn!("a worker waits for its client: {why}");
        }
    }
}

/// When the same thing was last said: milliseconds since the start, 0 for never.
#[derive(Default)]
struct Said(AtomicU64);

impl Said {
    fn due(&self, begun: Instant) -> bool {
        let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.0.load(Relaxed);
        let again = SAY_AGAIN.as_millis() as u64;
        let due = last == 0 || now.saturating_sub(last) >= again;
        due && self.0.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok()
    }
}

/// One event loop's own: not shared, so `Rc`.
pub(crate) struct Loop {
    pub(crate) shared: Arc<Shared>,
    pub(crate) timers: Rc<Timers>,
    /// The settings of `reloads` reloads.
    settings: RefCell<Arc<Settings>>,
    reloads: Cell<usize>,
}

impl Loop {
    /// The settings for what begins now.
    pub(crate) fn settings(&self) -> Arc<Settings> {
        let reloads = self.shared.reloads.load(Acquire);
        if self.reloads.replace(reloads) != reloads {
            self.settings.replace(self.shared.settings());
        }
        self.settings.borrow().clone()
    }
}

/// One exchange in one of the counts, for as long as it lives.
pub(crate) struct Gauge {
    lp: Rc<Loop>,
    which: usize,
}

impl Gauge {
    const RECEIVING: usize = 0;
    const QUEUED: usize = 1;
    const IN_FLIGHT: usize = 2;
    const DELIVERING: usize = 3;

    fn new(lp: &Rc<Loop>, which: usize) -> Gauge {
        lp.shared.gauges[which].fetch_add(1, Relaxed);
        Gauge { lp: lp.clone(), which }
    }
    pub(crate) fn receiving(lp: &Rc<Loop>) -> Gauge {
        Gauge::new(lp, Gauge::RECEIVING)
    }
    pub(crate) fn queued(lp: &Rc<Loop>) -> Gauge {
        Gauge::new(lp, Gauge::QUEUED)
    }
    pub(crate) fn in_flight(lp: &Rc<Loop>) -> Gauge {
        Gauge::new(lp, Gauge::IN_FLIGHT)
    }
    pub(crate) fn delivering(lp: &Rc<Loop>) -> Gauge {
        Gauge::new(lp, Gauge::DELIVERING)
    }
    pub(crate) fn is_queued(&self) -> bool {
        self.which == Gauge::QUEUED
    }
}

impl Drop for Gauge {
    fn drop(&mut self) {
        self.lp.shared.gauges[self.which].fetch_sub(1, Relaxed);
    }
}

/// One tunnel, for `max-tunnels`, for as long as it lives.
pub(crate) struct Tunnel(Rc<Loop>);

impl Tunnel {
    pub(crate) fn new(lp: &Rc<Loop>) -> Tunnel {
        lp.shared.tunnels.fetch_add(1, Relaxed);
        Tunnel(lp.clone())
    }
}

impl Drop for Tunnel {
    fn drop(&mut self) {
        self.0.shared.tunnels.fetch_sub(1, Relaxed);
    }
}

/// What is under way, for the drain's lines and `/status`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub connections: usize,
    /// Heads and bodies on their way in.
    pub receiving: usize,
    pub queued: usize,
    /// At the app.
    pub in_flight: usize,
    /// The worker is done, the client still reads.
    pub delivering: usize,
    /// Kept alive, nothing of a next request yet.
    pub idle: usize,
}

/// Totals since the drain began, for the summary line.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DrainTotals {
    pub finished: u64,
    pub delivered_after_app_end: u64,
    pub refused: u64,
    pub cut: u64,
}

/// The running data path. Cheap to clone; but for `open` and `abort` its methods may be called from
/// any thread.
#[derive(Clone)]
pub struct Server {
    shared: Arc<Shared>,
    inner: Arc<Inner>,
}

struct Inner {
    listeners: Mutex<Vec<Listener>>,
    control: watch::Sender<Phase>,
    loops: Vec<Remote>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A loop as the accepting one sees it.
struct Remote {
    connections: Arc<AtomicUsize>,
    /// None: the accepting loop itself.
    inbox: Option<mpsc::UnboundedSender<Accepted>>,
}

/// A connection that was accepted, on its way to its loop.
pub(crate) struct Accepted {
    socket: Socket,
    peer: Peer,
    counted: Counted,
}

/// One connection in the counts, from its accept on: a loop that has not taken up yet what it was
/// handed has it already, and the drain waits for it.
pub(crate) struct Counted {
    shared: Arc<Shared>,
    of_loop: Arc<AtomicUsize>,
    /// Connections that were open when it came.
    before: usize,
}

impl Counted {
    fn new(shared: &Arc<Shared>, of_loop: &Arc<AtomicUsize>) -> Counted {
        METRICS.connections.add(1);
        of_loop.fetch_add(1, Relaxed);
        let before = shared.connections.fetch_add(1, Relaxed);
        Counted { shared: shared.clone(), of_loop: of_loop.clone(), before }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        METRICS.connections.sub(1);
        self.of_loop.fetch_sub(1, Relaxed);
        self.shared.connections.fetch_sub(1, Relaxed);
    }
}

impl Server {
    /// Binds every `listen` address without listening yet (a busy port is known at once), starts
    /// the log writer and, for `threads` beyond the first, the other loops. With `passed` listeners
    /// (socket activation) those are used instead.
    pub fn bind(config: Arc<Config>, passed: Vec<OwnedFd>) -> io::Result<Server> {
        let bind = |addr| {
            Listener::bind(addr).map_err(|e| io::Error::new(e.kind(), format!("{addr}: {e}")))
        };
        let listeners = match passed.is_empty() {
            true => config.listen.iter().map(bind).collect::<io::Result<Vec<_>>>()?,
            false => passed.into_iter().map(Listener::passed).collect::<io::Result<Vec<_>>>()?,
        };
        let (shared, control) = (Arc::new(shared(&config)?), watch::Sender::new(Phase::Bound));
        let mut loops = vec![Remote { connections: Arc::default(), inbox: None }];
        let mut threads = Vec::new();
        for n in 1..config.threads {
            let (sender, receiver) = mpsc::unbounded_channel();
            let connections: Arc<AtomicUsize> = Arc::default();
            loops.push(Remote { connections: connections.clone(), inbox: Some(sender) });
            let (shared, phase) = (shared.clone(), control.subscribe());
            threads.push(
                std::thread::Builder::new()
                    .name(format!("loop-{n}"))
                    .spawn(move || run_loop(shared, connections, phase, receiver))?,
            );
        }
        let inner = Inner {
            listeners: Mutex::new(listeners),
            control,
            loops,
            threads: Mutex::new(threads),
        };
        Ok(Server { shared, inner: Arc::new(inner) })
    }

    /// Addresses as bound (port 0 resolved), as the boot line shows them.
    pub fn local_addrs(&self) -> Vec<String> {
        self.listeners().iter().map(Listener::local_addr).collect()
    }

    fn listeners(&self) -> std::sync::MutexGuard<'_, Vec<Listener>> {
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens and accepts; the runtime that it is called in becomes loop 0, and its thread lives to
    /// the end.
    pub fn open(&self) -> io::Result<()> {
        let lp = start_loop(self.shared.clone(), self.inner.control.subscribe());
        for listener in self.listeners().iter() {
            let named =
                |e: io::Error| io::Error::new(e.kind(), format!("{}: {e}", listener.local_addr()));
            listener.listen().map_err(named)?;
            let acceptor = listener.register().map_err(named)?;
            let phase = self.inner.control.subscribe();
            tokio::task::spawn_local(accept(acceptor, lp.clone(), self.inner.clone(), phase));
        }
        tokio::task::spawn_local(saturation::run(lp));
        self.go(Phase::Open);
        Ok(())
    }

    /// The app has answered once: until then (`open-port early`) requests that cannot be delivered
    /// within `connect-retry` are app_starting, later app_unavailable.
    pub fn app_answered(&self) {
        self.shared.app_answered();
    }

    /// False from an attempt that ran out of `connect-retry` to the next that is answered.
    pub fn app_reachable(&self) -> bool {
        self.shared.reachable.load(Relaxed)
    }

    /// Responses say `Connection: close` from now on; accepting goes on (drain-delay).
    pub fn announce_close(&self) {
        self.go(Phase::Announced);
    }

    /// Stops accepting; everything accepted is finished.
    pub fn drain(&self) {
        self.go(Phase::Draining);
        self.listeners().clear();
    }

    /// The app has ended and will not come back: what cannot be dispatched is answered 503
    /// (draining or app_unavailable) at once.
    pub fn app_gone(&self) {
        self.shared.gone.store(true, Relaxed);
        self.shared.upstreams.wake_line();
    }

    /// Closes connections that are idle (lingering).
    pub fn close_idle(&self) {
        self.go(Phase::ClosingIdle);
    }

    /// Cuts everything that is left; every record is written. On the thread of loop 0.
    pub async fn abort(&self) {
        self.go(Phase::Aborted);
        // The tasks of this loop see the phase when they are polled: they run before this one again.
        while self.inner.loops[0].connections.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
        let threads =
            std::mem::take(&mut *self.inner.threads.lock().unwrap_or_else(PoisonError::into_inner));
        for thread in threads {
            // A loop's panic was reported when it happened.
            let _ = thread.join();
        }
    }

    fn go(&self, phase: Phase) {
        self.shared.phase.fetch_max(phase as u8, Relaxed);
        self.inner.control.send_if_modified(|now| {
            let moves = *now < phase;
            *now = phase.max(*now);
            moves
        });
    }

    /// Takes a new configuration: what begins from now on goes by it, what is under way ends as it
    /// began. Gives a sentence that says so, with the options that only a restart can change.
    ///
    /// # Errors
    /// The log cannot be opened; nothing is changed.
    pub fn reload(&self, config: Arc<Config>) -> io::Result<String> {
        let before = self.shared.settings();
        let fixed = config.fixed_since(&before.config);
        let settings = Settings::new(config, Some(&before))?;
        let file = settings.config.config_file.as_ref();
        let mut report = match file {
            Some(file) => format!("read {} again", file.display()),
            None => "there is no configuration file to read again".to_owned(),
        };
        if !fixed.is_empty() {
            report += &format!("; needs a restart: {}", fixed.join(", "));
        }
        self.shared.upstreams.reconfigure(&settings.config);
        *self.shared.settings.lock().unwrap_or_else(PoisonError::into_inner) = settings;
        self.shared.reloads.fetch_add(1, Release);
        Ok(report)
    }

    /// Flushes the access log and joins its writer, at most `limit`.
    pub fn close_log(&self, limit: Duration) {
        self.shared.settings().log.close(limit);
    }

    /// Opens the log file again (USR1).
    pub fn reopen_log(&self) {
        self.shared.settings().log.reopen();
    }

    pub fn counts(&self) -> Counts {
        let connections = self.shared.connections.load(Relaxed);
        let [receiving, queued, in_flight, delivering] =
            [0, 1, 2, 3].map(|i| self.shared.gauges[i].load(Relaxed));
        let busy = receiving + queued + in_flight + delivering;
        Counts {
            connections,
            receiving,
            queued,
            in_flight,
            delivering,
            idle: connections.saturating_sub(busy),
        }
    }

    pub fn drain_totals(&self) -> DrainTotals {
        DrainTotals {
            finished: self.shared.finished.load(Relaxed),
            delivered_after_app_end: self.shared.delivered.load(Relaxed),
            refused: self.shared.refused.load(Relaxed),
            cut: self.shared.cut.load(Relaxed),
        }
    }

    /// Address, requests in flight and slots of each upstream.
    pub fn upstreams(&self) -> Vec<(String, usize, Option<usize>)> {
        self.shared.upstreams.status()
    }

    /// The queue over the last period of `saturation-log`.
    pub fn saturation(&self) -> Saturation {
        self.shared.saturation()
    }

    pub fn budget(&self) -> &Budget {
        &self.shared.budget
    }
}

fn shared(config: &Arc<Config>) -> io::Result<Shared> {
    Ok(Shared {
        settings: Mutex::new(Settings::new(config.clone(), None)?),
        reloads: AtomicUsize::new(0),
        budget: Budget::new(config.memory, config.spool_max, config.spool_dir.clone()),
        upstreams: Upstreams::new(config),
        phase: AtomicU8::new(Phase::Bound as u8),
        answered: AtomicBool::new(false),
        reachable: AtomicBool::new(true),
        gone: AtomicBool::new(false),
        gauges: Default::default(),
        saturation: Mutex::default(),
        connections: AtomicUsize::new(0),
        next_connection: AtomicU64::new(1),
        finished: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        cut: AtomicU64::new(0),
        tunnels: AtomicUsize::new(0),
        wrapped: !config.command.is_empty(),
        said_unreachable: Said::default(),
        said_paced: Said::default(),
        begun: Instant::now(),
    })
}

/// A loop on a thread of its own: takes the connections that it is handed until all is aborted.
fn run_loop(
    shared: Arc<Shared>,
    connections: Arc<AtomicUsize>,
    mut phase: watch::Receiver<Phase>,
    mut inbox: mpsc::UnboundedReceiver<Accepted>,
) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(2)
        .thread_keep_alive(Duration::MAX)
        .build_local(Default::default());
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(e) => return tracing::error!("cannot start an event loop: {e}"),
    };
    runtime.block_on(async move {
        let lp = start_loop(shared, phase.clone());
        loop {
            tokio::select! {
                Some(accepted) = inbox.recv() => connection::spawn(&lp, accepted),
                aborted = phase.wait_for(|p| *p == Phase::Aborted) => {
                    let _ = aborted;
                    break;
                }
            }
        }
        // What was handed over and not taken up is closed.
        drop(inbox);
        while connections.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    });
    // A read from a dead disk must not hold the exit.
    runtime.shutdown_background();
}

/// The tasks that every loop has: its timers, and the one that tells connections of a new phase.
fn start_loop(shared: Arc<Shared>, mut phase: watch::Receiver<Phase>) -> Rc<Loop> {
    let (reloads, settings) = (shared.reloads.load(Acquire), shared.settings());
    let lp = Rc::new(Loop {
        shared,
        timers: Timers::new(),
        settings: RefCell::new(settings),
        reloads: Cell::new(reloads),
    });
    let timers = lp.timers.clone();
    tokio::task::spawn_local(async move { timers.run().await });
    let timers = lp.timers.clone();
    tokio::task::spawn_local(async move {
        while phase.changed().await.is_ok() {
            timers.wake_all();
        }
    });
    let sweeper = lp.clone();
    tokio::task::spawn_local(async move {
        let mut heap = Heap::default();
        loop {
            tokio::time::sleep(SWEEP).await;
            let limit = sweeper.settings().config.upstream_keepalive;
            sweeper.shared.upstreams.close_stale(limit.unwrap_or_default());
            sweeper.shared.budget.sweep();
            if sweeper.shared.budget.should_relieve() {
                // Who holds memory and only waits puts it on disk.
                sweeper.timers.wake_holders();
            }
            if heap.has_shrunk(&sweeper.shared) {
                tokio::task::spawn_blocking(|| {
                    spool::drop_kept();
                    sys::trim_heap();
                });
            }
        }
    });
    // The first thread of the blocking pool. Were there none when one is needed and cannot be had
    // (a limit of processes), tokio would panic.
    tokio::task::spawn_blocking(|| ());
    lp
}

/// What is known of the heap's size, to tell when most of a burst is over. glibc keeps what is free
/// below the last live allocation for itself, and a burst of clients leaves such ones.
#[derive(Default)]
struct Heap {
    most: u64,
    sweeps: u32,
}

impl Heap {
    /// Sweeps between two looks: a load that goes up and down is left alone.
    const LOOK: u32 = 2;
    /// Bytes that are worth it.
    const WORTH: u64 = 1024 * 1024;
    /// What a busy connection costs beside its spools, roughly.
    const CONNECTION: u64 = 4 * 1024;

    fn has_shrunk(&mut self, shared: &Shared) -> bool {
        let connections = shared.connections.load(Relaxed) as u64;
        let now = shared.budget.memory_used() + connections * Heap::CONNECTION;
        self.most = self.most.max(now);
        self.sweeps += 1;
        if self.sweeps < Heap::LOOK {
            return false;
        }
        self.sweeps = 0;
        let shrunk = self.most - now >= Heap::WORTH;
        self.most = now;
        shrunk
    }
}

/// Accepts until the drain, then what is left in the backlog: it has been told yes by the kernel.
async fn accept(
    acceptor: Acceptor,
    lp: Rc<Loop>,
    inner: Arc<Inner>,
    mut phase: watch::Receiver<Phase>,
) {
    loop {
        let accepted = tokio::select! {
            biased;
            _ = phase.wait_for(|p| *p >= Phase::Draining) => break,
            accepted = std::future::poll_fn(|cx| acceptor.poll_accept(cx)) => accepted,
        };
        match accepted {
            Ok((socket, peer)) => hand_over(&lp, &inner, socket, peer),
            Err(e) if e.kind() == io::ErrorKind::ConnectionAborted => {}
            Err(e) => {
                tracing::warn!("cannot accept a connection: {e}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
        // Far beyond the limit nobody is even told so: the kernel's backlog holds them.
        while lp.shared.connections.load(Relaxed)
            > lp.settings().config.max_connections + REFUSED_AT_ONCE
            && !lp.shared.closing()
        {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
    while let Ok((socket, peer)) = acceptor.try_accept() {
        hand_over(&lp, &inner, socket, peer);
    }
}

/// To the loop with the fewest connections.
fn hand_over(lp: &Rc<Loop>, inner: &Inner, socket: Socket, peer: Peer) {
    METRICS.connections_accepted.add(1);
    let Some(fewest) = inner.loops.iter().min_by_key(|r| r.connections.load(Relaxed)) else {
        return;
    };
    let counted = Counted::new(&lp.shared, &fewest.connections);
    let accepted = Accepted { socket, peer, counted };
    let left = match &fewest.inbox {
        None => Some(accepted),
        // The share of a loop that could not start is served here.
        Some(inbox) => inbox.send(accepted).err().map(|refused| refused.0),
    };
    if let Some(accepted) = left {
        connection::spawn(lp, accepted);
    }
}
