//! Models that were damaged on purpose, one after the other, in the process in which a new bundle is tried: whatever the
//! runtime makes of them, that process ends by itself, in time, with a word or by a signal of its own.
//!
//! A round is one model. `cargo xtask soak no_model_takes_the_device_with_it --rounds 10000` tries as many.
#![allow(clippy::print_stderr, reason = "a soak says what came of it")]

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hedge_proto::Digest;
use hedge_tests::soak::{Chance, rounds};
use hedge_tests::{places, skip};

/// CI's share.
const MODELS: u32 = 60;

/// The processor's time of a trial is limited to two minutes.
const ENDS_WITHIN: Duration = Duration::from_secs(240);

const MODEL: &str = "int8.onnx";

/// What came of a trial.
#[derive(Debug, Default)]
struct Outcomes {
    passed: u32,
    refused: u32,
    killed: u32,
}

#[test]
fn a_damaged_model_ends_its_own_trial_and_nothing_else() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let (mut chance, dir) = (Chance::new(), tempfile::tempdir()?);
    let bundle = dir.path().join("bundle");
    let source = places::model("fashion-small");
    std::fs::create_dir_all(bundle.join("golden"))?;
    for file in ["labels.txt", "fp32.onnx", MODEL] {
        std::fs::copy(source.join(file), bundle.join(file))?;
    }
    for golden in std::fs::read_dir(source.join("golden"))? {
        let golden = golden?;
        std::fs::copy(golden.path(), bundle.join("golden").join(golden.file_name()))?;
    }
    let manifest = std::fs::read_to_string(source.join("manifest.toml"))?;
    let good = std::fs::read(source.join(MODEL))?;
    // As a damaged model is described that somebody has signed.
    let words = |model: &[u8]| format!("sha256 = \"{}\"\nbytes = {}", Digest::of(model), model.len());
    let described = words(&good);
    ensure!(manifest.contains(&described), "the manifest does not describe {MODEL}");

    let mut outcomes = Outcomes::default();
    try_it(&bundle, &mut outcomes, &manifest, &good)?;
    ensure!(outcomes.passed == 1, "the whole model does not pass: {outcomes:?}");
    for round in 0..rounds(MODELS) {
        let damaged = damaged(&good, &mut chance);
        let manifest = manifest.replace(&described, &words(&damaged));
        try_it(&bundle, &mut outcomes, &manifest, &damaged).with_context(|| format!("in round {round}"))?;
    }
    eprintln!("{outcomes:?}");
    ensure!(outcomes.refused > 0, "no damage was found: {outcomes:?}");
    Ok(())
}

fn try_it(bundle: &Path, outcomes: &mut Outcomes, manifest: &str, model: &[u8]) -> Result<()> {
    std::fs::write(bundle.join("manifest.toml"), manifest)?;
    std::fs::write(bundle.join(MODEL), model)?;
    let before = entries(bundle)?;
    let begun = Instant::now();
    let trial = Command::new(places::program("hedge-agent")?)
        .args(["bundle", "prove"])
        .arg(bundle)
        .args(["--variant", "int8"])
        .stdin(Stdio::null())
        .output()?;
    ensure!(begun.elapsed() < ENDS_WITHIN, "the trial took {} s", begun.elapsed().as_secs());
    let said = String::from_utf8_lossy(&trial.stdout).trim().to_owned();
    match trial.status.code() {
        Some(0) => {
            ensure!(said == "passed", "{said}");
            outcomes.passed += 1;
        }
        Some(1) => {
            ensure!(!said.is_empty() && !said.contains("panicked"), "refused without a reason: {said}");
            outcomes.refused += 1;
        }
        _ => outcomes.killed += 1,
    }
    ensure!(entries(bundle)? == before, "the trial has left something behind");
    Ok(())
}

fn entries(dir: &Path) -> Result<usize> {
    Ok(std::fs::read_dir(dir)?.count() + std::fs::read_dir(dir.join("golden"))?.count())
}

/// One of the ways in which a file goes wrong, or is made to.
fn damaged(good: &[u8], chance: &mut Chance) -> Vec<u8> {
    let mut bytes = good.to_vec();
    let length = bytes.len() as u64;
    let mut at = |most: u64| usize::try_from(chance.within(0..most)).unwrap_or(0);
    match at(6) {
        // Bits, here and there.
        0 => (0..=at(8)).for_each(|_| bytes[at(length)] ^= 1 << at(8)),
        // A number that becomes huge: lengths and dimensions are varints.
        1 => {
            let from = at(length - 10);
            bytes[from..from + 9].fill(0xff);
            bytes[from + 9] = 0x7f;
        }
        2 => bytes.truncate(at(length)),
        // A stretch of nothing, or of what stands elsewhere.
        3 => {
            let from = at(length - 64);
            bytes[from..from + 64].fill(0);
        }
        4 => {
            let (from, to, many) = (at(length - 256), at(length - 256), 1 + at(255));
            bytes.copy_within(from..from + many, to);
        }
        // Something taken out, so that all that follows stands elsewhere.
        _ => {
            let from = at(length - 64);
            bytes.drain(from..=from + at(63));
        }
    }
    bytes
}
