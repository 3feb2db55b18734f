//! Cases whose keys lie side by side, as they are kept in memory and in the queue on disk.
//!
//! 100,000 cases of 1 KiB cost 40 MiB of memory when each had an entry of its own in sled, and 12 MiB in blocks.

use hedge_core::clock::Moment;
use hedge_proto::{CaseKey, Epoch};

use super::line::{Outcome, Slot, Stage};
use super::log::Pointer;

/// The sequence numbers of one block: with 32 bytes a case, or 49 with a verdict, it stays below the 16 KiB from
/// which sled would make it a file of its own. In tests few, so that short ones see several.
pub(crate) const CASES: u64 = if cfg!(test) { 4 } else { 128 };

/// Which block.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct BlockId {
    epoch: Epoch,
    number: u64,
}

impl BlockId {
    pub(crate) fn of(key: CaseKey) -> Self {
        Self { epoch: key.epoch, number: key.sequence / CASES }
    }

    pub(crate) fn key(self, index: u8) -> CaseKey {
        CaseKey { epoch: self.epoch, sequence: self.number.wrapping_mul(CASES).wrapping_add(u64::from(index)) }
    }

    pub(crate) fn to_bytes(self) -> [u8; 16] {
        CaseKey { epoch: self.epoch, sequence: self.number }.to_bytes()
    }

    pub(crate) fn from_bytes(bytes: [u8; 16]) -> Self {
        let CaseKey { epoch, sequence } = CaseKey::from_bytes(bytes);
        Self { epoch, number: sequence }
    }
}

/// The cases of one block that there are, in the order of their keys.
#[derive(Debug, Default)]
pub(crate) struct Block(Vec<Slot>);

impl Block {
    pub(crate) fn get(&self, key: CaseKey) -> Option<&Slot> {
        self.place(key).ok().and_then(|at| self.0.get(at))
    }

    pub(crate) fn put(&mut self, key: CaseKey, mut slot: Slot) {
        slot.index = index(key);
        match self.place(key) {
            Ok(at) => self.0[at] = slot,
            Err(at) => self.0.insert(at, slot),
        }
    }

    /// Returns whether it is empty now.
    pub(crate) fn remove(&mut self, key: CaseKey) -> bool {
        if let Ok(at) = self.place(key) {
            self.0.remove(at);
            if self.0.len() < self.0.capacity() / 4 {
                self.0.shrink_to_fit();
            }
        }
        self.0.is_empty()
    }

    pub(crate) fn slots(&self) -> &[Slot] {
        &self.0
    }

    fn place(&self, key: CaseKey) -> Result<usize, usize> {
        self.0.binary_search_by_key(&index(key), |slot| slot.index)
    }
}

fn index(key: CaseKey) -> u8 {
    (key.sequence % CASES) as u8
}

/// Appends a slot and its outcome as they lie in the queue on disk.
pub(crate) fn encode(slot: &Slot, outcome: Option<Outcome>, bytes: &mut Vec<u8>) {
    bytes.extend([slot.index, slot.stage as u8, slot.attempts, slot.life]);
    bytes.extend(slot.header_bytes.to_le_bytes());
    bytes.extend(&slot.stored_at().0.to_le_bytes()[..6]);
    bytes.extend(slot.sort_key.to_le_bytes());
    bytes.extend(slot.body.segment.to_le_bytes());
    bytes.extend(slot.body.offset.to_le_bytes());
    bytes.extend(slot.payload_bytes.to_le_bytes());
    if slot.stage.has_outcome() {
        let outcome = outcome.unwrap_or_default();
        bytes.extend(outcome.at.segment.to_le_bytes());
        bytes.extend(outcome.at.offset.to_le_bytes());
        bytes.extend(outcome.payload_bytes.to_le_bytes());
        bytes.extend(outcome.revision.to_le_bytes());
        bytes.extend(outcome.delivered.to_le_bytes());
    }
}

/// Takes what [`encode`] wrote from the front.
pub(crate) fn decode(fields: &mut Fields<'_>) -> Option<(Slot, Option<Outcome>)> {
    let mut slot = Slot::empty();
    let stage: u8;
    [slot.index, stage, slot.attempts, slot.life] = fields.take()?;
    slot.stage = Stage::from_byte(stage)?;
    slot.header_bytes = u16::from_le_bytes(fields.take()?);
    let [s0, s1, s2, s3, s4, s5] = fields.take()?;
    slot.set_stored_at(Moment(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, 0, 0])));
    slot.sort_key = f64::from_le_bytes(fields.take()?);
    slot.body = fields.pointer()?;
    slot.payload_bytes = fields.u32()?;
    let outcome = if slot.stage.has_outcome() {
        let (at, payload_bytes, revision) = (fields.pointer()?, fields.u32()?, fields.u32()?);
        let delivered = u16::from_le_bytes(fields.take()?);
        Some(Outcome { at, payload_bytes, revision, delivered })
    } else {
        None
    };
    Some((slot, outcome))
}

/// Bytes that are taken from the front.
pub(crate) struct Fields<'a>(pub(crate) &'a [u8]);

impl Fields<'_> {
    pub(crate) fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }

    pub(crate) fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_le_bytes)
    }

    pub(crate) fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_le_bytes)
    }

    pub(crate) fn pointer(&mut self) -> Option<Pointer> {
        Some(Pointer { segment: self.u32()?, offset: self.u32()? })
    }
}
