//! How long the dashboard and its API take to answer when there is much on record: cases, devices, and a month of what became
//! of each. The records are written first, by the program's own code; then the program serves them, and is asked over HTTP,
//! one request after the other, each for another device or case.
//!
//! Prints the median and the 95th percentile of each path, and how many bytes the history takes. The last line is one JSON
//! object. Run it by `cargo xtask bench page`.
#![expect(clippy::print_stdout, clippy::print_stderr, reason = "a bench prints what it measured")]
#![expect(clippy::cast_precision_loss, reason = "figures for people")]

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use clap::Parser;
use hedge_cloud::store::{FILE_NAME, RecordsAt, Writer};
use hedge_cloud::trend::{Bucket, Page, Place, STEPS};
use hedge_cloud::wall_ms;
use hedge_proto::{
    Authority, Captured, Case, CaseDecision, CaseId, CaseKey, DeviceId, DeviceState, DeviceStatus, Digest, Doubt,
    Epoch, LabelScore, LinkState, ModelRef, Name, Output, PayloadForm, QueueFigures, Reason, SampleFigures, Telemetry,
    ThresholdMode, Verdict, WIRE_VERSION, labels_hash,
};
use serde_json::json;
use tempfile::TempDir;

const DAY_S: u64 = 86_400;

/// What is to be held at the 95th percentile.
const P95_MS_MAX: f64 = 300.0;
const BYTES_MAX: f64 = 200.0;

#[derive(Parser)]
struct Arguments {
    #[arg(long, default_value_t = 100_000)]
    cases: u64,
    #[arg(long, default_value_t = 10_000)]
    devices: u64,
    /// How long devices were heard, in days
    #[arg(long, default_value_t = 30)]
    days: u64,
    /// How often each path is asked
    #[arg(long, default_value_t = 40)]
    asked: u64,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.devices > 0 && arguments.cases > 0 && arguments.asked > 0, "there is nothing to measure");
    let dir = TempDir::new()?;
    let history_bytes = fill(dir.path(), &arguments)?;
    let served = Served::start(dir.path())?;
    let mut measured = serde_json::Map::new();
    let mut slowest = 0.0_f64;
    println!("{:<52} {:>9} {:>9} {:>9}", "path", "p50 ms", "p95 ms", "KB");
    for path in PATHS {
        let (p50, p95, bytes) = measure(&served, path, &arguments)?;
        println!("{path:<52} {p50:>9.1} {p95:>9.1} {:>9.1}", bytes as f64 / 1000.0);
        slowest = slowest.max(p95);
        measured.insert((*path).to_owned(), json!({"p50": round(p50), "p95": round(p95), "bytes": bytes}));
    }
    println!("history: {history_bytes:.0} bytes a device and hour after a week (at most {BYTES_MAX})");
    println!("the slowest p95: {slowest:.0} ms (at most {P95_MS_MAX})");
    let Arguments { cases, devices, days, .. } = arguments;
    let summary = json!({
        "cases": cases, "devices": devices, "days": days, "page_ms": measured, "slowest_p95_ms": round(slowest),
        "history_bytes_per_device_hour": round(history_bytes),
    });
    println!("{summary}");
    Ok(())
}

fn round(value: f64) -> f64 {
    (value * 10.0).round() / 10.0
}

/// What is asked: `{device}` and `{case}` are another one each time.
const PATHS: &[&str] = &[
    "/",
    "/cases",
    "/fleet",
    "/devices/{device}",
    "/api/figures",
    "/api/devices?order=trouble&limit=60",
    "/api/devices?order=trouble&offset=9000&limit=60",
    "/api/devices?where=link=offline,model=small&limit=60",
    "/api/devices?where=name=*77*&limit=60",
    "/api/devices/{device}",
    "/api/devices/{device}/trend?span=hour",
    "/api/devices/{device}/trend?span=day",
    "/api/devices/{device}/trend?span=week",
    "/api/devices/{device}/trend?span=month",
    "/api/devices/{device}/saved?span=month",
    "/api/saved?span=month",
    "/api/runs",
    "/api/rollouts",
    "/api/cases",
    "/api/cases?order=disagreement",
    "/api/cases?device={device}",
    "/api/cases?task=shoes&agrees=false",
    "/api/cases?label=boot",
    "/api/cases?label=nothing",
    "/api/cases?authority=person",
    "/api/cases/{case}",
    "/api/cases/{case}/words",
    "/api/cases/{case}/payload",
    "/api/cases/{case}/preview",
    "/api/labels?task=shoes",
    "/api/review",
    "/api/answerers",
    "/api/audit",
    "/metrics",
];

fn name(number: u64) -> Result<DeviceId> {
    Ok(DeviceId::new(&format!("site-{:03}-camera-{number:05}", number % 200))?)
}

/// The `number`th case, of a device that has as many as others.
fn case_id(number: u64, devices: u64) -> Result<CaseId> {
    let key = CaseKey { epoch: Epoch(7), sequence: number / devices };
    Ok(CaseId { device: name(number % devices)?, key })
}

/// Writes the records. Returns how many bytes a week of history takes, of each device and hour.
fn fill(dir: &Path, arguments: &Arguments) -> Result<f64> {
    let at = RecordsAt::file(dir.join(FILE_NAME));
    let instance = Name::new("cloud-1")?;
    let mut writer = Writer::open(&at, &instance)?;
    let now_ms = wall_ms();
    let began = Instant::now();
    let devices = (0..arguments.devices).map(name).collect::<Result<Vec<_>>>()?;
    for (part, names) in (0_u64..).zip(devices.chunks(500)) {
        let batch = writer.batch()?;
        for (number, device) in (part * 500..).zip(names) {
            batch.set_device_status(device, &status(number), now_ms - 1000)?;
            batch.set_telemetry(device, &telemetry(number), now_ms - 1000)?;
            let settings = json!({"log": {"level": "info"}});
            let desired = json!({"version": 3, "settings": settings, "confirm": "auto", "by": "ann"}).to_string();
            batch.set_desired(device, Some(&desired), now_ms)?;
            for event in 0..10 {
                batch.add_event(device, "desired", &desired, now_ms - event * 60_000)?;
            }
        }
        batch.commit()?;
    }
    eprintln!("{} devices after {:.0} s", devices.len(), began.elapsed().as_secs_f64());
    let before = bytes(&at)?;
    trends(&mut writer, &devices, now_ms / 1000, 0, arguments.days.min(7))?;
    let week_hours = arguments.days.min(7) * 24 * arguments.devices;
    let each = (bytes(&at)? - before) as f64 / week_hours.max(1) as f64;
    trends(&mut writer, &devices, now_ms / 1000, 7, arguments.days)?;
    eprintln!("{} days of history after {:.0} s", arguments.days, began.elapsed().as_secs_f64());
    // A photo's size does not matter here: nothing but its own path reads it.
    let photo = include_bytes!("../../models/photo-small/golden/rocket.jpg");
    let mut from = 0;
    while from < arguments.cases {
        let batch = writer.batch()?;
        let to = (from + 1000).min(arguments.cases);
        for number in from..to {
            let id = case_id(number, arguments.devices)?;
            // Younger by half a day than what goes for its age.
            let age_s = (arguments.days * DAY_S).saturating_sub(DAY_S / 2);
            let received_ms = now_ms - (arguments.cases - number) * age_s * 1000 / arguments.cases;
            let payload: &[u8] = if number.is_multiple_of(100) { photo } else { b"\xff\xd8 a small picture" };
            batch.record(&case(id.clone(), payload), payload, received_ms)?;
            if !number.is_multiple_of(50) {
                let agrees = !number.is_multiple_of(10);
                batch.answer(&verdict(id, agrees, number % 200 == 1), Some(agrees), received_ms + 400)?;
            }
        }
        from = to;
        batch.commit()?;
    }
    eprintln!("{} cases after {:.0} s", arguments.cases, began.elapsed().as_secs_f64());
    Ok(each)
}

/// Of the file and what is not merged into it yet.
fn bytes(at: &RecordsAt) -> Result<u64> {
    Ok(hedge_cloud::store::Reader::open(at)?.bytes()?)
}

/// What is on record of the time between so many days ago, at the resolution that is kept for that age.
fn trends(writer: &mut Writer, devices: &[DeviceId], now_s: u64, from_day: u64, to_day: u64) -> Result<()> {
    let mut pages: std::collections::BTreeMap<Place, Page> = std::collections::BTreeMap::new();
    let mut newer_s = 0;
    for step in STEPS {
        let (youngest, oldest) = (newer_s.max(from_day * DAY_S), step.kept_s.min(to_day * DAY_S));
        let mut age_s = youngest;
        while age_s < oldest {
            let at_s = (now_s - age_s) / step.bucket_s * step.bucket_s;
            pages.entry(Place::of(at_s, step.bucket_s)).or_default().add(at_s, &bucket(step.bucket_s, age_s));
            age_s += step.bucket_s;
        }
        newer_s = step.kept_s;
    }
    for names in devices.chunks(100) {
        let batch = writer.batch()?;
        for device in names {
            pages.iter().try_for_each(|(place, page)| batch.add_trend(device.as_str(), *place, page))?;
        }
        batch.commit()?;
    }
    let batch = writer.batch()?;
    let fleet = batch.fleet();
    pages.iter().try_for_each(|(place, page)| batch.add_trend(&fleet, *place, page))?;
    batch.set_totals(&Default::default())?;
    batch.commit()?;
    Ok(())
}

/// A busy device: a sample a second, of which one in ten is deferred.
fn bucket(seconds: u64, age_s: u64) -> Bucket {
    let reports = seconds / 60;
    let mut stages = [[0; 2]; hedge_cloud::trend::STAGES.len()];
    stages.iter_mut().for_each(|stage| *stage = [seconds, seconds * (120 + age_s % 7)]);
    let mut agreement = [[0; 2]; hedge_cloud::trend::CONFIDENCES];
    agreement.iter_mut().for_each(|range| *range = [seconds / 100, seconds / 120]);
    let mut link_s = [0; LinkState::ALL.len()];
    (link_s[0], link_s[2]) = (seconds / 10, seconds * 9 / 10);
    Bucket {
        reports,
        answered: seconds,
        kept: seconds * 9 / 10,
        deferred: seconds / 10,
        corrected: seconds / 40,
        link_bytes: seconds * 2500,
        link_s,
        queue_max: age_s % 300,
        oldest_max_s: age_s % 4000,
        stages,
        temperatures: reports,
        temperature_sum: reports * 3340,
        temperature_max: 3345,
        cases: seconds / 10,
        case_bytes: seconds * 2500,
        agreement,
        why: "answers are late: 12 s".to_owned(),
        ..Bucket::default()
    }
}

fn status(number: u64) -> DeviceStatus {
    let faults = match number % 100 {
        0 => [("disk".to_owned(), "95 % of the disk are full".to_owned())].into(),
        _ => Default::default(),
    };
    DeviceStatus {
        state: if number.is_multiple_of(20) { DeviceState::Offline } else { DeviceState::Online },
        connection: 1,
        window_every_s: None,
        link: None,
        version: Some(format!("0.{}.0", number % 3)),
        wire: vec![WIRE_VERSION],
        models: vec![small(number % 4)],
        faults,
    }
}

fn small(version: u64) -> ModelRef {
    ModelRef { name: "small".to_owned(), version: version.to_string() }
}

fn telemetry(number: u64) -> Telemetry {
    Telemetry {
        uptime_s: 86_400,
        link_reason: "all is well".to_owned(),
        samples: SampleFigures { answered: 86_400, kept: 80_000, deferred: 6400, ..SampleFigures::default() },
        queue: QueueFigures { waiting: number % 30, ..QueueFigures::default() },
        ..Telemetry::new(LinkState::Online)
    }
}

fn case(id: CaseId, payload: &[u8]) -> Case {
    let said = ["sandal", "boot", "sneaker"];
    let scores =
        said.iter().zip([0.5, 0.3, 0.2]).map(|(label, score)| LabelScore { label: (*label).to_owned(), score });
    Case {
        v: WIRE_VERSION,
        id,
        source: "porch".to_owned(),
        task: "shoes".to_owned(),
        reference: None,
        model: small(2),
        labels_hash: labels_hash(&["sandal", "boot", "sneaker"]),
        said: Some(Output::Classes(scores.collect())),
        doubt: Doubt::NONE,
        view: None,
        decision: CaseDecision { reason: Reason::LowScore, check: false, threshold: 0.8, mode: ThresholdMode::Fixed },
        settings_version: 0,
        captured: Captured { powered_ms: 1, boot: "b".to_owned(), wall_ms: None, synced: false },
        form: PayloadForm::Whole,
        content_type: "image/jpeg".to_owned(),
        payload_sha256: Digest::of(payload),
        payload: None,
        offer: None,
        metadata: Default::default(),
    }
}

fn verdict(id: CaseId, agrees: bool, by_person: bool) -> Verdict {
    Verdict {
        v: WIRE_VERSION,
        id,
        revision: 1,
        authority: if by_person { Authority::Person } else { Authority::Model },
        task: "shoes".to_owned(),
        said: Output::label(if agrees { "sandal" } else { "boot" }),
        model: ModelRef { name: "large".to_owned(), version: "1".to_owned() },
    }
}

/// The program on these records.
struct Served {
    child: Child,
    address: SocketAddr,
}

impl Served {
    fn start(dir: &Path) -> Result<Self> {
        let mut command = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
        command.args([
            "serve",
            "--listen",
            "127.0.0.1:0",
            "--embedded-broker",
            "127.0.0.1:0",
            "--answer-with",
            "shoes=boot",
        ]);
        let mut child = command.arg("--state-dir").arg(dir).stdout(Stdio::piped()).stderr(Stdio::null()).spawn()?;
        let lines = BufReader::new(child.stdout.take().context("a pipe")?).lines();
        let mut served = Self { child, address: SocketAddr::from(([127, 0, 0, 1], 0)) };
        for line in lines {
            if let Some(address) = line?.strip_prefix("dashboard http://") {
                served.address = address.parse()?;
                return Ok(served);
            }
        }
        anyhow::bail!("hedge-cloud does not start")
    }

    /// How long the whole answer took, in milliseconds, and how long it is in bytes.
    fn get(&self, path: &str) -> Result<(f64, usize)> {
        let began = Instant::now();
        let mut stream = TcpStream::connect(self.address)?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        write!(stream, "GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: close\r\n\r\n", self.address)?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let took_ms = began.elapsed().as_secs_f64() * 1000.0;
        ensure!(
            answer.starts_with(b"HTTP/1.1 200"),
            "{path}: {}",
            String::from_utf8_lossy(&answer[..answer.len().min(200)])
        );
        Ok((took_ms, answer.len()))
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// Median and 95th percentile in milliseconds, and the longest answer.
fn measure(served: &Served, path: &str, arguments: &Arguments) -> Result<(f64, f64, usize)> {
    let mut took = Vec::new();
    let mut longest = 0;
    for turn in 0..arguments.asked {
        // Spread over all, and never the same: every hundredth case has a photo.
        let case = case_id(turn * 7900 % arguments.cases, arguments.devices)?;
        let device = name(turn * 7919 % arguments.devices)?;
        let path = path.replace("{device}", device.as_str()).replace("{case}", &case.to_string());
        let (ms, bytes) = served.get(&path)?;
        took.push(ms);
        longest = longest.max(bytes);
    }
    took.sort_by(f64::total_cmp);
    let at = |percent: usize| took[(took.len() * percent).div_ceil(100).saturating_sub(1)];
    Ok((at(50), at(95), longest))
}
