//! One connection of an operator: what it may hear is on the board before anything is done.
//!
//! Brokers do not say when a subscription's retained messages have all been sent. A message of our own, published
//! after the subscription was granted, comes back behind what the broker had queued for us before it. If anything
//! retained came with it there may be more, so that is done again until a round brings nothing new: this also
//! settles with brokers that read their retained messages in the background. Where nothing came at all, such a
//! broker is given `EMPTY_WAIT`.

use std::time::Duration;

use hedge_proto::{DOCUMENT_BYTES_MAX, DeviceId, Name, Topic, Topics};
use rumqttc::mqttbytes::v5::{Packet, Publish, PublishProperties, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, Event, EventLoop, PublishNotice, PublishOptions, QoS, SubscribeFilterInput, SubscribeNoticeError,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::board::{Board, Device, Said, read};
use super::errand::{Errand, What};
use crate::link::{Way, in_words};

/// The largest packet that is read: a document with its topic and properties.
#[expect(clippy::cast_possible_truncation, reason = "128 KiB")]
const PACKET_BYTES_MAX: u32 = 2 * DOCUMENT_BYTES_MAX as u32;

/// How many messages may lie before us. They are taken as fast as they come.
const HEARD_MAX: usize = 1024;

/// How many requests may lie before the client: more than are ever under way.
const REQUESTS_MAX: usize = 256;

/// How long the broker may take to connect, to grant a subscription, or to bring back a message of ours.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(20);

/// How long a broker that brought nothing at all is given.
const EMPTY_WAIT: Duration = Duration::from_secs(1);

/// How long a goodbye may take.
const GOODBYE_MAX: Duration = Duration::from_secs(3);

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

/// Why there is no connection, or none any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum OperatorError {
    #[error("no connection to {broker}: {reason}")]
    Broken { broker: String, reason: String },
    #[error("{broker} has not granted `{filter}` in {} s", BROKER_WAIT_MAX.as_secs())]
    Silent { broker: String, filter: String },
    #[error(
        "{broker} has not brought back our own message on `{marker}` in {} s; may this client publish and read there?",
        BROKER_WAIT_MAX.as_secs()
    )]
    NoMarker { broker: String, marker: String },
    #[error("{broker} does not allow `{topic}` ({reason}); check its access list")]
    NotAllowed { broker: String, topic: String, reason: String },
}

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
    client: AsyncClient,
    incoming: mpsc::Receiver<Result<Publish, String>>,
    topics: Topics,
    broker: String,
    /// Comes back to us, and to nobody else.
    marker: String,
    retained: u64,
}

impl Operator {
    /// Connects, subscribes, and returns once everything retained is on the board.
    pub async fn connect(way: &Way, topics: Topics, scope: &Scope) -> Result<Self, OperatorError> {
        let me = format!("operator-{:016x}", getrandom::u64().unwrap_or_else(|_| std::process::id().into()));
        let mut options = way.options(format!("hedge-{me}"));
        options.set_max_packet_size(Some(PACKET_BYTES_MAX));
        let (client, events) = AsyncClient::builder(options).capacity(REQUESTS_MAX).build();
        let (heard, incoming) = mpsc::channel(HEARD_MAX);
        tokio::spawn(listen(events, heard));
        #[expect(clippy::expect_used, reason = "letters, digits and a dash make a name")]
        let marker = topics.marker(&Name::new(&me).expect("a name"));
        let broker = way.endpoint.to_string();
        let mut operator = Self { board: Board::default(), client, incoming, topics, broker, marker, retained: 0 };
        operator.subscribe(operator.marker.clone()).await?;
        // One kind at a time: brokers bound what they queue for a client, and this way that bounds each kind alone.
        for what in scope.topics {
            operator.subscribe(operator.filter(scope, what)).await?;
            operator.settle().await?;
        }
        if operator.retained == 0 {
            operator.wait_for_anything().await?;
        }
        Ok(operator)
    }

    /// The next message about a device; the board has it already. Safe to drop and call again.
    pub async fn next(&mut self) -> Result<Heard, OperatorError> {
        loop {
            let publish = self.receive().await?;
            if let Some(heard) = self.take(&publish) {
                return Ok(heard);
            }
        }
    }

    /// Begins to publish an errand. The notice tells what the broker made of it.
    pub fn publish(&self, errand: &Errand) -> Result<PublishNotice, OperatorError> {
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
        let published = self.client.try_publish_tracked(self.topics.text(&topic), errand.payload(), options);
        published.map_err(|error| self.broken(error))
    }

    /// Says goodbye to the broker. Just dropping it would look like a cut.
    pub async fn close(mut self) {
        let goodbye = async {
            self.client.disconnect().await?;
            while let Some(Ok(_)) = self.incoming.recv().await {}
            Ok::<_, rumqttc::ClientError>(())
        };
        if !matches!(timeout(GOODBYE_MAX, goodbye).await, Ok(Ok(()))) {
            tracing::debug!("the broker did not hear our goodbye");
        }
    }

    fn filter(&self, scope: &Scope, what: &str) -> String {
        let Some(device) = &scope.device else {
            return match what {
                "desired" => self.topics.fleet_down_filter(what),
                _ => self.topics.fleet_filter(what),
            };
        };
        let topic = match what {
            "status" => Topic::UpStatus,
            "reported" => Topic::UpReported,
            "reply" => Topic::UpReply,
            "desired" => Topic::DownDesired,
            _ => Topic::UpTelemetry,
        };
        self.topics.text(&topic(device.clone()))
    }

    async fn subscribe(&mut self, filter: String) -> Result<(), OperatorError> {
        // QoS 0: over one connection to a living broker nothing of it is lost, and brokers that bound their queues
        // bound only what must be acknowledged.
        let wanted = [SubscribeFilterInput::new(filter.clone(), QoS::AtMostOnce)];
        let notice = self.client.subscribe_many_tracked(wanted).await.map_err(|error| self.broken(error))?;
        let granted = notice.wait_async();
        tokio::pin!(granted);
        let until = Instant::now() + BROKER_WAIT_MAX;
        let granted = loop {
            tokio::select! {
                granted = &mut granted => break granted,
                received = timeout_at(until, self.receive()) => match received {
                    Ok(publish) => drop(self.take(&publish?)),
                    Err(_) => return Err(OperatorError::Silent { broker: self.broker.clone(), filter }),
                },
            }
        };
        let reason = match granted {
            Ok(granted) => {
                let refused = granted.return_codes.iter().find(|code| !matches!(code, SubscribeReasonCode::Success(_)));
                let Some(refused) = refused else { return Ok(()) };
                in_words(refused)
            }
            Err(SubscribeNoticeError::V5SubAckFailure(codes)) => codes.first().map(in_words).unwrap_or_default(),
            Err(_) => return Err(self.last_words().await),
        };
        Err(OperatorError::NotAllowed { broker: self.broker.clone(), topic: filter, reason })
    }

    /// Returns when a round brings nothing retained any more. See the module.
    async fn settle(&mut self) -> Result<(), OperatorError> {
        loop {
            let before = self.retained;
            let options = PublishOptions::new(QoS::AtLeastOnce);
            let marked = self.client.try_publish_tracked(self.marker.clone(), Vec::new(), options);
            let notice = marked.map_err(|error| self.broken(error))?;
            let until = Instant::now() + BROKER_WAIT_MAX;
            loop {
                let Ok(received) = timeout_at(until, self.receive()).await else {
                    return Err(self.unmarked(notice).await);
                };
                let publish = received?;
                if publish.topic == self.marker {
                    break;
                }
                drop(self.take(&publish));
            }
            if self.retained == before {
                return Ok(());
            }
        }
    }

    async fn wait_for_anything(&mut self) -> Result<(), OperatorError> {
        match timeout(EMPTY_WAIT, self.next()).await {
            Ok(heard) => {
                heard?;
                self.settle().await
            }
            Err(_) => Ok(()),
        }
    }

    /// Why our own message has not come back.
    async fn unmarked(&mut self, notice: PublishNotice) -> OperatorError {
        match timeout(Duration::ZERO, notice.wait_async()).await {
            Ok(Err(error)) => OperatorError::NotAllowed {
                broker: self.broker.clone(),
                topic: self.marker.clone(),
                reason: error.to_string(),
            },
            _ => OperatorError::NoMarker { broker: self.broker.clone(), marker: self.marker.clone() },
        }
    }

    async fn receive(&mut self) -> Result<Publish, OperatorError> {
        match self.incoming.recv().await {
            Some(Ok(publish)) => Ok(publish),
            Some(Err(reason)) => Err(self.broken(reason)),
            None => Err(self.broken("it has ended")),
        }
    }

    fn take(&mut self, publish: &Publish) -> Option<Heard> {
        let topic = self.topics.read(std::str::from_utf8(&publish.topic).ok()?)?;
        let (device, said) = read(topic, &publish.payload)?;
        self.board.hear(&device, &said);
        self.retained += u64::from(publish.retain);
        Some(Heard { device, said, retained: publish.retain })
    }

    /// Why the connection has ended.
    async fn last_words(&mut self) -> OperatorError {
        loop {
            if let Err(error) = self.receive().await {
                return error;
            }
        }
    }

    fn broken(&self, reason: impl ToString) -> OperatorError {
        OperatorError::Broken { broker: self.broker.clone(), reason: reason.to_string() }
    }
}

/// Owns the connection. Ends with it, or when nobody listens any more.
async fn listen(mut events: EventLoop, heard: mpsc::Sender<Result<Publish, String>>) {
    loop {
        let said = match events.poll().await {
            Ok(Event::Incoming(Packet::Publish(publish))) => Ok(publish),
            Ok(_) => continue,
            Err(error) => Err(error.to_string()),
        };
        let ended = said.is_err();
        if heard.send(said).await.is_err() || ended {
            return;
        }
    }
}
