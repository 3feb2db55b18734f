//! What has passed through this cloud in its life.

use serde::{Deserialize, Serialize};

/// Counts since the records began. What is `i64` does not only grow, and of one instance alone may be
/// below zero: one closes, or a person corrects there, what another has counted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Totals {
    /// Cases on record, ever.
    pub cases: u64,
    /// Cases that have a verdict.
    pub answered: u64,
    /// Verdicts that say the same as the device, and those that do not.
    pub agreed: i64,
    pub disagreed: i64,
    /// Cases without a verdict that will get one; those of tasks without a model included.
    pub waiting: i64,
    /// Cases the model could not answer (they may be tried again), and those that never will be.
    pub failed: i64,
    pub dead: i64,
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
    pub payload_bytes: i64,
}

impl Totals {
    /// Of all instances together.
    pub(super) fn sum(all: impl IntoIterator<Item = Self>) -> Self {
        let sum = all.into_iter().fold(Self::default(), |sum, one| Self {
            cases: sum.cases + one.cases,
            answered: sum.answered + one.answered,
            agreed: sum.agreed + one.agreed,
            disagreed: sum.disagreed + one.disagreed,
            waiting: sum.waiting + one.waiting,
            failed: sum.failed + one.failed,
            dead: sum.dead + one.dead,
            repeated: sum.repeated + one.repeated,
            refused: sum.refused + one.refused,
            malformed: sum.malformed + one.malformed,
            newer: sum.newer + one.newer,
            busy: sum.busy + one.busy,
            received_bytes: sum.received_bytes + one.received_bytes,
            payload_bytes: sum.payload_bytes + one.payload_bytes,
        });
        // Records of before this was counted exactly may be a few short.
        Self {
            agreed: sum.agreed.max(0),
            disagreed: sum.disagreed.max(0),
            waiting: sum.waiting.max(0),
            failed: sum.failed.max(0),
            dead: sum.dead.max(0),
            payload_bytes: sum.payload_bytes.max(0),
            ..sum
        }
    }
}
