//! A sample on its way from capture to an answer, and why one may be turned away.

use std::sync::Arc;

use bytes::Bytes;
use hedge_inference::{ContentType, Region};
use hedge_proto::{Metadata, Name};

/// Said of a model that nobody gives a threshold, in its answers and its fault.
pub const NO_THRESHOLD: &str =
    "no threshold: give the model one, or put one into the manifest with `hedge-agent bundle calibrate`";

/// Said of a model whose samples may leave the device as embeddings only, and that makes none.
pub const NO_EMBEDDING: &str = "its samples may leave the device as embeddings only, and it makes none, so nothing of \
    them leaves: name an output of it in its manifest (`embedding = \"NAME\"`), or change `payload` or `[privacy]`";

/// One input as a source hands it over. Nothing in it has been decoded yet.
#[derive(Debug, Clone)]
pub struct NewSample {
    /// Names a `[[source]]`; it gives the model and the region.
    pub source: Name,
    /// The application's own name for the sample: the same `ref` is the same sample.
    pub reference: Option<String>,
    pub metadata: Metadata,
    /// Somebody waits for the verdict: its case goes first.
    pub urgent: bool,
    /// The next in a stream of its source, not what somebody sends or lays down: answers to the ones before it say
    /// something of this one's.
    pub frame: bool,
    /// Whose frame it is, if whoever sends it says so. None: the source has one camera.
    pub camera: Option<Name>,
    pub content_type: ContentType,
    pub bytes: Bytes,
    /// The thing in the picture that it is about, if another model has found one; the source's region if not.
    pub view: Option<Region>,
}

/// Why a sample got no answer. Each is the sender's to act on: the text says what was wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    #[error("there is no source named `{0}`; the configuration names: {1}")]
    UnknownSource(String, String),
    /// The bytes are not what they say, or not what the model takes.
    #[error("{0}")]
    Unusable(String),
    #[error("{bytes} bytes are more than the {bytes_max} a sample may have")]
    TooLarge { bytes: u64, bytes_max: u64 },
    #[error("metadata has {bytes} bytes as JSON, more than the {bytes_max} allowed")]
    MetadataTooLarge { bytes: usize, bytes_max: usize },
    #[error("ref `{0}` names another sample already: this one has other content; give each sample a ref of its own")]
    OtherContent(String),
    /// Samples arrive faster than the model answers.
    #[error("more samples are waiting for model `{0}` than it can answer soon; send again later")]
    Overloaded(String),
    /// The model cannot answer at all (not loaded, or ONNX Runtime failed).
    #[error("model `{model}` cannot answer: {reason}")]
    ModelFailed { model: String, reason: Arc<str> },
    /// The model, or what it needs, is not there yet; it is looked for again and again.
    #[error("model `{model}` is not loaded: {reason}")]
    NoModel { model: String, reason: Arc<str> },
    /// Nobody has given the model one yet; settings may at any time.
    #[error("model `{model}` cannot answer yet: {}", NO_THRESHOLD)]
    NoThreshold { model: String },
    /// By the settings, or by an operator's command.
    #[error("source `{0}` takes no samples now: it is off or paused")]
    SourceOff(String),
    /// Only where samples are handed to an agent from outside it.
    #[error("the agent cannot be asked: {0}")]
    Unreachable(String),
    #[error("the agent is stopping")]
    Stopping,
}
