//! Runs the real program against a real broker, with a device of ours on the other side.
#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    clippy::print_stdout,
    reason = "each test file uses a part of it; tests may panic"
)]

pub mod backend;
pub mod double;

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, Instant};

use hedge_proto::{
    Captured, Case, CaseDecision, CaseId, CaseKey, CaseMessage, CloudState, CloudStatus, DeviceId, Digest, Doubt,
    DownMessage, Epoch, LabelScore, ModelRef, Name, Output, PayloadForm, Reason, ThresholdMode, Topic, Topics,
    from_cbor, from_json, labels_hash, to_cbor,
};
use rumqttc::mqttbytes::v5::Packet;
use rumqttc::{AsyncClient, Event, MqttOptions, PublishOptions, QoS};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::timeout;

/// How long anything may take on a busy machine before a test says what it was waiting for.
pub const PATIENCE: Duration = Duration::from_secs(30);

pub const MOSQUITTO: &str = "/usr/sbin/mosquitto";

/// Addresses handed out by this process.
static NEXT: AtomicU8 = AtomicU8::new(1);

/// A loopback address of this process's own. A port that was free a moment ago may be another's when it is listened at,
/// and above all when it is listened at again after a restart; an address of one's own may not.
pub fn own_addr() -> SocketAddr {
    let [.., high, low] = std::process::id().to_be_bytes();
    let ip = Ipv4Addr::new(127, high.max(1), low, NEXT.fetch_add(1, Ordering::Relaxed));
    SocketAddr::new(ip.into(), 1883)
}

/// A mosquitto of our own on a loopback address.
pub struct Mosquitto {
    child: Child,
    pub addr: SocketAddr,
    _dir: TempDir,
}

impl Mosquitto {
    /// `None`, and a word about it, where mosquitto is not installed.
    pub fn start() -> Option<Self> {
        if !Path::new(MOSQUITTO).exists() {
            eprintln!("skipped: mosquitto is not installed (apt-get install mosquitto)");
            return None;
        }
        Some(Self::start_on(own_addr()))
    }

    pub fn start_on(addr: SocketAddr) -> Self {
        Self::start_with(addr, "max_inflight_messages 200\nmax_queued_messages 100000\n")
    }

    /// With further lines of its configuration.
    pub fn start_with(addr: SocketAddr, more: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let config = dir.path().join("mosquitto.conf");
        let text = format!("listener {} {}\nallow_anonymous true\npersistence false\n{more}", addr.port(), addr.ip());
        std::fs::write(&config, text).unwrap();
        let child = Command::new(MOSQUITTO).arg("-c").arg(&config).stderr(Stdio::null()).spawn().unwrap();
        let mosquitto = Self { child, addr, _dir: dir };
        let until = Instant::now() + PATIENCE;
        while std::net::TcpStream::connect(addr).is_err() {
            assert!(Instant::now() < until, "mosquitto does not listen on {addr}");
            std::thread::park_timeout(Duration::from_millis(10));
        }
        mosquitto
    }
}

impl Drop for Mosquitto {
    fn drop(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }
}

/// Which broker a test runs against.
pub enum Broker {
    Embedded,
    Mosquitto(Mosquitto),
}

impl Broker {
    /// Every broker that this machine has.
    pub fn all() -> Vec<Self> {
        std::iter::once(Self::Embedded).chain(Mosquitto::start().map(Self::Mosquitto)).collect()
    }
}

/// A running hedge-cloud.
pub struct Cloud {
    child: Child,
    pub broker: SocketAddr,
    pub dashboard: SocketAddr,
}

impl Cloud {
    /// Starts it with a model that says `boot` to everything of the task `shoes`.
    pub fn start(broker: &Broker, state_dir: &Path) -> Self {
        Self::start_with(broker, state_dir, &["--answer-with", "shoes=boot"])
    }

    pub fn start_with(broker: &Broker, state_dir: &Path, args: &[&str]) -> Self {
        Self::started(Command::new(env!("CARGO_BIN_EXE_hedge-cloud")), broker, state_dir, args)
    }

    /// Starts it where it may open so many files and no more.
    pub fn start_with_files(files: u32, broker: &Broker, state_dir: &Path) -> Self {
        let mut command = Command::new("sh");
        let limited = format!("ulimit -n {files} && exec \"$0\" \"$@\"");
        command.args(["-c", &limited, env!("CARGO_BIN_EXE_hedge-cloud")]);
        Self::started(command, broker, state_dir, &[])
    }

    fn started(mut command: Command, broker: &Broker, state_dir: &Path, args: &[&str]) -> Self {
        command.args(["serve", "--state-dir"]).arg(state_dir).args(args);
        if !args.contains(&"--listen") {
            command.args(["--listen", "127.0.0.1:0"]);
        }
        match broker {
            Broker::Embedded => command.args(["--embedded-broker", "127.0.0.1:0"]),
            Broker::Mosquitto(mosquitto) => command.args(["--broker", &format!("mqtt://{}", mosquitto.addr)]),
        };
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut address = |name: &str, scheme: &str| -> SocketAddr {
            let mut said = lines.by_ref().map(|line| line.unwrap()).skip_while(|line| line.starts_with("payloads "));
            let line = said.next().unwrap_or_else(|| panic!("no line `{name}`"));
            line.strip_prefix(&format!("{name} {scheme}://")).unwrap_or_else(|| panic!("{line}")).parse().unwrap()
        };
        let broker = match broker {
            Broker::Embedded => address("broker", "mqtt"),
            Broker::Mosquitto(mosquitto) => mosquitto.addr,
        };
        let dashboard = address("dashboard", "http");
        Self { child, broker, dashboard }
    }

    /// kill -9, as a power cut would.
    pub fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Waits until it ends by itself.
    pub async fn ends(mut self) {
        let until = Instant::now() + PATIENCE;
        while self.child.try_wait().unwrap().is_none() {
            assert!(Instant::now() < until, "it does not end");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// SIGTERM; returns the exit code.
    pub fn stop(mut self) -> Option<i32> {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap().code()
    }

    /// Answers a GET with status, headers and body.
    pub async fn get_raw(&self, path: &str) -> (u16, String, Vec<u8>) {
        self.raw(&format!("GET {path}"), &[("Host", &self.dashboard.to_string())], "").await
    }

    /// Asks as the page itself does.
    pub async fn post(&self, path: &str, body: serde_json::Value) -> (u16, serde_json::Value) {
        let (host, origin) = (self.dashboard.to_string(), format!("http://{}", self.dashboard));
        let headers = [("Host", host.as_str()), ("Origin", &origin), ("Hedge-Operate", "yes")];
        let (status, _, body) = self.raw(&format!("POST {path}"), &headers, &body.to_string()).await;
        (status, serde_json::from_slice(&body).unwrap())
    }

    /// Answers any request with status, headers and body.
    pub async fn raw(&self, what: &str, headers: &[(&str, &str)], body: &str) -> (u16, String, Vec<u8>) {
        let mut stream = TcpStream::connect(self.dashboard).await.unwrap();
        let headers: String = headers.iter().map(|(name, value)| format!("{name}: {value}\r\n")).collect();
        let request =
            format!("{what} HTTP/1.1\r\n{headers}Connection: close\r\nContent-Length: {}\r\n\r\n{body}", body.len());
        // One that is refused by its length may be answered before it is read.
        drop(stream.write_all(request.as_bytes()).await);
        let mut answer = Vec::new();
        timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().unwrap();
        let head_ends = answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap();
        let head = String::from_utf8(answer[..head_ends].to_vec()).unwrap();
        let status = head.split(' ').nth(1).unwrap().parse().unwrap();
        (status, head.to_ascii_lowercase(), answer[head_ends + 4..].to_vec())
    }

    pub async fn get(&self, path: &str) -> serde_json::Value {
        let (status, _, body) = self.get_raw(path).await;
        assert_eq!(status, 200, "{path}: {}", String::from_utf8_lossy(&body));
        serde_json::from_slice(&body).unwrap()
    }

    /// Waits until it is subscribed at its broker and has said so. It says where its dashboard is before that.
    pub async fn connected(&self) {
        let until = Instant::now() + PATIENCE;
        while !String::from_utf8(self.get_raw("/metrics").await.2)
            .unwrap()
            .contains("\nhedge_cloud_broker_connected 1\n")
        {
            assert!(Instant::now() < until, "it does not connect");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Waits until a figure has a value.
    #[track_caller]
    pub fn figure(&self, name: &'static str, wanted: u64) -> impl Future<Output = ()> + '_ {
        let said = self.until("/api/figures", move |figures| {
            figures.pointer(&format!("/{name}")).and_then(serde_json::Value::as_u64) == Some(wanted)
        });
        async move { drop(said.await) }
    }

    /// Waits until what stands at this path is so, and returns it.
    #[track_caller]
    pub fn until<'a>(
        &'a self,
        path: &'a str,
        wanted: impl Fn(&serde_json::Value) -> bool + 'a,
    ) -> impl Future<Output = serde_json::Value> + 'a {
        let caller = std::panic::Location::caller();
        async move {
            let until = Instant::now() + PATIENCE;
            loop {
                let found = self.get(path).await;
                if wanted(&found) {
                    return found;
                }
                assert!(Instant::now() < until, "{caller}: not in time, but {path} is {found}");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        // It may have ended already, as some tests want it to.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A device, as far as the cloud can see.
pub struct Device {
    pub name: DeviceId,
    pub client: AsyncClient,
    pub topics: Topics,
    verdicts: mpsc::Receiver<DownMessage>,
    clouds: mpsc::Receiver<CloudStatus>,
}

impl Device {
    pub async fn connect(name: &str, broker: SocketAddr) -> Self {
        let name = DeviceId::new(name).unwrap();
        let topics = Topics::new("").unwrap();
        let mut options = MqttOptions::new(name.as_str(), (broker.ip().to_string(), broker.port()));
        options.set_max_packet_size(Some(32 * 1024 * 1024)).set_keep_alive(60);
        let (client, mut events) = AsyncClient::builder(options).capacity(1000).build();
        let (verdict, verdicts) = mpsc::channel(10_000);
        let (cloud, clouds) = mpsc::channel(1000);
        let (down, statuses) = (topics.text(&Topic::DownVerdict(name.clone())), topics.cloud_filter());
        client.subscribe(down.clone(), QoS::AtLeastOnce).await.unwrap();
        client.subscribe(statuses, QoS::AtLeastOnce).await.unwrap();
        tokio::spawn(async move {
            // Its end is the test's end, or a broker's that the test has stopped.
            while let Ok(event) = events.poll().await {
                let Event::Incoming(Packet::Publish(publish)) = event else { continue };
                if publish.topic == down {
                    // Who no longer listens has seen enough.
                    drop(verdict.send(from_cbor(&publish.payload, 1 << 20).unwrap()).await);
                } else if !publish.payload.is_empty() {
                    // One that was emptied has said before that it goes.
                    drop(cloud.send(from_json(&publish.payload, 1 << 16).unwrap()).await);
                }
            }
        });
        Self { name, client, topics, verdicts, clouds }
    }

    pub async fn cloud_is(&mut self, state: CloudState) -> CloudStatus {
        loop {
            let status = timeout(PATIENCE, self.clouds.recv()).await.expect("a cloud's status").expect("a broker");
            if status.state == state {
                return status;
            }
        }
    }

    /// What clouds say before one says what `last` knows.
    pub async fn clouds_before(&mut self, last: impl Fn(&CloudStatus) -> bool) -> Vec<CloudStatus> {
        let mut said = Vec::new();
        loop {
            let status = timeout(PATIENCE, self.clouds.recv()).await.expect("a cloud's status").expect("a broker");
            if last(&status) {
                return said;
            }
            said.push(status);
        }
    }

    pub async fn publish(&self, topic: &Topic, payload: Vec<u8>, retain: bool) {
        let options = PublishOptions::new(QoS::AtLeastOnce).retain(retain);
        let notice = self.client.publish_tracked(self.topics.text(topic), payload, options).await.unwrap();
        timeout(PATIENCE, notice.wait_async()).await.expect("a PUBACK of the broker").unwrap();
    }

    pub async fn say(&self, message: &CaseMessage) {
        self.publish(&Topic::UpCase(self.name.clone()), to_cbor(message), false).await;
    }

    pub async fn send(&self, case: Case) {
        self.say(&CaseMessage::Case(Box::new(case))).await;
    }

    /// Sends a case and does not wait for the broker.
    pub async fn throw(&self, case: Case) {
        let (topic, message) = (Topic::UpCase(self.name.clone()), CaseMessage::Case(Box::new(case)));
        let options = PublishOptions::new(QoS::AtLeastOnce);
        self.client.publish(self.topics.text(&topic), to_cbor(&message), options).await.unwrap();
    }

    pub async fn ask(&self, ids: Vec<CaseId>) {
        self.say(&CaseMessage::Ask { ids }).await;
    }

    #[track_caller]
    pub fn hears(&mut self) -> impl Future<Output = DownMessage> + '_ {
        let caller = std::panic::Location::caller();
        async move {
            let heard = timeout(PATIENCE, self.verdicts.recv()).await;
            heard.unwrap_or_else(|_| panic!("{caller}: the cloud says nothing")).expect("a broker")
        }
    }

    pub fn id(&self, sequence: u64) -> CaseId {
        CaseId { device: self.name.clone(), key: CaseKey { epoch: Epoch(7), sequence } }
    }

    pub fn case(&self, sequence: u64, payload: &[u8]) -> Case {
        Case {
            v: 1,
            id: self.id(sequence),
            reference: None,
            source: "door".to_owned(),
            task: "shoes".to_owned(),
            labels_hash: labels_hash(&["boot", "sandal"]),
            model: ModelRef { name: "small".to_owned(), version: "1".to_owned() },
            said: Some(Output::Classes(vec![
                LabelScore { label: "sandal".to_owned(), score: 0.5 },
                LabelScore { label: "boot".to_owned(), score: 0.4 },
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
            payload_sha256: Digest::of(payload),
            payload: Some(payload.to_vec().into()),
            metadata: Default::default(),
        }
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn received(id: CaseId) -> DownMessage {
    DownMessage::Received { ids: vec![id] }
}

/// The label of a verdict for `id`.
#[track_caller]
pub fn label(message: DownMessage, id: &CaseId) -> String {
    match message {
        DownMessage::Verdict(verdict) if verdict.id == *id => verdict.said.headline(),
        other => panic!("not a verdict for {id}: {other:?}"),
    }
}
