//! A device as far as operators can see: it decides on settings and answers commands as it is told to.

use std::net::SocketAddr;

use hedge_proto::{
    CommandMessage, CommandOutcome, Desired, DeviceId, DeviceState, DeviceStatus, Digest, FieldError, LastDesired,
    ModelRef, Reply, Reported, Settings, SettingsOutcome, Topic, Topics, to_json,
};
use rumqttc::mqttbytes::v5::{Packet, Publish, PublishProperties};
use rumqttc::{AsyncClient, Event, MqttOptions, PublishOptions, QoS};
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::timeout;

use super::PATIENCE;

/// How it takes wanted settings and commands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Manner {
    Obliging,
    /// Refuses `log.level`, and every command.
    Stubborn,
    /// Puts everything on trial, which fails.
    Anxious,
    /// Hears everything and says nothing.
    Mute,
}

pub struct Double {
    pub name: DeviceId,
    pub client: AsyncClient,
    topics: Topics,
    /// What it was told, as it came.
    heard: mpsc::Receiver<Publish>,
}

impl Double {
    /// Returns once it listens and everything it says of itself is at the broker.
    pub async fn connect(name: &str, broker: SocketAddr, manner: Manner) -> Self {
        let name = DeviceId::new(name).unwrap();
        let topics = Topics::new("").unwrap();
        let mut options = MqttOptions::new(format!("double-{name}"), (broker.ip().to_string(), broker.port()));
        options.set_max_packet_size(Some(1 << 20));
        let (client, mut events) = AsyncClient::builder(options).capacity(1000).build();
        let (hear, heard) = mpsc::channel(1000);
        let filter = topics.down_filter(&name);
        let (speaker, said) = (Speaker { name: name.clone(), client: client.clone(), topics: topics.clone() }, hear);
        tokio::spawn(async move {
            let mut version = 0;
            while let Ok(event) = events.poll().await {
                let Event::Incoming(Packet::Publish(publish)) = event else { continue };
                if manner != Manner::Mute {
                    speaker.take(&publish, manner, &mut version).await;
                }
                drop(said.try_send(publish));
            }
        });
        let double = Self { name, client, topics, heard };
        double.say(&Topic::UpStatus(double.name.clone()), to_json(&status(DeviceState::Online))).await;
        double.say(&Topic::UpReported(double.name.clone()), to_json(&reported(0, json!({}), None))).await;
        let notice = double.client.subscribe_tracked(filter, QoS::AtLeastOnce).await.unwrap();
        timeout(PATIENCE, notice.wait_async()).await.expect("a SUBACK").unwrap();
        double
    }

    pub async fn say(&self, topic: &Topic, payload: Vec<u8>) {
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        let notice = self.client.publish_tracked(self.topics.text(topic), payload, options).await.unwrap();
        // Nobody may be listening; retained it is all the same.
        drop(timeout(PATIENCE, notice.wait_async()).await.expect("a PUBACK"));
    }

    /// Says that it is away, and goes.
    pub async fn leave(&self) {
        self.say(&Topic::UpStatus(self.name.clone()), to_json(&status(DeviceState::Offline))).await;
        self.client.disconnect().await.unwrap();
    }

    /// The next thing it is told.
    pub async fn hears(&mut self) -> Publish {
        timeout(PATIENCE, self.heard.recv()).await.expect("something is said").expect("a broker")
    }

    pub async fn wanted(&mut self) -> Desired {
        loop {
            let publish = self.hears().await;
            if publish.topic == self.topics.text(&Topic::DownDesired(self.name.clone())) {
                return Desired::read(&publish.payload).unwrap();
            }
        }
    }

    /// Nothing was said to it that it has not yet been asked about.
    pub fn heard_nothing(&mut self) -> bool {
        self.heard.try_recv().is_err()
    }
}

struct Speaker {
    name: DeviceId,
    client: AsyncClient,
    topics: Topics,
}

impl Speaker {
    async fn take(&self, publish: &Publish, manner: Manner, version: &mut u64) {
        let topic = std::str::from_utf8(&publish.topic).unwrap();
        match self.topics.read(topic) {
            Some(Topic::DownDesired(_)) => {
                self.decide(&Desired::read(&publish.payload).unwrap(), manner, version).await
            }
            Some(Topic::DownCommand(_)) => self.obey(publish, manner).await,
            _ => {}
        }
    }

    async fn decide(&self, desired: &Desired, manner: Manner, version: &mut u64) {
        let word = |outcome, errors| LastDesired { version: Some(desired.version), outcome, reason: None, errors };
        let report = async |version: u64, settings: Value, last| {
            let json = to_json(&reported(version, settings, Some(last)));
            let options = PublishOptions::new(QoS::AtLeastOnce).retained();
            self.client.publish(self.topics.text(&Topic::UpReported(self.name.clone())), json, options).await.unwrap();
        };
        match manner {
            Manner::Stubborn if desired.settings.get("log").is_some() => {
                let errors = vec![FieldError::new("log.level", "I like mine")];
                report(*version, json!({}), word(SettingsOutcome::Refused, errors)).await;
            }
            Manner::Anxious => {
                report(desired.version, desired.settings.clone(), word(SettingsOutcome::OnTrial, Vec::new())).await;
                let failed =
                    LastDesired { reason: Some("no cloud".to_owned()), ..word(SettingsOutcome::Failed, Vec::new()) };
                report(*version, json!({}), failed).await;
            }
            _ if *version != desired.version => {
                *version = desired.version;
                report(*version, desired.settings.clone(), word(SettingsOutcome::Applied, Vec::new())).await;
            }
            _ => {}
        }
    }

    async fn obey(&self, publish: &Publish, manner: Manner) {
        let message = CommandMessage::read(&publish.payload).unwrap();
        let (outcome, reason) = match manner {
            Manner::Stubborn => (CommandOutcome::Refused, Some("not today".to_owned())),
            _ => (CommandOutcome::Done, None),
        };
        let properties = publish.properties.as_ref().unwrap();
        let reply = Reply {
            id: message.id,
            command: Some(message.command),
            outcome,
            reason,
            result: json!({"args": message.args, "by": message.by}),
        };
        let correlation_data = properties.correlation_data.clone();
        let options = PublishOptions::new(QoS::AtLeastOnce)
            .properties(PublishProperties { correlation_data, ..PublishProperties::default() });
        let topic = properties.response_topic.clone().unwrap();
        self.client.publish(topic, to_json(&reply), options).await.unwrap();
    }
}

fn status(state: DeviceState) -> DeviceStatus {
    let models = vec![ModelRef { name: "photo-small".to_owned(), version: "2".to_owned() }];
    DeviceStatus {
        state,
        connection: 1,
        window_every_s: None,
        link: None,
        version: Some("0.1.0".to_owned()),
        wire: vec![1],
        models,
        faults: Default::default(),
    }
}

fn reported(version: u64, overlay: Value, last: Option<LastDesired>) -> Reported {
    let overlay = Settings::read(overlay).unwrap();
    Reported {
        version,
        hash: Digest::of(&to_json(&overlay)),
        settings: overlay.clone(),
        overlay,
        suggested: Default::default(),
        paused: Vec::new(),
        last,
    }
}
