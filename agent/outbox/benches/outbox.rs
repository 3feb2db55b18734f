//! Durable cases per second beside a raw group-committed log, and what they cost in memory, disk and writes.
//!
//! Raw is the same callers, the same channel and the same leader batching with append + fdatasync: no record
//! header, no checksum, no index. Rounds of the two alternate and medians are compared. `bytes` is what a caller
//! hands over, a case's header and payload together. Prints a line per row and one JSON object as its last line.
//!
//! Built without any LTO, memory reads 19 MiB too high: sled's empty page tables are then written, not mapped.
//!
//! `cargo bench -p hedge-outbox --bench outbox -- [--full] [--dir FOLDER]`
#![expect(clippy::print_stdout, reason = "printing is all it does")]

use std::fs;
use std::io::{IoSlice, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_core::outbox::WhenFull;
use hedge_outbox::{Limits, NewCase, Outbox, Receipt};
use hedge_proto::{CaseKey, Epoch, Refusal};
use serde_json::{Value, json};
use tokio::sync::{mpsc, oneshot};

/// What a case's header has in practice.
const HEADER_BYTES: usize = 256;
const LIMITS: Limits = Limits {
    cases_max: 10_000_000,
    bytes_max: 1 << 40,
    free_bytes_min: 1 << 30,
    payload_bytes_max: 8 << 20,
    when_full: WhenFull::RefuseNew,
};

struct Plan {
    rounds: usize,
    round: Duration,
    rows: &'static [(usize, usize)],
    /// So many fill the queue.
    churn_cases: &'static str,
}

/// Enough to see a broken design, in under a minute.
const QUICK: Plan =
    Plan { rounds: 3, round: Duration::from_millis(700), rows: &[(1024, 100), (20 * 1024, 100)], churn_cases: "3000" };

const FULL: Plan = Plan {
    rounds: 7,
    round: Duration::from_secs(2),
    rows: &[
        (1024, 1),
        (1024, 8),
        (1024, 100),
        (20 * 1024, 1),
        (20 * 1024, 8),
        (20 * 1024, 100),
        (300 * 1024, 1),
        (300 * 1024, 8),
        (300 * 1024, 100),
    ],
    churn_cases: "20000",
};

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match args[..] {
        ["child-fill", dir, bytes, count] => return child_fill(Path::new(dir), bytes.parse()?, count.parse()?),
        ["child-open", dir] => return child_open(Path::new(dir)),
        ["child-churn", dir, count] => return child_churn(Path::new(dir), count.parse()?),
        _ => {}
    }
    let dir = args.iter().position(|arg| *arg == "--dir").and_then(|at| args.get(at + 1));
    let base = dir.map_or_else(|| PathBuf::from(env!("CARGO_TARGET_TMPDIR")), PathBuf::from);
    let base = base.join(format!("bench-outbox-{}", std::process::id()));
    let plan = if args.contains(&"--full") { FULL } else { QUICK };
    let measured = measure(&plan, &base);
    fs::remove_dir_all(&base).context("removing the bench's folder")?;
    println!("{}", measured?);
    Ok(())
}

fn measure(plan: &Plan, base: &Path) -> Result<Value> {
    let mut rows = Vec::new();
    for (bytes, in_flight) in plan.rows {
        rows.push(row(plan, base, *bytes, *in_flight)?);
    }
    let dir = base.join("memory");
    let small = child(&["child-fill", &dir.to_string_lossy(), "1024", "100000"])?;
    let ready = child(&["child-open", &dir.to_string_lossy()])?;
    fs::remove_dir_all(dir.join("queue"))?;
    let rebuilt = child(&["child-open", &dir.to_string_lossy()])?;
    ensure!(ready["rebuilt"] == json!(false) && rebuilt["rebuilt"] == json!(true), "the queue was not used as meant");
    ensure!(ready["cases"] == json!(100_000) && rebuilt["cases"] == json!(100_000), "cases are missing");
    fs::remove_dir_all(&dir)?;
    let large = child(&["child-fill", &dir.to_string_lossy(), "20480", "20000"])?;
    fs::remove_dir_all(&dir)?;
    let churn = child(&["child-churn", &dir.to_string_lossy(), plan.churn_cases])?;
    fs::remove_dir_all(&dir)?;
    println!("churn: {churn}");
    println!("memory: +{} MiB at 100,000 × 1 KiB, +{} MiB at 20,000 × 20 KiB", small["rss_mib"], large["rss_mib"]);
    println!("start with 100,000 cases: {} ms, without the queue {} ms", ready["ms"], rebuilt["ms"]);
    Ok(json!({
        "rows": rows,
        "rss_growth_mib": { "100k_1k": small["rss_mib"], "20k_20k": large["rss_mib"], "reopened_100k": ready["rss_mib"], "churn": churn["rss_mib"] },
        "churn": churn,
        "ready_ms": ready["ms"],
        "ready_rebuild_ms": rebuilt["ms"],
    }))
}

/// One size and one number of callers, both stores in turns.
fn row(plan: &Plan, base: &Path, bytes: usize, in_flight: usize) -> Result<Value> {
    let (mut ours, mut raws, mut writes, mut disks) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..plan.rounds {
        let dir = base.join("round");
        let round = round_outbox(plan.round, &dir, bytes, in_flight)?;
        fs::remove_dir_all(&dir)?;
        raws.push(round_raw(plan.round, &dir, bytes, in_flight)?);
        fs::remove_dir_all(&dir)?;
        ours.push(round.cases_per_s);
        writes.push(round.write_ratio);
        disks.push(round.disk_ratio);
    }
    let (cases_per_s, raw_per_s) = (median(&mut ours).round(), median(&mut raws).round());
    let (write_ratio, disk_ratio) = (cents(median(&mut writes)), cents(median(&mut disks)));
    let ratio = cents(cases_per_s / raw_per_s);
    println!(
        "{bytes:>6} B × {in_flight:>3}: {cases_per_s:>7}/s, raw {raw_per_s:>7}/s, ratio {ratio:.2}, writes {write_ratio:.2}×, disk {disk_ratio:.2}×"
    );
    Ok(json!({
        "bytes": bytes, "in_flight": in_flight, "cases_per_s": cases_per_s, "raw_per_s": raw_per_s, "ratio": ratio,
        "write_ratio": write_ratio, "disk_ratio": disk_ratio,
    }))
}

struct Round {
    cases_per_s: f64,
    write_ratio: f64,
    disk_ratio: f64,
}

fn round_outbox(time: Duration, dir: &Path, bytes: usize, in_flight: usize) -> Result<Round> {
    let written_before = written_bytes()?;
    let (outbox, _) = Outbox::open(dir, LIMITS)?;
    let runtime = runtime()?;
    let store = outbox.clone();
    let (cases, seconds) = runtime.block_on(callers(time, in_flight, move |sequence| {
        let outbox = store.clone();
        async move {
            let case = new_case(sequence, bytes);
            outbox.store(case).await.map_err(|refusal| anyhow::anyhow!("refused: {refusal:?}"))
        }
    }))?;
    runtime.block_on(outbox.close());
    let written = written_bytes()? - written_before;
    let payload = cases * bytes as f64;
    Ok(Round {
        cases_per_s: cases / seconds,
        write_ratio: written as f64 / payload,
        disk_ratio: folder_bytes(dir)? as f64 / payload,
    })
}

type RawRequest = (Bytes, oneshot::Sender<()>);

fn round_raw(time: Duration, dir: &Path, bytes: usize, in_flight: usize) -> Result<f64> {
    fs::create_dir_all(dir)?;
    let (requests, mut received) = mpsc::channel::<RawRequest>(1024);
    let mut file = fs::File::options().append(true).create_new(true).open(dir.join("raw"))?;
    let leader = std::thread::spawn(move || -> Result<()> {
        let waiting = tokio::runtime::Builder::new_current_thread().build()?;
        while let Some(first) = waiting.block_on(received.recv()) {
            let mut batch = vec![first];
            while let Ok(request) = received.try_recv() {
                batch.push(request);
            }
            let mut slices: Vec<_> = batch.iter().map(|(bytes, _)| IoSlice::new(bytes)).collect();
            let mut parts = &mut slices[..];
            while !parts.is_empty() {
                let written = file.write_vectored(parts)?;
                IoSlice::advance_slices(&mut parts, written);
            }
            file.sync_data()?;
            for (_, reply) in batch {
                reply.send(()).ok();
            }
        }
        Ok(())
    });
    let runtime = runtime()?;
    let (cases, seconds) = runtime.block_on(callers(time, in_flight, move |sequence| {
        let requests = requests.clone();
        async move {
            let (reply, done) = oneshot::channel();
            let filler = Bytes::from(vec![sequence.to_le_bytes()[0]; bytes]);
            requests.send((filler, reply)).await?;
            Ok(done.await?)
        }
    }))?;
    leader.join().map_err(|_| anyhow::anyhow!("the raw writer panicked"))??;
    Ok(cases / seconds)
}

/// `in_flight` callers, each with one case at a time; the cases done and the seconds they took.
async fn callers<F, W>(time: Duration, in_flight: usize, store: F) -> Result<(f64, f64)>
where
    F: Fn(u64) -> W + Send + Sync + 'static,
    W: Future<Output = Result<()>> + Send,
{
    let sequence = Arc::new(AtomicU64::new(0));
    let store = Arc::new(store);
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..in_flight {
        let (sequence, store) = (Arc::clone(&sequence), Arc::clone(&store));
        tasks.push(tokio::spawn(async move {
            while begun.elapsed() < time {
                store(sequence.fetch_add(1, Ordering::Relaxed)).await?;
            }
            Ok::<(), anyhow::Error>(())
        }));
    }
    for task in tasks {
        task.await??;
    }
    Ok((sequence.load(Ordering::Relaxed) as f64, begun.elapsed().as_secs_f64()))
}

fn new_case(sequence: u64, bytes: usize) -> NewCase {
    let filler = sequence.to_le_bytes()[0];
    NewCase {
        key: CaseKey { epoch: Epoch(0x5EED_5EED_5EED_5EED), sequence },
        // Spread like real priorities, so that the queue is not simply appended to.
        sort_key: (sequence.wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 11) as f64,
        stored_at: Moment(sequence),
        header: vec![filler; HEADER_BYTES],
        payload: vec![filler; bytes - HEADER_BYTES].into(),
    }
}

/// Stores `count` cases and prints by how much the process has grown.
fn child_fill(dir: &Path, bytes: usize, count: u64) -> Result<()> {
    let runtime = runtime()?;
    let before = rss_mib()?;
    let (outbox, _) = Outbox::open(dir, LIMITS)?;
    runtime.block_on(async {
        let mut waiting = std::collections::VecDeque::new();
        for sequence in 0..count {
            let receipt = outbox.submit(new_case(sequence, bytes)).map_err(|r| anyhow::anyhow!("{r:?}"))?;
            waiting.push_back(receipt);
            if waiting.len() >= 100
                && let Some(oldest) = waiting.pop_front()
            {
                oldest.await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
            }
        }
        for receipt in waiting {
            receipt.await.map_err(|refusal| anyhow::anyhow!("{refusal:?}"))?;
        }
        tokio::time::sleep(Duration::from_secs(2)).await; // the queue is written behind
        let grown = cents(rss_mib()? - before);
        outbox.close().await;
        println!("{}", json!({ "rss_mib": grown }));
        Ok(())
    })
}

/// Opens a filled outbox and prints how long that took.
fn child_open(dir: &Path) -> Result<()> {
    let before = rss_mib()?;
    let begun = Instant::now();
    let (outbox, report) = Outbox::open(dir, LIMITS)?;
    let ms = begun.elapsed().as_millis();
    ensure!(outbox.fetch(10, u32::MAX).len() == 10, "the outbox is empty");
    let grown = cents(rss_mib()? - before);
    println!("{}", json!({ "ms": ms, "cases": report.cases, "rebuilt": report.rebuilt, "rss_mib": grown }));
    runtime()?.block_on(outbox.close());
    Ok(())
}

/// The size of each case while the queue churns.
const CHURN_BYTES: usize = 20 * 1024;
const CHURN_IN_FLIGHT: usize = 64;

/// A full queue, three times its size arriving at random priority, 30 % of what is taken answered and forgotten.
/// Ratios are to live bytes on the disk, and to bytes of the cases that were taken.
fn child_churn(dir: &Path, count: u64) -> Result<()> {
    let runtime = runtime()?;
    let before = rss_mib()?;
    let limits = Limits { cases_max: count, when_full: WhenFull::EvictLowest, ..LIMITS };
    let (outbox, _) = Outbox::open(dir, limits)?;
    let written_at_start = written_bytes()?;
    let (mut taken, mut disk_ratios) = (0, Vec::new());
    runtime.block_on(async {
        let mut written_full = 0;
        for first in (0..4 * count).step_by(CHURN_IN_FLIGHT) {
            if (count..count + CHURN_IN_FLIGHT as u64).contains(&first) {
                (written_full, taken) = (written_bytes()?, 0);
            }
            let arriving = first..first + CHURN_IN_FLIGHT as u64;
            let receipts: Vec<_> = arriving.map(|sequence| (sequence, submit(&outbox, sequence))).collect();
            let mut answered = Vec::new();
            for (sequence, receipt) in receipts {
                if was_taken(receipt).await? {
                    taken += 1;
                    answered.extend((first >= count && sequence % 10 < 3).then_some(sequence));
                }
            }
            all(answered.into_iter().map(|sequence| answer_and_forget(outbox.clone(), sequence))).await?;
            if first >= count && (first / CHURN_IN_FLIGHT as u64).is_multiple_of(20) {
                disk_ratios.push(folder_bytes(dir)? as f64 / outbox.figures().live_bytes as f64);
            }
        }
        let written = written_bytes()? - written_full;
        let greatest = disk_ratios.iter().copied().fold(0.0, f64::max);
        let rss = rss_mib()? - before;
        let (begun, full_bytes) = (Instant::now(), folder_bytes(dir)?);
        for some in outbox.fetch(usize::MAX, u32::MAX).chunks(CHURN_IN_FLIGHT) {
            all(some.iter().map(|entry| forget(outbox.clone(), entry.key))).await?;
        }
        let drained_s = begun.elapsed().as_secs_f64();
        let begun = Instant::now();
        while folder_bytes(dir)? > full_bytes / 10 && begun.elapsed() < Duration::from_secs(120) {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        println!(
            "{}",
            json!({
                "cases": count, "bytes": CHURN_BYTES, "taken": taken,
                "disk_ratio": cents(greatest), "disk_ratio_median": cents(median(&mut disk_ratios)),
                "write_ratio": cents(written as f64 / (taken * CHURN_BYTES as u64) as f64),
                "write_ratio_with_fill": cents((written_bytes()? - written_at_start) as f64
                    / ((taken + count) * CHURN_BYTES as u64) as f64),
                "drain_s": cents(drained_s), "space_back_s": cents(begun.elapsed().as_secs_f64()),
                "disk_after_mib": cents(folder_bytes(dir)? as f64 / f64::from(1 << 20)), "rss_mib": cents(rss),
            })
        );
        outbox.close().await;
        Ok(())
    })
}

fn submit(outbox: &Outbox, sequence: u64) -> Result<Receipt, Refusal> {
    outbox.submit(new_case(sequence, CHURN_BYTES))
}

/// Whether there was room, or something gave way.
async fn was_taken(receipt: Result<Receipt, Refusal>) -> Result<bool> {
    let stored = match receipt {
        Ok(receipt) => receipt.await,
        Err(refusal) => Err(refusal),
    };
    match stored {
        Ok(()) => Ok(true),
        Err(Refusal::Full) => Ok(false),
        Err(refusal) => Err(anyhow::anyhow!("refused: {refusal:?}")),
    }
}

async fn answer_and_forget(outbox: Outbox, sequence: u64) -> Result<()> {
    let key = new_case(sequence, HEADER_BYTES).key;
    outbox.answered(key, 1, vec![7; 200]).await?;
    forget(outbox, key).await
}

async fn forget(outbox: Outbox, key: CaseKey) -> Result<()> {
    Ok(outbox.forget(key).await?)
}

/// All at once.
async fn all(work: impl Iterator<Item = impl Future<Output = Result<()>> + Send + 'static>) -> Result<()> {
    let tasks: Vec<_> = work.map(tokio::spawn).collect();
    for task in tasks {
        task.await??;
    }
    Ok(())
}

fn child(args: &[&str]) -> Result<Value> {
    let output = Command::new(std::env::current_exe()?).args(args).output()?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{args:?} failed: {errors}");
    let text = String::from_utf8(output.stdout)?;
    Ok(serde_json::from_str(text.lines().last().context("no output")?)?)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

fn rss_mib() -> Result<f64> {
    Ok(proc_number("/proc/self/status", "VmRSS:")? as f64 / 1024.0)
}

/// Bytes this process has caused to be written to storage.
fn written_bytes() -> Result<u64> {
    proc_number("/proc/self/io", "write_bytes:")
}

fn proc_number(file: &str, field: &str) -> Result<u64> {
    let text = fs::read_to_string(file)?;
    let line = text.lines().find_map(|line| line.strip_prefix(field)).context("no such field")?;
    Ok(line.split_whitespace().next().context("empty field")?.parse()?)
}

/// What the folder takes on the disk, in blocks.
fn folder_bytes(dir: &Path) -> Result<u64> {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        bytes +=
            if entry.file_type()?.is_dir() { folder_bytes(&entry.path())? } else { entry.metadata()?.blocks() * 512 };
    }
    Ok(bytes)
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

fn cents(value: f64) -> f64 {
    (value * 100.0).round() / 100.0
}
