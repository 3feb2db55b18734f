//! Tasks, results and why a sample is sent on.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::Digest;

/// Which model, in which version, gave a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelRef {
    pub name: String,
    pub version: String,
}

/// One class and its probability.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LabelScore {
    pub label: String,
    /// In [0, 1].
    pub score: f32,
}

/// A rectangle in fractions of the picture's width and height.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Box2d {
    pub left: f32,
    pub top: f32,
    pub width: f32,
    pub height: f32,
}

/// What a model (or a person) says about one sample.
///
/// Results compare by label *names*, never by indexes: two models of one task may order them differently.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum TaskResult {
    Classify {
        label: String,
        /// Best first, at most [`crate::SCORES_MAX`].
        scores: Vec<LabelScore>,
    },
    Detect {
        boxes: Vec<Box2d>,
        labels: Vec<String>,
        scores: Vec<f32>,
    },
    Regress {
        values: Vec<f32>,
    },
}

impl TaskResult {
    /// Whether both say the same. Scores may differ; for boxes and values nothing is rounded.
    #[must_use]
    pub fn agrees_with(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Classify { label: a, .. }, Self::Classify { label: b, .. }) => a == b,
            (Self::Detect { labels: a, boxes: p, .. }, Self::Detect { labels: b, boxes: q, .. }) => a == b && p == q,
            (Self::Regress { values: a }, Self::Regress { values: b }) => a == b,
            _ => false,
        }
    }

    /// A short text for lists and logs of people's own devices: the label, or how much was found.
    #[must_use]
    pub fn headline(&self) -> String {
        match self {
            Self::Classify { label, .. } => label.clone(),
            Self::Detect { labels, .. } => alloc::format!("{} found", labels.len()),
            Self::Regress { values } => alloc::format!("{values:?}"),
        }
    }
}

/// Why a sample is sent to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The best score is below the threshold.
    LowScore,
    /// The two best classes are too close.
    Margin,
    /// The scores are spread over too many classes.
    Entropy,
    /// The input does not look like what the model knows.
    OutOfDistribution,
    /// A confident answer, sent anyway so that error can be measured.
    SpotCheck,
    /// The operator's settings send it whatever the scores.
    Policy,
    /// The model's output cannot be read as scores (NaN, empty, not normalised).
    Unusable,
}

impl Reason {
    /// As it is written in JSON.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::LowScore => "low_score",
            Self::Margin => "margin",
            Self::Entropy => "entropy",
            Self::OutOfDistribution => "out_of_distribution",
            Self::SpotCheck => "spot_check",
            Self::Policy => "policy",
            Self::Unusable => "unusable",
        }
    }
}

/// Names a label list: SHA-256 over the labels, each ended by a newline.
#[must_use]
pub fn labels_hash<L: AsRef<str>>(labels: &[L]) -> Digest {
    let mut sum = Sha256::new();
    for label in labels {
        sum.update(label.as_ref().as_bytes());
        sum.update(b"\n");
    }
    Digest(sum.finalize().into())
}
