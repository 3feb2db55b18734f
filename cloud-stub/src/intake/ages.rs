//! What the age of a record is counted by: the wall clock, which is not believed at once when it leaps ahead.
//!
//! A clock that is years ahead for a minute, as one is that a bad time server or an empty battery has set, would make
//! everything on record too old to be kept. Whoever has really slept for long keeps it a day longer. A program that starts
//! while the clock is ahead believes it where cases have come under that clock before: nothing tells then that it leapt.

use std::time::{Duration, Instant};

/// Further ahead than this is a leap; time servers set a clock in smaller steps, or put it right.
const LEAP_MIN: Duration = Duration::from_secs(3600);

/// A leap is believed once the clock has stood by it for so long while this program ran.
const BELIEVED_AFTER: Duration = Duration::from_secs(24 * 3600);

#[derive(Debug)]
pub(super) struct Ages {
    /// The wall time that was believed last, and when.
    believed: (u64, Instant),
    leapt: Option<Instant>,
}

impl Ages {
    /// `newest_ms` is the latest time on record: how long this program did not run is not known.
    pub(super) fn new(newest_ms: Option<u64>, wall_ms: u64, now: Instant) -> Self {
        Self { believed: (newest_ms.unwrap_or(wall_ms), now), leapt: None }
    }

    /// The time of day that ages are counted to.
    pub(super) fn now_ms(&mut self, wall_ms: u64, now: Instant) -> u64 {
        let (ms, at) = self.believed;
        let expected_ms = ms.saturating_add(millis(now.saturating_duration_since(at)));
        if wall_ms <= expected_ms.saturating_add(millis(LEAP_MIN)) {
            self.leapt = None;
        } else {
            let since = *self.leapt.get_or_insert_with(|| {
                let hours = (wall_ms - expected_ms) / 3_600_000;
                tracing::warn!(
                    "the clock has leapt {hours} hours ahead; nothing is deleted for its age by it for a day"
                );
                now
            });
            if now.saturating_duration_since(since) < BELIEVED_AFTER {
                return expected_ms;
            }
        }
        self.believed = (wall_ms, now);
        wall_ms
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR_MS: u64 = 3_600_000;
    const NOW_MS: u64 = 500_000 * HOUR_MS;

    #[test]
    fn a_clock_that_leaps_ahead_makes_nothing_old_until_it_has_stood_by_it_for_a_day() {
        let begun = Instant::now();
        let after = |hours: u32| begun + hours * Duration::from_secs(3600);
        let mut ages = Ages::new(Some(NOW_MS - HOUR_MS / 2), NOW_MS, begun);
        assert_eq!(ages.now_ms(NOW_MS, begun), NOW_MS);
        // Three years for an hour.
        assert_eq!(ages.now_ms(NOW_MS + 26_000 * HOUR_MS, after(1)), NOW_MS + HOUR_MS);
        assert_eq!(ages.now_ms(NOW_MS + 2 * HOUR_MS, after(2)), NOW_MS + 2 * HOUR_MS);
        // Back to 1970, and put right again: that is one, too.
        assert_eq!(ages.now_ms(5, after(3)), 5);
        assert_eq!(ages.now_ms(NOW_MS + 4 * HOUR_MS, after(4)), 5 + HOUR_MS);
        assert_eq!(ages.now_ms(NOW_MS + 27 * HOUR_MS, after(27)), 5 + 24 * HOUR_MS);
        assert_eq!(ages.now_ms(NOW_MS + 28 * HOUR_MS, after(28)), NOW_MS + 28 * HOUR_MS);
        assert_eq!(ages.now_ms(NOW_MS + 1000 * HOUR_MS, after(1000)), NOW_MS + 1000 * HOUR_MS, "time passes");
    }

    #[test]
    fn what_is_on_record_is_not_too_old_at_once_for_a_program_that_starts_under_a_wrong_clock() {
        let begun = Instant::now();
        let mut ages = Ages::new(Some(NOW_MS), NOW_MS + 26_000 * HOUR_MS, begun);
        assert_eq!(ages.now_ms(NOW_MS + 26_000 * HOUR_MS, begun), NOW_MS);
        let mut ages = Ages::new(None, NOW_MS, begun);
        assert_eq!(ages.now_ms(NOW_MS, begun), NOW_MS, "there is nothing yet");
    }
}
