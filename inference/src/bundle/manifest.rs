//! `manifest.toml` as people write it, checked while it is read.
//!
//! Every field that cannot be meant is refused here in the words of the file. What needs the other files of
//! the bundle (labels, sums) is checked by [`super::Bundle::open`].

use std::collections::BTreeMap;

use hedge_core::judge::Limits;
use hedge_proto::{Digest, Found, Measure, Name, Share};
use serde::Deserialize;

use crate::features::Input;
use crate::inside::BundleFile;
use crate::task::{Kind, Reading};

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    pub name: Name,
    pub version: Name,
    /// Which question the model answers. The cloud picks its own model by this name.
    pub task: Name,
    pub kind: Kind,
    /// A text file, one label per line, in the order of the model's outputs. Without it the classes have numbers.
    pub labels: Option<BundleFile>,
    pub input: Input,
    pub output: Reading,
    /// Another output of the model: how probable it finds it that its answer is right.
    pub confidence: Option<String>,
    /// Another output: numbers that may leave the device in the place of the sample, for a model in the cloud that takes them.
    pub embedding: Option<String>,
    pub threshold: Option<SuggestedThreshold>,
    pub ranking: Option<Ranking>,
    /// The first one is used unless another is asked for.
    #[serde(rename = "variant")]
    pub variants: Vec<Variant>,
    /// Own label → the cloud's word for the same thing; labels not named here are the same on both sides.
    #[serde(default)]
    pub cloud_labels: BTreeMap<String, String>,
    #[serde(default, rename = "golden")]
    pub goldens: Vec<Golden>,
}

/// One file with the weights. Variants differ in speed and size, not in what they were taught.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Variant {
    pub name: Name,
    pub file: BundleFile,
    pub sha256: Digest,
    pub bytes: u64,
}

/// A sample whose answer is known: a model that gives another one is not set up as it was.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Golden {
    pub file: BundleFile,
    /// The expected best label; of a classifier.
    pub label: Option<String>,
    /// Its probability by variant, before the temperature, so that a new calibration leaves it true.
    #[serde(default)]
    pub scores: BTreeMap<String, f32>,
    /// What is to be found, by variant; of a detector.
    #[serde(default)]
    pub found: BTreeMap<String, Vec<Found>>,
}

/// How well doubt tells wrong answers from right ones, as `bundle calibrate` has found it on labelled samples.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranking {
    pub samples: u32,
    /// By the score.
    pub score: Ranked,
    /// By what the model itself says, if it does.
    pub confidence: Option<Ranked>,
}

/// The area under a ROC curve: how probable it is that a wrong answer is more doubtful than a right one.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ranked {
    pub auroc: f32,
    /// With 95 % confidence.
    pub within: (f32, f32),
}

/// What the maker of the bundle suggests an answer should reach; the operator's own numbers win.
#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(try_from = "ThresholdFields")]
pub struct SuggestedThreshold(pub Limits);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ThresholdFields {
    score_min: f32,
    #[serde(default)]
    margin_min: f32,
    #[serde(default = "any_entropy")]
    entropy_max: f32,
    /// The most doubt by measure.
    #[serde(default)]
    doubt_max: BTreeMap<String, Share>,
}

fn any_entropy() -> f32 {
    1.0
}

impl TryFrom<ThresholdFields> for SuggestedThreshold {
    type Error = String;

    fn try_from(fields: ThresholdFields) -> Result<Self, String> {
        let limits = Limits::new(fields.score_min, fields.margin_min, fields.entropy_max);
        let mut limits = limits.map_err(|error| error.to_string())?;
        for (name, most) in fields.doubt_max {
            // What a device has learned is no bundle's.
            let measures = Measure::ALL.iter().filter(|measure| **measure != Measure::Learned);
            let measure = measures.clone().find(|measure| measure.name() == name).ok_or_else(|| {
                let known: Vec<&str> = measures.map(|measure| measure.name()).collect();
                format!("`doubt_max.{name}` is no measure; there are: {}", known.join(", "))
            })?;
            limits = limits.at_most(*measure, most);
        }
        Ok(Self(limits))
    }
}
