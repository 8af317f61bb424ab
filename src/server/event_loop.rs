//! One event loop: its connections, timers and copy of the settings, and the tasks that it has
//! beside those of its clients.

use std::cell::{Cell, RefCell};
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::time::{Duration, Instant};

use tokio::sync::{mpsc, watch};

use super::{
    Dormant, Phase, Shared, connection, parked,
    shared::{OfLoop, Settings},
};
use crate::exchange;
use crate::net;
use crate::spool;
use crate::sys;
use crate::timer::Timers;
use parked::Parked;

/// How often kept upstream connections are looked through, and memory that only waits.
const SWEEP: Duration = Duration::from_millis(500);
/// One event loop's own: not shared, so `Rc`.
pub(crate) struct Loop {
    pub(crate) shared: Arc<Shared>,
    pub(super) number: usize,
    pub(crate) timers: Rc<Timers>,
    pub(super) parked: Parked,
    /// The settings of `reloads` reloads.
    pub(super) settings: RefCell<Arc<Settings>>,
    pub(super) reloads: Cell<usize>,
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

    pub(super) fn of_loop(&self) -> &OfLoop {
        &self.shared.loops[self.number]
    }
}

/// A loop on a thread of its own: takes the connections that it is handed until all is aborted.
pub(super) fn run_loop(
    shared: Arc<Shared>,
    number: usize,
    mut phase: watch::Receiver<Phase>,
    mut inbox: mpsc::UnboundedReceiver<Dormant>,
) {
    let runtime = net::event_loop(shared.settings().config.max_connections)
        .max_blocking_threads(2)
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
pub(super) fn start_loop(
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
                exchange::drop_kept();
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
