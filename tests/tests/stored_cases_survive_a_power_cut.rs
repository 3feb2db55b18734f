//! The power goes while cases are stored and dropped, again and again on one disk: an ext4 file system on a loop
//! device whose image is copied as it is, and mounted.
//!
//! A round is one cut. Cuts by the thousand, torn and reordered, are tested below the log in `agent/outbox/src/tests`.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use hedge_proto::CaseFate;
use hedge_tests::interface::Interface;
use hedge_tests::ledger::Picture;
use hedge_tests::soak::{self, Chance};
use hedge_tests::{AgentConfig, Ext4, Ledger, skip, wait};

/// In CI; a hundred take about four minutes.
const CUTS: u32 = 10;

const WRITERS: u64 = 4;

/// From a dozen records a segment to hundreds.
const PICTURE_BYTES: std::ops::Range<u64> = 400..40_000;

/// Small enough that segments come and go: over 100 cuts the log is rewritten many times.
const KEPT_MAX: usize = 300;

#[test]
fn the_power_goes_while_cases_are_stored_and_dropped() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_ext4() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut disk = Ext4::make(dir.path(), 64)?;
    let config = AgentConfig::new(dir.path(), "device-1").state_dir(&disk.path());
    let config = config.model_keeping("fashion-small", 1.0).http_source("pictures");
    let mut agent = config.section("[outbox]\nfree_bytes_min = 1_000_000").start()?;
    let (ledger, mut chance) = (Ledger::default(), Chance::new());
    let mut checked = 0;
    for cut in 0..soak::rounds(CUTS) {
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| -> Result<()> {
            for _ in 0..WRITERS {
                let (http, writers_chance, ledger, stop) = (agent.http.clone(), chance.branch(), &ledger, &stop);
                scope.spawn(move || write(&http, ledger, writers_chance, stop));
            }
            // Which write the power cuts into is left to chance.
            wait::pause(Duration::from_millis(chance.within(50..600)));
            let killed = agent.kill();
            stop.store(true, Ordering::Relaxed);
            killed
        })?;
        disk.cut_power()?;
        agent.start_again().with_context(|| format!("after cut {cut}"))?;
        checked += ledger.check(&agent.http).with_context(|| format!("after cut {cut}"))?;
        let queue = agent.http.status()?.queue;
        ensure!(queue.damaged_records == 0, "after cut {cut} {} records are damaged", queue.damaged_records);
        let stored = ledger.stored();
        for id in stored.iter().take(stored.len().saturating_sub(KEPT_MAX)) {
            ledger.drop_case(&agent.http, id)?;
        }
    }
    eprintln!("{checked} times a stored case was looked for after a cut, and was there whole");
    assert!(checked > 0, "nothing was stored, so nothing is shown");
    agent.stop()
}

/// Stores and drops until the agent is gone.
fn write(http: &Interface, ledger: &Ledger, mut chance: Chance, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        if write_one(http, ledger, &mut chance).is_err() {
            return; // the agent is dead; what it said before is in the ledger
        }
    }
}

fn write_one(http: &Interface, ledger: &Ledger, chance: &mut Chance) -> Result<()> {
    let bytes = usize::try_from(chance.within(PICTURE_BYTES))?;
    let fate = ledger.post(http, "pictures", Picture { bytes, seed: chance.within(1..u64::MAX) })?;
    ensure!(!matches!(fate, CaseFate::Refused(_)), "refused: {fate:?}");
    if chance.happens(40) {
        let stored = ledger.stored();
        let pick = usize::try_from(chance.within(0..stored.len().max(1) as u64))?;
        let id = stored.get(pick).ok_or_else(|| anyhow!("nothing is stored"))?;
        ledger.drop_case(http, id)?;
    }
    Ok(())
}
