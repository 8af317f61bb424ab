//! Time as text, made once for a second: consecutive lines nearly always share it. UTC, as in
//! every container; nginx's `+0000`.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// The text of one second. One of each thread.
#[derive(Debug)]
pub(super) struct Clock {
    second: u64,
    /// `2026-10-07T12:34:56.789Z`
    rfc3339: [u8; 24],
    /// `07/Oct/2026:12:34:56 +0000`
    local: [u8; 26],
}

impl Clock {
    pub(super) const fn new() -> Clock {
        // No second is u64::MAX: the first use fills the texts in.
        Clock { second: u64::MAX, rfc3339: [0; 24], local: [0; 26] }
    }

    /// `$time_local`.
    pub(super) fn local(&mut self, time: SystemTime) -> &[u8] {
        self.set(time);
        &self.local
    }

    /// `2026-10-07T12:34:56`, to which the caller adds the zone.
    pub(super) fn date_time(&mut self, time: SystemTime) -> &[u8] {
        self.set(time);
        &self.rfc3339[..19]
    }

    /// `2026-10-07T12:34:56.789Z`
    pub(super) fn rfc3339(&mut self, time: SystemTime) -> &[u8; 24] {
        let millis = self.set(time);
        digits(&mut self.rfc3339[20..23], millis.into());
        &self.rfc3339
    }

    /// Makes the texts those of the second of `time`; gives its milliseconds.
    fn set(&mut self, time: SystemTime) -> u32 {
        let since_epoch = since_epoch(time);
        if since_epoch.as_secs() != self.second {
            self.second = since_epoch.as_secs();
            self.write();
        }
        since_epoch.subsec_millis()
    }

    fn write(&mut self) {
        let second = self.second;
        let (year, month, day) = civil(second / 86_400);
        let (hour, minute, rest) = (second / 3600 % 24, second / 60 % 60, second % 60);
        self.rfc3339 = *b"0000-00-00T00:00:00.000Z";
        digits(&mut self.rfc3339[0..4], year);
        self.local = *b"00/Jan/0000:00:00:00 +0000";
        const MONTHS: &[u8; 36] = b"JanFebMarAprMayJunJulAugSepOctNovDec";
        let name = (month as usize - 1) * 3;
        self.local[3..6].copy_from_slice(&MONTHS[name..name + 3]);
        digits(&mut self.local[7..11], year);
        digits(&mut self.local[0..2], day);
        for (at, number) in [(5, month), (8, day), (11, hour), (14, minute), (17, rest)] {
            digits(&mut self.rfc3339[at..at + 2], number);
        }
        for (at, number) in [(12, hour), (15, minute), (18, rest)] {
            digits(&mut self.local[at..at + 2], number);
        }
    }
}

/// Time since 1970; zero for a clock before it.
pub(super) fn since_epoch(time: SystemTime) -> Duration {
    time.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Fills `out` with the decimal digits of `number`, with leading zeros.
pub(super) fn digits(out: &mut [u8], mut number: u64) {
    for digit in out.iter_mut().rev() {
        *digit = b'0' + (number % 10) as u8;
        number /= 10;
    }
}

/// Year, month and day of a day since 1970, in the proleptic Gregorian calendar. Years are counted
/// from March, so that the leap day is the last of its year, in eras of 400 years.
fn civil(days: u64) -> (u64, u64, u64) {
    let days = days + 719_468; // From 0000-03-01.
    let (era, day_of_era) = (days / 146_097, days % 146_097);
    let year = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * day_of_year + 2) / 153; // 0 is March.
    let day = day_of_year - (153 * month + 2) / 5 + 1;
    let month = if month < 10 { month + 3 } else { month - 9 };
    (era * 400 + year + u64::from(month <= 2), month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_day_of_a_century_follows_the_one_before() {
        let mut expected = (1970, 1, 1);
        for day in 0..50_000 {
            assert_eq!(civil(day), expected);
            let (year, month, day) = expected;
            let leap = year % 4 == 0 && (year % 100 != 0 || year % 400 == 0);
            let length = match month {
                2 => 28 + u64::from(leap),
                4 | 6 | 9 | 11 => 30,
                _ => 31,
            };
            expected = match (month, day) {
                (12, 31) => (year + 1, 1, 1),
                _ if day == length => (year, month + 1, 1),
                _ => (year, month, day + 1),
            };
        }
    }

    #[test]
    fn texts_change_with_the_second() {
        let mut clock = Clock::new();
        let time = UNIX_EPOCH + Duration::from_millis(1_709_210_096_789);
        assert_eq!(clock.date_time(time), b"2024-02-29T12:34:56");
        assert_eq!(clock.local(time), b"29/Feb/2024:12:34:56 +0000");
        let next = time + Duration::from_millis(300);
        assert_eq!(clock.local(next), b"29/Feb/2024:12:34:57 +0000");
        assert_eq!(clock.rfc3339(time), b"2024-02-29T12:34:56.789Z");
        assert_eq!(clock.rfc3339(next), b"2024-02-29T12:34:57.089Z");
        assert_eq!(clock.date_time(UNIX_EPOCH), b"1970-01-01T00:00:00");
    }
}
