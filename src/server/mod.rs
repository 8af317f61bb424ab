//! The data path's outer part: listeners, event loops, what they share. The lifecycle drives it
//! through `Server`; `connection` is the loop of one client.
//!
//! Each event loop owns its connections. What the loops share is small: the queue, the budgets,
//! the log and the counts below. One loop accepts and hands sockets to the loop with the fewest
//! connections (closing an SO_REUSEPORT listener would reset what is queued on it).

pub(crate) mod connection;
mod parked;
mod saturation;

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{
    AtomicBool, AtomicU8, AtomicU64, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::sync::{Notify, mpsc, watch};

use crate::access_log::{Format, FormatOptions, LogWriter, Record, Skip};
use crate::config::{Config, Peer, UpstreamAddr};
use crate::error::Reason;
use crate::metrics::METRICS;
use crate::net::{Acceptor, Listener};
use crate::spool::{self, Budget};
use crate::sys;
use crate::timer::Timers;
use crate::upstream::Upstreams;
use parked::Parked;
pub use saturation::Saturation;

/// Connections beyond `max-connections` that are still taken to be told so.
const REFUSED_AT_ONCE: usize = 64;
/// Pause after EMFILE and ENFILE: descriptors come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How often kept upstream connections are looked through, and memory that only waits.
const SWEEP: Duration = Duration::from_millis(500);
/// The same complaint is not said more often.
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// One that comes again and again until somebody changes a limit.
const SAY_LIMIT_AGAIN: Duration = Duration::from_secs(60);

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
    /// By their numbers.
    loops: Vec<OfLoop>,
    next_connection: AtomicU64,
    finished: AtomicU64,
    delivered: AtomicU64,
    refused: AtomicU64,
    cut: AtomicU64,
    tunnels: AtomicUsize,
    /// Requests of each client, where they have a limit.
    clients: Mutex<HashMap<IpAddr, usize>>,
    /// The app is our own child.
    wrapped: bool,
    said_unreachable: Said,
    said_paced: Said,
    said_not_accepted: Said,
    said_not_watched: Said,
    said_reaped: Said,
    begun: Instant,
}

/// What all see of one loop.
struct OfLoop {
    connections: AtomicUsize,
    /// Since when the client is idle that has been parked longest.
    idle_since: AtomicU64,
    /// There are too many connections: told to the loop whose idle ones make room.
    crowded: Notify,
}

impl OfLoop {
    fn new() -> OfLoop {
        OfLoop {
            connections: AtomicUsize::new(0),
            idle_since: AtomicU64::new(parked::NOBODY),
            crowded: Notify::new(),
        }
    }
}

impl Shared {
    fn phase(&self) -> u8 {
        self.phase.load(Relaxed)
    }

    fn settings(&self) -> Arc<Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
        self.clients.lock().unwrap_or_else(PoisonError::into_inner)
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
        if self.said_unreachable.due(self.begun, SAY_AGAIN).is_some() {
            tracing::warn!(
                "upstream {addr} cannot be reached within connect-retry {tried:?}: {error}"
            );
        }
    }

    /// A worker has to wait for its client: says so, not for every response.
    pub(crate) fn say_paced(&self, disk_failed: bool) {
        if self.said_paced.due(self.begun, SAY_AGAIN).is_some() {
            let why = match disk_failed {
                true => "the disk fails (spool-dir)",
                false => "the disk budget is spent (response-spool-max, spool-max)",
            };
            tracing::warn!("a worker waits for its client: {why}");
        }
    }

    /// More than 90 % of the connections that there may be: idle ones make room.
    fn is_crowded(&self, max_connections: usize) -> bool {
        self.connections.load(Relaxed) > max_connections - max_connections.div_ceil(10)
    }

    fn say_reaped(&self, max: usize) {
        if let Some(times) = self.said_reaped.due(self.begun, SAY_LIMIT_AGAIN) {
            tracing::warn!(
                "more than 90 % of max-connections {max} are open: {times} idle closed so far to \
                 make room"
            );
        }
    }

    fn say_not_accepted(&self, error: &io::Error) {
        if let Some(times) = self.said_not_accepted.due(self.begun, SAY_LIMIT_AGAIN) {
            tracing::warn!("cannot accept connections: {error} ({times} tries so far)");
        }
    }

    fn say_not_watched(&self, error: &io::Error) {
        if let Some(times) = self.said_not_watched.due(self.begun, SAY_LIMIT_AGAIN) {
            tracing::warn!("cannot watch a connection: {error} ({times} so far)");
        }
    }
}

/// A complaint that is not made each time: how often there was cause, and when it was last made, in
/// milliseconds since the start (0: never).
#[derive(Default)]
struct Said {
    times: AtomicU64,
    last: AtomicU64,
}

impl Said {
    /// There is cause. Some, the number of causes so far, if it is to be said now.
    fn due(&self, begun: Instant, again: Duration) -> Option<u64> {
        let times = self.times.fetch_add(1, Relaxed) + 1;
        let now = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        let last = self.last.load(Relaxed);
        let due = last == 0 || now.saturating_sub(last) >= again.as_millis() as u64;
        let ours = || self.last.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok();
        (due && ours()).then_some(times)
    }
}

/// One event loop's own: not shared, so `Rc`.
pub(crate) struct Loop {
    pub(crate) shared: Arc<Shared>,
    number: usize,
    pub(crate) timers: Rc<Timers>,
    parked: Parked,
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

    fn of_loop(&self) -> &OfLoop {
        &self.shared.loops[self.number]
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

/// One request of a client, for `max-requests-per-client`, for as long as it lives.
pub(crate) struct OfClient {
    shared: Arc<Shared>,
    client: IpAddr,
}

impl OfClient {
    /// None: the client has as many as it may have.
    pub(crate) fn new(shared: &Arc<Shared>, client: IpAddr, max: usize) -> Option<OfClient> {
        let mut clients = shared.clients();
        let requests = clients.entry(client).or_default();
        if *requests >= max {
            METRICS.client_limited.add(1);
            return None;
        }
        *requests += 1;
        Some(OfClient { shared: shared.clone(), client })
    }
}

impl Drop for OfClient {
    fn drop(&mut self) {
        let mut clients = self.shared.clients();
        if let Some(requests) = clients.get_mut(&self.client) {
            *requests -= 1;
            if *requests == 0 {
                clients.remove(&self.client);
            }
        }
    }
}

/// One tunnel, for `max-tunnels`, from the request for it to its end.
pub(crate) struct Tunnel(Rc<Loop>);

impl Tunnel {
    /// None: there are as many as there may be.
    pub(crate) fn new(lp: &Rc<Loop>, max_tunnels: usize) -> Option<Tunnel> {
        let more = |n| (n < max_tunnels).then_some(n + 1);
        lp.shared.tunnels.fetch_update(Relaxed, Relaxed, more).ok()?;
        Some(Tunnel(lp.clone()))
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
    /// By the loops' numbers; None: the accepting loop itself.
    inboxes: Vec<Option<mpsc::UnboundedSender<Dormant>>>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// A connection without a task: on its way to its loop, or idle for long.
pub(crate) struct Dormant {
    socket: Socket,
    peer: Peer,
    id: u64,
    /// Requests served on it so far.
    requests: u32,
    counted: Counted,
}

/// One connection in the counts, from its accept on: a loop that has not taken up yet what it was
/// handed has it already, and the drain waits for it.
pub(crate) struct Counted {
    shared: Arc<Shared>,
    loop_number: u16,
    /// It came when there were `max-connections` already.
    too_many: bool,
}

impl Counted {
    fn new(shared: &Arc<Shared>, loop_number: u16, max_connections: usize) -> Counted {
        METRICS.connections.add(1);
        shared.loops[usize::from(loop_number)].connections.fetch_add(1, Relaxed);
        let before = shared.connections.fetch_add(1, Relaxed);
        Counted { shared: shared.clone(), loop_number, too_many: before >= max_connections }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        METRICS.connections.sub(1);
        self.shared.loops[usize::from(self.loop_number)].connections.fetch_sub(1, Relaxed);
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
        let mut inboxes = vec![None];
        let mut threads = Vec::new();
        for number in 1..config.threads {
            let (sender, receiver) = mpsc::unbounded_channel();
            inboxes.push(Some(sender));
            let (shared, phase) = (shared.clone(), control.subscribe());
            threads.push(
                std::thread::Builder::new()
                    .name(format!("loop-{number}"))
                    .spawn(move || run_loop(shared, number, phase, receiver))?,
            );
        }
        let inner = Inner {
            listeners: Mutex::new(listeners),
            control,
            inboxes,
            threads: Mutex::new(threads),
        };
        Ok(Server { shared, inner: Arc::new(inner) })
    }

    /// Addresses as bound (port 0 resolved), as the boot line shows them.
    pub fn local_addrs(&self) -> Vec<String> {
        self.listeners().iter().map(Listener::local_addr).collect()
    }

    fn listeners(&self) -> MutexGuard<'_, Vec<Listener>> {
        self.inner.listeners.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Listens and accepts; the runtime that it is called in becomes loop 0, and its thread lives to
    /// the end.
    pub fn open(&self) -> io::Result<()> {
        let lp = start_loop(self.shared.clone(), 0, self.inner.control.subscribe())?;
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

    pub fn app_has_answered(&self) -> bool {
        self.shared.app_has_answered()
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
        while self.shared.loops[0].connections.load(Relaxed) > 0 {
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

    /// As many requests at the app at once from now on (`concurrency auto`).
    pub fn set_slots(&self, slots: usize) {
        self.shared.upstreams.set_slots(slots);
    }

    /// What is at the app now is told by `older_at_the_app` from what comes later.
    pub fn mark(&self) {
        self.shared.upstreams.mark();
    }

    /// A request has been at the app since before the last `mark`.
    pub fn older_at_the_app(&self) -> bool {
        self.shared.upstreams.older() > 0
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
        loops: (0..config.threads).map(|_| OfLoop::new()).collect(),
        next_connection: AtomicU64::new(1),
        finished: AtomicU64::new(0),
        delivered: AtomicU64::new(0),
        refused: AtomicU64::new(0),
        cut: AtomicU64::new(0),
        tunnels: AtomicUsize::new(0),
        clients: Mutex::default(),
        wrapped: !config.command.is_empty(),
        said_unreachable: Said::default(),
        said_paced: Said::default(),
        said_not_accepted: Said::default(),
        said_not_watched: Said::default(),
        said_reaped: Said::default(),
        begun: Instant::now(),
    })
}

/// A loop on a thread of its own: takes the connections that it is handed until all is aborted.
fn run_loop(
    shared: Arc<Shared>,
    number: usize,
    mut phase: watch::Receiver<Phase>,
    mut inbox: mpsc::UnboundedReceiver<Dormant>,
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
        let lp = match start_loop(shared, number, phase.clone()) {
            Ok(lp) => lp,
            Err(e) => return tracing::error!("cannot start an event loop: {e}"),
        };
        loop {
            tokio::select! {
                Some(accepted) = inbox.recv() => connection::spawn(&lp, accepted, Instant::now()),
                aborted = phase.wait_for(|p| *p == Phase::Aborted) => {
                    let _ = aborted;
                    break;
                }
            }
        }
        // What was handed over and not taken up is closed.
        drop(inbox);
        while lp.of_loop().connections.load(Relaxed) > 0 {
            tokio::task::yield_now().await;
        }
    });
    // A read from a dead disk must not hold the exit.
    runtime.shutdown_background();
}

/// The tasks that every loop has: its timers, its parked connections, the one that tells connections
/// of a new phase, and the one that looks around now and then.
fn start_loop(
    shared: Arc<Shared>,
    number: usize,
    mut phase: watch::Receiver<Phase>,
) -> io::Result<Rc<Loop>> {
    let (reloads, settings) = (shared.reloads.load(Acquire), shared.settings());
    let lp = Rc::new(Loop {
        shared,
        number,
        timers: Timers::new(),
        parked: Parked::new()?,
        settings: RefCell::new(settings),
        reloads: Cell::new(reloads),
    });
    let timers = lp.timers.clone();
    tokio::task::spawn_local(async move { timers.run().await });
    tokio::task::spawn_local(parked::run(lp.clone()));
    let told = lp.clone();
    tokio::task::spawn_local(async move {
        while phase.changed().await.is_ok() {
            told.timers.wake_all();
            parked::phase_changed(&told);
        }
    });
    let sweeper = lp.clone();
    tokio::task::spawn_local(async move {
        let mut heap = Heap::default();
        loop {
            tokio::time::sleep(SWEEP).await;
            parked::expire(&sweeper);
            let limit = sweeper.settings().config.upstream_keepalive;
            sweeper.shared.upstreams.close_stale(limit.unwrap_or_default());
            sweeper.shared.budget.sweep();
            if sweeper.shared.budget.should_relieve() {
                // Who holds memory and only waits puts it on disk.
                sweeper.timers.wake_holders();
            }
            if heap.has_shrunk(&sweeper) {
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
    Ok(lp)
}

/// What is known of the heap's size, to tell when a burst is over or its clients are idle. glibc keeps
/// what is free below the last live allocation for itself, and a burst of clients leaves such ones.
#[derive(Default)]
struct Heap {
    /// The most since it was given back.
    most: u64,
    /// Sweeps that found a quarter of it free.
    free_for: u32,
    /// Sweeps until it is given back once more, and one; 0: it is not.
    again_in: u32,
}

impl Heap {
    /// For so many sweeps it has to be free: a load that goes up and down is left alone.
    const SWEEPS: u32 = 2;
    /// And so many later once more: other threads, such as the log's, free what the burst gave them
    /// when they have done with it.
    const LATER: u32 = 6;
    /// Bytes that are worth it.
    const WORTH: u64 = 128 * 1024;
    /// What a busy connection costs beside its spools, roughly.
    const CONNECTION: u64 = 4 * 1024;

    fn has_shrunk(&mut self, lp: &Loop) -> bool {
        // Those that are parked have no task.
        let tasks = lp.of_loop().connections.load(Relaxed).saturating_sub(lp.parked.number());
        let now = lp.shared.budget.memory_used() + tasks as u64 * Heap::CONNECTION;
        self.most = self.most.max(now);
        let free = self.most - now >= Heap::WORTH.max(self.most / 4);
        self.free_for = if free { self.free_for + 1 } else { 0 };
        if self.free_for >= Heap::SWEEPS {
            *self = Heap { most: now, free_for: 0, again_in: Heap::LATER };
            return true;
        }
        self.again_in = self.again_in.saturating_sub(1);
        self.again_in == 1
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
            Err(e) => not_accepted(&lp, &e).await,
        }
        if lp.shared.is_crowded(lp.settings().config.max_connections) {
            // Idle ones make room now, before the next is counted.
            tokio::task::yield_now().await;
        }
        // Far beyond the limit nobody is even told so: the kernel's backlog holds them.
        while lp.shared.connections.load(Relaxed)
            > lp.settings().config.max_connections + REFUSED_AT_ONCE
            && !lp.shared.closing()
        {
            tokio::time::sleep(ACCEPT_PAUSE).await;
        }
    }
    loop {
        match acceptor.try_accept() {
            Ok((socket, peer)) => hand_over(&lp, &inner, socket, peer),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => return,
            Err(e) => not_accepted(&lp, &e).await,
        }
    }
}

/// A connection that ended in the backlog is nobody's; out of descriptors, we wait for some.
async fn not_accepted(lp: &Loop, error: &io::Error) {
    use io::ErrorKind::{ConnectionAborted, Interrupted};
    if !matches!(error.kind(), ConnectionAborted | Interrupted) {
        lp.shared.say_not_accepted(error);
        tokio::time::sleep(ACCEPT_PAUSE).await;
    }
}

/// To the loop with the fewest connections.
fn hand_over(lp: &Rc<Loop>, inner: &Inner, socket: Socket, peer: Peer) {
    METRICS.connections_accepted.add(1);
    let shared = &lp.shared;
    let fewest = (0u16..).zip(&shared.loops).min_by_key(|(_, l)| l.connections.load(Relaxed));
    let Some((number, _)) = fewest else { return };
    let counted = Counted::new(shared, number, lp.settings().config.max_connections);
    let id = shared.next_connection.fetch_add(1, Relaxed);
    let accepted = Dormant { socket, peer, id, requests: 0, counted };
    let left = match &inner.inboxes[usize::from(number)] {
        None => Some(accepted),
        // The share of a loop that could not start is served here.
        Some(inbox) => inbox.send(accepted).err().map(|refused| refused.0),
    };
    if let Some(accepted) = left {
        connection::spawn(lp, accepted, Instant::now());
    }
    parked::relieve(lp);
}
