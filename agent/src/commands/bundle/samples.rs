//! Samples whose right class is known, and what the model says about each.

use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};
use hedge_inference::{Bundle, ContentType, Model, Picture, Tensor};

use super::idx::{GrayPictures, read_classes};
use crate::commands::{SAMPLE_BYTES_MAX, read_file};

/// The most samples one calibration runs: minutes with a small model, and more do not change the result.
const SAMPLES_MAX: usize = 100_000;

/// The model's raw output for a sample and the class it should have found.
#[derive(Debug, Clone)]
pub(super) struct Known {
    pub(super) output: Vec<f32>,
    pub(super) class: usize,
}

/// Runs the model on gray pictures in IDX files.
pub(super) fn from_idx(bundle: &Bundle, model: &mut Model, images: &Path, labels: &Path) -> anyhow::Result<Vec<Known>> {
    let pictures = GrayPictures::read(images)?;
    let classes = read_classes(labels)?;
    let (count, class_count) = (pictures.iter().count(), bundle.labels().len());
    ensure!(count == classes.len(), "there are {count} pictures, but {} labels", classes.len());
    ensure!((1..=SAMPLES_MAX).contains(&count), "{count} samples are not 1 to {SAMPLES_MAX}");
    let known = |(pixels, class): (&[u8], u8)| {
        let class = usize::from(class);
        ensure!(class < class_count, "{} holds the class {class}, but the model has {class_count}", labels.display());
        let picture = Picture::gray(pictures.width, pictures.height, pixels.to_vec())?;
        let output = model.run(&model.tensor_of(&picture)?)?;
        Ok(Known { output, class })
    };
    pictures.iter().zip(classes).map(known).collect()
}

/// Runs the model on pictures that lie in folders named like their labels.
pub(super) fn from_folders(bundle: &Bundle, model: &mut Model, dir: &Path) -> anyhow::Result<Vec<Known>> {
    let mut samples = Vec::new();
    for folder in entries(dir)?.into_iter().filter(|path| path.is_dir()) {
        let name = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let class = bundle
            .labels()
            .iter()
            .position(|label| label == name)
            .with_context(|| format!("the folder {} is not named like a label of the model", folder.display()))?;
        for file in entries(&folder)? {
            ensure!(samples.len() < SAMPLES_MAX, "{} holds more than {SAMPLES_MAX} pictures", dir.display());
            let tensor = picture_tensor(model, &file).with_context(|| file.display().to_string())?;
            samples.push(Known { output: model.run(&tensor)?, class });
        }
    }
    ensure!(!samples.is_empty(), "{} has no folders with pictures", dir.display());
    Ok(samples)
}

pub(super) fn picture_tensor(model: &Model, file: &Path) -> anyhow::Result<Tensor> {
    let bytes = read_file(file, SAMPLE_BYTES_MAX)?;
    let content_type = ContentType::sniff(&bytes).context("it is neither JPEG nor PNG")?;
    Ok(model.tensor(&content_type, &bytes, None)?)
}

/// In the order of their names, so that two runs see the same.
fn entries(dir: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let list = std::fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))?;
    let mut paths: Vec<PathBuf> = list.map(|entry| entry.map(|entry| entry.path())).collect::<Result<_, _>>()?;
    paths.sort();
    Ok(paths)
}
