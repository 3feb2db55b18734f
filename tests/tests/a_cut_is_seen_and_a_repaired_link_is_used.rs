//! The `lan` profile's promise: offline within 45 s of a cut, online within 60 s of its repair.
//!
//! A stalled proxy goes on acknowledging, dropped packets do not; an idle device has only its keep-alive, a busy one
//! talks into the void. All four are tried. A round is one outage; `cargo xtask soak
//! a_cut_is_seen_and_a_repaired_link_is_used --rounds 25` is the whole.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hedge_proto::{LinkState, Telemetry};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::soak::{Chance, rounds};
use hedge_tests::{Agent, CloudSide, FaultProxy, Load, Scene, Tally, skip, wait};

const ROUNDS: u32 = 1;

const SEEN_WITHIN: Duration = Duration::from_secs(45);

const USED_WITHIN: Duration = Duration::from_secs(60);

/// How long an outage goes on after it was seen: dials fail, and their waits grow.
const OUTAGE_MS_MAX: u64 = 15_000;

const BUSY_POSTS_PER_S: f64 = 5.0;

/// A way that can be broken.
trait Way {
    fn break_it(&self) -> Result<()>;
    fn repair(&self) -> Result<()>;
}

impl Way for FaultProxy {
    fn break_it(&self) -> Result<()> {
        self.stall();
        Ok(())
    }

    fn repair(&self) -> Result<()> {
        self.pass();
        Ok(())
    }
}

impl Way for CloudSide {
    fn break_it(&self) -> Result<()> {
        self.drop_packets()
    }

    fn repair(&self) -> Result<()> {
        self.repair()
    }
}

#[test]
fn stalled_while_idle() -> Result<()> {
    stalled(false)
}

#[test]
fn stalled_while_busy() -> Result<()> {
    stalled(true)
}

#[test]
fn packets_dropped_while_idle() -> Result<()> {
    packets_dropped(false)
}

#[test]
fn packets_dropped_while_busy() -> Result<()> {
    packets_dropped(true)
}

fn stalled(busy: bool) -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let agent = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).start()?;
    outages(agent, &link, busy)
}

fn packets_dropped(busy: bool) -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() || !skip::has_namespaces() {
        return Ok(());
    }
    let side = CloudSide::new()?;
    let scene = Scene::stub(&MosquittoSetup { far: Some(&side), ..Default::default() })?;
    let agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    outages(agent, &side, busy)
}

fn outages(mut agent: Agent, way: &impl Way, busy: bool) -> Result<()> {
    let mut chance = Chance::new();
    let load = if busy { Some(Load::start(&agent.http, BUSY_POSTS_PER_S)?) } else { None };
    for round in 0..rounds(ROUNDS) {
        agent.wait_until_online()?;
        wait::pause(Duration::from_millis(chance.within(0..3000)));
        let start = Instant::now();
        way.break_it()?;
        agent.wait_for_status("the outage is seen", SEEN_WITHIN, is_offline)?;
        let seen = start.elapsed();
        wait::pause(Duration::from_millis(chance.within(0..OUTAGE_MS_MAX)));
        let start = Instant::now();
        way.repair()?;
        agent.wait_for_status("the repair is used", USED_WITHIN, |status| status.link == LinkState::Online)?;
        eprintln!("round {round}: seen after {seen:.1?}, used {:.1?} after its repair", start.elapsed());
    }
    if let Some(load) = load {
        everything_posted_arrives(&mut agent, load)?;
    }
    agent.stop()
}

fn is_offline(status: &Telemetry) -> bool {
    matches!(status.link, LinkState::Offline | LinkState::Connecting)
}

fn everything_posted_arrives(agent: &mut Agent, load: Load) -> Result<()> {
    let mut tally = Tally::default();
    for post in load.stop()? {
        tally.answered(&post.outcome?, None);
    }
    ensure!(tally.totals().deferred > 0, "nothing was deferred: the test shows nothing");
    let mut sink = agent.sink();
    all_arrive_once(agent, &mut sink, &mut tally)
}
