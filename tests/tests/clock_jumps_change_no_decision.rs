//! The wall clock says 1970, 2038, yesterday or next decade: answers, waits, links and corrections go on as they were.
//!
//! The agent runs with a false wall clock (libfaketime, the other clocks left alone) that is set anew while it runs,
//! online and offline.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, LinkState};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{Agent, FaultProxy, Scene, Tally, skip, wait};

/// What the wall clock is set to, one after the other.
const WALLS: &[&str] = &[
    "1970-01-01 00:00:10",
    "2038-01-19 03:14:00", // seconds before a signed 32-bit clock runs over
    "2026-06-01 12:00:00",
    "2026-05-31 12:00:00", // a day back
    "2036-06-01 12:00:00", // ten years forward
];

/// The library looks at the file at every reading of the clock; this is for the agent's own pace.
const SHOWN_WITHIN: Duration = Duration::from_secs(60);

/// No case is older than this test has taken since, but for rounding.
const ROUNDING: Duration = Duration::from_secs(2);

#[test]
fn the_wall_clock_is_for_people() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let Some(library) = faketime() else {
        skip::skipped("libfaketime is not installed; on Debian: apt-get install faketime");
        return Ok(());
    };
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let wall = scene.dir().join("wall");
    set(&wall, WALLS[0])?;
    let config = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address()));
    let mut agent = config
        .variable("LD_PRELOAD", &library.display().to_string())
        .variable("FAKETIME_TIMESTAMP_FILE", &wall.display().to_string())
        .variable("FAKETIME_NO_CACHE", "1")
        .variable("FAKETIME_DONT_FAKE_MONOTONIC", "1")
        .start()?;
    agent.wait_until_online()?;
    let mut tally = Tally::default();
    let first = answer_under(&scene, &agent, &mut tally, &wall, WALLS[0])?;
    let mut last = first;

    // Online: nothing breaks the connection that is there.
    for time in &WALLS[1..] {
        let answer = answer_under(&scene, &agent, &mut tally, &wall, time)?;
        ensure!(answer.captured.powered_ms >= last.captured.powered_ms, "the powered clock ran backwards at {time}");
        last = answer;
    }
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    assert_eq!((link.accepted(), agent.http.status()?.link), (1, LinkState::Online), "a jump broke the link");

    // Offline: what waits does not age by a jump, and is dialled for in time.
    link.cut();
    agent.wait_for_status("the cut is seen", SHOWN_WITHIN, |status| status.link == LinkState::Offline)?;
    let since = Instant::now();
    for time in WALLS {
        answer_under(&scene, &agent, &mut tally, &wall, time)?;
        let queue = agent.http.status()?.queue;
        let age_max = since.elapsed() + ROUNDING;
        ensure!(
            queue.oldest_s.is_some_and(|age| Duration::from_secs(age) < age_max),
            "at {time} the oldest case is {queue:?}, after {age_max:?}"
        );
    }
    link.pass();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

/// Sets the clock, sees that the agent has it, and returns a stored answer given under it.
fn answer_under(scene: &Scene, agent: &Agent, tally: &mut Tally, wall: &Path, time: &str) -> Result<Answer> {
    set(wall, time)?;
    let year = time[..4].parse::<u64>()?;
    let mut index = 0;
    wait::until(&format!("an answer shows {time}"), SHOWN_WITHIN, || {
        index += 1;
        let answer = scene.post_a_stored_one(agent, index, tally)?;
        let shown = answer.captured.wall_ms.context("no wall time")?;
        // Years by their mean length: good enough to tell these apart.
        Ok((1970 + shown / 31_556_952_000 == year).then_some(answer))
    })
}

/// The clock goes on from `time`; a torn file would be no time at all.
fn set(wall: &Path, time: &str) -> Result<()> {
    let next = wall.with_extension("next");
    std::fs::write(&next, format!("@{time}\n"))?;
    Ok(std::fs::rename(next, wall)?)
}

fn faketime() -> Option<PathBuf> {
    let inside = |dir: std::fs::DirEntry| dir.path().join("faketime/libfaketimeMT.so.1");
    let dirs = std::fs::read_dir("/usr/lib").ok()?.flatten();
    dirs.map(inside).find(|path| path.is_file())
}
