//! A client that keeps moving, but too slowly (`body-min-rate`, `send-min-rate`).

use std::time::{Duration, Instant};

/// The time over which a client is judged. What it did before does not count: a rate over all would let
/// one that was fast for a moment trickle for hours.
const WINDOW: Duration = Duration::from_secs(30);

/// How far a client was when it was last judged.
pub(super) struct Pace {
    since: Instant,
    bytes: u64,
}

impl Pace {
    /// `bytes`: moved so far, from any origin.
    pub(super) fn new(now: Instant, bytes: u64) -> Pace {
        Pace { since: now, bytes }
    }

    /// When it can be judged next.
    pub(super) fn due(&self) -> Instant {
        self.since + WINDOW
    }

    /// Fewer than `rate` bytes a second have moved since it was last judged. Never before it is due.
    pub(super) fn is_too_slow(&mut self, rate: u64, bytes: u64, now: Instant) -> bool {
        if now < self.due() {
            return false;
        }
        let seconds = now.duration_since(self.since).as_secs();
        let moved = bytes.wrapping_sub(self.bytes);
        *self = Pace::new(now, bytes);
        moved < rate.saturating_mul(seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_client_is_too_slow_by_what_it_moved_in_the_last_window_alone() {
        let begun = Instant::now();
        let at = |seconds| begun + Duration::from_secs(seconds);
        let mut pace = Pace::new(begun, 7);
        assert!(!pace.is_too_slow(100, 7, at(29)), "judged too early");
        assert!(!pace.is_too_slow(100, 1_000_007, at(30)));
        assert_eq!(pace.due(), at(60));
        assert!(!pace.is_too_slow(100, 1_000_007 + 4000, at(70)));
        assert!(
            pace.is_too_slow(100, 1_004_007 + 2999, at(100)),
            "it lives on what it moved first"
        );
    }

    #[test]
    fn what_was_acknowledged_may_begin_below_zero() {
        // A response of which nothing is acknowledged, behind one of which 50 bytes are not.
        let begun = Instant::now();
        let mut pace = Pace::new(begun, 0u64.wrapping_sub(50));
        assert!(!pace.is_too_slow(1, 10, begun + WINDOW));
    }
}
