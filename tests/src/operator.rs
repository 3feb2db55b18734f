//! An operator at the broker: says what devices are to do, and sees what they report.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use hedge_proto::{DeviceId, Reported, Topic, Topics};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::Packet;
use rumqttc::{AsyncClient, Broker, IncomingPacketSizeLimit, MqttOptions, PublishOptions};
use serde_json::{Value, json};
use tokio::runtime::Runtime;

/// For a word of a device that is there, on a busy machine.
pub const WORD_WAIT_MAX: Duration = Duration::from_secs(60);

/// The last message of each topic, and how many there were.
type Heard = BTreeMap<String, (u64, Vec<u8>)>;

/// Connected until dropped.
pub struct Operator {
    client: AsyncClient,
    heard: Arc<(Mutex<Heard>, Condvar)>,
    topics: Topics,
    runtime: Runtime,
}

impl Operator {
    /// Listens to everything every device says.
    pub fn at(broker: SocketAddr) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let address = Broker::tcp(broker.ip().to_string(), broker.port());
        let mut options = MqttOptions::new(format!("operator-{}", std::process::id()), address);
        options.set_clean_start(true);
        // It hears every case, too; the library's own limit is 10 KiB.
        options.set_incoming_packet_size_limit(IncomingPacketSizeLimit::Unlimited);
        let (client, mut eventloop) = AsyncClient::builder(options).capacity(64).try_build()?;
        let heard: Arc<(Mutex<Heard>, Condvar)> = Arc::default();
        let hears = heard.clone();
        runtime.spawn(async move {
            // Ends with the broker or the operator; a test that goes on without either waits in vain and says so.
            while let Ok(event) = eventloop.poll().await {
                let rumqttc::Event::Incoming(Packet::Publish(publish)) = event else { continue };
                let topic = String::from_utf8_lossy(&publish.topic).into_owned();
                let mut heard = hears.0.lock().unwrap_or_else(PoisonError::into_inner);
                let entry = heard.entry(topic).or_default();
                *entry = (entry.0 + 1, publish.payload.to_vec());
                hears.1.notify_all();
            }
        });
        let topics = Topics::new("")?;
        let subscribed = client.try_subscribe_tracked("hedge/v1/+/up/#", QoS::AtLeastOnce);
        runtime.block_on(subscribed?.wait_async()).context("the operator cannot subscribe")?;
        Ok(Self { client, heard, topics, runtime })
    }

    /// Publishes and waits until the broker has it.
    pub fn publish(&self, topic: &Topic, payload: impl Into<Vec<u8>>, retained: bool) -> Result<()> {
        let options = PublishOptions::new(QoS::AtLeastOnce);
        let options = if retained { options.retained() } else { options };
        let sent = self.client.try_publish_tracked(self.topics.text(topic), payload.into(), options)?;
        self.runtime.block_on(sent.wait_async()).context("the broker did not take it")?;
        Ok(())
    }

    /// Publishes a desired document.
    pub fn desire(&self, device: &str, version: u64, settings: Value) -> Result<()> {
        self.desire_document(device, json!({"version": version, "settings": settings, "by": "the test"}).to_string())
    }

    /// Publishes anything as the desired document.
    pub fn desire_document(&self, device: &str, document: impl Into<Vec<u8>>) -> Result<()> {
        self.publish(&Topic::DownDesired(DeviceId::new(device)?), document, true)
    }

    /// The device's newest report.
    pub fn reported(&self, device: &str) -> Result<Option<Reported>> {
        let topic = self.topics.text(&Topic::UpReported(DeviceId::new(device)?));
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        heard.get(&topic).map(|(_, report)| Ok(serde_json::from_slice(report)?)).transpose()
    }

    /// How many reports of the device were heard.
    pub fn reports(&self, device: &str) -> Result<u64> {
        let topic = self.topics.text(&Topic::UpReported(DeviceId::new(device)?));
        let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
        Ok(heard.get(&topic).map_or(0, |(count, _)| *count))
    }

    /// Waits until the device's newest report is as `wanted`.
    pub fn wait_for_report(
        &self,
        device: &str,
        what: &str,
        bound: Duration,
        wanted: impl Fn(&Reported) -> bool,
    ) -> Result<Reported> {
        let deadline = Instant::now() + bound;
        loop {
            let newest = self.reported(device)?;
            if let Some(report) = newest.clone().filter(|report| wanted(report)) {
                return Ok(report);
            }
            let heard = self.heard.0.lock().unwrap_or_else(PoisonError::into_inner);
            let left = deadline.saturating_duration_since(Instant::now());
            anyhow::ensure!(!left.is_zero(), "{what}: not within {bound:?}; the newest report: {newest:?}");
            // Woken by any message; looked at again in any case, because one may have come since the look above.
            drop(self.heard.1.wait_timeout(heard, left.min(Duration::from_millis(20))));
        }
    }
}
