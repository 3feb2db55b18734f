//! Every command does what it is for, given with `mosquitto_pub` alone, over MQTT 5 and 3.1.1.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use hedge_proto::{CommandOutcome, Reply};
use hedge_tests::mosquitto_client::{Heard, REPLY_WAIT_MAX, publish};
use hedge_tests::{Agent, Listener, Mosquitto, Scene, Tally, places, skip, wait};
use rustix::process::Signal;
use serde_json::{Value, json};

const COMMAND: &str = "hedge/v1/device-1/down/command";
const REPLY: &str = "hedge/v1/device-1/up/reply";

struct Stand {
    scene: Scene,
    listener: Listener,
    agent: Agent,
}

/// Where operators connect.
fn operator(scene: &Scene) -> Result<SocketAddr> {
    scene.mosquitto.as_ref().map(Mosquitto::inside).context("a broker of its own")
}

/// A device with a camera that takes a picture an hour, a folder, and pictures over HTTP.
fn stand() -> Result<Option<Stand>> {
    stand_told("")
}

/// Like [`stand`], with this socket of systemd's.
fn stand_told(notify_socket: &str) -> Result<Option<Stand>> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(None);
    }
    let scene = Scene::stub(&Default::default())?;
    let listener = Listener::start(operator(&scene)?, scene.dir())?;
    let picture = places::model("fashion-small").join("golden/test-0.png");
    let bytes = std::fs::read(&picture)?;
    let frame = scene.dir().join("frame");
    let length = u32::try_from(bytes.len())?.to_be_bytes();
    std::fs::write(&frame, [&length[..], &bytes].concat())?;
    let camera = ["sh".to_owned(), "-c".to_owned(), format!("while cat {}; do sleep 0.2; done", frame.display())];
    let folder = scene.dir().join("inbox");
    std::fs::create_dir_all(&folder)?;
    let mut agent = scene
        .doubter("device-1")
        .variable("NOTIFY_SOCKET", notify_socket)
        .broker(&format!("mqtt://{}", scene.broker()?))
        .command_source("porch", &camera)
        .section("interval_ms = 3_600_000")
        .folder_source("inbox", &folder)
        .start()?;
    agent.wait_until_connected()?;
    // The first picture comes at once; from here on only those that are asked for.
    agent.wait_for_status("the camera's picture is answered", REPLY_WAIT_MAX, |status| status.samples.answered == 1)?;
    Ok(Some(Stand { scene, listener, agent }))
}

impl Stand {
    /// Gives a command with these arguments of `mosquitto_pub` and returns the reply to `id`.
    fn give(&self, id: &str, arguments: &[&str]) -> Result<(Heard, Reply)> {
        publish(operator(&self.scene)?, COMMAND, arguments)?;
        self.listener.wait_for_reply(id)
    }

    fn order(&self, id: &str, command: &str, args: &Value) -> Result<Reply> {
        let text = json!({"id": id, "command": command, "args": args, "by": "ana"}).to_string();
        Ok(self.give(id, &["-m", &text])?.1)
    }

    fn done(&self, id: &str, command: &str, args: &Value) -> Result<Value> {
        let reply = self.order(id, command, args)?;
        ensure!(reply.outcome == CommandOutcome::Done, "{reply:?}");
        Ok(reply.result)
    }
}

#[test]
fn questions_are_answered() -> Result<()> {
    let Some(mut stand) = stand()? else { return Ok(()) };
    stand.agent.wait_until_online()?;
    let none = json!({});
    ensure!(stand.done("1", "ping", &none)?["version"].is_string());
    ensure!(stand.done("2", "status", &none)?["link"] == "online");
    let mut tally = Tally::default();
    let answer = stand.scene.post_a_stored_one(&stand.agent, 0, &mut tally)?;
    let explained = stand.done("3", "explain", &json!({"last": 1}))?;
    ensure!(explained["decisions"][0]["id"] == json!(answer.id), "{explained}");
    ensure!(explained["decisions"][0]["decision"]["because"].is_string(), "{explained}");
    // What has become of its case, not what was true when it was answered.
    let (status, text) = stand.agent.http.get(&format!("/v1/samples/{}?wait_ms=30000", answer.id))?;
    ensure!(status == 200 && text.contains("\"revision\":1"), "{status} {text}");
    let explained = stand.done("8", "explain", &json!({"last": 1}))?;
    ensure!(explained["decisions"][0]["case"] == "answered", "{explained}");
    ensure!(stand.done("4", "queue_stats", &none)?["cases_max"].is_u64());
    ensure!(stand.done("5", "dead_letters", &none)?["cases"] == json!([]));
    ensure!(stand.done("6", "requeue", &none)?["cases"] == json!([]));
    ensure!(stand.done("14", "forget", &json!({"ids": [answer.id]}))?["forgotten"].is_u64());
    ensure!(stand.done("15", "forget", &json!({"all": true}))?["forgotten"].is_u64());
    ensure!(stand.done("16", "queue_stats", &none)?["cases"]["waiting"] == json!(0));
    let both = stand.order("17", "forget", &none)?;
    ensure!(both.outcome == CommandOutcome::Refused && both.reason.context("why")?.contains("`all`"));
    ensure!(stand.done("7", "drain", &none)?["waiting"].is_u64());
    let what_if = |model: &str, threshold: Value| json!({"model": model, "threshold": threshold});
    let foreseen = stand.done("10", "what_if", &what_if("fashion-small", json!({"score_min": 0.0})))?;
    ensure!(foreseen["in_force"]["deferred"].as_f64() > Some(0.5), "{foreseen}");
    ensure!(foreseen["then"]["deferred"] == 0.0 && foreseen["then"]["answers"].as_u64() > Some(0), "{foreseen}");
    for (id, model, threshold, part) in [
        ("11", "fashion", json!({}), "no model named `fashion`"),
        ("12", "fashion-small", json!({"mode": "target"}), "needs a target"),
        ("13", "fashion-small", json!({"classes": {"unicorn": 0.5}}), "classes.unicorn"),
    ] {
        let refused = stand.order(id, "what_if", &what_if(model, threshold))?;
        ensure!(refused.reason.as_ref().is_some_and(|why| why.contains(part)), "{refused:?}");
    }
    let unknown = stand.order("9", "requeue", &json!({"ids": ["nonsense"]}))?;
    ensure!(unknown.outcome == CommandOutcome::Failed && unknown.reason.context("why")?.contains("nonsense"));
    stand.agent.stop()
}

#[test]
fn a_snapshot_is_a_picture_of_now() -> Result<()> {
    let Some(mut stand) = stand()? else { return Ok(()) };
    let (first, second) = (
        stand.done("1", "snapshot", &json!({"source": "porch"}))?,
        stand.done("2", "snapshot", &json!({"source": "porch"}))?,
    );
    ensure!(first["source"] == "porch" && first["id"] != second["id"], "{first} {second}");
    for (id, source, part) in
        [("3", "pictures", "kind `command`"), ("4", "inbox", "kind `command`"), ("5", "nowhere", "no source named")]
    {
        let reply = stand.order(id, "snapshot", &json!({"source": source}))?;
        let reason = reply.reason.context("a reason")?;
        ensure!(reply.outcome == CommandOutcome::Failed && reason.contains(part), "{source}: {reason}");
    }
    stand.agent.stop()
}

#[test]
fn a_restart_is_orderly_and_needs_nobody_outside() -> Result<()> {
    // In systemd's place: what the agent tells it.
    let notices = tempfile::tempdir()?;
    let systemd = Systemd::listen(UnixDatagram::bind(notices.path().join("notify"))?);
    let Some(mut stand) = stand_told(&notices.path().join("notify").display().to_string())? else { return Ok(()) };
    stand.agent.wait_until_online()?;
    let mut tally = Tally::default();
    stand.scene.post_a_stored_one(&stand.agent, 0, &mut tally)?;
    let before = (stand.agent.program().id(), stand.agent.http.status()?.samples.answered);
    ensure!(before.1 > 0, "nothing was answered");
    stand.done("r", "restart", &json!({}))?;
    // The same process, with nothing answered yet.
    stand.agent.program().check_alive()?;
    ensure!(stand.agent.program().id() == before.0);
    stand.agent.wait_for_status("it has begun anew", REPLY_WAIT_MAX, |status| status.samples.answered < before.1)?;
    stand.agent.wait_until_online()?;
    // It was never told of a stop, which would end in a kill, and the new program is ready as the first was.
    wait::until_true("systemd hears that it is ready again", REPLY_WAIT_MAX, || {
        Ok(systemd.told().iter().filter(|notice| notice.contains("READY=1")).count() == 2)
    })?;
    let told = systemd.told();
    ensure!(!told.iter().any(|notice| notice.contains("STOPPING=1")), "{told:?}");
    stand.agent.program().signal(Signal::TERM)?;
    let ended = stand.agent.program().wait_for_end(hedge_tests::agent::STOP_WAIT_MAX)?;
    ensure!(ended.success(), "{ended}");
    Ok(())
}

/// What it was told. It listens all the time, because whoever tells waits once ten notices are not taken.
struct Systemd(Arc<Mutex<Vec<String>>>);

impl Systemd {
    fn listen(socket: UnixDatagram) -> Self {
        let told = Arc::new(Mutex::new(Vec::new()));
        let notes = told.clone();
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            while let Ok(length) = socket.recv(&mut buffer) {
                let notice = String::from_utf8_lossy(&buffer[..length]).into_owned();
                notes.lock().unwrap_or_else(PoisonError::into_inner).push(notice);
            }
        });
        Self(told)
    }

    fn told(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

#[test]
fn replies_go_where_the_sender_may_hear_them() -> Result<()> {
    let Some(mut stand) = stand()? else { return Ok(()) };
    let ping = r#"{"command": "ping"}"#;
    let drain = r#"{"command": "drain"}"#;
    let response = |topic: &'static str, data: &'static str, text: &'static str| {
        [
            "-V",
            "mqttv5",
            "-D",
            "publish",
            "response-topic",
            topic,
            "-D",
            "publish",
            "correlation-data",
            data,
            "-m",
            text,
        ]
    };
    // MQTT 5: correlation data is the id, and comes back on the response topic.
    let own = "hedge/v1/device-1/up/reply/ops-7";
    let (heard, _) = stand.give("c1", &response(own, "c1", drain))?;
    ensure!((heard.topic.as_str(), heard.correlation.as_str()) == (own, "c1"), "{heard:?}");
    // Elsewhere the device may not write, or others read what is said there.
    for (id, topic) in
        [("c2", "hedge/v1/device-2/up/reply"), ("c3", "hedge/v1/device-1/up/status"), ("c4", "elsewhere")]
    {
        let (heard, _) = stand.give(id, &response(topic, id, drain))?;
        ensure!((heard.topic.as_str(), heard.correlation.as_str()) == (REPLY, id), "{heard:?}");
    }
    // MQTT 3.1.1 has plain topics only.
    let (heard, reply) = stand.give("old", &["-V", "mqttv311", "-m", r#"{"id": "old", "command": "drain"}"#])?;
    ensure!(heard.topic == REPLY && reply.outcome == CommandOutcome::Done, "{heard:?}");
    publish(operator(&stand.scene)?, COMMAND, &["-V", "mqttv311", "-m", ping])?;
    // Who gave it comes from the message, or else from the user property.
    stand.give(
        "by",
        &["-V", "mqttv5", "-D", "publish", "user-property", "by", "bo", "-m", r#"{"id": "by", "command": "drain"}"#],
    )?;
    let log = std::process::Command::new(places::program("hedge-agent")?)
        .args(["log", "settings", "--last", "1", "--config"])
        .arg(stand.agent.dir().join("agent.toml"))
        .output()?;
    let log = String::from_utf8(log.stdout)?;
    ensure!(log.contains("drain  done  by bo  id=by"), "{log}");
    stand.agent.stop()
}
