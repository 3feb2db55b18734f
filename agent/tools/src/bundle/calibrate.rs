//! `bundle calibrate`: fits temperature and threshold on samples with known labels, never on test samples.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, ensure};
use hedge_inference::bundle::{MANIFEST, Ranked, Ranking};
use hedge_inference::task::{OutputKind, Reading};
use hedge_inference::{Bundle, Model, Runtime, SessionOptions, Tensor, read_text};
use hedge_proto::in_one_line;
use toml_edit::{Array, DocumentMut, InlineTable, Item, Table, Value, value};

use super::calibration::{Quality, Scored, accuracy, fit_temperature, logits, quality, ranking, score, score_min};
use super::inspect::write_ranking;
use crate::samples::{SampleArgs, Samples, classes, files, tensors};

/// Fit temperature and threshold on labelled samples and write both into the manifest.
#[derive(Debug, clap::Args)]
pub struct CalibrateArgs {
    /// The folder with the model's `manifest.toml`
    #[arg(value_name = "DIR")]
    pub dir: PathBuf,
    #[command(flatten)]
    pub samples: SampleArgs,
    /// The share of these samples that is to be sent to the cloud
    #[arg(long, value_name = "0..1", default_value_t = 0.18)]
    pub defer_share: f64,
    /// Which of the bundle's files to run [default: the manifest's first]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Only measure the bundle as it is; write nothing
    #[arg(long)]
    pub dry_run: bool,
}

/// Fewer samples are remarked on.
const FEW: usize = 100;

pub(super) fn write(args: &CalibrateArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    ensure!((0.0..=1.0).contains(&args.defer_share), "--defer-share {} is not a number from 0 to 1", args.defer_share);
    let bundle = Bundle::open(&args.dir)?;
    let runtime = Runtime::find(args.library.as_deref())?;
    let mut model = Model::load(&runtime, &bundle, args.variant.as_deref(), &SessionOptions::default())?;
    if let Reading::Boxes(_) = bundle.manifest().output {
        return detector(args, &mut model, out);
    }
    let set = args.samples.open(bundle.labels())?;
    set.check_labels(&bundle)?;
    let Samples { mut known, left_out } = set.run(&bundle, &mut model)?;
    // What nobody has labelled says nothing of what is right.
    known.retain(|sample| !sample.classes.is_empty());
    ensure!(!known.is_empty(), "none of the samples has a label");
    writeln!(out, "samples    {}", known.len())?;
    write_left_out(&left_out, out)?;

    let kind = classes(&bundle)?.kind;
    write_quality("as it is", &quality(&known, kind)?, out)?;
    if args.dry_run {
        if let Some(ranking) = ranking(&score(&known, kind)?) {
            write_ranking(&ranking, out)?;
        }
        if let Some(threshold) = bundle.threshold() {
            write_split(&score(&known, kind)?, threshold.score_min(), out)?;
        }
        return Ok(ExitCode::SUCCESS);
    }
    if known.len() < FEW {
        writeln!(out, "few        what {} samples say of others is little: a few hundred are needed", known.len())?;
    }
    let right = score(&known, kind)?.iter().filter(|sample| sample.right).count();
    let (temperature, kind) = match kind {
        // The surer the better, or the less sure the better: no temperature is the best.
        OutputKind::Logits { .. } if right == 0 || right == known.len() => {
            let which = if right == 0 { "wrong" } else { "right" };
            writeln!(out, "temperature stays as it is: every sample is answered {which}, which says nothing of it")?;
            (None, kind)
        }
        OutputKind::Logits { .. } => {
            let temperature = fit_temperature(&known);
            (Some(temperature), logits(temperature)?)
        }
        // Probabilities cannot be cooled down: only the threshold is chosen.
        kind => (None, kind),
    };
    if let Some(temperature) = temperature {
        write_quality(&format!("temperature {temperature}"), &quality(&known, kind)?, out)?;
    }
    let scored = score(&known, kind)?;
    let score_min = score_min(scored.iter().map(|sample| sample.score).collect(), args.defer_share);
    write_split(&scored, score_min, out)?;
    let ranking = ranking(&scored);
    if let Some(ranking) = &ranking {
        write_ranking(ranking, out)?;
    }
    change_manifest(args, temperature, score_min, ranking.as_ref())?;
    writeln!(out, "written    {}", args.dir.join(MANIFEST).display())?;
    Ok(ExitCode::SUCCESS)
}

/// Of a detector only the threshold is chosen, so that the wanted share of any pictures from its place is sent.
fn detector(args: &CalibrateArgs, model: &mut Model, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let dir = args
        .samples
        .pictures
        .as_ref()
        .context("a detector is calibrated on --pictures DIR: photos from its own place")?;
    let (mut scores, mut left_out) = (Vec::new(), Vec::new());
    for file in files(dir)? {
        let name = file.display();
        let read = tensors(model.input(), &file).and_then(|tensors| {
            let sure = |tensor: &Tensor| {
                let outputs = model.run(tensor)?;
                let (_, doubt) = model.task().read(&outputs, &tensor.frame)?;
                Ok(doubt.score().unwrap_or(1.0))
            };
            tensors.iter().map(sure).collect::<anyhow::Result<Vec<f32>>>()
        });
        match read {
            Ok(sure) => scores.extend(sure),
            Err(error) => left_out.push(format!("{name}: {}", in_one_line(&*error))),
        }
    }
    ensure!(!scores.is_empty(), "{} holds no pictures that the model can be tried on", dir.display());
    writeln!(out, "samples    {}", scores.len())?;
    write_left_out(&left_out, out)?;
    let score_min = score_min(scores.clone(), args.defer_share);
    let deferred = scores.iter().filter(|score| **score < score_min).count();
    writeln!(out, "score_min {score_min}: {deferred} of {} go to the cloud", scores.len())?;
    if !args.dry_run {
        change_manifest(args, None, score_min, None)?;
        writeln!(out, "written    {}", args.dir.join(MANIFEST).display())?;
    }
    Ok(ExitCode::SUCCESS)
}

fn write_left_out(left_out: &[String], out: &mut impl Write) -> std::io::Result<()> {
    if left_out.is_empty() {
        return Ok(());
    }
    writeln!(out, "left out   {}, for these say nothing:", left_out.len())?;
    left_out.iter().take(NAMED_MAX).try_for_each(|sample| writeln!(out, "           {sample}"))?;
    match left_out.len().saturating_sub(NAMED_MAX) {
        0 => Ok(()),
        more => writeln!(out, "           and {more} more"),
    }
}

/// Samples that are left out are counted all, and named up to so many.
const NAMED_MAX: usize = 20;

fn write_quality(name: &str, quality: &Quality, out: &mut impl Write) -> std::io::Result<()> {
    let Quality { accuracy, log_loss, calibration_error } = quality;
    writeln!(out, "{name}: accuracy {accuracy:.4}, log loss {log_loss:.4}, calibration error {calibration_error:.4}")
}

fn write_split(scored: &[Scored], score_min: f32, out: &mut impl Write) -> std::io::Result<()> {
    let (kept, deferred): (Vec<Scored>, Vec<Scored>) = scored.iter().partition(|sample| sample.score >= score_min);
    let share = deferred.len() as f64 / scored.len() as f64;
    writeln!(
        out,
        "score_min  {score_min}: {share:.4} of the samples are deferred; kept answers are right in {:.4}, deferred ones in {:.4}",
        accuracy(&kept),
        accuracy(&deferred)
    )
}

/// Changes these numbers and leaves the rest of the file, with its comments, as it was.
fn change_manifest(
    args: &CalibrateArgs,
    temperature: Option<f64>,
    score_min: f32,
    ranking: Option<&Ranking>,
) -> anyhow::Result<()> {
    let path = args.dir.join(MANIFEST);
    let text = read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut manifest: DocumentMut = text.parse().with_context(|| path.display().to_string())?;
    if let Some(temperature) = temperature {
        set(&mut manifest, "output", "temperature", temperature.into());
    }
    set(&mut manifest, "threshold", "score_min", decimal(f64::from(score_min)));
    // What was found on other samples is not of these.
    manifest.remove("ranking");
    if let Some(ranking) = ranking {
        set(&mut manifest, "ranking", "samples", i64::from(ranking.samples).into());
        set(&mut manifest, "ranking", "score", ranked(&ranking.score));
        if let Some(confidence) = &ranking.confidence {
            set(&mut manifest, "ranking", "confidence", ranked(confidence));
        }
    }
    let new = path.with_extension("toml.new");
    std::fs::write(&new, manifest.to_string()).with_context(|| format!("cannot write {}", new.display()))?;
    std::fs::rename(&new, &path).with_context(|| format!("cannot replace {}", path.display()))
}

/// 0.7321_f32 as f64 would be written with all its binary noise.
fn decimal(number: f64) -> Value {
    ((number * 1e4).round() / 1e4).into()
}

fn ranked(Ranked { auroc, within }: &Ranked) -> Value {
    let [auroc, low, high] = [*auroc, within.0, within.1].map(|share| decimal(f64::from(share)));
    InlineTable::from_iter([("auroc", auroc), ("within", Array::from_iter([low, high]).into())]).into()
}

fn set(manifest: &mut DocumentMut, table: &str, key: &str, number: Value) {
    let table = manifest.entry(table).or_insert_with(|| Item::Table(Table::new()));
    match table.get_mut(key).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = number;
            *old.decor_mut() = decor;
        }
        None => table[key] = value(number),
    }
}
