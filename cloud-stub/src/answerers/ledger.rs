//! What calls cost, under the ceiling of a calendar month.
//!
//! A call is paid for before it is made and given back if it was not made after all: whatever ends the program, the
//! records never say less than was spent.

use std::collections::BTreeMap;

use crate::signed;

/// Money in millionths of whatever `price` and `month_max` are given in.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Micro(pub u64);

impl Micro {
    /// `None` for what is no sum of money. A fraction of a millionth counts as one.
    #[must_use]
    pub fn of(sum: f64) -> Option<Self> {
        const MOST: f64 = 1e12;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "within bounds")]
        // What a decimal fraction has beyond it in binary is nothing anybody has written.
        (0.0..=MOST).contains(&sum).then(|| Self((sum * 1e6 - 1e-3).ceil().max(0.0) as u64))
    }

    #[must_use]
    pub fn as_sum(self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "for people")]
        let sum = self.0 as f64 / 1e6;
        sum
    }
}

/// A calendar month: 202611.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Month(pub u32);

impl Month {
    /// By the wall clock, in UTC.
    #[must_use]
    pub fn at(wall_ms: u64) -> Self {
        let seconds = i64::try_from(wall_ms / 1000).unwrap_or(i64::MAX);
        time::OffsetDateTime::from_unix_timestamp(seconds).map_or_else(
            |_| Self::default(),
            |date| Self(u32::try_from(date.year()).unwrap_or(0) * 100 + u32::from(u8::from(date.month()))),
        )
    }
}

/// What was spent this month, by answerer.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ledger {
    month_max: Option<Micro>,
    month: Month,
    /// All instances' together, as far as it is known here.
    spent: BTreeMap<String, Micro>,
    /// What of it is not on record yet.
    unrecorded: BTreeMap<String, i64>,
}

impl Ledger {
    #[must_use]
    pub fn new(month_max: Option<Micro>, month: Month, spent: BTreeMap<String, Micro>) -> Self {
        Self { month_max, month, spent, unrecorded: BTreeMap::new() }
    }

    /// Begins anew with a new month. A clock that was set back does not.
    pub fn turn(&mut self, month: Month) {
        if month > self.month {
            self.month = month;
            self.spent.clear();
            self.unrecorded.clear();
        }
    }

    #[must_use]
    pub fn month(&self) -> Month {
        self.month
    }

    #[must_use]
    pub fn month_max(&self) -> Option<Micro> {
        self.month_max
    }

    #[must_use]
    pub fn spent(&self) -> Micro {
        Micro(self.spent.values().fold(0, |sum, own| sum.saturating_add(own.0)))
    }

    #[must_use]
    pub fn spent_on(&self, answerer: &str) -> Micro {
        self.spent.get(answerer).copied().unwrap_or_default()
    }

    #[must_use]
    pub fn affords(&self, price: Micro) -> bool {
        price.0 == 0 || self.month_max.is_none_or(|most| self.spent().0.saturating_add(price.0) <= most.0)
    }

    pub fn pay(&mut self, answerer: &str, price: Micro) {
        if price.0 > 0 {
            let own = self.spent.entry(answerer.to_owned()).or_default();
            own.0 = own.0.saturating_add(price.0);
            self.note(answerer, signed(price.0));
        }
    }

    /// The call was not made. What was paid in an earlier month stays paid.
    pub fn give_back(&mut self, answerer: &str, price: Micro) {
        if let Some(own) = self.spent.get_mut(answerer) {
            own.0 = own.0.saturating_sub(price.0);
            self.note(answerer, -signed(price.0));
        }
    }

    fn note(&mut self, answerer: &str, micro: i64) {
        let unrecorded = self.unrecorded.entry(answerer.to_owned()).or_default();
        *unrecorded = unrecorded.saturating_add(micro);
    }

    /// What is to be added to the records. In order of names: two instances that pay the same answerers wait for each
    /// other in one direction only.
    #[must_use]
    pub fn unrecorded(&self) -> &BTreeMap<String, i64> {
        &self.unrecorded
    }

    /// `on_record` is what the records say, now that what was to be added was.
    pub fn recorded(&mut self, on_record: BTreeMap<String, Micro>) {
        self.unrecorded.clear();
        self.spent.extend(on_record);
    }

    /// Other instances have paid, too.
    pub fn refresh(&mut self, mut on_record: BTreeMap<String, Micro>) {
        for (answerer, micro) in &self.unrecorded {
            let sum = on_record.entry(answerer.clone()).or_default();
            sum.0 = sum.0.saturating_add_signed(*micro);
        }
        self.spent = on_record;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_call_is_made_beyond_the_ceiling_and_a_new_month_begins_anew() {
        let (cent, month) = (Micro::of(0.01).expect("a sum"), Month::at(1_700_000_000_000));
        assert_eq!(month, Month(202_311));
        let mut ledger = Ledger::new(Micro::of(1.0), month, BTreeMap::new());
        let calls = (0..1_000)
            .take_while(|_| {
                ledger.affords(cent) && {
                    ledger.pay("big", cent);
                    true
                }
            })
            .count();
        assert_eq!(calls, 100);
        assert!(ledger.affords(Micro(0)), "what costs nothing is always affordable");
        ledger.give_back("big", cent);
        assert!(ledger.affords(cent));
        ledger.turn(Month(202_310));
        assert_eq!(ledger.spent(), Micro(990_000), "a clock set back forgets nothing");
        ledger.turn(Month(202_312));
        assert_eq!((ledger.spent(), ledger.month()), (Micro(0), Month(202_312)));
    }

    #[test]
    fn what_another_instance_has_spent_counts_and_what_is_not_on_record_stays() {
        let cent = Micro::of(0.01).expect("a sum");
        let mut ledger = Ledger::new(Micro::of(1.0), Month(202_311), BTreeMap::new());
        ledger.pay("big", cent);
        ledger.refresh(BTreeMap::from([("big".to_owned(), Micro(980_000))]));
        assert_eq!((ledger.spent(), ledger.affords(cent)), (Micro(990_000), true));
        assert_eq!(ledger.unrecorded().get("big"), Some(&10_000));
        ledger.recorded(BTreeMap::from([("big".to_owned(), Micro(1_000_000))]));
        assert!(ledger.unrecorded().is_empty() && !ledger.affords(cent));
    }

    #[test]
    fn only_sums_of_money_are_taken() {
        for wrong in [-0.01, f64::NAN, f64::INFINITY, 1e13] {
            assert_eq!(Micro::of(wrong), None, "{wrong}");
        }
        assert_eq!(
            (Micro::of(0.0), Micro::of(0.3), Micro::of(0.000_000_1)),
            (Some(Micro(0)), Some(Micro(300_000)), Some(Micro(1)))
        );
    }
}
