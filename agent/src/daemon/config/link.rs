//! `[link]`: what the way to the cloud costs, and what may go over it.

use hedge_core::budget::Ceilings;
use hedge_core::link::Profile;
use serde::Deserialize;

use super::StatesConfig;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    pub profile: ProfileName,
    /// Payload bytes that small cases may share a message up to; 0 for one case each.
    pub batch_bytes_max: Option<u32>,
    pub ceilings: CeilingsConfig,
    /// What the device does differently in each state of the link.
    pub states: StatesConfig,
    /// How to tell a captive portal from the internet while there is no connection.
    pub probe: Option<ProbeConfig>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProfileName {
    /// Costs nothing: an outage is seen within 45 s.
    #[default]
    Lan,
    /// Paid by the byte: at most 300 KB a day while idle.
    Metered,
}

/// Overrides of the profile's ceilings; each holds in any such period of powered time.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct CeilingsConfig {
    pub cases_per_hour: Option<u64>,
    pub cases_per_day: Option<u64>,
    pub cases_per_month: Option<u64>,
    pub bytes_per_hour: Option<u64>,
    pub bytes_per_day: Option<u64>,
    pub bytes_per_month: Option<u64>,
}

/// An address whose answer is known beforehand.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ProbeConfig {
    pub url: String,
    #[serde(default = "no_content")]
    pub status: u16,
    /// The whole body, without white space around it.
    pub body: Option<String>,
}

fn no_content() -> u16 {
    204
}

/// Small cases share messages of up to 64 KiB: more makes a slow link late without saving anything.
const BATCH_BYTES_MAX: u32 = 64 * 1024;

impl LinkConfig {
    #[must_use]
    pub fn profile(&self) -> Profile {
        match self.profile {
            ProfileName::Lan => Profile::LAN,
            ProfileName::Metered => Profile::METERED,
        }
    }

    #[must_use]
    pub fn batch_bytes_max(&self) -> u32 {
        self.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX)
    }

    /// The profile's ceilings with the configured ones in their place.
    #[must_use]
    pub fn ceilings(&self) -> Ceilings {
        let ours = match self.profile {
            ProfileName::Lan => Ceilings::LAN,
            ProfileName::Metered => Ceilings::METERED,
        };
        let given = &self.ceilings;
        Ceilings {
            cases_per_hour: given.cases_per_hour.unwrap_or(ours.cases_per_hour),
            cases_per_day: given.cases_per_day.unwrap_or(ours.cases_per_day),
            cases_per_month: given.cases_per_month.unwrap_or(ours.cases_per_month),
            bytes_per_hour: given.bytes_per_hour.unwrap_or(ours.bytes_per_hour),
            bytes_per_day: given.bytes_per_day.unwrap_or(ours.bytes_per_day),
            bytes_per_month: given.bytes_per_month.unwrap_or(ours.bytes_per_month),
        }
    }
}
