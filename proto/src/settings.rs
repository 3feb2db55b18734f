//! What may be changed remotely while a device runs: an overlay over its local configuration file.
//!
//! Every field is optional. What an overlay leaves out, or gives as `null`, is as in the local file. Names are those
//! of the file; models and sources stand below their names. [`crate::LOCAL_ONLY`] lists what is decided on the device alone,
//! with the reason.

use alloc::collections::BTreeMap;
use alloc::string::String;
use core::fmt;
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};

use crate::{Allowance, Answer, ClassPolicy, Metadata, Name, OnShift, Share, Target, ThresholdMode, Weight};
#[cfg(test)]
use crate::{MESSAGE_BYTES_MAX, VERSION_MAX};

/// The remotely settable part of a device's configuration.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct Settings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log: Option<LogSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<LinkSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub outbox: Option<OutboxSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub telemetry: Option<TelemetrySettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub verdicts: Option<VerdictsSettings>,
    /// On trial: the device returns to its last good settings by itself if it cannot be reached with these.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerSettings>,
    /// By the model's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<BTreeMap<Name, Option<ModelSettings>>>,
    /// By the source's name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<BTreeMap<Name, Option<SourceSettings>>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LogSettings {
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,hedge_agent::uplink=debug`.
    #[cfg_attr(test, schemars(length(min = 1, max = 512)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub level: Option<String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum LinkProfile {
    /// Costs nothing: an outage is seen within 45 s.
    #[default]
    Lan,
    /// Paid by the byte: at most 300 KB a day while idle.
    Metered,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct LinkSettings {
    /// On trial, because it changes the keep-alive.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub profile: Option<LinkProfile>,
    /// Small cases share a message up to this many payload bytes; 0 for one case each.
    #[cfg_attr(test, schemars(range(min = 0, max = MESSAGE_BYTES_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub batch_bytes_max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ceilings: Option<CeilingsSettings>,
    /// When the radio is used; in between it rests, and the device is out of reach.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub windows: Option<WindowsSettings>,
    /// What the device does differently in each state of its link.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub states: Option<StatesSettings>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StatesSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub online: Option<StateSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub degraded: Option<StateSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub offline: Option<SilentStateSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub over_budget: Option<SilentStateSettings>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct StateSettings {
    /// Each model's threshold is multiplied by this.
    #[cfg_attr(test, schemars(range(min = 0, max = 10)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_scale: Option<f32>,
    /// The longest a caller waits for a verdict.
    #[cfg_attr(test, schemars(range(min = 0, max = 60_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms_max: Option<u64>,
    /// In which form a case is stored. `thumbnail_first` counts when it is sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
    /// Cases per second from the queue; 0 for none.
    #[cfg_attr(test, schemars(range(min = 0, max = 1_000_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub drain_per_s: Option<f32>,
}

/// A state in which nothing is sent.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SilentStateSettings {
    /// Each model's threshold is multiplied by this.
    #[cfg_attr(test, schemars(range(min = 0, max = 10)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold_scale: Option<f32>,
    /// The longest a caller waits for a verdict.
    #[cfg_attr(test, schemars(range(min = 0, max = 60_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wait_ms_max: Option<u64>,
    /// In which form a case is stored.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub payload: Option<Payload>,
}

/// How much of a sample is stored for the cloud, from least to most. What is stored is what is sent, however often,
/// unless the ceiling of `[privacy]` is lowered meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Payload {
    /// None of it: cases have the local scores and what describes the sample.
    Nothing,
    /// The numbers that the model makes of it on its way, where its bundle names an `embedding`; nothing elsewhere.
    Embedding,
    /// Pixels of the longer side, at most. What is no picture, or no larger, goes as it came if the ceiling lets it.
    Thumbnail(#[cfg_attr(test, schemars(range(min = 16, max = 4096)))] u32),
    /// All of it is stored. A thumbnail of at most so many pixels goes first, and the whole when the cloud asks for it.
    /// What is no picture, or would not become half as long, goes whole at once.
    ThumbnailFirst(#[cfg_attr(test, schemars(range(min = 16, max = 4096)))] u32),
    /// Of a picture the part that was judged: its source's region, or the thing that was found in it. All of it where that is
    /// all of it. Anything else as it came.
    Crop,
    /// As it came.
    Whole,
}

impl Payload {
    /// Pixels that a thumbnail's longer side may have.
    pub const SIDES: RangeInclusive<u32> = 16..=4096;

    /// Its name, and the pixels of its thumbnail's longer side, if it has one.
    #[must_use]
    pub fn side(self) -> Option<(&'static str, u32)> {
        match self {
            Self::Nothing | Self::Embedding | Self::Crop | Self::Whole => None,
            Self::Thumbnail(side) => Some(("thumbnail", side)),
            Self::ThumbnailFirst(side) => Some(("thumbnail_first", side)),
        }
    }
}

/// As status, `check` and refusals say it.
impl fmt::Display for Payload {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("nothing"),
            Self::Embedding => f.write_str("embedding"),
            Self::Thumbnail(side_max) => write!(f, "thumbnail {side_max}"),
            Self::ThumbnailFirst(side_max) => write!(f, "thumbnail first {side_max}"),
            Self::Crop => f.write_str("crop"),
            Self::Whole => f.write_str("whole"),
        }
    }
}

/// By powered time.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct WindowsSettings {
    /// From the beginning of one to that of the next, 60 or more; 0 for a link that is used at any time.
    #[cfg_attr(test, schemars(range(min = 0, max = 43_200)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub every_s: Option<u32>,
    /// How long each is open.
    #[cfg_attr(test, schemars(range(min = 30, max = 43_200)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub open_s: Option<u32>,
}

/// Each holds in any such period of powered time, a month being 30 days.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct CeilingsSettings {
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cases_per_hour: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cases_per_day: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cases_per_month: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_hour: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<u64>,
    #[cfg_attr(test, schemars(range(min = 0, max = VERSION_MAX)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_month: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct OutboxSettings {
    /// How long an answer waits to be able to say `stored`.
    #[cfg_attr(test, schemars(range(min = 0, max = 10_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub store_wait_ms: Option<u64>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct TelemetrySettings {
    /// A change of the link is told at once all the same.
    #[cfg_attr(test, schemars(range(min = 1, max = 604_800)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_s: Option<u64>,
    /// Whether messages with cases carry their trace context.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traces: Option<bool>,
}

/// Which answers a sink gets.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SinkWants {
    /// Local answers and corrections.
    All,
    #[default]
    Corrections,
    /// Corrections that say something else than the local answer.
    Changed,
}

impl SinkWants {
    /// Whether a sink that wants this takes `answer`.
    #[must_use]
    pub fn takes(self, answer: &Answer) -> bool {
        match self {
            Self::All => true,
            Self::Corrections => answer.revision > 0,
            Self::Changed => answer.revision > 0 && answer.changed,
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct VerdictsSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub jsonl: Option<SinkSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub webhook: Option<SinkSettings>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<SinkSettings>,
    /// Answers on `up/answer/{source}`. May be given where the local file has none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mqtt: Option<SinkSettings>,
    /// By the name of a `[verdicts.sinks.NAME]` of the local file.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub sinks: Option<BTreeMap<Name, Option<SinkSettings>>>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SinkSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<SinkWants>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct BrokerSettings {
    /// `mqtt://`, `mqtts://`, `ws://` or `wss://`, with host and optional port.
    #[cfg_attr(test, schemars(length(min = 1, max = 512)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The name of a `[credentials.NAME]` in the local file: secrets never travel.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Name>,
    #[cfg_attr(test, schemars(length(min = 1, max = 512)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub client_id: Option<String>,
    /// TLS application protocol, for brokers that share port 443.
    #[cfg_attr(test, schemars(length(min = 1, max = 255)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub alpn: Option<String>,
    /// `http://host:port` of a proxy that allows CONNECT.
    #[cfg_attr(test, schemars(length(min = 1, max = 512)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub proxy: Option<String>,
    #[cfg_attr(test, schemars(range(min = 5)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub keep_alive_s: Option<u16>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ModelSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub threshold: Option<ThresholdSettings>,
    /// Which signed bundle it is to run. The device fetches it from where its local file says, and tries it first.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub wanted: Option<WantedSettings>,
}

/// A signed bundle, by the name and version that the list of published bundles has for it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct WantedSettings {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<Name>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub version: Option<Name>,
    /// It looks at what the current bundle answers first, until it is promoted or given up.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shadow: Option<bool>,
}

/// What an answer must reach to stay on the device.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ThresholdSettings {
    /// `fixed` (the numbers below, each of which alone can send a sample on), `budget` or `target`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<ThresholdMode>,
    /// For `budget`: the threshold is moved so that as many of the least sure answers are sent as this affords.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub budget: Option<Allowance>,
    /// For `target`: only answers stay that spot checks have shown to be safe.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub target: Option<Target>,
    /// Which share of the answers that would stay is sent all the same, by chance, so that it is known how often they are
    /// wrong. Of a budget at most a fifth is used for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub spot_checks: Option<Share>,
    /// What happens while the input looks unlike what the model was checked on.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_shift: Option<OnShift>,
    /// Under a budget or a target: whether a doubt that is learned from verdicts counts in place of the score's, once spot
    /// checks have shown that it ranks answers better.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub learned: Option<bool>,
    /// The best score.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub score_min: Option<Share>,
    /// Its distance to the second.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub margin_min: Option<Share>,
    /// Entropy as a share of its maximum.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entropy_max: Option<Share>,
    /// `score_min` for answers that name this class, by its label.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub classes: Option<BTreeMap<String, Option<Share>>>,
    /// What a case about this class is worth beside others, by its label: cases are sent and kept by it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weights: Option<BTreeMap<String, Option<Weight>>>,
    /// What happens to answers that name this class, by its label, whatever the rest says.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policies: Option<BTreeMap<String, Option<ClassPolicy>>>,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SourceSettings {
    /// `http` adds a source; the kind of one in the local file cannot be changed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub kind: Option<AddedKind>,
    /// A source that is off takes no samples.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub enabled: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub model: Option<Name>,
    /// At most one sample per this number of milliseconds; the newest wins.
    #[cfg_attr(test, schemars(range(min = 0, max = 86_400_000)))]
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interval_ms: Option<u64>,
    /// Which part of the picture is judged.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub region: Option<RegionSettings>,
    /// Goes with every sample; at most 1 KiB as JSON.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub metadata: Option<Metadata>,
}

/// Sources that name programs or folders are added on the device only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum AddedKind {
    Http,
}

/// Fractions of the whole picture.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct RegionSettings {
    pub left: Share,
    pub top: Share,
    pub width: Share,
    pub height: Share,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_committed_schema_is_that_of_the_types() {
        let schema = serde_json::to_string_pretty(&schemars::schema_for!(Settings)).expect("serialises") + "\n";
        // A whole file to take over, not a difference to type in.
        assert!(schema == crate::SETTINGS_SCHEMA, "proto/settings.schema.json is to be:\n{schema}");
    }
}
