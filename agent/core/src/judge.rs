//! Decides whether the device trusts its own model.
//!
//! [`judge`] reads the [`Doubt`] of one answer and decides either "this answer stands" or "ask the cloud, and here is
//! why". It knows measures, not kinds: what classes or boxes are is up to whoever reads a model's output. Whether the
//! case can be sent now is up to `link`; whether there is room to keep it is up to `outbox`.
//!
//! Invariant: stricter [`Limits`] never turn an answer that was deferred into one that is kept. Operators raise them
//! from the field and must only ever get more second opinions by doing so.

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};

pub use hedge_proto::Reason;
use hedge_proto::{Doubt, Explanation, Measure, Outcome, Output, Share, ThresholdMode, Weight};

/// A number in the configuration that cannot be meant.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{field} = {value} is not {expected}")]
pub struct InvalidSetting {
    pub field: &'static str,
    pub value: f32,
    pub expected: &'static str,
}

/// How sure an answer must be to stay on the device, by measure: from 0, which keeps everything, to 1. An answer whose
/// doubt leaves less than that is sent on. Each limit alone can do so.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Limits([f32; Measure::ALL.len()]);

impl Limits {
    /// Every usable answer stays.
    pub const NONE: Self = Self([0.0; Measure::ALL.len()]);

    /// All three in [0, 1]. A `margin_min` of 0 and an `entropy_max` of 1 never defer anything.
    pub fn new(score_min: f32, margin_min: f32, entropy_max: f32) -> Result<Self, InvalidSetting> {
        for (field, value) in [("score_min", score_min), ("margin_min", margin_min), ("entropy_max", entropy_max)] {
            if !(0.0..=1.0).contains(&value) {
                return Err(InvalidSetting { field, value, expected: "a number from 0 to 1" });
            }
        }
        let limits = Self::NONE.with_score_min(score_min);
        Ok(limits.with(Measure::Margin, margin_min).with(Measure::Entropy, 1.0 - entropy_max))
    }

    fn with(mut self, measure: Measure, least: f32) -> Self {
        self.0[measure as usize] = least;
        self
    }

    fn with_score_min(self, score_min: f32) -> Self {
        Measure::OF_SCORE.into_iter().fold(self, |limits, measure| limits.with(measure, score_min))
    }

    /// The same, with the most doubt of one measure that an answer may have.
    #[must_use]
    pub fn at_most(self, measure: Measure, doubt: Share) -> Self {
        self.with(measure, 1.0 - doubt.value())
    }

    /// The same, with the limits of another for what `score_min`, `margin_min` and `entropy_max` say nothing of.
    #[must_use]
    pub fn beside(self, other: &Self) -> Self {
        let named = |measure: &Measure| {
            Measure::OF_SCORE.contains(measure) || matches!(measure, Measure::Margin | Measure::Entropy)
        };
        let others = Measure::ALL.iter().filter(|measure| !named(measure));
        others.fold(self, |limits, measure| limits.with(*measure, other.least(*measure)))
    }

    fn least(&self, measure: Measure) -> f32 {
        self.0[measure as usize]
    }

    /// The most doubt of one measure that an answer may have.
    #[must_use]
    pub fn most(&self, measure: Measure) -> f32 {
        1.0 - self.least(measure)
    }

    #[must_use]
    pub fn score_min(&self) -> f32 {
        self.least(Measure::Score)
    }

    #[must_use]
    pub fn margin_min(&self) -> f32 {
        self.least(Measure::Margin)
    }

    #[must_use]
    pub fn entropy_max(&self) -> f32 {
        self.most(Measure::Entropy)
    }

    /// These limits, taken stricter or looser.
    #[must_use]
    pub fn scaled(&self, scale: ThresholdScale) -> Self {
        if scale == ThresholdScale::ONE {
            return *self; // to the bit, which the arithmetic below is not
        }
        Self(self.0.map(|least| (least * scale.0).min(1.0)))
    }

    /// The first measure that asks for a second opinion.
    fn exceeded(&self, doubt: &Doubt) -> Option<Measure> {
        doubt.iter().find(|(measure, value)| *value > self.most(*measure)).map(|(measure, _)| measure)
    }
}

/// A model's limits, with a `score_min` of their own for some labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    pub all: Limits,
    /// A `score_min` by label.
    pub labels: BTreeMap<String, Share>,
    /// What a case is worth, by the label that the answer names; 1 for all others.
    pub weights: BTreeMap<String, Weight>,
    /// How strict all of them are taken now.
    pub scale: ThresholdScale,
}

impl Thresholds {
    /// What this answer must reach, and what its case would be worth. Of several labels the strictest and the worthiest
    /// counts.
    #[must_use]
    pub fn of(&self, said: &Output) -> (Limits, Weight) {
        let score_min = said.labels().filter_map(|label| self.labels.get(label)).map(|share| share.value());
        let limits = score_min.reduce(f32::max).map_or(self.all, |score_min| self.all.with_score_min(score_min));
        let weights = said.labels().filter_map(|label| self.weights.get(label).copied());
        let weight = weights.reduce(|one, other| if other > one { other } else { one }).unwrap_or(Weight::ONE);
        (limits.scaled(self.scale), weight)
    }

    /// What an answer that names no label must reach.
    #[must_use]
    pub fn general(&self) -> Limits {
        self.all.scaled(self.scale)
    }
}

impl From<Limits> for Thresholds {
    fn from(all: Limits) -> Self {
        Self { all, labels: BTreeMap::new(), weights: BTreeMap::new(), scale: ThresholdScale::ONE }
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

/// What the device does with its own answer, together with the numbers it was decided by.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Judgement {
    /// The measure for which the cloud is asked; the answer still counts until then, marked provisional. None if it
    /// stands.
    pub exceeded: Option<Measure>,
    pub doubt: Doubt,
    pub limits: Limits,
    pub weight: Weight,
}

/// Decides on one answer of the local model.
///
/// If several measures exceed their limits, the first in [`Measure::ALL`] is the reason: it is the stronger one.
#[must_use]
pub fn judge(doubt: &Doubt, limits: &Limits, weight: Weight) -> Judgement {
    Judgement { exceeded: limits.exceeded(doubt), doubt: *doubt, limits: *limits, weight }
}

impl Judgement {
    /// How much a second opinion is expected to help: how far the doubt is above its limit, from just above 0 to 1,
    /// times the weight of what the answer names. Cases are sent and evicted by it.
    #[must_use]
    pub fn priority(&self) -> f32 {
        let above = |(measure, doubt): (Measure, f32)| {
            (doubt - self.limits.most(measure)) / self.limits.least(measure).max(ABOVE_MIN)
        };
        let above = self.doubt.iter().map(above).fold(ABOVE_MIN, f32::max);
        above.min(1.0) * self.weight.value()
    }

    /// The decision in numbers and one sentence.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        Explanation {
            outcome: if self.exceeded.is_some() { Outcome::Defer } else { Outcome::Keep },
            reason: self.exceeded.map(Reason::from),
            score: self.doubt.score(),
            doubt: self.doubt,
            threshold: self.limits.score_min(),
            mode: ThresholdMode::Fixed,
            because: self.because(),
        }
    }

    fn because(&self) -> String {
        let Some(measure) = self.exceeded else { return self.why_kept() };
        let doubt = self.doubt.get(measure).unwrap_or_default();
        let (sure, least, most) = (1.0 - doubt, self.limits.least(measure), self.limits.most(measure));
        match measure {
            Measure::Score => format!("score {sure:.3} is below score_min {least:.3}"),
            Measure::MeanShown => format!("the boxes' score {sure:.3} is below score_min {least:.3}"),
            Measure::Margin => format!("the margin {sure:.3} to the second class is below margin_min {least:.3}"),
            Measure::Entropy => format!("entropy {doubt:.3} is above entropy_max {most:.3}"),
            other => format!("{} {doubt:.3} is above its limit {most:.3}", other.name()),
        }
    }

    fn why_kept(&self) -> String {
        let least = self.limits.score_min();
        match self.doubt.score() {
            None => "nothing of it is in doubt".to_string(),
            // A score_min is at most 1.
            Some(score) if score > 0.9994 => {
                format!("score {score:.3} reached {least:.3}; no score_min asks the cloud")
            }
            Some(score) => {
                format!("score {score:.3} reached {least:.3}; a score_min above {score:.3} would have asked the cloud")
            }
        }
    }
}

/// The explanation for an output that could not be read: always deferred.
#[must_use]
pub fn explain_unusable(why: String, limits: &Limits) -> Explanation {
    Explanation {
        outcome: Outcome::Defer,
        reason: Some(Reason::Unusable),
        score: None,
        doubt: Doubt::NONE,
        threshold: limits.score_min(),
        mode: ThresholdMode::Fixed,
        because: why,
    }
}

/// A priority is never 0, because its logarithm is the sort key.
const ABOVE_MIN: f32 = 1e-3;

/// All priorities lie from the first to the second.
pub const PRIORITY_RANGE: (f32, f32) = (ABOVE_MIN * Weight::MIN.value(), Weight::MAX.value());

#[cfg(test)]
mod tests;
