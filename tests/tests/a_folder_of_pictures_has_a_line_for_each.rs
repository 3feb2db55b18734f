//! The file of answers is the only place where a folder's answers go: each picture that was moved to `done/` has its line,
//! however many come at once and whenever the agent is killed.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Result, ensure};
use hedge_tests::fashion::Fashion;
use hedge_tests::{Agent, AgentConfig, skip, wait};

/// More than wait in memory for a sink, and than a folder takes at once.
const PICTURES: usize = 1500;

/// Far more than a debug build on a busy machine needs for all.
const ALL_WAIT_MAX: Duration = Duration::from_secs(240);

fn fill(folder: &Path) -> Result<()> {
    fs::create_dir(folder)?;
    let pictures = Fashion::load()?;
    for number in 0..PICTURES {
        fs::write(folder.join(format!("p{number:04}.png")), pictures.png(number % pictures.len())?)?;
    }
    Ok(())
}

fn done(folder: &Path) -> Result<Vec<String>> {
    let Ok(entries) = fs::read_dir(folder.join("done")) else { return Ok(Vec::new()) };
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// How many lines each picture has.
fn lines(agent: &Agent) -> Result<BTreeMap<String, usize>> {
    let mut lines = BTreeMap::new();
    for answer in agent.sink().read_on()? {
        let reference = answer.reference.unwrap_or_default();
        let name = reference.split('#').next().unwrap_or_default().to_owned();
        *lines.entry(name).or_default() += 1;
    }
    Ok(lines)
}

#[test]
fn a_batch_gives_as_many_lines_as_pictures() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("in");
    fill(&folder)?;
    let config = AgentConfig::new(dir.path(), "gate").model_keeping("fashion-small", 0.0).all_answers_file();
    let mut agent = config.folder_source("in", &folder).start()?;
    wait::until_true("all are answered", ALL_WAIT_MAX, || Ok(done(&folder)?.len() == PICTURES))?;
    let lines = lines(&agent)?;
    ensure!(lines.len() == PICTURES && lines.values().all(|count| *count == 1), "{} lines", lines.len());
    let lost = agent.http.scrape()?.value("hedge_agent_sink_lost_total{sink=\"jsonl\"}")?;
    ensure!(lost == 0.0, "{lost}");
    agent.stop()
}

#[test]
fn a_picture_that_was_moved_before_a_kill_has_its_line() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let folder = dir.path().join("in");
    fill(&folder)?;
    let config = AgentConfig::new(dir.path(), "gate").model_keeping("fashion-small", 0.0).all_answers_file();
    let mut agent = config.folder_source("in", &folder).start()?;
    for kills in 1..=4 {
        let some = kills * PICTURES / 8;
        wait::until_true("some are answered", ALL_WAIT_MAX, || Ok(done(&folder)?.len() >= some))?;
        agent.kill()?;
        let lines = lines(&agent)?;
        for name in done(&folder)? {
            ensure!(lines.contains_key(&name), "{name} was moved and has no line");
        }
        agent.start_again()?;
    }
    agent.stop()
}
