//! `[link.states.…]`: what the device does differently in each state of its link.

use std::time::Duration;

use hedge_core::judge::ThresholdScale;
use hedge_core::policy::{Policies, Policy};
use hedge_proto::Payload;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

/// Overrides of [`Policies::DEFAULT`], by state.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StatesConfig {
    online: StateConfig,
    degraded: StateConfig,
    #[serde(deserialize_with = "offline")]
    offline: StateConfig,
    #[serde(deserialize_with = "over_budget")]
    over_budget: StateConfig,
}

fn offline<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StateConfig, D::Error> {
    silent(deserializer, "offline")
}

fn over_budget<'de, D: Deserializer<'de>>(deserializer: D) -> Result<StateConfig, D::Error> {
    silent(deserializer, "over_budget")
}

fn silent<'de, D: Deserializer<'de>>(deserializer: D, state: &str) -> Result<StateConfig, D::Error> {
    let config = StateConfig::deserialize(deserializer)?;
    match config.drain_per_s {
        Some(_) => Err(D::Error::custom(format!(
            "`drain_per_s` has no effect in [link.states.{state}]: nothing is sent there"
        ))),
        None => Ok(config),
    }
}

/// What one state changes; absent fields stay as they are by default.
#[derive(Debug, Clone, Copy, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct StateConfig {
    #[serde(deserialize_with = "scale")]
    threshold_scale: Option<ThresholdScale>,
    #[serde(deserialize_with = "wait_ms")]
    wait_ms_max: Option<u64>,
    #[serde(deserialize_with = "payload")]
    payload: Option<Payload>,
    #[serde(deserialize_with = "per_second")]
    drain_per_s: Option<f32>,
}

fn scale<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<ThresholdScale>, D::Error> {
    ThresholdScale::new(f32::deserialize(deserializer)?).map(Some).map_err(D::Error::custom)
}

/// The longest wait the HTTP interface honours.
const WAIT_MS_MAX: u64 = 60_000;

fn wait_ms<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    match u64::deserialize(deserializer)? {
        ms @ 0..=WAIT_MS_MAX => Ok(Some(ms)),
        ms => Err(D::Error::custom(format!("wait_ms_max = {ms} is not a number from 0 to {WAIT_MS_MAX}"))),
    }
}

/// Reads a payload, whose thumbnail must have a size that makes sense.
pub(super) fn payload<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Payload>, D::Error> {
    let payload = Payload::deserialize(deserializer)?;
    match payload.side() {
        Some((form, side)) if !Payload::SIDES.contains(&side) => {
            let (least, most) = Payload::SIDES.into_inner();
            Err(D::Error::custom(format!("{form} = {side} is not a number of pixels from {least} to {most}")))
        }
        _ => Ok(Some(payload)),
    }
}

fn per_second<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<f32>, D::Error> {
    match f32::deserialize(deserializer)? {
        value if value == 0.0 || (0.001..=1e6).contains(&value) => Ok(Some(value)),
        value => Err(D::Error::custom(format!(
            "drain_per_s = {value} is neither 0 (send nothing) nor a number from 0.001 to 1000000"
        ))),
    }
}

impl StatesConfig {
    /// The defaults with the configured values in their place.
    #[must_use]
    pub fn policies(&self) -> Policies {
        let Policies { online, degraded, offline, over_budget } = Policies::DEFAULT;
        Policies {
            online: self.online.over(online),
            degraded: self.degraded.over(degraded),
            offline: self.offline.over(offline),
            over_budget: self.over_budget.over(over_budget),
        }
    }
}

impl StateConfig {
    fn over(&self, ours: Policy) -> Policy {
        Policy {
            threshold: self.threshold_scale.unwrap_or(ours.threshold),
            wait_max: self.wait_ms_max.map_or(ours.wait_max, Duration::from_millis),
            payload: self.payload.map_or(ours.payload, Payload::from),
            drain_per_s: self.drain_per_s.or(ours.drain_per_s),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<StatesConfig, String> {
        toml::from_str(text).map_err(|error| error.to_string())
    }

    #[test]
    fn what_is_given_replaces_the_default_and_nothing_else() {
        assert_eq!(read("").expect("valid").policies(), Policies::DEFAULT);
        let text = "[offline]\nthreshold_scale = 0.5\npayload = { thumbnail = 320 }\n\
                    [online]\nwait_ms_max = 5000\n[degraded]\ndrain_per_s = 0.5\npayload = \"whole\"";
        let policies = read(text).expect("valid").policies();
        let offline = Policy {
            threshold: ThresholdScale::new(0.5).expect("valid"),
            payload: Payload::Thumbnail(320),
            ..Policies::DEFAULT.offline
        };
        let online = Policy { wait_max: Duration::from_secs(5), ..Policies::DEFAULT.online };
        let degraded = Policy { drain_per_s: Some(0.5), ..Policies::DEFAULT.degraded };
        assert_eq!(policies, Policies { online, degraded, offline, ..Policies::DEFAULT });
    }

    #[test]
    fn what_cannot_be_meant_is_refused_by_name() {
        for (text, part) in [
            ("[offline]\nthreshold_scale = -1.0", "threshold_scale = -1"),
            ("[offline]\nwait_ms_max = 60001", "wait_ms_max = 60001"),
            ("[offline]\ndrain_per_s = 1.0", "[link.states.offline]"),
            ("[over_budget]\ndrain_per_s = 0.0", "[link.states.over_budget]"),
            ("[degraded]\ndrain_per_s = 1e-9", "drain_per_s"),
            ("[degraded]\ndrain_per_s = nan", "drain_per_s"),
            ("[online]\npayload = { thumbnail = 1 }", "thumbnail = 1 is not"),
            ("[online]\npayload = { thumbnail_first = 5000 }", "thumbnail_first = 5000 is not"),
            ("[online]\npayload = \"outline\"", "outline"),
            ("[connecting]", "connecting"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(part), "{error}");
        }
    }
}
