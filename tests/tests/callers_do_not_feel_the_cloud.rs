//! An application gets its answers as fast without the cloud as with it.
//!
//! 50 pictures a second are posted whatever happens, in windows with and without a link; only windows in which the
//! link is in its wanted state from beginning to end are compared. A round is one window of each kind; `cargo xtask
//! soak callers_do_not_feel_the_cloud --rounds N` compares more of them.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hedge_proto::{LinkState, Outcome, Telemetry};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::soak::rounds;
use hedge_tests::{Agent, FaultProxy, Load, Posted, Scene, Tally, skip, wait};

const ROUNDS: u32 = 3;

/// So often a window is begun anew because the link changed in it.
const WINDOWS_MAX: u32 = 3;

/// 250 posts: the 99th percentile leaves out the two slowest.
const WINDOW: Duration = Duration::from_secs(5);

const POSTS_PER_S: f64 = 50.0;

/// Keeps about three of four pictures.
const SCORE_MIN: f32 = 0.9;

const DEFERRED_SHARE_MIN: f64 = 0.2;

/// Offline may be slower by half, or by so much where half is next to nothing.
const SLOWER_MAX: Duration = Duration::from_millis(15);

/// The longest wait between two dials, and a busy machine.
const CHANGE_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn answers_come_as_fast_offline_as_online() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let mut agent = hedge_tests::AgentConfig::new(scene.dir(), "device-1")
        .model_keeping("fashion-small", SCORE_MIN)
        .http_source("pictures")
        .corrections_file()
        .broker(&format!("mqtt://{}", link.address()))
        .start()?;
    agent.wait_until_online()?;
    let load = Load::start(&agent.http, POSTS_PER_S)?;
    let mut tally = Tally::default();
    let (mut online, mut offline) = (Vec::new(), Vec::new());
    for round in 0..rounds(ROUNDS) {
        link.pass();
        online.push(window(&mut agent, &load, &mut tally, |status| status.link == LinkState::Online)?);
        link.cut();
        let is_offline = |status: &Telemetry| matches!(status.link, LinkState::Offline | LinkState::Connecting);
        offline.push(window(&mut agent, &load, &mut tally, is_offline)?);
        eprintln!("round {round}: 99 % within {:.1?} online, {:.1?} offline", online.last(), offline.last());
    }
    note(load.stop()?, &mut tally)?;
    link.pass();
    let totals = tally.totals();
    let share = totals.deferred as f64 / totals.samples as f64;
    let (online, offline) = (median(online), median(offline));
    eprintln!("median: {online:.1?} online, {offline:.1?} offline; {:.0} % deferred", 100.0 * share);
    ensure!(share >= DEFERRED_SHARE_MIN, "only {:.0} % were deferred: the test shows little", 100.0 * share);
    let bound = online.mul_f64(1.5).max(online + SLOWER_MAX);
    ensure!(offline <= bound, "99 % within {online:?} online, but {offline:?} offline");
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

/// The 99th percentile of how long the answers of one window took.
fn window(agent: &mut Agent, load: &Load, tally: &mut Tally, is_wanted: fn(&Telemetry) -> bool) -> Result<Duration> {
    let mut windows = 0..WINDOWS_MAX;
    let (start, mut took) = loop {
        ensure!(windows.next().is_some(), "the link changed within each of {WINDOWS_MAX} windows");
        agent.wait_for_status("the link is as this window wants it", CHANGE_WITHIN, is_wanted)?;
        note(load.collect(), tally)?;
        let start = Instant::now();
        wait::pause(WINDOW);
        let status = agent.http.status()?;
        let took = note(load.collect(), tally)?;
        if is_wanted(&status) {
            break (start, took);
        }
        eprintln!("a window is not compared: {:?}, {}", status.link, status.link_reason);
    };
    took.retain(|(due, _)| *due >= start);
    let mut took: Vec<_> = took.into_iter().map(|(_, took)| took).collect();
    took.sort_unstable();
    ensure!(took.len() >= 100, "only {} answers in a window", took.len());
    Ok(took[took.len() * 99 / 100])
}

/// Counts the answers; returns when each was due and how long it took.
fn note(posts: Vec<Posted>, tally: &mut Tally) -> Result<Vec<(Instant, Duration)>> {
    let count = |post: Posted| {
        let answer = post.outcome?;
        ensure!((answer.case.is_some()) == (answer.decision.outcome == Outcome::Defer), "{answer:?}");
        tally.answered(&answer, None);
        Ok((post.due, post.took))
    };
    posts.into_iter().map(count).collect()
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}
