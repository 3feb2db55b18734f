//! `hedge-agent queue` does the same on a running agent and a stopped one, and the running one hears of it.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseFate, DownMessage, Telemetry, to_cbor};
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{Agent, AgentConfig, Scene, Tally, places, skip};
use rustix::process::Signal;
use serde_json::Value;

const WAIT_MAX: Duration = Duration::from_secs(60);

/// `hedge-agent queue` with one configuration.
struct Queue(PathBuf);

impl Queue {
    fn run(&self, arguments: &[&str]) -> Result<Output> {
        let mut command = Command::new(places::program("hedge-agent")?);
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"HEDGE_")) {
            command.env_remove(name);
        }
        command.args(["queue", "--config"]).arg(&self.0).args(arguments);
        command.output().context("cannot run hedge-agent")
    }

    fn text(&self, arguments: &[&str]) -> Result<String> {
        let output = self.run(arguments)?;
        let error = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{arguments:?}: {} {error}", output.status);
        Ok(String::from_utf8(output.stdout)?)
    }

    fn json(&self, arguments: &[&str]) -> Result<Value> {
        Ok(serde_json::from_str(&self.text(&[arguments, &["--json"]].concat())?)?)
    }
}

/// An agent without a broker that holds `count` cases.
fn with_cases(dir: &Path, count: usize) -> Result<(AgentConfig, Agent, Vec<Answer>)> {
    let config = AgentConfig::new(dir, "device-1").model_keeping("fashion-small", 1.0).http_source("pictures");
    // A case that a busy disk has not confirmed in time would be one more.
    let config = config.section("[outbox]\nstore_wait_ms = 20_000");
    let agent = config.start()?;
    let fashion = hedge_tests::fashion::Fashion::load()?;
    let mut stored = Vec::new();
    for index in 0.. {
        let answer = agent.http.post("pictures", "", "image/png", &fashion.png(index)?)?;
        if answer.case == Some(CaseFate::Stored) {
            stored.push(answer);
        }
        if stored.len() == count {
            break;
        }
        ensure!(index < 10 * count, "hardly anything is deferred: the test shows nothing");
    }
    Ok((config, agent, stored))
}

/// Looks at everything and drops the first case; the same whether the agent runs or not.
fn look_and_drop(queue: &Queue, dir: &Path, stored: &[Answer]) -> Result<()> {
    let count = stored.len();
    let id = stored[0].id.to_string();
    let listing = queue.text(&["list"])?;
    let lines: Vec<_> = listing.lines().collect();
    assert!(lines.len() == count + 1 && lines[0].starts_with("ID ") && lines[0].contains("SOURCE"), "{listing}");
    assert!(listing.contains(&id) && listing.contains("waiting") && listing.contains("pictures"), "{listing}");
    assert_eq!(queue.json(&["list", "--limit", "1"])?["more"], count > 1);
    assert_eq!(queue.text(&["list", "--stage", "dead"])?, "no cases\n");

    assert!(queue.text(&["show", &id])?.contains("fashion-small"));
    assert_eq!(queue.json(&["show", &id])?["case"]["content_type"], "image/png");
    let missing = queue.run(&["show", "device-1.00000000000000aa.1"])?;
    assert_eq!(missing.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&missing.stderr).contains("there is no case"));

    assert_eq!(queue.json(&["stats"])?["cases"]["waiting"], count);
    let check = queue.json(&["check"])?;
    assert!(check["damaged"] == 0 && check["torn_bytes"] == 0, "{check}");
    assert!(check["records"]["case"].as_u64() >= Some(count as u64), "{check}");

    let exported = dir.join(format!("exported-{count}"));
    queue.text(&["export", exported.to_str().context("UTF-8")?])?;
    let payload = std::fs::read(exported.join(format!("{id}.png")))?;
    assert!(payload.starts_with(b"\x89PNG"));
    let document: Value = serde_json::from_slice(&std::fs::read(exported.join(format!("{id}.json")))?)?;
    assert_eq!(document["id"], id.as_str());
    assert_eq!(std::fs::read_dir(&exported)?.count(), 2 * count);

    // Not a dead letter, so there is nothing to queue again.
    let requeue = queue.run(&["requeue", &id])?;
    assert_eq!(requeue.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&requeue.stdout).contains("no dead letter"));
    assert!(queue.text(&["drop", &id])?.contains("dropped"));
    assert_eq!(queue.json(&["stats"])?["cases"]["waiting"], count - 1);
    Ok(())
}

#[test]
fn the_same_on_a_running_agent_and_on_a_stopped_one() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (config, mut agent, stored) = with_cases(dir.path(), 4)?;
    let queue = Queue(config.file());
    look_and_drop(&queue, dir.path(), &stored)?;
    let status = agent.http.status()?;
    assert_eq!((status.queue.waiting, status.samples.dropped.get("operator")), (3, Some(&1)));
    let dropped = agent.http.get(&format!("/v1/samples/{}", stored[0].id))?;
    assert_eq!(dropped.0, 200, "the local answer is remembered: {}", dropped.1);
    let dropped: Answer = serde_json::from_str(&dropped.1)?;
    assert_eq!((dropped.case, dropped.provisional), (Some(CaseFate::Dropped), false));

    agent.kill()?;
    look_and_drop(&queue, dir.path(), &stored[1..])?;
    agent.start_again()?;
    agent.wait_for_status("the others wait", WAIT_MAX, |status| status.queue.waiting == 2)?;
    agent.stop()
}

#[test]
fn changes_need_a_json_body_so_that_no_web_page_makes_them() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (_, mut agent, stored) = with_cases(dir.path(), 1)?;
    let body = format!("{{\"ids\": [\"{}\"]}}", stored[0].id);
    let url = format!("{}/v1/queue/drop", agent.http.base());
    let client: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().new_agent();
    let answer = client.post(url).content_type("text/plain").send(&body)?;
    assert_eq!(answer.status().as_u16(), 415);
    assert_eq!(agent.http.get("/v1/queue/drop")?.0, 405);
    let dead = agent.http.post_json("/v1/queue/drop", "{\"all_dead\": true}")?;
    assert_eq!(dead, (200, "[]".to_owned()), "no dead letters, and nothing else is dropped");
    assert_eq!(agent.http.status()?.queue.waiting, 1);
    agent.stop()
}

#[test]
fn damage_is_found_and_nothing_is_changed_by_looking() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (config, mut agent, stored) = with_cases(dir.path(), 3)?;
    agent.stop()?;
    let queue = Queue(config.file());
    let log = config.dir().join("state/outbox/log");
    flip_a_byte_of_a_picture(&log)?;

    let before = files(&log)?;
    let check = queue.run(&["check", "--json"])?;
    assert_eq!(check.status.code(), Some(1));
    let report: Value = serde_json::from_slice(&check.stdout)?;
    assert_eq!(report["damaged"].as_u64(), Some(1), "{report}");
    assert_eq!(report["damage"][0]["what"], "a record's payload");
    assert!(String::from_utf8(queue.run(&["check"])?.stdout)?.contains("DAMAGED log/"));
    assert_eq!(files(&log)?, before, "looking changes nothing");

    // Listing names the damaged case and leaves it; dropping it is the operator's decision.
    let listing = queue.json(&["list"])?;
    let damaged: Vec<_> =
        listing["cases"].as_array().context("a list")?.iter().filter(|case| !case["note"].is_null()).collect();
    assert_eq!((damaged.len(), listing["cases"].as_array().map(Vec::len)), (1, Some(stored.len())));
    queue.text(&["drop", damaged[0]["id"].as_str().context("an id")?])?;
    assert_eq!(queue.json(&["stats"])?["cases"]["waiting"], 2);
    Ok(())
}

#[test]
fn without_an_agent_or_its_state_the_error_says_what_to_do() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let config = AgentConfig::new(dir.path(), "device-1");
    let queue = Queue(config.write()?);
    for command in [&["list"][..], &["check"], &["stats"]] {
        let failed = queue.run(command)?;
        assert_eq!(failed.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&failed.stderr).contains("is --config right?"));
    }
    assert!(!config.dir().join("state").exists(), "nothing is made by looking");
    assert_eq!(queue.run(&["drop"])?.status.code(), Some(2));
    assert_eq!(queue.run(&["show", "not-an-id"])?.status.code(), Some(2));
    Ok(())
}

#[test]
fn a_dead_letter_is_seen_and_answered_once_it_is_queued_again() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut scene = Scene::mosquitto()?;
    let broker = scene.broker()?;
    let config = scene.doubter("device-1").broker(&format!("mqtt://{broker}"));
    let mut agent = config.start()?;
    agent.wait_until_online()?;
    // Halted, not killed: the device goes on sending to a cloud that it takes to be there. A word on a case that was never
    // sent is no word.
    scene.cloud.program().signal(Signal::STOP)?;
    let mut tally = Tally::default();
    let stored = scene.post_a_stored_one(&agent, 0, &mut tally)?;
    let sent = |status: &Telemetry| status.budget.get("cases_per_hour").is_some_and(|cases| cases.spent == 1);
    agent.wait_for_status("it is sent", WAIT_MAX, sent)?;

    let dead = DownMessage::Dead { id: stored.id.clone(), reason: "nobody knows what this is".to_owned() };
    let message = scene.dir().join("dead.cbor");
    std::fs::write(&message, to_cbor(&dead))?;
    // On the port where the cloud connects: the other one's number makes mosquitto_pub speak TLS.
    let topic = format!("{}/hedge/v1/device-1/down/verdict", scene.setup.broker.as_deref().context("mosquitto")?);
    let mut publish = Command::new("mosquitto_pub");
    publish.args(["-q", "1", "-L", &topic, "-f"]).arg(&message);
    ensure!(publish.status()?.success(), "mosquitto_pub failed");
    agent.wait_for_status("it is a dead letter", WAIT_MAX, |status| status.queue.dead == 1)?;

    let queue = Queue(config.file());
    let listing = queue.text(&["list", "--stage", "dead"])?;
    assert!(listing.contains("nobody knows what this is"), "{listing}");
    let setup = scene.setup.clone();
    scene.cloud.kill()?;
    scene.cloud.start_again(&setup)?;
    assert!(queue.text(&["requeue", "--all-dead"])?.contains(&stored.id.to_string()));
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

/// Changes one byte well inside the first picture of the log.
fn flip_a_byte_of_a_picture(log: &Path) -> Result<()> {
    let (path, mut bytes) = files(log)?
        .into_iter()
        .find(|(path, _)| path.extension().is_some_and(|end| end == "log"))
        .context("a segment")?;
    let picture = bytes.windows(4).position(|four| four == b"\x89PNG").context("a picture")?;
    bytes[picture + 40] ^= 0x10;
    Ok(std::fs::write(path, bytes)?)
}

fn files(dir: &Path) -> Result<Vec<(PathBuf, Vec<u8>)>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        files.push((path.clone(), std::fs::read(path)?));
    }
    files.sort();
    Ok(files)
}
