//! What goes into the outbox and what comes out of it.

use std::path::PathBuf;

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_core::outbox::WhenFull;
use hedge_core::uplink::Waiting;
use hedge_proto::{CaseKey, Refusal};

/// How much the outbox takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub cases_max: u64,
    /// Of all cases together as they lie in the log, headers included.
    pub bytes_max: u64,
    /// New cases are refused while the disk has less than this free.
    pub free_bytes_min: u64,
    pub payload_bytes_max: u64,
    /// What happens to a new case that `cases_max` or `bytes_max` leaves no room for.
    pub when_full: WhenFull,
}

/// A case to be stored.
#[derive(Debug, Clone)]
pub struct NewCase {
    pub key: CaseKey,
    /// The highest is fetched first; never changes.
    pub sort_key: f64,
    pub stored_at: Moment,
    /// Everything about the case but its payload, as the caller writes it; at most
    /// [`HEADER_BYTES_MAX`](super::HEADER_BYTES_MAX).
    pub header: Vec<u8>,
    pub payload: Bytes,
}

/// How many sinks can be told apart: each has a bit in [`State::Answered`].
pub const SINKS_MAX: u8 = 16;

/// The bit of sink `number`; none if there can be no such sink.
pub(crate) fn sink_bit(number: u16) -> u16 {
    1u16.checked_shl(number.into()).unwrap_or(0)
}

/// How far a case has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum State {
    Waiting,
    /// Sent once in full: the cloud is asked before it is sent again.
    Sent,
    /// The cloud has said that it has it.
    Received,
    /// The verdict is on disk; bit `n` of `delivered` is set once sink `n` has it.
    Answered {
        revision: u32,
        delivered: u16,
    },
    /// Kept for inspection, never sent.
    Dead,
}

impl State {
    /// Whether a verdict is still awaited.
    #[must_use]
    pub fn is_open(self) -> bool {
        matches!(self, Self::Waiting | Self::Sent | Self::Received)
    }

    #[must_use]
    pub fn is_answered(self) -> bool {
        matches!(self, Self::Answered { .. })
    }
}

/// How far sending an open case has come. Forgotten when the queue has to be rebuilt.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Progress {
    Waiting,
    Sent,
    Received,
}

/// One line of the queue.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Entry {
    pub key: CaseKey,
    pub sort_key: f64,
    pub state: State,
    /// 0 once the case is answered.
    pub payload_bytes: u32,
    pub stored_at: Moment,
    /// Tries that failed since it was stored or queued again.
    pub attempts: u32,
}

impl Entry {
    /// The case as the engine knows it.
    #[must_use]
    pub fn waiting(&self) -> Waiting {
        Waiting {
            key: self.key,
            sort_key: self.sort_key,
            stored_at: self.stored_at,
            payload_bytes: self.payload_bytes,
            sent: self.state != State::Waiting,
            urgent: false,
        }
    }
}

/// A case as it was stored, with what has been learnt since.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StoredCase {
    pub header: Vec<u8>,
    /// Empty once the case is answered.
    pub payload: Bytes,
    pub attempts: u32,
    pub verdict: Option<Vec<u8>>,
    /// Why it is a dead letter, if it is one.
    pub dead: Option<String>,
}

/// What a verdict did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Applied {
    /// It is on disk and goes to the sinks.
    New,
    /// The case had this revision or a higher one, or this is no verdict. Nothing changed.
    Late,
    /// There is no such case.
    Unknown,
}

/// What the outbox holds now.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Cases without a verdict.
    pub waiting: u64,
    pub waiting_bytes: u64,
    /// Cases whose verdict some sink may not have yet.
    pub answered: u64,
    pub dead: u64,
    /// All live records, headers included: what `bytes_max` caps.
    pub live_bytes: u64,
    /// The log and the queue together.
    pub disk_bytes: u64,
    /// Bytes appended to the log since the start, copies included.
    pub written_bytes: u64,
    /// Damaged records found since the start, those of the opening included.
    pub damaged_records: u64,
    /// The oldest case without a verdict, to the second.
    pub oldest_stored_at: Option<Moment>,
    /// The queue on disk cannot be written; order is kept in memory until it can.
    pub queue_broken: bool,
}

/// Cases that were taken out without anybody asking for it, since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Drops {
    /// They gave way to cases worth more.
    pub evicted: u64,
    /// They waited too long, or were dead letters for so long.
    pub expired: u64,
    /// Their verdict was here, and some sink did not take it for too long.
    pub undelivered: u64,
}

/// What was found when the outbox was opened.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct OpenReport {
    pub cases: u64,
    /// The queue was missing, damaged or too old, and is being made anew from the log.
    pub rebuilt: bool,
    /// The queue was moved aside because it was damaged.
    pub queue_damaged: bool,
    /// Bytes cut off the end of the log: never said to be stored.
    pub torn_bytes: u64,
    /// Records that were skipped because their bytes have changed.
    pub damaged_records: u64,
    /// Whole segments moved aside because their file headers cannot be read.
    pub damaged_segments: u64,
    /// The greatest time in the log.
    pub clock: Option<Moment>,
}

/// Why the outbox cannot be opened. Damage is never a reason.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("the outbox in {} is in use by another process; stop it first", .0.display())]
    InUse(PathBuf),
    #[error(
        "log segment {segment} has format {format}, newer than this version reads; install the newer version again"
    )]
    Newer { segment: u32, format: u16 },
    #[error("the outbox in {} cannot be opened: {source}", .path.display())]
    Io { path: PathBuf, source: std::io::Error },
}

/// Why something was not written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    #[error("the outbox refuses the case: {}", .0.sentence())]
    Refused(Refusal),
    #[error("there is no such case in the outbox")]
    Unknown,
    #[error("the disk refuses to take it: {0}")]
    Disk(String),
    #[error("the outbox is closed")]
    Stopping,
}

impl StoreError {
    pub(crate) fn into_refusal(self) -> Refusal {
        match self {
            Self::Refused(refusal) => refusal,
            Self::Unknown | Self::Disk(_) => Refusal::Disk,
            Self::Stopping => Refusal::Stopping,
        }
    }
}

/// Why nothing can be stored now.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Trouble {
    /// The disk refuses it; it is tried again with each case.
    #[error("the disk refuses to take it: {0}")]
    Refused(String),
    /// What was stored is kept there, and can be used when it is back.
    #[error(
        "its folder was moved away, or its file system is not mounted there any more; put it back, or restart the agent to \
         begin with an empty one"
    )]
    Elsewhere,
    /// What was stored is gone.
    #[error("its folder or its files were deleted, replaced or written to while the agent ran")]
    Gone,
}

/// Why a stored case could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    #[error("the case was damaged on disk")]
    Damaged,
    #[error("the case cannot be read now: {0}")]
    Io(#[from] std::io::Error),
}
