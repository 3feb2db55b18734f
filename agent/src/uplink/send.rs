//! Brings cases from the disk into messages, within what may leave the device and what broker and cloud take.

use std::sync::PoisonError;
use std::sync::atomic::Ordering;

use futures_util::future::join_all;
use hedge_core::engine::Event;
use hedge_core::policy::Payload;
use hedge_core::privacy::{Ceiling, Treatment};
use hedge_core::uplink::{Publish, Travel, travel};
use hedge_proto::{Case, CaseKey, CaseMessage, MESSAGE_BYTES_MAX, Topic, from_cbor, to_cbor};
use rumqttc::PublishOptions;
use rumqttc::mqttbytes::QoS;
use serde_bytes::ByteBuf;

use super::upload::UploadError;
use super::{CASE_BYTES_MAX, ENVELOPE_BYTES_MAX, PublishError, Shared};
use crate::outbox::{Outbox, Progress, StoreError};
use crate::privacy::SentPayload;

impl Shared {
    /// Reads the cases of several messages in one go, for each trip to a thread that may wait for the disk costs more
    /// than reading a case, and publishes them side by side.
    pub(super) async fn send_all(&self, publishes: Vec<Vec<CaseKey>>) {
        let (outbox, keys) = (self.setup.outbox.clone(), publishes.clone());
        let read = tokio::task::spawn_blocking(move || {
            let read = |key: CaseKey| (key, load_case(&outbox, key));
            keys.into_iter().map(|keys| keys.into_iter().map(read).collect()).collect::<Vec<Vec<_>>>()
        });
        match read.await {
            Ok(read) => drop(join_all(read.into_iter().map(|cases| self.send_cases(cases))).await),
            Err(error) => {
                tracing::error!(%error, "cases could not be read; they will be tried again");
                let keys = publishes.concat();
                self.tell(Event::Published { keys, outcome: Publish::Nobody }).await;
            }
        }
    }

    /// Publishes cases in one message, and tells the engine what became of each.
    async fn send_cases(&self, read: Vec<(CaseKey, Result<Option<Case>, String>)>) {
        let ceiling = self.ceiling();
        let mut cases = Vec::with_capacity(read.len());
        for (key, read) in read {
            match read {
                Ok(Some(case)) => cases.push(self.keep_within(ceiling, case).await),
                Ok(None) => self.tell(Event::Closed { key, spoken: false }).await,
                Err(reason) => self.bury(key, &reason).await,
            }
        }
        let keys: Vec<CaseKey> = cases.iter().map(|case| case.id.key).collect();
        if let [only] = &mut cases[..]
            && let Err(error) = self.upload_if_large(only).await
        {
            if error.is_final() {
                return self.bury(only.id.key, &error.to_string()).await;
            }
            tracing::warn!(id = %only.id, %error, "a large payload is not in the cloud yet; it will be tried again");
            return self.tell(Event::Published { keys, outcome: Publish::Stuck }).await;
        }
        self.setup.outbox.mark(keys.iter().map(|key| (*key, Progress::Sent)).collect()).await;
        let message = match (cases.len(), cases.pop()) {
            (_, None) => return,
            (1, Some(only)) => CaseMessage::Case(Box::new(only)),
            (_, Some(last)) => {
                cases.push(last);
                CaseMessage::Batch(cases)
            }
        };
        if self.ceiling() < ceiling {
            tracing::info!("less may leave the device than when these cases were read; they are read again");
            return self.tell(Event::Published { keys, outcome: Publish::Stuck }).await;
        }
        let outcome = match self.publish_case_message(&message).await {
            Ok(()) => Publish::Acknowledged,
            Err(PublishError::NotConnected | PublishError::Nobody) => Publish::Nobody,
            Err(PublishError::Unclear) => Publish::Unclear,
            Err(error @ PublishError::TooLarge { .. }) => return self.send_apart_or_bury(message, &error).await,
            Err(error @ PublishError::Refused(_)) => {
                tracing::warn!(%error, "the broker refused a case; it will be tried again");
                Publish::Nobody
            }
        };
        self.tell(Event::Published { keys, outcome }).await;
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

    /// What is too large for the broker together may fit one by one; what does not fit alone never will.
    async fn send_apart_or_bury(&self, message: CaseMessage, error: &PublishError) {
        match message {
            CaseMessage::Batch(cases) => {
                for case in cases {
                    Box::pin(self.send_cases(vec![(case.id.key, Ok(Some(case)))])).await;
                }
            }
            CaseMessage::Case(case) => {
                let way = if self.uploads.is_none() { "; give `[payloads] url` another way for it" } else { "" };
                self.bury(case.id.key, &format!("{error}{way}")).await;
            }
            CaseMessage::Ask { .. } => {}
        }
    }

    /// Makes a dead letter of a case that this device cannot send.
    async fn bury(&self, key: CaseKey, reason: &str) {
        tracing::warn!(id = %self.id(key), reason, "a case cannot be sent; it is kept as a dead letter");
        let event = match self.setup.outbox.dead(key, reason).await {
            Ok(()) | Err(StoreError::Unknown) => Event::Closed { key, spoken: false },
            Err(error) => {
                tracing::error!(%error, "the dead letter could not be recorded; it will be tried again");
                Event::Published { keys: vec![key], outcome: Publish::Nobody }
            }
        };
        self.tell(event).await;
    }

    /// The most of a sample that may leave the device now.
    fn ceiling(&self) -> Ceiling {
        self.setup.settings.borrow().config.privacy.ceiling()
    }

    /// The case with what may leave of its payload: it may have been stored under a higher ceiling.
    async fn keep_within(&self, ceiling: Ceiling, mut case: Case) -> Case {
        let treatment = ceiling.treat(Payload::Whole, case.form);
        if treatment == Treatment::Keep {
            return case;
        }
        let bytes = case.payload.take().map(ByteBuf::into_vec).unwrap_or_default().into();
        let stored = SentPayload { form: case.form, content_type: case.content_type, bytes };
        let sent = self.setup.reducer.treat(stored, treatment).await;
        case.payload_sha256 = sent.digest();
        (case.form, case.content_type) = (sent.form, sent.content_type);
        case.payload = Some(ByteBuf::from(Vec::from(sent.bytes)));
        case
    }

    pub(super) async fn publish_case_message(&self, message: &CaseMessage) -> Result<(), PublishError> {
        let topic = Topic::UpCase(self.setup.device.clone());
        let (message, bytes_max) = (to_cbor(message), self.case_bytes_max.load(Ordering::Relaxed));
        if message.len() > bytes_max {
            return Err(PublishError::TooLarge { bytes: message.len(), bytes_max });
        }
        self.publish(&topic, message, PublishOptions::new(QoS::AtLeastOnce)).await
    }
}

/// The case with its payload; `None` if it is no longer in the outbox. An error is final for this case.
fn load_case(outbox: &Outbox, key: CaseKey) -> Result<Option<Case>, String> {
    let stored = match outbox.read(key) {
        // Answered or dead while this send was on its way here.
        Ok(Some(stored)) if stored.verdict.is_some() || stored.dead.is_some() => return Ok(None),
        Ok(Some(stored)) => stored,
        Ok(None) => return Ok(None),
        Err(error) => return Err(error.to_string()),
    };
    let mut case: Case = from_cbor(&stored.header, MESSAGE_BYTES_MAX).map_err(|error| error.to_string())?;
    case.payload = Some(ByteBuf::from(Vec::from(stored.payload)));
    Ok(Some(case))
}
