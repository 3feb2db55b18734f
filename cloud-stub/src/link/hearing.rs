//! A short connection that hears all that a broker keeps under some topics, and knows when it has heard it.
//!
//! Brokers do not say when a subscription's retained messages have all been sent. A message of our own, published
//! after the subscription was granted, comes back behind what the broker had queued for us before it. If anything
//! retained came with it there may be more, so that is done again until a round brings nothing new: this also
//! settles with brokers that read their retained messages in the background.

use std::time::Duration;

use hedge_proto::{Name, Topics};
use rumqttc::mqttbytes::v5::{Packet, Publish, SubscribeReasonCode};
use rumqttc::{
    AsyncClient, Event, EventLoop, PublishNotice, PublishOptions, QoS, SubscribeFilterInput, SubscribeNoticeError,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::{Way, in_words};

/// How many messages may lie before us. They are taken as fast as they come.
const HEARD_MAX: usize = 1024;

/// How many requests may lie before the client: more than are ever under way.
const REQUESTS_MAX: usize = 256;

/// How long the broker may take to connect, to grant a subscription, or to bring back a message of ours.
const BROKER_WAIT_MAX: Duration = Duration::from_secs(20);

/// How many messages may be on their way to us. Brokers drop what they keep beyond this and their queue, so it is as
/// many as MQTT knows; without it mosquitto takes 20.
const RECEIVE_MAX: u16 = u16::MAX;

/// How long a goodbye may take.
const GOODBYE_MAX: Duration = Duration::from_secs(3);

/// Why there is no connection, or none any more.
#[derive(Debug, Clone, thiserror::Error)]
pub enum HearingError {
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

/// Who takes what comes while a subscription is granted and its retained messages are waited for.
pub trait Listener: Send {
    fn hear(&mut self, publish: Publish) -> impl Future<Output = ()> + Send;
}

/// Nothing comes that matters.
impl Listener for () {
    async fn hear(&mut self, _: Publish) {}
}

/// The connection.
pub struct Hearing {
    pub client: AsyncClient,
    incoming: mpsc::Receiver<Result<Publish, String>>,
    broker: String,
    /// Comes back to us, and to nobody else.
    marker: String,
    /// How many retained messages have come.
    pub retained: u64,
}

impl Hearing {
    /// Connects. `who` is what the broker's log calls it.
    pub async fn connect(way: &Way, topics: &Topics, who: &str, packet_bytes_max: u32) -> Result<Self, HearingError> {
        let me = format!("{who}-{:016x}", getrandom::u64().unwrap_or_else(|_| std::process::id().into()));
        let mut options = way.options(format!("hedge-{me}"));
        options.set_max_packet_size(Some(packet_bytes_max)).set_receive_maximum(Some(RECEIVE_MAX));
        let (client, events) = AsyncClient::builder(options).capacity(REQUESTS_MAX).build();
        let (heard, incoming) = mpsc::channel(HEARD_MAX);
        tokio::spawn(listen(events, heard));
        #[expect(clippy::expect_used, reason = "letters, digits and a dash make a name")]
        let marker = topics.marker(&Name::new(&me).expect("a name"));
        let mut hearing = Self { client, incoming, broker: way.endpoint.to_string(), marker, retained: 0 };
        hearing.subscribe(hearing.marker.clone(), &mut ()).await?;
        Ok(hearing)
    }

    /// Subscribes, and takes what comes meanwhile.
    pub async fn subscribe(&mut self, filter: String, listener: &mut impl Listener) -> Result<(), HearingError> {
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
                    Ok(publish) => listener.hear(publish?).await,
                    Err(_) => return Err(HearingError::Silent { broker: self.broker.clone(), filter }),
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
        Err(HearingError::NotAllowed { broker: self.broker.clone(), topic: filter, reason })
    }

    /// Takes what comes until a round brings nothing retained any more. See the module.
    pub async fn settle(&mut self, listener: &mut impl Listener) -> Result<(), HearingError> {
        loop {
            let before = self.retained;
            let options = PublishOptions::new(QoS::AtLeastOnce);
            let marked = self.client.try_publish_tracked(self.marker.clone(), Vec::new(), options);
            let notice = marked.map_err(|error| self.broken(error))?;
            let mut until = Instant::now() + BROKER_WAIT_MAX;
            loop {
                let Ok(received) = timeout_at(until, self.receive()).await else {
                    return Err(self.unmarked(notice).await);
                };
                let publish = received?;
                if publish.topic == self.marker {
                    break;
                }
                listener.hear(publish).await;
                // It is behind what comes; a broker that keeps much needs longer for that.
                until = Instant::now() + BROKER_WAIT_MAX;
            }
            if self.retained == before {
                return Ok(());
            }
        }
    }

    /// Why our own message has not come back.
    async fn unmarked(&mut self, notice: PublishNotice) -> HearingError {
        match timeout(Duration::ZERO, notice.wait_async()).await {
            Ok(Err(error)) => HearingError::NotAllowed {
                broker: self.broker.clone(),
                topic: self.marker.clone(),
                reason: error.to_string(),
            },
            _ => HearingError::NoMarker { broker: self.broker.clone(), marker: self.marker.clone() },
        }
    }

    /// The next message. Safe to drop and call again.
    pub async fn receive(&mut self) -> Result<Publish, HearingError> {
        match self.incoming.recv().await {
            Some(Ok(publish)) => {
                self.retained += u64::from(publish.retain);
                Ok(publish)
            }
            Some(Err(reason)) => Err(self.broken(reason)),
            None => Err(self.broken("it has ended")),
        }
    }

    /// Why the connection has ended.
    async fn last_words(&mut self) -> HearingError {
        loop {
            if let Err(error) = self.receive().await {
                return error;
            }
        }
    }

    pub fn broken(&self, reason: impl ToString) -> HearingError {
        HearingError::Broken { broker: self.broker.clone(), reason: reason.to_string() }
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
