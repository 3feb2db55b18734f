//! `kill -9` at any moment: what was said to be stored arrives, and nothing stands twice in the file.

use std::time::Duration;

use anyhow::Result;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{Agent, Scene, Tally, skip, wait};

const ROUNDS: usize = 20;

const SAMPLES_PER_ROUND: usize = 8;

#[test]
fn twenty_kills_lose_no_stored_case_and_correct_none_twice() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    let mut tally = Tally::default();
    for round in 0..ROUNDS {
        for sample in 0..SAMPLES_PER_ROUND {
            scene.post(&agent, round * SAMPLES_PER_ROUND + sample, &mut tally)?;
        }
        let_some_corrections_in(&agent, round % 4)?;
        agent.kill()?;
        agent.start_again()?;
    }
    let mut sink = agent.sink();
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

/// Lets the file grow by `more` lines, so that kills hit all stages: storing, sending, correcting, forgetting.
fn let_some_corrections_in(agent: &Agent, more: usize) -> Result<()> {
    let before = agent.corrections()?.len();
    // A device killed again before it was back online has none to show; that is a kill worth having, too.
    let grown = || Ok(agent.corrections()?.len() >= before + more);
    drop(wait::until_true("corrections arrive", Duration::from_secs(3), grown));
    Ok(())
}
