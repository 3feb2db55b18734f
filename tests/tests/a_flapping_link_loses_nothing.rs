//! A link that comes and goes every 1 to 30 s: cases trickle through, none is lost, and waiting costs no processor.
//!
//! A round is a minute; `cargo xtask soak a_flapping_link_loses_nothing --rounds 10` is the whole.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::soak::{Chance, rounds};
use hedge_tests::{FaultProxy, Load, Scene, Tally, skip, wait};

const ROUNDS: u32 = 1;

const ROUND: Duration = Duration::from_secs(60);

/// The shortest state of the link; the longest is 30 s, and short ones are as likely as long ones.
const FLAP_MIN: Duration = Duration::from_secs(1);

const FLAP_MAX_TO_MIN: f64 = 30.0;

/// Nothing may stand still for longer while something waits.
const WEDGED_AFTER: Duration = Duration::from_secs(120);

const POSTS_PER_S: f64 = 2.0;

/// What two pictures a second and some dials may cost, in a debug build: a loop that spins takes all of it.
const CPU_SHARE_MAX: f64 = 0.25;

/// Time without posts and without a link, after the flapping.
const QUIET: Duration = Duration::from_secs(10);

/// A device that has nothing to do but dial now and then.
const QUIET_CPU_SHARE_MAX: f64 = 0.05;

#[test]
fn cases_trickle_through_and_waiting_is_free() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let mut chance = Chance::new();
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).start()?;
    agent.wait_until_online()?;
    let load = Load::start(&agent.http, POSTS_PER_S)?;
    let (start, cpu) = (Instant::now(), agent.program().cpu()?);
    let mut sink = agent.sink();
    let mut tally = Tally::default();
    let (mut flaps, mut progress, mut stood_still) = (0, Instant::now(), Duration::ZERO);
    while start.elapsed() < ROUND * rounds(ROUNDS) {
        // Networks do not say goodbye: an orderly end is a broker's.
        match (flaps % 2, chance.happens(50)) {
            (1, _) => link.pass(),
            (_, true) => link.reset(),
            (_, false) => link.stall(),
        }
        flaps += 1;
        let exponent = chance.within(0..1000) as f64 / 1000.0;
        let until = Instant::now() + FLAP_MIN.mul_f64(FLAP_MAX_TO_MIN.powf(exponent));
        while Instant::now() < until {
            wait::pause(Duration::from_millis(200));
            agent.program().check_alive()?;
            for correction in sink.read_on()? {
                tally.corrected(&correction);
                progress = Instant::now();
            }
            stood_still = stood_still.max(progress.elapsed());
            ensure!(stood_still < WEDGED_AFTER, "nothing moves; status {:?}\n{}", agent.http.status(), agent.log_end());
        }
    }
    for post in load.stop()? {
        tally.answered(&post.outcome?, None);
    }
    let share = (agent.program().cpu()? - cpu).div_duration_f64(start.elapsed());
    eprintln!("{flaps} flaps, longest standstill {stood_still:.0?}, {:.1} % of a processor", 100.0 * share);
    ensure!(share < CPU_SHARE_MAX, "it took {:.0} % of a processor", 100.0 * share);

    link.cut();
    let (start, cpu) = (Instant::now(), agent.program().cpu()?);
    wait::pause(QUIET);
    let share = (agent.program().cpu()? - cpu).div_duration_f64(start.elapsed());
    eprintln!("quiet: {:.1} % of a processor", 100.0 * share);
    ensure!(share < QUIET_CPU_SHARE_MAX, "without a link and without work it took {:.0} %", 100.0 * share);

    link.pass();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}
