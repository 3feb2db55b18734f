//! What a model says: its outputs by name in, one [`Output`] and its [`Doubt`] out.
//!
//! [`Task::read`] is the only place that knows what a model's numbers mean: the agent, the cloud, the golden check and
//! every command ask here. A kind of answer is one file here. What the doubt leads to is up to `hedge_core::judge`.

mod classify;
mod detect;

use std::borrow::Cow;
use std::collections::BTreeMap;

use hedge_proto::{Doubt, Measure, Output, Rect};
use serde::Deserialize;

pub use classify::{ClassScore, Classify, OutputKind, Scores, Temperature};
pub use detect::Detect;

use crate::features::Tensor;

/// What a model gave, by the names of its outputs.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Tensors(pub Vec<(String, Tensor)>);

impl Tensors {
    pub fn get(&self, name: &str) -> Result<&Tensor, Unusable> {
        let found = self.0.iter().find(|(own, _)| own == name);
        found.map(|(_, tensor)| tensor).ok_or_else(|| Unusable::Missing { name: name.to_owned() })
    }
}

/// Why a model's output cannot be read. The sample is deferred, never answered from such output.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum Unusable {
    #[error("the model gave no output `{name}`")]
    Missing { name: String },
    #[error("the model's output is empty")]
    Empty,
    #[error("the model's output holds NaN or infinity")]
    NotFinite,
    #[error(
        "the output adds up to {sum:.3}, not {whole}; if it holds logits, say `output.kind = \"logits\"` in the manifest"
    )]
    NotNormalised { sum: f32, whole: f32 },
    #[error("the output holds the score {score:.3}, outside 0 to {whole}")]
    OutOfRange { score: f32, whole: f32 },
    #[error("the model gave {values} values for {labels} labels; the label file belongs to another model")]
    Classes { values: usize, labels: usize },
    #[error(
        "the output `{name}` gave {gave}; `confidence` must be one number from 0 to 1, how probably the answer is right"
    )]
    Confidence { name: String, gave: String },
    #[error("the output `{name}` has the shape {shape:?}, which is no table of {wanted}")]
    Shape { name: String, shape: Vec<usize>, wanted: String },
}

/// How a model's outputs are read: `[output]` of its manifest.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "Fields")]
pub enum Reading {
    Classes(Classify),
    Boxes(Box<Detect>),
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: Option<String>,
    kind: Option<classify::KindWord>,
    temperature: Option<f32>,
    boxes: Option<detect::BoxColumns>,
    scores: Option<detect::ScoreColumns>,
    classes: Option<detect::ClassColumn>,
    count: Option<String>,
    shown_min: Option<hedge_proto::Share>,
    #[serde(default)]
    shown: BTreeMap<String, hedge_proto::Share>,
    iou_max: Option<hedge_proto::Share>,
}

impl TryFrom<Fields> for Reading {
    type Error = String;

    fn try_from(fields: Fields) -> Result<Self, String> {
        let Fields { name, kind, temperature, boxes, scores, classes, count, shown_min, shown, iou_max } = fields;
        match (name, kind, boxes, scores) {
            (Some(name), Some(kind), None, None) => Ok(Self::Classes(Classify { name, kind: kind.with(temperature)? })),
            (None, None, Some(boxes), Some(scores)) => {
                if temperature.is_some() {
                    return Err("`temperature` is for classes only; remove it".into());
                }
                let shown_min = shown_min.ok_or("`shown_min` is missing: the score from which a box is shown")?;
                let columns = (boxes, scores, classes);
                Ok(Self::Boxes(Box::new(Detect::new(columns, count, shown_min, shown, iou_max)?)))
            }
            _ => Err("give `name` and `kind` of the output with the classes, or for boxes `boxes` and `scores`".into()),
        }
    }
}

impl Reading {
    /// The outputs that are read.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        match self {
            Self::Classes(classify) => vec![&classify.name],
            Self::Boxes(detect) => detect.names(),
        }
    }
}

/// What a model says, as the manifest names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// One label for the whole sample.
    Classify,
    /// A label and a place for each thing in a picture.
    Detect,
}

impl Kind {
    /// As the manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Classify => "classify",
            Self::Detect => "detect",
        }
    }
}

/// How one model's outputs become an answer.
#[derive(Debug, Clone)]
pub struct Task {
    pub reading: Reading,
    /// The words of the answer by class; empty if the classes have numbers only.
    pub labels: Vec<String>,
    /// The output that says how probably the answer is right, if the model has one.
    pub confidence: Option<String>,
    /// The output that may leave the device in the place of the sample, if the model has one.
    pub embedding: Option<String>,
    /// Width and height of the model's input; 0 if it takes no pictures.
    pub pixels: (u32, u32),
}

impl Task {
    /// What the model says of one sample. `frame` is where the input tensor's edges lie in the picture; beyond its
    /// edges if it was padded.
    pub fn read(&self, outputs: &Tensors, frame: &Rect) -> Result<(Output, Doubt), Unusable> {
        let (said, doubt) = match &self.reading {
            Reading::Classes(classify) => classify.read(outputs, &self.labels),
            Reading::Boxes(detect) => detect.read(outputs, &self.labels, self.pixels, frame),
        }?;
        Ok((said, self.doubt_of_the_model(outputs)?.map_or(doubt, |own| doubt.with(Measure::Confidence, own))))
    }

    /// How probable the model itself finds it that its answer is wrong.
    pub fn doubt_of_the_model(&self, outputs: &Tensors) -> Result<Option<f32>, Unusable> {
        // Rounding takes a probability a little beyond its ends.
        const BEYOND: f32 = 1e-3;
        let Some(name) = &self.confidence else { return Ok(None) };
        let gave = match outputs.get(name)?.data.as_slice() {
            [sure] if (-BEYOND..=1.0 + BEYOND).contains(sure) => return Ok(Some(1.0 - sure)),
            [other] => format!("{other:.3}"),
            values => format!("{} numbers", values.len()),
        };
        Err(Unusable::Confidence { name: name.clone(), gave })
    }

    /// What may leave the device in the place of the sample. None if a number in it is none.
    #[must_use]
    pub fn embedding(&self, outputs: &Tensors) -> Option<Tensor> {
        let embedding = outputs.get(self.embedding.as_deref()?).ok()?;
        embedding.data.iter().all(|number| number.is_finite()).then(|| embedding.clone())
    }

    /// The outputs that are read.
    #[must_use]
    pub fn names(&self) -> Vec<&str> {
        self.reading.names().into_iter().chain(self.confidence.as_deref()).chain(self.embedding.as_deref()).collect()
    }

    /// The same, before any temperature.
    pub fn uncalibrated(&self) -> Self {
        let mut task = self.clone();
        if let Reading::Classes(classify) = &mut task.reading {
            classify.kind = classify.kind.uncalibrated();
        }
        task
    }
}

/// The word for a class; its number if it has none.
fn label(labels: &[String], class: usize) -> Cow<'_, str> {
    labels.get(class).map_or_else(|| class.to_string().into(), |label| label.into())
}
