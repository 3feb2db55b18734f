//! `[settings]`: what the device thinks of remote settings.

use std::time::Duration;

use hedge_core::control::trial::TRIAL;
use serde::Deserialize;

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsConfig {
    /// How long settings that could cut the link are on trial.
    trial_s: Option<Seconds>,
}

impl SettingsConfig {
    #[must_use]
    pub fn trial(&self) -> Duration {
        self.trial_s.map_or(TRIAL, Seconds::duration)
    }
}

/// Under 5 s nothing connects; who waits for more than a day has gone to see the device.
const SECONDS: std::ops::RangeInclusive<u32> = 5..=86_400;

/// A wait that a person sets.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(try_from = "u32")]
pub struct Seconds(u32);

impl Seconds {
    #[must_use]
    pub fn duration(self) -> Duration {
        Duration::from_secs(self.0.into())
    }
}

impl TryFrom<u32> for Seconds {
    type Error = String;

    fn try_from(value: u32) -> Result<Self, String> {
        match value {
            value if SECONDS.contains(&value) => Ok(Self(value)),
            _ => Err(format!("{value} is not a number of seconds from {} to {}", SECONDS.start(), SECONDS.end())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_trial_has_a_length_that_can_be_meant() {
        let read = |text: &str| toml::from_str::<SettingsConfig>(text).map_err(|error| error.to_string());
        assert_eq!(read("").expect("valid").trial(), TRIAL);
        assert_eq!(read("trial_s = 30").expect("valid").trial(), Duration::from_secs(30));
        for wrong in ["trial_s = 4", "trial_s = 86401", "trial_s = -1"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
    }
}
