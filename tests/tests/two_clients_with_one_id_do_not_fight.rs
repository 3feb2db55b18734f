//! Two devices that were given one client id by mistake must not throw each other out all day.
//!
//! A broker may tell the one that is thrown out why. mosquitto only closes its connection, and closes it again each
//! time it comes back: a few such short sessions must mean the same.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hedge_proto::LinkState;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{Agent, FaultProxy, Scene, Tally, skip, wait};

/// A handful of sessions, the waits between them doubling from a second.
const GUESSED_WITHIN: Duration = Duration::from_secs(90);

/// A device that dialled again as after any other loss would have done so by then.
const WATCHED: Duration = Duration::from_secs(45);

#[test]
fn one_gives_way_and_says_why() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let ways = [FaultProxy::start(scene.broker()?)?, FaultProxy::start(scene.broker()?)?];
    let device = |name: &str, way: &FaultProxy| {
        let broker = format!("[broker]\nurl = \"mqtt://{}\"\nclient_id = \"twin\"", way.address());
        scene.doubter(name).section(&broker).start()
    };
    let mut first = device("device-1", &ways[0])?;
    first.wait_until_online()?;
    let mut second = device("device-2", &ways[1])?;

    let start = Instant::now();
    let what = "one of them says why it stays away";
    let first_gave_way = wait::until(what, GUESSED_WITHIN, || match (gave_way(&first)?, gave_way(&second)?) {
        (false, false) => Ok(None),
        (first, _) => Ok(Some(first)),
    });
    let accepted = || ways.each_ref().map(FaultProxy::accepted);
    let first_gave_way = first_gave_way.map_err(|error| {
        error.context(format!("dialled {:?} times;\n{}\n{}", accepted(), first.log_end(), second.log_end()))
    })?;
    eprintln!("after {:.1?} and {:?} dials", start.elapsed(), accepted());
    let (away, there) = if first_gave_way { (&mut first, &mut second) } else { (&mut second, &mut first) };
    there.wait_until_online()?;
    let dialled = accepted();
    wait::pause(WATCHED);
    assert_eq!(accepted(), dialled, "they go on throwing each other out");
    ensure!(gave_way(away)?, "it no longer says why: {}", away.http.status()?.link_reason);

    // The one that stays away answers on, and the other one works.
    scene.post_a_stored_one(away, 0, &mut Tally::default())?;
    let mut tally = Tally::default();
    scene.post_a_stored_one(there, 0, &mut tally)?;
    let mut sink = there.sink();
    all_arrive_once(there, &mut sink, &mut tally)?;
    first.stop()?;
    second.stop()
}

fn gave_way(agent: &Agent) -> Result<bool> {
    let status = agent.http.status()?;
    Ok(status.link == LinkState::Offline && status.link_reason.contains("client id"))
}
