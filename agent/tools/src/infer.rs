//! `hedge-agent infer`: what the device would answer to these files, and whether it would ask the cloud.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::Context;
use hedge_core::judge::{Limits, Thresholds};
use hedge_inference::{Bundle, ContentType, Model, Runtime, SessionOptions, Tensor, drawn};
use hedge_proto::{Explanation, ModelRef, Outcome, Output, Rect, in_one_line};
use serde::Serialize;

use crate::samples::tensors;
use crate::{SAMPLE_BYTES_MAX, read_file};
use hedge_agent::inference::Opinion;
use hedge_agent::sample::NO_THRESHOLD;
use hedge_config::{Config, ThresholdConfig};

/// Answer files with a model and explain each decision; nothing is stored or sent.
#[derive(Debug, clap::Args)]
pub struct InferArgs {
    /// The folder with the model's `manifest.toml`
    #[arg(long, value_name = "DIR")]
    pub bundle: PathBuf,
    /// Which of the bundle's files to use, for example fp32 [default: the manifest's first]
    #[arg(long, value_name = "NAME")]
    pub variant: Option<String>,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    /// Use the threshold that this configuration of the agent gives the model with this bundle
    #[arg(long, value_name = "FILE", conflicts_with = "score_min")]
    pub config: Option<PathBuf>,
    /// What the best score must reach to be kept [default: the manifest's suggestion]
    #[arg(long, value_name = "0..1")]
    pub score_min: Option<f32>,
    /// Also draw what was found into copies of the pictures, as JPEG, in this folder
    #[arg(long, value_name = "DIR")]
    pub draw: Option<PathBuf>,
    /// Print one JSON object per file
    #[arg(long)]
    pub json: bool,
    /// JPEG and PNG pictures, or numbers as .npy, CSV or raw float32
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// Prints an answer for each file. Fails if no model can be loaded; a file that cannot be answered is named and
/// makes the exit code 1.
pub fn run(args: &InferArgs) -> anyhow::Result<ExitCode> {
    write_answers(args, &mut std::io::stdout().lock())
}

/// Like [`run`], into any writer.
pub fn write_answers(args: &InferArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let bundle = Bundle::open(&args.bundle)?;
    let asked = match &args.config {
        Some(file) => configured(file, &args.bundle)?,
        None => args.score_min.map(ThresholdConfig::of).transpose()?.unwrap_or_default(),
    };
    let thresholds = asked.resolve(bundle.threshold(), bundle.labels(), |own| bundle.cloud_label(own));
    let runtime = Runtime::find(args.library.as_deref())?;
    let mut model = Model::load(&runtime, &bundle, args.variant.as_deref(), &SessionOptions::default())?;
    let mut code = ExitCode::SUCCESS;
    for file in &args.files {
        let lines = answers(&bundle, &mut model, thresholds.as_ref(), file).unwrap_or_else(|error| {
            code = ExitCode::FAILURE;
            vec![Line::Failed { file: file.display().to_string(), error: in_one_line(&*error) }]
        });
        for line in lines {
            if let (Some(folder), Line::Answer(answer)) = (&args.draw, &line) {
                answer.draw(file, folder)?;
            }
            if args.json {
                writeln!(out, "{}", serde_json::to_string(&line)?)?;
            } else {
                line.write_text(out)?;
            }
        }
    }
    Ok(code)
}

/// The threshold of the model that has this bundle.
fn configured(file: &Path, bundle: &Path) -> anyhow::Result<ThresholdConfig> {
    let config = Config::load(file, std::env::vars())?;
    // However the two write the same folder.
    let folder = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let mut models = config.models.into_iter();
    let model = models.find(|model| folder(&model.bundle) == folder(bundle)).with_context(|| {
        format!("{} has no [[model]] with the bundle {}; see `bundle` there", file.display(), bundle.display())
    })?;
    Ok(model.threshold)
}

#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Answer(Box<FileAnswer>),
    Failed { file: String, error: String },
}

#[derive(Serialize)]
struct FileAnswer {
    file: String,
    /// Which sample of the file, from 1, if it holds several.
    #[serde(skip_serializing_if = "Option::is_none")]
    sample: Option<usize>,
    task: String,
    model: ModelRef,
    /// Absent when the model's output cannot be read as scores.
    #[serde(rename = "result", skip_serializing_if = "Option::is_none")]
    said: Option<Output>,
    /// Absent when there is no threshold to decide by.
    #[serde(skip_serializing_if = "Option::is_none")]
    decision: Option<Explanation>,
    #[serde(skip_serializing_if = "Option::is_none")]
    undecided: Option<&'static str>,
    /// Decoding, resizing and normalising.
    features_ms: f64,
    model_ms: f64,
}

/// Milliseconds, as many of their parts as a clock tells.
fn in_ms(took: Duration) -> f64 {
    (took.as_secs_f64() * 1e6).round() / 1e3
}

/// One answer for each sample of a file.
fn answers(
    bundle: &Bundle,
    model: &mut Model,
    thresholds: Option<&Thresholds>,
    file: &Path,
) -> anyhow::Result<Vec<Line>> {
    let started = Instant::now();
    let tensors = tensors(model.input(), file)?;
    let features_ms = in_ms(started.elapsed() / u32::try_from(tensors.len().max(1)).unwrap_or(1));
    let several = tensors.len() > 1;
    let answer = |(at, tensor): (usize, &Tensor)| {
        let begun = Instant::now();
        let outputs = model.run(tensor)?;
        let model_ms = in_ms(begun.elapsed());
        let Opinion { said, explanation, .. } =
            Opinion::new(model.task(), &outputs, &tensor.frame, thresholds.unwrap_or(&Limits::NONE.into()));
        Ok(Line::Answer(Box::new(FileAnswer {
            file: file.display().to_string(),
            sample: several.then_some(at + 1),
            task: bundle.task().to_owned(),
            model: bundle.model_ref(),
            said,
            decision: thresholds.map(|_| explanation),
            undecided: thresholds.is_none().then_some(NO_THRESHOLD),
            features_ms,
            model_ms,
        })))
    };
    tensors.iter().enumerate().map(answer).collect()
}

impl Line {
    fn write_text(&self, out: &mut impl Write) -> std::io::Result<()> {
        match self {
            Self::Failed { file, error } => writeln!(out, "{file}\n  no answer: {error}\n"),
            Self::Answer(answer) => answer.write_text(out),
        }
    }
}

impl FileAnswer {
    /// A copy of the picture with a frame around each thing; nothing of a sample without places.
    fn draw(&self, file: &Path, folder: &Path) -> anyhow::Result<()> {
        let Some(Output::Boxes(found)) = &self.said else { return Ok(()) };
        let bytes = read_file(file, SAMPLE_BYTES_MAX)?;
        let Some(content_type) = ContentType::sniff(&bytes) else { return Ok(()) };
        let places: Vec<Rect> = found.iter().map(|one| one.place).collect();
        let picture = drawn(&content_type, &bytes, &places)?;
        let name = format!("{}.boxes.jpg", file.file_stem().unwrap_or_default().to_string_lossy());
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let path = folder.join(name);
        std::fs::write(&path, picture).with_context(|| format!("cannot write {}", path.display()))
    }

    fn write_text(&self, out: &mut impl Write) -> std::io::Result<()> {
        match self.sample {
            None => writeln!(out, "{}", self.file)?,
            Some(sample) => writeln!(out, "{}, sample {sample}", self.file)?,
        }
        if let Some(said) = &self.said {
            said.lines().iter().try_for_each(|line| writeln!(out, "  {line}"))?;
        }
        match &self.decision {
            Some(decision) => {
                let verdict = match decision.outcome {
                    Outcome::Keep => "keeps its answer",
                    Outcome::Defer => "asks the cloud",
                };
                let nothing = matches!(&self.said, Some(Output::Boxes(found)) if found.is_empty());
                let nothing = if nothing { "no box is shown; how far the best hidden one is from it: " } else { "" };
                writeln!(out, "  {verdict}: {nothing}{}", decision.because)?;
            }
            None => writeln!(out, "  the agent would not answer: {NO_THRESHOLD}")?,
        }
        writeln!(out, "  {:.1} ms for the input tensor, {:.1} ms in the model\n", self.features_ms, self.model_ms)
    }
}
