//! Decides when a bundle is fetched that settings want: while the link is good, and while the ceilings leave enough for cases.
//!
//! Whoever fetches goes on where it was cut off, so it may be ended at any time. What came and was not good is the shelf's
//! to remember: it is not fetched again by itself.

use alloc::format;
use alloc::string::{String, ToString};
use core::time::Duration;

use hedge_proto::{LinkState, Name};

use super::shelf::{Shelf, Standing};
use crate::budget::Reached;
use crate::clock::{Moment, doubled};

/// The first wait after a failure that is not the bundle's, and the longest; doubled each time.
const RETRY_MIN: Duration = Duration::from_secs(30);
const RETRY_MAX: Duration = Duration::from_secs(3600);

/// The bundle that a model is to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    pub name: Name,
    pub version: Name,
    /// It looks on first.
    pub shadow: bool,
}

/// What the device has to fetch with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Means {
    /// None without a broker: then there is no link to be spared.
    pub link: Option<LinkState>,
    /// Bytes a second, or the ceiling that has no room for bundles.
    pub pace: Result<u64, Reached>,
}

/// What is to be done now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// Nothing, ever, unless what is wanted changes.
    Settled(Standing),
    /// Nothing until the link or the ceilings change, or until a time that is known.
    Wait {
        reason: String,
        until: Option<Moment>,
    },
    Fetch {
        bytes_per_s: u64,
    },
}

/// How fetching one model's bundle goes.
#[derive(Debug, Clone, Default)]
pub struct Delivery {
    wanted: Option<Wanted>,
    failures: u32,
    trouble: Option<(String, Moment)>,
}

impl Delivery {
    /// What is to be done for `wanted`. What failed before is forgotten when another is wanted.
    pub fn step(&mut self, now: Moment, wanted: &Wanted, shelf: &Shelf, means: &Means) -> Step {
        if self.wanted.as_ref() != Some(wanted) {
            *self = Self { wanted: Some(wanted.clone()), ..Self::default() };
        }
        if let Some(standing) = shelf.standing(&wanted.name, &wanted.version, wanted.shadow) {
            return Step::Settled(standing);
        }
        match (means.link, means.pace) {
            (Some(link), _) if link != LinkState::Online => {
                Step::Wait { reason: format!("the link is {}", link.name()), until: None }
            }
            (_, Err(reached)) => {
                let reason = format!("half of it is left for cases: {}", reached.reason);
                Step::Wait { reason, until: Some(reached.until) }
            }
            (_, Ok(bytes_per_s)) => match &self.trouble {
                Some((reason, until)) if now < *until => Step::Wait { reason: reason.clone(), until: Some(*until) },
                _ => Step::Fetch { bytes_per_s },
            },
        }
    }

    /// Whether a fetch that was begun goes on. Once all `has_come` its trial does, whatever the link: it needs none, and one
    /// that is cut off again and again would count as failed.
    #[must_use]
    pub fn goes_on(&self, now: Moment, wanted: &Wanted, means: &Means, has_come: bool) -> bool {
        // What is on the shelf is for whoever fetches to change.
        has_come || matches!(self.clone().step(now, wanted, &Shelf::default(), means), Step::Fetch { .. })
    }

    /// It was not brought to an end, for this reason, though nobody ended it. `share` is chance, from 0 to 1: many devices
    /// that one server failed do not come back together.
    pub fn failed(&mut self, now: Moment, reason: &str, share: f64) {
        let wait = doubled(RETRY_MIN, self.failures, RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        self.trouble = Some((reason.to_string(), now + wait.mul_f64(0.5 + share.clamp(0.0, 1.0))));
    }

    /// How often in a row.
    #[must_use]
    pub fn failures(&self) -> u32 {
        self.failures
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::{Budget, Ceilings, Spent};
    use crate::release::shelf::Held;
    use hedge_proto::Digest;

    const GOOD: Means = Means { link: Some(LinkState::Online), pace: Ok(1000) };

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    fn wanted(version: &str) -> Wanted {
        Wanted { name: name("m"), version: name(version), shadow: false }
    }

    fn held(version: &str) -> Held {
        Held { name: name("m"), version: name(version), signature: Digest::of(version.as_bytes()) }
    }

    #[test]
    fn a_wanted_bundle_is_fetched_over_a_good_link_only_and_once() {
        let (mut delivery, mut shelf) = (Delivery::default(), Shelf::default());
        for link in LinkState::ALL {
            let step = delivery.step(Moment(0), &wanted("2"), &shelf, &Means { link: Some(link), ..GOOD });
            assert_eq!(step == Step::Fetch { bytes_per_s: 1000 }, link == LinkState::Online, "{link:?}");
        }
        assert_eq!(
            delivery.step(Moment(0), &wanted("2"), &shelf, &Means { link: None, ..GOOD }),
            Step::Fetch { bytes_per_s: 1000 }
        );
        shelf.promote(held("2"));
        assert_eq!(delivery.step(Moment(0), &wanted("2"), &shelf, &GOOD), Step::Settled(Standing::Current));
        shelf.fail(held("3"), "bad");
        assert_eq!(
            delivery.step(Moment(0), &wanted("3"), &shelf, &GOOD),
            Step::Settled(Standing::Failed("bad".into()))
        );
    }

    #[test]
    fn what_a_server_fails_is_asked_for_again_later_and_later_until_another_is_wanted() {
        let (mut delivery, shelf) = (Delivery::default(), Shelf::default());
        let mut now = Moment(0);
        let mut waits = std::vec::Vec::new();
        for _ in 0..12 {
            assert!(matches!(delivery.step(now, &wanted("2"), &shelf, &GOOD), Step::Fetch { .. }));
            delivery.failed(now, "it answers 503", 0.5);
            let Step::Wait { until: Some(until), reason } = delivery.step(now, &wanted("2"), &shelf, &GOOD) else {
                panic!("it waits");
            };
            assert_eq!(reason, "it answers 503");
            waits.push(until.since(now));
            now = until;
        }
        assert!(waits.is_sorted() && waits[0] == RETRY_MIN && waits[11] == RETRY_MAX, "{waits:?}");
        delivery.failed(now, "it answers 503", 0.5);
        assert!(matches!(delivery.step(now, &wanted("3"), &shelf, &GOOD), Step::Fetch { .. }));
    }

    #[test]
    fn a_trial_is_not_ended_by_the_link_or_a_ceiling_and_a_fetch_is() {
        let mut budget = Budget::resume(Ceilings { bytes_per_hour: 100_000, ..Ceilings::LAN }, None, Moment(0));
        budget.spend(Moment(0), 0, 90_000);
        let spent = Means { link: Some(LinkState::Online), pace: budget.pace_of_bundles(Moment(0)) };
        assert!(spent.pace.is_err());
        let worse = LinkState::ALL.map(|link| Means { link: Some(link), ..GOOD });
        for means in worse.iter().filter(|means| means.link != GOOD.link).chain([&spent]) {
            assert!(!Delivery::default().goes_on(Moment(0), &wanted("2"), means, false), "{means:?}");
            assert!(Delivery::default().goes_on(Moment(0), &wanted("2"), means, true), "{means:?}");
        }
        assert!(Delivery::default().goes_on(Moment(0), &wanted("2"), &GOOD, false));
    }

    /// Whatever the ceilings: a fetch that keeps to its pace, and is ended when it is to wait, leaves cases their half.
    #[test]
    fn bundles_take_no_more_than_half_of_any_ceiling() {
        for ceilings in [Ceilings::LAN, Ceilings::METERED, Ceilings { bytes_per_hour: 100_000, ..Ceilings::LAN }] {
            let mut budget = Budget::resume(ceilings, Some(Spent::default()), Moment(0));
            let (mut delivery, shelf) = (Delivery::default(), Shelf::default());
            let (mut now, mut waited) = (Moment(0), false);
            // Three hours, looked at each second.
            for second in 0..3 * 3600_u64 {
                now = Moment(second * 1000);
                let means = Means { link: None, pace: budget.pace_of_bundles(now) };
                match delivery.step(now, &wanted("2"), &shelf, &means) {
                    Step::Fetch { bytes_per_s } => budget.spend(now, 0, bytes_per_s),
                    Step::Wait { until, .. } => waited |= until.is_some_and(|until| until > now),
                    Step::Settled(_) => panic!("it is wanted"),
                }
                let used = budget.spent().used(now, &ceilings);
                for one in used.iter().filter(|one| one.ceiling.starts_with("bytes")) {
                    // One second's pace may be under way.
                    assert!(one.spent <= one.max / 2 + one.max / 1000 + 4096, "{one:?}");
                }
                assert!(budget.reached(now).is_none(), "cases are sent all the time");
            }
            assert!(waited || ceilings.bytes_per_hour == Ceilings::LAN.bytes_per_hour, "{now:?} {ceilings:?}");
        }
    }
}
