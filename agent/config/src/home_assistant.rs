//! `[home_assistant]`: whether and where Home Assistant is told of the device.

use hedge_proto::Topics;
use serde::Deserialize;

/// Tells Home Assistant of the device, over the uplink's broker.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct HomeAssistantConfig {
    /// As in Home Assistant's own settings of MQTT.
    pub discovery_prefix: DiscoveryPrefix,
}

impl Default for HomeAssistantConfig {
    fn default() -> Self {
        Self { discovery_prefix: DiscoveryPrefix("homeassistant".to_owned()) }
    }
}

/// One or more levels of a topic, of the characters of names.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct DiscoveryPrefix(String);

impl TryFrom<String> for DiscoveryPrefix {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        match Topics::new(&text) {
            Ok(_) if !text.is_empty() => Ok(Self(text)),
            _ => Err(format!("discovery_prefix = \"{text}\" is not a name, or several with slashes between them")),
        }
    }
}

impl std::fmt::Display for DiscoveryPrefix {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}
