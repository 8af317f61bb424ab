//! Is the answer of a new connection there before the loop has to watch for it?
//!
//! To watch a socket for one answer costs two calls and two allocations. An app that answers in the
//! time that the loop needs for its other clients has answered when they are done: one read then does
//! for all of that. Most apps take longer, and for them the look is a call in vain; so it is made only
//! as long as it pays, and now and then to see whether it would again.

use std::cell::Cell;

/// What a look that finds the answer is worth, in looks in vain.
const WORTH: u32 = 4;
/// The most that successes count for: so many looks in vain end them.
const MOST: u32 = 64;
/// One connection in so many is looked at where it does not pay.
const SAMPLE: u32 = 64;

thread_local! {
    /// Successes not yet used up; connections until one is looked at all the same.
    static LATELY: Cell<(u32, u32)> = const { Cell::new((0, 0)) };
}

pub(super) fn is_worth_a_look() -> bool {
    let (credit, until) = LATELY.get();
    let look = credit > 0 || until == 0;
    LATELY.set((credit, if look { SAMPLE - 1 } else { until - 1 }));
    look
}

/// What a look has found.
pub(super) fn looked(found: bool) {
    let (credit, until) = LATELY.get();
    let credit = if found { (credit + WORTH).min(MOST) } else { credit.saturating_sub(1) };
    LATELY.set((credit, until));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn looks(connections: u32, found: impl Fn(u32) -> bool) -> u32 {
        let look = |n: &u32| {
            let look = is_worth_a_look();
            if look {
                looked(found(*n));
            }
            look
        };
        (0..connections).filter(look).count() as u32
    }

    #[test]
    fn an_app_that_takes_its_time_is_looked_at_now_and_then() {
        assert_eq!(looks(100 * SAMPLE, |_| false), 100);
    }

    #[test]
    fn an_app_that_mostly_answers_at_once_is_looked_at_each_time() {
        looks(1, |_| true);
        assert_eq!(looks(1000, |n| n % 3 == 0), 1000);
    }

    #[test]
    fn looks_in_vain_end_it() {
        looks(100, |_| true);
        assert_eq!(looks(MOST + SAMPLE - 1, |_| false), MOST);
    }
}
