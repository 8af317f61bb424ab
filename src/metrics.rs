//! Counters of the process: atomics, read by the admin listener.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use crate::error::Reason;

/// One number that only grows, or a gauge.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

impl Counter {
    pub const fn new() -> Counter {
        Counter(AtomicU64::new(0))
    }
    pub fn add(&self, n: u64) {
        self.0.fetch_add(n, Relaxed);
    }
    pub fn sub(&self, n: u64) {
        self.0.fetch_sub(n, Relaxed);
    }
    pub fn get(&self) -> u64 {
        self.0.load(Relaxed)
    }
}

/// All counters.
#[derive(Debug)]
pub struct Metrics {
    /// Exchanges ended, by reason.
    pub ends: [Counter; Reason::ALL.len()],
    /// Responses by status class (index 1 to 5).
    pub status_class: [Counter; 6],
    pub connections_accepted: Counter,
    pub connections: Counter,
    pub retries: Counter,
    /// Slots whose worker did not close within 300 s after its client had left.
    pub slot_lost: Counter,
    pub log_lines_dropped: Counter,
    /// Requests that crossed the FIN of a closed idle connection.
    pub crossed_close: Counter,
    /// Requests refused by `max-requests-per-client`.
    pub client_limited: Counter,
    /// Idle connections that were closed to make room for new ones.
    pub idle_reaped: Counter,
    /// Spool files that could not be made, written or read.
    pub spool_errors: Counter,
}

/// The process's counters.
pub static METRICS: Metrics = Metrics {
    ends: [const { Counter::new() }; Reason::ALL.len()],
    status_class: [const { Counter::new() }; 6],
    connections_accepted: Counter::new(),
    connections: Counter::new(),
    retries: Counter::new(),
    slot_lost: Counter::new(),
    log_lines_dropped: Counter::new(),
    crossed_close: Counter::new(),
    client_limited: Counter::new(),
    idle_reaped: Counter::new(),
    spool_errors: Counter::new(),
};

impl Metrics {
    /// Counts one ended exchange.
    pub fn ended(&self, reason: Reason, status: u16) {
        self.ends[reason as usize].add(1);
        if let Some(class) = self.status_class.get(usize::from(status / 100)) {
            class.add(1);
        }
    }
}
