//! What the event loops share: the settings as of the last reload, the queue, the budgets, counts, and
//! the complaints that are not made each time.

use std::collections::HashMap;
use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::Notify;

use super::{Phase, Saturation, parked};
use crate::access_log::{Format, FormatOptions, LogWriter, Outlived, Record, Skip};
use crate::config::{Config, UpstreamAddr};
use crate::error::Reason;
use crate::metrics::METRICS;
use crate::spool::Budget;
use crate::upstream::Upstreams;

/// The same complaint is not said more often.
const SAY_AGAIN: Duration = Duration::from_secs(5);
/// One that comes again and again until somebody changes a limit.
const SAY_LIMIT_AGAIN: Duration = Duration::from_secs(60);

/// What a reload swaps. An exchange keeps the settings that it began with.
pub(crate) struct Settings {
    pub(crate) config: Arc<Config>,
    pub(crate) format: Format,
    pub(super) skip: Skip,
    pub(super) log: LogWriter,
}

impl Settings {
    /// `running`: a log that goes on where its destination is the same.
    pub(super) fn new(
        config: Arc<Config>,
        running: Option<&Settings>,
    ) -> io::Result<Arc<Settings>> {
        let same = running.filter(|s| s.config.access_log == config.access_log);
        let log = match same {
            Some(settings) => settings.log.clone(),
            None => LogWriter::open(&config.access_log, config.log_backlog)
                .map_err(|e| io::Error::new(e.kind(), config.cannot_log(&e)))?,
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
    pub(super) settings: Mutex<Arc<Settings>>,
    /// Logs of before a reload, for records of what began before it.
    pub(super) outlived: Mutex<Vec<Outlived>>,
    /// Counts reloads, so that the loops know when to copy.
    pub(super) reloads: AtomicUsize,
    pub(crate) budget: Arc<Budget>,
    pub(crate) upstreams: Arc<Upstreams>,
    pub(super) phase: AtomicU8,
    pub(super) answered: AtomicBool,
    /// The last attempt got an answer, or none was made yet.
    pub(super) reachable: AtomicBool,
    pub(super) gone: AtomicBool,
    pub(super) gauges: [AtomicUsize; 4],
    /// Of the last period.
    pub(super) saturation: Mutex<Saturation>,
    pub(super) connections: AtomicUsize,
    /// By their numbers.
    pub(super) loops: Vec<OfLoop>,
    pub(super) next_connection: AtomicU64,
    pub(super) finished: AtomicU64,
    pub(super) delivered: AtomicU64,
    pub(super) refused: AtomicU64,
    pub(super) cut: AtomicU64,
    pub(super) tunnels: AtomicUsize,
    /// Requests of each client, where they have a limit.
    pub(super) clients: Mutex<HashMap<IpAddr, usize>>,
    /// The app is our own child.
    pub(super) wrapped: bool,
    said_unreachable: Said,
    said_paced: Said,
    said_not_kept: Said,
    said_not_accepted: Said,
    said_not_watched: Said,
    said_reaped: Said,
    pub(super) begun: Instant,
}

/// What all see of one loop.
pub(super) struct OfLoop {
    pub(super) connections: AtomicUsize,
    /// Since when the client is idle that has been parked longest.
    pub(super) idle_since: AtomicU64,
    /// There are too many connections: told to the loop whose idle ones make room.
    pub(super) crowded: Notify,
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
    pub(super) fn phase(&self) -> u8 {
        self.phase.load(Relaxed)
    }

    pub(super) fn settings(&self) -> Arc<Settings> {
        self.settings.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn outlived(&self) -> MutexGuard<'_, Vec<Outlived>> {
        self.outlived.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn clients(&self) -> MutexGuard<'_, HashMap<IpAddr, usize>> {
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

    /// A request was refused for its body: says so, not for every request, of which clients may send many.
    pub(crate) fn say_not_kept(&self, error: &io::Error) {
        if self.said_not_kept.due(self.begun, SAY_LIMIT_AGAIN).is_some() {
            match error.raw_os_error() {
                None if self.settings().config.spool_max == 0 => tracing::warn!(
                    "a request body could not be kept: it does not fit into memory, and there is no \
                     disk for it (spool-dir, spool-max)"
                ),
                None if error.kind() == io::ErrorKind::StorageFull => tracing::warn!(
                    "a request body could not be kept: the disk budget is spent (spool-max)"
                ),
                _ => tracing::warn!(
                    "a request body could not be kept: {error} (spool-dir, spool-max)"
                ),
            }
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
    pub(super) fn is_crowded(&self, max_connections: usize) -> bool {
        self.connections.load(Relaxed) > max_connections - max_connections.div_ceil(10)
    }

    pub(super) fn say_reaped(&self, max: usize) {
        if let Some(times) = self.said_reaped.due(self.begun, SAY_LIMIT_AGAIN) {
            tracing::warn!(
                "more than 90 % of max-connections {max} are open: {times} idle closed so far to \
                 make room"
            );
        }
    }

    pub(super) fn say_not_accepted(&self, error: &io::Error) {
        if let Some(times) = self.said_not_accepted.due(self.begun, SAY_LIMIT_AGAIN) {
            tracing::warn!("cannot accept connections: {error} ({times} tries so far)");
        }
    }

    pub(super) fn say_not_watched(&self, error: &io::Error) {
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

pub(super) fn shared(config: &Arc<Config>) -> io::Result<Shared> {
    let budget = Budget::new(config.memory, config.spool_max, config.spool_dir.clone());
    // Where no limit counts the page cache, it takes a burst faster than the device could.
    if config.cgroup.memory.is_none() || config.spool_in_memory {
        budget.refuse_direct();
    }
    Ok(Shared {
        settings: Mutex::new(Settings::new(config.clone(), None)?),
        outlived: Mutex::default(),
        reloads: AtomicUsize::new(0),
        budget,
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
        said_not_kept: Said::default(),
        said_not_accepted: Said::default(),
        said_not_watched: Said::default(),
        said_reaped: Said::default(),
        begun: Instant::now(),
    })
}
