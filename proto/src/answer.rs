//! What an application gets: the local answer now, a correction under the same id later.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{Authority, Captured, CaseId, Doubt, LinkState, Metadata, ModelRef, Output, Reason, Rect, ThresholdMode};

/// Whether the device stood by its answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Keep,
    Defer,
}

/// A decision in numbers and one sentence.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Explanation {
    pub outcome: Outcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Whether it was drawn as a spot check, by chance and whatever the answer.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub check: bool,
    /// How sure the answer is: the best class' score, the average box's; absent when unusable.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub score: Option<f32>,
    /// How probable it is that the cloud says the same, by what it said of answers as sure as this. Absent before it
    /// has said enough.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub agreement: Option<f32>,
    #[serde(default, skip_serializing_if = "Doubt::is_none")]
    pub doubt: Doubt,
    /// What that score had to reach.
    pub threshold: f32,
    pub mode: ThresholdMode,
    /// What would have changed the decision.
    pub because: String,
}

/// Why a case was not taken into the outbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Refusal {
    /// The outbox is at its cap and the case is worth less than all it holds.
    Full,
    /// The disk is at its reserve, or refuses writes.
    Disk,
    /// The payload is larger than the outbox takes.
    TooLarge,
    /// More cases arrive than can be written.
    Overloaded,
    /// The agent is stopping.
    Stopping,
}

impl Refusal {
    /// For people.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::Full => "it is full, and the case is worth less than all it holds",
            Self::Disk => "the disk is at its reserve, or refuses writes",
            Self::TooLarge => "the payload is larger than it takes",
            Self::Overloaded => "more cases arrive than can be written",
            Self::Stopping => "the agent is stopping",
        }
    }
}

/// What has become of a deferred sample's case: by the time the answer was given, and for whoever asks later, by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CaseFate {
    /// On disk: it survives a power cut.
    Stored,
    /// Not yet on disk.
    Pending,
    Refused(Refusal),
    /// A dead letter: the cloud or the device gave it up. No correction comes unless it is queued again.
    Dead,
    /// Ended without a verdict: by an operator, or because it waited too long or gave way to others.
    Dropped,
}

/// A thing found in a picture that another model was asked about: a sample and an answer of its own.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Crop {
    pub id: CaseId,
    pub source: String,
    pub view: Rect,
    /// What was said at once; corrections come under its own id.
    #[serde(default, rename = "result", skip_serializing_if = "Option::is_none")]
    pub said: Option<Output>,
    pub provisional: bool,
}

/// An answer to one sample: revision 0 is the device's own, higher ones are corrections.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Answer {
    pub id: CaseId,
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub source: String,
    pub task: String,
    pub revision: u32,
    pub authority: Authority,
    pub model: ModelRef,
    /// Absent when the local model's output was unusable.
    #[serde(default, rename = "result", skip_serializing_if = "Option::is_none")]
    pub said: Option<Output>,
    /// A correction may still follow.
    pub provisional: bool,
    /// For a correction: whether it says something else than the local answer.
    #[serde(default)]
    pub changed: bool,
    pub decision: Explanation,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub case: Option<CaseFate>,
    pub link: LinkState,
    pub captured: Captured,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
    /// With the device's own answer, the things found in the picture that other models were asked about.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub crops: Vec<Crop>,
}

impl Answer {
    /// The key under which a repeated delivery is recognised: `id/revision`.
    #[must_use]
    pub fn idempotency_key(&self) -> String {
        alloc::format!("{}/{}", self.id, self.revision)
    }
}
