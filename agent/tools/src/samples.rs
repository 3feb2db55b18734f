//! Samples whose right class is known, and what the model says about each.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use hedge_inference::task::{Classify, Reading, Scores};
use hedge_inference::{Bundle, Model, Picture, Tensor};
use hedge_proto::in_one_line;

use crate::idx::{GrayPictures, read_classes};
use crate::{SAMPLE_BYTES_MAX, read_file};

/// The most samples one calibration runs: minutes with a small model, and more do not change the result.
const SAMPLES_MAX: usize = 100_000;

/// The model's raw output for a sample and the class it should have found.
#[derive(Debug, Clone)]
pub(super) struct Labelled {
    pub(super) output: Vec<f32>,
    /// More than one where several classes have the same name.
    pub(super) classes: Vec<usize>,
}

/// What came of all samples.
#[derive(Debug, Default)]
pub(super) struct Samples {
    pub(super) known: Vec<Labelled>,
    /// The samples that say nothing, and why: a file that is none, an output that is no scores.
    pub(super) left_out: Vec<String>,
}

impl Samples {
    /// One sample that cannot be used costs that sample only; that none can be used is an error.
    fn add(&mut self, bundle: &Bundle, label: &str, name: &str, output: anyhow::Result<Vec<f32>>) {
        let usable = output.and_then(|output| {
            Scores::read(&output, classes(bundle)?.kind)?;
            Ok(output)
        });
        match usable {
            Ok(output) => {
                let classes = bundle.labels().iter().enumerate().filter(|(_, own)| *own == label);
                self.known.push(Labelled { output, classes: classes.map(|(class, _)| class).collect() });
            }
            Err(error) => self.left_out.push(format!("{name}: {}", in_one_line(&*error))),
        }
    }

    fn checked(self, what: &Path) -> anyhow::Result<Self> {
        match self.left_out.first() {
            Some(first) if self.known.is_empty() => {
                let count = self.left_out.len();
                let all = if count == 1 { "its only sample".to_owned() } else { format!("any of its {count} samples") };
                Err(anyhow::anyhow!("{}: the model cannot be calibrated on {all}; {first}", what.display()))
            }
            _ => Ok(self),
        }
    }
}

/// Runs the model on gray pictures in IDX files.
pub(super) fn from_idx(bundle: &Bundle, model: &mut Model, images: &Path, labels: &Path) -> anyhow::Result<Samples> {
    let pictures = GrayPictures::read(images)?;
    let classes = read_classes(labels)?;
    let (count, class_count) = (pictures.iter().count(), bundle.labels().len());
    ensure!(count == classes.len(), "there are {count} pictures, but {} labels", classes.len());
    ensure!((1..=SAMPLES_MAX).contains(&count), "{count} samples are not 1 to {SAMPLES_MAX}");
    let mut samples = Samples::default();
    for (at, (pixels, class)) in pictures.iter().zip(classes).enumerate() {
        let label = bundle.labels().get(usize::from(class)).with_context(|| {
            format!("{} holds the class {class}, but the model has {class_count}", labels.display())
        })?;
        let picture = Picture::gray(pictures.width, pictures.height, pixels.to_vec())?;
        let output = numbers(bundle, model, &model.tensor_of(&picture)?)?;
        samples.add(bundle, label, &format!("picture {}", at + 1), Ok(output));
    }
    samples.checked(images)
}

/// Runs the model on samples that lie in folders named like their labels.
pub(super) fn from_folders(bundle: &Bundle, model: &mut Model, dir: &Path) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for folder in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let label = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        ensure!(
            bundle.labels().iter().any(|own| own == label),
            "the folder {} is not named like a label of the model",
            folder.display()
        );
        for file in entries(&folder)?.into_iter().filter(|path| path.is_file()) {
            let name = file.display().to_string();
            match tensors(model, &file) {
                Ok(tensors) => {
                    for tensor in tensors {
                        ensure!(
                            samples.known.len() < SAMPLES_MAX,
                            "{} holds more than {SAMPLES_MAX} samples",
                            dir.display()
                        );
                        samples.add(bundle, label, &name, Ok(numbers(bundle, model, &tensor)?));
                    }
                }
                Err(error) => samples.add(bundle, label, &name, Err(error)),
            }
        }
    }
    ensure!(
        !(samples.known.is_empty() && samples.left_out.is_empty()),
        "{} has no folders with samples; give each label a folder of its name",
        dir.display()
    );
    samples.checked(dir)
}

/// How the classes of a classifier are read.
pub(super) fn classes(bundle: &Bundle) -> anyhow::Result<&Classify> {
    match &bundle.manifest().output {
        Reading::Classes(classes) => Ok(classes),
        Reading::Boxes(_) => bail!("{} finds things and has no classes of samples", bundle.dir().display()),
    }
}

/// What the model gives for one sample: a number for each class.
fn numbers(bundle: &Bundle, model: &mut Model, tensor: &Tensor) -> anyhow::Result<Vec<f32>> {
    Ok(classes(bundle)?.numbers(&model.run(tensor)?, bundle.labels().len())?)
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
pub(crate) fn tensors(model: &Model, file: &Path) -> anyhow::Result<Vec<Tensor>> {
    Ok(model.samples(&read_file(file, SAMPLE_BYTES_MAX)?)?)
}

/// In the order of their names, so that two runs see the same. What an operating system hides is no sample.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = list.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.retain(|path| !path.file_name().is_some_and(|name| name.as_encoded_bytes().starts_with(b".")));
    paths.sort();
    Ok(paths)
}
