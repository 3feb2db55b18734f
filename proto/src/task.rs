//! Models, their labels and why a sample is sent on.

use alloc::string::String;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::{Digest, Measure};

/// Which model, in which version, gave a result.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ModelRef {
    pub name: String,
    pub version: String,
}

/// Why a sample is sent to the cloud.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Reason {
    /// The best class, or the average box, scores below the threshold.
    LowScore,
    /// The two best classes are too close.
    Margin,
    /// The scores are spread over too many classes.
    Entropy,
    /// Boxes, by their measure of doubt.
    ExpectedLoss,
    Errors,
    AnyError,
    CountGap,
    /// The input does not look like what the model knows.
    OutOfDistribution,
    /// A confident answer, sent anyway so that error can be measured.
    SpotCheck,
    /// The operator's settings send it whatever the scores.
    Policy,
    /// The model's output cannot be read (NaN, empty, not normalised).
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
            Self::ExpectedLoss => "expected_loss",
            Self::Errors => "errors",
            Self::AnyError => "any_error",
            Self::CountGap => "count_gap",
            Self::OutOfDistribution => "out_of_distribution",
            Self::SpotCheck => "spot_check",
            Self::Policy => "policy",
            Self::Unusable => "unusable",
        }
    }
}

impl From<Measure> for Reason {
    fn from(measure: Measure) -> Self {
        match measure {
            Measure::Score | Measure::MeanShown => Self::LowScore,
            Measure::Margin => Self::Margin,
            Measure::Entropy => Self::Entropy,
            Measure::ExpectedLoss => Self::ExpectedLoss,
            Measure::Errors => Self::Errors,
            Measure::AnyError => Self::AnyError,
            Measure::CountGap => Self::CountGap,
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
