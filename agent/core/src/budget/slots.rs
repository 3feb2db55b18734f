//! What was spent lately, in a bounded number of slots, each for a part of the period that is looked back on.

use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// Twelve whole slots cover a period; the thirteenth is the one that is being filled.
const SLOTS: usize = 13;

/// An amount by time, for as long as a period looks back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Slots {
    /// The number of the newest slot since the powered clock began.
    newest: u64,
    /// Newest first.
    spent: [u64; SLOTS],
}

impl Slots {
    pub(crate) fn add(&mut self, now: Moment, period: Duration, amount: u64) {
        self.advance(now, period);
        self.spent[0] = self.spent[0].saturating_add(amount);
    }

    /// What is in the period that it was advanced to.
    pub(crate) fn sum(&self) -> u64 {
        self.spent.iter().fold(0, |sum, amount| sum.saturating_add(*amount))
    }

    /// Takes back what was spent at that time. What has left the period frees no room in it.
    pub(crate) fn take_back(&mut self, at: Moment, period: Duration, amount: u64) {
        let age = self.newest.saturating_sub(at.0 / slot_ms(period));
        if let Some(spent) = usize::try_from(age).ok().and_then(|age| self.spent.get_mut(age)) {
            *spent = spent.saturating_sub(amount);
        }
    }

    /// As if the ceiling had been spent evenly until the slot before this one.
    pub(super) fn fill(&mut self, now: Moment, period: Duration, ceiling: u64) {
        self.newest = now.0 / slot_ms(period);
        self.spent = [ceiling / (SLOTS as u64 - 1); SLOTS];
        (self.spent[0], self.spent[1]) = (0, 0);
    }

    /// When there is room, if there is none now.
    pub(super) fn room_at(&mut self, now: Moment, period: Duration, ceiling: u64) -> Option<Moment> {
        self.advance(now, period);
        let mut spent: u64 = self.spent.iter().sum();
        if spent < ceiling {
            return None;
        }
        // Slots leave the period oldest first, one with each new slot.
        let mut slots_later = 0;
        for amount in self.spent.iter().rev() {
            slots_later += 1;
            spent -= amount;
            if spent < ceiling {
                break;
            }
        }
        Some(Moment((self.newest + slots_later) * slot_ms(period)))
    }

    pub(crate) fn advance(&mut self, now: Moment, period: Duration) {
        let newest = now.0 / slot_ms(period);
        let passed = newest.saturating_sub(self.newest);
        if passed == 0 {
            return; // a powered clock that lags after a power cut frees nothing
        }
        let passed = usize::try_from(passed).unwrap_or(SLOTS).min(SLOTS);
        self.spent.rotate_right(passed);
        self.spent[..passed].fill(0);
        self.newest = newest;
    }
}

/// A twelfth of the period.
pub(super) fn slot_ms(period: Duration) -> u64 {
    u64::try_from(period.as_millis()).unwrap_or(u64::MAX) / (SLOTS as u64 - 1)
}
