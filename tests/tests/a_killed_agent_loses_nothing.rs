//! `kill -9` at any moment: what was said to be stored arrives, and nothing stands twice in the file.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, LinkState};
use hedge_tests::fashion::Fashion;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{Agent, AgentConfig, Scene, Tally, skip, wait};

const ROUNDS: usize = 20;

const SAMPLES_PER_ROUND: usize = 8;

#[test]
fn twenty_kills_lose_no_stored_case_and_correct_none_twice() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        for sample in 0..SAMPLES_PER_ROUND {
            scene.post(&agent, round * SAMPLES_PER_ROUND + sample, &mut tally)?;
        }
        let_some_corrections_in(&agent, round % 4)?;
        agent.kill()?;
        agent.start_again()?;
    }
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

#[test]
fn the_same_ref_is_the_same_sample_after_a_kill_also_once_it_is_corrected() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    let (picture, other) = (scene.fashion.png(0)?, scene.fashion.png(1)?);
    let first = agent.http.post("pictures", "&ref=same&wait_ms=20000", "image/png", &picture)?;
    ensure!(first.revision > 0, "corrected: {first:?}");
    agent.kill()?;
    agent.start_again()?;
    let again = agent.http.post("pictures", "&ref=same", "image/png", &picture)?;
    ensure!((&again.id, again.revision) == (&first.id, first.revision), "{first:?}, then {again:?}");
    let (status, text) = agent.http.try_post("pictures", "&ref=same", "image/png", &other)?;
    ensure!(status == 409 && text.contains("names another sample"), "{status} {text}");
    agent.stop()
}

#[test]
fn a_ref_that_still_waits_is_the_same_sample_after_a_kill() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let config = AgentConfig::new(dir.path(), "device-1").model_keeping("fashion-small", 1.0).http_source("pictures");
    let mut agent = config.section("[outbox]\nstore_wait_ms = 20_000").start()?;
    let (fashion, mut posted) = (Fashion::load()?, None);
    for index in 0..10 {
        let picture = fashion.png(index)?;
        let answer = agent.http.post("pictures", &format!("&ref=n{index}"), "image/png", &picture)?;
        if answer.case == Some(CaseFate::Stored) {
            posted = Some((index, picture, answer));
        }
    }
    let (index, picture, first) = posted.context("hardly anything is deferred: the test shows nothing")?;
    let waiting = agent.http.status()?.queue.waiting;
    agent.kill()?;
    agent.start_again()?;
    let again = agent.http.post("pictures", &format!("&ref=n{index}"), "image/png", &picture)?;
    ensure!(again.id == first.id && again.provisional && again.link == LinkState::Offline, "{first:?}, then {again:?}");
    ensure!(agent.http.status()?.queue.waiting == waiting, "it is in the queue twice");
    agent.stop()
}

/// Lets the file grow by `more` lines, so that kills hit all stages: storing, sending, correcting, forgetting.
fn let_some_corrections_in(agent: &Agent, more: usize) -> Result<()> {
    let before = agent.corrections()?.len();
    // A device killed again before it was back online has none to show; that is a kill worth having, too.
    let grown = || Ok(agent.corrections()?.len() >= before + more);
    drop(wait::until_true("corrections arrive", Duration::from_secs(3), grown));
    Ok(())
}
