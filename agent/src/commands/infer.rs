//! `hedge-agent infer`: what the device would answer to these files, and whether it would ask the cloud.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use hedge_core::judge::{Scores, Threshold, explain_unusable, judge};
use hedge_inference::{Bundle, ContentType, Model, Runtime, SessionOptions};
use hedge_proto::{Explanation, LabelScore, ModelRef, Outcome, TaskResult};
use serde::Serialize;

use super::{SAMPLE_BYTES_MAX, SHOWN, read_file};

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
    /// What the best score must reach to be kept [default: the manifest's suggestion, else 0.5]
    #[arg(long, value_name = "0..1")]
    pub score_min: Option<f32>,
    /// Print one JSON object per file
    #[arg(long)]
    pub json: bool,
    /// JPEG and PNG pictures
    #[arg(required = true, value_name = "FILE")]
    pub files: Vec<PathBuf>,
}

/// What is asked of an answer if neither the operator nor the bundle says: more likely right than wrong.
const SCORE_MIN_DEFAULT: f32 = 0.5;

/// Prints an answer for each file. Fails if no model can be loaded; a file that cannot be answered is named and
/// makes the exit code 1.
pub fn run(args: &InferArgs) -> anyhow::Result<ExitCode> {
    write_answers(args, &mut std::io::stdout().lock())
}

/// Like [`run`], into any writer.
pub fn write_answers(args: &InferArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let bundle = Bundle::open(&args.bundle)?;
    let threshold = threshold(&bundle, args.score_min)?;
    let runtime = Runtime::find(args.library.as_deref())?;
    let mut model = Model::load(&runtime, &bundle, args.variant.as_deref(), &SessionOptions::default())?;
    let mut code = ExitCode::SUCCESS;
    for file in &args.files {
        let line = match answer(&bundle, &mut model, &threshold, file) {
            Ok(answer) => Line::Answer(answer),
            Err(error) => {
                code = ExitCode::FAILURE;
                Line::Failed { file: file.display().to_string(), error: format!("{error:#}") }
            }
        };
        if args.json {
            writeln!(out, "{}", serde_json::to_string(&line)?)?;
        } else {
            line.write_text(out)?;
        }
    }
    Ok(code)
}

pub(super) fn threshold(bundle: &Bundle, score_min: Option<f32>) -> anyhow::Result<Threshold> {
    match (score_min, bundle.threshold()) {
        (None, Some(suggested)) => Ok(suggested),
        (score_min, _) => Ok(Threshold::new(score_min.unwrap_or(SCORE_MIN_DEFAULT), 0.0, 1.0)?),
    }
}

#[derive(Serialize)]
#[serde(untagged)]
enum Line {
    Answer(FileAnswer),
    Failed { file: String, error: String },
}

#[derive(Serialize)]
struct FileAnswer {
    file: String,
    task: String,
    model: ModelRef,
    /// Absent when the model's output cannot be read as scores.
    #[serde(skip_serializing_if = "Option::is_none")]
    result: Option<TaskResult>,
    decision: Explanation,
    /// Decoding, resizing and normalising.
    features_ms: f64,
    model_ms: f64,
}

fn answer(bundle: &Bundle, model: &mut Model, threshold: &Threshold, file: &Path) -> anyhow::Result<FileAnswer> {
    let bytes = read_file(file, SAMPLE_BYTES_MAX)?;
    let content_type = ContentType::sniff(&bytes).context("it is neither JPEG nor PNG")?;
    let started = Instant::now();
    let tensor = model.tensor(&content_type, &bytes, None)?;
    let made = Instant::now();
    let output = model.run(&tensor)?;
    let done = Instant::now();
    let (result, decision) = match Scores::read(&output, bundle.output_kind()) {
        Ok(scores) => (Some(result(bundle, &scores)), judge(&scores, &(*threshold).into()).explain()),
        Err(error) => (None, explain_unusable(&error, threshold)),
    };
    Ok(FileAnswer {
        file: file.display().to_string(),
        task: bundle.task().to_owned(),
        model: bundle.model_ref(),
        result,
        decision,
        features_ms: (made - started).as_secs_f64() * 1e3,
        model_ms: (done - made).as_secs_f64() * 1e3,
    })
}

/// The best classes with their labels.
pub(super) fn result(bundle: &Bundle, scores: &Scores) -> TaskResult {
    let labelled = |class: usize| bundle.labels().get(class).cloned().unwrap_or_default();
    let best = scores.top(SHOWN);
    let label = best.first().map(|best| labelled(best.class)).unwrap_or_default();
    let scores = best.iter().map(|best| LabelScore { label: labelled(best.class), score: best.score }).collect();
    TaskResult::Classify { label, scores }
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
    fn write_text(&self, out: &mut impl Write) -> std::io::Result<()> {
        writeln!(out, "{}", self.file)?;
        if let Some(TaskResult::Classify { scores, .. }) = &self.result {
            write_scores(scores, out)?;
        }
        let verdict = match self.decision.outcome {
            Outcome::Keep => "keeps its answer",
            Outcome::Defer => "asks the cloud",
        };
        writeln!(out, "  {verdict}: {}", self.decision.because)?;
        writeln!(out, "  {:.1} ms for the input tensor, {:.1} ms in the model\n", self.features_ms, self.model_ms)
    }
}

/// One line per class: score, label.
pub(super) fn write_scores(scores: &[LabelScore], out: &mut impl Write) -> std::io::Result<()> {
    scores.iter().try_for_each(|best| writeln!(out, "  {:.3}  {}", best.score, best.label))
}
