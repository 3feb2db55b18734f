//! What a state of the link changes is seen by an application and by the cloud: who waits, what is asked, what travels.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseFate, DeviceId, LinkState, Outcome, Reported, SettingsOutcome, Topic};
use hedge_tests::fashion::noise_png;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{Agent, FaultProxy, Operator, Scene, Tally, skip, wait};
use serde_json::json;

/// What the caller would wait; far more than an answer takes on a busy machine.
const WAIT_MS: u64 = 50_000;

const AT_ONCE: Duration = Duration::from_secs(10);

const SEEN_WITHIN: Duration = Duration::from_secs(45);

const CORRECTED_WITHIN: Duration = Duration::from_secs(60);

/// 100 pixels square.
const PICTURE_BYTES: usize = 10_000;

const THUMBNAIL: u32 = 40;

#[test]
fn offline_nobody_waits_and_thumbnails_travel_and_online_is_as_before() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let states = format!("[link.states.offline]\npayload = {{ thumbnail = {THUMBNAIL} }}");
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).section(&states).start()?;
    agent.wait_until_online()?;
    let (online, took) = post_a_stored_one(&agent, 1)?;
    ensure!(online.revision == 1, "a caller who waits online gets the verdict: {online:?} after {took:?}");

    link.cut();
    agent.wait_for_status("the cut is seen", SEEN_WITHIN, |status| status.link == LinkState::Offline)?;
    let (offline, took) = post_a_stored_one(&agent, 100)?;
    ensure!(offline.provisional && took < AT_ONCE, "offline nobody waits: {offline:?} after {took:?}");
    link.pass();
    agent.wait_for_correction(&offline.id, CORRECTED_WITHIN)?;

    let payload = |answer: &Answer| -> Result<(String, u64)> {
        let case = scene.cloud.get(&format!("/api/cases/{}", answer.id))?;
        let kind = case["content_type"].as_str().context("a content type")?.to_owned();
        Ok((kind, case["payload_bytes"].as_u64().context("a size")?))
    };
    let (kind, bytes) = payload(&online)?;
    ensure!(kind == "image/png" && bytes >= PICTURE_BYTES as u64, "whole: {kind}, {bytes} bytes");
    let (kind, bytes) = payload(&offline)?;
    ensure!(kind == "image/jpeg" && bytes < PICTURE_BYTES as u64 / 2, "a thumbnail: {kind}, {bytes} bytes");
    agent.stop()
}

#[test]
fn a_threshold_that_counts_for_nothing_offline_asks_nothing_and_says_so() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let states = "[link.states.offline]\nthreshold_scale = 0.0";
    // Nobody listens there, so it is never online.
    let mut agent = scene.doubter("device-1").broker("mqtt://127.0.0.1:1").section(states).start()?;
    for seed in 1..20 {
        let answer = agent.http.post("pictures", "", "image/png", &noise_png(PICTURE_BYTES, seed)?)?;
        ensure!(answer.decision.outcome == Outcome::Keep && answer.case.is_none(), "{answer:?}");
        ensure!(answer.decision.because.contains("thresholds count 0 times while the link is"), "{answer:?}");
    }
    agent.stop()
}

/// The shortest windows there are.
const WINDOWS: &str = "[link.windows]\nevery_s = 60\nopen_s = 30";

const WINDOW_WITHIN: Duration = Duration::from_secs(90);

#[test]
fn bytes_flow_only_while_a_window_is_open_and_nothing_is_lost() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let config = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).section(WINDOWS);
    let mut agent = config.start()?;
    agent.wait_until_online()?;
    let (mut tally, mut sink) = (Tally::default(), agent.sink());
    scene.post_a_stored_one(&agent, 0, &mut tally)?;
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;

    agent.wait_for_status("the window ends", WINDOW_WITHIN, |status| status.link == LinkState::Resting)?;
    let rests = (link.meter().bytes(), link.accepted());
    let shown = "the page tells a rest from a loss";
    wait::until_true(shown, AT_ONCE, || Ok(scene.cloud.get("/api/devices")?[0]["state"] == "resting"))?;
    let (answer, took) = post_a_stored_one(&agent, 1)?;
    ensure!(answer.provisional && took < AT_ONCE, "nobody waits for a radio that rests: {answer:?} after {took:?}");
    tally.answered(&answer, None);
    for index in 100..120 {
        scene.post(&agent, index, &mut tally)?;
    }
    // What is wanted meanwhile: settings that go on trial, and a command.
    let operator = Operator::at(scene.broker()?)?;
    operator.desire("device-1", 1, json!({"broker": {"keep_alive_s": 25}}))?;
    let pause = r#"{"id": "1", "command": "pause", "args": {"source": "pictures"}}"#;
    operator.publish(&Topic::DownCommand(DeviceId::new("device-1")?), pause, false)?;
    let opens = wait::until_true("the next window begins", WINDOW_WITHIN, || {
        let (used, status) = ((link.meter().bytes(), link.accepted()), agent.http.status()?);
        let resting = status.link == LinkState::Resting;
        ensure!(!resting || used == rests, "{used:?} after {rests:?} bytes and connections: the radio was used");
        ensure!(!resting || status.queue.waiting > 0, "nothing waits: {status:?}");
        Ok(!resting)
    });
    opens.with_context(|| agent.log_end())?;

    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    let done = |report: &Reported| {
        let applied = report.last.as_ref().is_some_and(|last| last.outcome == SettingsOutcome::Applied);
        report.version == 1 && applied && !report.paused.is_empty()
    };
    operator.wait_for_report("device-1", "what was wanted is done", WINDOW_WITHIN, done)?;
    agent.stop()
}

/// The answer to a picture that was deferred and stored, and how long its caller waited.
fn post_a_stored_one(agent: &Agent, first_seed: u64) -> Result<(Answer, Duration)> {
    for seed in first_seed..first_seed + 50 {
        let picture = noise_png(PICTURE_BYTES, seed)?;
        let start = Instant::now();
        let answer = agent.http.post("pictures", &format!("&wait_ms={WAIT_MS}"), "image/png", &picture)?;
        if answer.revision > 0 || answer.case == Some(CaseFate::Stored) {
            return Ok((answer, start.elapsed()));
        }
    }
    anyhow::bail!("none of 50 pictures was deferred and stored")
}
