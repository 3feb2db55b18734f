//! What devices and clouds say to each other, byte for byte: overheard, committed, said again.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Case, CaseId, CaseMessage, DownMessage, MESSAGE_BYTES_MAX, Topic, Topics, Verdict, WIRE_VERSION};
use hedge_proto::{from_cbor, to_json};
use serde_json::{Value, json};

use crate::program::{Program, Recipe};
use crate::{Agent, AgentConfig, Cloud, CloudSetup, Mosquitto, mosquitto_client, places, wait};

/// A word of a program that is there.
const SOON: Duration = Duration::from_secs(60);

const TAB: char = '\t';

/// One message as it was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Message {
    /// `case`, `verdict`, `status`, …; `cloud` is a cloud's status.
    pub kind: String,
    pub topic: String,
    pub payload: Vec<u8>,
}

impl Message {
    fn read(topic: &str, payload: Vec<u8>) -> Option<Self> {
        let kind = match Topics::new("").ok()?.read(topic)? {
            Topic::UpCase(_) => match from_cbor::<CaseMessage>(&payload, MESSAGE_BYTES_MAX).ok()? {
                CaseMessage::Case(_) => "case",
                CaseMessage::Batch(_) => "batch",
                CaseMessage::Ask { .. } => "ask",
            },
            Topic::DownVerdict(_) => match from_cbor::<DownMessage>(&payload, MESSAGE_BYTES_MAX).ok()? {
                DownMessage::Verdict(_) => "verdict",
                DownMessage::Received { .. } => "received",
                DownMessage::Busy { .. } => "busy",
                DownMessage::Failed { .. } => "failed",
                DownMessage::Dead { .. } => "dead",
                DownMessage::Unknown { .. } => "unknown",
                DownMessage::Send { .. } => "send",
                DownMessage::Checks(_) => "checks",
            },
            Topic::UpStatus(_) => "status",
            Topic::UpAnswer(..) => "answer",
            Topic::UpReported(_) => "reported",
            Topic::UpReply(_) => "reply",
            Topic::UpTelemetry(_) => "telemetry",
            Topic::DownDesired(_) => "desired",
            Topic::DownCommand(_) => "command",
            Topic::CloudStatus(_) => "cloud",
        };
        Some(Self { kind: kind.to_owned(), topic: topic.to_owned(), payload })
    }

    /// Says it again at a broker, retained if its kind is.
    pub fn say(&self, broker: SocketAddr, dir: &Path) -> Result<()> {
        let file = dir.join("said");
        std::fs::write(&file, &self.payload)?;
        let file = file.display().to_string();
        let mut words = vec!["-f", &file];
        if matches!(self.kind.as_str(), "status" | "reported" | "desired" | "cloud") {
            words.push("-r");
        }
        mosquitto_client::publish(broker, &self.topic, &words)
    }

    /// The same about another case: ids are texts of one length.
    pub fn about(&self, before: &CaseId, now: &CaseId) -> Result<Self> {
        let (before, now) = (before.to_string(), now.to_string());
        ensure!(before.len() == now.len(), "{before} and {now} differ in length");
        let (before, now) = (before.as_bytes(), now.as_bytes());
        let mut payload = self.payload.clone();
        let mut found = false;
        for at in 0..=payload.len().saturating_sub(before.len()) {
            if payload[at..].starts_with(before) {
                payload[at..at + now.len()].copy_from_slice(now);
                found = true;
            }
        }
        ensure!(found, "a message of kind {} is not about that case", self.kind);
        Ok(Self { payload, ..self.clone() })
    }
}

/// Hears everything below `hedge/v1`. Ends with the value.
pub struct Eavesdropper {
    _program: Program,
    output: PathBuf,
}

impl Eavesdropper {
    pub fn start(broker: SocketAddr, dir: &Path) -> Result<Self> {
        let (host, port) = (broker.ip().to_string(), broker.port().to_string());
        let format = format!("%t{TAB}%x");
        let words = [
            "-h",
            &host,
            "-p",
            &port,
            "-V",
            "mqttv5",
            "-q",
            "1",
            "-t",
            "hedge/v1/#",
            "-t",
            "hedge/test",
            "-F",
            &format,
        ];
        let program = Recipe::new("eavesdropper", "mosquitto_sub".into(), dir).arguments(words).start()?;
        let heard = Self { _program: program, output: dir.join("eavesdropper.out") };
        wait::until_true("mosquitto_sub hears", SOON, || {
            mosquitto_client::publish(broker, "hedge/test", &["-m", "{}"])?;
            Ok(std::fs::read_to_string(&heard.output)?.contains("hedge/test"))
        })?;
        Ok(heard)
    }

    /// All whole messages so far.
    pub fn messages(&self) -> Result<Vec<Message>> {
        let output = std::fs::read_to_string(&self.output)?;
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let read = |line: &str| {
            let (topic, hex) = line.split_once(TAB)?;
            Message::read(topic, bytes(hex)?)
        };
        Ok(whole.lines().filter_map(read).collect())
    }

    pub fn kinds(&self) -> Result<Vec<String>> {
        Ok(self.messages()?.into_iter().map(|message| message.kind).collect())
    }

    /// What the cloud said of cases.
    pub fn down(&self) -> Result<Vec<DownMessage>> {
        let down = self.messages()?.into_iter().filter(|message| message.topic.ends_with("/down/verdict"));
        Ok(down.filter_map(|message| from_cbor(&message.payload, MESSAGE_BYTES_MAX).ok()).collect())
    }

    pub fn verdicts(&self) -> Result<Vec<Verdict>> {
        let verdict = |told| if let DownMessage::Verdict(verdict) = told { Some(verdict) } else { None };
        Ok(self.down()?.into_iter().filter_map(verdict).collect())
    }

    /// Cases that were sent, alone or together.
    pub fn cases(&self) -> Result<Vec<Case>> {
        let said = self.messages()?.into_iter().filter(|message| message.topic.ends_with("/up/case"));
        let said = said.filter_map(|message| from_cbor::<CaseMessage>(&message.payload, MESSAGE_BYTES_MAX).ok());
        let cases = |message| match message {
            CaseMessage::Case(case) => vec![*case],
            CaseMessage::Batch(cases) => cases,
            CaseMessage::Ask { .. } => Vec::new(),
        };
        Ok(said.flat_map(cases).collect())
    }
}

fn bytes(hex: &str) -> Option<Vec<u8>> {
    let digits = hex.trim().as_bytes();
    let pairs = digits.chunks_exact(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok());
    if digits.len().is_multiple_of(2) { pairs.collect() } else { None }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn file(version: u16) -> PathBuf {
    places::root().join(format!("tests/wire/{version}/messages.json"))
}

/// One message of each kind of a version, as committed.
pub fn committed(version: u16) -> Result<Vec<Message>> {
    let file = file(version);
    let text =
        std::fs::read_to_string(&file).with_context(|| format!("{}; `cargo xtask wire` makes it", file.display()))?;
    let list: Vec<Value> = serde_json::from_str(&text)?;
    let read = |entry: &Value| {
        let text = |name: &str| entry[name].as_str().map(str::to_owned);
        Some(Message { kind: text("kind")?, topic: text("topic")?, payload: bytes(&text("payload")?)? })
    };
    list.iter().map(|entry| read(entry).with_context(|| format!("{}: {entry}", file.display()))).collect()
}

/// Has this version's programs say one message of each kind, and writes them down.
pub fn capture(library: &Path) -> Result<PathBuf> {
    let dir = tempfile::tempdir()?;
    let broker = Mosquitto::start(dir.path())?;
    let heard = Eavesdropper::start(broker.inside(), dir.path())?;
    let config = AgentConfig::new(dir.path(), "device-1").broker(&broker.url()).model_keeping("fashion-small", 1.0);
    let mut agent = config.library(library).http_source("pictures").start()?;
    agent.wait_until_connected()?;
    // Cases that wait together are sent together.
    for index in 0..6 {
        post(&agent, index)?;
    }
    let _cloud = Cloud::start(dir.path(), &CloudSetup::stub(&broker.url(), "fashion", "Coat"))?;
    agent.wait_until_online()?;
    agent.wait_for_status("all are answered", SOON, |status| status.queue.waiting == 0)?;
    post(&agent, 6)?;
    agent.wait_for_status("it is answered, too", SOON, |status| status.samples.verdicts == 7)?;
    // What could cut the link has the device ask whether a cloud is there.
    let desired = json!({"version": 1, "settings": {"broker": {"keep_alive_s": 21}}}).to_string();
    mosquitto_client::publish(broker.inside(), "hedge/v1/device-1/down/desired", &["-r", "-m", &desired])?;
    let command = json!({"id": "captured-1", "command": "ping"}).to_string();
    mosquitto_client::publish(broker.inside(), "hedge/v1/device-1/down/command", &["-m", &command])?;
    let wanted = [
        "status",
        "telemetry",
        "reported",
        "reply",
        "case",
        "batch",
        "ask",
        "verdict",
        "received",
        "unknown",
        "desired",
        "command",
        "cloud",
    ];
    let all = wait::until("one message of each kind", SOON, || {
        let kinds = heard.kinds()?;
        wanted.iter().all(|kind| kinds.iter().any(|heard| heard == kind)).then(|| heard.messages()).transpose()
    });
    let all = all.with_context(|| format!("heard: {:?}", heard.kinds()))?;
    let one_each: Vec<Value> = wanted
        .iter()
        .filter_map(|kind| all.iter().find(|message| message.kind == *kind && !says_goodbye(message)))
        .map(|message| json!({"kind": message.kind, "topic": message.topic, "payload": hex(&message.payload)}))
        .collect();
    ensure!(one_each.len() == wanted.len(), "a kind was not heard");
    agent.stop()?;
    let file = file(WIRE_VERSION);
    std::fs::create_dir_all(file.parent().context("a folder")?)?;
    let mut text = String::from_utf8(to_json(&one_each))?.replace("},{", "},\n{");
    text.push('\n');
    std::fs::write(&file, text)?;
    Ok(file)
}

fn says_goodbye(message: &Message) -> bool {
    let says_so = String::from_utf8_lossy(&message.payload).contains("\"state\":\"offline\"");
    says_so && matches!(message.kind.as_str(), "status" | "cloud")
}

fn post(agent: &Agent, index: usize) -> Result<()> {
    let picture = std::fs::read(places::model("fashion-small").join(format!("golden/test-{}.png", index % 3)))?;
    agent.http.post("pictures", &format!("&ref=sample-{index}"), "image/png", &picture).map(drop)
}
