//! What the cloud has is not sent to it again: not when its verdict was lost, not when it is slower than the device.
//!
//! Counted in bytes on the wire. A first part without faults shows what a case costs; what the faulty part costs
//! beyond that may be at most 1 % of its payloads. A round is one fault; `cargo xtask soak no_payload_travels_twice
//! --rounds N` has N of each kind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseFate, LinkState};
use hedge_tests::fashion::noise_png;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::soak::rounds;
use hedge_tests::{Agent, FaultProxy, Scene, Tally, skip, wait};
use rustix::process::Signal;

const ROUNDS: u32 = 1;

const CASES_PER_ROUND: u64 = 12;

/// Large beside what surrounds it; one that travels twice is far more than 1 % of a round.
const PAYLOAD_BYTES: usize = 100_000;

const RESENT_SHARE_MAX: f64 = 0.01;

/// Asking, dialling and questions that double their waits.
const ANSWERED_WITHIN: Duration = Duration::from_secs(120);

/// Longer than the device waits before it asks.
const CLOUD_STOPPED_FOR: Duration = Duration::from_secs(20);

#[test]
fn lost_verdicts_and_a_slow_cloud_cost_questions_only() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    // A case that a busy disk has not confirmed in time would travel uncounted.
    let config = scene.doubter("device-1").section("[outbox]\nstore_wait_ms = 20_000");
    let mut agent = config.broker(&format!("mqtt://{}", link.address())).start()?;
    agent.wait_until_online()?;
    let mut poster = Poster::default();

    poster.post(&agent)?;
    poster.wait_until_answered(&mut agent)?;
    let before = link.meter().up_bytes;
    poster.post(&agent)?;
    poster.wait_until_answered(&mut agent)?;
    let undisturbed = link.meter().up_bytes - before;
    let payloads = CASES_PER_ROUND * PAYLOAD_BYTES as u64;
    ensure!(undisturbed > payloads, "the cases did not pass through the proxy");

    for round in 0..rounds(ROUNDS) {
        let before = link.meter().up_bytes;
        lose_the_verdicts(&mut agent, &scene, &link, &mut poster)?;
        check("lost verdicts", round, link.meter().up_bytes - before, undisturbed)?;
        let before = link.meter().up_bytes;
        stop_the_cloud_for_a_while(&mut agent, &mut scene, &mut poster)?;
        check("a stopped cloud", round, link.meter().up_bytes - before, undisturbed)?;
    }
    agent.stop()
}

fn check(what: &str, round: u32, bytes: u64, undisturbed: u64) -> Result<()> {
    let share = (bytes as f64 - undisturbed as f64) / (CASES_PER_ROUND * PAYLOAD_BYTES as u64) as f64;
    eprintln!(
        "round {round}, {what}: {bytes} bytes up, {undisturbed} undisturbed: {:+.2} % of payloads",
        100.0 * share
    );
    ensure!(share <= RESENT_SHARE_MAX, "{what}: {:.1} % of payload bytes were sent again", 100.0 * share);
    Ok(())
}

/// Everything that is sent reaches the cloud, and nothing it says reaches the device before the connection is gone.
fn lose_the_verdicts(agent: &mut Agent, scene: &Scene, link: &FaultProxy, poster: &mut Poster) -> Result<()> {
    let recorded = || -> Result<u64> {
        let figures = scene.cloud.get("/api/figures")?;
        figures["cases"].as_u64().with_context(|| format!("no `cases` in {figures}"))
    };
    let before = recorded()?;
    link.deafen();
    poster.post(agent)?;
    // The device waits for a word before it sends more than its share.
    wait::until_true("the cloud has recorded all that was sent", ANSWERED_WITHIN, || {
        let new = recorded()? - before;
        Ok(new > 0 && new == agent.http.status()?.queue.in_flight)
    })?;
    link.cut();
    agent.wait_for_status("the cut is seen", ANSWERED_WITHIN, |status| status.link != LinkState::Online)?;
    link.pass();
    poster.wait_until_answered(agent)
}

/// The broker takes everything, and nobody reads it until the device has become impatient.
fn stop_the_cloud_for_a_while(agent: &mut Agent, scene: &mut Scene, poster: &mut Poster) -> Result<()> {
    scene.cloud.program().signal(Signal::STOP)?;
    poster.post(agent)?;
    wait::pause(CLOUD_STOPPED_FOR);
    scene.cloud.program().signal(Signal::CONT)?;
    poster.wait_until_answered(agent)
}

#[derive(Default)]
struct Poster {
    seed: u64,
    open: Vec<Answer>,
}

impl Poster {
    /// Until as many as make a round are stored.
    fn post(&mut self, agent: &Agent) -> Result<()> {
        let mut stored = 0;
        while stored < CASES_PER_ROUND {
            self.seed += 1;
            let answer = agent.http.post("pictures", "", "image/png", &noise_png(PAYLOAD_BYTES, self.seed)?)?;
            if answer.case == Some(CaseFate::Stored) {
                stored += 1;
                self.open.push(answer);
            }
        }
        Ok(())
    }

    fn wait_until_answered(&mut self, agent: &mut Agent) -> Result<()> {
        let mut tally = Tally::default();
        self.open.drain(..).for_each(|answer| tally.answered(&answer, None));
        let outcome = wait::until_true("all are answered", ANSWERED_WITHIN, || {
            agent.program().check_alive()?;
            agent.corrections()?.iter().for_each(|correction| tally.corrected(correction));
            Ok(tally.totals().missing == 0)
        });
        outcome.with_context(|| format!("{:?}\n{}", agent.http.status(), agent.log_end()))
    }
}
