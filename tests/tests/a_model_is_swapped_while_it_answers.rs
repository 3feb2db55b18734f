//! Another bundle takes a model's place while samples come, again and again.

use std::collections::BTreeSet;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use hedge_tests::{Agent, AgentConfig, places, skip, wait};
use rustix::process::{Pid, Signal, kill_process};

const SWAPS: u32 = 200;

const WITHIN: Duration = Duration::from_secs(60);

/// What memory may grow by over all swaps; one model that is left behind each time would be hundreds of them.
const GROWTH_BYTES_MAX: u64 = 24 << 20;

/// A copy of the bundle that says it is of this version.
fn bundle(dir: &Path, version: u32) -> Result<()> {
    let (from, to) = (places::model("fashion-small"), dir.join(version.to_string()));
    for folder in ["", "golden"] {
        std::fs::create_dir_all(to.join(folder))?;
        for entry in std::fs::read_dir(from.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), to.join(folder).join(entry.file_name()))?;
            }
        }
    }
    let manifest = std::fs::read_to_string(from.join("manifest.toml"))?;
    let lines = manifest.lines().map(|line| match line.split_once('=') {
        Some((key, _)) if key.trim() == "version" => format!("version = \"{version}\""),
        _ => line.to_owned(),
    });
    Ok(std::fs::write(to.join("manifest.toml"), lines.collect::<Vec<_>>().join("\n"))?)
}

fn point(dir: &Path, to: &str) -> Result<()> {
    symlink(to, dir.join("next"))?;
    Ok(std::fs::rename(dir.join("next"), dir.join("current"))?)
}

fn timed<T>(f: impl FnOnce() -> Result<T>) -> Result<Duration> {
    let begun = Instant::now();
    f().map(|_| begun.elapsed())
}

fn p99(mut took: Vec<Duration>) -> Duration {
    took.sort();
    took[took.len() * 99 / 100]
}

fn memory(agent: &Agent) -> Result<u64> {
    Ok(agent.http.status()?.board.rss_bytes.unwrap_or_default())
}

#[test]
fn no_sample_fails_while_models_are_swapped_and_what_cannot_be_loaded_changes_nothing() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let bundles = dir.path().join("bundles");
    (1..=2).try_for_each(|version| bundle(&bundles, version))?;
    point(&bundles, "1")?;
    let model = format!("[[model]]\nname = \"m\"\nbundle = \"{}\"", bundles.join("current").display());
    let mut agent = AgentConfig::new(dir.path(), "device-1").section(&model).http_source("door").start()?;
    let picture = std::fs::read(places::model("fashion-small").join("golden/test-1.png"))?;
    let answer = |agent: &Agent| agent.http.post("door", "", "image/png", &picture);
    ensure!(answer(&agent)?.model.version == "1");
    ensure!(agent.http.status()?.model_figures.values().all(|figures| figures.local), "put there by hand, and marked");
    let id = agent.program().id().context("a process")?;
    let process = Pid::from_raw(id.try_into()?).context("a process")?;

    let calm: Vec<Duration> = (0..500).map(|_| timed(|| answer(&agent))).collect::<Result<_>>()?;
    let (done, answered, took) = (AtomicBool::new(false), AtomicU64::new(0), Mutex::new(Vec::new()));
    let swapped = std::thread::scope(|scope| -> Result<u64> {
        let load = scope.spawn(|| -> Result<BTreeSet<String>> {
            let mut versions = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                let begun = Instant::now();
                versions.insert(answer(&agent)?.model.version);
                took.lock().map_err(|_| anyhow::anyhow!("a panic"))?.push(begun.elapsed());
                answered.fetch_add(1, Ordering::Relaxed);
            }
            Ok(versions)
        });
        let swap = || -> Result<u64> {
            let mut early = 0;
            for round in 1..=SWAPS {
                let version = (1 + round % 2).to_string();
                point(&bundles, &version)?;
                kill_process(process, Signal::HUP)?;
                let until = Instant::now() + WITHIN;
                while answer(&agent)?.model.version != version {
                    ensure!(Instant::now() < until, "version {version} never answered");
                }
                if round == SWAPS / 4 {
                    early = memory(&agent)?;
                }
            }
            Ok(early)
        };
        let early = swap();
        done.store(true, Ordering::Relaxed);
        let versions = load.join().map_err(|_| anyhow::anyhow!("the load panicked"))??;
        ensure!(versions.len() == 2, "{versions:?} answered");
        early
    })?;
    ensure!(answered.load(Ordering::Relaxed) > u64::from(SWAPS));
    // A figure, not a condition: two callers on a shared machine.
    let took = took.into_inner().map_err(|_| anyhow::anyhow!("a panic"))?;
    println!("99 of 100 answers: {:.1?} in calm, {:.1?} during {SWAPS} swaps", p99(calm), p99(took));
    let grown = memory(&agent)?.saturating_sub(swapped);
    ensure!(grown <= GROWTH_BYTES_MAX, "memory grew by {grown} bytes");

    // A bundle that cannot be read is said, and the one before answers on.
    std::fs::create_dir(bundles.join("3"))?;
    point(&bundles, "3")?;
    kill_process(process, Signal::HUP)?;
    wait::until_true("it is said", WITHIN, || Ok(agent.log().contains("the one before answers on")))?;
    ensure!(answer(&agent)?.model.version == "1");
    agent.stop()
}
