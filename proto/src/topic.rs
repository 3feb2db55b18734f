//! The topics of the wire: `hedge/v1/…`, with an optional prefix in front.

use alloc::format;
use alloc::string::{String, ToString};

use crate::{DeviceId, InvalidId, Name};

/// Builds and reads topics below one prefix.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Topics {
    /// Empty, or ending in a slash.
    prefix: String,
}

/// What a received topic is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Topic {
    UpStatus(DeviceId),
    UpCase(DeviceId),
    UpAnswer(DeviceId, Name),
    UpReported(DeviceId),
    UpReply(DeviceId),
    UpTelemetry(DeviceId),
    DownVerdict(DeviceId),
    DownDesired(DeviceId),
    DownCommand(DeviceId),
    CloudStatus(Name),
}

impl Topic {
    /// The device that writes it; `None` for what is written to devices, or by a cloud.
    #[must_use]
    pub fn sender(&self) -> Option<&DeviceId> {
        match self {
            Self::UpStatus(device)
            | Self::UpCase(device)
            | Self::UpAnswer(device, _)
            | Self::UpReported(device)
            | Self::UpReply(device)
            | Self::UpTelemetry(device) => Some(device),
            Self::DownVerdict(_) | Self::DownDesired(_) | Self::DownCommand(_) | Self::CloudStatus(_) => None,
        }
    }
}

impl Topics {
    /// `prefix` is one or more [`Name`]s separated by slashes, or empty.
    pub fn new(prefix: &str) -> Result<Self, InvalidId> {
        if prefix.is_empty() {
            return Ok(Self { prefix: String::new() });
        }
        for level in prefix.split('/') {
            Name::new(level)?;
        }
        Ok(Self { prefix: format!("{prefix}/") })
    }

    /// The full text of one topic.
    #[must_use]
    pub fn text(&self, topic: &Topic) -> String {
        let prefix = &self.prefix;
        match topic {
            Topic::UpStatus(device) => format!("{prefix}hedge/v1/{device}/up/status"),
            Topic::UpCase(device) => format!("{prefix}hedge/v1/{device}/up/case"),
            Topic::UpAnswer(device, source) => format!("{prefix}hedge/v1/{device}/up/answer/{source}"),
            Topic::UpReported(device) => format!("{prefix}hedge/v1/{device}/up/reported"),
            Topic::UpReply(device) => format!("{prefix}hedge/v1/{device}/up/reply"),
            Topic::UpTelemetry(device) => format!("{prefix}hedge/v1/{device}/up/telemetry"),
            Topic::DownVerdict(device) => format!("{prefix}hedge/v1/{device}/down/verdict"),
            Topic::DownDesired(device) => format!("{prefix}hedge/v1/{device}/down/desired"),
            Topic::DownCommand(device) => format!("{prefix}hedge/v1/{device}/down/command"),
            Topic::CloudStatus(instance) => format!("{prefix}hedge/v1/cloud/{instance}/status"),
        }
    }

    /// What a received topic is about; `None` for anything that is not Hedge's.
    #[must_use]
    pub fn read(&self, text: &str) -> Option<Topic> {
        let rest = text.strip_prefix(self.prefix.as_str())?.strip_prefix("hedge/v1/")?;
        let (who, what) = rest.split_once('/')?;
        let name = Name::new(who).ok()?;
        Some(match what {
            "up/status" => Topic::UpStatus(name),
            "up/case" => Topic::UpCase(name),
            "up/reported" => Topic::UpReported(name),
            "up/reply" => Topic::UpReply(name),
            "up/telemetry" => Topic::UpTelemetry(name),
            "down/verdict" => Topic::DownVerdict(name),
            "down/desired" => Topic::DownDesired(name),
            "down/command" => Topic::DownCommand(name),
            _ => return self.read_longer(rest, name, what),
        })
    }

    fn read_longer(&self, rest: &str, name: Name, what: &str) -> Option<Topic> {
        if let Some(source) = what.strip_prefix("up/answer/") {
            return Some(Topic::UpAnswer(name, Name::new(source).ok()?));
        }
        let instance = rest.strip_prefix("cloud/")?.strip_suffix("/status")?;
        Some(Topic::CloudStatus(Name::new(instance).ok()?))
    }

    /// Everything one device listens to that is its own.
    #[must_use]
    pub fn down_filter(&self, device: &DeviceId) -> String {
        format!("{}hedge/v1/{device}/down/#", self.prefix)
    }

    /// The status of every cloud instance.
    #[must_use]
    pub fn cloud_filter(&self) -> String {
        format!("{}hedge/v1/cloud/+/status", self.prefix)
    }

    /// One kind of message from every device, for example `case` or `status`.
    #[must_use]
    pub fn fleet_filter(&self, what: &str) -> String {
        format!("{}hedge/v1/+/up/{what}", self.prefix)
    }

    /// One kind of message to every device, for example `desired`.
    #[must_use]
    pub fn fleet_down_filter(&self, what: &str) -> String {
        format!("{}hedge/v1/+/down/{what}", self.prefix)
    }

    /// What an operator's program publishes to itself, to know that everything before it has arrived.
    #[must_use]
    pub fn marker(&self, operator: &Name) -> String {
        format!("{}hedge/v1/operator/{operator}/marker", self.prefix)
    }

    /// Like [`Self::fleet_filter`], but each message goes to one member of `group` only.
    #[must_use]
    pub fn shared_fleet_filter(&self, group: &Name, what: &str) -> String {
        format!("$share/{group}/{}", self.fleet_filter(what))
    }
}

impl core::fmt::Display for Topics {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(&(self.prefix.to_string() + "hedge/v1"))
    }
}

#[cfg(test)]
impl Topic {
    /// One of each, with `-device-`, `-source-` and `-instance-` for names.
    pub(crate) fn all() -> [Self; 10] {
        let name = |text| Name::new(text).expect("valid");
        let device = || name("-device-");
        [
            Self::UpStatus(device()),
            Self::UpCase(device()),
            Self::UpAnswer(device(), name("-source-")),
            Self::UpReported(device()),
            Self::UpReply(device()),
            Self::UpTelemetry(device()),
            Self::DownVerdict(device()),
            Self::DownDesired(device()),
            Self::DownCommand(device()),
            Self::CloudStatus(name("-instance-")),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_topic_reads_back_with_and_without_a_prefix() {
        for prefix in ["", "site", "site/hall"] {
            let topics = Topics::new(prefix).expect("valid");
            for topic in Topic::all() {
                assert_eq!(topics.read(&topics.text(&topic)), Some(topic));
            }
        }
    }

    #[test]
    fn foreign_topics_and_bad_prefixes_are_refused() {
        let topics = Topics::new("").expect("valid");
        for foreign in
            ["", "hedge", "hedge/v2/d/up/case", "hedge/v1/d/up/unknown", "hedge/v1//up/case", "x/hedge/v1/d/up/case"]
        {
            assert_eq!(topics.read(foreign), None, "{foreign}");
        }
        for bad in ["/", "a/", "a//b", "+", "a/#"] {
            assert!(Topics::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_device_named_cloud_cannot_be_mistaken_for_an_instance() {
        let topics = Topics::new("").expect("valid");
        let cloud = DeviceId::new("cloud").expect("valid");
        assert_eq!(topics.read("hedge/v1/cloud/up/status"), Some(Topic::UpStatus(cloud)));
    }
}
