//! Carries messages to the broker and back: one connection at a time, publishes with their outcome.
//!
//! When to dial and what to send is decided by the engine; what is worth keeping is in the outbox. A publish
//! that ends in doubt is reported as such, never repeated here.

mod credentials;
mod inbound;
mod meter;
mod network;
mod options;
mod send;
mod session;
mod silence;
mod trouble;
mod upload;

use std::ops::Range;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use hedge_core::control::commands::ReplyTo;
use hedge_core::engine::Event;
use hedge_core::link::{Way, refusal};
use hedge_proto::{
    Answer, CaseId, CaseKey, CaseMessage, DeviceId, LinkState, MESSAGE_BYTES_MAX, ModelRef, Name, Reply, Reported,
    Telemetry, Topic, Topics, WIRE_VERSION, to_json,
};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use rumqttc::{AsyncClient, PubAckReason, PublishNoticeError, PublishOptions, PublishResult};
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use self::credentials::{client_config, roots};
pub use self::inbound::{Command, Down, Takes};
pub use self::meter::Meter;
pub use self::network::watch as watch_network;
pub use self::options::session_options;
pub use self::options::{OptionsError, options};
pub use self::send::Outgoing;
pub use self::session::{granted, subscribed};
use self::silence::Silence;
pub use self::trouble::{Dialled, read as read_trouble, read_certificate, refused_in_tls};
use self::upload::Uploads;
pub use self::upload::payloads_fault;
use crate::clock::Clock;
use crate::faults::Faults;
use crate::figures::Figures;
use crate::in_force::InForce;
use crate::privacy::Reducer;
use crate::state::StateFile;
use hedge_config::{PayloadsConfig, ProbeConfig};
use hedge_outbox::Outbox;

/// Publishes that may wait for the connection: the window, questions, telemetry and answers.
const REQUESTS_MAX: usize = 64;

/// Topic, properties and framing around a case's payload, at most.
const ENVELOPE_BYTES_MAX: usize = 1024;

/// A case besides its payload: names, scores and metadata come to about 2 KiB.
const CASE_BYTES_MAX: usize = 4 * 1024;

/// The device's MQTT connection. Cheap to clone.
#[derive(Clone)]
pub struct Uplink(Arc<Shared>);

/// What an uplink is made from.
pub struct UplinkSetup {
    /// Where the broker is; looked at for every dial.
    pub settings: watch::Receiver<Arc<InForce>>,
    pub prefix: Topics,
    pub probe: Option<ProbeConfig>,
    /// Where large payloads go.
    pub payloads: Option<PayloadsConfig>,
    /// Holds what was stored to the ceiling of the moment it is sent.
    pub reducer: Reducer,
    pub meter: Meter,
    /// Says when a traced case was sent.
    pub clock: Clock,
    pub device: DeviceId,
    pub outbox: Outbox,
    /// Takes what comes down, and says when it is in good hands.
    pub takes: Takes,
    pub figures: Arc<Figures>,
    pub state: Arc<Mutex<StateFile>>,
    pub events: mpsc::Sender<Event>,
    /// What is wrong with the device; what `[broker]` names wrongly is noted in it.
    pub faults: Faults,
    /// Asked at every connect, because models load while the agent runs.
    pub models: Box<dyn Fn() -> Vec<ModelRef> + Send + Sync>,
}

struct Shared {
    setup: UplinkSetup,
    session: Mutex<Option<Session>>,
    uploads: Option<Uploads>,
    /// The largest message with a case that the cloud takes.
    case_bytes_max: AtomicUsize,
    /// The highest version of the wire that the cloud reads.
    wire_max: AtomicU16,
    /// Bytes per second that the link was seen to carry.
    carried: Mutex<Option<f64>>,
    sessions: watch::Sender<Option<SessionView>>,
    /// Numbers for the next connections, counted on the disk already.
    connections: Mutex<Range<u64>>,
    /// What the status says of the link: what has lasted, not what is now.
    told: Mutex<Option<&'static str>>,
    /// Ends the present connection, or dial.
    leave: Mutex<Leave>,
}

/// How a connection is ended by ourselves.
#[derive(Debug, Clone, Default)]
struct Leave {
    /// Whatever ends it from now on is no trouble.
    wanted: CancellationToken,
    /// Goodbye has been said.
    now: CancellationToken,
}

/// An established connection, as others see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionView {
    /// Counts the device's connections.
    pub connection: u64,
    /// Of the settings it was dialled with.
    pub version: u64,
    pub way: Way,
}

/// An established connection.
#[derive(Clone)]
struct Session {
    client: AsyncClient,
    view: SessionView,
    packet_bytes_max: usize,
    silence: Arc<Silence>,
    /// The connection has ended.
    over: CancellationToken,
}

/// Why a publish did not do what it was for.
#[derive(Debug, thiserror::Error)]
pub enum PublishError {
    #[error("there is no connection to the broker")]
    NotConnected,
    #[error("nobody subscribes to the topic")]
    Nobody,
    #[error("the broker refuses it: {}", refusal(*.0 as u8))]
    Refused(PubAckReason),
    #[error("{bytes} bytes are more than the {bytes_max} that broker and cloud take")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("the connection was lost before the broker acknowledged it")]
    Unclear,
}

impl Uplink {
    #[must_use]
    pub fn new(setup: UplinkSetup) -> Self {
        let sessions = watch::channel(None).0;
        let payloads = setup.payloads.clone();
        let uploads = payloads.map(|payloads| Uploads::new(payloads, setup.settings.clone(), setup.meter.clone()));
        Self(Arc::new(Shared {
            setup,
            session: Mutex::new(None),
            uploads,
            case_bytes_max: AtomicUsize::new(MESSAGE_BYTES_MAX),
            wire_max: AtomicU16::new(WIRE_VERSION),
            carried: Mutex::new(None),
            sessions,
            connections: Mutex::new(0..0),
            told: Mutex::default(),
            leave: Mutex::default(),
        }))
    }

    /// Starts one connection; its end, or failure to begin, is an [`Event::Disconnected`].
    pub fn dial(&self, way: Way) {
        let leave = Leave::default();
        *self.0.leave.lock().unwrap_or_else(PoisonError::into_inner) = leave.clone();
        tokio::spawn(session::run(self.0.clone(), way, leave));
    }

    /// Ends the present connection, with a goodbye if it is established.
    pub fn leave(&self) {
        let (uplink, leave) = (self.clone(), self.0.leave.lock().unwrap_or_else(PoisonError::into_inner).clone());
        leave.wanted.cancel();
        tokio::spawn(async move {
            uplink.hang_up().await;
            leave.now.cancel();
        });
    }

    /// The established connection, as it changes.
    #[must_use]
    pub fn sessions(&self) -> watch::Receiver<Option<SessionView>> {
        self.0.sessions.subscribe()
    }

    /// Publishes the settings in force, retained; done when the broker has them.
    pub async fn reported(&self, reported: &Reported) -> Result<(), PublishError> {
        self.0.publish_retained(&Topic::UpReported(self.0.setup.device.clone()), to_json(reported)).await
    }

    /// Publishes what other programs are told of this device, retained; done when the broker has it.
    pub async fn announce(&self, topic: String, payload: Vec<u8>) -> Result<(), PublishError> {
        self.0.publish_kept_at(topic, payload).await
    }

    /// Publishes these; the outcomes are events. `payload_bytes_max` is what the
    /// cloud takes within a message, `wire_max` the version that it reads.
    pub fn send(&self, messages: Vec<Outgoing>, payload_bytes_max: Option<u64>, wire_max: u16) {
        let shared = self.0.clone();
        shared.wire_max.store(wire_max, Ordering::Relaxed);
        let bytes_max = payload_bytes_max.and_then(|bytes| usize::try_from(bytes).ok()).unwrap_or(MESSAGE_BYTES_MAX);
        shared.case_bytes_max.store(bytes_max.saturating_add(CASE_BYTES_MAX), Ordering::Relaxed);
        tokio::spawn(async move { shared.send_all(messages).await });
    }

    /// Asks what has become of these cases.
    pub fn ask(&self, keys: Vec<CaseKey>) {
        let shared = self.0.clone();
        tokio::spawn(async move {
            let ids = keys.iter().map(|key| shared.id(*key)).collect();
            let asked = match shared.case_message(&CaseMessage::Ask { ids }) {
                Ok(message) => shared.publish_case_message(message, None).await,
                Err(error) => Err(error),
            };
            if let Err(error) = asked {
                tracing::debug!(%error, cases = keys.len(), "a question about cases did not get through");
                shared.tell(Event::AskFailed { keys }).await;
            }
        });
    }

    /// Whether the last status says that the link is so; what is not connected needs no saying.
    #[must_use]
    pub fn has_told(&self, state: LinkState) -> bool {
        let connected = matches!(state, LinkState::Online | LinkState::Degraded | LinkState::OverBudget);
        !connected || self.0.told() == trouble_of(state)
    }

    /// Says from now on that the link is so, if connected; the next connection begins anew.
    pub async fn say_link(&self, state: LinkState) -> Result<(), PublishError> {
        self.0.set_told(trouble_of(state));
        self.say_online().await
    }

    /// Says anew who and how we are, if connected: a model has been loaded.
    pub async fn say_online(&self) -> Result<(), PublishError> {
        let session = self.0.session().ok_or(PublishError::NotConnected)?;
        self.0.publish_online(&session).await
    }

    /// Publishes live figures, if connected. They are not kept: the next ones are newer.
    pub async fn telemetry(&self, telemetry: &Telemetry) -> Result<(), PublishError> {
        let topic = Topic::UpTelemetry(self.0.setup.device.clone());
        self.0.publish(&topic, to_json(telemetry), PublishOptions::new(QoS::AtMostOnce)).await
    }

    /// Publishes one answer or correction on `up/answer/{source}`; done when the broker has it.
    pub async fn answer(&self, answer: &Answer) -> Result<(), PublishError> {
        let Ok(source) = Name::new(&answer.source) else { return Ok(()) };
        let topic = Topic::UpAnswer(self.0.setup.device.clone(), source);
        match self.0.publish(&topic, to_json(answer), PublishOptions::new(QoS::AtLeastOnce)).await {
            // The broker has it; that nobody listens now is not the device's concern.
            Err(PublishError::Nobody) => Ok(()),
            other => other,
        }
    }

    /// Publishes the result of a command; done when the broker has it.
    pub async fn reply(&self, reply_to: &ReplyTo, reply: &Reply) -> Result<(), PublishError> {
        let UplinkSetup { prefix, device, .. } = &self.0.setup;
        let topic = reply_to.topic.clone().unwrap_or_else(|| prefix.text(&Topic::UpReply(device.clone())));
        let properties = PublishProperties {
            correlation_data: reply_to.correlation.clone().map(Bytes::from),
            content_type: Some("application/json".to_owned()),
            ..PublishProperties::default()
        };
        let options = PublishOptions::new(QoS::AtLeastOnce).properties(properties);
        self.0.publish_at(topic, to_json(reply), options).await
    }

    /// Says goodbye: `offline`, then a clean disconnect that cancels the will.
    pub async fn hang_up(&self) {
        let Some(session) = self.0.session() else { return };
        if let Err(error) = self.0.publish_offline(&session).await {
            tracing::debug!(%error, "could not say goodbye");
        }
        if let Err(error) = session.client.disconnect_with_timeout(session::GOODBYE_WAIT).await {
            tracing::debug!(%error, "could not disconnect");
        }
    }
}

/// As the status says it: nothing while all is well.
fn trouble_of(state: LinkState) -> Option<&'static str> {
    matches!(state, LinkState::Degraded | LinkState::OverBudget).then(|| state.name())
}

impl Shared {
    /// What the status says of the link from now on.
    fn set_told(&self, told: Option<&'static str>) {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner) = told;
    }

    fn told(&self) -> Option<&'static str> {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The connection is established, or over.
    fn set_session(&self, session: Option<Session>) {
        let view = session.as_ref().map(|session| session.view);
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = session;
        self.sessions.send_if_modified(|shown| std::mem::replace(shown, view) != view);
    }

    /// Publishes what is kept for whoever comes; nobody need listen now.
    async fn publish_retained(&self, topic: &Topic, payload: Vec<u8>) -> Result<(), PublishError> {
        self.publish_kept_at(self.setup.prefix.text(topic), payload).await
    }

    async fn publish_kept_at(&self, topic: String, payload: Vec<u8>) -> Result<(), PublishError> {
        match self.publish_at(topic, payload, PublishOptions::new(QoS::AtLeastOnce).retained()).await {
            Err(PublishError::Nobody) => Ok(()),
            other => other,
        }
    }

    fn session(&self) -> Option<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn id(&self, key: CaseKey) -> CaseId {
        CaseId { device: self.setup.device.clone(), key }
    }

    /// Tells the engine. If it is gone the agent is stopping, and nobody needs to know.
    async fn tell(&self, event: Event) {
        drop(self.setup.events.send(event).await);
    }

    /// Publishes and waits for the outcome, which the end of the connection also is.
    async fn publish(&self, topic: &Topic, payload: Vec<u8>, options: PublishOptions) -> Result<(), PublishError> {
        self.publish_at(self.setup.prefix.text(topic), payload, options).await
    }

    async fn publish_at(&self, topic: String, payload: Vec<u8>, options: PublishOptions) -> Result<(), PublishError> {
        let session = self.session().ok_or(PublishError::NotConnected)?;
        self.publish_over(session, topic, payload, options).await
    }

    async fn publish_over(
        &self,
        session: Session,
        topic: String,
        payload: Vec<u8>,
        options: PublishOptions,
    ) -> Result<(), PublishError> {
        let (bytes, bytes_max) = (payload.len() + ENVELOPE_BYTES_MAX, session.packet_bytes_max);
        if bytes > bytes_max {
            return Err(PublishError::TooLarge { bytes, bytes_max });
        }
        let notice =
            session.client.try_publish_tracked(topic, payload, options).map_err(|_| PublishError::NotConnected)?;
        let silence = session.silence.clone();
        drop(session); // the last client handle must not outlive its connection
        let debt = silence.owed(bytes);
        match notice.wait_async().await {
            Ok(PublishResult::Qos1(ack)) if ack.reason == PubAckReason::NoMatchingSubscribers => {
                Err(PublishError::Nobody)
            }
            Ok(PublishResult::Qos1(ack)) if ack.reason != PubAckReason::Success => {
                Err(PublishError::Refused(ack.reason))
            }
            Ok(_) => {
                if let Some(carried) = debt.paid() {
                    *self.carried.lock().unwrap_or_else(PoisonError::into_inner) = Some(carried);
                }
                Ok(())
            }
            Err(PublishNoticeError::V5PubAck(reason)) => Err(PublishError::Refused(reason)),
            Err(_) => Err(PublishError::Unclear),
        }
    }
}
