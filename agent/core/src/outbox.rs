//! Decides in which order cases wait, which of them gives way when there is no room, and for how long they wait.
//!
//! Keeping them on disk is up to the agent's `outbox`; sending them is up to `uplink`.
//!
//! A case is worth its priority, fading exponentially with age. Because all fade alike, the order of two
//! waiting cases never changes, and the key can be computed once, when the case is stored.

use core::time::Duration;

use crate::clock::Moment;
use crate::judge::PRIORITY_RANGE;

/// In this time a waiting case loses a factor e of its worth: after half a day a sure-to-help case (1.0)
/// ranks with a fresh one of 0.14.
pub const FADE: Duration = Duration::from_secs(6 * 3600);

/// The place of a case in the outbox: greater is sent earlier and evicted later.
#[must_use]
pub fn sort_key(priority: f32, stored_at: Moment) -> f64 {
    let (least, most) = PRIORITY_RANGE;
    let priority = f64::from(priority.clamp(least, most));
    libm::log(priority) + stored_at.since(Moment(0)).as_secs_f64() / FADE.as_secs_f64()
}

/// What happens to a new case when there is no room for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum WhenFull {
    /// The stored case worth least gives way if it is worth less than the new one.
    #[default]
    EvictLowest,
    /// What is stored stays.
    RefuseNew,
}

/// The most stored cases that give way to one new one: a large payload must not cost a thousand small ones.
pub const EVICTIONS_MAX: usize = 64;

/// Whether a stored case gives way to a new one. Of two alike the stored one stays: a change would gain nothing.
#[must_use]
pub fn gives_way(stored_sort_key: f64, new_sort_key: f64) -> bool {
    stored_sort_key < new_sort_key
}

/// What was stored before this has waited longer than `age_max`. Nothing has while the clock is younger than that.
#[must_use]
pub fn stored_too_early(now: Moment, age_max: Duration) -> Moment {
    now - age_max
}

/// Whether an earlier version gave a case up for its size: it waits again, for a limit is a property of a connection and
/// not of a case. `reason` is its dead letter's.
#[must_use]
pub fn given_up_for_size(reason: &str) -> bool {
    // "104823 bytes are more than the 100000 the broker takes"
    reason.contains(" bytes are more than the ") || reason.starts_with("the cloud takes no payload of this size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_worth_less_gives_way() {
        assert!(gives_way(1.0, 2.0));
        assert!(!gives_way(2.0, 2.0) && !gives_way(3.0, 2.0));
        assert!(!gives_way(f64::NAN, 2.0) && !gives_way(1.0, f64::NAN));
    }

    #[test]
    fn a_case_waits_as_long_as_it_may_and_no_longer() {
        let too_early = stored_too_early(Moment(10_000), Duration::from_secs(4));
        assert!(Moment(6_000) >= too_early && Moment(5_999) < too_early);
        assert_eq!(stored_too_early(Moment(10), Duration::from_secs(4)), Moment(0));
    }

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
