//! What has passed through this cloud in its life.

use serde::{Deserialize, Serialize};

/// Counts since the records began. They only grow, except `waiting` and `payload_bytes`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Cases on record, ever.
    pub cases: u64,
    /// Cases that have a verdict.
    pub answered: u64,
    /// Verdicts that say the same as the device, and those that do not.
    pub agreed: u64,
    pub disagreed: u64,
    /// Cases without a verdict that will get one; those of tasks without a model included.
    pub waiting: u64,
    /// Cases the model could not answer (they may be tried again), and those that never will be.
    pub failed: u64,
    pub dead: u64,
    /// Cases that came again and were answered from the records.
    pub repeated: u64,
    /// Cases turned away: another payload under a known id, a foreign device's id, a wrong version or hash.
    pub refused: u64,
    /// Messages that could not be read at all.
    pub malformed: u64,
    /// Messages of a later version than this program reads: their devices are told to wait.
    pub newer: u64,
    /// Cases turned away because too many are waiting or the records cannot be written.
    pub busy: u64,
    /// Payload bytes taken in, ever; and those still kept.
    pub received_bytes: u64,
    pub payload_bytes: u64,
}
