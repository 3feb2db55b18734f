//! One case the device remembers, and where it is on its way.

use hedge_proto::CaseKey;

use super::{QUIET_MAX, SEND_AGAIN_WAIT, SENDS_AT_ONCE};
use crate::clock::{Moment, doubled};

/// A case as the outbox knows it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Waiting {
    pub key: CaseKey,
    pub sort_key: f64,
    pub stored_at: Moment,
    pub payload_bytes: u32,
    /// It was published in full before, by this or an earlier run: ask before sending.
    pub sent: bool,
    /// Somebody waits for the verdict.
    pub urgent: bool,
}

/// Of a case whose thumbnail goes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whole {
    Offered,
    Wanted,
    /// A message does not take it over the present connection: the thumbnail goes once more, and offers nothing.
    TooLarge,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Phase {
    Ready { not_before: Moment },
    Publishing,
    Published,
    Doubtful { not_before: Moment },
    Asked,
    Held,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Tracked {
    pub(super) case: Waiting,
    pub(super) phase: Phase,
    /// Which publish carried it, and whether the cloud has asked for it again.
    pub(super) publish: u64,
    pub(super) again: bool,
    pub(super) whole: Whole,
    /// When the phase began.
    pub(super) since: Moment,
    /// How often the cloud was asked without a verdict; lengthens the next wait.
    pub(super) asked: u32,
    /// It was sent or asked about, and the cloud has not called that try failed.
    pub(super) tried: bool,
    /// How often its payload could not be brought to the cloud.
    pub(super) stuck: u32,
    /// How often its payload has set out, when it did last, and whether as a thumbnail.
    pub(super) sends: u32,
    pub(super) sent_at: Moment,
    pub(super) small: bool,
    /// The connection ended right after it was sent: it travels alone. How often it did so alone, and until when it is
    /// held for that.
    pub(super) suspect: bool,
    pub(super) guilt: u32,
    pub(super) held_until: Moment,
}

impl Tracked {
    pub(super) fn new(now: Moment, case: Waiting, phase: Phase) -> Self {
        Self {
            case,
            phase,
            publish: 0,
            again: false,
            whole: Whole::Offered,
            since: now,
            asked: 0,
            tried: false,
            stuck: 0,
            sends: 0,
            sent_at: Moment(0),
            small: false,
            suspect: false,
            guilt: 0,
            held_until: Moment(0),
        }
    }

    /// Waits to be sent for the first time, and may give way in memory. One that the cloud wants again is owed: only
    /// here is it known how often it has travelled.
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. }) && !self.again
    }

    /// When its payload may set out, as far as it alone decides that; none while it is not to be sent.
    pub(super) fn due_at(&self) -> Option<Moment> {
        let Phase::Ready { not_before } = self.phase else { return None };
        let paced = if self.sends < SENDS_AT_ONCE {
            Moment(0)
        } else {
            self.sent_at + doubled(SEND_AGAIN_WAIT, self.sends - SENDS_AT_ONCE, QUIET_MAX)
        };
        Some(not_before.max(paced).max(self.held_until))
    }

    pub(super) fn sets_out(&mut self, now: Moment, publish: u64) {
        self.publish = publish;
        self.sends = self.sends.saturating_add(1);
        self.sent_at = now;
        self.tried = true;
        self.enter(now, Phase::Publishing);
    }

    /// Without PUBACK.
    pub(super) fn is_publishing(&self) -> bool {
        self.phase == Phase::Publishing
    }

    /// Without a word of the cloud.
    pub(super) fn is_unconfirmed(&self) -> bool {
        matches!(self.phase, Phase::Publishing | Phase::Published)
    }

    pub(super) fn is_due(&self, now: Moment) -> bool {
        self.due_at().is_some_and(|at| at <= now)
    }

    pub(super) fn worth(&self) -> f64 {
        worth(&self.case)
    }

    pub(super) fn enter(&mut self, now: Moment, phase: Phase) {
        self.phase = phase;
        self.since = now;
    }
}

/// Greater is kept in memory longer and sent earlier: a case somebody waits for before all others.
pub(super) fn worth(case: &Waiting) -> f64 {
    if case.urgent { f64::INFINITY } else { case.sort_key }
}
