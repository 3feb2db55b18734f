//! `bundle compare`: what several bundles for one task cost and are worth, in one table; it chooses none.

mod front;
mod table;

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, ensure};
use flate2::Compression;
use flate2::write::GzEncoder;
use hedge_inference::task::Scores;
use hedge_inference::{Bundle, Model, Runtime, SessionOptions};

use self::front::{Answered, deferral_needed};
use self::table::{Row, Table};
use super::calibration::{Scored, calibration_error};
use super::inspect::{WARM_UP, measure};
use crate::samples::{SampleArgs, Set, classes, means};

/// Measure bundles for the same task side by side: size, accuracy, time, and how much they must ask the cloud.
#[derive(Debug, clap::Args)]
#[command(
    after_help = "`asks` is the least share of samples, the least sure first, that the cloud must answer so that both together reach the \
    target. A * marks a bundle that no other beats in size, time and that share together. None is chosen: that is yours."
)]
pub struct CompareArgs {
    /// The folders with the bundles' `manifest.toml`
    #[arg(value_name = "DIR", required = true)]
    pub dirs: Vec<PathBuf>,
    #[command(flatten)]
    pub samples: SampleArgs,
    /// The bundle of the bigger model that is asked in the cloud
    #[arg(long, value_name = "DIR")]
    pub cloud: Option<PathBuf>,
    /// The target: both together are at most this many percentage points less often right than the cloud alone; for
    /// samples without labels, differ from the cloud in at most this many of a hundred
    #[arg(long, value_name = "POINTS", default_value_t = 0.5)]
    pub within: f64,
    /// How often an inference is timed, five times over
    #[arg(long, value_name = "RUNS", default_value_t = 100, value_parser = clap::value_parser!(u16).range(1..=10_000))]
    pub time: u16,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Print one JSON document
    #[arg(long)]
    pub json: bool,
}

/// How often the time of an inference is measured anew.
const BLOCKS: u16 = 5;

/// What the cloud's model says of each sample, and whether that is right; none where it says nothing.
struct Cloud {
    said: Vec<Option<String>>,
}

pub(super) fn write(args: &CompareArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    ensure!((0.0..=100.0).contains(&args.within), "--within {} is not a number of points from 0 to 100", args.within);
    let bundles = args.dirs.iter().map(|dir| Bundle::open(dir)).collect::<Result<Vec<_>, _>>()?;
    let first = bundles.first().context("name a bundle")?;
    for bundle in &bundles {
        let (own, task) = (bundle.task(), first.task());
        ensure!(own == task, "{} is for the task `{own}`, not for `{task}`", bundle.dir().display());
    }
    let runtime = Runtime::find(args.library.as_deref())?;
    let set = args.samples.open(first.labels())?;
    set.check_labels(first)?;
    let cloud = args.cloud.as_deref().map(|dir| Cloud::ask(dir, first, &set, &runtime)).transpose()?;
    let by_labels = (0..set.len()).any(|number| set.label(number).is_some());
    ensure!(by_labels || cloud.is_some(), "the samples have no labels: name the cloud's bundle with --cloud");
    let target = cloud.as_ref().map(|cloud| cloud.target(first, &set, args.within / 100.0));
    let mut rows = Vec::new();
    for bundle in &bundles {
        eprintln!("measuring {} …", bundle.dir().display());
        let row = row(bundle, &set, cloud.as_ref(), target, &runtime, args.time);
        rows.push(row.with_context(|| bundle.dir().display().to_string())?);
    }
    let table = Table::new(rows, set.len(), by_labels, target);
    if args.json {
        writeln!(out, "{:#}", table.json())?;
    } else {
        write!(out, "{}", table.text())?;
    }
    Ok(ExitCode::SUCCESS)
}

impl Cloud {
    fn ask(dir: &Path, device: &Bundle, set: &Set, runtime: &Runtime) -> anyhow::Result<Self> {
        let bundle = Bundle::open(dir)?;
        ensure_labels_known(device, &bundle)?;
        let mut model = Model::load(runtime, &bundle, None, &SessionOptions::default())?;
        eprintln!("asking {} …", dir.display());
        let kind = classes(&bundle)?.kind;
        let mut said = vec![None; set.len()];
        for sample in set.run(&bundle, &mut model)?.known {
            let best = Scores::read(&sample.output, kind)?.top(1)[0].class;
            said[sample.number] = Some(bundle.labels()[best].clone());
        }
        Ok(Self { said })
    }

    fn is_right(&self, device: &Bundle, set: &Set, number: usize) -> Option<bool> {
        let (said, label) = (self.said[number].as_ref()?, set.label(number)?);
        Some(said == label || said == device.cloud_label(label))
    }

    /// What both together must reach: of samples with labels the cloud's accuracy, less some; else agreement.
    fn target(&self, device: &Bundle, set: &Set, within: f64) -> f64 {
        let rights: Vec<bool> = (0..set.len()).filter_map(|number| self.is_right(device, set, number)).collect();
        if rights.is_empty() {
            return 1.0 - within;
        }
        rights.iter().filter(|right| **right).count() as f64 / rights.len() as f64 - within
    }
}

/// A label that the cloud's model never says cannot be confirmed by it, and its agreement says nothing.
pub(super) fn ensure_labels_known(device: &Bundle, cloud: &Bundle) -> anyhow::Result<()> {
    let unknown =
        device.labels().iter().find(|own| !cloud.labels().iter().any(|there| there == device.cloud_label(own)));
    match unknown {
        None => Ok(()),
        Some(own) => anyhow::bail!(
            "{} does not know the label `{}` of {}; if it has another word for it, say so in [cloud_labels] of the manifest",
            cloud.dir().display(),
            device.cloud_label(own),
            device.dir().display()
        ),
    }
}

fn row(
    bundle: &Bundle,
    set: &Set,
    cloud: Option<&Cloud>,
    target: Option<f64>,
    runtime: &Runtime,
    runs: u16,
) -> anyhow::Result<Row> {
    let mut model = Model::load(runtime, bundle, None, &SessionOptions::default())?;
    let kind = classes(bundle)?.kind;
    let (mut rights, mut agreements, mut scored, mut answered) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    let samples = set.run(bundle, &mut model)?;
    for sample in &samples.known {
        let best = Scores::read(&sample.output, kind)?.top(1)[0];
        let own = &bundle.labels()[best.class];
        let right = set.label(sample.number).map(|label| means(bundle, own, label));
        let agrees = cloud.and_then(|cloud| Some(cloud.said[sample.number].as_deref()? == bundle.cloud_label(own)));
        rights.extend(right);
        agreements.extend(agrees);
        if let Some(counts) = right.or(agrees) {
            scored.push(Scored { score: best.score, right: counts, of_right: 0.0, doubt: None });
        }
        if let (Some(cloud), Some(here)) = (cloud, right.or(agrees)) {
            // What has no label is measured by agreement, and the cloud agrees with itself.
            let there = cloud.is_right(bundle, set, sample.number).unwrap_or(true);
            answered.push(Answered { score: best.score, here, there });
        }
    }
    let share = |of: &[bool]| (!of.is_empty()).then(|| of.iter().filter(|one| **one).count() as f64 / of.len() as f64);
    let path = bundle.variant_path(bundle.variant(None)?);
    let before = energy_uj();
    // The least of several: what else runs on this machine only ever adds to it.
    let mut cpu_ms = f64::INFINITY;
    for _ in 0..BLOCKS {
        cpu_ms = cpu_ms.min(measure(&mut model, runs)?.processor_ms);
    }
    let energy = before.zip(energy_uj()).and_then(|(before, after)| after.checked_sub(before));
    Ok(Row {
        name: bundle.dir().file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
        bytes: path.metadata()?.len(),
        packed: packed(&path)?,
        accuracy: share(&rights),
        agreement: share(&agreements),
        calibration_error: calibration_error(&scored),
        cpu_ms,
        asks: target.and_then(|target| deferral_needed(&answered, target)),
        mj: energy.map(|microjoules| microjoules as f64 / 1000.0 / f64::from((runs + WARM_UP) * BLOCKS)),
        left_out: samples.left_out.len(),
        on_front: false,
    })
}

/// How large the model's file is when it is packed for its way: gzip, at its best.
fn packed(path: &Path) -> anyhow::Result<u64> {
    let mut file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let mut packer = GzEncoder::new(Counted::default(), Compression::best());
    std::io::copy(&mut file, &mut packer)?;
    Ok(packer.finish()?.0)
}

#[derive(Default)]
struct Counted(u64);

impl Write for Counted {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// What the processor's package has used, where the board counts it (RAPL) and lets us read it.
fn energy_uj() -> Option<u64> {
    std::fs::read_to_string("/sys/class/powercap/intel-rapl:0/energy_uj").ok()?.trim().parse().ok()
}
