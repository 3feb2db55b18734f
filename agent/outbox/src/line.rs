//! What is known of one case, and what each record changes about it.

use hedge_core::clock::Moment;
use hedge_proto::CaseKey;

use super::case::{Entry, State, sink_bit};
use super::log::Pointer;
use super::log::record::{Head, record_bytes};
use super::order::{Class, Rank};

/// One case, but for what its block says of its key. 32 bytes, because 100,000 of them must stay small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slot {
    pub(crate) sort_key: f64,
    /// Of the case record; nowhere while a replay has only seen what comes after it.
    pub(crate) body: Pointer,
    pub(crate) payload_bytes: u32,
    stored_at_low: u32,
    stored_at_high: u16,
    pub(crate) header_bytes: u16,
    pub(crate) attempts: u8,
    pub(crate) life: u8,
    pub(crate) stage: Stage,
    /// Which case of its block it is.
    pub(crate) index: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Waiting,
    Sent,
    Received,
    Answered,
    Dead,
}

impl Stage {
    pub(crate) fn has_outcome(self) -> bool {
        matches!(self, Self::Answered | Self::Dead)
    }

    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Waiting, Self::Sent, Self::Received, Self::Answered, Self::Dead].get(usize::from(byte)).copied()
    }
}

/// The second record of an answered or dead case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Of the verdict, or of the record that says why it is dead.
    pub(crate) at: Pointer,
    pub(crate) payload_bytes: u32,
    /// Of the verdict; for a dead case the number of the life that it does not reach.
    pub(crate) revision: u32,
    pub(crate) delivered: u16,
}

/// A slot and what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    pub(crate) slot: Slot,
    pub(crate) outcome: Option<Outcome>,
}

impl Slot {
    pub(crate) fn empty() -> Self {
        Self {
            sort_key: 0.0,
            body: Pointer::NOWHERE,
            payload_bytes: 0,
            stored_at_low: 0,
            stored_at_high: 0,
            header_bytes: 0,
            attempts: 0,
            life: 0,
            stage: Stage::Waiting,
            index: 0,
        }
    }

    /// Milliseconds, 48 bits of them: 8,900 years.
    pub(crate) fn stored_at(&self) -> Moment {
        Moment(u64::from(self.stored_at_high) << 32 | u64::from(self.stored_at_low))
    }

    pub(crate) fn set_stored_at(&mut self, at: Moment) {
        let ms = at.0.min((1 << 48) - 1);
        let [b0, b1, b2, b3, b4, b5, ..] = ms.to_le_bytes();
        self.stored_at_low = u32::from_le_bytes([b0, b1, b2, b3]);
        self.stored_at_high = u16::from_le_bytes([b4, b5]);
    }

    pub(crate) fn place(&mut self, body: Pointer, head: &Head) {
        self.body = body;
        self.sort_key = head.sort_key;
        self.payload_bytes = head.payload_bytes;
        self.header_bytes = head.header_bytes;
        self.set_stored_at(head.moment);
    }
}

impl Line {
    pub(crate) fn class(&self) -> Class {
        match self.slot.stage {
            Stage::Waiting | Stage::Sent | Stage::Received => Class::Open,
            Stage::Answered => Class::Answered,
            Stage::Dead => Class::Dead,
        }
    }

    /// Where the case stands in the order of its class.
    pub(crate) fn rank(&self, key: CaseKey) -> Rank {
        match (self.slot.stage, self.outcome) {
            (Stage::Answered, Some(outcome)) => Rank::by_age(outcome.at, key),
            _ => Rank::by_sort_key(self.slot.sort_key, key),
        }
    }

    pub(crate) fn entry(&self, key: CaseKey) -> Entry {
        let outcome = self.outcome.unwrap_or_default();
        let answered = self.slot.stage == Stage::Answered;
        Entry {
            key,
            sort_key: self.slot.sort_key,
            state: match self.slot.stage {
                Stage::Waiting => State::Waiting,
                Stage::Sent => State::Sent,
                Stage::Received => State::Received,
                Stage::Answered => State::Answered { revision: outcome.revision, delivered: outcome.delivered },
                Stage::Dead => State::Dead,
            },
            payload_bytes: if answered { 0 } else { self.slot.payload_bytes },
            stored_at: self.slot.stored_at(),
            attempts: u32::from(self.slot.attempts),
        }
    }

    /// What the case record still counts for: from `answered` on its payload may go.
    pub(crate) fn body_bytes(&self) -> u64 {
        let payload_bytes = if self.slot.stage == Stage::Answered { 0 } else { self.slot.payload_bytes };
        record_bytes(self.slot.header_bytes, payload_bytes)
    }

    /// What the case counts for in all.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.body_bytes() + self.outcome_bytes()
    }

    pub(crate) fn outcome_bytes(&self) -> u64 {
        self.outcome.map_or(0, |outcome| record_bytes(0, outcome.payload_bytes))
    }

    /// Whether the log needs this segment for the case.
    pub(crate) fn lies_in(&self, segment: u32) -> bool {
        self.slot.body.segment == segment || self.outcome.is_some_and(|outcome| outcome.at.segment == segment)
    }

    pub(crate) fn is_whole(&self) -> bool {
        self.slot.body != Pointer::NOWHERE
    }
}

impl Line {
    pub(crate) fn answer(&mut self, head: &Head, at: Pointer) {
        let known = self.outcome.filter(|_| self.slot.stage == Stage::Answered);
        let stale = known.is_some_and(|known| known.revision > head.count);
        if stale {
            return;
        }
        let same = known.filter(|known| known.revision == head.count);
        let delivered = head.tag | same.map_or(0, |same| same.delivered);
        self.slot.stage = Stage::Answered;
        self.outcome = Some(Outcome { at, payload_bytes: head.payload_bytes, revision: head.count, delivered });
    }

    pub(crate) fn deliver(&mut self, head: &Head) {
        let answered = self.slot.stage == Stage::Answered;
        if let Some(outcome) = self.outcome.as_mut().filter(|outcome| answered && outcome.revision == head.count) {
            outcome.delivered |= sink_bit(head.tag);
        }
    }

    pub(crate) fn die(&mut self, head: &Head, at: Pointer) {
        if head.life > self.slot.life {
            self.slot.stage = Stage::Dead;
            let death = u32::from(head.life);
            self.outcome = Some(Outcome { at, payload_bytes: head.payload_bytes, revision: death, delivered: 0 });
        }
    }

    /// Takes over a later life, or more failed tries of this one; a later life ends being dead.
    pub(crate) fn live_until(&mut self, head: &Head) {
        let attempts = u8::try_from(head.count).unwrap_or(u8::MAX);
        (self.slot.life, self.slot.attempts) = (self.slot.life, self.slot.attempts).max((head.life, attempts));
        let death = self.outcome.filter(|_| self.slot.stage == Stage::Dead).map(|outcome| outcome.revision);
        if death.is_some_and(|death| death <= u32::from(self.slot.life)) {
            self.slot.stage = Stage::Waiting;
            self.outcome = None;
        }
    }
}
