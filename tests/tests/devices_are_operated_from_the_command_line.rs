//! `hedge-cloud device`, and the dashboard's page of a device, set and command a real device over mosquitto and say
//! what the device says.

use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::Outcome;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{AgentConfig, Cloud, CloudSetup, Mosquitto, Scene, Tally, places, skip, wait};
use serde_json::{Value, json};

const DEVICE: &str = "device-1";

/// It is told once it has lasted ten seconds, and each look takes one on a busy machine.
const TOLD_WITHIN: Duration = Duration::from_secs(60);

/// On a busy machine.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

struct Shell {
    broker: String,
}

impl Shell {
    /// The one line it prints.
    fn ask(&self, code: i32, words: &[&str]) -> Result<Value> {
        let mut command = Command::new(places::program("hedge-cloud")?);
        command.arg("device").args(words).args(["--json", "--broker", &self.broker]);
        let Output { status, stdout, stderr } = command.output()?;
        let (out, err) = (String::from_utf8(stdout)?, String::from_utf8_lossy(&stderr).into_owned());
        ensure!(status.code() == Some(code), "{words:?} ended with {status}: {out}{err}");
        serde_json::from_str(&out).with_context(|| format!("{words:?}: {out}{err}"))
    }
}

#[test]
fn a_real_device_is_looked_at_set_and_commanded() -> Result<()> {
    if !(skip::has_onnxruntime() && skip::has_mosquitto()) {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let broker = format!("mqtt://{}", scene.broker()?);
    let mut agent = scene.doubter(DEVICE).broker(&broker).start()?;
    agent.wait_until_online()?;
    let shell = Shell { broker };
    let outcome =
        |number| -> Result<Outcome> { Ok(scene.post(&agent, number, &mut Tally::default())?.decision.outcome) };
    let score_min = "model.fashion-small.threshold.score_min";

    let status = shell.ask(0, &["status", DEVICE])?;
    ensure!(status["link"] == "online" && status["answer"]["outcome"] == "done", "{status}");
    ensure!(shell.ask(0, &["get", DEVICE, score_min])?["value"] == json!(1.0), "as in the local file");
    assert_eq!(outcome(0)?, Outcome::Defer);

    let set = shell.ask(0, &["set", DEVICE, &format!("{score_min}=0"), "log.level=warn"])?;
    ensure!(set["outcome"] == "applied" && set["version"] == 1, "{set}");
    assert_eq!(outcome(1)?, Outcome::Keep);
    ensure!(shell.ask(0, &["diff", "--all"])?["same"] == true, "what is wanted is in force");

    // What only the device can know is wrong: it has no such model, and nothing of the document is in force.
    let refused = shell.ask(1, &["set", DEVICE, "model.ghost.threshold.score_min=0.5", "log.level="])?;
    ensure!(refused["outcome"] == "refused", "{refused}");
    ensure!(refused["errors"][0]["field"].as_str().is_some_and(|field| field.contains("ghost")), "{refused}");
    ensure!(shell.ask(1, &["diff", DEVICE])?["same"] == false, "it is still wanted");
    let mended = shell.ask(0, &["set", "--where", "link=online", "model.ghost="])?;
    ensure!(mended["outcome"] == "applied" && mended["version"] == 3, "{mended}");

    // On trial, confirmed by the live cloud behind the broker. The device leaves and comes back for it.
    let trial = shell.ask(0, &["set", DEVICE, "broker.keep_alive_s=17"])?;
    ensure!(trial["outcome"] == "applied", "{trial}");

    let paused = shell.ask(0, &["command", DEVICE, "pause", "source=pictures", "--id", "p"])?;
    ensure!(paused["outcome"] == "done" && paused["id"] == "p", "{paused}");
    let status = shell.ask(0, &["status", DEVICE])?;
    ensure!(status["paused"] == json!(["pictures"]), "{status}");
    shell.ask(0, &["command", DEVICE, "resume"])?;
    assert_eq!(outcome(2)?, Outcome::Keep);
    let unknown = shell.ask(1, &["command", DEVICE, "snapshot", "source=nowhere"])?;
    ensure!(unknown["reason"].as_str().is_some_and(|reason| reason.contains("nowhere")), "{unknown}");

    the_page_does_the_same(&scene)?;
    assert_eq!(outcome(3)?, Outcome::Defer);
    ensure!(shell.ask(0, &["get", DEVICE, score_min])?["from"] == "desired", "both see the same document");
    Ok(())
}

/// Whether the one device of this broker is among those of which this holds.
fn is_listed(shell: &Shell, condition: &str) -> Result<bool> {
    let mut command = Command::new(places::program("hedge-cloud")?);
    command.args(["device", "list", "--where", condition, "--json", "--broker", &shell.broker]);
    let Output { status, stdout, stderr } = command.output()?;
    let (out, err) = (String::from_utf8(stdout)?, String::from_utf8_lossy(&stderr).into_owned());
    match status.code() {
        Some(0) => Ok(serde_json::from_str::<Value>(&out)?["device"] == DEVICE),
        Some(3) if err.contains("no device at this broker is like that") => Ok(false),
        _ => anyhow::bail!("it ended with {status}: {out}{err}"),
    }
}

#[test]
fn a_link_that_is_degraded_can_be_told_afterwards() -> Result<()> {
    if !(skip::has_onnxruntime() && skip::has_mosquitto()) {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = Mosquitto::start(dir.path())?;
    let config = AgentConfig::new(dir.path(), DEVICE).broker(&broker.url()).model_keeping("fashion-small", 1.0);
    let mut agent = config.http_source("pictures").start()?;
    agent.wait_until_connected()?;
    let shell = Shell { broker: broker.url() };
    // A broker without a cloud behind it.
    wait::until_true("it is listed as degraded", TOLD_WITHIN, || is_listed(&shell, "link=degraded"))?;
    ensure!(!is_listed(&shell, "link=online")? && !is_listed(&shell, "link=offline")?, "and as nothing else");

    let _cloud = Cloud::start(dir.path(), &CloudSetup::stub(&broker.url(), "fashion", "Coat"))?;
    wait::until_true("it is listed as online", TOLD_WITHIN, || is_listed(&shell, "link=online"))?;
    ensure!(!is_listed(&shell, "link=degraded")?, "and no longer as degraded");
    agent.stop()?;
    ensure!(is_listed(&shell, "link=offline")?, "it has said goodbye");
    Ok(())
}

fn the_page_does_the_same(scene: &Scene) -> Result<()> {
    let page = format!("/api/devices/{DEVICE}");
    let post = |what: &str, request: Value| scene.cloud.post(&format!("{page}/{what}"), &request);
    let edit = |field: &str, value: Value| post("settings", json!({"edits": {field: value}, "by": "ann"}));
    let set = edit("model.fashion-small.threshold.score_min", json!(1.0))?;
    ensure!(set["outcome"] == "applied" && set["version"] == 5, "{set}");
    let typo = edit("model.fashion-small.threshold.score_min", json!(1.5))?;
    ensure!(typo["errors"][0]["field"] == "model.fashion-small.threshold.score_min", "{typo}");
    let ghost = edit("model.ghost.threshold.score_min", json!(0.5))?;
    ensure!(ghost["outcome"] == "refused" && ghost["version"] == 6, "{ghost}");
    ensure!(edit("model.ghost", Value::Null)?["outcome"] == "applied", "mended");
    let reply = post("commands", json!({"command": "status"}))?;
    ensure!(reply["outcome"] == "done" && reply["result"]["link"] == "online", "{reply}");
    let mut shown = Value::Null;
    // The reply goes to the records and to the page by two ways.
    wait::until_true("the page shows it", SHOWN_WITHIN, || {
        shown = scene.cloud.get(&page)?;
        Ok(shown["history"][0]["kind"] == "reply" && shown["differences"] == json!([]))
    })
    .with_context(|| shown.to_string())?;
    ensure!(shown["reported"]["version"] == 7 && shown["look_only"].is_null(), "{shown}");
    Ok(())
}

#[test]
fn a_change_goes_out_in_stages_and_stops_at_the_first_device_that_is_worse() -> Result<()> {
    if !(skip::has_onnxruntime() && skip::has_mosquitto()) {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let broker = format!("mqtt://{}", scene.broker()?);
    let mut agents = Vec::new();
    for number in 1..=3 {
        let mut agent = scene.doubter(&format!("device-{number}")).broker(&broker).start()?;
        agent.wait_until_online()?;
        agents.push(agent);
    }
    let setting = |settle: &str| -> Result<Command> {
        let mut command = Command::new(places::program("hedge-cloud")?);
        command.args(["device", "set", "--all", "--stages", "30,100", "--settle", settle, "--broker", &broker]);
        Ok(command)
    };
    // How it ended, how many devices have a change in force, and what was said.
    let ended = |Output { status, stdout, stderr }: Output| {
        let said = format!("{}{}", String::from_utf8_lossy(&stdout), String::from_utf8_lossy(&stderr));
        (status.code(), said.matches(": applied").count(), said)
    };
    let set = |words: &[&str]| -> Result<_> { Ok(ended(setting("2")?.args(words).output()?)) };
    // A label that the model does not have.
    let (code, changed, said) = set(&["model.fashion-small.threshold.classes.Nonsense=0.9"])?;
    ensure!(code == Some(1) && changed == 0 && said.matches(": refused").count() == 1, "{said}");
    ensure!(said.contains("stopped after stage 1 of 2; 2 devices are left alone"), "{said}");

    // The first device takes it, and is gone before the others would have had their turn.
    let mut command = setting("600")?.arg("log.level=debug").stdout(Stdio::piped()).stderr(Stdio::piped()).spawn()?;
    let mut first = String::new();
    let mut output = BufReader::new(command.stdout.take().context("its output")?);
    output.read_line(&mut first)?;
    let name = first.split(':').next().unwrap_or_default().to_owned();
    let agent = agents.iter_mut().find(|agent| agent.device() == name).with_context(|| first.clone())?;
    agent.stop()?;
    let (code, _, said) = ended(command.wait_with_output()?);
    ensure!(code == Some(1) && said.contains(&format!("{name}: it has left since")), "{first}{said}");
    agent.start_again()?;
    agent.wait_until_online()?;

    let (code, changed, said) = set(&["model.fashion-small.threshold.classes=", "log.level=warn"])?;
    ensure!(code == Some(0) && changed == 3, "{said}");
    ensure!(said.contains("stage 1 of 2: 1 devices, 1 of them") && said.contains("stage 2 of 2: 2 devices"), "{said}");
    // Again there is nothing to be done.
    let (code, changed, said) = set(&["log.level=warn"])?;
    ensure!(code == Some(0) && changed == 0, "{said}");
    Ok(())
}
