//! Keeps what the cloud knows: cases, their payloads, verdicts, devices, totals.
//!
//! One [`Writer`] owns all changes and groups them into durable commits; any number of [`Reader`]s look
//! at what is committed. What a message means, who may send it and what is answered is decided elsewhere;
//! nothing here knows MQTT or a model.
//!
//! Crash rule: SQLite in WAL mode with `synchronous = FULL`, so what a commit returned for survives a power
//! cut. A case, its payload and the totals change in one transaction.

mod checkpoint;
mod reader;
mod review;
mod schema;
#[cfg(test)]
pub(crate) mod testing;
mod totals;
mod writer;

pub use reader::{CaseRow, DeviceEvent, DeviceRow, Reader, SettingsRow};
pub use review::{CaseList, Closed, Place, Sought};
pub use totals::Totals;
pub use writer::{Batch, EVENTS_PER_DEVICE_MAX, Keep, Waiting, Writer};

use std::path::PathBuf;

use hedge_proto::{Digest, Verdict};

/// The database's file name in the state directory.
pub const FILE_NAME: &str = "records.sqlite";

/// Why the records cannot be read or written.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("the records in {path} cannot be opened: {source}")]
    Open { path: PathBuf, source: rusqlite::Error },
    #[error(
        "the records in {path} have layout {found}, newer than the {known} this version reads; start the newer version"
    )]
    Newer { path: PathBuf, found: i64, known: i64 },
    #[error("the records cannot be read or written: {0}")]
    Sql(#[from] rusqlite::Error),
    /// A row that this program did not write like this.
    #[error("a record is damaged: {0}")]
    Damaged(String),
}

/// What is on record about one case.
#[derive(Debug, Clone, PartialEq)]
pub struct Known {
    pub payload_sha256: Digest,
    pub standing: Standing,
}

/// How far a case has come here.
#[derive(Debug, Clone, PartialEq)]
pub enum Standing {
    /// Recorded, not answered yet.
    Waiting,
    /// The verdict of the highest revision.
    Answered(Verdict),
    /// The model could not; it may be tried again.
    Failed(String),
    /// It will never be answered.
    Dead(String),
}

/// How [`Standing`] is written in the `state` column.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    Waiting = 0,
    Answered = 1,
    Failed = 2,
    Dead = 3,
}

impl State {
    fn read(number: i64) -> Result<Self, StoreError> {
        Ok(match number {
            0 => Self::Waiting,
            1 => Self::Answered,
            2 => Self::Failed,
            3 => Self::Dead,
            other => return Err(StoreError::Damaged(format!("state {other}"))),
        })
    }
}

fn damaged(error: impl std::fmt::Display) -> StoreError {
    StoreError::Damaged(error.to_string())
}

/// SQLite's integers are signed; none of our counts comes near the difference.
fn sql(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

fn count(number: i64) -> u64 {
    u64::try_from(number).unwrap_or(0)
}
