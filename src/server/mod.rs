//! The data path's outer part: listeners, event loops, what they share. The lifecycle drives it
//! through `Server`; `connection` is the loop of one client.
//!
//! Each event loop (`event_loop`) owns its connections. What the loops share is small (`shared`): the
//! queue, the budgets, the log and the `counts`. One loop accepts and hands sockets to the loop with the fewest
//! connections (closing an SO_REUSEPORT listener would reset what is queued on it).

pub(crate) mod connection;
mod counts;
mod event_loop;
mod parked;
mod saturation;
mod shared;

use std::io;
use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Relaxed, Release};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::Socket;
use tokio::sync::{mpsc, watch};

use crate::config::{Config, Peer};
use crate::metrics::METRICS;
use crate::net::{Acceptor, Listener};
use crate::spool::Budget;
use counts::Counted;
pub use counts::{Counts, DrainTotals};
pub(crate) use counts::{Gauge, OfClient, Tunnel};
pub(crate) use event_loop::Loop;
use event_loop::{run_loop, start_loop};
pub use saturation::Saturation;
use shared::shared;
pub(crate) use shared::{Settings, Shared};

/// Connections beyond `max-connections` that are still taken to be told so.
const REFUSED_AT_ONCE: usize = 64;
/// Pause after EMFILE and ENFILE: descriptors come back as connections end.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

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

impl Server {
    /// Binds every `listen` address without listening yet (a busy port is known at once), starts
    /// the log writer and, for `threads` beyond the first, the other loops. With `passed` listeners
    /// (socket activation) those are used instead.
    ///
    /// # Errors
    /// An address cannot be bound, the log cannot be opened, a thread cannot be had; the text says all.
    pub fn bind(config: Arc<Config>, passed: Vec<OwnedFd>) -> io::Result<Server> {
        let bind = |addr| {
            Listener::bind(addr)
                .map_err(|e| io::Error::new(e.kind(), config.cannot_bind("listen", addr, &e)))
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
            let thread = std::thread::Builder::new().name(format!("loop-{number}"));
            let thread = thread.spawn(move || run_loop(shared, number, phase, receiver));
            threads.push(thread.map_err(|e| {
                io::Error::other(format!(
                    "{} cannot be started: {e}",
                    config.named("threads", &config.threads)
                ))
            })?);
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
    /// began. What a reload cannot change is as it was (`Config::keep_fixed`).
    ///
    /// # Errors
    /// The log cannot be opened; nothing is changed.
    pub fn reload(&self, config: Arc<Config>) -> io::Result<()> {
        let settings = Settings::new(config.clone(), Some(&self.shared.settings()))?;
        self.shared.upstreams.reconfigure(&config);
        let before = {
            let mut current = self.shared.settings.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut *current, settings)
        };
        if before.config.access_log != config.access_log {
            let mut outlived = self.shared.outlived();
            outlived.retain(|log| !log.is_over());
            outlived.push(before.log.outlived());
        }
        self.shared.reloads.fetch_add(1, Release);
        Ok(())
    }

    /// Flushes the access log and joins its writer, at most `limit`; and those of before a reload.
    pub fn close_log(&self, limit: Duration) {
        let end = Instant::now() + limit;
        self.shared.settings().log.close(limit);
        for log in &*self.shared.outlived() {
            log.flush(end.saturating_duration_since(Instant::now()));
        }
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
        // That of a loop that could not start, or has ended before this one, is served here; and counted
        // here, or `abort` would not wait for it, and its own loop would for ever.
        Some(inbox) => inbox.send(accepted).err().map(|mut refused| {
            refused.0.counted.move_to(0);
            refused.0
        }),
    };
    if let Some(accepted) = left {
        connection::spawn(lp, accepted, Instant::now());
    }
    parked::relieve(lp);
}

#[cfg(test)]
mod tests {
    use socket2::{Domain, Type};

    use super::*;
    use crate::config::LogDestination;

    #[test]
    fn a_connection_that_its_loop_does_not_take_any_more_counts_for_the_one_that_serves_it() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(Default::default())
            .unwrap();
        runtime.block_on(async {
            let config =
                Config { access_log: LogDestination::Off, threads: 2, ..Config::for_tests() };
            let shared = Arc::new(shared(&Arc::new(config)).unwrap());
            let control = watch::Sender::new(Phase::Open);
            let lp = start_loop(shared.clone(), 0, control.subscribe()).unwrap();
            let _busy = Counted::new(&shared, 0, 10);
            let (ended, _) = mpsc::unbounded_channel();
            let inner = Inner {
                listeners: Mutex::default(),
                control,
                inboxes: vec![None, Some(ended)],
                threads: Mutex::default(),
            };
            let (socket, _client) =
                Socket::pair(Domain::UNIX, Type::STREAM.nonblocking(), None).unwrap();
            hand_over(&lp, &inner, socket, Peer::Unix);
            let counts = [0, 1].map(|number| shared.loops[number].connections.load(Relaxed));
            assert_eq!(counts, [2, 0]);
        });
    }
}
