//! Samples whose right class is known, and what a model says about each.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hedge_inference::bundle::Input;
use hedge_inference::task::{Classify, Reading, Scores};
use hedge_inference::{Bundle, Model, Picture, Tensor, read_text};
use hedge_proto::in_one_line;
use serde::Deserialize;

use crate::idx::{GrayPictures, read_classes};
use crate::{SAMPLE_BYTES_MAX, read_file};

/// The most samples one command runs: minutes with a small model, and more do not change the result.
const SAMPLES_MAX: usize = 100_000;

/// What `hedge-cloud export` writes beside its pictures.
const EXPORTED: &str = "labels.jsonl";

/// Where samples lie, and which of them are taken.
#[derive(Debug, Clone, clap::Args)]
pub struct SampleArgs {
    /// Gray pictures as a gzipped IDX file (the format of MNIST)
    #[arg(long, value_name = "IDX.gz", requires = "labels", required_unless_present = "pictures")]
    pub images: Option<PathBuf>,
    /// Their classes as a gzipped IDX file
    #[arg(long, value_name = "IDX.gz", requires = "images")]
    pub labels: Option<PathBuf>,
    /// Or a folder with one folder of samples per label, named like the label: JPEG and PNG pictures, or numbers as
    /// .npy, CSV or raw float32; or a folder of `hedge-cloud export`, with its labels.jsonl
    #[arg(long, visible_alias = "samples", value_name = "DIR", conflicts_with = "images")]
    pub pictures: Option<PathBuf>,
}

/// The model's raw output for a sample and the class it should have found.
#[derive(Debug, Clone)]
pub(super) struct Labelled {
    /// Which of all samples it is: two models that see the same set are compared by it.
    pub(super) number: usize,
    pub(super) output: Vec<f32>,
    /// How probable the model itself finds it that its answer is wrong, if it says so.
    pub(super) doubt: Option<f32>,
    /// More than one where several classes have the same name; none where nobody has said, or where the model does not
    /// know the label.
    pub(super) classes: Vec<usize>,
}

/// What came of all samples.
#[derive(Debug, Default)]
pub(super) struct Samples {
    pub(super) known: Vec<Labelled>,
    /// The samples that say nothing, and why: a file that is none, an output that is no scores.
    pub(super) left_out: Vec<String>,
}

/// Samples to be shown to one model or several.
pub(super) struct Set {
    place: PathBuf,
    items: Vec<Item>,
    gray: Option<GrayPictures>,
}

struct Item {
    name: String,
    /// A class by its number, or a label by its name; none where nobody has said.
    label: Option<String>,
    content: Content,
}

enum Content {
    /// Which of the gray pictures.
    Gray(usize),
    File(PathBuf),
}

impl SampleArgs {
    /// Finds the samples. Classes in numbers are named by these labels.
    pub(super) fn open(&self, labels: &[String]) -> anyhow::Result<Set> {
        match (&self.images, &self.labels, &self.pictures) {
            (Some(images), Some(classes), None) => Set::idx(images, classes, labels),
            (None, None, Some(dir)) if dir.join(EXPORTED).is_file() => Set::exported(dir),
            (None, None, Some(dir)) => Set::folders(dir),
            _ => bail!("give either --images and --labels, or --pictures"),
        }
    }
}

impl Set {
    fn idx(images: &Path, classes: &Path, labels: &[String]) -> anyhow::Result<Self> {
        let gray = GrayPictures::read(images)?;
        let numbers = read_classes(classes)?;
        let (count, class_count) = (gray.iter().count(), labels.len());
        ensure!(count == numbers.len(), "there are {count} pictures, but {} labels", numbers.len());
        let item = |(at, class): (usize, u8)| {
            let label = labels.get(usize::from(class)).with_context(|| {
                format!("{} holds the class {class}, but the model has {class_count}", classes.display())
            })?;
            let name = format!("picture {}", at + 1);
            Ok(Item { name, label: Some(label.clone()), content: Content::Gray(at) })
        };
        let items = numbers.into_iter().enumerate().map(item).collect::<anyhow::Result<_>>()?;
        Self { place: images.to_owned(), items, gray: Some(gray) }.checked()
    }

    /// Folders named like their labels.
    fn folders(dir: &Path) -> anyhow::Result<Self> {
        let mut items = Vec::new();
        for folder in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
            let label = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            for file in entries(&folder)?.into_iter().filter(|path| path.is_file()) {
                items.push(Item {
                    name: file.display().to_string(),
                    label: Some(label.to_owned()),
                    content: Content::File(file),
                });
            }
        }
        ensure!(
            !items.is_empty(),
            "{} has no folders with samples; give each label a folder of its name",
            dir.display()
        );
        Self { place: dir.to_owned(), items, gray: None }.checked()
    }

    /// Pictures and labels as `hedge-cloud export` writes them.
    fn exported(dir: &Path) -> anyhow::Result<Self> {
        #[derive(Deserialize)]
        struct Line {
            file: PathBuf,
            label: Option<String>,
        }
        let path = dir.join(EXPORTED);
        let text = read_text(&path).with_context(|| format!("cannot read {}", path.display()))?;
        let item = |(at, line): (usize, &str)| {
            let place = || format!("{}:{}", path.display(), at + 1);
            let Line { file, label } = serde_json::from_str(line).with_context(place)?;
            let inside = file.components().all(|part| matches!(part, std::path::Component::Normal(_)));
            ensure!(inside, "{}: `{}` is no file in the folder", place(), file.display());
            let file = dir.join(file);
            Ok(Item { name: file.display().to_string(), label, content: Content::File(file) })
        };
        let items = text.lines().enumerate().map(item).collect::<anyhow::Result<Vec<_>>>()?;
        ensure!(!items.is_empty(), "{} names no pictures", path.display());
        Self { place: dir.to_owned(), items, gray: None }.checked()
    }

    fn checked(self) -> anyhow::Result<Self> {
        let count = self.items.len();
        ensure!(
            (1..=SAMPLES_MAX).contains(&count),
            "{} holds {count} samples, which are not 1 to {SAMPLES_MAX}",
            self.place.display()
        );
        Ok(self)
    }

    pub(super) fn len(&self) -> usize {
        self.items.len()
    }

    /// The label of a sample.
    pub(super) fn label(&self, number: usize) -> Option<&str> {
        self.items.get(number)?.label.as_deref()
    }

    /// All labels must be the model's: a misspelt folder would silently count as wrong answers.
    pub(super) fn check_labels(&self, bundle: &Bundle) -> anyhow::Result<()> {
        let known = |item: &Item| {
            let label = item.label.as_deref();
            label.is_none_or(|label| bundle.labels().iter().any(|own| means(bundle, own, label)))
        };
        match self.items.iter().find(|item| !known(item)) {
            None => Ok(()),
            Some(item) => bail!(
                "{} has the label `{}`, which is not a label of the model in {}",
                item.name,
                item.label.as_deref().unwrap_or_default(),
                bundle.dir().display()
            ),
        }
    }

    /// What a model sees of one sample; several where a file holds several.
    pub(super) fn tensors(&self, input: &Input, number: usize) -> anyhow::Result<Vec<Tensor>> {
        match (self.items.get(number).map(|item| &item.content), &self.gray) {
            (Some(Content::Gray(at)), Some(gray)) => {
                let pixels = gray.iter().nth(*at).context("there is no such picture")?.to_vec();
                Ok(vec![input.tensor_of(&Picture::gray(gray.width, gray.height, pixels)?)?])
            }
            (Some(Content::File(file)), _) => tensors(input, file),
            _ => bail!("there is no such sample"),
        }
    }

    /// Shows all samples to a model. One that cannot be used costs that sample only; that none can be used is an error.
    pub(super) fn run(&self, bundle: &Bundle, model: &mut Model) -> anyhow::Result<Samples> {
        let mut samples = Samples::default();
        let reading = classes(bundle)?;
        for (number, item) in self.items.iter().enumerate() {
            let seen = self.tensors(model.input(), number);
            let mut output = |tensor: &Tensor| {
                let outputs = model.run(tensor)?;
                let numbers = reading.numbers(&outputs, bundle.labels().len())?;
                Scores::read(&numbers, reading.kind)?;
                Ok((numbers, model.task().doubt_of_the_model(&outputs)?))
            };
            let outputs = match seen {
                Ok(tensors) => tensors.iter().map(&mut output).collect(),
                Err(error) => vec![Err(error)],
            };
            for output in outputs {
                samples.add(bundle, (number, item), output);
            }
        }
        match samples.left_out.first() {
            Some(first) if samples.known.is_empty() => {
                let (what, count) = (self.place.display(), samples.left_out.len());
                let all = if count == 1 { "its only sample".to_owned() } else { format!("any of its {count} samples") };
                bail!("{what}: the model cannot be tried on {all}; {first}")
            }
            _ => Ok(samples),
        }
    }
}

impl Samples {
    fn add(
        &mut self,
        bundle: &Bundle,
        (number, item): (usize, &Item),
        output: anyhow::Result<(Vec<f32>, Option<f32>)>,
    ) {
        match output {
            Ok((output, doubt)) => {
                let is_meant = |own: &str| item.label.as_ref().is_some_and(|label| means(bundle, own, label));
                let classes = bundle.labels().iter().enumerate().filter(|(_, own)| is_meant(own));
                let classes = classes.map(|(class, _)| class).collect();
                self.known.push(Labelled { number, output, doubt, classes });
            }
            Err(error) => self.left_out.push(format!("{}: {}", item.name, in_one_line(&*error))),
        }
    }
}

/// Whether a model's label is the one that was given: in its own words, or in the cloud's, as exported verdicts are.
pub(super) fn means(bundle: &Bundle, own: &str, label: &str) -> bool {
    own == label || bundle.cloud_label(own) == label
}

/// How the classes of a classifier are read.
pub(super) fn classes(bundle: &Bundle) -> anyhow::Result<&Classify> {
    match &bundle.manifest().output {
        Reading::Classes(classes) => Ok(classes),
        Reading::Boxes(_) => bail!("{} finds things and has no classes of samples", bundle.dir().display()),
    }
}

/// All files with samples, however deep they lie.
pub(super) fn files(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![dir.to_owned()];
    while let Some(folder) = folders.pop() {
        for path in entries(&folder)? {
            if path.is_dir() { folders.push(path) } else { files.push(path) }
        }
        ensure!(files.len() <= SAMPLES_MAX, "{} holds more than {SAMPLES_MAX} samples", dir.display());
    }
    Ok(files)
}

/// What a file holds for the model: a picture, or one or more samples in numbers.
pub(crate) fn tensors(input: &Input, file: &Path) -> anyhow::Result<Vec<Tensor>> {
    Ok(input.samples(&read_file(file, SAMPLE_BYTES_MAX)?)?)
}

/// In the order of their names, so that two runs see the same. What an operating system hides is no sample.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = list.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    Ok(paths)
}
