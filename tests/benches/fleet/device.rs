//! One light device: a real session at the broker and the real decisions of `hedge-core`'s uplink about what is sent, asked
//! about and held back. It has no disk, no model and no callers, so that thousands of them fit into one process.

use std::collections::{BTreeMap, VecDeque};
use std::net::SocketAddr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use hedge_core::clock::Moment;
use hedge_core::uplink::{Permission, Publish, READY_MAX, Step, Uplink, WINDOW_MAX, Waiting};
use hedge_proto::{
    Captured, Case, CaseDecision, CaseId, CaseKey, CaseMessage, CloudState, CloudStatus, DeviceId, DeviceState,
    DeviceStatus, Digest, Doubt, DownMessage, Epoch, LabelScore, Message as _, ModelRef, Output, PayloadForm, Reason,
    ThresholdMode, Topic, Topics, Verdict, WIRE_VERSION, from_cbor, labels_hash, to_cbor, to_json,
};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::{Packet, PubAckReason, Publish as Heard};
use rumqttc::{AsyncClient, Event, MqttOptions, PublishOptions, PublishResult, TlsConfiguration, Transport};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{Instant, sleep_until, timeout};

/// What the cloud answers; the device says something else.
pub(crate) const TASK: &str = "load";
pub(crate) const LABEL: &str = "yes";

/// Between two dials of one device.
const DIAL_PAUSE: Duration = Duration::from_secs(1);

/// With a whole fleet before it at the broker's door.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);

const DOWN_BYTES_MAX: usize = 1 << 20;

const EPOCH: Epoch = Epoch(1);

/// What the fleet does now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Stage {
    /// Nobody is connected.
    Away,
    Idle,
    /// New cases are made.
    Working,
    /// No more are made; what is open is waited for.
    Finishing,
}

/// What the devices have counted together.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) connected: AtomicU64,
    pub(crate) cut: AtomicU64,
    pub(crate) made: AtomicU64,
    pub(crate) sent: AtomicU64,
    /// Payloads that were on their way before.
    pub(crate) sent_again: AtomicU64,
    pub(crate) asked: AtomicU64,
    pub(crate) busy: AtomicU64,
    pub(crate) answered: AtomicU64,
    /// Second verdicts that say something else than the first. A device drops one that says the same.
    pub(crate) twice: AtomicU64,
    /// Of new cases: when they were made, and how long they took.
    pub(crate) took: Mutex<Vec<(Instant, Duration)>>,
}

/// What all devices share.
pub(crate) struct Fleet {
    pub(crate) broker: SocketAddr,
    /// The broker's certificate is one of this authority's, in PEM. Without it devices connect in the open.
    pub(crate) authority: Option<Vec<u8>>,
    pub(crate) topics: Topics,
    pub(crate) payload: Vec<u8>,
    pub(crate) batch_bytes_max: u32,
    /// Between two new cases of one device.
    pub(crate) every: Option<Duration>,
    /// How many cases each has kept while it was away.
    pub(crate) kept: u64,
    pub(crate) counts: Counts,
    pub(crate) begun: Instant,
}

impl Fleet {
    /// Over this broker in the open, with payloads of 1 KiB, each in a message of its own.
    pub(crate) fn at(broker: SocketAddr) -> Result<Self> {
        Ok(Self {
            broker,
            authority: None,
            topics: Topics::new("")?,
            payload: vec![7; 1024],
            batch_bytes_max: 0,
            every: None,
            kept: 0,
            counts: Counts::default(),
            begun: Instant::now(),
        })
    }

    fn now(&self) -> Moment {
        Moment(u64::try_from(self.begun.elapsed().as_millis()).unwrap_or(u64::MAX))
    }

    fn instant(&self, at: Moment) -> Instant {
        self.begun + Duration::from_millis(at.0)
    }
}

fn count(counter: &AtomicU64, by: usize) {
    counter.fetch_add(by as u64, Ordering::Relaxed);
}

/// A case that has no verdict yet.
struct Open {
    /// `None` for one that was kept while the device was away.
    made: Option<Instant>,
    sent: bool,
}

pub(crate) struct Device {
    fleet: Arc<Fleet>,
    stage: watch::Receiver<Stage>,
    name: DeviceId,
    uplink: Uplink,
    next: u64,
    open: BTreeMap<CaseKey, Open>,
    /// Not in the uplink's memory yet.
    disk: VecDeque<CaseKey>,
    answered: BTreeMap<CaseKey, Verdict>,
    clouds: BTreeMap<Vec<u8>, CloudStatus>,
    proven: bool,
    connection: u64,
    next_at: Option<Instant>,
}

/// One connection.
struct Session {
    client: AsyncClient,
    heard: mpsc::Receiver<Heard>,
    polling: JoinHandle<()>,
    publishing: JoinSet<(Step, Publish)>,
}

impl Drop for Session {
    fn drop(&mut self) {
        self.polling.abort();
    }
}

impl Device {
    pub(crate) fn new(fleet: Arc<Fleet>, stage: watch::Receiver<Stage>, number: usize) -> Result<Self> {
        let name = DeviceId::new(&format!("light-{number:05}"))?;
        let uplink = Uplink::new(fleet.batch_bytes_max);
        Ok(Self {
            fleet,
            stage,
            name,
            uplink,
            next: 0,
            open: BTreeMap::new(),
            disk: VecDeque::new(),
            answered: BTreeMap::new(),
            clouds: BTreeMap::new(),
            proven: false,
            connection: 0,
            next_at: None,
        })
    }

    /// Until the fleet's end. `phase`, between 0 and 1, is where in its period the device makes its cases.
    pub(crate) async fn run(mut self, phase: f64) {
        for _ in 0..self.fleet.kept {
            self.make(None);
        }
        loop {
            if self.stage.wait_for(|stage| *stage != Stage::Away).await.is_err() {
                return;
            }
            // Like the agent, which gives each step of its set-up a deadline.
            match timeout(CONNECT_TIMEOUT, self.connect()).await.context("no session in time").flatten() {
                Ok(session) => {
                    count(&self.fleet.counts.connected, 1);
                    let was_cut = self.serve(session, phase).await;
                    self.fleet.counts.connected.fetch_sub(1, Ordering::Relaxed);
                    self.uplink.disconnected(self.fleet.now(), None);
                    if !was_cut {
                        continue;
                    }
                }
                Err(error) => eprintln!("{}: {error:#}", self.name),
            }
            count(&self.fleet.counts.cut, 1);
            tokio::time::sleep(DIAL_PAUSE).await;
        }
    }

    async fn connect(&mut self) -> Result<Session> {
        let (broker, topics) = (self.fleet.broker, &self.fleet.topics);
        let mut options = MqttOptions::new(self.name.as_str(), (broker.ip().to_string(), broker.port()));
        options.set_keep_alive(60).set_connect_timeout(CONNECT_TIMEOUT);
        // The library keeps a place for each, 200 bytes long.
        options.set_outgoing_inflight_upper_limit(u16::try_from(4 * WINDOW_MAX)?);
        if let Some(ca) = self.fleet.authority.clone() {
            options.set_transport(Transport::tls_with_config(TlsConfiguration::Simple {
                ca,
                alpn: None,
                client_auth: None,
            }));
        }
        options.set_socket_connector(async |address, options| {
            let stream = rumqttc::default_socket_connect(address, options).await?;
            stream.set_nodelay(true)?;
            Ok(stream)
        });
        let (client, mut events) = AsyncClient::builder(options).capacity(4 * WINDOW_MAX).build();
        let (hear, heard) = mpsc::channel(1024);
        let polling = tokio::spawn(async move {
            while let Ok(event) = events.poll().await {
                let Event::Incoming(Packet::Publish(publish)) = event else { continue };
                if hear.send(publish).await.is_err() {
                    return;
                }
            }
        });
        let session = Session { client, heard, polling, publishing: JoinSet::new() };
        self.connection += 1;
        for filter in [topics.text(&Topic::DownVerdict(self.name.clone())), topics.cloud_filter()] {
            let granted = session.client.subscribe_tracked(filter, QoS::AtLeastOnce).await?;
            granted.wait_async().await.context("a subscription")?;
        }
        let status = DeviceStatus {
            state: DeviceState::Online,
            wire: vec![WIRE_VERSION],
            ..DeviceStatus::offline(self.connection)
        };
        let (topic, options) =
            (topics.text(&Topic::UpStatus(self.name.clone())), PublishOptions::new(QoS::AtLeastOnce));
        let told = session.client.publish_tracked(topic, to_json(&status), options.retained()).await?;
        told.wait_async().await.context("the status")?;
        self.uplink.connected(self.fleet.now(), u16::try_from(WINDOW_MAX)?);
        self.clouds.clear();
        self.proven = false;
        Ok(session)
    }

    /// Until the fleet is sent away; `true` if the connection ended before.
    async fn serve(&mut self, mut session: Session, phase: f64) -> bool {
        loop {
            let stage = *self.stage.borrow_and_update();
            match (stage, self.fleet.every, self.next_at) {
                (Stage::Away, _, _) => {
                    drop(session.client.disconnect().await);
                    while session.heard.recv().await.is_some() {}
                    return false;
                }
                (Stage::Working, Some(every), None) => self.next_at = Some(Instant::now() + every.mul_f64(phase)),
                (Stage::Finishing, _, _) => self.next_at = None,
                _ => {}
            }
            let works = !matches!(stage, Stage::Idle);
            if works {
                self.send(&mut session);
            }
            let wake = self.uplink.wake_at(self.permission()).filter(|_| works).map(|at| self.fleet.instant(at));
            let wake = wake.into_iter().chain(self.next_at).min();
            tokio::select! {
                heard = session.heard.recv() => match heard {
                    Some(heard) => self.hear(&heard),
                    None => return true,
                },
                Some(Ok((step, outcome))) = session.publishing.join_next() => match step {
                    Step::Send(keys) => self.uplink.published(self.fleet.now(), &keys, outcome),
                    Step::Ask(keys) if outcome != Publish::Acknowledged => self.uplink.ask_failed(self.fleet.now(), &keys),
                    Step::Ask(_) => {}
                },
                () = sleep_until(wake.unwrap_or_else(|| Instant::now() + DIAL_PAUSE)), if wake.is_some() => self.make_due(),
                changed = self.stage.changed() => if changed.is_err() { return false },
            }
        }
    }

    fn make_due(&mut self) {
        let (Some(at), Some(every)) = (self.next_at, self.fleet.every) else { return };
        let now = Instant::now();
        let mut at = at;
        while at <= now {
            // From when it was due: a device that comes late to it has kept its caller waiting.
            self.make(Some(at));
            at += every;
        }
        self.next_at = Some(at);
    }

    fn make(&mut self, made: Option<Instant>) {
        let key = CaseKey { epoch: EPOCH, sequence: self.next };
        self.next += 1;
        self.open.insert(key, Open { made, sent: false });
        self.disk.push_back(key);
        count(&self.fleet.counts.made, 1);
    }

    fn permission(&self) -> Permission {
        let online = self.clouds.values().filter(|cloud| cloud.state == CloudState::Online);
        let accept_per_s = online.map(|cloud| cloud.accept).reduce(|a, b| Some(a?.max(b?))).flatten();
        Permission { proven: self.proven, accept_per_s }
    }

    /// Whatever may be sent now, is.
    fn send(&mut self, session: &mut Session) {
        let now = self.fleet.now();
        while !self.disk.is_empty() && self.uplink.ready() < READY_MAX {
            let Some(key) = self.disk.pop_front() else { break };
            let payload_bytes = u32::try_from(self.fleet.payload.len()).unwrap_or(u32::MAX);
            let sort_key = -(key.sequence as f64);
            self.uplink.add(now, Waiting { key, sort_key, stored_at: now, payload_bytes, sent: false, urgent: false });
        }
        if !self.clouds.values().any(|cloud| cloud.state == CloudState::Online) {
            return;
        }
        while let Some(step) = self.uplink.step(now, self.permission()) {
            let message = match &step {
                Step::Ask(keys) => {
                    count(&self.fleet.counts.asked, keys.len());
                    CaseMessage::Ask { ids: keys.iter().map(|key| self.id(*key)).collect() }
                }
                Step::Send(keys) => {
                    for key in keys {
                        count(&self.fleet.counts.sent, 1);
                        let open = self.open.get_mut(key);
                        let again = open.is_some_and(|open| std::mem::replace(&mut open.sent, true));
                        count(&self.fleet.counts.sent_again, usize::from(again));
                    }
                    match keys.as_slice() {
                        [key] => CaseMessage::Case(Box::new(self.case(*key))),
                        keys => CaseMessage::Batch(keys.iter().map(|key| self.case(*key)).collect()),
                    }
                }
            };
            let topic = self.fleet.topics.text(&Topic::UpCase(self.name.clone()));
            let (client, options) = (session.client.clone(), PublishOptions::new(QoS::AtLeastOnce));
            session.publishing.spawn(async move {
                let outcome = match client.publish_tracked(topic, to_cbor(&message), options).await {
                    Ok(notice) => match notice.wait_async().await {
                        Ok(PublishResult::Qos1(ack)) if ack.reason == PubAckReason::NoMatchingSubscribers => {
                            Publish::Nobody
                        }
                        Ok(PublishResult::Qos1(ack)) if ack.reason == PubAckReason::Success => Publish::Acknowledged,
                        Ok(_) => Publish::Refused,
                        Err(_) => Publish::Unclear,
                    },
                    Err(_) => Publish::Unclear,
                };
                (step, outcome)
            });
        }
    }

    fn hear(&mut self, heard: &Heard) {
        let topic = std::str::from_utf8(&heard.topic).ok().and_then(|topic| self.fleet.topics.read(topic));
        match topic {
            Some(Topic::CloudStatus(_)) => {
                let Ok(status) = CloudStatus::read(&heard.payload) else { return };
                if status.state == CloudState::Online && !heard.retain {
                    self.uplink.somebody_listens();
                } else if status.state == CloudState::Offline && !heard.retain {
                    self.uplink.instance_lost(self.fleet.now());
                }
                self.proven |= status.state == CloudState::Online && !heard.retain;
                self.clouds.insert(heard.topic.to_vec(), status);
            }
            Some(Topic::DownVerdict(_)) => {
                if let Ok(message) = from_cbor::<DownMessage>(&heard.payload, DOWN_BYTES_MAX) {
                    self.told(message);
                }
            }
            _ => {}
        }
    }

    fn told(&mut self, message: DownMessage) {
        let now = self.fleet.now();
        self.proven = true;
        self.uplink.somebody_listens();
        match message {
            DownMessage::Received { ids } => {
                self.uplink.received(now, &ids.iter().map(|id| id.key).collect::<Vec<_>>());
            }
            DownMessage::Unknown { ids } => ids.iter().for_each(|id| self.uplink.wanted(now, id.key)),
            DownMessage::Send { id, .. } => self.uplink.wanted(now, id.key),
            DownMessage::Busy { after_s } => {
                count(&self.fleet.counts.busy, 1);
                self.uplink.hold(now + Duration::from_secs(after_s.into()));
            }
            DownMessage::Failed { id, reason } => {
                eprintln!("{id} failed: {reason}");
                self.uplink.fails(now, id.key);
            }
            // It stays open, and counts as lost.
            DownMessage::Dead { id, reason } => {
                eprintln!("{id} is dead: {reason}");
                self.uplink.forget(id.key);
            }
            DownMessage::Verdict(verdict) => self.answered(verdict),
            // It judges nothing.
            DownMessage::Checks(_) => {}
        }
    }

    fn answered(&mut self, verdict: Verdict) {
        let key = verdict.id.key;
        self.uplink.forget(key);
        let Some(open) = self.open.remove(&key) else {
            let differs = self.answered.get(&key).is_some_and(|first| *first != verdict);
            count(&self.fleet.counts.twice, usize::from(differs));
            return;
        };
        self.answered.insert(key, verdict);
        count(&self.fleet.counts.answered, 1);
        if let Some(made) = open.made {
            let took = (made, made.elapsed());
            self.fleet.counts.took.lock().unwrap_or_else(PoisonError::into_inner).push(took);
        }
    }

    fn id(&self, key: CaseKey) -> CaseId {
        CaseId { device: self.name.clone(), key }
    }

    fn case(&self, key: CaseKey) -> Case {
        let mut payload = self.fleet.payload.clone();
        let mark = key.sequence.to_be_bytes();
        let marked = mark.len().min(payload.len());
        payload[..marked].copy_from_slice(&mark[..marked]);
        Case {
            v: 1,
            id: self.id(key),
            reference: None,
            source: "door".to_owned(),
            task: TASK.to_owned(),
            labels_hash: labels_hash(&[LABEL, "no"]),
            model: ModelRef { name: "small".to_owned(), version: "1".to_owned() },
            said: Some(Output::Classes(vec![
                LabelScore { label: "no".to_owned(), score: 0.5 },
                LabelScore { label: LABEL.to_owned(), score: 0.4 },
            ])),
            doubt: Doubt::NONE,
            view: None,
            decision: CaseDecision {
                reason: Reason::LowScore,
                check: false,
                threshold: 0.8,
                mode: ThresholdMode::Fixed,
            },
            settings_version: 0,
            captured: Captured { powered_ms: 1, boot: "b".to_owned(), wall_ms: None, synced: false },
            form: PayloadForm::Whole,
            offer: None,
            content_type: "image/png".to_owned(),
            payload_sha256: Digest::of(&payload),
            payload: Some(payload.into()),
            metadata: BTreeMap::new(),
        }
    }
}
