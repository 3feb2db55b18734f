//! Which case is sent next, in what company, and whether there is room for it.

use alloc::collections::BTreeSet;
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{BATCH_CASES_MAX, CaseKey};

use super::limits::{BATCH_CASE_BYTES_MAX, FRESH, FRESH_EVERY, OWED_MAX, PACE_MIN, UNCONFIRMED_MAX};
use super::tracked::Tracked;
use super::{Permission, Uplink};
use crate::clock::Moment;

/// Whether one more case may set out.
#[derive(Debug, Clone, Copy)]
pub(super) struct Places {
    /// Among all that the cloud owes an answer to.
    pub(super) owed: bool,
    /// In what the cloud has given no word of. Callers do not wait for that.
    pub(super) unconfirmed: bool,
}

impl Uplink {
    /// The earliest moment of the next send at the present pace, however fast or slow it was before.
    pub(super) fn paced_until(&self, permission: Permission) -> Moment {
        match (self.last_send, permission.accept_per_s) {
            (Some(last), Some(per_s)) => last + Duration::from_secs_f32(1.0 / per_s.max(PACE_MIN)),
            _ => Moment(0),
        }
    }

    /// Whether the window allows one more to be sent.
    pub(super) fn has_slot(&self, permission: Permission) -> bool {
        let unconfirmed_max = if permission.proven { UNCONFIRMED_MAX } else { 1 };
        self.publishes(Tracked::is_unconfirmed) < unconfirmed_max
            && self.publishes(Tracked::is_publishing) < self.window_max
    }

    /// Whether memory and what a message takes allow this one to be sent, whenever that is.
    pub(super) fn fits(&self, case: &Tracked, places: Places) -> bool {
        let has_place = (case.again || places.owed) && (case.case.urgent || places.unconfirmed);
        has_place && self.limit.is_none_or(|limit| case.case.payload_bytes < limit.from_bytes)
    }

    pub(super) fn places(&self) -> Places {
        Places { owed: self.owed() < OWED_MAX, unconfirmed: self.unconfirmed_left() > 0 }
    }

    /// How many more cases may be before the cloud without a word of it.
    pub(super) fn unconfirmed_left(&self) -> usize {
        let unconfirmed = self.cases.values().filter(|case| case.is_unconfirmed()).count();
        self.congestion.cases_max().saturating_sub(unconfirmed)
    }

    pub(super) fn publishes(&self, of: impl Fn(&Tracked) -> bool) -> usize {
        self.cases.values().filter(|case| of(case)).map(|case| case.publish).collect::<BTreeSet<_>>().len()
    }

    /// Of the suspects if there are any, for they are tried as soon as the window is empty; otherwise of all others.
    pub(super) fn next_case(&self, now: Moment, suspects: Vec<CaseKey>) -> Option<CaseKey> {
        if !suspects.is_empty() {
            // The one that was found guilty most often goes last: it must not keep the innocent from being cleared.
            let guilt = |key: &CaseKey| self.cases.get(key).map_or(0, |case| case.guilt);
            return suspects.into_iter().min_by_key(guilt);
        }
        let fresh_turn = self.publishes % u64::from(FRESH_EVERY) == u64::from(FRESH_EVERY) - 1;
        let places = self.places();
        let may_go = move |case: &&Tracked| case.is_due(now) && self.fits(case, places) && !self.is_suspect(case);
        let due = || self.cases.values().filter(may_go);
        let newest = due()
            .filter(|case| fresh_turn && now.since(case.case.stored_at) < FRESH)
            .max_by_key(|case| (case.case.stored_at, case.case.key));
        let urgent = due().filter(|case| case.case.urgent).max_by(|a, b| a.worth().total_cmp(&b.worth()));
        urgent.or(newest).or_else(|| due().max_by(|a, b| a.worth().total_cmp(&b.worth()))).map(|case| case.case.key)
    }

    /// The first case, and other small ones of most worth that fit into one publish with it.
    pub(super) fn with_company(&self, now: Moment, first: CaseKey) -> Vec<CaseKey> {
        let small = |case: &&Tracked| !case.again && case.case.payload_bytes <= BATCH_CASE_BYTES_MAX;
        let shares = |case: &&Tracked| small(case) && !self.is_suspect(case);
        let mut keys: Vec<CaseKey> = [first].into();
        let Some(leader) = self.cases.get(&first).filter(shares) else { return keys };
        let mut bytes = leader.case.payload_bytes;
        let mut others: Vec<&Tracked> = self
            .cases
            .values()
            .filter(|case| {
                case.is_due(now) && self.fits(case, Places { owed: true, unconfirmed: true }) && case.case.key != first
            })
            .filter(shares)
            .collect();
        others.sort_by(|a, b| b.worth().total_cmp(&a.worth()));
        let room = BATCH_CASES_MAX.min(OWED_MAX - self.owed()).min(self.unconfirmed_left());
        for other in others {
            bytes = bytes.saturating_add(other.case.payload_bytes);
            if keys.len() >= room || bytes > self.batch_bytes_max {
                break;
            }
            keys.push(other.case.key);
        }
        keys
    }
}
