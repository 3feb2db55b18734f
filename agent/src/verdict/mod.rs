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
mod numbers;
mod sinks;
mod webhook;

use std::sync::Arc;

use hedge_core::link::Profile;
use hedge_proto::{Answer, DeviceId, Name, SinkWants};

pub use self::apply::{ApplyError, Verdicts};
pub use self::command::CommandSink;
pub use self::delivery::Delivery;
pub use self::jsonl::Jsonl;
pub use self::locals::Locals;
pub use self::mqtt::{MqttSink, Spending};
pub use self::sinks::Sinks;
pub use self::webhook::Webhook;
use crate::uplink::{Meter, options};
use hedge_config::{BrokerConfig, SinkConfig, VerdictsConfig};

/// Why an answer was not delivered.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SinkError {
    /// The sink cannot be used, is not reached, or is in trouble: the next answer would fare no better.
    #[error("{0}")]
    Away(String),
    /// It did not take this answer. The next one it may take, and this one later.
    #[error("{0}")]
    Refused(String),
    /// The device is offline, or has no bytes left for answers; neither is a fault of the sink.
    #[error("nothing goes to the broker now")]
    Offline,
}

/// One way out, and who it is. They share nothing, so that none holds up another.
pub struct Sink {
    name: Name,
    /// Its bit in the outbox's record of who has a correction.
    number: u8,
    wanted: SinkWants,
    way: Way,
}

enum Way {
    Jsonl(Jsonl),
    Webhook(Webhook),
    Command(CommandSink),
    Mqtt(MqttSink),
}

/// Whether the files a broker of a sink's own needs are there.
fn broker_files(config: &BrokerConfig) -> Result<(), String> {
    options(config, "check", Profile::LAN.keep_alive, &Meter::default()).map(drop).map_err(|error| error.to_string())
}

/// The most answers one delivery takes.
pub const BATCH_MAX: usize = 256;

impl Sink {
    /// Nothing is opened or read yet.
    fn new(name: Name, number: u8, config: &SinkConfig, uplink: Option<Spending>, device: &DeviceId) -> Self {
        let way = match config {
            SinkConfig::Jsonl(file) => Way::Jsonl(Jsonl::new(file.path.clone(), file.bytes_max)),
            SinkConfig::Webhook(webhook) => Way::Webhook(Webhook::new(webhook.clone())),
            SinkConfig::Command(command) => Way::Command(CommandSink::new(&command.command)),
            SinkConfig::Mqtt(mqtt) => Way::Mqtt(match &mqtt.broker {
                Some(broker) => MqttSink::on_broker((**broker).clone(), device.clone()),
                None => MqttSink::on_uplink(uplink),
            }),
        };
        Self { name, number, wanted: config.wanted(), way }
    }

    /// Whether the sink has what it needs: files, programs, addresses. Nothing is delivered.
    pub async fn look(&mut self) -> Result<(), String> {
        match &mut self.way {
            Way::Jsonl(sink) => sink.look().await,
            Way::Webhook(sink) => sink.look(),
            Way::Command(sink) => sink.look(),
            Way::Mqtt(sink) => sink.look(),
        }
    }

    /// A file of this machine: folders wait for it, and it is there again as soon as somebody makes room.
    fn is_file(&self) -> bool {
        matches!(self.way, Way::Jsonl(_))
    }

    /// Whether local answers that differ from a source's last word are changes to those who read it.
    fn tells_changes(&self) -> bool {
        matches!(self.way, Way::Mqtt(_))
    }

    /// Delivers one answer.
    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        match &mut self.way {
            Way::Jsonl(sink) => sink.send(answer).await,
            Way::Webhook(sink) => sink.send(answer).await,
            Way::Command(sink) => sink.send(answer).await,
            Way::Mqtt(sink) => sink.send(answer).await,
        }
    }

    /// Delivers answers in order. Returns how many of the first of them are delivered, and what stopped it.
    pub async fn send_all(&mut self, answers: &[Arc<Answer>]) -> (usize, Result<(), SinkError>) {
        if let Way::Jsonl(sink) = &mut self.way {
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
pub fn look(config: &VerdictsConfig) -> Vec<(Name, Result<String, String>)> {
    let look = |config: &SinkConfig| match config {
        SinkConfig::Jsonl(file) => jsonl::appendable(&file.path).map(|()| format!("file {}", file.path.display())),
        // The address may hold a secret.
        SinkConfig::Webhook(config) => Webhook::new(config.clone()).look().map(|()| "its files can be read".to_owned()),
        SinkConfig::Command(config) => {
            let sink = CommandSink::new(&config.command);
            sink.look().map(|()| format!("program {}", sink.program()))
        }
        SinkConfig::Mqtt(config) => config.broker.as_ref().map_or(Ok("the uplink's broker".to_owned()), |broker| {
            broker_files(broker).map(|()| format!("broker {}", broker.url))
        }),
    };
    config.sinks.iter().map(|(name, config)| (name.clone(), look(config))).collect()
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
