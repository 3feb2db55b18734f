//! One case the device remembers, and where it is on its way.

use hedge_proto::CaseKey;

use crate::clock::Moment;

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
    /// When the phase began.
    pub(super) since: Moment,
    /// How often the cloud was asked without a verdict; lengthens the next wait.
    pub(super) asked: u32,
    /// How often its payload could not be brought to the cloud.
    pub(super) stuck: u32,
}

impl Tracked {
    pub(super) fn is_ready(&self) -> bool {
        matches!(self.phase, Phase::Ready { .. })
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
        matches!(self.phase, Phase::Ready { not_before } if not_before <= now)
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
