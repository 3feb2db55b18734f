//! A fleet of light devices at a real mosquitto and real clouds: how many cases are answered, how fast, and for how much.
//!
//! ```text
//! all connect and rest: RSS ─┬─► --rate: so many new cases a second, for --seconds ──────────────────────┬─► what is open is
//!                            └─► --herd: all go, keep so many cases each, and come back at the same time ┘   waited for
//! ```
//! mosquitto has the limits of `examples/mosquitto/hedge.conf`; the clouds answer each case at once, so that no model's
//! time counts. Everything shares this machine's processors, the devices too. Run it by `cargo xtask bench fleet`: the programs must be release builds.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints what it measured")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

mod device;

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hedge_proto::Topics;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Cloud, CloudSetup, Mosquitto, wait};
use serde_json::{Value, json};
use tokio::sync::watch;

use device::{Device, Fleet, LABEL, Stage, TASK};

/// What small cases share a message up to, as on a device that is not configured otherwise.
const BATCH_BYTES_MAX: u32 = 64 * 1024;

/// How long a fleet may take to connect.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(120);

/// Statuses are on record and buffers at rest by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// How many devices dial at the same time, except when they all come back at once.
const DIALS_MAX: u64 = 200;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 1000)]
    devices: usize,
    /// New cases a second, of all devices together
    #[arg(long, default_value_t = 0.0)]
    rate: f64,
    /// Bytes of each
    #[arg(long, default_value_t = 1024)]
    payload: usize,
    /// How long new cases are made
    #[arg(long, default_value_t = 20)]
    seconds: u64,
    /// Clouds that share the work
    #[arg(long, default_value_t = 1)]
    instances: usize,
    /// All devices come back at once, each with so many cases
    #[arg(long, default_value_t = 0)]
    herd: u64,
    /// Each case in a message of its own
    #[arg(long)]
    one_each: bool,
    /// How long open cases are waited for, in seconds
    #[arg(long, default_value_t = 240)]
    patience: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.devices > 0 && arguments.instances > 0, "there is nothing to measure");
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", measure(&arguments, &runtime)?);
    Ok(())
}

/// The programs.
struct Stand {
    clouds: Vec<Cloud>,
    mosquitto: Mosquitto,
    // Last, so that the programs end before their folder goes.
    _dir: tempfile::TempDir,
}

/// What the programs have used so far.
struct Used {
    cloud: Duration,
    broker: Duration,
    written: u64,
}

impl Stand {
    fn start(instances: usize) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let limits = MosquittoSetup { shipped_limits: true, ..MosquittoSetup::default() };
        let mosquitto = Mosquitto::start_with(dir.path(), &limits)?;
        let start = |number: usize| {
            let instance = format!("cloud-{number}");
            let cloud =
                Cloud::start(dir.path(), &CloudSetup { instance, ..CloudSetup::stub(&mosquitto.url(), TASK, LABEL) })?;
            cloud.wait_until_connected()?;
            anyhow::Ok(cloud)
        };
        let clouds = (1..=instances).map(start).collect::<Result<_>>()?;
        Ok(Self { clouds, mosquitto, _dir: dir })
    }

    fn ids(&mut self) -> Result<Vec<u32>> {
        self.clouds.iter_mut().map(|cloud| cloud.program().id().context("a cloud has ended")).collect()
    }

    fn used(&mut self) -> Result<Used> {
        let (mut cloud, mut written) = (Duration::ZERO, 0);
        for id in self.ids()? {
            cloud += hedge_tests::program::cpu(id)?;
            written += field(&format!("/proc/{id}/io"), "write_bytes:")?;
        }
        Ok(Used { cloud, broker: self.mosquitto.cpu()?, written })
    }

    fn rss_kib(&mut self) -> Result<u64> {
        self.ids()?.into_iter().map(|id| field(&format!("/proc/{id}/status"), "VmRSS:")).sum()
    }

    /// How long the first page's documents take.
    fn page(&self) -> Result<Duration> {
        let cloud = self.clouds.first().context("no cloud")?;
        let begun = Instant::now();
        for path in ["/api/figures", "/api/devices", "/api/cases"] {
            cloud.get(path)?;
        }
        Ok(begun.elapsed())
    }
}

fn field(file: &str, name: &str) -> Result<u64> {
    let text = std::fs::read_to_string(file)?;
    let value = text.lines().find_map(|line| line.strip_prefix(name)?.split_whitespace().next()?.parse().ok());
    value.with_context(|| format!("no {name} in {file}"))
}

fn measure(arguments: &Arguments, runtime: &tokio::runtime::Runtime) -> Result<Value> {
    let mut stand = Stand::start(arguments.instances)?;
    let every = Some(arguments.devices as f64 / arguments.rate).filter(|every| every.is_finite());
    let fleet = Arc::new(Fleet {
        broker: stand.mosquitto.address(),
        topics: Topics::new("")?,
        payload: vec![7; arguments.payload],
        batch_bytes_max: if arguments.one_each { 0 } else { BATCH_BYTES_MAX },
        every: every.map(Duration::from_secs_f64),
        kept: arguments.herd,
        counts: device::Counts::default(),
        begun: tokio::time::Instant::now(),
    });
    let (counts, (stage, stages)) = (&fleet.counts, watch::channel(Stage::Away));
    let rss_alone = stand.rss_kib()?;
    stage.send_replace(Stage::Idle);
    for number in 0..arguments.devices {
        let device = Device::new(fleet.clone(), stages.clone(), number)?;
        runtime.spawn(device.run(number as f64 / arguments.devices as f64));
        wait_for("some devices connect", || number as u64 + 1 < counts.connected.load(Ordering::Relaxed) + DIALS_MAX)?;
    }
    let all = arguments.devices as u64;
    let are_connected = |wanted: u64| counts.connected.load(Ordering::Relaxed) == wanted;
    wait_for("all devices connect", || are_connected(all))?;
    wait::pause(SETTLES_WITHIN);
    let rss_each = (stand.rss_kib()?.saturating_sub(rss_alone)) as f64 / all as f64;
    println!("{all} sessions; {rss_each:.1} KiB of RSS each in {} cloud processes", arguments.instances);

    if arguments.herd > 0 {
        stage.send_replace(Stage::Away);
        wait_for("all devices go", || are_connected(0))?;
    }
    let (before, begun) = (stand.used()?, Instant::now());
    stage.send_replace(Stage::Working);
    if every.is_some() {
        follow(counts, begun, Duration::from_secs(arguments.seconds), |_| false);
    }
    let in_time = counts.answered.load(Ordering::Relaxed) as f64 / begun.elapsed().as_secs_f64();
    stage.send_replace(Stage::Finishing);
    let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
    follow(counts, begun, begun.elapsed() + Duration::from_secs(arguments.patience), |counts| {
        of(&counts.answered) == of(&counts.made)
    });
    let took = begun.elapsed();
    let (after, page) = (stand.used()?, stand.page()?);
    let (made, answered) = (of(&counts.made), of(&counts.answered));
    let per_s =
        if arguments.rate > 0.0 && arguments.herd == 0 { in_time } else { answered as f64 / took.as_secs_f64() };
    let each =
        |before: Duration, after: Duration| ((after - before).as_micros() as f64 / answered.max(1) as f64).round();
    let written = (after.written - before.written) as f64 / (answered.max(1) as f64 * arguments.payload.max(1) as f64);
    let [p50, p99] = percentiles(&mut counts.took.lock().unwrap_or_else(PoisonError::into_inner));
    Ok(json!({
        "sessions": of(&counts.connected),
        "cases_per_s": per_s.round(),
        "verdict_ms": {"p50": p50, "p99": p99},
        "cpu_us_per_case": {"broker": each(before.broker, after.broker), "cloud": each(before.cloud, after.cloud)},
        "rss_kib_per_device": tenths(rss_each),
        "lost": made - answered,
        "twice": of(&counts.twice),
        "page_ms": tenths(page.as_secs_f64() * 1e3),
        "cases": made,
        "all_answered_s": tenths(took.as_secs_f64()),
        "sent_again": of(&counts.sent_again),
        "asked": of(&counts.asked),
        "busy": of(&counts.busy),
        "cut": of(&counts.cut),
        "written_per_payload_byte": tenths(written),
    }))
}

fn wait_for(what: &str, mut is_so: impl FnMut() -> bool) -> Result<()> {
    wait::until_true(what, CONNECT_WAIT_MAX, || Ok(is_so()))
}

/// Says every few seconds how it goes, until it is over or `until` after the beginning.
fn follow(counts: &device::Counts, begun: Instant, until: Duration, is_over: impl Fn(&device::Counts) -> bool) {
    const SAY_EVERY: Duration = Duration::from_secs(2);
    let (mut said, mut last) = (Instant::now(), counts.answered.load(Ordering::Relaxed));
    while begun.elapsed() < until && !is_over(counts) {
        wait::pause(Duration::from_millis(20));
        if said.elapsed() < SAY_EVERY {
            continue;
        }
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let answered = of(&counts.answered);
        println!(
            "{:>5.0} s: {:>6} made, {answered:>6} answered ({:.0}/s), {} sent again, {} asked about, {} busy, {} cut",
            begun.elapsed().as_secs_f64(),
            of(&counts.made),
            (answered - last) as f64 / said.elapsed().as_secs_f64(),
            of(&counts.sent_again),
            of(&counts.asked),
            of(&counts.busy),
            of(&counts.cut),
        );
        (said, last) = (Instant::now(), answered);
    }
}

/// In milliseconds; 0 where nothing was measured.
fn percentiles(took_us: &mut [u64]) -> [f64; 2] {
    took_us.sort_unstable();
    [50, 99].map(|percent| took_us.get(took_us.len() * percent / 100).map_or(0.0, |us| tenths(*us as f64 / 1e3)))
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
