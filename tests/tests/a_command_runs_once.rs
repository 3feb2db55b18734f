//! However often a command arrives, and wherever `kill -9` hits: one effect and one result, or `interrupted`.
//!
//! `cargo xtask soak a_command_runs_once --rounds 10` kills ten times as often at random.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CommandOutcome, LinkState, Reply};
use hedge_tests::faults::Shape;
use hedge_tests::mosquitto_client::{REPLY_WAIT_MAX, publish};
use hedge_tests::soak::{Chance, rounds};
use hedge_tests::{Agent, AgentConfig, FaultProxy, Listener, Mosquitto, MosquittoSetup, skip, wait};

const COMMAND: &str = "hedge/v1/device-1/down/command";

const KILLS: u32 = 20;

const REPEATS: u32 = 100;

/// What a command takes here from its arrival to its reply, and a bit: kills hit every step of it.
const STEPS_US: u64 = 12_000;

fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

fn broker(dir: &Path) -> Result<Mosquitto> {
    Mosquitto::start_with(dir, &MosquittoSetup { persistent: true, ..MosquittoSetup::default() })
}

fn device(dir: &Path, broker: std::net::SocketAddr) -> AgentConfig {
    AgentConfig::new(dir, "device-1").model("fashion-small").http_source("pictures").broker(&format!("mqtt://{broker}"))
}

/// How many commands of each id the audit log says were done.
fn done(agent: &Agent) -> Result<BTreeMap<String, u32>> {
    let mut done = BTreeMap::new();
    for file in ["audit.1.jsonl", "audit.jsonl"] {
        let text = std::fs::read_to_string(agent.dir().join("state").join(file)).unwrap_or_default();
        for line in text.lines() {
            let entry: serde_json::Value = serde_json::from_str(line).context("a line of the audit log")?;
            if let (Some(id), Some("done")) = (entry["id"].as_str(), entry["outcome"].as_str()) {
                *done.entry(id.to_owned()).or_insert(0) += 1;
            }
        }
    }
    Ok(done)
}

/// The one result of each id; an error if there were two different ones.
fn results(listener: &Listener) -> Result<BTreeMap<String, Reply>> {
    let mut results = BTreeMap::new();
    for (_, reply) in listener.replies()? {
        let Some(id) = reply.id.clone().filter(|_| reply.outcome != CommandOutcome::Refused) else { continue };
        let first = results.entry(id).or_insert_with(|| reply.clone());
        ensure!(*first == reply, "two results: {first:?} and {reply:?}");
    }
    Ok(results)
}

#[test]
fn killed_at_any_step_it_has_one_result() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = broker(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let mut agent = device(dir.path(), broker.address()).start()?;
    let mut chance = Chance::new();
    agent.wait_until_connected()?;
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "first", "command": "drain"}"#])?;
    listener.wait_for_reply("first")?;
    let kills = KILLS * rounds(1);
    for kill in 0..kills {
        let text = format!(r#"{{"id": "kill-{kill}", "command": "drain"}}"#);
        publish(broker.inside(), COMMAND, &["-m", &text])?;
        wait::pause(Duration::from_micros(chance.within(0..STEPS_US)));
        agent.kill()?;
        agent.start_again()?;
        listener.wait_for_reply(&format!("kill-{kill}"))?;
        // The same message once more: the same result, and no other effect.
        publish(broker.inside(), COMMAND, &["-m", &text])?;
    }
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "last", "command": "drain"}"#])?;
    listener.wait_for_reply("last")?;
    let (results, done) = (results(&listener)?, done(&agent)?);
    let outcomes = |wanted| results.values().filter(|reply| reply.outcome == wanted).count();
    let interrupted = outcomes(CommandOutcome::Interrupted);
    eprintln!("{kills} kills: {} done, {interrupted} interrupted", outcomes(CommandOutcome::Done));
    ensure!(results.len() == kills as usize + 2, "{} results", results.len());
    ensure!(done.values().all(|times| *times == 1), "done twice: {done:?}");
    agent.stop()
}

#[test]
fn repeated_a_hundred_times_by_a_flapping_link_it_has_one_effect_and_one_result() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = broker(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let link = FaultProxy::start(broker.address())?;
    let mut agent = device(dir.path(), link.address()).start()?;
    agent.wait_until_connected()?;
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "first", "command": "ping"}"#])?;
    listener.wait_for_reply("first")?;
    let mut chance = Chance::new();
    for repeat in 0..REPEATS {
        publish(broker.inside(), COMMAND, &["-m", r#"{"id": "again", "command": "drain"}"#])?;
        publish(broker.inside(), COMMAND, &["-m", r#"{"id": "anew", "command": "restart"}"#])?;
        match chance.within(0..3) {
            0 if repeat % 5 == 0 => link.reset(),
            _ => link.pass(),
        }
        wait::pause(Duration::from_millis(chance.within(0..200)));
    }
    link.pass();
    for id in ["again", "anew"] {
        listener.wait_for_reply(id)?;
    }
    // It may be one too many for a second and be refused; that is a reply, too.
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "last", "command": "ping"}"#])?;
    listener.wait_for_reply("last")?;
    let (results, done) = (results(&listener)?, done(&agent)?);
    // `again` may have been waiting for its turn when the restart came.
    ensure!(results["anew"].outcome == CommandOutcome::Done, "{results:?}");
    ensure!(done.values().all(|times| *times == 1), "done twice: {done:?}");
    let log = std::fs::read_to_string(agent.dir().join("hedge-agent.log"))?;
    let starts = log.lines().filter(|line| line.contains(" ready ")).count();
    ensure!(starts == 2, "{starts} starts instead of two:\n{log}");
    agent.program().check_alive()?;
    agent.stop()
}

/// What the broker kept for a device comes before its session is ready, and ahead of it by as much as the link is slow.
#[test]
fn a_refusal_of_what_waited_for_the_device_is_said_when_it_is_back() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = broker(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let link = FaultProxy::start(broker.address())?;
    let mut agent = device(dir.path(), link.address()).start()?;
    agent.wait_until_connected()?;
    link.cut();
    agent.wait_for_status("the link is gone", REPLY_WAIT_MAX, |status| status.link == LinkState::Offline)?;
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "late", "command": "reboot"}"#])?;
    link.shape(Shape { latency: Duration::from_millis(100), bytes_per_s: None });
    link.pass();
    let (_, reply) = listener.wait_for_reply("late")?;
    ensure!(reply.outcome == CommandOutcome::Refused, "{reply:?}");
    agent.stop()
}

/// A camera whose pictures come only while its switch is on, so that a snapshot can be held at each of its steps.
struct Camera {
    switch: PathBuf,
    command: [String; 3],
}

impl Camera {
    fn new(dir: &Path) -> Result<Self> {
        let (switch, frame) = (dir.join("camera-on"), dir.join("frame"));
        let picture = std::fs::read(hedge_tests::places::model("fashion-small").join("golden/test-0.png"))?;
        std::fs::write(&frame, [&u32::try_from(picture.len())?.to_be_bytes()[..], &picture].concat())?;
        let (on, frame) = (switch.display(), frame.display());
        let script = format!("while :; do if [ -e {on} ]; then cat {frame} || exit; fi; sleep 0.05; done");
        Ok(Self { switch, command: ["sh".to_owned(), "-c".to_owned(), script] })
    }

    fn set_on(&self, on: bool) -> Result<()> {
        if on {
            std::fs::write(&self.switch, "")?;
        } else if self.switch.exists() {
            std::fs::remove_file(&self.switch)?;
        }
        Ok(())
    }
}

/// Waits until the journal has this about the command.
fn wait_for_step(agent: &Agent, step: &str, id: &str) -> Result<()> {
    let (journal, id) = (agent.dir().join("state/commands.jsonl"), format!("\"id\":\"{id}\""));
    wait::until_true(&format!("`{step}` stands in the journal for {id}"), REPLY_WAIT_MAX, || {
        let text = std::fs::read_to_string(&journal).unwrap_or_default();
        Ok(text.lines().any(|line| line.contains(&format!("\"{step}\"")) && line.contains(&id)))
    })
}

#[test]
fn killed_at_each_step_twenty_times_it_has_one_result_or_is_interrupted() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = broker(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let link = FaultProxy::start(broker.address())?;
    let camera = Camera::new(dir.path())?;
    let mut agent = device(dir.path(), link.address()).command_source("porch", &camera.command).start()?;
    agent.wait_until_connected()?;
    for kill in 0..KILLS {
        for (step, outcome) in
            [("began", CommandOutcome::Interrupted), ("ended", CommandOutcome::Done), ("said", CommandOutcome::Done)]
        {
            let id = format!("{step}-{kill}");
            let text = format!(r#"{{"id": "{id}", "command": "snapshot", "args": {{"source": "porch"}}}}"#);
            publish(broker.inside(), COMMAND, &["-m", &text])?;
            wait_for_step(&agent, "began", &id)?;
            if step == "ended" {
                link.cut();
            }
            camera.set_on(step != "began")?;
            wait_for_step(&agent, step, &id)?;
            // Off before the next program starts, so that no picture of this round is left over for the next one.
            camera.set_on(false)?;
            agent.kill()?;
            link.pass();
            agent.start_again()?;
            agent.wait_until_connected()?;
            let (_, reply) = listener.wait_for_reply(&id)?;
            ensure!(reply.outcome == outcome, "killed when it had {step}: {reply:?}");
            // Once more: the same result. `results` compares them.
            publish(broker.inside(), COMMAND, &["-m", &text])?;
            wait::until_true("its result is said again", REPLY_WAIT_MAX, || {
                let replies = listener.replies()?;
                Ok(replies.iter().filter(|(_, reply)| reply.id.as_deref() == Some(&id)).count() >= 2)
            })?;
        }
    }
    let (results, done) = (results(&listener)?, done(&agent)?);
    ensure!(results.len() == 3 * KILLS as usize, "{} results", results.len());
    ensure!(done.len() == 2 * KILLS as usize && done.values().all(|times| *times == 1), "done twice: {done:?}");
    agent.stop()
}

#[test]
fn a_reply_that_a_cut_swallowed_comes_with_the_next_connection() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = broker(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let link = FaultProxy::start(broker.address())?;
    let camera = Camera::new(dir.path())?;
    let mut agent = device(dir.path(), link.address()).command_source("porch", &camera.command).start()?;
    agent.wait_until_connected()?;
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "first", "command": "ping"}"#])?;
    listener.wait_for_reply("first")?;
    publish(broker.inside(), COMMAND, &["-m", r#"{"id": "s", "command": "snapshot", "args": {"source": "porch"}}"#])?;
    wait_for_step(&agent, "began", "s")?;
    link.cut();
    camera.set_on(true)?;
    wait_for_step(&agent, "ended", "s")?;
    link.pass();
    let (_, reply) = listener.wait_for_reply("s")?;
    ensure!(reply.outcome == CommandOutcome::Done && reply.result["source"] == "porch", "{reply:?}");
    agent.stop()
}
