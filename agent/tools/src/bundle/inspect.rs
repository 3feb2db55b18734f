//! `bundle inspect`: the facts of a bundle, and whether its model still gives the golden answers here.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use hedge_inference::bundle::{Ranked, Ranking, Variant};
use hedge_inference::task::{OutputKind, Reading};
use hedge_inference::{Bundle, Model, Runtime, SessionOptions, Tensor};
use rustix::time::{ClockId, clock_gettime};

/// Print a bundle's facts, check its sums and run its golden samples.
#[derive(Debug, clap::Args)]
pub struct InspectArgs {
    /// The folder with the model's `manifest.toml`
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Also measure the time of an inference, averaged over this number of runs
    #[arg(long, value_name = "RUNS", value_parser = clap::value_parser!(u16).range(1..))]
    pub time: Option<u16>,
}

/// The exit code is 1 if a golden sample got another answer.
pub(super) fn write(args: &InspectArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let bundle = Bundle::open(&args.dir)?;
    write_facts(&bundle, out)?;
    let runtime = Runtime::find(args.library.as_deref())?;
    writeln!(out, "runtime    ONNX Runtime {} at {}", runtime.version(), runtime.path().display())?;
    let mut code = ExitCode::SUCCESS;
    for variant in &bundle.manifest().variants {
        let options = SessionOptions::default();
        let mut model = Model::load(&runtime, &bundle, Some(variant.name.as_str()), &options)?;
        writeln!(
            out,
            "\nvariant    {}: {}, {} bytes, sha256 as in the manifest",
            variant.name,
            variant.file.as_path().display(),
            variant.bytes
        )?;
        if !goldens_pass(&bundle, variant, &mut model, out)? {
            code = ExitCode::FAILURE;
        }
        if let Some(runs) = args.time {
            let Cost { median_ms, processor_ms } = measure(&mut model, runs)?;
            writeln!(
                out,
                "time       {median_ms:.2} ms per inference (median of {runs}), {processor_ms:.2} ms of processor time"
            )?;
        }
    }
    Ok(code)
}

fn write_facts(bundle: &Bundle, out: &mut impl Write) -> anyhow::Result<()> {
    let manifest = bundle.manifest();
    let input = bundle.input();
    writeln!(out, "bundle     {} {} in {}", manifest.name, manifest.version, bundle.dir().display())?;
    writeln!(out, "task       {} ({} labels, hash {})", manifest.task, bundle.labels().len(), bundle.labels_hash())?;
    let shape = &input.shape;
    writeln!(out, "input      {} {shape:?}", input.name)?;
    match &input.picture {
        Some(picture) => {
            let (mean, std) = (&picture.mean, &picture.std);
            let [color, layout] = [picture.color.word(), picture.layout.word()];
            let [fit, resize] = [picture.fit.word(), picture.resize.word()];
            writeln!(out, "pictures   {color} {layout}, {fit} {resize}, (pixel - {mean:?}) / {std:?}")?;
        }
        None => writeln!(out, "samples    {}", bundle.input().wanted())?,
    }
    match &manifest.output {
        Reading::Classes(classes) => match classes.kind {
            OutputKind::Logits { temperature } => {
                writeln!(out, "output     {}: logits, temperature {}", classes.name, temperature.value())?;
            }
            kind => writeln!(out, "output     {}: {}", classes.name, kind.word())?,
        },
        Reading::Boxes(boxes) => {
            let names = manifest.output.names().join(", ");
            writeln!(out, "output     {names}: boxes, shown from {}", boxes.shown_min.value())?;
        }
    }
    if let Some(confidence) = &manifest.confidence {
        writeln!(out, "confidence {confidence}: how probably the answer is right")?;
    }
    if let Some(embedding) = &manifest.embedding {
        writeln!(out, "embedding  {embedding}: may leave the device in the place of the sample")?;
    }
    match bundle.threshold() {
        Some(threshold) => writeln!(out, "threshold  score_min {} is suggested", threshold.score_min())?,
        None => writeln!(out, "threshold  none is suggested; `bundle calibrate` finds one")?,
    }
    match &manifest.ranking {
        Some(ranking) => write_ranking(ranking, out)?,
        None => writeln!(out, "ranking    not measured; `bundle calibrate` with labelled samples does")?,
    }
    Ok(())
}

/// How well doubt tells wrong answers from right ones.
pub(super) fn write_ranking(ranking: &Ranking, out: &mut impl Write) -> std::io::Result<()> {
    let Ranking { samples, score, confidence } = ranking;
    writeln!(out, "ranking    of {samples} samples, by the score: {}", ranked(score))?;
    match confidence {
        Some(confidence) => writeln!(out, "           by the model's own confidence: {}", ranked(confidence)),
        None => Ok(()),
    }
}

fn ranked(Ranked { auroc, within: (low, high) }: &Ranked) -> String {
    format!("AUROC {auroc:.3} (95 %: {low:.3} to {high:.3})")
}

fn goldens_pass(bundle: &Bundle, variant: &Variant, model: &mut Model, out: &mut impl Write) -> anyhow::Result<bool> {
    let goldens = &bundle.manifest().goldens;
    if goldens.is_empty() {
        writeln!(out, "golden     no samples")?;
    }
    let mut passed = true;
    for golden in goldens {
        let outcome = model.check_golden(bundle, variant, golden)?;
        let file = golden.file.as_path().display();
        let word = if outcome.passed() { "ok" } else { "DIFFERS" };
        let (said, expected) = outcome.in_words();
        writeln!(out, "golden     {word}: {file} is {said}, expected {expected}")?;
        passed &= outcome.passed();
    }
    Ok(passed)
}

/// What one inference on zeros costs.
pub(super) struct Cost {
    /// As the caller waits; grows when others use the processor.
    pub(super) median_ms: f64,
    /// As the processor works.
    pub(super) processor_ms: f64,
}

/// The first runs, which allocate, do not count.
pub(super) const WARM_UP: u16 = 10;

pub(super) fn measure(model: &mut Model, runs: u16) -> anyhow::Result<Cost> {
    let shape = model.input_shape().to_vec();
    let zeros = Tensor::new(shape.clone(), vec![0.0; shape.iter().product()]);
    for _ in 0..WARM_UP {
        model.run(&zeros)?;
    }
    let mut times = Vec::with_capacity(usize::from(runs));
    let before = processor_time();
    for _ in 0..runs {
        let started = Instant::now();
        model.run(&zeros)?;
        times.push(started.elapsed());
    }
    let processor = processor_time().saturating_sub(before);
    times.sort_unstable();
    let median = times.get(times.len() / 2).context("no runs")?;
    Ok(Cost { median_ms: median.as_secs_f64() * 1e3, processor_ms: processor.as_secs_f64() * 1e3 / f64::from(runs) })
}

/// Of this thread, which is the one that infers.
fn processor_time() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec.unsigned_abs(), u32::try_from(time.tv_nsec).unwrap_or(0))
}
