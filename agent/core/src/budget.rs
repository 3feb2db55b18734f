//! Decides whether one more case or byte may go over the wire.
//!
//! Six ceilings hold at once: cases and bytes, each in any hour, day and month (30 days) of powered time. What
//! was spent is kept in slots of a twelfth of the period, so that a ceiling holds in *every* such period, not
//! only in those that start on the hour. Each tariff has its own account: what was spent on a link that costs nothing
//! says nothing about a phone contract.
//!
//! Of each byte ceiling a small part is kept for the connection itself: cases and figures stop short of it, so that an
//! operator still reaches a device that is over its budget. At the whole ceiling the connection ends, too.
//!
//! Invariant: within any period, never more is spent than the ceiling and what was under way when it was reached.

mod slots;

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

pub(crate) use self::slots::Slots;
use crate::clock::Moment;

pub(crate) const HOUR: Duration = Duration::from_secs(3600);
pub(crate) const DAY: Duration = Duration::from_secs(24 * 3600);
const MONTH: Duration = Duration::from_secs(30 * 24 * 3600);

/// Whose bill it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Tariff {
    Lan,
    Metered,
}

/// The most that may be spent in each period.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ceilings {
    pub tariff: Tariff,
    pub cases_per_hour: u64,
    pub cases_per_day: u64,
    pub cases_per_month: u64,
    pub bytes_per_hour: u64,
    pub bytes_per_day: u64,
    pub bytes_per_month: u64,
}

impl Ceilings {
    /// For a link that costs nothing: stops a runaway, not the work. 30 cases/s, 300 GB a month.
    pub const LAN: Self = Self {
        tariff: Tariff::Lan,
        cases_per_hour: 120_000,
        cases_per_day: 2_600_000,
        cases_per_month: 78_000_000,
        bytes_per_hour: 4_000_000_000,
        bytes_per_day: 30_000_000_000,
        bytes_per_month: 300_000_000_000,
    };

    /// For a phone contract: 1 GB a month.
    pub const METERED: Self = Self {
        tariff: Tariff::Metered,
        cases_per_hour: 120,
        cases_per_day: 1_000,
        cases_per_month: 20_000,
        bytes_per_hour: 10_000_000,
        bytes_per_day: 50_000_000,
        bytes_per_month: 1_000_000_000,
    };
}

/// A twentieth of a byte ceiling is kept for the connection: dials, keep-alives, settings, commands and their replies.
const RESERVE_SHARE: u64 = 20;

/// Under a low ceiling more than a twentieth: some dials over TLS. But never more than half.
const RESERVE_BYTES_MIN: u64 = 32 * 1024;

/// A server that waits longer for a bundle's bytes to be taken would rather hang up.
const BUNDLE_BYTES_PER_S_MIN: u64 = 4 * 1024;

impl Ceilings {
    /// What is kept of a ceiling of so many bytes for the connection itself.
    #[must_use]
    pub fn reserve(bytes: u64) -> u64 {
        (bytes / RESERVE_SHARE).max(RESERVE_BYTES_MIN).min(bytes / 2)
    }

    /// What cases and figures may use.
    fn for_work(self) -> Self {
        let work = |bytes: u64| bytes - Self::reserve(bytes);
        Self {
            bytes_per_hour: work(self.bytes_per_hour),
            bytes_per_day: work(self.bytes_per_day),
            bytes_per_month: work(self.bytes_per_month),
            ..self
        }
    }

    /// What may be spent before bundles are fetched no more: the other half is left for cases.
    fn for_bundles(self) -> Self {
        let work = self.for_work();
        Self {
            bytes_per_hour: work.bytes_per_hour / 2,
            bytes_per_day: work.bytes_per_day / 2,
            bytes_per_month: work.bytes_per_month / 2,
            ..self.for_connection()
        }
    }

    /// Cases alone end no connection.
    fn for_connection(self) -> Self {
        Self { cases_per_hour: u64::MAX, cases_per_day: u64::MAX, cases_per_month: u64::MAX, ..self }
    }
}

/// A payload that has travelled `sends` times, the last time at `at_ms` of the powered clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Repeated {
    pub epoch: u64,
    pub sequence: u64,
    pub sends: u32,
    pub at_ms: u64,
}

/// What has been spent, as it is kept over a restart: under the tariff in force, and beside it under others.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Spent {
    /// None as older versions wrote it: whichever is in force now.
    #[serde(skip_serializing_if = "Option::is_none")]
    tariff: Option<Tariff>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    others: Vec<Spent>,
    /// What was spent before is not known, also of tariffs that have not been in force since.
    #[serde(skip_serializing_if = "Option::is_none")]
    lost_at_ms: Option<u64>,
    /// Beside the ceilings, the payloads that have travelled more than once.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub repeated: Vec<Repeated>,
    cases_per_hour: Slots,
    cases_per_day: Slots,
    cases_per_month: Slots,
    bytes_per_hour: Slots,
    bytes_per_day: Slots,
    bytes_per_month: Slots,
}

/// A ceiling, as the configuration names it, and how much of it is spent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    pub ceiling: &'static str,
    pub spent: u64,
    pub max: u64,
}

impl Spent {
    /// What counts against each ceiling now.
    #[must_use]
    pub fn used(&self, now: Moment, ceilings: &Ceilings) -> [Used; 6] {
        let nothing = Self::default();
        let mut all = core::iter::once(self).chain(&self.others);
        let account = all.find(|account| account.tariff.is_none_or(|tariff| tariff == ceilings.tariff));
        let account = account.unwrap_or(&nothing);
        let used = |ceiling, slots: &Slots, period, max| {
            let mut slots = slots.clone();
            slots.advance(now, period);
            Used { ceiling, spent: slots.sum(), max }
        };
        [
            used("cases_per_hour", &account.cases_per_hour, HOUR, ceilings.cases_per_hour),
            used("cases_per_day", &account.cases_per_day, DAY, ceilings.cases_per_day),
            used("cases_per_month", &account.cases_per_month, MONTH, ceilings.cases_per_month),
            used("bytes_per_hour", &account.bytes_per_hour, HOUR, ceilings.bytes_per_hour),
            used("bytes_per_day", &account.bytes_per_day, DAY, ceilings.bytes_per_day),
            used("bytes_per_month", &account.bytes_per_month, MONTH, ceilings.bytes_per_month),
        ]
    }

    /// The account of these ceilings comes to the front; one that never was there is empty, unless it was lost.
    fn turn_to(&mut self, ceilings: &Ceilings) {
        let tariff = *self.tariff.get_or_insert(ceilings.tariff);
        if tariff == ceilings.tariff {
            return;
        }
        let (mut others, lost_at_ms) = (core::mem::take(&mut self.others), self.lost_at_ms.take());
        let known = others.iter().position(|account| account.tariff == Some(ceilings.tariff));
        let next = known.map_or_else(|| Self::unknown(ceilings, lost_at_ms.map(Moment)), |at| others.swap_remove(at));
        others.push(core::mem::replace(self, next));
        (self.others, self.lost_at_ms) = (others, lost_at_ms);
    }

    fn unknown(ceilings: &Ceilings, lost_at: Option<Moment>) -> Self {
        let mut account = Self { tariff: Some(ceilings.tariff), ..Self::default() };
        if let Some(at) = lost_at {
            account.each(ceilings, |slots, period, ceiling, _| slots.fill(at, period, ceiling));
        }
        account
    }

    fn each(&mut self, ceilings: &Ceilings, mut f: impl FnMut(&mut Slots, Duration, u64, &'static str)) {
        let spent = self;
        f(&mut spent.cases_per_hour, HOUR, ceilings.cases_per_hour, "the ceiling of cases per hour is reached");
        f(&mut spent.cases_per_day, DAY, ceilings.cases_per_day, "the ceiling of cases per day is reached");
        f(&mut spent.cases_per_month, MONTH, ceilings.cases_per_month, "the ceiling of cases per month is reached");
        f(&mut spent.bytes_per_hour, HOUR, ceilings.bytes_per_hour, "the ceiling of bytes per hour is reached");
        f(&mut spent.bytes_per_day, DAY, ceilings.bytes_per_day, "the ceiling of bytes per day is reached");
        f(&mut spent.bytes_per_month, MONTH, ceilings.bytes_per_month, "the ceiling of bytes per month is reached");
    }
}

/// A ceiling that has been reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reached {
    /// One sentence for people.
    pub reason: &'static str,
    /// When there is room again.
    pub until: Moment,
}

/// The ceilings and what has been spent under them.
#[derive(Debug, Clone)]
pub struct Budget {
    ceilings: Ceilings,
    spent: Spent,
}

impl Budget {
    /// Goes on from what was spent before. Without it all but a twelfth of each ceiling counts as spent, and frees
    /// up as time passes: a device that lost its memory must not spend a month's ceiling twice.
    #[must_use]
    pub fn resume(ceilings: Ceilings, spent: Option<Spent>, now: Moment) -> Self {
        let lost = || Spent { lost_at_ms: Some(now.0), ..Spent::unknown(&ceilings, Some(now)) };
        let mut spent = spent.unwrap_or_else(lost);
        spent.turn_to(&ceilings);
        Self { ceilings, spent }
    }

    #[must_use]
    pub fn spent(&self) -> &Spent {
        &self.spent
    }

    pub fn spend(&mut self, now: Moment, cases: u64, bytes: u64) {
        let Spent {
            cases_per_hour,
            cases_per_day,
            cases_per_month,
            bytes_per_hour,
            bytes_per_day,
            bytes_per_month,
            ..
        } = &mut self.spent;
        for (slots, period, amount) in [
            (cases_per_hour, HOUR, cases),
            (cases_per_day, DAY, cases),
            (cases_per_month, MONTH, cases),
            (bytes_per_hour, HOUR, bytes),
            (bytes_per_day, DAY, bytes),
            (bytes_per_month, MONTH, bytes),
        ] {
            slots.add(now, period, amount);
        }
    }

    /// Other ceilings hold from now on, also for what was spent before under the same tariff.
    pub fn set_ceilings(&mut self, ceilings: Ceilings) {
        self.spent.turn_to(&ceilings);
        self.ceilings = ceilings;
    }

    /// The ceiling that holds longest of those that are reached: no case is sent. The reserve is not touched.
    #[must_use]
    pub fn reached(&mut self, now: Moment) -> Option<Reached> {
        self.worst(now, &self.ceilings.for_work())
    }

    /// The same of those whose reserve is spent, too: nothing at all goes over the wire.
    #[must_use]
    pub fn exhausted(&mut self, now: Moment) -> Option<Reached> {
        self.worst(now, &self.ceilings.for_connection())
    }

    /// How many bytes of a bundle may be fetched a second, or the ceiling of which half is spent. An hour's half is spread over
    /// the hour; where that would be next to nothing it is fetched faster, and rests sooner.
    pub fn pace_of_bundles(&mut self, now: Moment) -> Result<u64, Reached> {
        let ceilings = self.ceilings.for_bundles();
        let pace = (ceilings.bytes_per_hour / HOUR.as_secs()).max(BUNDLE_BYTES_PER_S_MIN);
        self.worst(now, &ceilings).map_or(Ok(pace), Err)
    }

    fn worst(&mut self, now: Moment, ceilings: &Ceilings) -> Option<Reached> {
        let mut worst: Option<Reached> = None;
        self.spent.each(ceilings, |slots, period, ceiling, reason| {
            if let Some(until) = slots.room_at(now, period, ceiling)
                && worst.is_none_or(|before| before.until < until)
            {
                worst = Some(Reached { reason, until });
            }
        });
        worst
    }
}

#[cfg(test)]
mod tests {
    use super::slots::slot_ms;
    use super::*;
    use proptest::prelude::*;
    use std::vec::Vec;

    const CEILINGS: Ceilings = Ceilings { cases_per_hour: 10, ..Ceilings::LAN };

    fn fresh(ceilings: Ceilings) -> Budget {
        Budget::resume(ceilings, Some(Spent::default()), Moment(0))
    }

    #[test]
    fn a_ceiling_is_reached_named_and_lifted_by_time() {
        let mut budget = fresh(CEILINGS);
        budget.spend(Moment(1_000), 10, 0);
        let reached = budget.reached(Moment(2_000)).expect("reached");
        assert_eq!(reached.reason, "the ceiling of cases per hour is reached");
        assert!(budget.reached(Moment(reached.until.0 - 1)).is_some());
        assert_eq!(budget.reached(reached.until), None);
        assert!(reached.until.since(Moment(1_000)) >= HOUR);
    }

    #[test]
    fn what_was_spent_survives_a_restart_and_a_lost_memory_counts_as_spent() {
        let mut budget = fresh(CEILINGS);
        budget.spend(Moment(1_000), 10, 0);
        let saved = budget.spent().clone();
        assert!(Budget::resume(CEILINGS, Some(saved), Moment(2_000)).reached(Moment(2_000)).is_some());
        let ceilings = Ceilings { cases_per_hour: 120, ..CEILINGS };
        let mut lost = Budget::resume(ceilings, None, Moment(2_000));
        let at_once = (0..120).take_while(|_| {
            let room = lost.reached(Moment(2_000)).is_none();
            lost.spend(Moment(2_000), 1, 0);
            room
        });
        assert_eq!(at_once.count(), 10, "a twelfth");
    }

    #[test]
    fn what_an_older_version_kept_counts_under_the_tariff_in_force() {
        let slots = r#"{"newest":3,"spent":[7,0,0,0,0,0,0,0,0,0,0,0,0]}"#;
        let names = ["cases_per_hour", "cases_per_day", "cases_per_month", "bytes_per_hour", "bytes_per_day"];
        let fields: Vec<_> = names.iter().map(|name| std::format!("\"{name}\":{slots}")).collect();
        let kept = std::format!("{{{},\"bytes_per_month\":{slots}}}", fields.join(","));
        let kept: Spent = hedge_proto::from_json(kept.as_bytes(), 1 << 16).expect("reads");
        let now = Moment(3 * slot_ms(HOUR));
        let mut budget = Budget::resume(CEILINGS, Some(kept), now);
        assert_eq!(budget.spent().used(now, &CEILINGS)[0].spent, 7);
        budget.set_ceilings(Ceilings::METERED);
        assert_eq!(budget.spent().used(now, &Ceilings::METERED)[0].spent, 0);
        assert_eq!(budget.spent().used(now, &CEILINGS)[0].spent, 7);
        // And what we keep has the account in force where an older version looks for it.
        budget.set_ceilings(CEILINGS);
        let text = std::string::String::from_utf8(hedge_proto::to_json(budget.spent())).expect("text");
        assert!(text.contains(&std::format!("\"cases_per_hour\":{slots}")), "{text}");
    }

    #[test]
    fn a_lost_memory_is_lost_for_every_tariff() {
        let mut budget = Budget::resume(CEILINGS, None, Moment(2_000));
        budget.set_ceilings(Ceilings::METERED);
        let max = Ceilings::METERED.bytes_per_month;
        assert_eq!(budget.spent().used(Moment(2_000), &Ceilings::METERED)[5].spent, max / 12 * 11);
    }

    #[test]
    fn what_is_shown_as_spent_frees_up_with_time() {
        let mut budget = fresh(CEILINGS);
        budget.spend(Moment(1_000), 4, 700);
        let used = |now: Moment| budget.spent().used(now, &CEILINGS);
        assert_eq!(used(Moment(2_000))[0], Used { ceiling: "cases_per_hour", spent: 4, max: 10 });
        let later = used(Moment(2 * 3_600_000));
        assert_eq!([later[0].spent, later[1].spent, later[3].spent, later[4].spent], [0, 4, 0, 700]);
    }

    #[test]
    fn a_clock_that_lags_frees_nothing() {
        let mut budget = fresh(CEILINGS);
        budget.spend(Moment(50_000_000), 10, 0);
        assert!(budget.reached(Moment(1_000)).is_some());
    }

    proptest! {
        /// Each tariff's account is as if the device had never been under another.
        #[test]
        fn what_is_spent_under_one_tariff_counts_against_its_own_ceilings_alone(
            steps in prop::collection::vec((0_u64..2_000_000, 0_u8..4, 0_u64..9), 1..200),
        ) {
            let metered = Ceilings { cases_per_hour: 6, cases_per_day: 40, ..Ceilings::METERED };
            let alone = |ceilings| Budget::resume(ceilings, Some(Spent::default()), Moment(0));
            let (mut both, mut model) = (alone(CEILINGS), [alone(CEILINGS), alone(metered)]);
            let (mut now, mut tariff) = (Moment(0), 0);
            for (step, what, cases) in steps {
                now = now + Duration::from_millis(step);
                match what {
                    0 => {
                        tariff = 1 - tariff;
                        both.set_ceilings([CEILINGS, metered][tariff]);
                    }
                    1 => {
                        // A restart.
                        let kept = hedge_proto::to_json(both.spent());
                        let kept = hedge_proto::from_json(&kept, 1 << 20).expect("reads back");
                        both = Budget::resume([CEILINGS, metered][tariff], Some(kept), now);
                    }
                    _ => {
                        both.spend(now, cases, 1000 * cases);
                        model[tariff].spend(now, cases, 1000 * cases);
                    }
                }
                prop_assert_eq!(both.reached(now), model[tariff].reached(now));
                prop_assert!(both.spent().others.len() <= 1);
            }
        }

        #[test]
        fn in_any_hour_no_more_than_the_ceiling_is_spent(steps in prop::collection::vec(0_u64..900_000, 1..200)) {
            let mut budget = fresh(CEILINGS);
            let mut now = Moment(0);
            let mut spent_at: Vec<Moment> = Vec::new();
            for step in steps {
                now = now + Duration::from_millis(step);
                if budget.reached(now).is_none() {
                    budget.spend(now, 1, 0);
                    spent_at.push(now);
                }
                let in_last_hour = spent_at.iter().filter(|at| now.since(**at) < HOUR).count();
                prop_assert!(in_last_hour <= 10, "{in_last_hour} cases within an hour");
            }
        }
    }
}
