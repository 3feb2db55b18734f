//! `[verdicts]`: where answers and corrections go besides the HTTP interface.

use std::collections::BTreeMap;
use std::path::PathBuf;

use hedge_outbox::SINKS_MAX;
use hedge_proto::{Name, Share, SinkWants};
use serde::Deserialize;

use super::BrokerConfig;

/// Where answers and corrections go besides the HTTP interface.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(try_from = "Tables")]
pub struct VerdictsConfig {
    /// A model's verdict with a lower best score corrects nothing.
    pub score_min: Option<Share>,
    /// By name. A sink of a kind's own table, as `[verdicts.jsonl]`, has the name of its kind.
    pub sinks: BTreeMap<Name, SinkConfig>,
}

/// One sink, as `[verdicts.sinks.NAME]` describes it.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum SinkConfig {
    Jsonl(JsonlConfig),
    Webhook(WebhookConfig),
    Command(CommandSinkConfig),
    Mqtt(MqttSinkConfig),
}

/// `[verdicts]` as it is written: the first sink of each kind may have a table without a name of its own.
#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Tables {
    score_min: Option<Share>,
    jsonl: Option<JsonlConfig>,
    webhook: Option<WebhookConfig>,
    command: Option<CommandSinkConfig>,
    mqtt: Option<MqttSinkConfig>,
    sinks: BTreeMap<Name, SinkConfig>,
}

/// The tables of the kinds. On disk a sink has the place of its name here as its number: none may move.
pub const KIND_TABLES: [&str; 4] = ["jsonl", "webhook", "command", "mqtt"];

impl TryFrom<Tables> for VerdictsConfig {
    type Error = String;

    fn try_from(tables: Tables) -> Result<Self, String> {
        let Tables { score_min, jsonl, webhook, command, mqtt, mut sinks } = tables;
        if let Some(name) = sinks.keys().find(|name| KIND_TABLES.contains(&name.as_str())) {
            return Err(format!("a sink cannot be named `{name}`: that is [verdicts.{name}]; choose another name"));
        }
        let of_kind = [
            jsonl.map(SinkConfig::Jsonl),
            webhook.map(SinkConfig::Webhook),
            command.map(SinkConfig::Command),
            mqtt.map(SinkConfig::Mqtt),
        ];
        for (table, sink) in KIND_TABLES.into_iter().zip(of_kind) {
            if let (Some(sink), Ok(name)) = (sink, Name::new(table)) {
                sinks.insert(name, sink);
            }
        }
        Ok(Self { score_min, sinks })
    }
}

impl VerdictsConfig {
    /// Where a sink's table is, as a path of fields.
    #[must_use]
    pub fn table(name: &Name) -> Vec<String> {
        let own = (!KIND_TABLES.contains(&name.as_str())).then_some("sinks");
        ["verdicts"].into_iter().chain(own).chain([name.as_str()]).map(str::to_owned).collect()
    }

    /// Whether answers are published on the uplink's broker.
    #[must_use]
    pub fn on_uplink(&self) -> bool {
        self.sinks.values().any(SinkConfig::on_uplink)
    }

    /// What is wrong with a sink beside the others, and with which.
    pub(crate) fn problem(&self, has_broker: bool) -> Option<(&Name, String)> {
        if self.sinks.len() > SINKS_MAX.into() {
            let last = self.sinks.keys().next_back()?;
            return Some((last, format!("there are {} sinks, and at most {SINKS_MAX} can be had", self.sinks.len())));
        }
        for (at, (name, sink)) in self.sinks.iter().enumerate() {
            if let SinkConfig::Command(sink) = sink
                && sink.command.is_empty()
            {
                return Some((name, "`command` is empty; name a program".to_owned()));
            }
            if sink.on_uplink() && !has_broker {
                let why = "there is no [broker] to publish on; give the sink a `broker` of its own";
                return Some((name, why.to_owned()));
            }
            if let Some((other, _)) = self.sinks.iter().take(at).find(|(_, other)| sink.same_place(other)) {
                return Some((
                    name,
                    format!("it writes to the same place as the sink `{other}`; leave one of them out"),
                ));
            }
        }
        None
    }
}

impl SinkConfig {
    #[must_use]
    pub fn wanted(&self) -> SinkWants {
        match self {
            Self::Jsonl(sink) => sink.wanted,
            Self::Webhook(sink) => sink.wanted,
            Self::Command(sink) => sink.wanted,
            Self::Mqtt(sink) => sink.wanted,
        }
    }

    /// The files whose content is a secret.
    #[must_use]
    pub fn secret_files(&self) -> Vec<&PathBuf> {
        match self {
            Self::Webhook(sink) => sink.token_file.iter().collect(),
            Self::Mqtt(sink) => sink.broker.iter().flat_map(|broker| broker.secret_files()).collect(),
            Self::Jsonl(_) | Self::Command(_) => Vec::new(),
        }
    }

    /// Whether it publishes on the uplink's broker.
    #[must_use]
    pub fn on_uplink(&self) -> bool {
        matches!(self, Self::Mqtt(sink) if sink.broker.is_none())
    }

    /// Whether two would write one file, or publish everything twice under one topic.
    fn same_place(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Jsonl(sink), Self::Jsonl(other)) => sink.path == other.path,
            _ => self.on_uplink() && other.on_uplink(),
        }
    }
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
    pub broker: Option<Box<BrokerConfig>>,
}

#[cfg(test)]
mod tests {
    use crate::Config;

    #[track_caller]
    fn check(verdicts: &str, expected: Result<&[&str], &str>) {
        match (Config::parse(verdicts, "agent.toml", std::iter::empty()), expected) {
            (Ok(config), Ok(names)) => {
                assert!(config.verdicts.sinks.keys().map(hedge_proto::Name::as_str).eq(names.iter().copied()))
            }
            (Err(error), Err(says)) => assert!(error.to_string().contains(says), "{error}"),
            (read, _) => panic!("{read:?}"),
        }
    }

    #[test]
    fn each_kind_may_have_several_sinks_and_their_own_tables_go_on_working() {
        let file = "[verdicts.jsonl]\npath = \"/a\"\n";
        check(file, Ok(&["jsonl"]));
        let hook = |name: &str| format!("[verdicts.sinks.{name}]\nkind = \"webhook\"\nurl = \"http://x/{name}\"\n");
        let both = format!("{file}{}{}", hook("lamp"), hook("gate"));
        check(&both, Ok(&["gate", "jsonl", "lamp"]));
        check(&hook("webhook"), Err("a sink cannot be named `webhook`"));
        let same = "[verdicts.sinks.b]\nkind = \"jsonl\"\npath = \"/a\"\n";
        check(&format!("{file}{same}"), Err("[verdicts.jsonl]: it writes to the same place as the sink `b`"));
        check("[verdicts.sinks.b]\nkind = \"mqtt\"\n", Err("[verdicts.sinks.b]: there is no [broker]"));
        check("[verdicts.sinks.b]\nkind = \"jsonl\"\npaht = \"/a\"\n", Err("paht"));
        check("[verdicts.sinks.b]\nkind = \"fax\"\n", Err("fax"));
        let many: String = (0..17).map(|n| hook(&format!("n{n}"))).collect();
        check(&many, Err("at most 16"));
    }
}
