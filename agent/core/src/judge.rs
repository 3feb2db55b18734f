//! Decides whether the device trusts its own model.
//!
//! [`Scores`] reads a model's raw output as probabilities, or says why that cannot be done; [`judge`] reads
//! one set of scores and decides either "this answer stands" or "ask the cloud, and here is why". Whether
//! the case can be sent now is up to `link`; whether there is room to keep it is up to `outbox`.
//!
//! Invariant: a stricter [`Threshold`] never turns a [`Decision::Defer`] into a [`Decision::Keep`].
//! Operators raise it from the field and must only ever get more second opinions by doing so.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

pub use hedge_proto::Reason;
use hedge_proto::{Explanation, Outcome, Share, ThresholdMode, Weight};

/// How a model's raw output is to be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutputKind {
    /// Any real numbers; probabilities are `softmax(logits / temperature)`. What a log-softmax gives are logits, too:
    /// their softmax is the softmax they are logarithms of.
    Logits { temperature: Temperature },
    /// Already probabilities: in [0, 1], adding up to 1.
    Probabilities,
    /// Probabilities times 100.
    Percent,
}

impl OutputKind {
    /// The one number of a model that tells two classes apart, as a number for each: it speaks of the second.
    #[must_use]
    pub fn of_two(self, second: f32) -> [f32; 2] {
        match self {
            Self::Logits { .. } => [0.0, second],
            Self::Probabilities => [1.0 - second, second],
            Self::Percent => [PERCENT - second, second],
        }
    }

    /// As a manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Logits { .. } => "logits",
            Self::Probabilities => "probabilities",
            Self::Percent => "percent",
        }
    }

    /// The same numbers, before any temperature.
    #[must_use]
    pub fn uncalibrated(self) -> Self {
        match self {
            Self::Logits { .. } => Self::Logits { temperature: Temperature::ONE },
            kind @ (Self::Probabilities | Self::Percent) => kind,
        }
    }
}

/// What percentages add up to.
const PERCENT: f32 = 100.0;

/// Divides logits before softmax so that scores mean what they say (Guo et al. 2017). Greater than 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature(f32);

impl Temperature {
    pub const ONE: Self = Self(1.0);

    pub fn new(value: f32) -> Result<Self, InvalidSetting> {
        if value.is_finite() && value > 0.0 {
            Ok(Self(value))
        } else {
            Err(InvalidSetting { field: "temperature", value, expected: "a number above 0" })
        }
    }

    #[must_use]
    pub fn value(self) -> f32 {
        self.0
    }
}

/// A number in the configuration that cannot be meant.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{field} = {value} is not {expected}")]
pub struct InvalidSetting {
    pub field: &'static str,
    pub value: f32,
    pub expected: &'static str,
}

/// Why a model's output cannot be read as scores. The sample is deferred, never answered from such output.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
pub enum UnusableOutput {
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
}

/// Probabilities over the classes of one model: at least one, each in [0, 1], adding up to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores(Vec<f32>);

/// One class and its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScore {
    pub class: usize,
    pub score: f32,
}

/// How far a probability may be outside of 0 to 1, and their sum from 1: float16 outputs of 1000 classes stay within it.
const ROUNDING: f32 = 0.01;

/// Half a step of a softmax that a quantiser rounded to 8 bits. Each class may be off by it.
const HALF_STEP: f32 = 1.0 / 512.0;

/// The farthest a sum may be from 1 however many classes there are. Below 0.75 a score that is scaled up would claim a
/// third more than the model said; such a sample is better sent to the cloud.
const SUM_TOLERANCE_MAX: f32 = 0.25;

fn sum_tolerance(classes: usize) -> f32 {
    (classes as f32 * HALF_STEP).clamp(ROUNDING, SUM_TOLERANCE_MAX)
}

impl Scores {
    /// Reads raw model output, one number per class.
    ///
    /// A logit of minus infinity is a class ruled out and scores 0; NaN and plus infinity are unusable.
    pub fn read(output: &[f32], kind: OutputKind) -> Result<Self, UnusableOutput> {
        match kind {
            OutputKind::Logits { temperature } => softmax(output, temperature),
            OutputKind::Probabilities => probabilities(output, 1.0),
            OutputKind::Percent => probabilities(output, PERCENT),
        }
    }

    /// The best classes, best first; ties keep the lower class first.
    #[must_use]
    pub fn top(&self, count: usize) -> Vec<ClassScore> {
        let mut best: Vec<ClassScore> = Vec::with_capacity(count + 1);
        for (class, &score) in self.0.iter().enumerate() {
            let place = best.iter().position(|other| other.score < score).unwrap_or(best.len());
            if place < count {
                best.insert(place, ClassScore { class, score });
                best.truncate(count);
            }
        }
        best
    }

    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.0
    }

    /// Shannon entropy as a share of its maximum, so that it means the same for 10 and 1000 classes:
    /// 0 is certainty, 1 is no idea. One class is always certain.
    #[must_use]
    pub fn entropy(&self) -> f32 {
        if self.0.len() < 2 {
            return 0.0;
        }
        let nats: f32 = self.0.iter().filter(|&&p| p > 0.0).map(|&p| -p * libm::logf(p)).sum();
        (nats / libm::logf(self.0.len() as f32)).clamp(0.0, 1.0)
    }
}

fn softmax(logits: &[f32], temperature: Temperature) -> Result<Scores, UnusableOutput> {
    if logits.is_empty() {
        return Err(UnusableOutput::Empty);
    }
    if logits.iter().any(|logit| logit.is_nan() || *logit == f32::INFINITY) {
        return Err(UnusableOutput::NotFinite);
    }
    let greatest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if greatest == f32::NEG_INFINITY {
        return Err(UnusableOutput::NotFinite);
    }
    // The greatest logit becomes 0, so no exponential overflows and the sum is at least 1.
    let mut scores: Vec<f32> = logits.iter().map(|logit| libm::expf((logit - greatest) / temperature.0)).collect();
    let sum: f32 = scores.iter().sum();
    scores.iter_mut().for_each(|score| *score /= sum);
    Ok(Scores(scores))
}

/// Scores that add up to about `whole`.
fn probabilities(output: &[f32], whole: f32) -> Result<Scores, UnusableOutput> {
    if output.is_empty() {
        return Err(UnusableOutput::Empty);
    }
    if output.iter().any(|score| !score.is_finite()) {
        return Err(UnusableOutput::NotFinite);
    }
    let sum: f32 = output.iter().sum();
    if libm::fabsf(sum / whole - 1.0) > sum_tolerance(output.len()) {
        return Err(UnusableOutput::NotNormalised { sum, whole });
    }
    match output.iter().find(|score| !(-ROUNDING..=1.0 + ROUNDING).contains(&(**score / whole))) {
        Some(&score) => Err(UnusableOutput::OutOfRange { score, whole }),
        None => Ok(Scores(output.iter().map(|score| (score / sum).clamp(0.0, 1.0)).collect())),
    }
}

/// What an answer must reach to stay on the device. Each limit alone can send a sample on.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Threshold {
    score_min: f32,
    margin_min: f32,
    entropy_max: f32,
}

impl Threshold {
    /// All three in [0, 1]. A `margin_min` of 0 and an `entropy_max` of 1 never defer anything.
    pub fn new(score_min: f32, margin_min: f32, entropy_max: f32) -> Result<Self, InvalidSetting> {
        for (field, value) in [("score_min", score_min), ("margin_min", margin_min), ("entropy_max", entropy_max)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(InvalidSetting { field, value, expected: "a number from 0 to 1" });
            }
        }
        Ok(Self { score_min, margin_min, entropy_max })
    }

    #[must_use]
    pub fn score_min(&self) -> f32 {
        self.score_min
    }

    #[must_use]
    pub fn margin_min(&self) -> f32 {
        self.margin_min
    }

    #[must_use]
    pub fn entropy_max(&self) -> f32 {
        self.entropy_max
    }

    /// This threshold, taken stricter or looser.
    #[must_use]
    pub fn scaled(&self, scale: ThresholdScale) -> Self {
        if scale == ThresholdScale::ONE {
            return *self; // to the bit, which the arithmetic below is not
        }
        let scaled = |limit: f32| (limit * scale.0).min(1.0);
        Self {
            score_min: scaled(self.score_min),
            margin_min: scaled(self.margin_min),
            entropy_max: 1.0 - scaled(1.0 - self.entropy_max),
        }
    }
}

/// A model's threshold, with a `score_min` of their own for some classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    pub all: Threshold,
    /// By class.
    pub classes: BTreeMap<usize, Share>,
    /// What a case is worth, by the class that the answer names; 1 for all others.
    pub weights: BTreeMap<usize, Weight>,
    /// How strict all of them are taken now.
    pub scale: ThresholdScale,
}

impl Thresholds {
    /// What an answer that names `class` must reach.
    #[must_use]
    pub fn of(&self, class: usize) -> Threshold {
        let score_min = self.classes.get(&class).map_or(self.all.score_min, |share| share.value());
        Threshold { score_min, ..self.all }.scaled(self.scale)
    }

    /// What an answer that names no class of its own must reach.
    #[must_use]
    pub fn general(&self) -> Threshold {
        self.all.scaled(self.scale)
    }
}

impl From<Threshold> for Thresholds {
    fn from(all: Threshold) -> Self {
        Self { all, classes: BTreeMap::new(), weights: BTreeMap::new(), scale: ThresholdScale::ONE }
    }
}

/// How strict a threshold is taken: 1 as it stands, 0 keeps every usable answer, above 1 asks more. In [0, 10].
///
/// A share of each model's own threshold, because one number does not mean the same to two models.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd)]
pub struct ThresholdScale(f32);

impl ThresholdScale {
    pub const ONE: Self = Self(1.0);

    pub fn new(value: f32) -> Result<Self, InvalidSetting> {
        if (0.0..=10.0).contains(&value) {
            Ok(Self(value))
        } else {
            Err(InvalidSetting { field: "threshold_scale", value, expected: "a number from 0 to 10" })
        }
    }

    #[must_use]
    pub fn value(self) -> f32 {
        self.0
    }
}

/// What the device does with its own answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Decision {
    Keep {
        best: ClassScore,
    },
    /// `best` is still the local answer, marked provisional.
    Defer {
        best: ClassScore,
        reason: Reason,
    },
}

/// A decision together with the numbers it was made from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    pub decision: Decision,
    pub margin: f32,
    pub entropy: f32,
    pub threshold: Threshold,
    pub weight: Weight,
}

/// Decides on one answer of the local model.
///
/// A score below the threshold is reported before a small margin, and that before a high entropy, because
/// it is the stronger reason.
#[must_use]
pub fn judge(scores: &Scores, thresholds: &Thresholds) -> Judgement {
    let top = scores.top(2);
    let best = top.first().copied().unwrap_or(ClassScore { class: 0, score: 0.0 });
    let threshold = thresholds.of(best.class);
    // With a single class there is no rival, so the margin is the whole score.
    let margin = best.score - top.get(1).map_or(0.0, |second| second.score);
    let entropy = scores.entropy();
    let decision = if best.score < threshold.score_min {
        Decision::Defer { best, reason: Reason::LowScore }
    } else if margin < threshold.margin_min {
        Decision::Defer { best, reason: Reason::Margin }
    } else if entropy > threshold.entropy_max {
        Decision::Defer { best, reason: Reason::Entropy }
    } else {
        Decision::Keep { best }
    };
    let weight = thresholds.weights.get(&best.class).copied().unwrap_or(Weight::ONE);
    Judgement { decision, margin, entropy, threshold, weight }
}

impl Judgement {
    /// How much a second opinion is expected to help: how far the best score is below the threshold, from
    /// just above 0 to 1, times the weight of its class. Cases are sent and evicted by it.
    #[must_use]
    pub fn priority(&self) -> f32 {
        let (Decision::Keep { best } | Decision::Defer { best, .. }) = self.decision;
        let below = (self.threshold.score_min - best.score) / self.threshold.score_min.max(BELOW_MIN);
        below.clamp(BELOW_MIN, 1.0) * self.weight.value()
    }

    /// The decision in numbers and one sentence.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        let (outcome, best, reason) = match self.decision {
            Decision::Keep { best } => (Outcome::Keep, best, None),
            Decision::Defer { best, reason } => (Outcome::Defer, best, Some(reason)),
        };
        Explanation {
            outcome,
            reason,
            score: Some(best.score),
            margin: Some(self.margin),
            entropy: Some(self.entropy),
            threshold: self.threshold.score_min,
            mode: ThresholdMode::Fixed,
            because: self.because(best, reason),
        }
    }

    fn because(&self, best: ClassScore, reason: Option<Reason>) -> String {
        let Threshold { score_min, margin_min, entropy_max } = self.threshold;
        let (score, margin, entropy) = (best.score, self.margin, self.entropy);
        match reason {
            // A score_min is at most 1.
            None if score > 0.9994 => format!("score {score:.3} reached {score_min:.3}; no score_min asks the cloud"),
            None => format!(
                "score {score:.3} reached {score_min:.3}; a score_min above {score:.3} would have asked the cloud"
            ),
            Some(Reason::LowScore) => format!("score {score:.3} is below score_min {score_min:.3}"),
            Some(Reason::Margin) => {
                format!("the margin {margin:.3} to the second class is below margin_min {margin_min:.3}")
            }
            Some(Reason::Entropy) => format!("entropy {entropy:.3} is above entropy_max {entropy_max:.3}"),
            Some(other) => format!("sent for the reason {}", other.name()),
        }
    }
}

/// The explanation for output that could not be read as scores: always deferred.
#[must_use]
pub fn explain_unusable(error: &UnusableOutput, threshold: &Threshold) -> Explanation {
    Explanation {
        outcome: Outcome::Defer,
        reason: Some(Reason::Unusable),
        score: None,
        margin: None,
        entropy: None,
        threshold: threshold.score_min,
        mode: ThresholdMode::Fixed,
        because: format!("{error}"),
    }
}

/// A priority is never 0, because its logarithm is the sort key.
const BELOW_MIN: f32 = 1e-3;

/// All priorities lie from the first to the second.
pub const PRIORITY_RANGE: (f32, f32) = (BELOW_MIN * Weight::MIN.value(), Weight::MAX.value());

#[cfg(test)]
mod tests;
