//! Decides which cases may be the reason why connections end, and how they are tried.
//!
//! Some brokers do not say what they do not take; they end the connection over it. A case is suspected when the
//! connection ends right after it was sent. It then travels alone, over a connection that has lasted for a while. If that
//! ends as well, the case is held for an hour, each time twice as long, and with it, unless a payload as large has passed
//! here, all that are as large. Where thumbnails pass, one that does not is held alone. A link that is cut by chance holds
//! nothing up: it would have to hit the same case twice, the second time within moments of [`ALONE_AFTER`] in peace.
//!
//! ```text
//!  sent ── connection ends ──▶ suspect ── alone, it ends again ──▶ held ── 1 h, 2 h, … ──▶ suspect
//!                                 └───── PUBACK ──▶ cleared
//! ```

use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::CaseKey;

use super::Uplink;
use super::tracked::Tracked;
use crate::clock::{Moment, doubled};
use crate::link::Loss;

/// A suspect is tried on a connection that has lasted for so long.
pub const ALONE_AFTER: Duration = Duration::from_secs(10);

/// A cut that nobody explains counts as right after a send for so long: a broker that refuses a message ends the
/// connection at once.
pub const CUT_AFTER: Duration = Duration::from_secs(2);

/// How long a case is held after it was tried alone; doubles each time.
pub const HELD_WAIT: Duration = Duration::from_secs(3600);

/// The longest such time: whatever is held is tried once a day.
pub const HELD_WAIT_MAX: Duration = Duration::from_secs(24 * 3600);

/// When a size is tried again, others of it go before the case that was tried last: if one of them passes, it was that
/// case and not its size.
const OTHERS_FIRST: Duration = Duration::from_secs(120);

/// Payloads from this size on are thought to be too large for the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Suspicion {
    pub(super) from_bytes: u32,
    pub(super) until: Moment,
    times: u32,
    /// Its time is over: it is tried again.
    over: bool,
}

/// A case that was tried alone, and its connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guilty {
    pub key: CaseKey,
    /// Payloads as large have passed here, so that it is not its size.
    pub by_itself: bool,
}

impl Uplink {
    pub(super) fn is_suspect(&self, case: &Tracked) -> bool {
        case.suspect || self.suspicion.is_some_and(|limit| case.case.payload_bytes >= limit.from_bytes)
    }

    /// What is thought to be too large for the broker now.
    pub(super) fn suspected_from(&self, now: Moment) -> Option<u32> {
        self.suspicion.filter(|limit| now < limit.until).map(|limit| limit.from_bytes)
    }

    /// The connection has ended while these were on their way. `loss` is none if we have ended it ourselves.
    pub(super) fn suspects(&mut self, now: Moment, flying: &[CaseKey], loss: Option<Loss>) -> Option<Guilty> {
        let at_once = |case: &Tracked| match loss {
            Some(Loss::Closed | Loss::Refused) => true,
            Some(Loss::Broken) => now.since(case.sent_at) <= CUT_AFTER,
            Some(Loss::TakenOver) | None => false,
        };
        if let [only] = flying {
            let tried = self.cases.get(only).filter(|case| self.is_suspect(case) && at_once(case));
            // Before that nobody sends a suspect; this one has become one on the way.
            if tried.is_some_and(|case| case.sent_at >= self.connected_at + ALONE_AFTER) {
                return self.convict(now, *only);
            }
        }
        for key in flying {
            if let Some(case) = self.cases.get_mut(key) {
                case.suspect |= at_once(case);
            }
        }
        None
    }

    /// When the time of a suspicion is over, others of that size go first.
    pub(super) fn try_others_first(&mut self, now: Moment) {
        let Some(suspicion) = self.suspicion.as_mut().filter(|suspicion| suspicion.until <= now && !suspicion.over)
        else {
            return;
        };
        suspicion.over = true;
        for case in self.cases.values_mut().filter(|case| case.guilt > 0) {
            case.held_until = case.held_until.max(now + OTHERS_FIRST);
        }
    }

    fn convict(&mut self, now: Moment, key: CaseKey) -> Option<Guilty> {
        let carried_bytes = self.carried_bytes;
        let case = self.cases.get_mut(&key)?;
        let bytes = case.case.payload_bytes;
        case.suspect = true;
        case.guilt = case.guilt.saturating_add(1);
        let by_itself = carried_bytes.is_some_and(|carried| bytes <= carried);
        if by_itself || case.small {
            case.held_until = now + held(case.guilt);
        }
        // Where thumbnails pass, it is not for its size that one does not.
        if !(by_itself || case.small && self.carried_small) {
            let before = self.suspicion.filter(|limit| bytes >= limit.from_bytes);
            let times = before.map_or(1, |limit| limit.times.saturating_add(1));
            let from_bytes = before.map_or(bytes, |limit| limit.from_bytes);
            self.suspicion = Some(Suspicion { from_bytes, until: now + held(times), times, over: false });
        }
        Some(Guilty { key, by_itself })
    }

    /// The broker took these: they were not the reason, and neither was the size of the largest.
    pub(super) fn passed(&mut self, keys: &[CaseKey]) {
        self.cleared(keys);
        for key in keys {
            let Some(case) = self.cases.get(key) else { continue };
            let bytes = case.case.payload_bytes;
            self.carried_bytes = self.carried_bytes.max(Some(bytes));
            self.suspicion = self.suspicion.filter(|limit| bytes < limit.from_bytes);
        }
    }

    /// As thumbnails of how many pixels these set out, over a link where thumbnails of so many go first.
    pub fn shrinks(&mut self, keys: &[CaseKey], side_max: Option<u32>) -> Option<u32> {
        let first = side_max.filter(|_| !self.goes_whole(keys));
        for key in keys {
            if let Some(case) = self.cases.get_mut(key) {
                case.small = first.is_some();
            }
        }
        first
    }

    /// They were not the reason, as they went; their size was not tried.
    pub(super) fn cleared(&mut self, keys: &[CaseKey]) {
        for key in keys {
            if let Some(case) = self.cases.get_mut(key) {
                (case.suspect, case.guilt) = (false, 0);
            }
        }
    }

    /// Another broker, or an operator's word: nothing that is held for its size is held any longer.
    pub fn forget_suspicion(&mut self) {
        self.suspicion = None;
        (self.carried_bytes, self.carried_small) = (None, false);
        for case in self.cases.values_mut() {
            case.held_until = Moment(0);
        }
    }

    /// Suspects that wait to be sent now, and whether one is on its way.
    pub(super) fn suspects_due(&self, now: Moment) -> (Vec<CaseKey>, bool) {
        let suspects = || self.cases.values().filter(|case| self.is_suspect(case));
        let lasted = now >= self.connected_at + ALONE_AFTER;
        let places = self.places();
        let may_go = |case: &&Tracked| lasted && case.is_due(now) && self.fits(case, places);
        let due = suspects().filter(may_go).map(|case| case.case.key).collect();
        (due, suspects().any(Tracked::is_publishing))
    }
}

fn held(times: u32) -> Duration {
    doubled(HELD_WAIT, times.saturating_sub(1), HELD_WAIT_MAX)
}
