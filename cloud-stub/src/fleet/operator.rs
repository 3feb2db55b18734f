//! One connection of an operator: what it may hear is on the board before anything is done.
//! Where nothing retained came at all, a broker that reads its retained messages in the background is given
//! `EMPTY_WAIT`.

use std::time::Duration;

use hedge_proto::{DOCUMENT_BYTES_MAX, DeviceId, Topic, Topics};
use rumqttc::mqttbytes::v5::{Publish, PublishProperties};
use rumqttc::{PublishNotice, PublishOptions, QoS};
use tokio::time::timeout;

use super::board::{Board, Device, Said, read};
use super::errand::{Errand, What};
use crate::link::{Hearing, HearingError, Listener, Way};

/// The largest packet that is read: a document with its topic and properties.
#[expect(clippy::cast_possible_truncation, reason = "128 KiB")]
const PACKET_BYTES_MAX: u32 = 2 * DOCUMENT_BYTES_MAX as u32;

/// How long a broker that brought nothing at all is given.
const EMPTY_WAIT: Duration = Duration::from_secs(1);

/// A command that has not arrived by then is not delivered any more; a device that rests its radio has that much longer.
const COMMAND_EXPIRY_S: u32 = 3600;

/// Whom to listen to.
#[derive(Debug, Clone)]
pub struct Scope {
    /// One device, or all.
    pub device: Option<DeviceId>,
    /// `status`, `reported`, `reply`, `telemetry`, `desired`.
    pub topics: &'static [&'static str],
}

/// What setting and commanding needs to hear.
pub const ACTING: &[&str] = &["status", "reported", "desired", "reply"];
/// What looking needs to hear.
pub const LOOKING: &[&str] = &["status", "reported", "desired"];
/// Everything that is said to people.
pub const WATCHING: &[&str] = &["status", "reported", "desired", "reply", "telemetry"];

/// One message.
#[derive(Debug, Clone)]
pub struct Heard {
    pub device: DeviceId,
    pub said: Said,
    /// It was there before we asked.
    pub retained: bool,
}

/// A connection, and what was heard over it.
pub struct Operator {
    pub board: Board,
    hearing: Hearing,
    topics: Topics,
}

impl Operator {
    /// Connects, subscribes, and returns once everything retained is on the board.
    pub async fn connect(way: &Way, topics: Topics, scope: &Scope) -> Result<Self, HearingError> {
        let mut hearing = Hearing::connect(way, &topics, "operator", PACKET_BYTES_MAX).await?;
        let mut board = Board::default();
        // One kind at a time: brokers bound what they queue for a client, and this way that bounds each kind alone.
        for what in scope.topics {
            let mut on_board = OnBoard { board: &mut board, topics: &topics };
            hearing.subscribe(filter(&topics, scope, what), &mut on_board).await?;
            hearing.settle(&mut on_board).await?;
        }
        let mut operator = Self { board, hearing, topics };
        if operator.hearing.retained == 0 {
            operator.wait_for_anything().await?;
        }
        Ok(operator)
    }

    /// The next message about a device; the board has it already. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Heard, HearingError> {
        loop {
            let publish = self.hearing.receive().await?;
            if let Some(heard) = take(&mut self.board, &self.topics, &publish) {
                return Ok(heard);
            }
        }
    }

    /// Begins to publish an errand. The notice tells what the broker made of it.
    pub fn publish(&self, errand: &Errand) -> Result<PublishNotice, HearingError> {
        let device = errand.device.clone();
        let rest_s = self.board.devices.get(&device).and_then(Device::window_every_s).unwrap_or(0);
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let (topic, options) = match &errand.what {
            What::Settings(_) => (Topic::DownDesired(device), options.retained()),
            What::Command(message) => {
                let properties = PublishProperties {
                    message_expiry_interval: Some(COMMAND_EXPIRY_S + rest_s),
                    response_topic: Some(self.topics.text(&Topic::UpReply(device.clone()))),
                    correlation_data: message.id.as_ref().map(|id| id.clone().into()),
                    ..PublishProperties::default()
                };
                (Topic::DownCommand(device), options.properties(properties))
            }
        };
        let published = self.hearing.client.try_publish_tracked(self.topics.text(&topic), errand.payload(), options);
        published.map_err(|error| self.hearing.broken(error))
    }

    async fn wait_for_anything(&mut self) -> Result<(), HearingError> {
        let Self { board, hearing, topics } = self;
        match timeout(EMPTY_WAIT, hearing.receive()).await {
            Ok(heard) => {
                let mut on_board = OnBoard { board, topics };
                on_board.hear(heard?).await;
                hearing.settle(&mut on_board).await
            }
            Err(_) => Ok(()),
        }
    }

    /// Says goodbye to the broker. Just dropping it would look like a cut.
    pub async fn close(self) {
        self.hearing.close().await;
    }
}

fn filter(topics: &Topics, scope: &Scope, what: &str) -> String {
    let Some(device) = &scope.device else {
        return match what {
            "desired" => topics.fleet_down_filter(what),
            _ => topics.fleet_filter(what),
        };
    };
    let topic = match what {
        "status" => Topic::UpStatus,
        "reported" => Topic::UpReported,
        "reply" => Topic::UpReply,
        "desired" => Topic::DownDesired,
        _ => Topic::UpTelemetry,
    };
    topics.text(&topic(device.clone()))
}

struct OnBoard<'a> {
    board: &'a mut Board,
    topics: &'a Topics,
}

impl Listener for OnBoard<'_> {
    async fn hear(&mut self, publish: Publish) {
        drop(take(self.board, self.topics, &publish));
    }
}

/// Puts a message on the board.
fn take(board: &mut Board, topics: &Topics, publish: &Publish) -> Option<Heard> {
    let topic = topics.read(std::str::from_utf8(&publish.topic).ok()?)?;
    let (device, said) = read(topic, &publish.payload)?;
    board.hear(&device, &said);
    Some(Heard { device, said, retained: publish.retain })
}
