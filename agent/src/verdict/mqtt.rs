//! Publishes answers on `up/answer/{source}`: on the uplink, or on a broker nearer to who reads them.

use std::collections::BTreeMap;
use std::time::Duration;

use hedge_core::link::{Profile, refusal};
use hedge_proto::{Answer, DeviceId, Name, TaskResult, Topic, Topics, to_json};
use rumqttc::mqttbytes::QoS;
use rumqttc::{AsyncClient, EventLoop, NoticeFailureReason, PublishNoticeError, PublishOptions};

use super::SinkError;
use crate::daemon::config::{BrokerConfig, Wanted};
use crate::uplink::{Meter, OptionsError, PublishError, Uplink, options};

/// How long the other broker may take to acknowledge one answer.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_secs(10);

/// The wait between two tries to reach the other broker.
const RECONNECT_WAIT: Duration = Duration::from_secs(5);

/// Answers on their way to the other broker. One at a time is sent, so few are enough.
const REQUESTS_MAX: usize = 8;

/// Answers to MQTT.
pub struct MqttSink {
    way: Way,
    /// What each source last said, to tell a change from a repetition.
    last: BTreeMap<String, String>,
}

enum Way {
    Uplink(Uplink),
    Other { client: AsyncClient, topics: Topics, device: DeviceId },
}

impl MqttSink {
    /// Publishes where the cases go.
    #[must_use]
    pub fn on_uplink(uplink: Uplink) -> Self {
        Self { way: Way::Uplink(uplink), last: BTreeMap::new() }
    }

    /// Publishes to a broker of its own, connected until the sink is dropped.
    pub fn on_broker(config: &BrokerConfig, device: &DeviceId) -> Result<Self, OptionsError> {
        let client_id = config.client_id.clone().unwrap_or_else(|| format!("{device}-answers"));
        let (client, eventloop) =
            AsyncClient::builder(options(config, &client_id, Profile::LAN.keep_alive, &Meter::default())?)
                .capacity(REQUESTS_MAX)
                .try_build()
                .map_err(|error| OptionsError::Broker(error.to_string()))?;
        tokio::spawn(keep_connected(eventloop));
        let way = Way::Other { client, topics: config.prefix.clone(), device: device.clone() };
        Ok(Self { way, last: BTreeMap::new() })
    }

    /// Whether a local answer is wanted: all are, or only what differs from the source's last word.
    pub fn wants_local(&mut self, wanted: Wanted, answer: &Answer) -> bool {
        let says = answer.result.as_ref().map(TaskResult::headline).unwrap_or_default();
        let before = self.last.insert(answer.source.clone(), says.clone());
        match wanted {
            Wanted::All => true,
            Wanted::Corrections => false,
            Wanted::Changed => before.as_deref() != Some(says.as_str()),
        }
    }

    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        match &self.way {
            Way::Uplink(uplink) => uplink.answer(answer).await.map_err(|error| match error {
                PublishError::Refused(_) | PublishError::TooLarge { .. } => SinkError::Refused(error.to_string()),
                _ => SinkError::Retry(error.to_string()),
            }),
            Way::Other { client, topics, device } => {
                let source = Name::new(&answer.source).map_err(|error| SinkError::Refused(error.to_string()))?;
                publish(client, topics.text(&Topic::UpAnswer(device.clone(), source)), to_json(answer)).await
            }
        }
    }
}

async fn publish(client: &AsyncClient, topic: String, payload: Vec<u8>) -> Result<(), SinkError> {
    let retry = |error: &dyn std::fmt::Display| SinkError::Retry(error.to_string());
    let options = PublishOptions::new(QoS::AtLeastOnce);
    let notice = client.try_publish_tracked(topic, payload, options).map_err(|error| retry(&error))?;
    match tokio::time::timeout(ACKNOWLEDGE_WAIT, notice.wait_completion_async()).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(PublishNoticeError::V5PubAck(reason))) => {
            Err(SinkError::Retry(format!("the broker refuses it: {}", refusal(reason as u8))))
        }
        Ok(Err(error)) => Err(retry(&error)),
        Err(_) => Err(SinkError::Retry("the broker did not acknowledge in time".to_owned())),
    }
}

/// Ends when the sink, and with it the last client handle, is gone.
async fn keep_connected(mut eventloop: EventLoop) {
    loop {
        match eventloop.poll().await {
            Ok(_) => {}
            Err(rumqttc::ConnectionError::RequestsDone) => return,
            Err(error) => {
                tracing::debug!(%error, "the answers' broker is away");
                eventloop.clean();
                // The delivery loop decides what is sent again.
                eventloop.drain_pending_as_failed(NoticeFailureReason::SessionReset);
                tokio::time::sleep(RECONNECT_WAIT).await;
            }
        }
    }
}
