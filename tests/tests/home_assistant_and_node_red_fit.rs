//! Home Assistant finds a device by MQTT discovery, shows what it does, sets thresholds and pauses sources; Node-RED
//! runs the flow of the examples.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::SettingsOutcome;
use hedge_tests::interface::Interface;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::mosquitto_client::{Heard, kept, publish};
use hedge_tests::operated::DEVICE;
use hedge_tests::program::Recipe;
use hedge_tests::{
    Agent, AgentConfig, Listener, Mosquitto, Operated, Operator, Porch, Scene, Tally, address, places, skip, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// Each look starts two programs.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// It starts in a few seconds, on an idle machine.
const NODE_RED_WAIT_MAX: Duration = Duration::from_secs(120);

const DISCOVERY: &str = "homeassistant/device/hedge_device-1/config";

/// Home Assistant in all that it does with discovery: it reads what is kept, fills templates in and publishes.
struct House {
    python: std::ffi::OsString,
    broker: SocketAddr,
    listener: Listener,
}

impl House {
    /// What is announced now.
    fn announced(&self) -> Result<Option<Value>> {
        kept(self.broker, DISCOVERY)?.map(|text| Ok(serde_json::from_str(&text)?)).transpose()
    }

    fn discovery(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Result<Value> {
        wait::until(what, WAIT_MAX, || Ok(self.announced()?.filter(|discovery| wanted(&discovery["components"]))))
    }

    fn ask(&self, action: &str, entity: &str, more: &[&str]) -> Result<String> {
        let discovery = self.discovery("discovery", |_| true)?;
        let topic = discovery["components"][entity]["state_topic"].as_str().context("a state topic")?;
        let last = |heard: Vec<Heard>| heard.into_iter().rfind(|heard| heard.topic == topic).map(|heard| heard.payload);
        let message = wait::until(&format!("a message on {topic}"), WAIT_MAX, || Ok(last(self.listener.heard()?)))?;
        let script = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/clients/home_assistant.py");
        let asked = Command::new(&self.python)
            .args([script, &discovery.to_string(), action, entity, &message])
            .args(more)
            .output()?;
        ensure!(asked.status.success(), "{entity}: {}", String::from_utf8_lossy(&asked.stderr));
        Ok(String::from_utf8(asked.stdout)?.trim_end().to_owned())
    }

    fn shows(&self, entity: &str, state: &str) -> Result<()> {
        let shown = || self.ask("show", entity, &[]);
        let waited = wait::until_true(&format!("{entity} is {state}"), WAIT_MAX, || Ok(shown()? == state));
        waited.with_context(|| format!("it shows {:?}", shown()))
    }

    /// What happens when someone moves a number or a switch.
    fn sets(&self, entity: &str, value: &str) -> Result<()> {
        let told = self.ask("set", entity, &[value])?;
        let mut lines = told.lines();
        let (topic, retain, payload) = (lines.next(), lines.next(), lines.next());
        let (topic, payload) = (topic.context("a topic")?, payload.context("a payload")?);
        let arguments: &[&str] = if retain == Some("True") { &["-r", "-m", payload] } else { &["-m", payload] };
        publish(self.broker, topic, arguments)
    }
}

fn start() -> Result<Option<(House, Operated)>> {
    start_as(|scene| scene.doubter(DEVICE))
}

fn start_as(config: impl Fn(&Scene) -> AgentConfig) -> Result<Option<(House, Operated)>> {
    let Some(python) = std::env::var_os("HEDGETEST_PYTHON") else {
        skip::skipped("no Python environment with Jinja2; `cargo xtask test` makes one");
        return Ok(None);
    };
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(None);
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let broker = scene.mosquitto.as_ref().map(Mosquitto::inside).context("mosquitto")?;
    let listener = Listener::start(broker, scene.dir())?;
    let operator = Operator::at(scene.broker()?)?;
    let mut agent: Agent = config(&scene)
        .broker(&format!("mqtt://{}", scene.broker()?))
        .section("[verdicts.mqtt]\nwanted = \"all\"")
        .section("[telemetry]\ninterval_s = 1")
        .section("[home_assistant]")
        .start()?;
    agent.wait_until_online()?;
    Ok(Some((House { python, broker, listener }, Operated { operator, agent, scene })))
}

#[test]
fn a_threshold_that_only_the_bundle_suggests_is_shown() -> Result<()> {
    let suggested = |scene: &Scene| {
        AgentConfig::new(scene.dir(), DEVICE).model("fashion-small").http_source("pictures").corrections_file()
    };
    let Some((house, mut device)) = start_as(suggested)? else { return Ok(()) };
    house.shows("threshold_fashion-small", "0.7563")?;
    device.agent.stop()
}

#[test]
fn what_a_device_does_is_shown_and_what_is_set_is_in_force() -> Result<()> {
    let Some((house, mut device)) = start()? else { return Ok(()) };
    let discovery = house.discovery("the device is announced", |_| true)?;
    let entities: Vec<&String> = discovery["components"].as_object().context("an object")?.keys().collect();
    assert_eq!(
        entities,
        ["answer_pictures", "doubt_pictures", "link", "paused_pictures", "queue", "threshold_fashion-small"]
    );
    assert_eq!(discovery["availability"][0]["topic"], "hedge/v1/device-1/up/status");

    house.shows("link", "online")?;
    house.shows("threshold_fashion-small", "1.0")?;
    house.shows("paused_pictures", "resume")?;
    device.scene.post_a_stored_one(&device.agent, 0, &mut Tally::default())?;
    house.shows("answer_pictures", "Coat")?;
    house.shows("queue", "0")?;

    // Someone else has set something before: it stays.
    device.operator.desire(DEVICE, 7, json!({"log": {"level": "warn"}}))?;
    device.wait_for(7, SettingsOutcome::Applied, WAIT_MAX)?;
    wait::until_true("the house has heard of it", WAIT_MAX, || {
        Ok(house.listener.heard()?.iter().any(|heard| heard.payload.contains("\"version\":7,\"outcome\":\"applied\"")))
    })?;
    house.sets("threshold_fashion-small", "0.35")?;
    let reported = device.wait_for(8, SettingsOutcome::Applied, WAIT_MAX)?;
    let overlay = serde_json::to_string(&reported.overlay)?;
    assert_eq!(overlay, r#"{"log":{"level":"warn"},"model":{"fashion-small":{"threshold":{"score_min":0.35}}}}"#);
    house.shows("threshold_fashion-small", "0.35")?;
    house.sets("threshold_fashion-small", "0.5")?;
    device.wait_for(9, SettingsOutcome::Applied, WAIT_MAX)?;

    house.sets("paused_pictures", "pause")?;
    house.shows("paused_pictures", "pause")?;
    let (status, said) = device.agent.http.try_post("pictures", "", "image/png", &device.scene.fashion.png(0)?)?;
    ensure!(status != 200, "a paused source took a picture: {said}");
    house.sets("paused_pictures", "resume")?;
    house.shows("paused_pictures", "resume")?;

    // What a command does is seen before its line is in the audit log.
    let audit = device.agent.dir().join("state/audit.jsonl");
    let by_the_house = || -> Result<usize> {
        let audit = std::fs::read_to_string(&audit)?;
        Ok(audit.lines().filter(|line| line.contains("\"by\":\"Home Assistant\"")).count())
    };
    wait::until_true("all of it is in the audit log", WAIT_MAX, || Ok(by_the_house()? >= 4))?;
    device.agent.stop()?;
    assert_eq!(by_the_house()?, 4, "two thresholds, a pause and its end:\n{}", std::fs::read_to_string(&audit)?);
    Ok(())
}

#[test]
fn discovery_follows_the_settings_and_goes_when_it_is_switched_off() -> Result<()> {
    let Some((house, mut device)) = start()? else { return Ok(()) };
    device.operator.desire(DEVICE, 1, json!({"source": {"app": {"kind": "http"}}}))?;
    house
        .discovery("a source that was added is announced", |parts| parts["paused_app"]["command_topic"].is_string())?;
    device.operator.desire(DEVICE, 2, json!({}))?;
    let gone = |parts: &Value| parts["paused_app"] == json!({"platform": "switch"});
    house.discovery("one that is gone is removed", gone)?;

    let file = device.agent.dir().join("agent.toml");
    let text = std::fs::read_to_string(&file)?;
    std::fs::write(&file, text.replace("[home_assistant]", ""))?;
    device.agent.program().signal(Signal::HUP)?;
    wait::until_true("nothing is kept of it", WAIT_MAX, || Ok(house.announced()?.is_none()))?;

    // The same while it was off: what was announced is remembered on disk.
    std::fs::write(&file, &text)?;
    device.agent.program().signal(Signal::HUP)?;
    house.discovery("it is announced again", |_| true)?;
    device.agent.stop()?;
    std::fs::write(&file, text.replace("[home_assistant]", ""))?;
    device.agent.start_again()?;
    wait::until_true("nothing is kept of it", WAIT_MAX, || Ok(house.announced()?.is_none()))?;
    device.agent.stop()
}

#[test]
fn node_red_takes_a_picture_and_tells_the_house_what_the_cloud_saw() -> Result<()> {
    let Some(node_red) = std::env::var_os("HEDGETEST_NODE_RED") else {
        skip::skipped("no Node-RED; `cargo xtask test` installs it where there is npm");
        return Ok(());
    };
    let Some(mut porch) = Porch::start()? else { return Ok(()) };
    let broker = porch.scene.mosquitto.as_ref().map(Mosquitto::inside).context("mosquitto")?;
    // Everything is to be asked about, so that there is a correction.
    let operator = Operator::at(broker)?;
    operator.desire("porch", 1, json!({"model": {"photo": {"threshold": {"score_min": 1}}}}))?;
    operator.wait_for_report("porch", "it asks about everything", WAIT_MAX, |report| report.version == 1)?;

    let dir = porch.scene.dir().join("node-red");
    std::fs::create_dir(&dir)?;
    // It writes beside its flow.
    let flow = dir.join("flow.json");
    std::fs::copy(places::root().join("examples/node-red/hedge.json"), &flow)?;
    let own = address::own(1880);
    let mut program = Recipe::new("node-red", "node".into(), &dir)
        .argument(node_red)
        .argument("--userDir")
        .argument(&dir)
        .arguments(["--port", &own.port().to_string(), "-D", &format!("uiHost={}", own.ip())])
        .argument(&flow)
        .variable("HEDGE_BROKER", broker.ip().to_string())
        .start()?;
    program.wait_for("Node-RED is connected", NODE_RED_WAIT_MAX, |program| {
        Ok(program.output()?.contains("Connected to broker").then_some(()))
    })?;
    let (status, said) = Interface::new(own).post_json("/inject/look", "{}")?;
    ensure!(status == 200, "{status} {said}");
    let seen = || Ok(kept(broker, "house/seen/porch/camera")?.as_deref() == Some("Coat"));
    let outcome = wait::until_true("the house knows what the camera saw", WAIT_MAX, seen);
    outcome.with_context(|| program.output().unwrap_or_default())?;
    // Its debug nodes write to the page and, as it is started here, nowhere else; but no node may have complained.
    let said = program.output()?;
    ensure!(!said.contains("[error]") && !said.contains("[warn] [mqtt"), "{said}");
    drop(program);
    porch.agent.stop()
}
