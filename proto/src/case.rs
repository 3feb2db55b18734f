//! A case: a sample the device is not sure about, on its way to the cloud.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_bytes::ByteBuf;

use crate::{CaseId, Digest, Doubt, ModelRef, Output, Reason, Rect, output};

/// What an application attached to its sample: at most [`crate::METADATA_BYTES_MAX`] as JSON.
pub type Metadata = BTreeMap<String, String>;

/// When a sample was taken. Wall time is for people; nothing is decided by it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Captured {
    /// Milliseconds on the device's powered clock: the time it has been switched on in its life.
    pub powered_ms: u64,
    /// Which boot of the device, as it names its boots.
    pub boot: String,
    /// Milliseconds since 1970 UTC as the device believed then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub wall_ms: Option<u64>,
    /// Whether that clock was known to be right.
    pub synced: bool,
}

/// How much of the sample travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum PayloadForm {
    /// Only what describes it: scores, source, time, metadata. The cloud lets the device's own answer stand.
    Nothing,
    /// The numbers of the model's output that its bundle calls `embedding`, as a tensor.
    Embedding,
    Thumbnail,
    Crop,
    Whole,
}

/// More of a sample than came with its case: the device keeps it, and sends it when the cloud says
/// [`send`](crate::DownMessage::Send).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Offer {
    pub form: PayloadForm,
    pub payload_sha256: Digest,
    pub payload_bytes: u64,
}

/// Who set the threshold the decision was made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ThresholdMode {
    /// The operator's numbers.
    Fixed,
    /// Steered to a budget of deferrals.
    Budget,
    /// Steered to a bound on the error.
    Target,
}

/// Why the device asks, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct CaseDecision {
    pub reason: Reason,
    /// Whether it was drawn as a spot check. It may have another reason beside.
    #[serde(default, skip_serializing_if = "core::ops::Not::not")]
    pub check: bool,
    /// What the answer had to reach.
    pub threshold: f32,
    pub mode: ThresholdMode,
}

/// One deferred sample. The device's log keeps it without its payload, which lies beside it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Case {
    /// The lowest version of the wire that carries it: [`Output::wire_version`] of what it says.
    pub v: u16,
    pub id: CaseId,
    /// The application's own name for the sample: the same `ref` is the same sample.
    #[serde(default, rename = "ref", skip_serializing_if = "Option::is_none")]
    pub reference: Option<String>,
    pub source: String,
    /// Which question is asked; the cloud picks its model by this name.
    pub task: String,
    pub labels_hash: Digest,
    pub model: ModelRef,
    /// What the local model says; nothing when its output was unusable.
    #[serde(rename = "scores", with = "output::said")]
    #[cfg_attr(test, schemars(with = "output::said::Said"))]
    pub said: Option<Output>,
    #[serde(default, skip_serializing_if = "Doubt::is_none")]
    pub doubt: Doubt,
    /// The part of the picture that was judged, if not all of it. The payload is the whole picture, unless its form is
    /// `crop`: then it is this part.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub view: Option<Rect>,
    pub decision: CaseDecision,
    pub settings_version: u64,
    pub captured: Captured,
    pub form: PayloadForm,
    /// Of the sample, also when none of it travels.
    pub content_type: String,
    /// Of no bytes when the form is `nothing`: a sum of the sample would tell whoever has the same picture.
    pub payload_sha256: Digest,
    /// Absent in the log, and when the payload travels by HTTPS under its hash.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[cfg_attr(test, schemars(with = "Option<alloc::string::String>"))]
    pub payload: Option<ByteBuf>,
    /// What more of the sample is to be had. Readers that do not know it answer from what came.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offer: Option<Offer>,
    #[serde(default, skip_serializing_if = "Metadata::is_empty")]
    pub metadata: Metadata,
}

/// What a device publishes on `up/case`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CaseMessage {
    Case(Box<Case>),
    /// First sends of small cases only, at most [`crate::BATCH_CASES_MAX`].
    Batch(Vec<Case>),
    /// What has become of these cases? Asked instead of sending a payload twice.
    Ask {
        ids: Vec<CaseId>,
    },
}
