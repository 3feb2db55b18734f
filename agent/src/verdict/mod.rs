//! Takes answers out of the device: a file, a webhook, a program.
//!
//! A [`Sink`] delivers what it is given or says why not; which answers are undelivered, in which order they go and
//! when to try again is the outbox's and the delivery loop's business. Every delivery carries the idempotency
//! key `id/revision`: the JSON-lines file holds each key exactly once, the others may see one again.

mod apply;
mod command;
mod delivery;
mod jsonl;
mod locals;
mod mqtt;
mod sinks;
mod webhook;

use std::sync::Arc;

use hedge_core::link::Profile;
use hedge_proto::{Answer, DeviceId};

pub use self::apply::Verdicts;
pub use self::command::CommandSink;
pub use self::delivery::Delivery;
pub use self::jsonl::Jsonl;
pub use self::locals::Locals;
pub use self::mqtt::MqttSink;
pub use self::sinks::Sinks;
pub use self::webhook::Webhook;
use crate::uplink::{Meter, Uplink, options};
use hedge_config::{BrokerConfig, VerdictsConfig};
use hedge_proto::SinkWants;

/// Why an answer was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The sink cannot be used, is not reached, or is in trouble: the next answer would fare no better.
    #[error("{0}")]
    Away(String),
    /// It did not take this answer. The next one it may take, and this one later.
    #[error("{0}")]
    Refused(String),
    /// The device is offline, which is no fault of the sink.
    #[error("there is no connection to the broker")]
    Offline,
}

/// One way out. They share nothing, so that none holds up another.
pub enum Sink {
    Jsonl(Jsonl),
    Webhook(Webhook),
    Command(CommandSink),
    Mqtt(MqttSink),
}

// On disk: a number is never given to another sink.
const JSONL: u8 = 0;
const WEBHOOK: u8 = 1;
const COMMAND: u8 = 2;
const MQTT: u8 = 3;

fn sink_name(number: u8) -> &'static str {
    match number {
        JSONL => "jsonl",
        WEBHOOK => "webhook",
        COMMAND => "command",
        _ => "mqtt",
    }
}

/// The bits of the configured sinks: who must have a correction before its case is forgotten.
fn sink_bits(config: &VerdictsConfig) -> u8 {
    let VerdictsConfig { score_min: _, jsonl, webhook, command, mqtt } = config;
    let bit = |configured: bool, number: u8| u8::from(configured) << number;
    bit(jsonl.is_some(), JSONL)
        | bit(webhook.is_some(), WEBHOOK)
        | bit(command.is_some(), COMMAND)
        | bit(mqtt.is_some(), MQTT)
}

/// Whether the files a broker of a sink's own needs are there.
fn broker_files(config: &BrokerConfig) -> Result<(), String> {
    options(config, "check", Profile::LAN.keep_alive, &Meter::default()).map(drop).map_err(|error| error.to_string())
}

/// The most answers one delivery takes.
pub const BATCH_MAX: usize = 256;

impl Sink {
    /// The configured sink of this number with what it wants, if there is one. Nothing is opened or read yet.
    fn configured(
        number: u8,
        config: &VerdictsConfig,
        uplink: Option<&Uplink>,
        device: &DeviceId,
    ) -> Option<(Self, SinkWants)> {
        Some(match (number, config) {
            (JSONL, VerdictsConfig { jsonl: Some(jsonl), .. }) => {
                (Self::Jsonl(Jsonl::new(jsonl.path.clone(), jsonl.bytes_max)), jsonl.wanted)
            }
            (WEBHOOK, VerdictsConfig { webhook: Some(webhook), .. }) => {
                (Self::Webhook(Webhook::new(webhook.clone())), webhook.wanted)
            }
            (COMMAND, VerdictsConfig { command: Some(command), .. }) => {
                (Self::Command(CommandSink::new(&command.command)), command.wanted)
            }
            (MQTT, VerdictsConfig { mqtt: Some(mqtt), .. }) => {
                let sink = match &mqtt.broker {
                    Some(broker) => MqttSink::on_broker(broker.clone(), device.clone()),
                    None => MqttSink::on_uplink(uplink.cloned()),
                };
                (Self::Mqtt(sink), mqtt.wanted)
            }
            _ => return None,
        })
    }

    /// Whether the sink has what it needs: files, programs, addresses. Nothing is delivered.
    pub async fn look(&mut self) -> Result<(), String> {
        match self {
            Self::Jsonl(sink) => sink.look().await,
            Self::Webhook(sink) => sink.look(),
            Self::Command(sink) => sink.look(),
            Self::Mqtt(sink) => sink.look(),
        }
    }

    /// The sink's bit in the outbox's record of who has a correction.
    #[must_use]
    pub fn number(&self) -> u8 {
        match self {
            Self::Jsonl(_) => JSONL,
            Self::Webhook(_) => WEBHOOK,
            Self::Command(_) => COMMAND,
            Self::Mqtt(_) => MQTT,
        }
    }

    /// What status, metrics and faults call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        sink_name(self.number())
    }

    /// Delivers one answer.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        match self {
            Self::Jsonl(sink) => sink.send(answer).await,
            Self::Webhook(sink) => sink.send(answer).await,
            Self::Command(sink) => sink.send(answer).await,
            Self::Mqtt(sink) => sink.send(answer).await,
        }
    }

    /// Delivers answers in order. Returns how many of the first of them are delivered, and what stopped it.
    pub async fn send_all(&mut self, answers: &[Arc<Answer>]) -> (usize, Result<(), SinkError>) {
        if let Self::Jsonl(sink) = self {
            return match sink.send_all(answers).await {
                Ok(()) => (answers.len(), Ok(())),
                Err(error) => (0, Err(error)),
            };
        }
        for (delivered, answer) in answers.iter().enumerate() {
            if let Err(error) = self.send(answer).await {
                return (delivered, Err(error));
            }
        }
        (answers.len(), Ok(()))
    }
}

/// What `hedge-agent check` says of each configured sink: what it is, or what it lacks. Nothing is made or delivered.
#[must_use]
pub fn look(config: &VerdictsConfig) -> Vec<(&'static str, Result<String, String>)> {
    let VerdictsConfig { jsonl, webhook, command, mqtt, .. } = config;
    let mut looked = Vec::new();
    if let Some(config) = jsonl {
        looked.push((
            sink_name(JSONL),
            jsonl::appendable(&config.path).map(|()| format!("file {}", config.path.display())),
        ));
    }
    if let Some(config) = webhook {
        // The address may hold a secret.
        looked.push((
            sink_name(WEBHOOK),
            Webhook::new(config.clone()).look().map(|()| "its files can be read".to_owned()),
        ));
    }
    if let Some(config) = command {
        let sink = CommandSink::new(&config.command);
        looked.push((sink_name(COMMAND), sink.look().map(|()| format!("program {}", sink.program()))));
    }
    if let Some(config) = mqtt {
        let own = |broker: &BrokerConfig| broker_files(broker).map(|()| format!("broker {}", broker.url));
        looked.push((sink_name(MQTT), config.broker.as_ref().map_or(Ok("the uplink's broker".to_owned()), own)));
    }
    looked
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::capture::testing::{answer, id};

    #[test]
    fn each_sink_gets_what_it_wants_and_no_more() {
        let local = answer(id(1), "cam", None, 0);
        let changed = answer(id(1), "cam", None, 1);
        let agreed = Answer { changed: false, ..changed.clone() };
        for (wanted, expected) in [
            (SinkWants::All, [true, true, true]),
            (SinkWants::Corrections, [false, true, true]),
            (SinkWants::Changed, [false, false, true]),
        ] {
            assert_eq!([&local, &agreed, &changed].map(|answer| wanted.takes(answer)), expected, "{wanted:?}");
        }
    }
}
