//! Whatever a broker or a cloud does to a device: it stays up, small and patient, and delivers once the other side behaves.
//!
//! Brokers: each row of the table is one connection. The rows are dealt out to a few devices, so that the growing waits
//! between their dials pass beside each other. Clouds: each row is one message to one device over a good broker, which
//! waits for the acknowledgement before the next.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{DeviceId, Outcome};
use hedge_tests::fashion::Fashion;
use hedge_tests::peer::{At, Behaviour, Peer, connack, disconnect, packet, puback, publish, suback};
use hedge_tests::{Agent, AgentConfig, skip, wait};
use serde_json::json;

/// Rows are dealt out to so many devices.
const DEVICES: usize = 8;

/// The rows of one device, the waits between its dials, and the longest ordinary one (40 s) before the good broker.
const WORKED_THROUGH: Duration = Duration::from_secs(200);

/// What a hostile peer may add to a device's memory. A released agent has below 40 MiB, and 60 is what it may have; the
/// one that is tested here is not optimised and begins higher.
const RSS_GROWTH_MAX: u64 = 20 << 20;

fn says(name: impl Into<String>, at: At, bytes: Vec<u8>) -> Behaviour {
    Behaviour::says(name, at, move |_| bytes.clone())
}

/// The reason codes of MQTT 5.
const CONNACK_CODES: [u8; 21] = [
    0x80, 0x81, 0x82, 0x83, 0x84, 0x85, 0x86, 0x87, 0x88, 0x89, 0x8A, 0x8C, 0x90, 0x95, 0x97, 0x99, 0x9A, 0x9B, 0x9C,
    0x9D, 0x9F,
];
const SUBACK_CODES: [u8; 9] = [0x80, 0x83, 0x87, 0x8F, 0x91, 0x97, 0x9E, 0xA1, 0xA2];
const PUBACK_CODES: [u8; 7] = [0x80, 0x83, 0x87, 0x90, 0x91, 0x97, 0x99];
// A session that was taken over makes a device wait for minutes, and has a test of its own.
const DISCONNECT_CODES: [u8; 15] =
    [0x00, 0x80, 0x81, 0x82, 0x87, 0x89, 0x8B, 0x8D, 0x93, 0x95, 0x97, 0x98, 0x9C, 0xA0, 0xFF];

fn brokers() -> Vec<Behaviour> {
    let mut rows = Vec::new();
    rows.extend(CONNACK_CODES.map(|code| says(format!("CONNACK {code:#x}"), At::Connect, connack(code, &[]))));
    rows.extend(
        SUBACK_CODES.map(|code| {
            Behaviour::says(format!("SUBACK {code:#x}"), At::Subscribe, move |pkid| suback(pkid, &[1, code]))
        }),
    );
    rows.extend(
        PUBACK_CODES
            .map(|code| Behaviour::says(format!("PUBACK {code:#x}"), At::Status, move |pkid| puback(pkid, code))),
    );
    rows.extend(
        DISCONNECT_CODES.map(|code| says(format!("DISCONNECT {code:#x}"), At::Ready, disconnect(code)).then_closes()),
    );
    for (name, bytes) in [
        ("a CONNACK of MQTT 3.1.1", b"\x20\x02\x00\x01".to_vec()),
        ("a web server", b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()),
        ("a TLS alert", b"\x15\x03\x01\x00\x02\x02\x46".to_vec()),
        ("an SSH server", b"SSH-2.0-OpenSSH_9.2\r\n".to_vec()),
        ("zeros", vec![0; 1000]),
        ("half a CONNACK", b"\x20\x06\x00".to_vec()),
        ("a length that never ends", b"\x20\xff\xff\xff\xff\xff".to_vec()),
        ("a message before CONNACK", publish("hedge/v1/cloud/c/status", b"{}", 1, 1)),
        ("a SUBACK before CONNACK", suback(1, &[1, 1])),
        ("two CONNACKs", [connack(0, &[]), connack(0, &[])].concat()),
        ("no retained messages", connack(0, &[0x25, 0])),
        ("QoS 0 only", connack(0, &[0x24, 0])),
        ("no wildcards", connack(0, &[0x28, 0])),
        ("a maximum packet of 20 bytes", connack(0, &[0x27, 0, 0, 0, 20])),
        ("a maximum packet of 0 bytes", connack(0, &[0x27, 0, 0, 0, 0])),
        ("a receive maximum of 0", connack(0, &[0x21, 0, 0])),
        ("an unknown property", connack(0, &[0x7e, 1])),
        ("another client id", connack(0, &[0x12, 0, 1, b'x'])),
        ("an unknown reason", connack(0xf7, &[])),
        ("a reason in words", connack(0x8a, &[0x1f, 0, 7, b'g', b'o', b' ', b'a', b'w', b'a', b'y'])),
        ("a keep-alive of one second", connack(0, &[0x13, 0, 1])),
    ] {
        rows.push(says(name, At::Connect, bytes));
    }
    rows.push(says("closes at once", At::Connect, Vec::new()).then_closes());
    rows.push(says("DISCONNECT in place of CONNACK", At::Connect, disconnect(0x97)).then_closes());
    rows.push(Behaviour::says("QoS 0 granted", At::Subscribe, |pkid| suback(pkid, &[0, 0])));
    rows.push(Behaviour::says("one code for two filters", At::Subscribe, |pkid| suback(pkid, &[1])));
    rows.push(Behaviour::says("three codes for two filters", At::Subscribe, |pkid| suback(pkid, &[1, 1, 1])));
    rows.push(Behaviour::says("the SUBACK of another packet", At::Subscribe, |pkid| suback(pkid + 7, &[1, 1])));
    rows.push(Behaviour::says("SUBACK and DISCONNECT at once", At::Subscribe, |pkid| {
        [suback(pkid, &[1, 1]), disconnect(0x97)].concat()
    }));
    rows.push(says("closes in place of SUBACK", At::Subscribe, Vec::new()).then_closes());
    rows.push(Behaviour::says("the PUBACK of another packet", At::Status, |pkid| puback(pkid + 7, 0)));
    rows.push(Behaviour::says("PUBREC for QoS 1", At::Status, |pkid| packet(0x50, &pkid.to_be_bytes())));
    rows.push(Behaviour::says("PUBACK twice", At::Status, |pkid| [puback(pkid, 0), puback(pkid, 0)].concat()));
    for (name, bytes) in [
        ("PINGREQ from a broker", vec![0xc0, 0]),
        ("a message without a packet id", publish("hedge/v1/cloud/c/status", b"{}", 1, 0)),
        ("a message of QoS 3", packet(0x36, b"\x00\x01a\x00\x01\x00")),
        ("a topic alias nobody set", packet(0x30, b"\x00\x00\x03\x23\x00\x05")),
        ("a topic that is no text", packet(0x30, b"\x00\x02\xff\xfe\x00")),
        ("a message larger than allowed", publish("hedge/v1/cloud/c/status", &vec![b' '; 2 << 20], 0, 0)),
        ("60,000 messages at once", publish("hedge/v1/cloud/c/status", b"{}", 0, 0).repeat(60_000)),
        ("3,000 large messages at once", publish("hedge/v1/cloud/c/status", &[b' '; 60_000], 0, 0).repeat(3_000)),
        ("a SUBSCRIBE from a broker", packet(0x82, b"\x00\x01\x00\x00\x01a\x00")),
        ("an AUTH from a broker", packet(0xf0, &[0x18, 0])),
        ("a stray SUBACK", suback(99, &[1])),
        ("a stray PUBACK", puback(99, 0)),
    ] {
        rows.push(says(name, At::Ready, bytes));
    }
    rows
}

/// What a cloud says: topic and message. None of it is about a case of this device that is on its way.
fn clouds(device: &str) -> Vec<(String, Vec<u8>)> {
    let cbor = |value: serde_json::Value| {
        let mut bytes = Vec::new();
        ciborium::into_writer(&value, &mut bytes).expect("CBOR");
        bytes
    };
    let id = format!("{device}.00000000000000aa.1");
    let verdict = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut verdict = json!({
            "v": 1, "id": id, "revision": 1, "authority": "model", "task": "fashion",
            "result": {"classify": {"label": "Coat", "scores": []}}, "model": {"name": "m", "version": "1"},
        });
        change(&mut verdict);
        cbor(json!({ "verdict": verdict }))
    };
    let set = |field: &'static str, value: serde_json::Value| verdict(&move |verdict| verdict[field] = value.clone());
    let scores = |count: usize, score: f64| {
        let one = json!({"label": "a", "score": score});
        json!({"classify": {"label": "a", "scores": vec![one; count]}})
    };
    let found = |count: usize, score: f64, left: f64| {
        let place = json!({"left": left, "top": 0.0, "width": 0.5, "height": 0.5});
        json!({"detect": {"found": vec![json!({"label": "a", "score": score, "place": place}); count]}})
    };
    let text = |bytes: usize| "x".repeat(bytes);
    let ids = |count: usize| (0..count).map(|at| format!("{device}.00000000000000aa.{at}")).collect::<Vec<_>>();
    let down = [
        verdict(&|_| {}),
        set("revision", json!(0)),
        set("revision", json!(u32::MAX)),
        set("revision", json!(-1)),
        set("v", json!(0)),
        set("v", json!(2)),
        set("v", json!("one")),
        set("id", json!("other.00000000000000aa.1")),
        set("id", json!("")),
        set("authority", json!("god")),
        set("task", json!(text(10_000))),
        set("result", scores(6, 0.1)),
        set("result", scores(1_500, 0.1)),
        set("result", scores(1, 7.0)),
        set("result", scores(1, -1.0)),
        set("result", json!({"classify": {"label": "", "scores": []}})),
        set("result", json!({"classify": {"label": text(5_000), "scores": []}})),
        set("result", found(101, 0.5, 0.5)),
        set("result", found(1_000, 0.5, 0.5)),
        set("result", found(1, 7.0, 0.5)),
        set("result", found(1, 0.5, 1e39)),
        set("result", json!({"detect": {"boxes": [], "labels": ["a"], "scores": []}})),
        set("result", json!({"dream": {}})),
        set("model", json!({"name": text(60_000), "version": "1"})),
        set("extra", json!(text(60_000))),
        set("extra", json!([[[[[[[[[[[[[[[[[[1]]]]]]]]]]]]]]]]]])),
        cbor(json!({"received": {"ids": ids(128)}})),
        cbor(json!({"received": {"ids": ids(700)}})),
        cbor(json!({"received": {"ids": []}})),
        cbor(json!({"received": {"ids": ["x"]}})),
        cbor(json!({"unknown": {"ids": ids(128)}})),
        cbor(json!({"unknown": {"ids": ids(700)}})),
        cbor(json!({"busy": {"after_s": 0}})),
        cbor(json!({"busy": {"after_s": -1}})),
        cbor(json!({"failed": {"id": id, "reason": text(60_000)}})),
        cbor(json!({"failed": {"id": id, "reason": "\u{1b}[2J"}})),
        cbor(json!({"dead": {"id": id, "reason": ""}})),
        cbor(json!({"dead": {"id": "other.00000000000000aa.1", "reason": "no"}})),
        cbor(json!({"send": {"id": id, "form": "whole"}})),
        cbor(json!({"send": {"id": id, "form": "hologram"}})),
        cbor(json!({"explain": {"id": id}})),
        cbor(json!({"verdict": {}, "busy": {"after_s": 9}})),
        cbor(json!([1, 2, 3])),
        Vec::new(),
        vec![0xff],
        vec![0x9f; 60_000],
        vec![0x81; 60_000],
        b"\x9b\x7f\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        b"\xa1\x67verdict\xa1\x61v\x1b\xff\xff\xff\xff\xff\xff\xff\xff".to_vec(),
        vec![0; 100_000],
    ];
    let status = [
        json!({"state": "online", "wire": []}),
        json!({"state": "online", "wire": [99]}),
        json!({"state": "online", "wire": vec![1; 1_000]}),
        json!({"state": "online", "accept": -1.0}),
        json!({"state": "online", "accept": 1e30}),
        json!({"state": "gone"}),
        json!([]),
        json!({"state": "offline", "more": text(10_000)}),
    ];
    let desired = [
        json!({}),
        json!({"version": 0}),
        json!({"version": 1, "settings": {"no": 1}}),
        json!([]),
        json!(text(70_000)),
    ];
    let command =
        [json!({}), json!({"command": "dance"}), json!({"command": "ping", "id": text(1_000)}), json!(text(70_000))];
    let at = |what: &str| format!("hedge/v1/{device}/down/{what}");
    let mut rows: Vec<_> = down.into_iter().map(|message| (at("verdict"), message)).collect();
    rows.extend(status.map(|status| ("hedge/v1/cloud/hostile/status".to_owned(), status.to_string().into_bytes())));
    rows.push(("hedge/v1/cloud/hostile/status".to_owned(), Vec::new()));
    rows.extend(desired.map(|document| (at("desired"), document.to_string().into_bytes())));
    rows.extend(command.map(|message| (at("command"), message.to_string().into_bytes())));
    rows.push((at("dance"), b"?".to_vec()));
    rows.push(("hedge/v1/other/down/verdict".to_owned(), b"?".to_vec()));
    rows.push(("$SYS/broker".to_owned(), b"?".to_vec()));
    rows
}

/// A device with one case that waits for whoever behaves.
struct Waiting {
    agent: Agent,
    case: hedge_proto::CaseId,
    peer: Peer,
    /// Its memory with the case stored.
    rss_bytes: u64,
}

impl Waiting {
    fn start(dir: &std::path::Path, name: &str, fashion: &Fashion, peer: Peer) -> Result<Self> {
        let config = AgentConfig::new(dir, name).model_keeping("fashion-small", 1.0).http_source("pictures");
        let agent = config.corrections_file().broker(&format!("mqtt://{}", peer.address())).start()?;
        for index in 0..50 {
            let answer = agent.http.post("pictures", "", "image/png", &fashion.png(index)?)?;
            if answer.decision.outcome == Outcome::Defer {
                let rss_bytes = agent.http.status()?.board.rss_bytes.context("no memory is told")?;
                return Ok(Self { agent, case: answer.id, peer, rss_bytes });
            }
        }
        anyhow::bail!("none of 50 pictures was deferred")
    }

    /// Up and small, and whether its case is answered.
    fn look(&mut self) -> Result<bool> {
        self.agent.program().check_alive()?;
        let status = self.agent.http.status().with_context(|| self.agent.log_end())?;
        let grown = status.board.rss_bytes.context("no memory is told")?.saturating_sub(self.rss_bytes);
        ensure!(grown <= RSS_GROWTH_MAX, "{} has {} MiB more", self.agent.device(), grown >> 20);
        Ok(self.agent.corrections()?.iter().any(|correction| correction.id == self.case))
    }
}

#[test]
fn whatever_a_broker_does_the_device_stays_up_and_delivers_to_one_that_behaves() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let (dir, fashion) = (tempfile::tempdir()?, Fashion::load()?);
    let rows = brokers();
    assert!(rows.len() >= 60, "{} rows", rows.len());
    let mut hands: Vec<Vec<Behaviour>> = (0..DEVICES).map(|_| Vec::new()).collect();
    rows.into_iter().enumerate().for_each(|(at, row)| hands[at % DEVICES].push(row));
    // The last, for they take half a minute each, and the waits between dials grow with the trouble.
    for (at, hand) in [At::Connect, At::Subscribe, At::Status].into_iter().zip(&mut hands) {
        hand.push(Behaviour::silent(at));
    }
    let mut devices = Vec::new();
    for (at, hand) in hands.into_iter().enumerate() {
        let (name, count) = (format!("device-{at}"), hand.len());
        let peer = Peer::start(&name, hand, Vec::new())?;
        devices.push((Waiting::start(dir.path(), &name, &fashion, peer)?, count));
    }
    let start = Instant::now();
    wait::until_true("every device has delivered", WORKED_THROUGH, || {
        let mut delivered = true;
        for (device, _) in &mut devices {
            delivered &= device.look()?;
        }
        Ok(delivered)
    })
    .with_context(|| {
        let state = |(device, rows): &(Waiting, usize)| {
            let reason = device.agent.http.status().map(|status| status.link_reason);
            format!("{}: {} dials for {rows} rows, {reason:?}", device.agent.device(), device.peer.dials())
        };
        devices.iter().map(state).collect::<Vec<_>>().join("\n")
    })?;
    eprintln!("worked through after {:.1?}", start.elapsed());
    for (device, rows) in &mut devices {
        // One for each row, and the one that behaves.
        ensure!(device.peer.dials() == *rows + 1, "{} dials for {rows} rows", device.peer.dials());
        device.agent.stop()?;
    }
    Ok(())
}

#[test]
fn whatever_a_cloud_says_the_device_acknowledges_it_and_delivers_to_one_that_behaves() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let (dir, fashion, device) = (tempfile::tempdir()?, Fashion::load()?, "device-1");
    let rows = clouds(device);
    let count = rows.len();
    assert!(count >= 60, "{count} rows");
    assert!(DeviceId::new(device).is_ok());
    let peer = Peer::start(device, Vec::new(), rows)?;
    let mut waiting = Waiting::start(dir.path(), device, &fashion, peer)?;
    wait::until_true("the device has delivered", WORKED_THROUGH, || waiting.look()).with_context(|| {
        format!("{} of {count} acknowledged;\n{}", waiting.peer.acknowledged(), waiting.agent.log_end())
    })?;
    ensure!(waiting.peer.acknowledged() >= count, "{} of {count} acknowledged", waiting.peer.acknowledged());
    ensure!(waiting.peer.dials() == 1, "{} dials", waiting.peer.dials());
    waiting.agent.stop()
}

/// What is said of a broker that always does this.
type Refusal = (&'static str, fn() -> Behaviour);

fn refusals() -> Vec<Refusal> {
    vec![
        ("does not grant the device's subscriptions", || {
            Behaviour::says("", At::Subscribe, |pkid| suback(pkid, &[0x87, 0x87]))
        }),
        ("keeps no retained messages", || says("", At::Connect, connack(0, &[0x25, 0]))),
        ("takes QoS 0 only", || says("", At::Connect, connack(0, &[0x24, 0]))),
        ("is busy", || says("", At::Connect, connack(0x89, &[]))),
        ("speaks MQTT 3.1.1 only", || says("", At::Connect, b"\x20\x02\x00\x01".to_vec()).then_closes()),
        ("HTTP server", || says("", At::Connect, b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec()).then_closes()),
        ("port speaks TLS", || says("", At::Connect, b"\x15\x03\x01\x00\x02\x02\x46".to_vec()).then_closes()),
        ("before it says a word", || says("", At::Connect, Vec::new()).then_closes()),
        ("does not take the device's status", || Behaviour::says("", At::Status, |pkid| puback(pkid, 0x87))),
        // Both in one packet: the end of a connection must not be told before its beginning.
        ("a quota of the broker is used up", || {
            Behaviour::says("", At::Subscribe, |pkid| [suback(pkid, &[1, 1]), disconnect(0x97)].concat())
        }),
        ("larger than the broker takes", || says("", At::Ready, disconnect(0x95)).then_closes()),
    ]
}

#[test]
fn what_a_broker_does_not_grant_is_said_by_the_device_and_by_check() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let mut devices = Vec::new();
    for (at, (expected, row)) in refusals().into_iter().enumerate() {
        let name = format!("device-{at}");
        let peer = Peer::start(&name, (0..1_000).map(|_| row()).collect(), Vec::new())?;
        let config = AgentConfig::new(dir.path(), &name).broker(&format!("mqtt://{}", peer.address()));
        devices.push((config.start()?, config, expected, row().is_at(At::Connect), peer));
    }
    for (agent, config, expected, at_once, _peer) in &mut devices {
        let said = |status: &hedge_proto::Telemetry| {
            status.link == hedge_proto::LinkState::Offline && status.link_reason.contains(*expected)
        };
        agent.wait_for_status(expected, Duration::from_secs(60), said)?;
        // What comes later depends on how `check` goes on: it subscribes to one topic after the other.
        if *at_once {
            let mut check = std::process::Command::new(hedge_tests::places::program("hedge-agent")?);
            let output = check.args(["check", "--config"]).arg(config.file()).output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            // The text is folded for people.
            let text = text.split_whitespace().collect::<Vec<_>>().join(" ");
            ensure!(text.contains(*expected), "check does not say `{expected}`: {text}");
        }
        agent.stop()?;
    }
    Ok(())
}
