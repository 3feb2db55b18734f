//! `[settings]`: what the device thinks of remote settings.

use std::time::Duration;

use hedge_core::control::trial::TRIAL;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct SettingsConfig {
    /// How long settings that could cut the link are on trial.
    #[serde(rename = "trial_s", deserialize_with = "seconds")]
    trial: Option<Duration>,
}

impl SettingsConfig {
    #[must_use]
    pub fn trial(&self) -> Duration {
        self.trial.unwrap_or(TRIAL)
    }
}

/// Under 5 s nothing connects; who waits for more than a day has gone to see the device.
const SECONDS: std::ops::RangeInclusive<u32> = 5..=86_400;

/// Reads a wait that a person sets.
pub(super) fn seconds<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Duration>, D::Error> {
    match u32::deserialize(deserializer)? {
        value if SECONDS.contains(&value) => Ok(Some(Duration::from_secs(value.into()))),
        value => {
            let (least, most) = (SECONDS.start(), SECONDS.end());
            Err(D::Error::custom(format!("{value} is not a number of seconds from {least} to {most}")))
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
