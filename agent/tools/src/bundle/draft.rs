//! What `bundle init` writes into a manifest, as far as the model's file tells it or the command line says it.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use anyhow::{Context, anyhow, bail, ensure};
use hedge_inference::bundle::labels::{self, Labels};
use hedge_inference::bundle::{Input, MANIFEST, sum_of};
use hedge_inference::model::{Outline, Port, shape_in_words};
use hedge_inference::read_text;
use hedge_inference::task::{OutputKind, Temperature};
use hedge_proto::Name;

use super::detector::Detector;
use super::init::{Fit, InitArgs, Kind, Preset};
use super::preprocessing::{PictureLines, Preprocessing, Usual};

/// What most picture models are trained on.
const USUAL_SIDE: u16 = 224;

/// A picture of which half of the steps from black to white are lost is another picture.
const PIXELS_TOLD_MIN: f64 = 128.0;

/// Width and height in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    pub(super) width: u16,
    pub(super) height: u16,
}

impl FromStr for Size {
    type Err = String;

    /// `192x48`, or one number for a square.
    fn from_str(text: &str) -> Result<Self, String> {
        let side = |text: &str| text.trim().parse().ok().filter(|side| *side > 0);
        let (width, height) = text.split_once(['x', 'X', '×']).unwrap_or((text, text));
        match (side(width), side(height)) {
            (Some(width), Some(height)) => Ok(Self { width, height }),
            _ => Err("write WIDTHxHEIGHT in pixels, such as 192x48".to_owned()),
        }
    }
}

/// What goes into the manifest.
pub(super) struct Draft {
    name: Name,
    task: Name,
    input: String,
    shape: Vec<usize>,
    /// What the input is called that takes whole numbers only, and the least and the greatest of them.
    whole: Option<(&'static str, (f64, f64))>,
    /// If the model takes pictures.
    picture: Option<PictureLines>,
    /// If it takes sound or a series: the tables that say how, as they were given.
    other: Option<String>,
    pub(super) output: OutputLines,
    /// Outputs that are no answer, by the manifest's words for them.
    beside: Vec<(&'static str, String)>,
    has_labels: bool,
    /// What was decided although the file says nothing of it.
    pub(super) remarks: Vec<String>,
}

/// The `[output]` of a manifest.
pub(super) enum OutputLines {
    Classes {
        name: String,
        kind: OutputKind,
        /// Of a quantised model.
        is_byte: bool,
    },
    Boxes(Box<Detector>),
}

impl Draft {
    pub(super) fn new(
        args: &InitArgs,
        outline: &Outline,
        labels: Option<&Labels>,
        name: Name,
        task: Name,
    ) -> anyhow::Result<Self> {
        let model = args.model.display();
        let [input] = outline.inputs.as_slice() else {
            bail!("{model} has {} inputs; models with one are supported", outline.inputs.len());
        };
        let open_shape = input.shape.as_deref().with_context(|| {
            format!(
                "the input `{}` of {model} takes {}; export the model with an input of numbers",
                input.name, input.kind
            )
        })?;
        let other = args.input.as_deref().map(read_input).transpose()?;
        let mut found = Preprocessing::beside(&args.model)?;
        found.fit = args.fit.map(Fit::word).or(found.fit);
        found.bgr |= args.bgr;
        let open = open_shape.len() == 4 && open_shape[1..].contains(&-1);
        let size = found.size.filter(|_| open).map(|(width, height)| Size { width, height });
        let Guess { shape, picture, assumed } = guess(open_shape, args.size.or(size)).with_context(|| {
            format!("the input `{}` of {model} has the shape {}", input.name, shape_in_words(open_shape))
        })?;
        ensure!(!assumed || other.is_none(), "{model} leaves sizes of its input open; export it with fixed sizes");
        // A spectrogram has the shape of a gray picture.
        let picture = picture.filter(|_| other.is_none());
        if let (Some((_, "gray")), Some(Preset::Imagenet)) = (picture, args.preset) {
            bail!("the preset imagenet has three channels, but {model} takes one; choose another --preset");
        }
        let pixels = picture.map_or((0, 0), |(layout, _)| match (layout, shape.as_slice()) {
            ("nchw", [.., height, width]) | (_, [_, height, width, _]) => (pixels(*width), pixels(*height)),
            _ => (0, 0),
        });
        let output = output(args, outline, labels, pixels)?;
        let mut remarks = Vec::new();
        let usual = match &output {
            OutputLines::Boxes(_) if !input.is_float() => Usual::BYTES,
            OutputLines::Boxes(detector) if detector.yolo => Usual::YOLO,
            OutputLines::Boxes(_) => Usual::DETECTOR,
            OutputLines::Classes { .. } if !input.is_float() => Usual::BYTES,
            OutputLines::Classes { .. } => Usual::CLASSIFIER,
        };
        if let OutputLines::Boxes(_) = &output {
            ensure!(picture.is_some(), "{model} has the outputs of a detector, but takes no pictures");
            if args.preset.is_none() && found.from.is_empty() {
                remarks.push("pictures   nobody says how pixels become numbers: look at the answers to --picture PHOTO, and change --preset, --fit and --bgr until they are right".to_owned());
            }
        }
        let picture = picture
            .map(|(layout, color)| PictureLines::new(layout, color, &found, (usual, args.preset, args.crop)))
            .transpose()?;
        let whole = input.whole_range().map(|range| (input.kind, range));
        let has_sign = input.is_byte() && whole.is_some_and(|(_, (least, _))| least < 0.0);
        let picture = if has_sign { picture.map(PictureLines::with_a_sign) } else { picture };
        if picture.is_some() && !found.from.is_empty() {
            remarks.push(format!("pictures   as {} beside the model says", found.from.join(" and ")));
        }
        if assumed {
            remarks.push(format!(
                "size       {USUAL_SIDE}x{USUAL_SIDE} pixels are assumed, because the model leaves its size open; if it \
                 was trained on another, say --size WIDTHxHEIGHT"
            ));
        }
        let read = output.to_string();
        let others: Vec<String> = outline
            .outputs
            .iter()
            .filter(|port| {
                !read.contains(&format!("name = {}", quoted(&port.name)))
                    && !read.contains(&format!("count = {}", quoted(&port.name)))
            })
            .map(Port::to_string)
            .collect();
        if !others.is_empty() {
            remarks.push(format!("not read   {}", others.join(", ")));
        }
        let (input, has_labels) = (input.name.clone(), labels.is_some());
        let beside = args.beside().map(|(word, output)| (word, output.to_owned())).collect();
        Ok(Self { name, task, input, shape, whole, picture, other, output, beside, has_labels, remarks })
    }

    /// Refuses pixels that a model of whole numbers cannot tell apart, because they would be rounded or cut to a few.
    pub(super) fn check_pixels(&self, input: &Input) -> anyhow::Result<()> {
        let (Some((kind, (least, most))), Some(picture)) = (self.whole, &input.picture) else { return Ok(()) };
        for (mean, std) in picture.mean.iter().zip(&picture.std) {
            let [from, to] = [0.0, 255.0].map(|pixel| f64::from((pixel - mean) / std).clamp(least, most).round());
            ensure!(
                (to - from).abs() > PIXELS_TOLD_MIN,
                "the input `{}` takes whole numbers ({kind}), and pixels from 0 to 255 would become {from} to {to} there: \
                 say --preset raw, which leaves them as they are",
                self.input
            );
        }
        Ok(())
    }

    pub(super) fn write_manifest(&self, dir: &Path) -> anyhow::Result<()> {
        let model = dir.join("model.onnx");
        let bytes = std::fs::metadata(&model).with_context(|| format!("cannot read {}", model.display()))?.len();
        let manifest = format!(
            "{self}\n[[variant]]\nname = \"default\"\nfile = \"model.onnx\"\nsha256 = \"{}\"\nbytes = {bytes}\n",
            sum_of(&model)?
        );
        let path = dir.join(MANIFEST);
        std::fs::write(&path, manifest).with_context(|| format!("cannot write {}", path.display()))
    }

    /// Width and height of the pictures that the model takes.
    pub(super) fn pixels(&self) -> (u32, u32) {
        match (&self.picture, self.shape.as_slice()) {
            (Some(picture), [_, height, width, _]) if picture.layout() == "nhwc" => (pixels(*width), pixels(*height)),
            (Some(_), [_, _, height, width]) => (pixels(*width), pixels(*height)),
            _ => (0, 0),
        }
    }
}

/// The text of a file that holds `[input.audio]` or `[input.series]` and nothing else.
fn read_input(file: &Path) -> anyhow::Result<String> {
    let text = read_text(file).with_context(|| format!("cannot read {}", file.display()))?;
    let table: toml::Table =
        toml::from_str(&text).map_err(|error| anyhow!("{}: {}", file.display(), error.message()))?;
    let input = table.get("input").and_then(toml::Value::as_table).filter(|_| table.len() == 1);
    let is_one =
        |input: &toml::Table| input.len() == 1 && (input.contains_key("audio") || input.contains_key("series"));
    ensure!(
        input.is_some_and(is_one),
        "{} must hold `[input.audio]` or `[input.series]` with the tables below it, and nothing else",
        file.display()
    );
    Ok(text)
}

fn pixels(side: usize) -> u32 {
    u32::try_from(side).unwrap_or(u32::MAX)
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string().trim().to_owned()
}

/// What the model says: classes if one of its outputs is a number for each label, else things if its outputs are those
/// of a detector.
fn output(
    args: &InitArgs,
    outline: &Outline,
    labels: Option<&Labels>,
    pixels: (u32, u32),
) -> anyhow::Result<OutputLines> {
    let exact = |labels: &Labels| {
        outline.outputs.iter().any(|port| port.may_be_scores() && port.values() == Some(labels.names.len()))
    };
    let classes = match args.kind {
        Some(kind) => kind == Kind::Classify,
        None => args.detector.boxes.is_none() && labels.is_some_and(exact),
    };
    if !classes {
        let found = Detector::recognised(&args.detector, outline, labels, pixels)
            .with_context(|| args.model.display().to_string())?;
        if let Some(detector) = found {
            return Ok(OutputLines::Boxes(Box::new(detector)));
        }
        if args.kind == Some(Kind::Detect) {
            let known: Vec<String> = outline.outputs.iter().map(Port::to_string).collect();
            bail!(
                "{} has no outputs that are boxes and scores by their shapes: it has {}; name them with --boxes and --scores",
                args.model.display(),
                known.join(", ")
            );
        }
    }
    let port = match labels {
        Some(labels) => {
            let port = class_output(args, &outline.outputs, labels)?;
            labels::several(&labels.names).map_err(|reason| anyhow!("{}: {reason}", args.labels_shown()))?;
            port
        }
        None => {
            let named = |port: &&Port| args.output.as_ref().is_none_or(|name| port.name == *name);
            let [port] =
                outline.outputs.iter().filter(|port| named(port) && port.may_be_scores()).collect::<Vec<_>>()[..]
            else {
                let known: Vec<String> = outline.outputs.iter().map(Port::to_string).collect();
                bail!(
                    "{}: of its outputs {} one must be a number for each class; name it with --output, or give --labels, \
                     as a detector needs them",
                    args.model.display(),
                    known.join(", ")
                );
            };
            ensure!(
                port.values() != Some(1),
                "{}: `{}` is one number; what a low and what a high one means are the two lines of --labels",
                args.model.display(),
                port.name
            );
            port
        }
    };
    let kind = OutputKind::Logits { temperature: Temperature::ONE };
    Ok(OutputLines::Classes { name: port.name.clone(), kind, is_byte: port.is_byte() })
}

/// One sample at a time, open sizes filled in; and layout and colour if the shape is that of a picture.
#[derive(Debug, PartialEq)]
struct Guess {
    shape: Vec<usize>,
    picture: Option<(&'static str, &'static str)>,
    /// Whether an open size was filled in that nobody named.
    assumed: bool,
}

fn guess(open_shape: &[i64], size: Option<Size>) -> anyhow::Result<Guess> {
    match open_shape.first() {
        Some(-1 | 1) => {}
        Some(many) if open_shape.len() == 3 => {
            bail!("it has {many} as the count of samples at a time; export the model with a count of 1 before that")
        }
        Some(many) => bail!("it takes {many} samples at a time; export the model for one"),
        None => bail!("it takes a single number; samples have at least one dimension more"),
    }
    let color = |channels: i64| if channels == 1 { "gray" } else { "rgb" };
    // Where the height is; the width follows it.
    let (picture, height_at) = match *open_shape {
        [_, channels @ (1 | 3), _, _] => (Some(("nchw", color(channels))), 2),
        [_, _, _, channels @ (1 | 3)] => (Some(("nhwc", color(channels))), 1),
        _ => (None, 0),
    };
    let mut shape: Vec<i64> = open_shape.to_vec();
    shape[0] = 1;
    let mut assumed = false;
    if picture.is_some() {
        let wanted = size.unwrap_or(Size { width: USUAL_SIDE, height: USUAL_SIDE });
        for (at, side) in [(height_at, wanted.height), (height_at + 1, wanted.width)] {
            if shape[at] < 0 {
                assumed |= size.is_none();
                shape[at] = side.into();
            } else {
                ensure!(
                    size.is_none() || shape[at] == i64::from(side),
                    "it is fixed, and --size {}x{} is another",
                    wanted.width,
                    wanted.height
                );
            }
        }
    } else {
        ensure!(size.is_none(), "it is no picture's, so --size means nothing to it");
    }
    let sizes: Result<Vec<usize>, _> = shape.iter().map(|size| usize::try_from(*size)).collect();
    let shape = sizes.map_err(|_| {
        anyhow!("it leaves sizes open and is no picture's (with 1 or 3 colours); export the model with fixed sizes")
    })?;
    Ok(Guess { shape, picture, assumed })
}

/// The output with a number for each label, or one number for two labels.
fn class_output<'a>(args: &InitArgs, outputs: &'a [Port], labels: &Labels) -> anyhow::Result<&'a Port> {
    let (model, file, count) = (args.model.display(), args.labels_shown(), labels.names.len());
    let list = |ports: &[&Port]| ports.iter().map(|port| port.to_string()).collect::<Vec<_>>().join(", ");
    let every: Vec<&Port> = outputs.iter().collect();
    let named = match &args.output {
        None => every.clone(),
        Some(name) => {
            let port = outputs.iter().find(|port| port.name == *name);
            vec![port.with_context(|| format!("{model} has no output `{name}`; it has {}", list(&every)))?]
        }
    };
    // One number for two labels is a rarer fit than one for each, and an open size fits everything.
    let fitting = |values: Option<usize>| {
        let told = args.output.is_some();
        let scores = |port: &&Port| port.may_be_scores() || told && port.shape.is_some() && port.is_float();
        named.iter().copied().filter(|port| scores(port) && port.values() == values).collect::<Vec<_>>()
    };
    let binary = if count == 2 { fitting(Some(1)) } else { Vec::new() };
    let sets = [fitting(Some(count)), binary, fitting(None)];
    match sets.iter().find(|set| !set.is_empty()).map(Vec::as_slice) {
        Some([port]) => Ok(port),
        Some(several) => Err(anyhow!(
            "{model} has several outputs that may be a number for each of the {count} labels: {}; name the one with the \
             class scores with --output",
            list(several)
        )),
        None => Err(anyhow!(
            "{file} holds {}, but {model} has no output with one number for each; it has {}{}. If it finds things in \
             pictures, name its outputs with --boxes and --scores",
            held(labels),
            list(&named),
            nearly(&named, labels)
        )),
    }
}

/// How many labels there are, and as what they were read.
fn held(labels: &Labels) -> String {
    match labels.names.as_slice() {
        [only] => format!("one label, `{only}`"),
        names => format!("{} labels ({})", names.len(), labels.form),
    }
}

/// What is most likely wrong where one label is too many or too few.
fn nearly(outputs: &[&Port], labels: &Labels) -> String {
    let counts: Vec<usize> =
        outputs.iter().filter(|port| port.may_be_scores()).filter_map(|port| port.values()).collect();
    let count = labels.names.len();
    let table = |port: &Port| match *port.shape.as_deref()? {
        [_, one, other] => usize::try_from(one.min(other)).ok().filter(|columns| *columns > 4 && one != other),
        _ => None,
    };
    if counts.contains(&(count - 1)) {
        format!(
            ". One label is too many: remove the line `{}` if it is a heading or a class that this model does not have",
            labels.names[0]
        )
    } else if counts.contains(&(count + 1)) {
        ". One label is missing: add a line for the background, most likely as the first, if the model has a class for \
         it"
        .to_owned()
    } else if let Some(port) = outputs.iter().find(|port| port.whole_range().is_some() && !port.is_byte()) {
        format!(
            ". `{}` holds whole numbers, such as the number of the best class alone; Hedge needs a score for each class, so \
             export the model without its last step (ArgMax)",
            port.name
        )
    } else if let Some((port, columns)) = outputs.iter().find_map(|port| Some((port, table(port)?))) {
        let name = &port.name;
        match columns.checked_sub(4 + count) {
            Some(more) => format!(
                ". If `{name}` holds boxes and scores, its rows are longer by {more} than boxes and labels take: masks, key \
                 points or an angle, which are not read; export a model that only detects, or give a label for each class"
            ),
            None => format!(". If `{name}` holds boxes and scores, these are of {} labels", columns - 4),
        }
    } else {
        String::new()
    }
}

impl fmt::Display for Draft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, task, input, shape, output, beside, has_labels, .. } = self;
        writeln!(
            f,
            "name = \"{name}\"\nversion = \"1\"\ntask = \"{task}\"\nkind = \"{}\"\n{}{}",
            output.kind(),
            if *has_labels { "labels = \"labels.txt\"\n" } else { "" },
            beside.iter().map(|(word, output)| format!("{word} = {}\n", quoted(output))).collect::<String>(),
        )?;
        writeln!(f, "[input]\nname = {}\nshape = {shape:?}\n", quoted(input))?;
        if let Some(picture) = &self.picture {
            write!(f, "{picture}")?;
        }
        if let Some(other) = &self.other {
            writeln!(f, "{}\n", other.trim_end())?;
        }
        write!(f, "{output}")
    }
}

impl OutputLines {
    fn kind(&self) -> &'static str {
        match self {
            Self::Classes { .. } => "classify",
            Self::Boxes(_) => "detect",
        }
    }
}

impl fmt::Display for OutputLines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Classes { name, kind, .. } => {
                writeln!(f, "[output]\nname = {}\nkind = \"{}\"", quoted(name), kind.word())
            }
            Self::Boxes(detector) => detector.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size(text: &str) -> Option<Size> {
        Some(text.parse().expect(text))
    }

    #[track_caller]
    fn check(open_shape: &[i64], size: Option<Size>, shape: &[usize], assumed: bool) {
        let guess = guess(open_shape, size).expect("a shape");
        assert_eq!((guess.shape.as_slice(), guess.assumed), (shape, assumed));
    }

    #[test]
    fn a_size_that_the_model_leaves_open_is_named_or_said_to_be_assumed() {
        check(&[-1, 3, -1, -1], None, &[1, 3, 224, 224], true);
        check(&[-1, 3, -1, -1], size("192x48"), &[1, 3, 48, 192], false);
        check(&[-1, -1, -1, 3], size("192x48"), &[1, 48, 192, 3], false);
        check(&[1, 3, 48, -1], None, &[1, 3, 48, 224], true);
        check(&[1, 3, 48, 192], size("192x48"), &[1, 3, 48, 192], false);
        check(&[1, 1, -1, -1], size("32"), &[1, 1, 32, 32], false);
        check(&[-1, 4], None, &[1, 4], false);
        for (open_shape, given, words) in [
            (&[1, 3, 48, 192][..], size("224"), "--size 224x224 is another"),
            (&[-1, -1, -1, -1], None, "leaves sizes open"),
            (&[-1, -1], None, "leaves sizes open"),
            (&[8, 3, 32, 32], None, "8 samples at a time"),
            (&[-1, 4], size("32"), "no picture's"),
        ] {
            let error = guess(open_shape, given).expect_err(words).to_string();
            assert!(error.contains(words), "{error}");
        }
        assert!("192".parse::<Size>().is_ok() && "192x".parse::<Size>().is_err() && "0x4".parse::<Size>().is_err());
    }
}
