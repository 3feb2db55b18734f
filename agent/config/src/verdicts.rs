//! `[verdicts]`: where answers and corrections go besides the HTTP interface.

use std::path::PathBuf;

use hedge_proto::{Share, SinkWants};
use serde::Deserialize;

use super::BrokerConfig;

/// Where answers and corrections go besides the HTTP interface.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct VerdictsConfig {
    /// A model's verdict with a lower best score corrects nothing.
    pub score_min: Option<Share>,
    pub jsonl: Option<JsonlConfig>,
    pub webhook: Option<WebhookConfig>,
    pub command: Option<CommandSinkConfig>,
    pub mqtt: Option<MqttSinkConfig>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct JsonlConfig {
    pub path: PathBuf,
    #[serde(default)]
    pub wanted: SinkWants,
    /// The file is renamed to `<path>.1` when it would grow over this.
    #[serde(default = "jsonl_bytes_max")]
    pub bytes_max: u64,
}

fn jsonl_bytes_max() -> u64 {
    64 * 1024 * 1024
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WebhookConfig {
    pub url: String,
    #[serde(default)]
    pub wanted: SinkWants,
    /// PEM; the system's certificates if not given.
    pub ca_file: Option<PathBuf>,
    /// A file whose content is sent as `Authorization: Bearer …`.
    pub token_file: Option<PathBuf>,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CommandSinkConfig {
    /// Program and arguments; gets one answer as JSON on its standard input.
    pub command: Vec<String>,
    #[serde(default)]
    pub wanted: SinkWants,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct MqttSinkConfig {
    #[serde(default)]
    pub wanted: SinkWants,
    /// Another broker than the uplink's, for example on the local network.
    pub broker: Option<BrokerConfig>,
}
