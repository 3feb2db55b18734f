//! `[link]`: what the way to the cloud costs, and what may go over it.

use std::time::Duration;

use hedge_core::budget::Ceilings;
use hedge_core::link::{Profile, Windows};
use hedge_proto::LinkProfile;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use super::StatesConfig;

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LinkConfig {
    pub profile: LinkProfile,
    /// Small cases share a message up to this many payload bytes; 0 for one case each.
    pub batch_bytes_max: Option<u32>,
    pub ceilings: CeilingsConfig,
    /// When the radio is used, if not always.
    #[serde(deserialize_with = "windows")]
    pub windows: WindowsConfig,
    /// What the device does differently in each state of the link.
    pub states: StatesConfig,
    /// How to tell a captive portal from the internet while there is no connection.
    pub probe: Option<ProbeConfig>,
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

/// Windows in which a radio is used; in between it rests.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WindowsConfig {
    /// From the beginning of one to that of the next; 0 for a link that is used at any time.
    pub every_s: u32,
    /// How long each is open.
    pub open_s: u32,
}

/// Time to connect over a slow modem, send some cases and hear their verdicts.
const WINDOW_OPEN_S: u32 = 120;

/// Below, connecting anew costs more than staying. At most half a day: a broker keeps commands for a day, so that one
/// window may be missed.
const WINDOW_EVERY_S: std::ops::RangeInclusive<u32> = 60..=43_200;

/// A handshake on a slow link, and what was wanted of the device meanwhile.
const WINDOW_OPEN_S_MIN: u32 = 30;

impl Default for WindowsConfig {
    fn default() -> Self {
        Self { every_s: 0, open_s: WINDOW_OPEN_S }
    }
}

fn windows<'de, D: Deserializer<'de>>(deserializer: D) -> Result<WindowsConfig, D::Error> {
    let windows = WindowsConfig::deserialize(deserializer)?;
    let WindowsConfig { every_s, open_s } = windows;
    let (least, most) = (WINDOW_EVERY_S.start(), WINDOW_EVERY_S.end());
    let wrong = if every_s != 0 && !WINDOW_EVERY_S.contains(&every_s) {
        format!("every_s = {every_s} is neither 0 nor a number from {least} to {most}")
    } else if open_s < WINDOW_OPEN_S_MIN {
        format!("open_s = {open_s} is below {WINDOW_OPEN_S_MIN}")
    } else if every_s != 0 && open_s >= every_s {
        format!("open_s = {open_s} is not below every_s = {every_s}: the radio would never rest")
    } else {
        return Ok(windows);
    };
    Err(D::Error::custom(wrong))
}

impl WindowsConfig {
    /// What others are told of it; none for a link that is used at any time.
    #[must_use]
    pub fn told_every_s(self) -> Option<u32> {
        (self.every_s != 0).then_some(self.every_s)
    }

    fn windows(self) -> Option<Windows> {
        let seconds = |seconds: u32| Duration::from_secs(seconds.into());
        (self.every_s != 0).then(|| Windows { every: seconds(self.every_s), open: seconds(self.open_s) })
    }
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
        let profile = match self.profile {
            LinkProfile::Lan => Profile::LAN,
            LinkProfile::Metered => Profile::METERED,
        };
        Profile { windows: self.windows.windows(), ..profile }
    }

    #[must_use]
    pub fn batch_bytes_max(&self) -> u32 {
        self.batch_bytes_max.unwrap_or(BATCH_BYTES_MAX)
    }

    /// The profile's ceilings with the configured ones in their place.
    #[must_use]
    pub fn ceilings(&self) -> Ceilings {
        let ours = match self.profile {
            LinkProfile::Lan => Ceilings::LAN,
            LinkProfile::Metered => Ceilings::METERED,
        };
        let given = &self.ceilings;
        Ceilings {
            tariff: ours.tariff,
            cases_per_hour: given.cases_per_hour.unwrap_or(ours.cases_per_hour),
            cases_per_day: given.cases_per_day.unwrap_or(ours.cases_per_day),
            cases_per_month: given.cases_per_month.unwrap_or(ours.cases_per_month),
            bytes_per_hour: given.bytes_per_hour.unwrap_or(ours.bytes_per_hour),
            bytes_per_day: given.bytes_per_day.unwrap_or(ours.bytes_per_day),
            bytes_per_month: given.bytes_per_month.unwrap_or(ours.bytes_per_month),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_are_off_unless_asked_for_and_what_cannot_be_meant_is_refused() {
        let read = |text: &str| toml::from_str::<LinkConfig>(text).map_err(|error| error.to_string());
        assert_eq!(read("").expect("valid").profile().windows, None);
        let hourly = read("windows = { every_s = 3600 }").expect("valid").profile().windows;
        let two_minutes = Duration::from_secs(120);
        assert_eq!(hourly, Some(Windows { every: Duration::from_secs(3600), open: two_minutes }));
        for (wrong, part) in [
            ("every_s = 59", "every_s = 59 is neither 0 nor"),
            ("every_s = 43201", "every_s = 43201"),
            ("every_s = 120", "open_s = 120 is not below every_s = 120"),
            ("every_s = 600, open_s = 29", "open_s = 29"),
            ("often = true", "often"),
        ] {
            let error = read(&format!("windows = {{ {wrong} }}")).expect_err(wrong);
            assert!(error.contains(part), "{error}");
        }
    }
}
