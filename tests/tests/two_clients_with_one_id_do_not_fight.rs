//! A second client with the device's id: the one that was thrown out says so and stays away for minutes.
//!
//! Two devices that were given one id by mistake must not throw each other out all day.

use std::time::Duration;

use anyhow::Result;
use hedge_proto::LinkState;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{FaultProxy, Scene, Tally, skip, wait};

const TAKEN_OVER_WITHIN: Duration = Duration::from_secs(10);

/// A device that dialled again as after any other loss would have done so several times by then.
const WATCHED: Duration = Duration::from_secs(45);

#[test]
fn the_one_thrown_out_waits_and_says_why() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let (first_way, second_way) = (FaultProxy::start(scene.broker()?)?, FaultProxy::start(scene.broker()?)?);
    let device = |name: &str, way: &FaultProxy| {
        let broker = format!("[broker]\nurl = \"mqtt://{}\"\nclient_id = \"twin\"", way.address());
        scene.doubter(name).section(&broker).start()
    };
    let mut first = device("device-1", &first_way)?;
    first.wait_until_online()?;
    let mut second = device("device-2", &second_way)?;
    second.wait_until_online()?;

    let status = first.wait_for_status("the first is thrown out", TAKEN_OVER_WITHIN, |status| {
        status.link == LinkState::Offline
    })?;
    assert!(status.link_reason.contains("client id"), "it says `{}`", status.link_reason);
    wait::pause(WATCHED);
    assert_eq!((first_way.accepted(), second_way.accepted()), (1, 1), "they throw each other out");
    assert_eq!(first.http.status()?.link_reason, status.link_reason, "it still says why");

    // The one thrown out answers on, and the other one works.
    scene.post_a_stored_one(&first, 0, &mut Tally::default())?;
    let mut tally = Tally::default();
    scene.post_a_stored_one(&second, 0, &mut tally)?;
    let mut sink = second.sink();
    all_arrive_once(&mut second, &mut sink, &mut tally)?;
    first.stop()?;
    second.stop()
}
