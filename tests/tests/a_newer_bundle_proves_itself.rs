//! A bundle is compared with another on the device's own input, and what the cloud says decides which one runs.

use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedge_proto::{Name, RivalRole};
use hedge_tests::publisher::{Publisher, done};
use hedge_tests::shelf_server::ShelfServer;
use hedge_tests::{Agent, AgentConfig, Scene, Tally, places, skip, wait};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::{Value, json};

const MODEL: &str = "front";

/// So many samples are enough to tell the two apart.
const SAMPLES: usize = 500;

const WITHIN: Duration = Duration::from_secs(60);

/// A device that runs version 1, and a publisher who has a version 2. One of them reads pictures as darker than they
/// are, by which it errs more often, though not about its golden samples.
struct Device {
    scene: Scene,
    server: ShelfServer,
    config: AgentConfig,
    tally: Tally,
    shown: usize,
}

impl Device {
    fn new(worse: &str, section: &str) -> Result<Self> {
        let scene = Scene::mosquitto()?;
        let publisher = Publisher::new(scene.dir())?;
        for version in ["1", "2"] {
            publisher.publish(
                "fashion-small",
                version,
                |dir| if version == worse { spoil(dir) } else { Ok(()) },
                &[],
            )?;
        }
        let server = ShelfServer::start(&publisher.folder())?;
        let config = AgentConfig::new(scene.dir(), "device-1");
        let current = config.state().join("models").join(MODEL).join("current");
        let model = format!("[[model]]\nname = \"{MODEL}\"\nbundle = \"{}\"\n{section}", current.display());
        let broker = format!("mqtt://{}", scene.broker()?);
        let config = config.section(&model).http_source("pictures").broker(&broker).write_first()?;
        std::fs::create_dir_all(config.state())?;
        let device = Self { scene, server, config, tally: Tally::default(), shown: 0 };
        let root = publisher.folder().join("root/1.json");
        done(&device.bundle(&["update", MODEL, "fashion-small/1", "--root", &root.display().to_string()])?);
        Ok(device)
    }

    fn bundle(&self, words: &[&str]) -> Result<Output> {
        let mut command = Command::new(places::program("hedge-agent")?);
        command.arg("bundle").args(words);
        if words[0] == "update" {
            command.args(["--from", &self.server.url()]);
        }
        Ok(command.args(["--config", &self.config.file().display().to_string()]).output()?)
    }

    fn start(&self) -> Result<Agent> {
        let mut agent = self.config.start()?;
        agent.wait_until_online()?;
        Ok(agent)
    }

    /// Shows it so many pictures; the version that answered the last.
    fn show(&mut self, agent: &Agent, count: usize) -> Result<String> {
        let mut version = String::new();
        for _ in 0..count {
            version = self.scene.post(agent, self.shown, &mut self.tally)?.model.version;
            self.shown += 1;
        }
        Ok(version)
    }

    /// What comes of a command from afar.
    fn order(&self, command: &str) -> Result<Value> {
        self.scene.cloud.post("/api/devices/device-1/commands", &json!({"command": command, "args": {"model": MODEL}}))
    }

    /// Versions that were tried and have failed.
    fn failed(&self) -> Result<String> {
        let shelf = self.config.state().join("models").join(MODEL).join("shelf.json");
        let shelf: Value = serde_json::from_slice(&std::fs::read(shelf)?)?;
        Ok(shelf["failed"][0]["held"]["version"].as_str().unwrap_or("none").to_owned())
    }
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Reads every picture as darker than it is. Scores differ then, so golden samples have labels only.
fn spoil(dir: &std::path::Path) -> Result<()> {
    let file = dir.join("manifest.toml");
    let manifest = std::fs::read_to_string(&file)?.replace("mean = 72.93", "mean = 150.0");
    let lines = manifest.lines().filter(|line| !line.starts_with("scores = "));
    Ok(std::fs::write(&file, lines.collect::<Vec<_>>().join("\n"))?)
}

fn reload(agent: &mut Agent) -> Result<()> {
    let id = agent.program().id().context("a process")?;
    Ok(kill_process(Pid::from_raw(id.try_into()?).context("a process")?, Signal::HUP)?)
}

fn looks_on(agent: &Agent, role: RivalRole) -> Result<()> {
    let name = Name::new(MODEL)?;
    wait::until_true("another bundle looks on", WITHIN, || {
        let status = agent.http.status()?;
        let figures = &status.model_figures[&name];
        ensure!(!figures.local, "it was signed for");
        Ok(figures.rival.as_ref().is_some_and(|rival| rival.role == role))
    })
}

#[test]
fn a_bundle_that_is_worse_than_the_one_before_is_given_back_within_500_samples() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut device = Device::new("2", "")?;
    let mut agent = device.start()?;
    assert_eq!(device.show(&agent, 20)?, "1");
    done(&device.bundle(&["update", MODEL, "fashion-small/2"])?);
    reload(&mut agent)?;
    looks_on(&agent, RivalRole::Previous)?;
    assert_eq!(device.show(&agent, 1)?, "2", "a person made it the current one");
    device.show(&agent, SAMPLES - 1)?;
    wait::until_true("version 1 answers again", WITHIN, || Ok(device.show(&agent, 1)? == "1"))?;
    assert_eq!(device.failed()?, "2");
    assert!(agent.log().contains("was given back for 1"), "{}", agent.log_end());
    // It stays so.
    agent.stop()?;
    let mut agent = device.start()?;
    assert_eq!(device.show(&agent, 50)?, "1");
    agent.stop()
}

#[test]
fn a_better_candidate_is_promoted_where_that_is_allowed() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut device = Device::new("1", "promote_by_evidence = true")?;
    let mut agent = device.start()?;
    let said = done(&device.bundle(&["update", MODEL, "fashion-small/2", "--shadow"])?);
    assert!(said.contains("candidate  fashion-small/2"), "{said}");
    reload(&mut agent)?;
    looks_on(&agent, RivalRole::Candidate)?;
    assert_eq!(device.show(&agent, 1)?, "1", "nobody hears a candidate");
    device.show(&agent, SAMPLES - 1)?;
    wait::until_true("version 2 answers", WITHIN, || Ok(device.show(&agent, 1)? == "2"))?;
    // From now on the one before looks on.
    looks_on(&agent, RivalRole::Previous)?;
    assert_eq!(device.failed()?, "none");
    agent.stop()
}

#[test]
fn a_candidate_waits_for_a_person_and_a_worse_one_never_answers() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    for (worse, word) in [("1", "`hedge-agent bundle promote` makes it"), ("2", "it is given up")] {
        let mut device = Device::new(worse, "")?;
        let mut agent = device.start()?;
        done(&device.bundle(&["update", MODEL, "fashion-small/2", "--shadow"])?);
        reload(&mut agent)?;
        looks_on(&agent, RivalRole::Candidate)?;
        device.show(&agent, SAMPLES)?;
        wait::until_true("it is said what was found", WITHIN, || Ok(agent.log().contains(word)))?;
        assert_eq!(device.show(&agent, 20)?, "1");
        if worse == "1" {
            // From afar, and back on the device.
            let reply = device.order("promote")?;
            assert_eq!(
                (&reply["outcome"], &reply["result"]["model"]["version"]),
                (&json!("done"), &json!("2")),
                "{reply}"
            );
            assert_eq!(device.show(&agent, 1)?, "2");
            assert!(done(&device.bundle(&["back", MODEL])?).contains("back       fashion-small/1"));
            reload(&mut agent)?;
            wait::until_true("version 1 answers", WITHIN, || Ok(device.show(&agent, 1)? == "1"))?;
        } else {
            assert_eq!(device.failed()?, "2");
            for reason in [device.order("promote")?.to_string(), text(&device.bundle(&["promote", MODEL])?)] {
                assert!(reason.contains("there is no candidate to promote"), "{reason}");
            }
        }
        agent.stop()?;
    }
    Ok(())
}
