//! 20 kbit/s and 600 ms each way: a case of 64 KiB arrives within 60 s over the connection that is there.
//!
//! A round is one case; `cargo xtask soak a_slow_link_makes_progress --rounds N` sends N, one after the other.

use std::time::{Duration, Instant};

use anyhow::Result;
use hedge_proto::{CaseFate, LinkState};
use hedge_tests::fashion::noise_png;
use hedge_tests::faults::Shape;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::soak::rounds;
use hedge_tests::{FaultProxy, Scene, skip};

const ROUNDS: u32 = 1;

const SLOW: Shape = Shape { latency: Duration::from_millis(600), bytes_per_s: Some(20_000 / 8) };

const CASE_BYTES: usize = 64 * 1024;

/// The payload alone takes 26 s.
const ARRIVES_WITHIN: Duration = Duration::from_secs(60);

#[test]
fn a_large_case_arrives_and_nothing_reconnects() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    link.shape(SLOW);
    // A case that a busy disk has not confirmed in time would travel, too, and take the time of the one that is measured.
    let config = scene.doubter("device-1").section("[outbox]\nstore_wait_ms = 20_000");
    let mut agent = config.broker(&format!("mqtt://{}", link.address())).start()?;
    agent.wait_until_online()?;
    let mut seed = 0;
    for round in 0..rounds(ROUNDS) {
        let start = Instant::now();
        let answer = loop {
            seed += 1;
            let answer = agent.http.post("pictures", "", "image/png", &noise_png(CASE_BYTES, seed)?)?;
            if answer.case == Some(CaseFate::Stored) {
                break answer;
            }
        };
        agent.wait_for_correction(&answer.id, ARRIVES_WITHIN)?;
        eprintln!("round {round}: corrected after {:.1?}", start.elapsed());
    }
    assert_eq!(link.accepted(), 1, "it has reconnected; the end of its log:\n{}", agent.log_end());
    assert_eq!(agent.http.status()?.link, LinkState::Online);
    agent.stop()
}
