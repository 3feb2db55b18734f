//! A bundle in memory: its model, and what is known of it without asking its thread.

use std::path::PathBuf;
use std::sync::Arc;

use hedge_core::judge::{Limits, Thresholds};
use hedge_inference::{Bundle, ContentType, Model, Region, RunsOn, Runtime, SessionOptions, Tensor, Tensors};
use hedge_proto::{Digest, ModelRef, Name, Output};

use crate::sample::SampleError;
use hedge_config::ThresholdConfig;

/// What is known of a model without asking its thread.
#[derive(Debug, Clone)]
pub struct ModelCard {
    pub name: Name,
    pub model: ModelRef,
    pub task: String,
    pub labels: Arc<[String]>,
    pub labels_hash: Digest,
    pub input_name: String,
    pub input_shape: Vec<usize>,
    /// The outputs that are read, and their shapes: -1 where a size is open.
    pub outputs: Vec<(String, Vec<i64>)>,
    /// What the bundle suggests as a threshold.
    pub suggested: Option<Limits>,
    /// It makes an embedding of each sample.
    pub embeds: bool,
    /// The folder that it was read from, whatever link led there.
    pub dir: PathBuf,
    /// And why it may not be the accelerator that the configuration asks for.
    pub runs_on: RunsOn,
}

/// What is loaded, and how.
#[derive(Debug, Clone)]
pub struct Place {
    pub bundle: PathBuf,
    pub variant: Option<String>,
    pub session: SessionOptions,
    pub library: Option<PathBuf>,
}

impl Place {
    /// The folder that is meant now: a link that is changed while it is read must not mix two bundles.
    pub(super) fn dir(&self) -> PathBuf {
        std::fs::canonicalize(&self.bundle).unwrap_or_else(|_| self.bundle.clone())
    }
}

pub(super) struct Loaded {
    pub(super) model: Model,
    bundle: Bundle,
    pub(super) card: Arc<ModelCard>,
}

impl Loaded {
    /// From this folder, by the rest of what the place says.
    pub(super) fn new(dir: PathBuf, place: &Place, name: Name) -> Result<Self, String> {
        let bundle = Bundle::open(&dir).map_err(|error| error.to_string())?;
        let runtime = Runtime::find(place.library.as_deref()).map_err(|error| error.to_string())?;
        let model = Model::load(&runtime, &bundle, place.variant.as_deref(), &place.session)
            .map_err(|error| error.to_string())?;
        let card = Arc::new(card(name, dir, &bundle, &model));
        Ok(Self { model, bundle, card })
    }

    /// What the settings ask of this model's answers.
    pub(super) fn thresholds(&self, name: &Name, threshold: &ThresholdConfig) -> Result<Thresholds, SampleError> {
        let resolved =
            threshold.resolve(self.bundle.threshold(), self.bundle.labels(), |own| self.bundle.cloud_label(own));
        resolved.ok_or_else(|| SampleError::NoThreshold { model: name.to_string() })
    }

    pub(super) fn run(&mut self, name: &Name, tensor: &Tensor) -> Result<Tensors, SampleError> {
        self.model
            .run(tensor)
            .map_err(|error| SampleError::ModelFailed { model: name.to_string(), reason: error.to_string().into() })
    }

    /// What it makes of a sample, if it can make anything of it.
    pub(super) fn said(&mut self, content_type: &ContentType, bytes: &[u8], region: Option<&Region>) -> Option<Output> {
        let tensor = self.model.tensor(content_type, bytes, region).ok()?;
        let outputs = self.model.run(&tensor).ok()?;
        self.model.task().read(&outputs, &tensor.frame).ok().map(|(said, _)| said)
    }
}

fn card(name: Name, dir: PathBuf, bundle: &Bundle, model: &Model) -> ModelCard {
    ModelCard {
        name,
        model: bundle.model_ref(),
        task: bundle.task().to_owned(),
        labels: bundle.labels().into(),
        labels_hash: bundle.labels_hash(),
        input_name: model.input_name().to_owned(),
        input_shape: model.input_shape().to_vec(),
        outputs: model.outputs().to_vec(),
        suggested: bundle.threshold(),
        embeds: bundle.manifest().embedding.is_some(),
        dir,
        runs_on: model.runs_on().clone(),
    }
}
