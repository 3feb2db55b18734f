//! A model bundle: a folder with one model, its labels, its calibration and samples with known answers.
//!
//! [`Bundle::open`] believes nothing: sizes are checked before files are read, sums before they are used, and
//! every name that points to another is followed. Whether ONNX Runtime can run the model is up to `model`.

pub mod labels;
mod manifest;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use hedge_core::judge::Limits;
use hedge_proto::{Digest, ModelRef, labels_hash};
use sha2::{Digest as _, Sha256};

pub use manifest::{Golden, Manifest, Ranked, Ranking, Variant};

pub use crate::features::{Color, Fit, Input, Layout, PictureInput, Resize, TENSOR_VALUES_MAX};
pub use crate::inside::BundleFile;
pub use crate::task::Kind;

use crate::features::read_npy;
use crate::task::{Reading, Task};

/// The manifest's name in every bundle.
pub const MANIFEST: &str = "manifest.toml";

/// The largest manifest: a map of 1000 labels takes about 60 KiB.
pub const MANIFEST_BYTES_MAX: u64 = 256 * 1024;

/// The largest label file: 65,536 labels of 64 characters.
pub const LABELS_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// The largest model file: what one protobuf message, and so one ONNX file without external data, can hold.
pub const MODEL_BYTES_MAX: u64 = 2 * 1024 * 1024 * 1024;

/// The most variants of one model.
pub const VARIANTS_MAX: usize = 16;

/// The most golden samples, each run by `bundle inspect`.
pub const GOLDENS_MAX: usize = 64;

/// The largest golden sample.
pub const GOLDEN_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// How far a golden sample's score may be from the one in the manifest: resizing and INT8 kernels round a
/// little differently from machine to machine.
pub const GOLDEN_TOLERANCE: f32 = 0.03;

/// Why a bundle cannot be used. The text names the file, the field and what to do.
#[derive(Debug, thiserror::Error)]
pub enum BundleError {
    #[error("cannot read {}: {source}", path.display())]
    Unreadable { path: PathBuf, source: std::io::Error },
    #[error("{} has {bytes} bytes, more than the {bytes_max} such a file may have", path.display())]
    TooLarge { path: PathBuf, bytes: u64, bytes_max: u64 },
    #[error("{place}: {message}")]
    Invalid { place: String, message: String },
    #[error("{} has {bytes} bytes where the manifest says {expected}; copy the bundle again", path.display())]
    WrongSize { path: PathBuf, bytes: u64, expected: u64 },
    #[error(
        "{} is not the file the manifest describes (sha256 {found}, expected {expected}); copy the bundle again, or \
         write the new sum into the manifest if you changed the file yourself",
        path.display()
    )]
    WrongSum { path: PathBuf, found: Digest, expected: Digest },
    #[error("the bundle {} has no variant `{asked}`; it has: {known}", dir.display())]
    UnknownVariant { dir: PathBuf, asked: String, known: String },
}

/// An opened bundle: everything in it has been checked against everything else.
#[derive(Debug, Clone)]
pub struct Bundle {
    dir: PathBuf,
    manifest: Manifest,
    labels: Vec<String>,
    labels_hash: Digest,
}

impl Bundle {
    /// Reads the folder's manifest and labels and checks size and sum of every model file.
    pub fn open(dir: &Path) -> Result<Self, BundleError> {
        let path = dir.join(MANIFEST);
        let text = read_text(&path, MANIFEST_BYTES_MAX)?;
        let mut manifest: Manifest = toml::from_str(&text).map_err(|error| {
            let line = error.span().map_or(1, |span| line_of(&text, span.start));
            BundleError::Invalid { place: format!("{}:{line}", path.display()), message: error.message().to_owned() }
        })?;
        let labels = match &manifest.labels {
            Some(file) => read_labels(&dir.join(file.as_path()), manifest.kind)?,
            None => Vec::new(),
        };
        check_references(&manifest, &labels)
            .map_err(|message| BundleError::Invalid { place: path.display().to_string(), message })?;
        for variant in &manifest.variants {
            check_file(&dir.join(variant.file.as_path()), variant)?;
        }
        for golden in &manifest.goldens {
            size_of(&dir.join(golden.file.as_path()), GOLDEN_BYTES_MAX)?;
        }
        if let Reading::Boxes(detect) = &mut manifest.output
            && let Some(priors) = &mut detect.boxes.priors
        {
            priors.rows = read_priors(&dir.join(priors.file.as_path()))?;
        }
        let labels_hash = labels_hash(&labels);
        Ok(Self { dir: dir.to_owned(), manifest, labels, labels_hash })
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    #[must_use]
    pub fn model_ref(&self) -> ModelRef {
        ModelRef { name: self.manifest.name.to_string(), version: self.manifest.version.to_string() }
    }

    #[must_use]
    pub fn task(&self) -> &str {
        self.manifest.task.as_str()
    }

    /// In the order of the model's outputs.
    #[must_use]
    pub fn labels(&self) -> &[String] {
        &self.labels
    }

    #[must_use]
    pub fn labels_hash(&self) -> Digest {
        self.labels_hash
    }

    /// The cloud's word for one of the model's own labels.
    #[must_use]
    pub fn cloud_label<'a>(&'a self, own: &'a str) -> &'a str {
        self.manifest.cloud_labels.get(own).map_or(own, String::as_str)
    }

    /// How the model's outputs become an answer in the cloud's words.
    #[must_use]
    pub fn reading(&self) -> Task {
        let picture = self.manifest.input.picture.as_ref();
        let mut reading = self.manifest.output.clone();
        if let Reading::Boxes(detect) = &mut reading {
            // The manifest names its own labels; what is found already has the cloud's words.
            let shown = std::mem::take(&mut detect.shown).into_iter();
            detect.shown = shown.map(|(own, share)| (self.cloud_label(&own).to_owned(), share)).collect();
        }
        Task {
            reading,
            labels: self.labels.iter().map(|own| self.cloud_label(own).to_owned()).collect(),
            confidence: self.manifest.confidence.clone(),
            embedding: self.manifest.embedding.clone(),
            pixels: picture.map_or((0, 0), |picture| (picture.width, picture.height)),
        }
    }

    /// What the maker of the bundle suggests.
    #[must_use]
    pub fn threshold(&self) -> Option<Limits> {
        self.manifest.threshold.map(|suggested| suggested.0)
    }

    #[must_use]
    pub fn input(&self) -> &Input {
        &self.manifest.input
    }

    /// The variant of this name, or the manifest's first.
    pub fn variant(&self, name: Option<&str>) -> Result<&Variant, BundleError> {
        let variants = &self.manifest.variants;
        let found = match name {
            Some(name) => variants.iter().find(|variant| variant.name.as_str() == name),
            None => variants.first(),
        };
        found.ok_or_else(|| BundleError::UnknownVariant {
            dir: self.dir.clone(),
            asked: name.unwrap_or_default().to_owned(),
            known: names(variants).join(", "),
        })
    }

    #[must_use]
    pub fn variant_path(&self, variant: &Variant) -> PathBuf {
        self.dir.join(variant.file.as_path())
    }

    /// The names of all files that belong to it.
    #[must_use]
    pub fn files(&self) -> BTreeSet<&Path> {
        let Manifest { labels, variants, goldens, output, .. } = &self.manifest;
        let priors = match output {
            Reading::Boxes(detect) => detect.boxes.priors.as_ref(),
            Reading::Classes(_) => None,
        };
        let files = labels.iter().chain(variants.iter().map(|variant| &variant.file));
        let files = files.chain(goldens.iter().map(|golden| &golden.file)).chain(priors.map(|priors| &priors.file));
        files.map(BundleFile::as_path).chain([Path::new(MANIFEST)]).collect()
    }

    /// The bytes of a golden sample.
    pub fn read_golden(&self, golden: &Golden) -> Result<Vec<u8>, BundleError> {
        read(&self.dir.join(golden.file.as_path()), GOLDEN_BYTES_MAX)
    }
}

fn names(variants: &[Variant]) -> Vec<&str> {
    variants.iter().map(|variant| variant.name.as_str()).collect()
}

fn check_references(manifest: &Manifest, labels: &[String]) -> Result<(), String> {
    let Manifest { variants, goldens, cloud_labels, .. } = manifest;
    if !(1..=VARIANTS_MAX).contains(&variants.len()) {
        return Err(format!("a bundle has 1 to {VARIANTS_MAX} `[[variant]]` tables, not {}", variants.len()));
    }
    let variant_names = names(variants);
    for (at, name) in variant_names.iter().enumerate() {
        if variant_names[..at].contains(name) {
            return Err(format!("two `[[variant]]` tables are named `{name}`"));
        }
    }
    if goldens.len() > GOLDENS_MAX {
        return Err(format!("a bundle has at most {GOLDENS_MAX} `[[golden]]` tables, not {}", goldens.len()));
    }
    let kind = manifest.kind;
    let fits = match (&manifest.output, kind) {
        (Reading::Classes(_), Kind::Classify) => true,
        (Reading::Boxes(detect), Kind::Detect) => {
            if manifest.input.picture.is_none() {
                return Err("a model that finds things needs `[input.picture]`".into());
            }
            if let Some(label) = detect.shown.keys().find(|label| !labels.contains(label)) {
                return Err(format!("`output.shown` names `{label}`, which is not among the labels"));
            }
            true
        }
        _ => false,
    };
    if !fits {
        return Err(format!(
            "`kind` is \"{}\", but `[output]` is that of another: classify has `name` and `kind`, detect has `boxes` and \
             `scores`",
            kind.word()
        ));
    }
    let known = |label: &str| labels.is_empty() || labels.iter().any(|own| own == label);
    for golden in goldens {
        let file = golden.file.as_path().display();
        if (golden.label.is_some(), kind) != (kind == Kind::Classify, kind) {
            return Err(format!("`[[golden]]` {file}: `label` belongs to classify, `found` to detect"));
        }
        let found = golden.found.values().flatten().map(|one| &one.label);
        if let Some(label) = golden.label.iter().chain(found).find(|label| !known(label)) {
            return Err(format!("`[[golden]]` {file}: `{label}` is not among the labels"));
        }
        let named = golden.scores.keys().chain(golden.found.keys());
        if let Some(variant) = named.into_iter().find(|name| !variant_names.contains(&name.as_str())) {
            return Err(format!("`[[golden]]` {file}: it names the variant `{variant}`, which does not exist"));
        }
        if let Some(score) = golden.scores.values().find(|score| !(0.0..=1.0).contains(*score)) {
            return Err(format!("`[[golden]]` {file}: the score {score} is not from 0 to 1"));
        }
    }
    match cloud_labels.keys().find(|label| !known(label)) {
        Some(label) => Err(format!("`[cloud_labels]` names `{label}`, which is not among the labels")),
        None => Ok(()),
    }
}

/// One label per line.
fn read_labels(path: &Path, kind: Kind) -> Result<Vec<String>, BundleError> {
    let text = read_text(path, LABELS_BYTES_MAX)?;
    let invalid = |message| BundleError::Invalid { place: path.display().to_string(), message };
    if let Some(form) = labels::structured(&text) {
        return Err(invalid(format!(
            "it is {form}; a bundle's labels stand one per line, as `hedge-agent bundle init` writes them"
        )));
    }
    let labels = labels::lines(&text).map_err(invalid)?;
    if kind == Kind::Classify {
        labels::several(&labels).map_err(invalid)?;
    }
    Ok(labels)
}

/// The largest file of prior boxes: a million of them.
const PRIORS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Rows of centre x, centre y, width and height.
fn read_priors(path: &Path) -> Result<Vec<[f32; 4]>, BundleError> {
    let invalid = |message| BundleError::Invalid { place: path.display().to_string(), message };
    let (shape, numbers) = read_npy(&read(path, PRIORS_BYTES_MAX)?).map_err(invalid)?;
    let (rows, rest) = numbers.as_chunks::<4>();
    if shape.last() != Some(&4) || !rest.is_empty() || numbers.iter().any(|number| !number.is_finite()) {
        return Err(invalid(format!(
            "its shape {shape:?} is not that of rows of four numbers: centre x, centre y, width, height"
        )));
    }
    Ok(rows.to_vec())
}

fn check_file(path: &Path, variant: &Variant) -> Result<(), BundleError> {
    let bytes = size_of(path, MODEL_BYTES_MAX)?;
    if bytes != variant.bytes {
        return Err(BundleError::WrongSize { path: path.to_owned(), bytes, expected: variant.bytes });
    }
    let found = sum_of(path)?;
    if found != variant.sha256 {
        return Err(BundleError::WrongSum { path: path.to_owned(), found, expected: variant.sha256 });
    }
    Ok(())
}

/// The SHA-256 sum of a file, read piece by piece.
pub fn sum_of(path: &Path) -> Result<Digest, BundleError> {
    let unreadable = |source| BundleError::Unreadable { path: path.to_owned(), source };
    let mut file = File::open(path).map_err(unreadable)?;
    let mut sum = Sha256::new();
    let mut piece = vec![0; 64 * 1024];
    loop {
        match file.read(&mut piece).map_err(unreadable)? {
            0 => return Ok(Digest(sum.finalize().into())),
            bytes => sum.update(&piece[..bytes]),
        }
    }
}

fn size_of(path: &Path, bytes_max: u64) -> Result<u64, BundleError> {
    let unreadable = |source| BundleError::Unreadable { path: path.to_owned(), source };
    let bytes = std::fs::metadata(path).map_err(unreadable)?.len();
    if bytes > bytes_max {
        return Err(BundleError::TooLarge { path: path.to_owned(), bytes, bytes_max });
    }
    Ok(bytes)
}

fn read(path: &Path, bytes_max: u64) -> Result<Vec<u8>, BundleError> {
    size_of(path, bytes_max)?;
    std::fs::read(path).map_err(|source| BundleError::Unreadable { path: path.to_owned(), source })
}

fn read_text(path: &Path, bytes_max: u64) -> Result<String, BundleError> {
    hedge_proto::text(read(path, bytes_max)?)
        .map_err(|error| BundleError::Invalid { place: path.display().to_string(), message: error.to_string() })
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}
