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
mod checks;
pub mod evidence;
mod experience;
mod flicker;
mod head;
mod limits;
mod novelty;
mod past;
pub mod shift;

use alloc::format;
use alloc::string::{String, ToString};

pub use hedge_proto::Reason;
use hedge_proto::{ClassPolicy, Doubt, Explanation, Measure, Outcome, RiskOf, Target, ThresholdMode, Weight};

use self::allowance::Room;
pub use self::experience::{Experience, News};
pub use self::flicker::Frames;
use self::flicker::{counted, own};
pub use self::limits::{Asked, InvalidSetting, Limits, Rule, ThresholdScale, Thresholds};
pub use self::novelty::Familiar;
pub use self::past::{Forecast, Past};
use self::shift::Change;

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
        if let Some(learned) = self.doubt.get(Measure::Learned) {
            return format!("score {score:.3}, which counts {:.3} by what verdicts have taught,", 1.0 - learned);
        }
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
        let of_kept = target.is_some_and(|target| target.of == RiskOf::Kept);
        let (what, of_these) = match of_kept {
            true => ("of the kept answers contradicted", " of answers at least as sure"),
            false => ("kept and contradicted", ""),
        };
        let promise = format!("at most {risk:.1} % {what}, {sure:.0} % sure, by {checks}");
        let missing = match missing {
            Some(missing) => format!("; this score needs at least {missing} more{of_these}"),
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
