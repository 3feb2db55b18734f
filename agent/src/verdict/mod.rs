//! Takes answers out of the device: a file, a webhook, a program.
//!
//! A [`Sink`] delivers what it is given or says why not; which answers are undelivered, in which order they go and
//! when to try again is the outbox's and the delivery loop's business. Every delivery carries the idempotency
//! key `id/revision`: the JSON-lines file holds each key exactly once, the others may see one again.

mod apply;
mod command;
mod delivery;
mod jsonl;
mod mqtt;
mod sinks;
mod webhook;

use std::sync::Arc;

use hedge_proto::{Answer, DeviceId};

pub use self::apply::Verdicts;
pub use self::command::CommandSink;
pub use self::delivery::Delivery;
pub use self::jsonl::Jsonl;
pub use self::mqtt::MqttSink;
pub use self::sinks::Sinks;
pub use self::webhook::Webhook;
use crate::daemon::config::{VerdictsConfig, Wanted};
use crate::uplink::{OptionsError, Uplink};

/// Why an answer was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// It may go better later.
    #[error("{0}")]
    Retry(String),
    /// This answer will never be taken; the next one may be.
    #[error("{0}")]
    Refused(String),
}

/// Why a sink of the configuration cannot be used at all.
#[derive(Debug, thiserror::Error)]
pub enum SinkConfigError {
    #[error("verdicts.webhook: {0}")]
    Webhook(String),
    #[error("verdicts.command: the command is empty")]
    NoCommand,
    #[error("verdicts.mqtt: {0}")]
    Mqtt(#[from] OptionsError),
    #[error("verdicts.mqtt: there is no [broker] to publish on; give it a `broker` of its own")]
    NoBroker,
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

/// The bits of the configured sinks: who must have a correction before its case is forgotten.
fn sink_bits(config: &VerdictsConfig) -> u8 {
    let VerdictsConfig { score_min: _, jsonl, webhook, command, mqtt } = config;
    let bit = |configured: bool, number: u8| u8::from(configured) << number;
    bit(jsonl.is_some(), JSONL)
        | bit(webhook.is_some(), WEBHOOK)
        | bit(command.is_some(), COMMAND)
        | bit(mqtt.is_some(), MQTT)
}

/// The most answers one delivery takes.
pub const BATCH_MAX: usize = 256;

impl Sink {
    /// The configured sink of this number with what it wants, if there is one.
    fn configured(
        number: u8,
        config: &VerdictsConfig,
        uplink: Option<&Uplink>,
        device: &DeviceId,
    ) -> Result<Option<(Self, Wanted)>, SinkConfigError> {
        Ok(match (number, config) {
            (JSONL, VerdictsConfig { jsonl: Some(jsonl), .. }) => {
                Some((Self::Jsonl(Jsonl::new(jsonl.path.clone(), jsonl.bytes_max)), jsonl.wanted))
            }
            (WEBHOOK, VerdictsConfig { webhook: Some(webhook), .. }) => {
                Some((Self::Webhook(Webhook::new(webhook)?), webhook.wanted))
            }
            (COMMAND, VerdictsConfig { command: Some(command), .. }) => {
                Some((Self::Command(CommandSink::new(&command.command)?), command.wanted))
            }
            (MQTT, VerdictsConfig { mqtt: Some(mqtt), .. }) => {
                let sink = match (&mqtt.broker, uplink) {
                    (Some(broker), _) => MqttSink::on_broker(broker, device)?,
                    (None, Some(uplink)) => MqttSink::on_uplink(uplink.clone()),
                    (None, None) => return Err(SinkConfigError::NoBroker),
                };
                Some((Self::Mqtt(sink), mqtt.wanted))
            }
            _ => None,
        })
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

    /// Whether this local answer is to be passed on.
    pub fn wants_local(&mut self, wanted: Wanted, answer: &Answer) -> bool {
        match self {
            Self::Mqtt(sink) => sink.wants_local(wanted, answer),
            _ => wanted.takes(answer),
        }
    }

    /// What status and the outbox call it.
    #[must_use]
    pub fn name(&self) -> &'static str {
        match self {
            Self::Jsonl(_) => "jsonl",
            Self::Webhook(_) => "webhook",
            Self::Command(_) => "command",
            Self::Mqtt(_) => "mqtt",
        }
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

impl Wanted {
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
            (Wanted::All, [true, true, true]),
            (Wanted::Corrections, [false, true, true]),
            (Wanted::Changed, [false, false, true]),
        ] {
            assert_eq!([&local, &agreed, &changed].map(|answer| wanted.takes(answer)), expected, "{wanted:?}");
        }
    }
}
