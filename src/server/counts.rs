//! What is counted for as long as it lives: connections, exchanges by what they are at, requests of a
//! client, tunnels.

use std::net::IpAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

use super::{Loop, Shared};
use crate::metrics::METRICS;

/// One exchange in one of the counts, for as long as it lives.
pub(crate) struct Gauge {
    lp: Rc<Loop>,
    which: usize,
}

impl Gauge {
    pub(super) const RECEIVING: usize = 0;
    pub(super) const QUEUED: usize = 1;
    pub(super) const IN_FLIGHT: usize = 2;
    pub(super) const DELIVERING: usize = 3;

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

/// One connection in the counts, from its accept on: a loop that has not taken up yet what it was
/// handed has it already, and the drain waits for it.
pub(crate) struct Counted {
    pub(super) shared: Arc<Shared>,
    pub(super) loop_number: u16,
    /// It came when there were `max-connections` already.
    pub(super) too_many: bool,
}

impl Counted {
    pub(super) fn new(shared: &Arc<Shared>, loop_number: u16, max_connections: usize) -> Counted {
        METRICS.connections.add(1);
        shared.loops[usize::from(loop_number)].connections.fetch_add(1, Relaxed);
        let before = shared.connections.fetch_add(1, Relaxed);
        Counted { shared: shared.clone(), loop_number, too_many: before >= max_connections }
    }
}

impl Counted {
    /// Another loop serves it.
    pub(super) fn move_to(&mut self, loop_number: u16) {
        self.of_loop().fetch_sub(1, Relaxed);
        self.loop_number = loop_number;
        self.of_loop().fetch_add(1, Relaxed);
    }

    fn of_loop(&self) -> &AtomicUsize {
        &self.shared.loops[usize::from(self.loop_number)].connections
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        METRICS.connections.sub(1);
        self.of_loop().fetch_sub(1, Relaxed);
        self.shared.connections.fetch_sub(1, Relaxed);
    }
}
