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
use hedge_tests::certificates::Authority;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Cloud, CloudSetup, Mosquitto, Postgres, wait};
use serde_json::{Value, json};
use tokio::sync::watch;

use device::{Device, Fleet, LABEL, Stage, TASK};

/// What small cases share a message up to, as on a device that is not configured otherwise.
const BATCH_BYTES_MAX: u32 = 64 * 1024;

/// How long a fleet may take to connect.
const CONNECT_WAIT_MAX: Duration = Duration::from_secs(120);

/// Statuses are on record and buffers at rest by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(3);

/// Between two kills, so that each comes in the middle of work.
const CASES_BETWEEN_KILLS: u64 = 200;

/// For what happens at once where nothing is wrong.
const KILL_WAIT_MAX: Duration = Duration::from_secs(120);

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
    /// The clouds keep their records together in a PostgreSQL, instead of each in a file
    #[arg(long)]
    postgres: bool,
    /// So many times one of the clouds is killed while cases are made, and started again (needs --postgres)
    #[arg(long, default_value_t = 0, requires = "postgres")]
    kills: usize,
    /// Devices connect by TLS
    #[arg(long)]
    tls: bool,
    /// All devices come back at once, each with so many cases
    #[arg(long, default_value_t = 0, num_args = 0..=1, default_missing_value = "20")]
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
    ensure!(
        arguments.kills == 0 || (arguments.instances > 1 && arguments.rate > 0.0),
        "--kills needs others that go on: give --instances of 2 or more, and a --rate"
    );
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    println!("{}", measure(&arguments, &runtime)?);
    Ok(())
}

/// The programs.
struct Stand {
    clouds: Vec<(Cloud, CloudSetup)>,
    mosquitto: Mosquitto,
    postgres: Option<Postgres>,
    authority: Option<Authority>,
    // Last, so that the programs end before their folder goes.
    _dir: tempfile::TempDir,
}

/// What the programs have used so far.
struct Used {
    cloud: Duration,
    broker: Duration,
    database: Duration,
    written: u64,
}

impl Stand {
    fn start(arguments: &Arguments) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let authority = arguments.tls.then(|| Authority::new(dir.path())).transpose()?;
        let limits = MosquittoSetup { shipped_limits: true, tls: authority.as_ref(), ..MosquittoSetup::default() };
        let mosquitto = Mosquitto::start_with(dir.path(), &limits)?;
        let postgres = arguments.postgres.then(|| Postgres::start(dir.path())).transpose()?;
        let start = |number: usize| {
            let instance = format!("cloud-{number}");
            let mut setup = CloudSetup { instance, ..CloudSetup::stub(&mosquitto.url(), TASK, LABEL) };
            setup.environment.extend(postgres.iter().map(|server| ("HEDGE_CLOUD_RECORDS".to_owned(), server.url())));
            let cloud = Cloud::start(dir.path(), &setup)?;
            cloud.wait_until_connected()?;
            anyhow::Ok((cloud, setup))
        };
        let clouds = (1..=arguments.instances).map(start).collect::<Result<_>>()?;
        Ok(Self { clouds, mosquitto, postgres, authority, _dir: dir })
    }

    fn ids(&mut self) -> Result<Vec<u32>> {
        self.clouds.iter_mut().map(|(cloud, _)| cloud.program().id().context("a cloud has ended")).collect()
    }

    fn used(&mut self) -> Result<Used> {
        let (mut cloud, mut written) = (Duration::ZERO, 0);
        for id in self.ids()? {
            cloud += hedge_tests::program::cpu(id)?;
            written += field(&format!("/proc/{id}/io"), "write_bytes:")?;
        }
        let database = self.postgres.as_ref().map_or(Ok(Duration::ZERO), Postgres::cpu)?;
        Ok(Used { cloud, broker: self.mosquitto.cpu()?, database, written })
    }

    /// Kills one cloud after the other while cases are made, and starts each again when the others have answered what was
    /// made until then. Returns when.
    fn kill_in_turn(&mut self, times: usize, counts: &device::Counts) -> Result<Vec<tokio::time::Instant>> {
        let of = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let mut killed = Vec::new();
        for turn in 0..times {
            let at = of(&counts.answered);
            wait::until_true("cases are answered", KILL_WAIT_MAX, || {
                Ok(of(&counts.answered) > at + CASES_BETWEEN_KILLS)
            })?;
            let mine = turn % self.clouds.len();
            self.clouds[mine].0.kill()?;
            killed.push(tokio::time::Instant::now());
            let made = of(&counts.made);
            wait::until_true("the others take over", KILL_WAIT_MAX, || Ok(of(&counts.answered) > made))?;
            let (cloud, setup) = &mut self.clouds[mine];
            cloud.start_again(setup)?;
            cloud.wait_until_connected()?;
        }
        Ok(killed)
    }

    /// Cases that any of the clouds says are waiting.
    fn left_waiting(&self) -> Result<u64> {
        let waiting = |(cloud, _): &(Cloud, CloudSetup)| {
            let figures = cloud.get("/api/figures")?;
            figures["waiting"].as_u64().context("how many wait")
        };
        self.clouds.iter().map(waiting).try_fold(0, |most, waiting| Ok(waiting?.max(most)))
    }

    fn rss_kib(&mut self) -> Result<u64> {
        self.ids()?.into_iter().map(|id| field(&format!("/proc/{id}/status"), "VmRSS:")).sum()
    }

    /// How long the first page's documents take.
    fn page(&self) -> Result<Duration> {
        let (cloud, _) = self.clouds.first().context("no cloud")?;
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
    let mut stand = Stand::start(arguments)?;
    let every = Some(arguments.devices as f64 / arguments.rate).filter(|every| every.is_finite());
    let fleet = Arc::new(Fleet {
        authority: stand.authority.as_ref().map(|authority| std::fs::read(authority.file())).transpose()?,
        payload: vec![7; arguments.payload],
        batch_bytes_max: if arguments.one_each { 0 } else { BATCH_BYTES_MAX },
        every: every.map(Duration::from_secs_f64),
        kept: arguments.herd,
        ..Fleet::at(stand.mosquitto.address())?
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
    let killed = stand.kill_in_turn(arguments.kills, counts)?;
    if every.is_some() && killed.is_empty() {
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
    let each = |before: Duration, after: Duration| {
        (after.saturating_sub(before).as_micros() as f64 / answered.max(1) as f64).round()
    };
    let payloads = answered.max(1) as f64 * arguments.payload.max(1) as f64;
    // What a killed cloud had used went with it.
    let is_whole = killed.is_empty();
    let written = is_whole.then(|| tenths(after.written.saturating_sub(before.written) as f64 / payloads));
    let cloud = is_whole.then(|| each(before.cloud, after.cloud));
    let took_each = counts.took.lock().unwrap_or_else(PoisonError::into_inner);
    let mut after_kill: Vec<_> = killed.iter().map(|killed| last_answer_after(*killed, &took_each)).collect();
    let [kill_p50, _, kill_max] = percentiles(&mut after_kill);
    let [p50, p99, _] = percentiles(&mut took_each.iter().map(|(_, took)| *took).collect::<Vec<_>>());
    let database = stand.postgres.is_some().then(|| each(before.database, after.database));
    let kills = (arguments.kills > 0)
        .then(|| json!({"kills": killed.len(), "open_answered_ms": {"p50": kill_p50, "max": kill_max}}));
    Ok(json!({
        "sessions": of(&counts.connected),
        "cases_per_s": per_s.round(),
        "verdict_ms": {"p50": p50, "p99": p99},
        "cpu_us_per_case": {
            "broker": each(before.broker, after.broker),
            "cloud": cloud,
            "database": database,
        },
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
        "left_waiting": stand.left_waiting()?,
        "killed": kills,
        "written_per_payload_byte": written,
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

/// How long after this moment the last of the cases that were open then was answered.
fn last_answer_after(moment: tokio::time::Instant, took: &[(tokio::time::Instant, Duration)]) -> Duration {
    let made_before = took.iter().filter(|(made, _)| *made <= moment);
    made_before.map(|(made, took)| (*made + *took).saturating_duration_since(moment)).max().unwrap_or_default()
}

/// The median, the 99th in a hundred and the greatest, in milliseconds; 0 where nothing was measured.
fn percentiles(took: &mut [Duration]) -> [f64; 3] {
    took.sort_unstable();
    let last = took.len().saturating_sub(1);
    [50, 99, 100].map(|percent| {
        took.get((took.len() * percent / 100).min(last)).map_or(0.0, |took| tenths(took.as_secs_f64() * 1e3))
    })
}

fn tenths(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}
