//! `bundle init`: a bundle from anyone's ONNX classifier or detector. What the file does not say is found by trying, told, or asked.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, anyhow, bail, ensure};
use hedge_core::judge::Limits;
use hedge_inference::bundle::labels::{self, Labels};
use hedge_inference::bundle::{MANIFEST, MODEL_BYTES_MAX};
use hedge_inference::model::{Outline, Port};
use hedge_inference::task::{OutputKind, Temperature};
use hedge_inference::{Bundle, Model, ModelError, Runtime, SessionOptions, Tensor, Tensors, read_text};
use hedge_proto::Name;

use super::detector::DetectorArgs;
use super::draft::{Draft, OutputLines, Size};
use super::trial;
use crate::read_file;
use crate::samples::tensors;
use hedge_agent::inference::Opinion;

/// Make a bundle from an ONNX classifier or detector and its labels.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// The model, in one file
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// The labels in the order of the model's outputs: one per line, numbered, as JSON, a label map or a table
    /// [default: none, and the classes have numbers]
    #[arg(long, value_name = "FILE")]
    pub labels: Option<PathBuf>,
    /// What the model says: one label for a sample, or a box for each thing [default: told by its outputs]
    #[arg(long, value_enum)]
    pub kind: Option<Kind>,
    /// How pixels become numbers [default: imagenet for colour, unit for gray]
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// The middle share of a picture that the model sees: 0.875 is "resize to 256, crop 224" [default: of the preset]
    #[arg(long, value_name = "SHARE")]
    pub crop: Option<f64>,
    /// How a picture fits the model's input [default: centre-crop of a classifier, letterbox of a detector]
    #[arg(long, value_enum)]
    pub fit: Option<Fit>,
    /// The model takes blue first, as pictures of OpenCV come
    #[arg(long)]
    pub bgr: bool,
    /// The new folder [default: named like the model]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The bundle's name [default: the model file's]
    #[arg(long)]
    pub name: Option<String>,
    /// Which question the model answers; the cloud's model must have the same task [default: the name]
    #[arg(long)]
    pub task: Option<String>,
    /// Width and height in pixels, if the model leaves them open [default: 224x224]
    #[arg(long, value_name = "WIDTHxHEIGHT")]
    pub size: Option<Size>,
    /// The output with the class scores, if the model has several
    #[arg(long, value_name = "NAME")]
    pub output: Option<String>,
    /// An output of one number from 0 to 1 that says how probably the answer is right
    #[arg(long, value_name = "NAME")]
    pub confidence: Option<String>,
    /// An output whose numbers may leave the device in the place of the sample (`payload = "embedding"`)
    #[arg(long, value_name = "NAME")]
    pub embedding: Option<String>,
    /// What the output holds: logits, probabilities, percent or bytes [default: found by running the model]
    #[arg(long, value_name = "KIND", value_parser = output_kind)]
    pub output_kind: Option<OutputKind>,
    /// A picture, or a sample in numbers, to try the bundle on; can be given several times
    #[arg(long, visible_alias = "sample", value_name = "FILE")]
    pub picture: Vec<PathBuf>,
    /// How sound or a series becomes numbers: a file with `[input.audio]` or `[input.series]`, as
    /// docs/sound-and-series.md shows them
    #[arg(long, value_name = "FILE.toml", conflicts_with_all = ["preset", "crop", "fit", "bgr", "size"])]
    pub input: Option<PathBuf>,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
    #[command(flatten)]
    pub detector: DetectorArgs,
}

/// What a model says.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Kind {
    Classify,
    Detect,
}

/// How a picture fits a model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Fit {
    /// The longer sides are cut off
    CentreCrop,
    /// All of it, out of proportion
    Stretch,
    /// All of it in the middle of padding
    Letterbox,
    /// All of it in the corner, with padding to the right and below
    LetterboxTopLeft,
}

impl Fit {
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::CentreCrop => "centre_crop",
            Self::Stretch => "stretch",
            Self::Letterbox => "letterbox",
            Self::LetterboxTopLeft => "letterbox_top_left",
        }
    }
}

impl InitArgs {
    /// Outputs that are no answer, by the manifest's words for them.
    pub(super) fn beside(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let given = [("confidence", &self.confidence), ("embedding", &self.embedding)];
        given.into_iter().filter_map(|(word, output)| Some((word, output.as_deref()?)))
    }

    pub(super) fn labels_shown(&self) -> String {
        self.labels.as_ref().map_or_else(String::new, |file| file.display().to_string())
    }
}

/// Ways of normalising that most models were trained with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum Preset {
    /// ImageNet's mean and deviation per channel (torchvision, timm)
    Imagenet,
    /// 0 to 1
    Unit,
    /// -1 to 1
    MinusOneOne,
    /// 0 to 255, as they are
    Raw,
}

impl Preset {
    /// Mean and deviation in pixel units, as TOML.
    pub(super) fn numbers(self) -> (&'static str, &'static str) {
        match self {
            Self::Imagenet => ("[123.675, 116.28, 103.53]", "[58.395, 57.12, 57.375]"),
            Self::Unit => ("0.0", "255.0"),
            Self::MinusOneOne => ("127.5", "127.5"),
            Self::Raw => ("0.0", "1.0"),
        }
    }

    /// The middle share of a picture that models trained so are usually tried on: resize to 256, crop 224.
    pub(super) fn crop(self) -> f64 {
        if self == Self::Imagenet { 0.875 } else { 1.0 }
    }
}

fn output_kind(word: &str) -> Result<OutputKind, String> {
    let logits = OutputKind::Logits { temperature: Temperature::ONE };
    let kinds = [logits, OutputKind::Probabilities, OutputKind::Percent, OutputKind::Bytes];
    let kind = kinds.into_iter().find(|kind| kind.word() == word);
    kind.ok_or_else(|| "an output holds logits (also log-softmax), probabilities, percent or bytes".to_owned())
}

pub(super) fn write(args: &InitArgs, out: &mut impl Write) -> anyhow::Result<ExitCode> {
    let stem = args.model.file_stem().and_then(|stem| stem.to_str()).unwrap_or("model");
    let name = Name::new(args.name.as_deref().unwrap_or(stem)).context("choose another name with --name")?;
    let task = match &args.task {
        Some(task) => Name::new(task).context("choose another task with --task")?,
        None => name.clone(),
    };
    let dir = args.out.clone().unwrap_or_else(|| PathBuf::from(name.as_str()));
    ensure!(!dir.join(MANIFEST).exists(), "{} has a manifest already; choose another folder with --out", dir.display());
    let filled = std::fs::read_dir(&dir).is_ok_and(|mut files| files.next().is_some());
    ensure!(!filled, "{} is not empty; choose a new folder with --out", dir.display());

    let runtime = Runtime::find(args.library.as_deref())?;
    let mut outline = Outline::read(&runtime, &args.model).map_err(|error| not_loaded(args, error))?;
    for (word, output) in args.beside() {
        take_beside(&mut outline, word, output).with_context(|| args.model.display().to_string())?;
    }
    let read_labels = |file: &PathBuf| {
        let text = read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
        labels::read(&text).map_err(|reason| anyhow!("{}: {reason}", file.display()))
    };
    let labels = args.labels.as_ref().map(read_labels).transpose()?;
    let draft = Draft::new(args, &outline, labels.as_ref(), name, task)?;

    // Made beside its place: what fails on the way is never taken for a bundle.
    let new = beside(&dir)?;
    let made = Made { args, runtime, labels, dir: new.clone() }.make(draft).and_then(|text| {
        std::fs::rename(&new, &dir).with_context(|| format!("cannot move {} to {}", new.display(), dir.display()))?;
        Ok(text)
    });
    match made {
        Ok(text) => out.write_all(text.as_bytes())?,
        Err(error) => {
            // The error says more than that the rest of it could not be removed.
            drop(std::fs::remove_dir_all(&new));
            return Err(error);
        }
    }
    writeln!(out, "{} is ready. Next: hedge-agent bundle calibrate {}", dir.join(MANIFEST).display(), dir.display())?;
    Ok(ExitCode::SUCCESS)
}

/// What stands beside the answer is none of it.
fn take_beside(outline: &mut Outline, word: &str, name: &str) -> anyhow::Result<()> {
    let known: Vec<String> = outline.outputs.iter().map(Port::to_string).collect();
    let Some(at) = outline.outputs.iter().position(|port| port.name == name) else {
        bail!("there is no output `{name}` for --{word}; it has {}", known.join(", "));
    };
    let port = outline.outputs.remove(at);
    let is_one = port.values() == Some(1) || port.shape.as_deref() == Some(&[-1]);
    let (fits, wanted) = if word == "confidence" { (is_one, "of one number") } else { (true, "of fractions") };
    ensure!(port.is_float() && fits, "--{word} takes an output {wanted}, but this is {port}");
    Ok(())
}

/// A new folder on the same file system as `dir`. What an interrupted run left there is removed.
fn beside(dir: &Path) -> anyhow::Result<PathBuf> {
    let name = dir.file_name().with_context(|| format!("name a new folder with --out, not {}", dir.display()))?;
    let new = dir.with_file_name(format!(".{}.new", name.to_string_lossy()));
    if new.exists() {
        std::fs::remove_dir_all(&new).with_context(|| format!("cannot remove {}", new.display()))?;
    }
    std::fs::create_dir_all(&new).with_context(|| format!("cannot make {}", new.display()))?;
    Ok(new)
}

/// A bundle that is being made.
struct Made<'a> {
    args: &'a InitArgs,
    runtime: Runtime,
    labels: Option<Labels>,
    dir: PathBuf,
}

impl Made<'_> {
    /// Fills the folder; returns what there is to say.
    fn make(&self, mut draft: Draft) -> anyhow::Result<String> {
        let Self { args, labels, dir, .. } = self;
        let model_file = dir.join("model.onnx");
        std::fs::copy(&args.model, &model_file)
            .with_context(|| format!("cannot copy {} to {}", args.model.display(), dir.display()))?;
        if let Some(labels) = labels {
            let label_file = dir.join("labels.txt");
            std::fs::write(&label_file, labels.names.join("\n") + "\n")
                .with_context(|| format!("cannot write {}", label_file.display()))?;
        }
        if let Some(priors) = &args.detector.priors {
            std::fs::copy(priors, dir.join("priors.npy"))
                .with_context(|| format!("cannot copy {}", priors.display()))?;
        }
        draft.write_manifest(dir)?;
        let (bundle, mut model) = self.load()?;
        draft.check_pixels(bundle.input()).with_context(|| args.model.display().to_string())?;
        let mut inputs = trial::inputs(bundle.input());
        for file in &args.picture {
            inputs.extend(tensors(model.input(), file).with_context(|| file.display().to_string())?);
        }
        let outputs = outputs(&mut model, &inputs)?;
        let pixels = draft.pixels();
        let words = match &mut draft.output {
            OutputLines::Classes { name, kind, is_byte } => {
                let values: Vec<Vec<f32>> =
                    outputs.iter().filter_map(|one| Some(one.get(name).ok()?.data.clone())).collect();
                let (found, words) = trial::output_kind(&values, args.output_kind)
                    .map_err(|reason| anyhow!("the output `{name}` of {}: {reason}", args.model.display()))?;
                *kind = found;
                match kind {
                    OutputKind::Logits { .. } if *is_byte => format!(
                        "`{name}`: {words} in bytes, whose scale is not known: far too sure until `bundle calibrate` finds it"
                    ),
                    _ => format!("`{name}`: {words}"),
                }
            }
            OutputLines::Boxes(detector) => {
                // Far beyond any picture a detector's boxes are anywhere.
                let usual = outputs.len().min(trial::ORDINARY);
                let photos = outputs.iter().skip(trial::ALL);
                let seen: Vec<Tensors> = outputs[..usual].iter().chain(photos).cloned().collect();
                detector.tried(&seen, pixels).with_context(|| args.model.display().to_string())?;
                detector.in_words()
            }
        };
        draft.write_manifest(dir)?;
        self.can_answer(&inputs, &outputs)?;
        let mut lines = vec![
            draft.to_string(),
            match labels {
                Some(labels) => format!("labels     {}, read as {}", labels.names.len(), labels.form),
                None => "labels     none: the classes have numbers".to_owned(),
            },
            format!("output     {words}"),
        ];
        lines.append(&mut draft.remarks);
        lines.extend(self.repeated());
        let mut text = lines.join("\n") + "\n\n";
        if !args.picture.is_empty() {
            text.push_str(&self.answers()?);
        }
        Ok(text)
    }

    /// A bundle that reads hardly anything of what its model gives is none.
    fn can_answer(&self, inputs: &[Tensor], outputs: &[Tensors]) -> anyhow::Result<()> {
        let task = Bundle::open(&self.dir)?.reading();
        let ordinary = outputs.iter().zip(inputs).take(trial::ORDINARY);
        let read: Vec<_> = ordinary.map(|(outputs, input)| task.read(outputs, &input.frame)).collect();
        let mut unusable = read.iter().filter_map(|one| one.as_ref().err());
        match unusable.next() {
            Some(error) if unusable.count() * 2 >= read.len() => {
                Err(anyhow!("{} gives what cannot be read so: {error}", self.args.model.display()))
            }
            _ => Ok(()),
        }
    }

    fn load(&self) -> anyhow::Result<(Bundle, Model)> {
        let bundle = Bundle::open(&self.dir)?;
        let model = Model::load(&self.runtime, &bundle, None, &SessionOptions::default())
            .map_err(|error| not_loaded(self.args, error))?;
        Ok((bundle, model))
    }

    /// What the new bundle answers to the pictures.
    fn answers(&self) -> anyhow::Result<String> {
        let (_, mut model) = self.load()?;
        let mut text = Vec::new();
        for file in &self.args.picture {
            writeln!(text, "{}", file.display())?;
            for tensor in tensors(model.input(), file)? {
                let outputs = model.run(&tensor)?;
                let opinion = Opinion::new(model.task(), &outputs, &tensor.frame, &Limits::NONE.into());
                match opinion.said {
                    Some(said) => said.lines().iter().try_for_each(|line| writeln!(text, "  {line}"))?,
                    None => writeln!(text, "  no answer: {}", opinion.explanation.because)?,
                }
            }
        }
        if self.args.input.is_none() {
            writeln!(text, "If these are not what the picture shows, try another --preset.\n")?;
        }
        Ok(String::from_utf8(text)?)
    }

    /// A remark on names that several labels share.
    fn repeated(&self) -> Option<String> {
        let names = &self.labels.as_ref()?.names;
        let mut sorted: Vec<&str> = names.iter().map(String::as_str).collect();
        sorted.sort_unstable();
        let mut twice: Vec<String> =
            sorted.windows(2).filter(|two| two[0] == two[1]).map(|two| format!("`{}`", two[0])).collect();
        twice.dedup();
        let more = if twice.len() > REPEATED_SHOWN { ", …" } else { "" };
        twice.truncate(REPEATED_SHOWN);
        (!twice.is_empty()).then(|| {
            format!(
                "repeated   {}{more}: a threshold, a weight or a calibration folder of that name holds for all classes \
                 that have it",
                twice.join(", ")
            )
        })
    }
}

/// So many names that stand more than once are shown.
const REPEATED_SHOWN: usize = 5;

/// What the model gives for each input it can run.
fn outputs(model: &mut Model, inputs: &[Tensor]) -> anyhow::Result<Vec<Tensors>> {
    let (outputs, mut errors): (Vec<_>, Vec<_>) = inputs.iter().map(|input| model.run(input)).partition(Result::is_ok);
    match errors.pop() {
        // An input far beyond any sample may be too much for a model that is right.
        Some(Err(error)) if outputs.is_empty() => Err(error.into()),
        _ => Ok(outputs.into_iter().flatten().collect()),
    }
}

/// A model that was exported in several files loads only where all of them are.
fn not_loaded(args: &InitArgs, error: ModelError) -> anyhow::Error {
    let files = match &error {
        ModelError::Load { .. } => read_file(&args.model, MODEL_BYTES_MAX).map(|bytes| external(&bytes)),
        _ => Ok(Vec::new()),
    };
    match files {
        Ok(files) if !files.is_empty() => anyhow!(
            "{} keeps its weights in {}; a bundle holds a model in one file, so export it as one: in Python, \
             onnx.save(onnx.load(\"{}\"), \"one-file.onnx\")",
            args.model.display(),
            files.join(", "),
            args.model.display()
        ),
        _ => error.into(),
    }
}

/// The files beside it that an ONNX file says hold its weights: entries `location` of `external_data`, a message of
/// key (field 1) and value (field 2), as protobuf lays them down.
fn external(bytes: &[u8]) -> Vec<String> {
    const KEY: &[u8] = b"\x0a\x08location\x12";
    let mut files: Vec<String> = Vec::new();
    let found = bytes.windows(KEY.len()).enumerate().filter(|(_, window)| *window == KEY);
    for (at, _) in found {
        let Some((length, rest)) = bytes[at + KEY.len()..].split_first() else { continue };
        let name = rest.get(..usize::from(*length)).and_then(|name| std::str::from_utf8(name).ok());
        if let Some(name) = name.filter(|name| !files.iter().any(|known| known == name)) {
            files.push(name.to_owned());
        }
    }
    files
}
