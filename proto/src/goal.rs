//! What a threshold may be steered to instead of being a number: a budget of cases, or a bound on the risk.

use serde::{Deserialize, Serialize};

use crate::Share;
#[cfg(test)]
use crate::VERSION_MAX;

/// How many cases, or how many of their bytes, a model's answers may cost. All that are given hold, in any hour and day
/// of powered time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Allowance {
    /// Cases as a share of all answers.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub share: Option<Share>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cases_per_hour: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cases_per_day: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_hour: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
}

impl Allowance {
    /// It says nothing at all.
    pub const NONE: Self =
        Self { share: None, cases_per_hour: None, cases_per_day: None, bytes_per_hour: None, bytes_per_day: None };
}

/// On at most `risk` of all samples the device keeps an answer that the cloud would have contradicted, or at most `risk` of
/// the answers that it keeps are such. That is true with `confidence` at every moment, while the input stays like what was
/// checked.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub risk: Share,
    #[serde(default = "usual_confidence")]
    pub confidence: Share,
    /// Of which answers `risk` is a share.
    #[serde(default, skip_serializing_if = "RiskOf::is_usual")]
    pub of: RiskOf,
    /// Spot checks of all devices with the same version of the model are evidence, too: it is true of their average then.
    /// What revokes is this device's own.
    #[serde(default = "usually_by_fleet", skip_serializing_if = "is_usual")]
    pub fleet: bool,
}

/// Which answers the risk of a target is a share of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum RiskOf {
    /// Of all samples, those that are sent among them.
    #[default]
    All,
    /// Of the answers that stay on the device. To show it takes several times as many spot checks.
    Kept,
}

impl RiskOf {
    fn is_usual(&self) -> bool {
        *self == Self::All
    }
}

fn usually_by_fleet() -> bool {
    true
}

fn is_usual(by_fleet: &bool) -> bool {
    *by_fleet
}

fn usual_confidence() -> Share {
    Share::new(0.95).unwrap_or(Share::ZERO)
}

/// What a device does while its input looks unlike what the model was checked on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum OnShift {
    /// It is said, nothing else.
    Watch,
    /// A fixed threshold allows half of the doubt, a certificate is revoked, and four times as many spot checks are made.
    #[default]
    AskMore,
}

/// What happens to answers that name a class, whatever the threshold says of them. Of several classes in one picture the
/// last one here counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ClassPolicy {
    /// They stay, however unsure, and are no spot checks.
    NeverAsk,
    /// They are sent, however sure, while the budget and the outbox take them.
    AlwaysAsk,
    /// They stay, and the sample never leaves the device. Only the local file can take this back.
    NeverLeave,
}

impl ClassPolicy {
    /// As it is written.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::NeverAsk => "never_ask",
            Self::AlwaysAsk => "always_ask",
            Self::NeverLeave => "never_leave",
        }
    }
}
