//! What an answer must reach, as it is set: numbers by measure and by label, and the rule that counts.

use alloc::collections::BTreeMap;
use alloc::string::String;

use hedge_proto::{Allowance, ClassPolicy, Doubt, Measure, OnShift, Output, Share, Target, ThresholdMode, Weight};

use super::flicker::counted;

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

    pub(super) fn least(&self, measure: Measure) -> f32 {
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

    /// The same, with only a part of the doubt that each measure may have. One that is not limited stays so.
    #[must_use]
    pub(super) fn with_less_doubt(&self, part: f32) -> Self {
        Self(self.0.map(|least| if least > 0.0 { 1.0 - (1.0 - least) * part } else { least }))
    }

    /// The first measure that asks for a second opinion. A score that is high enough may count too little.
    pub(super) fn exceeded(&self, doubt: &Doubt) -> Option<Measure> {
        let exceeded = doubt.iter().find(|(measure, value)| *value > self.most(*measure)).map(|(measure, _)| measure);
        exceeded.or_else(|| {
            counted(doubt).filter(|(measure, counted)| *counted > self.most(*measure)).map(|_| Measure::Flicker)
        })
    }
}

/// How a model's answers are judged.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rule {
    pub mode: ThresholdMode,
    pub allowance: Allowance,
    pub target: Option<Target>,
    /// Which share of the answers that would stay is sent all the same.
    pub spot_checks: Share,
    pub on_shift: OnShift,
    /// Whether a learned doubt may count in place of the score's. Never with numbers, which are about the score.
    pub learned: bool,
    /// How strict all of it is taken now.
    pub scale: ThresholdScale,
}

impl Rule {
    /// By numbers, without spot checks.
    pub const FIXED: Self = Self {
        mode: ThresholdMode::Fixed,
        allowance: Allowance::NONE,
        target: None,
        spot_checks: Share::ZERO,
        on_shift: OnShift::Watch,
        learned: false,
        scale: ThresholdScale::ONE,
    };
}

/// A model's limits, with a `score_min` of their own for some labels.
#[derive(Debug, Clone, PartialEq)]
pub struct Thresholds {
    pub all: Limits,
    /// A `score_min` by label.
    pub labels: BTreeMap<String, Share>,
    /// What a case is worth, by the label that the answer names; 1 for all others.
    pub weights: BTreeMap<String, Weight>,
    /// What happens to an answer that names this label, whatever the rest says.
    pub policies: BTreeMap<String, ClassPolicy>,
    pub rule: Rule,
}

/// What is asked of one answer, and what its case would be worth.
#[derive(Debug, Clone, Copy)]
pub struct Asked<'a> {
    pub limits: Limits,
    pub weight: Weight,
    pub policy: Option<ClassPolicy>,
    /// A bundle that is compared with this one says otherwise.
    pub contested: bool,
    pub rule: &'a Rule,
}

impl Asked<'_> {
    /// Only these limits.
    #[must_use]
    pub fn of(limits: Limits) -> Self {
        Self { limits, weight: Weight::ONE, policy: None, contested: false, rule: &Rule::FIXED }
    }
}

impl Thresholds {
    /// What is asked of this answer. Of several labels the strictest and the worthiest counts. A policy is about the label
    /// that is the answer, or any that is in the picture.
    #[must_use]
    pub fn of(&self, said: &Output) -> Asked<'_> {
        let score_min = said.labels().filter_map(|label| self.labels.get(label)).map(|share| share.value());
        let limits = score_min.reduce(f32::max).map_or(self.all, |score_min| self.all.with_score_min(score_min));
        let weights = said.labels().filter_map(|label| self.weights.get(label).copied());
        let weight = weights.reduce(|one, other| if other > one { other } else { one }).unwrap_or(Weight::ONE);
        let policy = said.labels().filter_map(|label| self.policies.get(label).copied()).max();
        Asked { limits: limits.scaled(self.rule.scale), weight, policy, contested: false, rule: &self.rule }
    }

    /// What an answer that names no label must reach.
    #[must_use]
    pub fn general(&self) -> Limits {
        self.all.scaled(self.rule.scale)
    }
}

impl From<Limits> for Thresholds {
    fn from(all: Limits) -> Self {
        Self { all, labels: BTreeMap::new(), weights: BTreeMap::new(), policies: BTreeMap::new(), rule: Rule::FIXED }
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
