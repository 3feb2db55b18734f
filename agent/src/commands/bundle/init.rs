//! `bundle init`: a bundle from anyone's ONNX classifier. What the file does not say is guessed and told.

use std::fmt;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use hedge_core::judge::{OutputKind, Scores};
use hedge_inference::bundle::{MANIFEST, sum_of};
use hedge_inference::model::{Outline, Port};
use hedge_inference::{Bundle, Model, Runtime, SessionOptions, Tensor};
use hedge_proto::{Name, TaskResult};

use super::samples::picture_tensor;
use crate::commands::infer::{result, write_scores};

/// Make a bundle from an ONNX classifier and its labels.
#[derive(Debug, clap::Args)]
pub struct InitArgs {
    /// The model, in one file
    #[arg(value_name = "MODEL.onnx")]
    pub model: PathBuf,
    /// One label per line, in the order of the model's outputs
    #[arg(long, value_name = "FILE")]
    pub labels: PathBuf,
    /// How pixels become numbers [default: imagenet for colour, unit for gray]
    #[arg(long, value_enum)]
    pub preset: Option<Preset>,
    /// The new folder [default: named like the model]
    #[arg(long, value_name = "DIR")]
    pub out: Option<PathBuf>,
    /// The bundle's name [default: the model file's]
    #[arg(long)]
    pub name: Option<String>,
    /// Which question the model answers; the cloud's model must have the same task [default: the name]
    #[arg(long)]
    pub task: Option<String>,
    /// Width and height in pixels, if the model leaves them open
    #[arg(long, value_name = "PIXELS", default_value_t = 224)]
    pub size: u16,
    /// A picture to try the bundle on
    #[arg(long, value_name = "FILE")]
    pub picture: Option<PathBuf>,
    /// The ONNX Runtime library [default: searched for]
    #[arg(long, value_name = "FILE")]
    pub library: Option<PathBuf>,
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
    fn numbers(self) -> (&'static str, &'static str) {
        match self {
            Self::Imagenet => ("[123.675, 116.28, 103.53]", "[58.395, 57.12, 57.375]"),
            Self::Unit => ("0.0", "255.0"),
            Self::MinusOneOne => ("127.5", "127.5"),
            Self::Raw => ("0.0", "1.0"),
        }
    }
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

    let runtime = Runtime::find(args.library.as_deref())?;
    let outline = Outline::read(&runtime, &args.model)?;
    let labels = std::fs::read_to_string(&args.labels)
        .with_context(|| format!("cannot read {}", args.labels.display()))?
        .lines()
        .count();
    let mut draft = Draft::new(args, &outline, labels, name, task)?;

    std::fs::create_dir_all(&dir).with_context(|| format!("cannot make {}", dir.display()))?;
    copy(&args.model, &dir.join("model.onnx"))?;
    copy(&args.labels, &dir.join("labels.txt"))?;
    draft.write_manifest(&dir)?;
    // Only a run tells logits from probabilities; until then they are logits, which any numbers may be.
    let mut model = load(&runtime, &dir)?;
    draft.probabilities = gives_probabilities(&mut model)?;
    draft.write_manifest(&dir)?;
    writeln!(out, "{draft}")?;
    if let Some(picture) = &args.picture {
        let bundle = Bundle::open(&dir)?;
        let output = model.run(&picture_tensor(&model, picture).with_context(|| picture.display().to_string())?)?;
        let scores = Scores::read(&output, bundle.output_kind())?;
        writeln!(out, "{}", picture.display())?;
        if let TaskResult::Classify { scores, .. } = result(&bundle, &scores) {
            write_scores(&scores, out)?;
        }
        writeln!(out, "If these are not what the picture shows, try another --preset.\n")?;
    }
    writeln!(out, "{} is ready. Next: hedge-agent bundle calibrate {}", dir.join(MANIFEST).display(), dir.display())?;
    Ok(ExitCode::SUCCESS)
}

fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    std::fs::copy(from, to).with_context(|| format!("cannot copy {} to {}", from.display(), to.display()))?;
    Ok(())
}

fn load(runtime: &Runtime, dir: &Path) -> anyhow::Result<Model> {
    Ok(Model::load(runtime, &Bundle::open(dir)?, None, &SessionOptions::default())?)
}

/// Whether what the model gives for an empty input can only be probabilities.
fn gives_probabilities(model: &mut Model) -> anyhow::Result<bool> {
    let shape = model.input_shape().to_vec();
    let output = model.run(&Tensor { data: vec![0.0; shape.iter().product()], shape })?;
    Ok(output.len() > 1 && Scores::read(&output, OutputKind::Probabilities).is_ok())
}

/// What goes into the manifest.
struct Draft {
    name: Name,
    task: Name,
    input: String,
    shape: Vec<usize>,
    /// Layout, colour and preset, if the model takes pictures.
    picture: Option<(&'static str, &'static str, Preset)>,
    output: String,
    probabilities: bool,
}

impl Draft {
    fn new(args: &InitArgs, outline: &Outline, labels: usize, name: Name, task: Name) -> anyhow::Result<Self> {
        let model = args.model.display();
        let [input] = outline.inputs.as_slice() else {
            bail!("{model} has {} inputs; models with one are supported", outline.inputs.len());
        };
        let open_shape = input.shape.as_deref().with_context(|| {
            format!("the input `{}` of {model} is {}; tensors of f32 are supported", input.name, input.kind)
        })?;
        let (shape, picture) = guess(open_shape, args.size)
            .with_context(|| format!("the input `{}` of {model} has the shape {open_shape:?}", input.name))?;
        let picture = picture.map(|(layout, color)| {
            let usual = if color == "gray" { Preset::Unit } else { Preset::Imagenet };
            (layout, color, args.preset.unwrap_or(usual))
        });
        if let Some((_, "gray", Preset::Imagenet)) = picture {
            bail!("the preset imagenet has three channels, but {model} takes one; choose another --preset");
        }
        let output = class_output(&outline.outputs, labels).with_context(|| {
            format!(
                "{model} has no output with one number for each of the {labels} labels; it has {:?}",
                outline.outputs
            )
        })?;
        Ok(Self { name, task, input: input.name.clone(), shape, picture, output, probabilities: false })
    }

    fn write_manifest(&self, dir: &Path) -> anyhow::Result<()> {
        let model = dir.join("model.onnx");
        let bytes = std::fs::metadata(&model).with_context(|| format!("cannot read {}", model.display()))?.len();
        let manifest = format!(
            "{self}\n[[variant]]\nname = \"default\"\nfile = \"model.onnx\"\nsha256 = \"{}\"\nbytes = {bytes}\n",
            sum_of(&model)?
        );
        let path = dir.join(MANIFEST);
        std::fs::write(&path, manifest).with_context(|| format!("cannot write {}", path.display()))
    }
}

/// One sample at a time, open sizes filled in; and layout and colour if the shape is that of a picture.
type Guess = (Vec<usize>, Option<(&'static str, &'static str)>);

fn guess(open_shape: &[i64], size: u16) -> anyhow::Result<Guess> {
    let sized = |dimension: &i64| usize::try_from(*dimension).unwrap_or(usize::from(size));
    let mut shape: Vec<usize> = open_shape.iter().map(sized).collect();
    match open_shape.first() {
        Some(-1 | 1) => shape[0] = 1,
        _ => bail!("its first dimension is not one sample at a time"),
    }
    let color = |channels: usize| match channels {
        1 => Some("gray"),
        3 => Some("rgb"),
        _ => None,
    };
    let picture = match (open_shape, shape.as_slice()) {
        (&[_, 1 | 3, _, _], &[_, channels, _, _]) => color(channels).map(|color| ("nchw", color)),
        (&[_, _, _, 1 | 3], &[_, _, _, channels]) => color(channels).map(|color| ("nhwc", color)),
        (&[_, _, _, _], _) => bail!("none of its dimensions can be 1 or 3 colours"),
        _ if open_shape[1..].contains(&-1) => {
            bail!("it leaves sizes open and is no picture; export it with fixed sizes")
        }
        _ => None,
    };
    Ok((shape, picture))
}

/// The output with as many numbers as there are labels; one of open size if there is no such.
fn class_output(outputs: &[Port], labels: usize) -> Option<String> {
    let last = |port: &&Port| port.shape.as_deref().and_then(|shape| shape.last().copied());
    let exact = outputs.iter().find(|port| last(port).is_some_and(|size| usize::try_from(size) == Ok(labels)));
    let open = || outputs.iter().find(|port| last(port).is_some_and(|size| size < 0));
    exact.or_else(open).map(|port| port.name.clone())
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, task, input, shape, output, .. } = self;
        let quoted = |text: &str| toml_edit::Value::from(text).to_string().trim().to_owned();
        writeln!(
            f,
            "name = \"{name}\"\nversion = \"1\"\ntask = \"{task}\"\nkind = \"classify\"\nlabels = \"labels.txt\"\n"
        )?;
        writeln!(f, "[input]\nname = {}\nshape = {shape:?}\n", quoted(input))?;
        if let Some((layout, color, preset)) = self.picture {
            let (mean, std) = preset.numbers();
            writeln!(f, "# value = (pixel - mean) / std, with pixels from 0 to 255")?;
            writeln!(
                f,
                "[input.picture]\nlayout = \"{layout}\"\ncolor = \"{color}\"\nresize = \"bicubic\"\nfit = \"centre_crop\""
            )?;
            writeln!(f, "mean = {mean}\nstd = {std}\n")?;
        }
        let kind = if self.probabilities { "probabilities" } else { "logits" };
        writeln!(f, "[output]\nname = {}\nkind = \"{kind}\"", quoted(output))
    }
}
