//! Reads what comes down: verdicts and their kin, commands, cloud statuses.
//!
//! A verdict or command is acknowledged only once it is durable. Anything unreadable is said, acknowledged and dropped,
//! so that no message can come back for ever.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use futures_util::future::BoxFuture;
use hedge_core::engine::Event;
use hedge_proto::{
    CaseId, CaseKey, CloudState, CloudStatus, DecodeError, DownMessage, Message as _, Name, SpotChecks, Topic, Verdict,
    WIRE_VERSION, newer, readable,
};
use rumqttc::AsyncClient;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::Publish;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::options::{PACKET_BYTES_MAX, RECEIVE_MAXIMUM};
use crate::faults::Part;
use crate::figures::Figures;

/// Verdicts stored side by side, so that they share a group commit. Acknowledged in order all the same.
const SIDE_BY_SIDE: usize = 32;

/// The most of a sender's name that is kept.
const BY_CHARS_MAX: usize = 128;

/// Messages that may wait to be read. Some brokers send more at once than the receive maximum they were told; a dropped
/// verdict would only come again when it is asked about.
const INBOX_MAX: usize = 2048;

/// What they may have together: all that a broker may send unacknowledged, so that one which keeps to it loses nothing.
const INBOX_BYTES_MAX: u32 = RECEIVE_MAXIMUM as u32 * PACKET_BYTES_MAX;

/// The part of it for what is never acknowledged. Anyone may flood that, and it must not displace what is owed.
const UNACKNOWLEDGED_BYTES_MAX: u32 = INBOX_BYTES_MAX / 4;

/// The longest reason that is kept of the cloud's.
const REASON_CHARS_MAX: usize = 300;

/// Where messages wait to be read, bounded in number and bytes.
pub(super) struct Inbox {
    arrived: mpsc::Sender<Arrived>,
    room: Arc<Semaphore>,
    full: bool,
}

/// A message, and the room that it takes until it has been read.
pub(super) type Arrived = (Publish, OwnedSemaphorePermit);

impl Inbox {
    pub(super) fn new() -> (Self, mpsc::Receiver<Arrived>) {
        let (sender, arrived) = mpsc::channel(INBOX_MAX);
        let room = Arc::new(Semaphore::new(INBOX_BYTES_MAX as usize));
        (Self { arrived: sender, room, full: false }, arrived)
    }

    /// Takes one message, or drops it if it does not fit.
    pub(super) fn keep(&mut self, publish: Publish) {
        let bytes = u32::try_from(publish.topic.len() + publish.payload.len() + size_of::<Publish>());
        let bytes = bytes.unwrap_or(PACKET_BYTES_MAX).min(PACKET_BYTES_MAX);
        let left = (INBOX_BYTES_MAX - UNACKNOWLEDGED_BYTES_MAX) as usize;
        let fits = publish.qos != QoS::AtMostOnce || self.room.available_permits() > left;
        let room = fits.then(|| self.room.clone().try_acquire_many_owned(bytes).ok()).flatten();
        let kept = room.is_some_and(|room| self.arrived.try_send((publish, room)).is_ok());
        if !kept && !std::mem::replace(&mut self.full, true) {
            tracing::warn!("more messages arrive than are read; what does not fit is dropped over this connection");
        }
    }
}

/// Reads messages until the connection is `over` and all that arrived over it is read.
pub(super) async fn listen(
    shared: Arc<Shared>,
    client: AsyncClient,
    arrived: mpsc::Receiver<Arrived>,
    over: CancellationToken,
) {
    let mut read = ReceiverStream::new(arrived)
        .map(|(publish, room)| {
            let (shared, over) = (shared.clone(), over.clone());
            async move { (shared.read(&publish, &over).await, publish, room) }
        })
        .buffered(SIDE_BY_SIDE);
    while let Some((outcome, publish, _room)) = read.next().await {
        match outcome {
            // A failed acknowledgement means that the connection is over; the message will come again.
            Ok(()) => drop(client.ack(&publish).await),
            Err(_) if over.is_cancelled() => return,
            Err(NotDurable(reason)) => {
                tracing::error!(reason, "a message could not be stored; hanging up, so that it comes again");
                drop(client.disconnect_now().await);
                return;
            }
        }
    }
}

fn command(publish: &Publish, rest: Duration) -> Command {
    let properties = publish.properties.as_ref();
    Command {
        payload: publish.payload.clone(),
        retained: publish.retain,
        correlation: properties.and_then(|properties| properties.correlation_data.clone()),
        response_topic: properties.and_then(|properties| properties.response_topic.clone()),
        by: given_by(publish),
        rest,
    }
}

/// Who says so, by the user property `by`.
fn given_by(publish: &Publish) -> Option<String> {
    let properties = &publish.properties.as_ref()?.user_properties;
    properties.iter().find(|(name, _)| name == "by").map(|(_, value)| readable(value, BY_CHARS_MAX))
}

/// The message must come again.
struct NotDurable(String);

/// What comes down for somebody else than the engine.
#[derive(Debug)]
pub enum Down {
    Verdict(Verdict),
    /// A document on `down/desired`.
    Desired {
        bytes: Bytes,
        by: Option<String>,
        retained: bool,
    },
    Command(Command),
    /// What the fleet's spot checks have come to.
    Checks(SpotChecks),
}

/// A message on `down/command`.
#[derive(Debug, Clone, Default)]
pub struct Command {
    pub payload: Bytes,
    pub retained: bool,
    pub correlation: Option<Bytes>,
    pub response_topic: Option<String>,
    /// The user property `by`.
    pub by: Option<String>,
    /// How long the device may have been out of reach by its own will.
    pub rest: Duration,
}

/// Brings a message to whom it is for. Done when it is durable, for it is acknowledged then; an error says why it must
/// come again.
pub type Takes = Box<dyn Fn(Down) -> BoxFuture<'static, Result<(), String>> + Send + Sync>;

impl Shared {
    async fn read(&self, publish: &Publish, over: &CancellationToken) -> Result<(), NotDurable> {
        let topic = String::from_utf8_lossy(&publish.topic);
        match self.setup.prefix.read(&topic) {
            Some(Topic::CloudStatus(instance)) => self.read_cloud_status(instance, publish).await,
            Some(Topic::DownVerdict(device)) if device == self.setup.device => {
                return match DownMessage::read(&publish.payload) {
                    Ok(DownMessage::Verdict(Verdict { v, .. })) if v > WIRE_VERSION => {
                        self.hold(&format!("wire version {v}"));
                        Ok(())
                    }
                    Ok(message) => self.read_down(message).await,
                    Err(error) => {
                        self.pass_over(&topic, &publish.payload, &error);
                        Ok(())
                    }
                };
            }
            Some(Topic::DownDesired(device)) if device == self.setup.device => {
                let (bytes, by) = (publish.payload.clone(), given_by(publish));
                return self.pass_on(Down::Desired { bytes, by, retained: publish.retain }).await;
            }
            Some(Topic::DownCommand(device)) if device == self.setup.device => {
                // What waited for the device comes before it could say what has become of it.
                if !self.is_ready(over).await {
                    return Err(NotDurable("the connection is over".to_owned()));
                }
                let rest = Duration::from_secs(self.window_every_s().unwrap_or(0).into());
                return self.pass_on(Down::Command(command(publish, rest))).await;
            }
            _ => tracing::debug!(%topic, "a message on a topic this version does not read"),
        }
        Ok(())
    }

    /// Waits until there is a session to publish over; false if the connection ends before.
    async fn is_ready(&self, over: &CancellationToken) -> bool {
        let mut sessions = self.sessions.subscribe();
        tokio::select! {
            ready = sessions.wait_for(Option::is_some) => ready.is_ok(),
            () = over.cancelled() => false,
        }
    }

    /// Nothing follows from a message that cannot be read: its case waits, and is asked about again.
    fn pass_over(&self, topic: &str, payload: &[u8], error: &DecodeError) {
        if let Some(what) = newer(payload, &DownMessage::KINDS) {
            return self.hold(&what);
        }
        Figures::count(&self.setup.figures.unread);
        tracing::warn!(topic, %error, "unreadable message dropped");
        if let DecodeError::Bound(what) = error {
            let sentence = format!(
                "the cloud sends an answer that this device rejects ({what}); the case waits: repair the cloud"
            );
            self.setup.faults.set(&Part::Wire, sentence);
        }
    }

    /// Nothing follows from a message of a later version: its case waits, and is asked about again.
    fn hold(&self, what: &str) {
        Figures::count(&self.setup.figures.unread);
        let sentence = format!("the cloud sends {what}, which this agent does not read; cases wait: update the agent");
        self.setup.faults.set(&Part::Wire, sentence);
    }

    async fn read_cloud_status(&self, instance: Name, publish: &Publish) {
        let status = if publish.payload.is_empty() {
            // A retained status that was taken back: the instance is gone for good.
            Ok(CloudStatus {
                state: CloudState::Offline,
                wire: Vec::new(),
                accept: None,
                retry_after_s: None,
                payload_bytes_max: None,
            })
        } else {
            CloudStatus::read(&publish.payload)
        };
        match status {
            Ok(status) => {
                self.tell(Event::CloudStatus { instance, status, retained: publish.retain }).await;
            }
            Err(error) => tracing::warn!(%instance, %error, "unreadable cloud status dropped"),
        }
    }

    async fn read_down(&self, message: DownMessage) -> Result<(), NotDurable> {
        let event = match message {
            DownMessage::Verdict(verdict) => return self.read_verdict(verdict).await,
            DownMessage::Checks(checks) => return self.pass_on(Down::Checks(checks)).await,
            DownMessage::Received { ids } => Event::Received { keys: self.own(&ids) },
            DownMessage::Unknown { ids } => Event::Unknown { keys: self.own(&ids) },
            DownMessage::Busy { after_s } => Event::Busy { after: Duration::from_secs(u64::from(after_s)) },
            DownMessage::Failed { id, reason } if id.device == self.setup.device => {
                Event::Failed { key: id.key, reason: readable(&reason, REASON_CHARS_MAX) }
            }
            DownMessage::Dead { id, reason } if id.device == self.setup.device => {
                Event::Dead { key: id.key, reason: readable(&reason, REASON_CHARS_MAX) }
            }
            DownMessage::Send { id, form } if id.device == self.setup.device => Event::Wanted { key: id.key, form },
            DownMessage::Failed { id, .. } | DownMessage::Dead { id, .. } | DownMessage::Send { id, .. } => {
                tracing::warn!(%id, "a message about another device's case dropped");
                return Ok(());
            }
        };
        self.tell(event).await;
        Ok(())
    }

    async fn read_verdict(&self, verdict: Verdict) -> Result<(), NotDurable> {
        if verdict.id.device != self.setup.device {
            tracing::warn!(id = %verdict.id, "a verdict on another device's case dropped");
            return Ok(());
        }
        self.pass_on(Down::Verdict(verdict)).await?;
        self.setup.faults.clear(&Part::Wire);
        Ok(())
    }

    async fn pass_on(&self, down: Down) -> Result<(), NotDurable> {
        (self.setup.takes)(down).await.map_err(NotDurable)
    }

    fn own(&self, ids: &[CaseId]) -> Vec<CaseKey> {
        ids.iter().filter(|id| id.device == self.setup.device).map(|id| id.key).collect()
    }
}
