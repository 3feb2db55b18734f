//! A cut link, a broker that forgot everything, a cloud that is gone: answers go on, cases wait, nothing is lost.

use std::time::{Duration, Instant};

use anyhow::Result;
use hedge_proto::LinkState;
use hedge_tests::scene::{DRAIN_WAIT_MAX, all_arrive_once};
use hedge_tests::{FaultProxy, Scene, Tally, skip};

/// The `lan` profile's promise: an outage is seen within 45 s.
const OUTAGE_SEEN_WITHIN: Duration = Duration::from_secs(45);

/// Far more than one answer takes; far less than any wait for a network.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

const SAMPLES: usize = 30;

#[test]
fn a_cut_link_is_seen_and_what_was_queued_arrives_when_it_is_back() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let link = FaultProxy::start(scene.broker()?)?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).start()?;
    agent.wait_until_online()?;

    link.cut();
    let seen = |status: &hedge_proto::Telemetry| matches!(status.link, LinkState::Offline | LinkState::Connecting);
    agent.wait_for_status("the outage is seen", OUTAGE_SEEN_WITHIN, seen)?;
    let mut tally = Tally::default();
    answers_go_on(&scene, &agent, &mut tally)?;
    let promised = tally.totals().missing;
    agent.wait_for_status("what was promised waits", DRAIN_WAIT_MAX, |status| status.queue.waiting == promised)?;

    link.pass();
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

#[test]
fn a_stalled_link_is_seen_although_the_connection_stays_open() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let link = FaultProxy::start(scene.broker()?)?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).start()?;
    agent.wait_until_online()?;

    link.stall();
    let mut tally = Tally::default();
    answers_go_on(&scene, &agent, &mut tally)?;
    agent.wait_for_status("the outage is seen", OUTAGE_SEEN_WITHIN, |status| status.link != LinkState::Online)?;

    link.pass();
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

#[test]
fn a_broker_that_forgot_everything_costs_no_case() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut scene = Scene::mosquitto()?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    agent.wait_until_online()?;

    // The broker takes what is sent now, and nobody is there to whom it could give it.
    scene.cloud.kill()?;
    let mut tally = Tally::default();
    answers_go_on(&scene, &agent, &mut tally)?;
    scene.mosquitto.as_mut().expect("started with mosquitto").restart_wiped()?;
    let setup = scene.setup.clone();
    scene.cloud.start_again(&setup)?;

    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

/// Every answer comes at once, whatever the link does.
fn answers_go_on(scene: &Scene, agent: &hedge_tests::Agent, tally: &mut Tally) -> Result<()> {
    for index in 0..SAMPLES {
        let start = Instant::now();
        let answer = scene.post(agent, index, tally)?;
        assert!(answer.said.is_some());
        assert!(start.elapsed() < ANSWER_WITHIN, "an answer took {:?}", start.elapsed());
    }
    assert!(tally.totals().missing > 0, "nothing was deferred: the test shows nothing");
    Ok(())
}
