//! Reads what the broker keeps of all devices: at each connect of the link, over a connection of its own.
//!
//! Brokers hand retained messages out all at once and drop what neither the receiver's window nor their own queue holds: of
//! a large fleet, most. The link's window is small, so that a flood waits at the broker; here it is as large as MQTT knows,
//! and one kind of message follows the other. Meanwhile news comes over both connections; what is read here last
//! is never older than what the link has brought before.

use std::collections::HashSet;
use std::time::Duration;

use bytes::Bytes;
use hedge_proto::Topics;
use rumqttc::mqttbytes::v5::Publish;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::Instant;

use super::hearing::{Hearing, HearingError, Listener};
use super::{PACKET_BYTES_MAX, Way};
use crate::message::Incoming;
use crate::traces::Came;

/// Between two tries.
const AGAIN_AFTER: Duration = Duration::from_secs(30);

/// Reads until it is dropped or done.
pub(super) struct Kept(JoinHandle<()>);

impl Kept {
    pub(super) fn read(way: Way, topics: Topics, intake: mpsc::Sender<Incoming>) -> Self {
        Self(tokio::spawn(async move {
            loop {
                let begun = Instant::now();
                match read(&way, &topics, &intake).await {
                    Ok(messages) => {
                        let ms = begun.elapsed().as_millis();
                        tracing::info!(messages, ms, "read what the broker keeps of all devices");
                        return;
                    }
                    // All that came is taken, but nobody knows whether it was all.
                    Err(error @ (HearingError::NoMarker { .. } | HearingError::NotAllowed { .. })) => {
                        tracing::warn!("what the broker keeps of devices may not be known whole: {error}");
                        return;
                    }
                    Err(error) => {
                        tracing::warn!(
                            retry_s = AGAIN_AFTER.as_secs(),
                            "what the broker keeps of devices was not read: {error}"
                        );
                        tokio::time::sleep(AGAIN_AFTER).await;
                    }
                }
            }
        }))
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// How many messages the broker has kept.
async fn read(way: &Way, topics: &Topics, intake: &mpsc::Sender<Incoming>) -> Result<u64, HearingError> {
    let mut hearing = Hearing::connect(way, topics, "reader", PACKET_BYTES_MAX).await?;
    let mut to_intake = ToIntake { intake, seen: HashSet::new() };
    let mut unsettled = None;
    for filter in filters(topics) {
        hearing.subscribe(filter, &mut to_intake).await?;
        match hearing.settle(&mut to_intake).await {
            Err(error @ (HearingError::NoMarker { .. } | HearingError::NotAllowed { .. })) => unsettled = Some(error),
            settled => settled?,
        }
    }
    let messages = hearing.retained;
    hearing.close().await;
    unsettled.map_or(Ok(messages), Err)
}

struct ToIntake<'a> {
    intake: &'a mpsc::Sender<Incoming>,
    /// Topics of which a kept message was passed on.
    seen: HashSet<Bytes>,
}

impl Listener for ToIntake<'_> {
    async fn hear(&mut self, publish: Publish) {
        if publish.retain {
            self.seen.insert(publish.topic.clone());
        } else if !self.seen.contains(&publish.topic) {
            // The link brings it, too. Only what follows a kept message is needed here, for the link may have brought it
            // before that one.
            return;
        }
        let topic = String::from_utf8_lossy(&publish.topic).into_owned();
        let (payload, retained) = (publish.payload, publish.retain);
        let message = Incoming { topic, payload, retained, receipt: None, share: None, came: Came::default() };
        // The intake has gone only where the program is ending.
        drop(self.intake.send(message).await);
    }
}

/// The topics whose messages brokers keep.
pub(super) fn filters(topics: &Topics) -> [String; 3] {
    [topics.fleet_filter("status"), topics.fleet_filter("reported"), topics.fleet_down_filter("desired")]
}
