//! Decides in which order cases wait.
//!
//! Keeping them on disk is up to the agent's `outbox`; sending them is up to `uplink`.
//!
//! A case is worth its priority, fading exponentially with age. Because all fade alike, the order of two
//! waiting cases never changes, and the key can be computed once, when the case is stored.

use core::time::Duration;

use crate::clock::Moment;
use crate::judge::PRIORITY_MIN;

/// In this time a waiting case loses a factor e of its worth: after half a day a sure-to-help case (1.0)
/// ranks with a fresh one of 0.14.
pub const FADE: Duration = Duration::from_secs(6 * 3600);

/// The place of a case in the outbox: greater is sent earlier and evicted later.
#[must_use]
pub fn sort_key(priority: f32, stored_at: Moment) -> f64 {
    let priority = f64::from(priority.clamp(PRIORITY_MIN, 1.0));
    libm::log(priority) + stored_at.since(Moment(0)).as_secs_f64() / FADE.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_cases_stored_together_the_more_useful_goes_first() {
        assert!(sort_key(0.9, Moment(5)) > sort_key(0.1, Moment(5)));
    }

    #[test]
    fn of_two_alike_the_fresh_one_goes_first_and_age_is_outweighed_by_need() {
        let hours = |hours: u64| Moment(hours * 3_600_000);
        assert!(sort_key(0.5, hours(10)) > sort_key(0.5, hours(9)));
        assert!(sort_key(1.0, hours(9)) > sort_key(0.5, hours(10)));
        assert!(sort_key(1.0, hours(1)) < sort_key(0.5, hours(10)));
    }

    #[test]
    fn a_priority_out_of_range_still_has_a_place() {
        for odd in [f32::NEG_INFINITY, -1.0, 0.0, 2.0, f32::INFINITY] {
            assert!(sort_key(odd, Moment(1)).is_finite());
        }
    }
}
