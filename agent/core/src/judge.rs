//! Decides whether the device trusts its own model.
//!
//! [`judge`] reads the [`Doubt`] of one answer and decides either "this answer stands" or "ask the cloud, and here is
//! why". It knows measures, not kinds: what classes or boxes are is up to whoever reads a model's output. Whether the
//! case can be sent now is up to `link`; whether there is room to keep it is up to `outbox`.
//!
//! What an answer must reach is one of three things: numbers ([`Limits`]), what a budget affords ([`allowance`]), or what
//! spot checks have shown to be safe ([`evidence`]). [`Experience`] holds what that takes, for one version of a model.
//!
//! Invariant: stricter [`Limits`] never turn an answer that was deferred into one that is kept. Operators raise them
//! from the field and must only ever get more second opinions by doing so.

pub mod allowance;
pub mod bins;
pub mod calibration;
pub mod evidence;
mod experience;
mod flicker;
mod novelty;
mod past;
pub mod shift;

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};

pub use hedge_proto::Reason;
use hedge_proto::{
    Allowance, ClassPolicy, Doubt, Explanation, Measure, OnShift, Outcome, Output, Share, Target, ThresholdMode, Weight,
};

use self::allowance::Room;
pub use self::experience::{Experience, News};
pub use self::flicker::Frames;
use self::flicker::{counted, own};
pub use self::novelty::Familiar;
pub use self::past::{Forecast, Past};
use self::shift::Change;

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

    /// The same, with only a part of the doubt that each measure may have. One that is not limited stays so.
    #[must_use]
    fn with_less_doubt(&self, part: f32) -> Self {
        Self(self.0.map(|least| if least > 0.0 { 1.0 - (1.0 - least) * part } else { least }))
    }

    /// The first measure that asks for a second opinion. A score that is high enough may count too little.
    fn exceeded(&self, doubt: &Doubt) -> Option<Measure> {
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

/// What the device does with its own answer, together with the numbers it was decided by.
#[derive(Debug, Clone, PartialEq)]
pub struct Judgement {
    /// Why the cloud is asked; the answer still counts until then, marked provisional. None if it stands.
    pub reason: Option<Reason>,
    /// Whether what comes of it is a spot check: it was drawn by chance, whatever the answer.
    pub check: bool,
    pub doubt: Doubt,
    pub weight: Weight,
    /// How far the doubt is above what may stay: 0 to 1.
    worth: f32,
    bar: Bar,
    /// How probable it is that the cloud says the same.
    agreement: Option<f32>,
    /// The alarm that this answer has raised.
    pub alarm: Option<Change>,
    /// Whether more is asked than usual, because the input looks unlike what was checked.
    asked_more: bool,
    /// What has decided, whatever the bar.
    policy: Option<ClassPolicy>,
    /// It is asked about only because two bundles differ.
    contested: bool,
}

/// What the answer had to reach.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Bar {
    Limits { limits: Limits, exceeded: Option<Measure> },
    Budget { room: Room, score_min: f32 },
    Target { score_min: Option<f32>, checks: f64, of_fleet: bool, missing: Option<u32>, target: Option<Target> },
}

/// Decides on one answer of the local model by numbers alone.
///
/// If several measures exceed their limits, the first in [`Measure::ALL`] is the reason: it is the stronger one.
#[must_use]
pub fn judge(doubt: &Doubt, asked: &Asked<'_>) -> Judgement {
    by_limits(doubt, &asked.limits, asked.weight).under(asked.policy)
}

fn by_limits(doubt: &Doubt, limits: &Limits, weight: Weight) -> Judgement {
    let exceeded = limits.exceeded(doubt);
    let above =
        |(measure, doubt): (Measure, f32)| (doubt - limits.most(measure)) / limits.least(measure).max(ABOVE_MIN);
    let worth = doubt.iter().chain(counted(doubt)).map(above).fold(ABOVE_MIN, f32::max);
    Judgement::new(exceeded.map(Reason::from), worth, doubt, weight, Bar::Limits { limits: *limits, exceeded })
}

impl Judgement {
    fn new(reason: Option<Reason>, worth: f32, doubt: &Doubt, weight: Weight, bar: Bar) -> Self {
        Self {
            reason,
            check: false,
            doubt: *doubt,
            weight,
            worth,
            bar,
            agreement: None,
            alarm: None,
            asked_more: false,
            policy: None,
            contested: false,
        }
    }

    /// The same where a bundle that is compared with this one says otherwise: the cloud decides between them, where a
    /// policy or a budget does not forbid it.
    fn settled_by_the_cloud(mut self) -> Self {
        let is_spent = matches!(self.bar, Bar::Budget { room, .. } if room.reached.is_some());
        if self.reason.is_none() && self.policy.is_none() && !is_spent {
            (self.reason, self.worth, self.contested) = (Some(Reason::Policy), 1.0, true);
        }
        self
    }

    /// The same under what is wanted for the class.
    fn under(mut self, policy: Option<ClassPolicy>) -> Self {
        self.policy = policy;
        match policy {
            None => {}
            // It spends what is there, not more.
            Some(ClassPolicy::AlwaysAsk) if matches!(self.bar, Bar::Budget { room, .. } if room.reached.is_some()) => {}
            Some(ClassPolicy::AlwaysAsk) => (self.reason, self.worth) = (Some(Reason::Policy), 1.0),
            Some(ClassPolicy::NeverAsk | ClassPolicy::NeverLeave) => self.reason = None,
        }
        self
    }

    /// How much a second opinion is expected to help: how far the doubt is above its limit, from just above 0 to 1,
    /// times the weight of what the answer names. Cases are sent and evicted by it.
    #[must_use]
    pub fn priority(&self) -> f32 {
        self.worth.clamp(ABOVE_MIN, 1.0) * self.weight.value()
    }

    /// The decision in numbers and one sentence.
    #[must_use]
    pub fn explain(&self) -> Explanation {
        Explanation {
            outcome: if self.reason.is_some() { Outcome::Defer } else { Outcome::Keep },
            reason: self.reason.clone(),
            check: self.check,
            score: self.doubt.score(),
            agreement: self.agreement,
            doubt: self.doubt,
            threshold: self.score_min(),
            mode: match self.bar {
                Bar::Limits { .. } => ThresholdMode::Fixed,
                Bar::Budget { .. } => ThresholdMode::Budget,
                Bar::Target { .. } => ThresholdMode::Target,
            },
            because: self.because(),
        }
    }

    /// What the score had to reach.
    fn score_min(&self) -> f32 {
        match self.bar {
            Bar::Limits { limits, .. } => limits.score_min(),
            Bar::Budget { score_min, .. } => score_min,
            // Nothing may stay.
            Bar::Target { score_min, .. } => score_min.unwrap_or(1.0),
        }
    }

    fn because(&self) -> String {
        let mut because = match self.bar {
            Bar::Limits { limits, exceeded } => self.by_limits(&limits, exceeded),
            Bar::Budget { room, score_min } => self.by_budget(&room, score_min),
            Bar::Target { score_min, checks, of_fleet, missing, target } => {
                let whose = if of_fleet { " of all devices together" } else { "" };
                self.by_target(score_min, &format!("{checks:.0} spot checks{whose}"), missing, target)
            }
        };
        if self.reason == Some(Reason::Flicker) {
            because += "; without that flicker it would have stayed";
        }
        if self.reason == Some(Reason::SpotCheck) {
            because += "; sent as a spot check, by chance";
        }
        if self.contested {
            because += "; sent all the same: a bundle that is compared with this one says otherwise";
        }
        if let Some(policy) = self.policy {
            because += match policy {
                ClassPolicy::AlwaysAsk if self.reason.is_none() => {
                    "; the policy always_ask for its class waits for that"
                }
                ClassPolicy::AlwaysAsk => "; sent all the same: the policy for its class is always_ask",
                ClassPolicy::NeverAsk => "; it stays in any case: the policy for its class is never_ask",
                ClassPolicy::NeverLeave => {
                    "; it stays in any case: the policy for its class is never_leave, so its sample never leaves this device"
                }
            };
        }
        if self.asked_more {
            because += "; more is asked while the input looks unlike what the model was checked on";
        }
        because
    }

    fn by_limits(&self, limits: &Limits, exceeded: Option<Measure>) -> String {
        let Some(measure) = exceeded else { return self.why_kept(limits.score_min()) };
        let doubt = self.doubt.get(measure).unwrap_or_default();
        let (sure, least, most) = (1.0 - doubt, limits.least(measure), limits.most(measure));
        match measure {
            Measure::Score => format!("score {sure:.3} is below score_min {least:.3}"),
            Measure::MeanShown => format!("the boxes' score {sure:.3} is below score_min {least:.3}"),
            Measure::Margin => format!("the margin {sure:.3} to the second class is below margin_min {least:.3}"),
            Measure::Entropy => format!("entropy {doubt:.3} is above entropy_max {most:.3}"),
            Measure::Flicker if doubt <= most => {
                format!("{} is below score_min {:.3}", self.scored(), limits.score_min())
            }
            other => format!("{} {doubt:.3} is above its limit {most:.3}", other.name()),
        }
    }

    fn why_kept(&self, least: f32) -> String {
        let scored = self.scored();
        match counted(&self.doubt).map(|(_, doubt)| 1.0 - doubt) {
            None => "nothing of it is in doubt".to_string(),
            // A score_min is at most 1.
            Some(score) if score > 0.9994 => format!("{scored} reached {least:.3}; no score_min asks the cloud"),
            Some(score) => {
                format!("{scored} reached {least:.3}; a score_min above {score:.3} would have asked the cloud")
            }
        }
    }

    /// The score, and what it counts if that is less.
    fn scored(&self) -> String {
        let score = self.doubt.score().unwrap_or(1.0);
        match (counted(&self.doubt), own(&self.doubt), self.doubt.get(Measure::Flicker)) {
            (Some(counted), Some(own), Some(flicker)) if counted.1 > own.1 => format!(
                "score {score:.3}, which counts {:.3} because the answers to the last frames flicker ({flicker:.3}),",
                1.0 - counted.1
            ),
            _ => format!("score {score:.3}"),
        }
    }

    fn by_budget(&self, room: &Room, least: f32) -> String {
        let scored = self.scored();
        if let Some(limit) = room.reached {
            return format!("{scored}; the budget's {limit} is spent, so every answer stays");
        }
        let percent = room.share * 100.0;
        let asks = self.reason.as_ref().is_some_and(|reason| *reason != Reason::SpotCheck);
        let than = if asks { "is among the least sure" } else { "is not among the least sure" };
        format!(
            "{scored} {than} of the last answers: the budget affords {percent:.1} % of them, those below about \
             {least:.3}"
        )
    }

    fn by_target(&self, least: Option<f32>, checks: &str, missing: Option<u32>, target: Option<Target>) -> String {
        let scored = self.scored();
        let (risk, sure) =
            target.map_or((0.0, 0.0), |target| (target.risk.value() * 100.0, target.confidence.value() * 100.0));
        let promise = format!("at most {risk:.1} % kept and contradicted, {sure:.0} % sure, by {checks}");
        let missing = match missing {
            Some(missing) => format!("; this score needs at least {missing} more"),
            None => String::new(),
        };
        match least {
            None => format!("{scored}; too few spot checks for any answer to stay ({promise}){missing}"),
            Some(least) if missing.is_empty() => format!("{scored} reached {least:.3} ({promise})"),
            Some(least) => format!("{scored} is below {least:.3} ({promise}){missing}"),
        }
    }
}

/// The explanation for an output that could not be read: always deferred.
#[must_use]
pub fn explain_unusable(why: String, limits: &Limits) -> Explanation {
    Explanation {
        outcome: Outcome::Defer,
        reason: Some(Reason::Unusable),
        check: false,
        score: None,
        agreement: None,
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
