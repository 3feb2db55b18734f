//! One connection, from dial to end.
//!
//! Every connection gets an event loop of its own: what the library would repeat from an earlier one is the
//! outbox's to decide.

use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hedge_core::engine::Event;
use hedge_core::link::{Loss, Trouble, Way};
use hedge_proto::{DeviceState, DeviceStatus, MESSAGE_BYTES_MAX, Topic, WIRE_VERSION, to_json};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{ConnAck, DisconnectReasonCode, Packet, Publish};
use rumqttc::{AsyncClient, ConnectionError, NoticeFailureReason, StateError};
use rumqttc::{SubscribeFilter, SubscribeNoticeError};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::options::uplink_options;
use super::silence::Silence;
use super::{
    Leave, OptionsError, PublishError, REQUESTS_MAX, Session, SessionView, Shared, UplinkSetup, inbound, trouble,
};
use crate::faults::Part;

/// How long the goodbye may take when the agent stops.
pub(super) const GOODBYE_WAIT: Duration = Duration::from_secs(2);

/// MQTT's default when the broker names no receive maximum.
const RECEIVE_MAXIMUM_DEFAULT: u16 = u16::MAX;

/// Messages from the broker that may wait to be read. Some brokers send more at once than the receive maximum they
/// were told; a dropped verdict would only come again when it is asked about.
const INBOX_MAX: usize = 2048;

/// So many connections are counted on the disk at once.
const CONNECTIONS_AT_ONCE: u64 = 16;

/// How a connection ended.
enum End {
    Failed(ConnectionError),
    /// Open, but nothing is acknowledged any more.
    Silent,
    /// We left: other settings are in force, or the radio rests.
    Left,
}

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
    let (loss, trouble) = match serve(&shared, way, leave.now).await {
        // Also what the broker made of our goodbye.
        Ok(_) if leave.wanted.is_cancelled() => (Loss::Broken, None),
        Ok(End::Failed(error)) => {
            tracing::info!(%error, "the connection to the broker ended");
            (loss(&error), Some(trouble::read(&error)))
        }
        Ok(End::Silent) => {
            tracing::info!("the broker has acknowledged nothing for too long; dialling anew");
            (Loss::Broken, Some(Trouble::NoAnswer))
        }
        Ok(End::Left) => (Loss::Broken, None),
        Err(error) => {
            tracing::error!(%error, "cannot connect");
            (Loss::Broken, None)
        }
    };
    shared.set_session(None);
    shared.tell(Event::Disconnected(loss)).await;
    if loss == Loss::Broken && !leave.wanted.is_cancelled() {
        explain(&shared, trouble).await;
    }
}

/// Finds words for people: the error's own, then the probe's if one is configured.
async fn explain(shared: &Shared, trouble: Option<Trouble>) {
    if let Some(trouble) = trouble {
        shared.tell(Event::Explained(trouble)).await;
    }
    if let Some(config) = &shared.setup.probe
        && let Some(trouble) = trouble::probe(config).await
    {
        shared.tell(Event::Explained(trouble)).await;
    }
}

async fn serve(shared: &Arc<Shared>, way: Way, leave: CancellationToken) -> Result<End, SessionError> {
    let connection = count_connection(shared).await?;
    let UplinkSetup { settings, device, meter, .. } = &shared.setup;
    let settings = settings.borrow().clone();
    let usual = settings.config.broker.as_ref().ok_or(SessionError::NoBroker)?;
    let broker = match way {
        Way::Usual => usual,
        Way::Recovery => usual.recovery.as_deref().ok_or(SessionError::NoBroker)?,
    };
    let keep_alive = settings.config.link.profile().keep_alive;
    let options = match uplink_options(broker, device, &shared.offline(connection), keep_alive, meter) {
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
    let _ends_with_this = over.clone().drop_guard();
    let (inbox, arrived) = mpsc::channel(INBOX_MAX);
    tokio::spawn(inbound::listen(shared.clone(), client.clone(), arrived, over.clone()));

    let polling = async {
        loop {
            match eventloop.poll().await {
                Ok(rumqttc::Event::Incoming(packet)) => {
                    silence.heard();
                    match packet {
                        Packet::ConnAck(ack) => {
                            let opening =
                                Opening { client: client.clone(), view, silence: silence.clone(), over: over.clone() };
                            tokio::spawn(open(shared.clone(), opening, ack));
                        }
                        Packet::Publish(publish) => keep(&inbox, publish),
                        _ => {}
                    }
                }
                Ok(_) => {}
                Err(error) => return End::Failed(error),
            }
        }
    };
    let end = tokio::select! {
        end = polling => end,
        () = silence.broken() => End::Silent,
        () = leave.cancelled() => End::Left,
    };
    shared.set_session(None);
    eventloop.clean();
    eventloop.drain_pending_as_failed(NoticeFailureReason::SessionReset);
    Ok(end)
}

fn keep(inbox: &mpsc::Sender<Publish>, publish: Publish) {
    if inbox.try_send(publish).is_err() {
        tracing::warn!("more messages arrive than are read; one was dropped");
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

/// Subscribes, says `online`, and tells the engine that the session is ready.
async fn open(shared: Arc<Shared>, opening: Opening, ack: ConnAck) {
    let Opening { client, view, silence, over } = opening;
    if let Err(error) = subscribe(&shared, &client).await {
        tracing::error!(%error, "the broker does not grant the device's subscriptions; check its access rules");
        drop(client.disconnect_now().await);
        return;
    }
    let properties = ack.properties.as_ref();
    let packet_bytes_max = properties
        .and_then(|properties| properties.max_packet_size)
        .and_then(|bytes| usize::try_from(bytes).ok())
        .unwrap_or(usize::MAX)
        .min(MESSAGE_BYTES_MAX);
    let receive_maximum = properties.and_then(|properties| properties.receive_max).unwrap_or(RECEIVE_MAXIMUM_DEFAULT);
    let session = Session { client, view, packet_bytes_max, silence, over };
    shared.set_told(None);
    shared.set_session(Some(session.clone()));
    shared.tell(Event::Connected { receive_maximum }).await;
    if let Err(error) = shared.publish_online(&session).await {
        tracing::warn!(%error, "could not publish the device's status");
    }
}

async fn subscribe(shared: &Shared, client: &AsyncClient) -> Result<(), SubscribeNoticeError> {
    let topics = &shared.setup.prefix;
    let filters = [topics.down_filter(&shared.setup.device), topics.cloud_filter()]
        .map(|filter| SubscribeFilter::new(filter, QoS::AtLeastOnce));
    let notice = client.try_subscribe_many_tracked(filters).map_err(|_| SubscribeNoticeError::Recv)?;
    notice.wait_async().await.map(drop)
}

impl Shared {
    pub(super) async fn publish_online(&self, session: &Session) -> Result<(), PublishError> {
        let status = DeviceStatus {
            state: DeviceState::Online,
            connection: session.view.connection,
            window_every_s: self.window_every_s(),
            link: self.told().map(str::to_owned),
            version: Some(env!("CARGO_PKG_VERSION").to_owned()),
            wire: vec![WIRE_VERSION],
            models: (self.setup.models)(),
            faults: self.setup.faults.now(),
        };
        self.publish_status(&status).await
    }

    pub(super) async fn publish_offline(&self, session: &Session) -> Result<(), PublishError> {
        let status = self.offline(session.view.connection);
        let said = tokio::time::timeout(GOODBYE_WAIT, self.publish_status(&status)).await;
        said.unwrap_or(Err(PublishError::Unclear))
    }

    fn offline(&self, connection: u64) -> DeviceStatus {
        DeviceStatus {
            state: DeviceState::Offline,
            connection,
            window_every_s: self.window_every_s(),
            link: None,
            version: None,
            wire: Vec::new(),
            models: Vec::new(),
            faults: Default::default(),
        }
    }

    /// How often we connect, if the radio rests in between.
    pub(super) fn window_every_s(&self) -> Option<u32> {
        self.setup.settings.borrow().config.link.windows.told_every_s()
    }

    async fn publish_status(&self, status: &DeviceStatus) -> Result<(), PublishError> {
        self.publish_retained(&Topic::UpStatus(self.setup.device.clone()), to_json(status)).await
    }
}

fn loss(error: &ConnectionError) -> Loss {
    match error {
        ConnectionError::MqttState(StateError::ServerDisconnect {
            reason_code: DisconnectReasonCode::SessionTakenOver,
            ..
        }) => Loss::TakenOver,
        ConnectionError::MqttState(StateError::ConnectionAborted) => Loss::Closed,
        // Some brokers acknowledge what is too large with a code that MQTT does not have there (mosquitto: PUBACK 0x95).
        ConnectionError::MqttState(StateError::ServerDisconnect { .. } | StateError::Deserialization(_)) => {
            Loss::Refused
        }
        _ => Loss::Broken,
    }
}
