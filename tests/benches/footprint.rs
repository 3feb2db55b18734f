//! What the agent takes of its board: memory, time to start, processor, wakes and writes; beside what its peers publish.
//!
//! Four agents, one after the other, each connected to a cloud over mosquitto: one without a model that idles, one that
//! answers a photo a second and keeps every answer, the same with a 12-megapixel picture at the end, one that defers
//! every answer; with what the shipped unit says to the allocator. Memory is the median of samples; what is said per hour is extrapolated from the window that stands
//! beside it. Run it by `cargo xtask bench footprint`: it builds the release program and its package.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use clap::Parser;
use hedge_tests::interface::Interface;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, Mosquitto, places, wait};
use serde_json::{Value, json};
use tempfile::TempDir;

/// Connecting, the first figures and the runtime's own threads are over by then.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

const SAMPLE_EVERY: Duration = Duration::from_secs(1);

/// Far more than a start takes.
const START_WAIT_MAX: Duration = Duration::from_secs(30);

const MB: f64 = 1e6;

/// What the project wants to stay below: a name in the result, the most, its unit.
const GOALS: [(&str, f64, &str); 7] = [
    ("idle.pss_mb", 12.0, "MB"),
    ("photo.pss_mb", 45.0, "MB"),
    ("program_mb", 12.0, "MB"),
    ("package_mb", 4.0, "MB"),
    ("start_to_first_answer_ms.wall", 300.0, "ms"),
    ("idle.cpu_percent", 0.5, "%"),
    ("idle.written_mb_per_hour", 1.0, "MB/h"),
];

#[derive(Parser)]
struct Arguments {
    /// Seconds without a model and without work
    #[arg(long, default_value_t = 300)]
    idle_s: u64,
    /// Seconds with a photo a second, kept, and again deferred
    #[arg(long, default_value_t = 60)]
    photo_s: u64,
    /// Starts; their median counts
    #[arg(long, default_value_t = 9)]
    starts: usize,
    /// The agent's package
    #[arg(long)]
    package: Option<PathBuf>,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    let stand = Stand::start()?;
    let program_bytes = places::program("hedge-agent")?.metadata()?.len();
    let package = arguments.package.as_ref().map(|package| package.metadata()).transpose()?;
    let mut result = json!({
        "program_mb": program_bytes as f64 / MB,
        "package_mb": package.map(|package| package.len() as f64 / MB),
        "start_to_first_answer_ms": starts(&stand, arguments.starts)?,
        "idle": idle(&stand, arguments.idle_s)?,
        "photo": photo(&stand, arguments.photo_s)?,
        "deferring": deferring(&stand, arguments.photo_s)?,
        "peers": peers(),
    });
    result["goals"] = goals(&result);
    println!("{result}");
    Ok(())
}

/// A broker, and a cloud that answers photos at once.
struct Stand {
    mosquitto: Mosquitto,
    _cloud: Cloud,
    photo: Vec<u8>,
    /// Of the shipped unit's environment.
    allocator: Vec<(String, String)>,
    // Last, so that the programs end before their folder goes.
    dir: TempDir,
}

impl Stand {
    fn start() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        let mosquitto = Mosquitto::start_with(dir.path(), &MosquittoSetup::default())?;
        let cloud = Cloud::start(dir.path(), &CloudSetup::stub(&mosquitto.url(), "photo", "rocket"))?;
        let photo = std::fs::read(places::model("pictures/rocket.jpg"))?;
        let unit = std::fs::read_to_string(places::root().join("systemd/hedge-agent.service"))?;
        let lines = unit.lines().filter_map(|line| line.strip_prefix("Environment=")?.split_once('='));
        let allocator = lines.filter(|(name, _)| name.starts_with("MALLOC_"));
        let allocator = allocator.map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        Ok(Self { mosquitto, _cloud: cloud, photo, allocator, dir })
    }

    fn device(&self, name: &str) -> AgentConfig {
        let config = AgentConfig::new(self.dir.path(), name).broker(&self.mosquitto.url());
        self.allocator.iter().fold(config, |config, (name, value)| config.variable(name, value))
    }

    fn photographer(&self, name: &str, score_min: f32) -> AgentConfig {
        self.device(name).model_keeping("photo-small", score_min).http_source("camera").corrections_file()
    }

    fn post(&self, agent: &Interface) -> Result<()> {
        agent.post("camera", "", "image/jpeg", &self.photo).map(drop)
    }
}

/// Milliseconds from starting the process to its first answer to a photo: the median, and that of the processor time,
/// which a busy machine changes less.
fn starts(stand: &Stand, count: usize) -> Result<Value> {
    let config = stand.photographer("starter", 0.0);
    let file = config.write()?;
    let http = Interface::new(config.address());
    let (mut took, mut worked) = (Vec::new(), Vec::new());
    for _ in 0..count {
        let began = Instant::now();
        let mut agent = Command::new(places::program("hedge-agent")?);
        agent
            .envs(stand.allocator.iter().cloned())
            .arg("run")
            .arg("--config")
            .arg(&file)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut agent = agent.spawn()?;
        while stand.post(&http).is_err() {
            ensure!(began.elapsed() < START_WAIT_MAX, "no answer within {START_WAIT_MAX:?}");
            wait::pause(Duration::from_millis(1));
        }
        took.push(began.elapsed().as_secs_f64() * 1000.0);
        worked.push(hedge_tests::program::cpu(agent.id())?.as_secs_f64() * 1000.0);
        agent.kill()?;
        agent.wait()?;
    }
    println!("start to first answer, ms: {took:.0?}, of the processor {worked:.0?}");
    Ok(json!({"wall": median(&mut took), "processor": median(&mut worked)}))
}

fn idle(stand: &Stand, window_s: u64) -> Result<Value> {
    let mut agent = stand.device("idler").start()?;
    agent.wait_until_online()?;
    wait::pause(SETTLES_WITHIN);
    let watched = watch(&mut agent, window_s, |_| Ok(()))?;
    println!("without a model, idle: {watched}");
    agent.stop()?;
    Ok(watched)
}

fn photo(stand: &Stand, window_s: u64) -> Result<Value> {
    let mut agent = stand.photographer("keeper", 0.0).start()?;
    agent.wait_until_online()?;
    for _ in 0..SETTLES_WITHIN.as_secs() {
        stand.post(&agent.http)?;
    }
    let mut watched = watch(&mut agent, window_s, |http| stand.post(http))?;
    let before = Taken::of(&mut agent)?;
    // Forgets the highest use of memory so far.
    std::fs::write(format!("/proc/{}/clear_refs", id(&mut agent)?), "5").context("the peak cannot be reset")?;
    let large = large_jpeg()?;
    agent.http.post("camera", "", "image/jpeg", &large)?;
    let peak = status_kb(id(&mut agent)?, "VmHWM:")?;
    watched["large_jpeg"] = json!({
        "file_mb": large.len() as f64 / MB,
        "peak_rss_mb": peak as f64 * 1024.0 / MB,
        "above_before_mb": (peak as f64 - before.rss_kb as f64) * 1024.0 / MB,
    });
    println!("a photo a second, kept: {watched}");
    agent.stop()?;
    Ok(watched)
}

fn deferring(stand: &Stand, window_s: u64) -> Result<Value> {
    let mut agent = stand.photographer("asker", 1.0).start()?;
    agent.wait_until_online()?;
    for _ in 0..SETTLES_WITHIN.as_secs() {
        stand.post(&agent.http)?;
    }
    let mut watched = watch(&mut agent, window_s, |http| stand.post(http))?;
    let cases = agent.http.status()?.samples.deferred;
    ensure!(cases >= window_s, "not every photo was deferred: {cases}");
    watched["photo_mb_per_hour"] = json!(stand.photo.len() as f64 * 3600.0 / MB);
    println!("a photo a second, deferred: {watched}");
    agent.stop()?;
    Ok(watched)
}

/// Looks at the agent every second of the window, after `work`.
fn watch(agent: &mut Agent, window_s: u64, work: impl Fn(&Interface) -> Result<()>) -> Result<Value> {
    let (began, before) = (Instant::now(), Taken::of(agent)?);
    let (mut pss, mut rss) = (Vec::new(), Vec::new());
    for second in 1..=window_s {
        work(&agent.http)?;
        wait::pause((SAMPLE_EVERY * u32::try_from(second)?).saturating_sub(began.elapsed()));
        // Reading the sum over all mappings is work of the kernel for the process: seldom enough not to show.
        if second % 10 == 0 {
            let now = Taken::of(agent)?;
            pss.push(now.pss_kb as f64 * 1024.0 / MB);
            rss.push(now.rss_kb as f64 * 1024.0 / MB);
        }
    }
    let (after, seconds) = (Taken::of(agent)?, began.elapsed().as_secs_f64());
    let per_s = |after: u64, before: u64| after.saturating_sub(before) as f64 / seconds;
    Ok(json!({
        "window_s": window_s,
        "pss_mb": median(&mut pss),
        "rss_mb": median(&mut rss),
        "cpu_percent": 100.0 * (after.cpu.saturating_sub(before.cpu)).as_secs_f64() / seconds,
        "wakes_per_s": per_s(after.wakes, before.wakes),
        "written_mb_per_hour": per_s(after.written_bytes, before.written_bytes) * 3600.0 / MB,
    }))
}

/// What a process has taken so far, and holds now.
struct Taken {
    pss_kb: u64,
    rss_kb: u64,
    cpu: Duration,
    /// How often its threads were put on a processor.
    wakes: u64,
    /// On their way to a disk; sockets and pipes do not count.
    written_bytes: u64,
}

impl Taken {
    fn of(agent: &mut Agent) -> Result<Self> {
        let id = id(agent)?;
        let memory = std::fs::read_to_string(format!("/proc/{id}/smaps_rollup"))?;
        let io = std::fs::read_to_string(format!("/proc/{id}/io"))?;
        let mut wakes = 0;
        for thread in std::fs::read_dir(format!("/proc/{id}/task"))? {
            let status = std::fs::read_to_string(thread?.path().join("status"))?;
            wakes += number(&status, "voluntary_ctxt_switches:")? + number(&status, "nonvoluntary_ctxt_switches:")?;
        }
        Ok(Self {
            pss_kb: number(&memory, "Pss:")?,
            rss_kb: number(&memory, "Rss:")?,
            cpu: agent.program().cpu()?,
            wakes,
            written_bytes: number(&io, "write_bytes:")?,
        })
    }
}

fn id(agent: &mut Agent) -> Result<u32> {
    agent.program().id().context("the agent does not run")
}

fn status_kb(id: u32, name: &str) -> Result<u64> {
    number(&std::fs::read_to_string(format!("/proc/{id}/status"))?, name)
}

/// The number behind a name at the beginning of a line.
fn number(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)).with_context(|| format!("no `{name}`"))?;
    Ok(line.split_whitespace().next().with_context(|| format!("nothing behind `{name}`"))?.parse()?)
}

fn median(values: &mut [f64]) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

/// As a camera makes it: 12 megapixels, with something in every block.
fn large_jpeg() -> Result<Vec<u8>> {
    const SIDES: (u16, u16) = (4000, 3000);
    let mut seed = 1_u32;
    let pixels = (0..u32::from(SIDES.0) * u32::from(SIDES.1)).flat_map(|at| {
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let (x, y) = (at % u32::from(SIDES.0), at / u32::from(SIDES.0));
        [x / 20, y / 20, (x + y) / 40].map(|level| (level.to_le_bytes()[0] / 2).wrapping_add(seed.to_be_bytes()[0] / 8))
    });
    let pixels: Vec<u8> = pixels.collect();
    let mut file = Vec::new();
    jpeg_encoder::Encoder::new(&mut file, 88).encode(&pixels, SIDES.0, SIDES.1, jpeg_encoder::ColorType::Rgb)?;
    Ok(file)
}

fn goals(result: &Value) -> Value {
    let judged = GOALS.iter().map(|(name, most, unit)| {
        let value = name.split('.').fold(result, |value, part| &value[part]).as_f64();
        let text = match value {
            Some(value) if value <= *most => format!("reached: {value:.2} of {most} {unit}"),
            Some(value) => format!("MISSED by {:.2} {unit}: {value:.2}, not {most}", value - most),
            None => "not measured".to_owned(),
        };
        println!("{name:<26} {text}");
        ((*name).to_owned(), json!(text))
    });
    judged.collect::<serde_json::Map<_, _>>().into()
}

/// Only what they say themselves, for what comes nearest to an agent at rest.
fn peers() -> Value {
    json!([
        {
            "name": "AWS IoT Greengrass nucleus lite 2.5.0, nine processes, no model",
            "pss_mb": 14.8, "start_ms": [1328, 1700],
            "source": "benchmark/REPORT.md of github.com/aws-greengrass/aws-greengrass-lite: PSS on x86-64, start on x86-64 and a Raspberry Pi 4",
        },
        {
            "name": "Groundlight edge endpoint, pods without a model",
            "requested_mb": 1310,
            "source": "the memory its deployment asks Kubernetes for (1,250 MiB), github.com/groundlight/edge-endpoint",
        },
    ])
}
