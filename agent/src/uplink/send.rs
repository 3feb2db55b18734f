//! Brings cases from the disk into messages, within what may leave the device and what broker and cloud take.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use bytes::Bytes;
use futures_util::future::join_all;
use hedge_core::engine::Event;
use hedge_core::privacy::Treatment;
use hedge_core::uplink::{Publish, Travel, travel};
use hedge_proto::{
    Case, CaseKey, CaseMessage, MESSAGE_BYTES_MAX, Offer, SENT_POWERED_MS, TRACEPARENT, Topic, TraceContext, from_cbor,
    to_cbor,
};
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::PublishProperties;
use serde_bytes::ByteBuf;

use super::upload::UploadError;
use super::{CASE_BYTES_MAX, ENVELOPE_BYTES_MAX, PublishError, Shared};
use crate::privacy::SentPayload;
use hedge_outbox::{Outbox, Progress, ReadError};

/// What goes in one message.
#[derive(Debug, Clone)]
pub struct Outgoing {
    pub keys: Vec<CaseKey>,
    /// Thumbnails of so many pixels go first, and the wholes are offered, if `offers`.
    pub first: Option<u32>,
    pub offers: bool,
}

/// A case as it was read to be sent.
enum Read {
    Case(Box<Case>),
    /// Answered, dead or dropped while this send was on its way here, or damaged and set aside.
    Gone,
    /// The disk does not give it now.
    Later(String),
    /// It is no case.
    Unreadable(String),
}

impl Shared {
    /// Reads the cases of several messages in one go, for each trip to a thread that may wait for the disk costs more
    /// than reading a case, and publishes them side by side.
    pub(super) async fn send_all(&self, messages: Vec<Outgoing>) {
        let (outbox, sending) = (self.setup.outbox.clone(), messages.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = |key: CaseKey| (key, read_case(&outbox, key));
            let read = |Outgoing { keys, first, offers }| (keys.into_iter().map(read).collect(), (first, offers));
            sending.into_iter().map(read).collect::<Vec<(Vec<_>, _)>>()
        });
        match read.await {
            Ok(read) => drop(join_all(read.into_iter().map(|(cases, how)| self.send_cases(cases, how))).await),
            Err(error) => {
                tracing::error!(%error, "cases could not be read; they will be tried again");
                let keys = messages.into_iter().flat_map(|message| message.keys).collect();
                self.tell(Event::Published { keys, outcome: Publish::Stuck }).await;
            }
        }
    }

    /// Publishes cases in one message, and tells the engine what became of each.
    async fn send_cases(&self, read: Vec<(CaseKey, Read)>, (first, offers): (Option<u32>, bool)) {
        let settings = self.setup.settings.borrow().clone();
        let mut cases = Vec::with_capacity(read.len());
        let wire_max = self.wire_max.load(Ordering::Relaxed);
        for (key, read) in read {
            match read {
                Read::Case(case) if case.v > wire_max => {
                    let outcome = Publish::Newer { version: case.v };
                    self.tell(Event::Published { keys: vec![key], outcome }).await;
                }
                Read::Case(case) => {
                    let treatment = settings.ceiling_of(&case).treat_stored(first, case.form);
                    let mut case = self.treat(treatment, *case).await;
                    case.offer = case.offer.filter(|_| offers);
                    cases.push(case);
                }
                Read::Gone => self.tell(Event::Closed { key, spoken: false }).await,
                Read::Later(error) => {
                    tracing::warn!(id = %self.id(key), error, "a case cannot be read now; it will be tried again");
                    self.tell(Event::Published { keys: vec![key], outcome: Publish::Stuck }).await;
                }
                Read::Unreadable(reason) => self.tell(Event::Unsendable { key, reason }).await,
            }
        }
        let keys: Vec<CaseKey> = cases.iter().map(|case| case.id.key).collect();
        let outcome = match &mut cases[..] {
            [] => return,
            [only] => self.make_fit(only).await,
            _ => None,
        };
        if let Some(outcome) = outcome {
            return self.tell(Event::Published { keys, outcome }).await;
        }
        let named = cases.iter().all(|case| case.payload.is_none() || case.offer.is_some());
        // One for the message. What a batch holds besides its first case has its trace from its own id.
        let traced = cases.first().filter(|_| settings.config.telemetry.traces);
        let traced = traced.map(|case| TraceContext::on_device(&case.id));
        let message = match (cases.len(), cases.pop()) {
            (_, None) => return,
            (1, Some(only)) => CaseMessage::Case(Box::new(only)),
            (_, Some(last)) => {
                cases.push(last);
                CaseMessage::Batch(cases)
            }
        };
        let bytes = match self.case_message(&message) {
            Ok(bytes) => bytes,
            Err(error) => return self.send_apart(message, keys, &error).await,
        };
        if !Arc::ptr_eq(&settings, &self.setup.settings.borrow()) {
            tracing::info!("the settings have changed since these cases were read; they are read again");
            return self.tell(Event::Published { keys, outcome: Publish::Stuck }).await;
        }
        self.setup.outbox.mark(keys.iter().map(|key| (*key, Progress::Sent)).collect()).await;
        let outcome = match self.publish_case_message(bytes, traced).await {
            Ok(()) if named => Publish::Named,
            Ok(()) => Publish::Acknowledged,
            Err(PublishError::NotConnected | PublishError::Nobody) => Publish::Nobody,
            Err(PublishError::Unclear) => Publish::Unclear,
            Err(PublishError::TooLarge { bytes_max, .. }) => {
                Publish::TooLarge { bytes_max: u32::try_from(bytes_max).ok() }
            }
            Err(error @ PublishError::Refused(_)) => {
                tracing::warn!(%error, "the broker refused a case; it will be tried again");
                Publish::Refused
            }
        };
        self.tell(Event::Published { keys, outcome }).await;
    }

    /// Brings a payload that does not fit into a message to the cloud first, if there is a way. The outcome if the case is
    /// not to be published now.
    async fn make_fit(&self, case: &mut Case) -> Option<Publish> {
        let payload_bytes = case.payload.as_ref().map_or(0, |payload| payload.len());
        let payload_bytes_max = self.case_bytes_max.load(Ordering::Relaxed) - CASE_BYTES_MAX;
        if self.uploads.is_none() && payload_bytes > payload_bytes_max {
            return Some(Publish::TooLarge { bytes_max: u32::try_from(payload_bytes_max + CASE_BYTES_MAX).ok() });
        }
        let error = self.upload_if_large(case).await.err()?;
        if error.is_final() {
            tracing::warn!(id = %case.id, %error, "a payload is larger than the cloud takes; it waits");
            return Some(Publish::TooLarge { bytes_max: None });
        }
        tracing::warn!(id = %case.id, %error, "a large payload is not in the cloud yet; it will be tried again");
        Some(Publish::Stuck)
    }

    /// Brings a payload to the cloud that does not travel within a message, and takes it out of the case.
    async fn upload_if_large(&self, case: &mut Case) -> Result<(), UploadError> {
        let (Some(uploads), Some(session)) = (&self.uploads, self.session()) else { return Ok(()) };
        let bytes = case.payload.as_ref().map(|payload| payload.len());
        let Some(bytes) = bytes.filter(|bytes| *bytes > 0) else { return Ok(()) };
        let carried = *self.carried.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes_max = session.packet_bytes_max.min(self.case_bytes_max.load(Ordering::Relaxed) + ENVELOPE_BYTES_MAX);
        if travel(bytes + CASE_BYTES_MAX + ENVELOPE_BYTES_MAX, bytes_max, carried) == Travel::Message {
            return Ok(());
        }
        let over = session.over.clone();
        drop(session); // the last client handle must not outlive its connection
        let Some(payload) = case.payload.take() else { return Ok(()) };
        tokio::select! {
            put = uploads.put(case.payload_sha256, payload.into_vec().into()) => put,
            // Who answers for the case may be another one next time; what is there stays there.
            () = over.cancelled() => Err(UploadError::Interrupted),
        }
    }

    /// What is too large for the broker together may fit one by one; what does not fit alone waits until it does.
    async fn send_apart(&self, message: CaseMessage, keys: Vec<CaseKey>, error: &PublishError) {
        match (message, error) {
            (CaseMessage::Batch(cases), PublishError::TooLarge { .. }) => {
                for case in cases {
                    Box::pin(self.send_cases(vec![(case.id.key, Read::Case(Box::new(case)))], (None, true))).await;
                }
            }
            (_, PublishError::TooLarge { bytes_max, .. }) => {
                let outcome = Publish::TooLarge { bytes_max: u32::try_from(*bytes_max).ok() };
                self.tell(Event::Published { keys, outcome }).await;
            }
            _ => self.tell(Event::Published { keys, outcome: Publish::Nobody }).await,
        }
    }

    /// The case with what goes of its payload: it may have been stored under a higher ceiling, or a thumbnail goes first.
    async fn treat(&self, treatment: Treatment, mut case: Case) -> Case {
        if treatment == Treatment::Keep {
            return case;
        }
        let bytes = Bytes::from(case.payload.take().map(ByteBuf::into_vec).unwrap_or_default());
        let Case { form, payload_sha256, .. } = case;
        let whole = Offer { form, payload_sha256, payload_bytes: bytes.len() as u64 };
        let stored = SentPayload { form, content_type: case.content_type, bytes };
        let sent = self.setup.reducer.treat(stored, case.view, treatment).await;
        case.payload_sha256 = sent.digest();
        case.offer = (matches!(treatment, Treatment::Offer { .. }) && sent.form != form).then_some(whole);
        (case.form, case.content_type) = (sent.form, sent.content_type);
        case.payload = Some(ByteBuf::from(Vec::from(sent.bytes)));
        case
    }

    /// The bytes of a message about cases, if broker and cloud take so many now.
    pub(super) fn case_message(&self, message: &CaseMessage) -> Result<Vec<u8>, PublishError> {
        let packet_bytes_max = self.session().ok_or(PublishError::NotConnected)?.packet_bytes_max;
        let (message, case_bytes_max) = (to_cbor(message), self.case_bytes_max.load(Ordering::Relaxed));
        let bytes_max = case_bytes_max.min(packet_bytes_max.saturating_sub(ENVELOPE_BYTES_MAX));
        if message.len() > bytes_max {
            return Err(PublishError::TooLarge { bytes: message.len(), bytes_max });
        }
        Ok(message)
    }

    pub(super) async fn publish_case_message(
        &self,
        message: Vec<u8>,
        traced: Option<TraceContext>,
    ) -> Result<(), PublishError> {
        let topic = Topic::UpCase(self.setup.device.clone());
        let mut options = PublishOptions::new(QoS::AtLeastOnce);
        if let Some(context) = traced {
            let properties = PublishProperties {
                user_properties: vec![
                    (TRACEPARENT.to_owned(), context.to_string()),
                    (SENT_POWERED_MS.to_owned(), self.setup.clock.now().0.to_string()),
                ],
                ..PublishProperties::default()
            };
            options = options.properties(properties);
        }
        self.publish(&topic, message, options).await
    }
}

fn read_case(outbox: &Outbox, key: CaseKey) -> Read {
    let stored = match outbox.read(key) {
        Ok(Some(stored)) if stored.verdict.is_none() && stored.dead.is_none() => stored,
        Ok(_) | Err(ReadError::Damaged) => return Read::Gone,
        Err(error @ ReadError::Io(_)) => return Read::Later(error.to_string()),
    };
    match from_cbor::<Case>(&stored.header, MESSAGE_BYTES_MAX) {
        Ok(mut case) => {
            case.payload = Some(ByteBuf::from(Vec::from(stored.payload)));
            Read::Case(Box::new(case))
        }
        Err(error) => Read::Unreadable(format!("what is stored of it cannot be read as a case: {error}")),
    }
}
