//! Keeps one MQTT connection to the broker: subscribes, acknowledges when told to, publishes replies and the
//! instance's own status. It reads no message and decides nothing about cases.
//!
//! ```text
//! dial ─► CONNACK ─► SUBACK ─► status online ─► receive and send ─┬─► broken ─► wait 1…40 s ─► dial
//!                                                                └─► told to stop ─► status offline ─► end
//! ```
//! Each connection has its own client and event loop: clean start, session expiry 0. What was not
//! acknowledged on one connection is acknowledged on none, and its device sends it again.

mod args;
mod endpoint;
mod hearing;
mod kept;
mod sending;
mod session;
mod stale;
mod unsent;

pub use args::BrokerArgs;
pub use endpoint::{Credentials, CredentialsError, Endpoint, InvalidEndpoint};
pub use hearing::{Hearing, HearingError, Listener};

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use hedge_core::clock::doubled;
use hedge_proto::{CloudState, CloudStatus, MESSAGE_BYTES_MAX, Name, Topic, Topics, WIRE_VERSION, to_json};
use rumqttc::mqttbytes::v5::LastWill;
use rumqttc::{AckMode, MqttOptions, QoS, Transport};
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::time::Instant;

use crate::intake::{Shut, Taking};
use crate::message::{Incoming, Settled};
use crate::reply::Reply;
use crate::traces::Traces;

/// How many unacknowledged messages the broker may have under way to us. In the worst case each is as long
/// as a message may be; pictures of cameras make it some MiB.
pub const RECEIVE_MAX: u16 = 64;

/// What a packet has besides a message's payload: topic and properties.
const PACKET_EXTRA_BYTES: usize = 64 * 1024;

/// The largest packet we let the broker send, told to it at connect so that it drops what is larger.
#[expect(clippy::cast_possible_truncation, reason = "about 16 MiB")]
pub const PACKET_BYTES_MAX: u32 = (MESSAGE_BYTES_MAX + PACKET_EXTRA_BYTES) as u32;

/// The largest payload devices are told to send: a whole message less the case's header.
const PAYLOAD_BYTES_MAX: u64 = (MESSAGE_BYTES_MAX - PACKET_EXTRA_BYTES) as u64;

/// How many replies may wait for the connection. Devices ask again for what is dropped beyond.
pub const REPLIES_MAX: usize = 4096;

/// The first and the longest wait between two dials. A repaired link must be noticed within this time.
const DIAL_WAIT_MIN: Duration = Duration::from_secs(1);
const DIAL_WAIT_MAX: Duration = Duration::from_secs(40);

/// A connection that lasted this long resets the wait.
const STABLE: Duration = Duration::from_secs(60);

const KEEP_ALIVE_S: u16 = 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);

/// How many cases a second a device may send while some tasks have nobody who answers.
const SLOWLY_PER_S: f32 = 1.0;

/// How long devices are told to wait while the records cannot be written.
const UNHEALTHY_RETRY_S: u32 = 60;

/// How the broker is reached and as whom: every file is read before anything is dialled.
#[derive(Clone)]
pub struct Way {
    pub endpoint: Endpoint,
    transport: Transport,
    login: Option<(String, Vec<u8>)>,
}

impl Way {
    pub fn new(endpoint: Endpoint, credentials: &Credentials) -> Result<Self, CredentialsError> {
        Ok(Self { transport: credentials.transport(&endpoint)?, login: credentials.login()?, endpoint })
    }

    /// With a name and password that stand in no file.
    #[must_use]
    pub fn with_login(self, login: (String, Vec<u8>)) -> Self {
        Self { login: Some(login), ..self }
    }

    /// A connection of its own: nothing of it outlives it.
    pub(crate) fn options(&self, client_id: String) -> MqttOptions {
        let mut options = MqttOptions::new(client_id, (self.endpoint.host.as_str(), self.endpoint.port));
        options
            .set_keep_alive(KEEP_ALIVE_S)
            .set_connect_timeout(CONNECT_TIMEOUT)
            .set_clean_start(true)
            .set_session_expiry_interval(Some(0));
        options.set_transport(self.transport.clone());
        options.set_socket_connector(session::connect);
        if let Some((user, password)) = &self.login {
            options.set_credentials(user.clone(), password.clone());
        }
        options
    }
}

/// Everything needed to dial; made before anything is dialled.
pub struct Dial {
    pub way: Way,
    pub instance: Name,
    pub topics: Topics,
    /// One instance among several takes each case; brokers without shared subscriptions need `false`.
    pub shared: bool,
    /// How often the status is published again, so that devices see a live one.
    pub status_every: Duration,
    pub traces: Traces,
}

impl Dial {
    fn options(&self) -> MqttOptions {
        let mut options = self.way.options(format!("hedge-cloud-{}-{:08x}", self.instance, random()));
        options
            .set_receive_maximum(Some(RECEIVE_MAX))
            .set_max_packet_size(Some(PACKET_BYTES_MAX))
            .set_ack_mode(AckMode::Manual)
            // A flood is turned away at the pace it comes; one write for each acknowledgement would be slower.
            .set_max_request_batch(RECEIVE_MAX.into())
            .set_last_will(LastWill::new(
                self.status_topic(),
                self.status(CloudState::Offline, Taking::All),
                QoS::AtLeastOnce,
                true,
                None,
            ));
        options
    }

    fn status_topic(&self) -> String {
        self.topics.text(&Topic::CloudStatus(self.instance.clone()))
    }

    fn status(&self, state: CloudState, taking: Taking) -> Vec<u8> {
        let online = state == CloudState::Online;
        let accept = match taking {
            Taking::All => None,
            Taking::Slowly => Some(SLOWLY_PER_S),
            Taking::Nothing | Taking::Unhealthy => Some(0.0),
        };
        to_json(&CloudStatus {
            state,
            // What is older is read for good.
            wire: if online { (1..=WIRE_VERSION).collect() } else { Vec::new() },
            accept: accept.filter(|_| online),
            retry_after_s: (online && taking == Taking::Unhealthy).then_some(UNHEALTHY_RETRY_S),
            payload_bytes_max: online.then_some(PAYLOAD_BYTES_MAX),
        })
    }
}

/// A broker's reason in words: `NotAuthorized` is "not authorized".
pub(crate) fn in_words(reason: &impl fmt::Debug) -> String {
    let mut words = String::new();
    for letter in format!("{reason:?}").chars().take_while(|letter| *letter != '(') {
        if letter.is_ascii_uppercase() && !words.is_empty() {
            words.push(' ');
        }
        words.push(letter.to_ascii_lowercase());
    }
    words
}

/// Whether the broker is reached, for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LinkNow {
    Connecting,
    /// Also the beginning of what was heard over this connection.
    Connected {
        since_ms: u64,
    },
    Broken(String),
}

/// The link's ends inside the program.
pub struct Ends {
    pub messages: mpsc::Sender<Incoming>,
    pub settled: mpsc::Receiver<Settled>,
    pub replies: mpsc::Receiver<Reply>,
    pub taking: watch::Receiver<Taking>,
    /// Whose messages are turned away.
    pub shut: Shut,
    /// KiB that messages may take until they are on record.
    pub memory: Arc<Semaphore>,
    pub now: watch::Sender<LinkNow>,
}

/// What messages may take of the memory between the broker and the records.
#[must_use]
pub fn memory() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(session::MEMORY_KIB_MAX as usize))
}

/// Connects, and connects again, until every sender of replies has gone; then says goodbye.
pub async fn run(dial: Dial, mut ends: Ends) {
    let mut wait = DIAL_WAIT_MIN;
    let (mut unsent, mut stale) = (unsent::Unsent::new(), stale::Stale::new());
    let mut generation = 0;
    loop {
        generation += 1;
        let began = Instant::now();
        let ended = session::run(&dial, generation, &mut ends, &mut unsent, &mut stale).await;
        let Err(reason) = ended else { return };
        if began.elapsed() >= STABLE {
            wait = DIAL_WAIT_MIN;
        }
        let pause = jittered(wait);
        wait = doubled(wait, 1, DIAL_WAIT_MAX);
        tracing::warn!(broker = %dial.way.endpoint, retry_ms = pause.as_millis(), "no connection: {reason}");
        ends.now.send_replace(LinkNow::Broken(reason));
        if session::idle(&mut ends, &mut unsent, pause).await {
            return;
        }
    }
}

/// Between half of `wait` and all of it, so that instances do not dial in step.
fn jittered(wait: Duration) -> Duration {
    wait.mul_f64(0.5 + f64::from(random()) / f64::from(u32::MAX) / 2.0)
}

/// Chance for names and waits; 0 where the system has none, which costs only the jitter.
fn random() -> u32 {
    getrandom::u32().unwrap_or(0)
}
