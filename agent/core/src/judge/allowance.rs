//! Decides how much doubt a budget of cases affords.
//!
//! The threshold is a rank among recent answers, moved after each answer by how far it was from the budget
//! (τ += η·(deferred − budget)). Over any stretch of answers the cases then differ from the budget by what τ moved, divided
//! by η, whatever the weather does to the scores. Ceilings in cases and bytes stand behind it, in every hour and day.

use core::time::Duration;

use hedge_proto::Allowance;
use serde::{Deserialize, Serialize};

use crate::budget::{DAY, HOUR, Slots};
use crate::clock::Moment;

/// How far one answer moves the threshold. Greater follows a shift faster and ranks worse.
const STEP: f32 = 0.02;

/// The number of samples in a period is foretold from at least so much time.
const FORETOLD_FROM: Duration = Duration::from_secs(600);

/// A case is foretold to be as large as the last ones, each counting so much.
const BYTES_STEP: f32 = 0.05;

/// What an allowance has given so far, and the threshold that keeps to it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Account {
    /// Answers of at least this rank are deferred. None before the first.
    bar: Option<f32>,
    since_ms: Option<u64>,
    samples_per_hour: Slots,
    samples_per_day: Slots,
    cases_per_hour: Slots,
    cases_per_day: Slots,
    bytes_per_hour: Slots,
    bytes_per_day: Slots,
    case_bytes: Option<f32>,
}

/// What an allowance says to one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Room {
    /// Which share of answers it affords now.
    pub share: f32,
    /// The rank from which on answers are deferred.
    pub bar: f32,
    /// The limit that is reached: nothing more is deferred under it.
    pub reached: Option<&'static str>,
}

impl Account {
    /// Counts one more sample, and says what it may cost.
    #[must_use]
    pub fn sample(&mut self, now: Moment, allowance: &Allowance) -> Room {
        self.samples_per_hour.add(now, HOUR, 1);
        self.samples_per_day.add(now, DAY, 1);
        let since = Moment(*self.since_ms.get_or_insert(now.0));
        // A young account has not seen a whole period yet.
        let foretold = |slots: &Slots, period: Duration| {
            let seen = now.since(since).clamp(FORETOLD_FROM, period);
            slots.sum() as f32 * (period.as_secs_f32() / seen.as_secs_f32())
        };
        let (per_hour, per_day) = (foretold(&self.samples_per_hour, HOUR), foretold(&self.samples_per_day, DAY));
        let share = affords(allowance, per_hour, per_day, self.case_bytes);
        let mut room = Room { share, bar: 0.0, reached: None };
        for (name, limit, spent, period) in [
            ("cases_per_hour", allowance.cases_per_hour, &mut self.cases_per_hour, HOUR),
            ("cases_per_day", allowance.cases_per_day, &mut self.cases_per_day, DAY),
            ("bytes_per_hour", allowance.bytes_per_hour, &mut self.bytes_per_hour, HOUR),
            ("bytes_per_day", allowance.bytes_per_day, &mut self.bytes_per_day, DAY),
        ] {
            let Some(limit) = limit else { continue };
            spent.advance(now, period);
            if spent.sum() >= limit {
                room.reached.get_or_insert(name);
            }
        }
        room.bar = *self.bar.get_or_insert(1.0 - room.share);
        room
    }

    /// Moves the threshold after an answer for which there was this room.
    pub fn decided(&mut self, room: Room, deferred: bool) {
        let off = f32::from(u8::from(deferred)) - room.share;
        // Outside of 0 to 1 it would only have to come back: a long night without doubt must not cost the morning.
        self.bar = Some((room.bar + STEP * off).clamp(0.0, 1.0 + STEP));
    }

    /// An answer is deferred: it counts at once, so that no sample that follows spends the same room.
    pub fn case(&mut self, now: Moment) {
        self.cases_per_hour.add(now, HOUR, 1);
        self.cases_per_day.add(now, DAY, 1);
    }

    /// Its case is so large.
    pub fn bytes(&mut self, now: Moment, bytes: u64) {
        self.bytes_per_hour.add(now, HOUR, bytes);
        self.bytes_per_day.add(now, DAY, bytes);
        let before = self.case_bytes.unwrap_or(bytes as f32);
        self.case_bytes = Some(before + BYTES_STEP * (bytes as f32 - before));
    }

    /// A case that was made at that time has come to nothing.
    pub fn given_back(&mut self, at: Moment, bytes: u64) {
        self.cases_per_hour.take_back(at, HOUR, 1);
        self.cases_per_day.take_back(at, DAY, 1);
        self.bytes_per_hour.take_back(at, HOUR, bytes);
        self.bytes_per_day.take_back(at, DAY, bytes);
    }

    /// The rank from which on answers are deferred. None before the first.
    #[must_use]
    pub fn bar(&self) -> Option<f32> {
        self.bar
    }

    /// How large a case is. None before the first.
    #[must_use]
    pub fn case_bytes(&self) -> Option<f32> {
        self.case_bytes
    }

    /// Cases and bytes of the last day.
    #[must_use]
    pub fn of_the_last_day(&self) -> (u64, u64) {
        (self.cases_per_day.sum(), self.bytes_per_day.sum())
    }
}

/// Which share of so many answers an allowance affords, if its cases are so large.
#[must_use]
pub fn affords(allowance: &Allowance, per_hour: f32, per_day: f32, case_bytes: Option<f32>) -> f32 {
    let bytes = case_bytes.unwrap_or(1.0).max(1.0);
    let limits = [
        (allowance.cases_per_hour, per_hour, 1.0),
        (allowance.cases_per_day, per_day, 1.0),
        (allowance.bytes_per_hour, per_hour, bytes),
        (allowance.bytes_per_day, per_day, bytes),
    ];
    let of_limits = limits.iter().filter_map(|(limit, answers, each)| Some((*limit)? as f32 / each / answers.max(1.0)));
    of_limits.fold(allowance.share.map_or(1.0, |share| share.value()), f32::min)
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::Share;
    use proptest::prelude::*;

    fn share(value: f32) -> Allowance {
        Allowance { share: Some(Share::new(value).expect("a share")), ..Allowance::default() }
    }

    #[test]
    fn a_share_is_kept_also_where_all_answers_rank_the_same() {
        let (mut account, mut deferred) = (Account::default(), 0);
        for second in 0..2000 {
            let room = account.sample(Moment(second * 1000), &share(0.1));
            let defers = 0.5 >= room.bar;
            account.decided(room, defers);
            deferred += u32::from(defers && second >= 1000);
        }
        assert!((95..=105).contains(&deferred), "{deferred} of 1000");
    }

    #[test]
    fn cases_a_day_become_the_share_that_they_are_of_the_days_samples() {
        let allowance = Allowance { cases_per_day: Some(864), ..Allowance::default() };
        let mut account = Account::default();
        let mut last = None;
        for second in 0..24 * 3600 {
            last = Some(account.sample(Moment(second * 1000), &allowance));
        }
        let share = last.expect("asked").share;
        assert!((0.0095..0.011).contains(&share), "{share}");
    }

    #[test]
    fn a_large_case_costs_more_of_a_budget_of_bytes() {
        let allowance = Allowance { bytes_per_hour: Some(3_600_000), ..Allowance::default() };
        let mut account = Account::default();
        (0..100).for_each(|_| account.bytes(Moment(0), 10_000));
        let mut last = None;
        for second in 0..3600 {
            last = Some(account.sample(Moment(second * 1000), &allowance));
        }
        let share = last.expect("asked").share;
        assert!((0.09..0.11).contains(&share), "{share}: 360 cases of 3600");
    }

    #[test]
    fn what_came_to_nothing_is_given_back() {
        let allowance = Allowance { cases_per_hour: Some(1), ..Allowance::default() };
        let mut account = Account::default();
        account.case(Moment(0));
        account.bytes(Moment(0), 100);
        assert_eq!(account.sample(Moment(1), &allowance).reached, Some("cases_per_hour"));
        account.given_back(Moment(0), 100);
        assert_eq!(account.sample(Moment(2), &allowance).reached, None);
        account.given_back(Moment(0), 100);
        assert_eq!(account.of_the_last_day(), (0, 0), "and no more than was spent");
    }

    #[test]
    fn what_comes_to_nothing_later_frees_no_room_in_another_hour() {
        let allowance = Allowance { cases_per_hour: Some(1), ..Allowance::default() };
        let mut account = Account::default();
        let (long_ago, now) = (Moment(0), Moment(7_200_000));
        account.case(long_ago);
        account.case(now);
        account.given_back(long_ago, 0);
        assert_eq!(account.sample(now, &allowance).reached, Some("cases_per_hour"));
        assert_eq!(account.of_the_last_day().0, 1, "of the day it does");
    }

    proptest! {
        /// Also over a clock that stands still or leaps, and a restart at any time.
        #[test]
        fn no_hour_costs_more_cases_than_it_may(
            steps in prop::collection::vec((0_u64..200_000, 0.0_f32..1.0, prop::bool::weighted(0.05)), 1..400),
            limit in 1_u64..20,
        ) {
            let allowance = Allowance { cases_per_hour: Some(limit), ..Allowance::default() };
            let (mut account, mut now, mut made) = (Account::default(), Moment(0), std::vec::Vec::new());
            for (step, rank, restart) in steps {
                now = now + Duration::from_millis(step);
                if restart {
                    let kept = serde_json::to_string(&account).expect("written");
                    account = serde_json::from_str(&kept).expect("reads back");
                }
                let room = account.sample(now, &allowance);
                let defers = rank >= room.bar && room.reached.is_none();
                account.decided(room, defers);
                if defers {
                    account.case(now);
                    made.push(now);
                }
                let within = made.iter().filter(|at| now.since(**at) < HOUR).count();
                prop_assert!(within as u64 <= limit, "{within} of {limit}");
            }
        }
    }
}
