//! Times of the last minute or so, in buckets: what the queue knows of how long the app takes, and
//! of how long requests wait. Pure: time is passed in.

use std::time::Duration;

/// Buckets of one power of two: a figure is at most a fifth too small.
const PARTS: u32 = 4;
/// From a microsecond to over an hour.
const BUCKETS: usize = 32 * PARTS as usize;

/// Counts of durations.
#[derive(Clone, Debug)]
pub(crate) struct Histogram {
    counts: [u32; BUCKETS],
    total: u32,
}

impl Default for Histogram {
    fn default() -> Histogram {
        Histogram { counts: [0; BUCKETS], total: 0 }
    }
}

impl Histogram {
    pub(crate) fn add(&mut self, time: Duration) {
        let count = &mut self.counts[bucket(time)];
        *count = count.saturating_add(1);
        self.total = self.total.saturating_add(1);
    }

    pub(crate) fn merge(&mut self, other: &Histogram) {
        for (count, more) in self.counts.iter_mut().zip(&other.counts) {
            *count = count.saturating_add(*more);
        }
        self.total = self.total.saturating_add(other.total);
    }

    pub(crate) fn total(&self) -> u32 {
        self.total
    }

    /// The time that `percent` of all do not exceed, rounded down to its bucket. None: of nothing.
    pub(crate) fn percentile(&self, percent: u32) -> Option<Duration> {
        let rank = (u64::from(self.total) * u64::from(percent)).div_ceil(100).max(1);
        let mut seen = 0;
        let at = self.counts.iter().position(|&count| {
            seen += u64::from(count);
            seen >= rank
        })?;
        Some(least(at))
    }
}

fn bucket(time: Duration) -> usize {
    let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
    let Some(power) = micros.checked_ilog2() else { return 0 };
    // The two bits below the highest one.
    let part = ((micros << 2) >> power) as u32 % PARTS;
    ((power * PARTS + part) as usize).min(BUCKETS - 1)
}

/// The least time in a bucket; nothing but zero is below a microsecond.
fn least(bucket: usize) -> Duration {
    if bucket == 0 {
        return Duration::ZERO;
    }
    let (power, part) = (bucket as u32 / PARTS, bucket as u64 % u64::from(PARTS));
    Duration::from_micros(((u64::from(PARTS) + part) << power) / u64::from(PARTS))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_percentile_is_at_most_a_fifth_too_small() {
        for micros in [5_u64, 7, 90, 1000, 33_333, 100_000, 1_000_000, 59_999_999] {
            let mut histogram = Histogram::default();
            let time = Duration::from_micros(micros);
            histogram.add(time);
            let got = histogram.percentile(50).unwrap();
            assert!(got <= time && got >= time.mul_f64(0.79), "{time:?} {got:?}");
        }
    }

    #[test]
    fn percentiles_are_of_all_that_was_added() {
        let mut histogram = Histogram::default();
        assert_eq!(histogram.percentile(50), None);
        for _ in 0..94 {
            histogram.add(Duration::ZERO);
        }
        for _ in 0..6 {
            histogram.add(Duration::from_secs(1));
        }
        assert_eq!(histogram.percentile(50), Some(Duration::ZERO));
        assert!(histogram.percentile(95).unwrap() > Duration::from_millis(800));
        let mut more = Histogram::default();
        more.add(Duration::from_secs(100));
        histogram.merge(&more);
        assert_eq!(histogram.total(), 101);
        assert!(histogram.percentile(100).unwrap() > Duration::from_secs(80));
    }
}
