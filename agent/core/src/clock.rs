//! Time as decisions see it: milliseconds on the device's powered clock.
//!
//! The powered clock is the time the device has been switched on in its life. It never jumps and never runs
//! backwards; time switched off does not pass. Wall time is for people and appears nowhere in this crate, but that a
//! command expires an hour after a person gave it.

use core::ops::{Add, Sub};
use core::time::Duration;

/// A point on the powered clock, in milliseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Moment(pub u64);

impl Moment {
    /// The time from `earlier` to `self`; zero if `earlier` is later.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}

/// `wait`, doubled `times` times, `most` at most: how long to wait before what has failed is tried again.
#[must_use]
pub fn doubled(wait: Duration, times: u32, most: Duration) -> Duration {
    wait.saturating_mul(1_u32.checked_shl(times).unwrap_or(u32::MAX)).min(most)
}

impl Add<Duration> for Moment {
    type Output = Self;
    fn add(self, wait: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }
}

impl Sub<Duration> for Moment {
    type Output = Self;
    fn sub(self, wait: Duration) -> Self {
        Self(self.0.saturating_sub(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_doubles_up_to_its_most_however_often_it_failed() {
        let [second, minute] = [1, 60].map(Duration::from_secs);
        let waits = [0, 1, 5, 6, 31, 32, u32::MAX].map(|times| doubled(second, times, minute).as_secs());
        assert_eq!(waits, [1, 2, 32, 60, 60, 60, 60]);
    }
}
