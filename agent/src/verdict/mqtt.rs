//! Publishes answers on `up/answer/{source}`: on the uplink, or on a broker nearer to who reads them.

use std::sync::Arc;
use std::time::Duration;

use hedge_core::link::{Profile, refusal};
use hedge_core::policy::tells;
use hedge_proto::{Answer, DeviceId, Name, Topic, Topics, to_json};
use rumqttc::mqttbytes::QoS;
use rumqttc::{
    AsyncClient, EventLoop, NoticeFailureReason, PubAckReason, PublishNoticeError, PublishOptions, PublishResult,
};
use tokio::sync::watch;

use super::SinkError;
use crate::link::LinkView;
use crate::uplink::{Meter, OptionsError, PublishError, Uplink, options};
use hedge_config::BrokerConfig;

/// How long the other broker may take to acknowledge one answer.
const ACKNOWLEDGE_WAIT: Duration = Duration::from_secs(10);

/// Answers on their way to the other broker. One at a time is sent, so few are enough.
const REQUESTS_MAX: usize = 8;

/// Answers to MQTT.
pub enum MqttSink {
    /// Where the cases go; without `[broker]` nowhere.
    Uplink(Option<Spending>),
    Near(Box<Near>),
}

/// The uplink, whose bytes are counted.
pub struct Spending {
    pub uplink: Uplink,
    pub link: watch::Receiver<LinkView>,
}

impl Spending {
    /// What is left over a reached ceiling is for whoever must reach the device; answers wait for room.
    async fn answer(&self, answer: &Answer) -> Result<(), SinkError> {
        if !tells(self.link.borrow().state) {
            return Err(SinkError::Offline);
        }
        self.uplink.answer(answer).await.map_err(|error| match error {
            PublishError::Refused(_) | PublishError::TooLarge { .. } => SinkError::Refused(error.to_string()),
            PublishError::NotConnected | PublishError::Nobody | PublishError::Unclear => SinkError::Offline,
        })
    }
}

/// A broker of the sink's own.
pub struct Near {
    config: BrokerConfig,
    device: DeviceId,
    /// Made anew after its connection has ended: files and passwords may have been changed.
    open: Option<Open>,
}

struct Open {
    client: AsyncClient,
    /// Why the connection has ended, once it has.
    ended: watch::Receiver<Option<Arc<str>>>,
}

impl MqttSink {
    /// Publishes where the cases go.
    #[must_use]
    pub fn on_uplink(uplink: Option<Spending>) -> Self {
        Self::Uplink(uplink)
    }

    /// Publishes to a broker of its own, connected until the sink is dropped. Nothing is read or dialled yet.
    #[must_use]
    pub fn on_broker(config: BrokerConfig, device: DeviceId) -> Self {
        Self::Near(Box::new(Near { config, device, open: None }))
    }

    /// Whether there is a broker to publish on, and what its own one needs is there. Nothing is dialled.
    pub fn look(&mut self) -> Result<(), String> {
        match self {
            Self::Uplink(Some(_)) => Ok(()),
            Self::Uplink(None) => {
                Err("there is no [broker] to publish on; restart the agent, or give the sink a `broker`".to_owned())
            }
            Self::Near(near) => near.options().map(drop).map_err(|error| error.to_string()),
        }
    }

    pub async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        match self {
            Self::Uplink(Some(uplink)) => uplink.answer(answer).await,
            Self::Uplink(None) => self.look().map_err(SinkError::Away),
            Self::Near(near) => near.send(answer).await,
        }
    }
}

impl Near {
    fn options(&self) -> Result<rumqttc::MqttOptions, OptionsError> {
        let client_id = self.config.client_id.clone().unwrap_or_else(|| format!("{}-answers", self.device));
        options(&self.config, &client_id, Profile::LAN.keep_alive, &Meter::default())
    }

    fn open(&mut self) -> Result<&Open, OptionsError> {
        let open = match self.open.take().filter(|open| open.ended.borrow().is_none()) {
            Some(open) => open,
            None => {
                let (client, eventloop) = AsyncClient::builder(self.options()?)
                    .capacity(REQUESTS_MAX)
                    .try_build()
                    .map_err(|error| OptionsError::Broker(error.to_string()))?;
                let (end, ended) = watch::channel(None);
                tokio::spawn(connect(eventloop, end));
                Open { client, ended }
            }
        };
        Ok(self.open.insert(open))
    }

    async fn send(&mut self, answer: &Answer) -> Result<(), SinkError> {
        let source = Name::new(&answer.source).map_err(|error| SinkError::Refused(error.to_string()))?;
        let topic = text(&self.config.prefix, &self.device, source);
        let open = self.open().map_err(|error| SinkError::Away(error.to_string()))?;
        let outcome = publish(&open.client, topic, to_json(answer)).await;
        match outcome {
            Err(SinkError::Away(reason)) => {
                let ended = open.ended.borrow().clone();
                let why = ended.map_or(reason, |ended| ended.to_string());
                Err(SinkError::Away(format!("the broker {} does not take answers: {why}", self.config.url)))
            }
            other => other,
        }
    }
}

fn text(prefix: &Topics, device: &DeviceId, source: Name) -> String {
    prefix.text(&Topic::UpAnswer(device.clone(), source))
}

async fn publish(client: &AsyncClient, topic: String, payload: Vec<u8>) -> Result<(), SinkError> {
    let away = |error: &dyn std::fmt::Display| SinkError::Away(error.to_string());
    let refused =
        |reason: &PubAckReason| SinkError::Refused(format!("the broker refused an answer: {}", refusal(*reason as u8)));
    let options = PublishOptions::new(QoS::AtLeastOnce);
    let notice = client.try_publish_tracked(topic, payload, options).map_err(|error| away(&error))?;
    match tokio::time::timeout(ACKNOWLEDGE_WAIT, notice.wait_async()).await {
        Ok(Ok(PublishResult::Qos1(ack))) => match ack.reason {
            // The broker has it; that nobody listens now is not the device's concern.
            PubAckReason::Success | PubAckReason::NoMatchingSubscribers => Ok(()),
            reason => Err(refused(&reason)),
        },
        Ok(Ok(_)) => Ok(()),
        Ok(Err(PublishNoticeError::V5PubAck(reason))) => Err(refused(&reason)),
        Ok(Err(error)) => Err(away(&error)),
        Err(_) => Err(SinkError::Away(format!("no acknowledgement within {} s", ACKNOWLEDGE_WAIT.as_secs()))),
    }
}

/// Serves one connection, until it fails or the sink, and with it the last client handle, is gone.
async fn connect(mut eventloop: EventLoop, end: watch::Sender<Option<Arc<str>>>) {
    loop {
        match eventloop.poll().await {
            Ok(_) => {}
            Err(rumqttc::ConnectionError::RequestsDone) => return,
            Err(error) => {
                end.send_replace(Some(error.to_string().into()));
                eventloop.clean();
                // The delivery loop decides what is sent again.
                eventloop.drain_pending_as_failed(NoticeFailureReason::SessionReset);
                return;
            }
        }
    }
}
