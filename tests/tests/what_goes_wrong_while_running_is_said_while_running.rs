//! A store that fails or goes while the agent runs: nothing more is said to be stored there, everybody is told within
//! seconds, and it is used again once it can be.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, Refusal};
use hedge_tests::{Agent, AgentConfig, Ext4, places, skip, wait};

/// What the agent looks at every 5 s, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// `nobody`.
const NOBODY: u32 = 65534;

/// A device that asks the cloud about everything.
fn device(dir: &Path) -> AgentConfig {
    AgentConfig::new(dir, "gate").model_keeping("fashion-small", 1.0).http_source("app")
}

/// What became of the case of one more picture.
fn post(agent: &Agent) -> Result<CaseFate> {
    let picture = fs::read(places::model("fashion-small").join("golden/test-0.png"))?;
    let answer = agent.http.post("app", "", "image/png", &picture)?;
    answer.case.context("it asks about everything")
}

fn stores(agent: &Agent) -> Result<()> {
    let fate = post(agent)?;
    ensure!(matches!(fate, CaseFate::Stored | CaseFate::Pending), "{fate:?}");
    Ok(())
}

fn says(agent: &mut Agent, part: &str, why: &str) -> Result<()> {
    // It may start anew meanwhile: nobody listens then for a moment.
    let said = |agent: &Agent| {
        let status = agent.http.status();
        status.is_ok_and(|status| status.faults.get(part).is_some_and(|sentence| sentence.contains(why)))
    };
    wait::until_true(&format!("`{part}` is a fault: {why}"), SOON, || Ok(said(agent)))
        .with_context(|| agent.log_end())?;
    let (_, health) = agent.http.get("/healthz")?;
    ensure!(health.contains("\"degraded\":true") && health.contains(why), "{health}");
    Ok(())
}

fn is_well(agent: &mut Agent) -> Result<()> {
    agent.wait_for_status("nothing is wrong any more", SOON, |status| status.faults.is_empty()).map(drop)
}

#[test]
fn a_disk_that_turns_read_only_is_said_and_nothing_is_stored_there() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_ext4() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let disk = Ext4::make(dir.path(), 48)?;
    let config = device(dir.path()).state_dir(&disk.path().join("state"));
    let mut agent = config.section("[outbox]\nfree_bytes_min = 1_000_000").start()?;
    stores(&agent)?;
    // As the kernel does when the disk fails, whoever has files open there.
    disk.remount("abort")?;
    let refused = || Ok(post(&agent)? == CaseFate::Refused(Refusal::Disk));
    wait::until_true("nothing is stored any more", SOON, refused)?;
    says(&mut agent, "state", "no case is stored")?;
    agent.kill()
}

#[test]
fn a_folder_that_is_forbidden_is_said_before_a_case_is_refused_and_used_when_it_is_allowed() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        skip::skipped("running a program as another user needs root");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let config = device(dir.path()).running_as(NOBODY).write_first()?;
    fs::create_dir(config.state())?;
    chown(config.state(), Some(NOBODY), Some(NOBODY))?;
    let mut agent = config.start()?;
    stores(&agent)?;
    let process = agent.program().id();
    let log = config.state().join("outbox/log");
    chown(&log, Some(0), Some(0))?;
    says(&mut agent, "state", "Permission denied")?;
    chown(&log, Some(NOBODY), Some(NOBODY))?;
    is_well(&mut agent)?;
    stores(&agent)?;
    ensure!(agent.program().id() == process, "it was started by somebody else");
    agent.stop()
}

#[test]
fn a_folder_deleted_under_the_agent_is_said_with_what_went_with_it_and_made_anew() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    for gone in ["outbox/log", "outbox", "."] {
        let dir = tempfile::tempdir()?;
        let config = device(dir.path());
        let mut agent = config.start()?;
        for _ in 0..3 {
            stores(&agent)?;
        }
        agent.wait_for_status("all three are stored", SOON, |status| status.queue.waiting == 3)?;
        fs::remove_dir_all(config.state().join(gone).canonicalize()?)?;
        // Whether it is told by a look or by this one: it is not said to be stored in a folder that is gone.
        if let Ok(fate) = post(&agent) {
            ensure!(fate == CaseFate::Refused(Refusal::Disk), "{gone}: {fate:?}");
        }
        says(&mut agent, "last_run", "3 cases that were stored are gone").with_context(|| gone.to_owned())?;
        let figure = agent.http.scrape()?.value("hedge_agent_cases_dropped_total{reason=\"gone\"}")?;
        ensure!(figure == 3.0, "{gone}: {figure}");
        stores(&agent)?;
        agent.wait_for_status("it is stored", SOON, |status| status.queue.waiting == 1)?;
        agent.kill()?;
        agent.start_again()?;
        agent.wait_for_status("it is still there", SOON, |status| status.queue.waiting == 1)?;
        agent.stop()?;
    }
    Ok(())
}
