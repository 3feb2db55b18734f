//! One connection, from dial to end.
//!
//! ```text
//! dial ─► CONNACK ─► SUBACK ─► status acknowledged ─► ready ─► broken, silent or left
//! ```
//! Each step before `ready` has a deadline and an outcome that is looked at: a session that lacks one of them could send
//! cases and never hear of them. Everything that the engine is told of a connection is told by one task, so that its end
//! never comes before its beginning.
//!
//! Every connection gets an event loop of its own: what the library would repeat from an earlier one is the
//! outbox's to decide.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hedge_core::engine::Event;
use hedge_core::link::{Loss, Trouble, Way};
use hedge_proto::{DeviceState, DeviceStatus, MESSAGE_BYTES_MAX, Topic, WIRE_VERSION, to_json};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnAck, DisconnectReasonCode, Packet, SubAck, SubscribeReasonCode};
use rumqttc::{AsyncClient, ConnectionError, NoticeFailureReason, PublishOptions, StateError, SubscribeFilter};
use tokio::sync::oneshot;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::inbound::{self, Inbox};
use super::options::uplink_options;
use super::silence::Silence;
use super::trouble::Dialled;
use super::{Leave, OptionsError, PublishError, REQUESTS_MAX, Session, SessionView, Shared, UplinkSetup, trouble};
use crate::faults::Part;

/// How long the goodbye may take when the agent stops.
pub(super) const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// MQTT's default when the broker names no receive maximum.
const RECEIVE_MAXIMUM_DEFAULT: u16 = u16::MAX;

/// How long the broker may take to grant the subscriptions, and then to acknowledge the status. On the slowest link that
/// is served either takes some seconds.
const SETUP_WAIT_MAX: Duration = Duration::from_secs(30);

/// The smallest packet that a device can live with: its status, settings and questions.
const PACKET_BYTES_MIN: usize = 2 * 1024;

/// How long what has arrived may take to be stored after the connection has ended.
const LAST_READ_MAX: Duration = Duration::from_secs(5);

/// So many connections are counted on the disk at once.
const CONNECTIONS_AT_ONCE: u64 = 16;

/// How a connection ended.
enum End {
    Failed(ConnectionError),
    /// The broker does not grant what a session needs.
    NotReady(Trouble),
    /// Open, but nothing is acknowledged any more.
    Silent,
    /// We left: other settings are in force, or the radio rests.
    Left,
}

/// What the end of a connection is for the engine, and for people.
type Told = (Loss, Option<Trouble>);

/// A connection that is not ready yet.
struct Opening {
    client: AsyncClient,
    view: SessionView,
    silence: Arc<Silence>,
    over: CancellationToken,
}

/// Why a connection came to nothing.
#[derive(Debug, thiserror::Error)]
enum SessionError {
    #[error(transparent)]
    Options(#[from] OptionsError),
    #[error("there is no broker to dial")]
    NoBroker,
    #[error("the state file: {0}")]
    State(#[from] std::io::Error),
    #[error(transparent)]
    Client(#[from] rumqttc::ClientBuildError),
}

/// Connects, serves until the connection ends, and tells the engine that it has.
pub(super) async fn run(shared: Arc<Shared>, way: Way, leave: Leave) {
    let (loss, trouble) = match serve(&shared, way, &leave).await {
        // Also what the broker made of our goodbye.
        Ok(_) if leave.wanted.is_cancelled() => (Loss::Broken, None),
        Ok(told) => told,
        Err(error) => {
            tracing::error!(%error, "cannot connect");
            (Loss::Broken, None)
        }
    };
    shared.set_session(None);
    shared.tell(Event::Disconnected(loss)).await;
    if matches!(loss, Loss::Broken | Loss::Refused) && !leave.wanted.is_cancelled() {
        explain(&shared, trouble).await;
    }
}

/// Finds words for people: the error's own, then the probe's if one is configured.
async fn explain(shared: &Shared, trouble: Option<Trouble>) {
    if let Some(trouble) = trouble {
        shared.tell(Event::Explained(trouble)).await;
    }
    if !trouble.is_some_and(Trouble::is_told)
        && let Some(config) = &shared.setup.probe
        && let Some(trouble) = trouble::probe(config).await
    {
        shared.tell(Event::Explained(trouble)).await;
    }
}

async fn serve(shared: &Arc<Shared>, way: Way, leave: &Leave) -> Result<Told, SessionError> {
    let connection = count_connection(shared).await?;
    let UplinkSetup { settings, device, meter, .. } = &shared.setup;
    let settings = settings.borrow().clone();
    let usual = settings.config.broker.as_ref().ok_or(SessionError::NoBroker)?;
    let broker = match way {
        Way::Usual => usual,
        Way::Recovery => usual.recovery.as_deref().ok_or(SessionError::NoBroker)?,
    };
    let keep_alive = settings.config.link.profile().keep_alive;
    let meter = meter.for_one();
    let options = match uplink_options(broker, device, &shared.offline(connection), keep_alive, &meter) {
        Ok(options) => options,
        Err(error) => {
            shared.setup.faults.set(&Part::Broker, format!("the broker cannot be dialled: {error}"));
            return Err(error.into());
        }
    };
    shared.setup.faults.clear(&Part::Broker);
    let view = SessionView { connection, version: settings.version, way };
    let (client, mut eventloop) = AsyncClient::builder(options).capacity(REQUESTS_MAX).try_build()?;
    let silence = Arc::new(Silence::new());
    let over = CancellationToken::new();
    let ended = over.clone().drop_guard();
    let (mut inbox, arrived) = Inbox::new();
    let reading = tokio::spawn(inbound::listen(shared.clone(), client.clone(), arrived, over.clone()));
    let (greeting, greeted) = oneshot::channel();
    let mut greeting = Some(greeting);

    let polling = async {
        loop {
            match eventloop.poll().await {
                Ok(rumqttc::Event::Incoming(packet)) => {
                    silence.heard();
                    match packet {
                        // One CONNACK ends the wait for it; the library refuses a second.
                        Packet::ConnAck(ack) => {
                            if let Some(greeting) = greeting.take() {
                                drop(greeting.send(ack));
                            }
                        }
                        Packet::Publish(publish) => inbox.keep(publish),
                        _ => {}
                    }
                }
                Ok(_) => {}
                Err(error) => return End::Failed(error),
            }
        }
    };
    // On the task that sees the end: told by a task of its own, `Connected` could come after `Disconnected`.
    let opening = async {
        let Ok(ack) = greeted.await else { return std::future::pending().await };
        let opening = Opening { client, view, silence: silence.clone(), over: over.clone() };
        match open(shared, opening, &ack).await {
            Ok(()) => std::future::pending().await,
            Err(trouble) => End::NotReady(trouble),
        }
    };
    let end = tokio::select! {
        end = polling => end,
        end = opening => end,
        () = silence.broken() => End::Silent,
        () = leave.now.cancelled() => End::Left,
    };
    shared.set_session(None);
    eventloop.clean();
    eventloop.drain_pending_as_failed(NoticeFailureReason::SessionReset);
    // Nothing more can be acknowledged, and nobody waits for room to.
    drop((eventloop, inbox, ended));
    if timeout(LAST_READ_MAX, reading).await.is_err() {
        tracing::warn!("what arrived over the last connection is still being stored");
    }
    Ok(end.told(&Dialled { broker, meter: &meter, greeted: greeting.is_none() }))
}

impl End {
    fn told(&self, dialled: &Dialled<'_>) -> Told {
        match self {
            Self::Failed(error) => {
                let (loss, trouble) = (loss(error, dialled.greeted), trouble::read(error, dialled));
                tracing::info!(%error, "no connection to the broker: {}", trouble.text());
                (loss, Some(trouble))
            }
            Self::NotReady(trouble) => {
                tracing::error!("the broker cannot be used: {}", trouble.text());
                (Loss::Broken, Some(*trouble))
            }
            Self::Silent => {
                tracing::info!("the broker has acknowledged nothing for too long; dialling again");
                (Loss::Broken, Some(Trouble::NoAnswer))
            }
            Self::Left => (Loss::Broken, None),
        }
    }
}

/// Counts this connection, so that an old `offline` is known to be old. Numbers are taken from the disk many at once:
/// not every dial wears it out, and after a restart the count goes on behind all that may have been used.
async fn count_connection(shared: &Arc<Shared>) -> Result<u64, std::io::Error> {
    let shared = shared.clone();
    let counted = tokio::task::spawn_blocking(move || {
        let mut file = shared.setup.state.lock().unwrap_or_else(PoisonError::into_inner);
        let mut taken = shared.connections.lock().unwrap_or_else(PoisonError::into_inner);
        if !taken.is_empty() {
            return (taken.next().unwrap_or_default(), Ok(()));
        }
        let before = file.state().connection;
        *taken = before + 1..before + 1 + CONNECTIONS_AT_ONCE;
        let written = file.update(|state| state.connection += CONNECTIONS_AT_ONCE);
        (taken.next().unwrap_or_default(), written)
    });
    let (connection, written) = counted.await.map_err(std::io::Error::other)?;
    if let Err(error) = written {
        // A full disk is no reason to stay away from the cloud; the count goes on in memory.
        tracing::warn!(%error, "cannot write the state file");
    }
    Ok(connection)
}

/// Asks for everything a session needs, says `online`, and only then tells the engine that it is ready.
async fn open(shared: &Shared, opening: Opening, ack: &ConnAck) -> Result<(), Trouble> {
    let Opening { client, view, silence, over } = opening;
    let packet_bytes_max = granted(ack)?;
    let subscribed = timeout(SETUP_WAIT_MAX, subscribe(shared, &client)).await;
    subscribed.unwrap_or(Err(Trouble::SubscriptionUnanswered))?;
    let session = Session { client, view, packet_bytes_max, silence, over };
    shared.set_told(None);
    let told = timeout(SETUP_WAIT_MAX, shared.publish_online(&session)).await;
    told.unwrap_or(Err(PublishError::Unclear)).map_err(|error| {
        tracing::warn!(%error, "the device's status is not taken");
        match error {
            PublishError::TooLarge { .. } => Trouble::SmallPackets,
            PublishError::Refused(_) => Trouble::StatusRefused,
            PublishError::NotConnected | PublishError::Nobody | PublishError::Unclear => Trouble::StatusUnanswered,
        }
    })?;
    let receive_maximum =
        ack.properties.as_ref().and_then(|properties| properties.receive_max).unwrap_or(RECEIVE_MAXIMUM_DEFAULT);
    shared.set_session(Some(session));
    shared.tell(Event::Connected { receive_maximum }).await;
    Ok(())
}

/// Whether the broker grants what every session needs. Returns the largest packet it takes.
pub fn granted(ack: &ConnAck) -> Result<usize, Trouble> {
    let Some(properties) = &ack.properties else { return Ok(MESSAGE_BYTES_MAX) };
    if properties.retain_available == Some(0) {
        return Err(Trouble::NoRetained);
    }
    if properties.max_qos == Some(0) {
        return Err(Trouble::NoQos1);
    }
    if properties.wildcard_subscription_available == Some(0) {
        return Err(Trouble::NoWildcards);
    }
    let bytes = properties.max_packet_size.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(usize::MAX);
    if bytes < PACKET_BYTES_MIN { Err(Trouble::SmallPackets) } else { Ok(bytes.min(MESSAGE_BYTES_MAX)) }
}

async fn subscribe(shared: &Shared, client: &AsyncClient) -> Result<(), Trouble> {
    let topics = &shared.setup.prefix;
    let filters = [topics.down_filter(&shared.setup.device), topics.cloud_filter()]
        .map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
    // Without the client's other end the connection has ended, which is told by that.
    let notice = client.try_subscribe_many_tracked(filters).map_err(|_| Trouble::SubscriptionUnanswered)?;
    subscribed(&notice.wait_async().await.map_err(|_| Trouble::SubscriptionUnanswered)?)
}

/// Whether the broker grants what was asked for. The library's own word for success only means that SUBACK has come.
pub fn subscribed(ack: &SubAck) -> Result<(), Trouble> {
    match ack.return_codes.iter().find(|code| **code != SubscribeReasonCode::Success(QoS::AtLeastOnce)) {
        None => Ok(()),
        Some(SubscribeReasonCode::Success(QoS::AtMostOnce)) => Err(Trouble::NoQos1),
        // More than was asked for.
        Some(SubscribeReasonCode::Success(_)) => Err(Trouble::BrokenProtocol),
        Some(SubscribeReasonCode::WildcardSubscriptionsNotSupported) => Err(Trouble::NoWildcards),
        Some(_) => Err(Trouble::NotSubscribed),
    }
}

impl Shared {
    pub(super) async fn publish_online(&self, session: &Session) -> Result<(), PublishError> {
        let status = DeviceStatus {
            state: DeviceState::Online,
            connection: session.view.connection,
            window_every_s: self.window_every_s(),
            link: self.told().map(str::to_owned),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            wire: (1..=WIRE_VERSION).collect(),
            models: (self.setup.models)(),
            faults: self.setup.faults.now(),
        };
        self.publish_status(session, &status).await
    }

    pub(super) async fn publish_offline(&self, session: &Session) -> Result<(), PublishError> {
        let status = self.offline(session.view.connection);
        let said = timeout(GOODBYE_WAIT, self.publish_status(session, &status)).await;
        said.unwrap_or(Err(PublishError::Unclear))
    }

    fn offline(&self, connection: u64) -> DeviceStatus {
        DeviceStatus { window_every_s: self.window_every_s(), ..DeviceStatus::offline(connection) }
    }

    /// How often we connect, if the radio rests in between.
    pub(super) fn window_every_s(&self) -> Option<u32> {
        self.setup.settings.borrow().config.link.windows.told_every_s()
    }

    async fn publish_status(&self, session: &Session, status: &DeviceStatus) -> Result<(), PublishError> {
        let topic = self.setup.prefix.text(&Topic::UpStatus(self.setup.device.clone()));
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        match self.publish_over(session.clone(), topic, to_json(status), options).await {
            // Kept for whoever comes; nobody need listen now.
            Err(PublishError::Nobody) => Ok(()),
            other => other,
        }
    }
}

/// What the end of a connection is, once it had begun.
fn loss(error: &ConnectionError, greeted: bool) -> Loss {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        }) => Loss::TakenOver,
        ConnectionError::MqttState(StateError::ConnectionAborted) if greeted => Loss::Closed,
        // Some brokers acknowledge what is too large with a code that MQTT does not have there (mosquitto: PUBACK 0x95).
        ConnectionError::MqttState(StateError::ServerDisconnect { .. } | StateError::Deserialization(_)) if greeted => {
            Loss::Refused
        }
        _ => Loss::Broken,
    }
}
