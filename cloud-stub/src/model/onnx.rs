//! A model bundle in ONNX Runtime as an answerer: sample to tensor, tensor to scores, scores to a result.

use std::ffi::OsString;
use std::path::Path;

use hedge_core::judge::Scores;
use hedge_inference::{Bundle, BundleError, ContentType, FeatureError, Model, ModelError, Runtime, SessionOptions};
use hedge_proto::{Case, LabelScore, SCORES_MAX, TaskResult};

use super::{Answerer, ModelFailure, Opinion};

/// Why a bundle cannot be served.
#[derive(Debug, thiserror::Error)]
pub enum OnnxError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error(transparent)]
    Model(#[from] ModelError),
}

/// One loaded bundle.
pub struct Onnx {
    bundle: Bundle,
    model: Model,
    /// How it was loaded, as arguments.
    args: Vec<OsString>,
}

impl Onnx {
    /// Loads the bundle's first variant and tries its golden samples: a model that answers differently here
    /// than where it was made is served, but said so.
    pub fn load(
        runtime: &Runtime,
        library: Option<&Path>,
        dir: &Path,
        options: SessionOptions,
    ) -> Result<Self, OnnxError> {
        let bundle = Bundle::open(dir)?;
        let mut model = Model::load(runtime, &bundle, None, &options)?;
        let variant = bundle.variant(None)?;
        for golden in &bundle.manifest().goldens {
            let outcome = model.check_golden(&bundle, variant, golden)?;
            if !outcome.passed() {
                tracing::warn!(
                    bundle = %dir.display(),
                    "a golden sample scores {} {:.3} here, not {} {:.3} as where the bundle was made",
                    outcome.label,
                    outcome.score,
                    outcome.expected_label,
                    outcome.expected_score.unwrap_or(f32::NAN),
                );
            }
        }
        let model_ref = bundle.model_ref();
        tracing::info!(task = bundle.task(), model = model_ref.name, version = model_ref.version, "model loaded");
        let mut args = vec!["--model".into(), dir.into(), "--threads".into(), options.threads.to_string().into()];
        args.extend(library.iter().flat_map(|library| ["--library".into(), library.into()]));
        Ok(Self { bundle, model, args })
    }
}

impl Answerer for Onnx {
    fn task(&self) -> &str {
        self.bundle.task()
    }

    fn answer(&mut self, case: &Case, payload: &[u8]) -> Result<Opinion, ModelFailure> {
        let content_type = ContentType::parse(&case.content_type).ok_or_else(|| {
            ModelFailure::Dead("its content type is neither a picture nor a tensor this model can read".to_owned())
        })?;
        // The device has cut its region out already; what came is the whole sample.
        let unusable = |error: FeatureError| ModelFailure::Dead(error.to_string());
        let tensor = self.model.tensor(&content_type, payload, None).map_err(unusable)?;
        let failed = |error: &dyn std::fmt::Display| ModelFailure::Failed(error.to_string());
        let output = self.model.run(&tensor).map_err(|error| failed(&error))?;
        let scores = Scores::read(&output, self.bundle.output_kind()).map_err(|error| failed(&error))?;
        let scores: Vec<LabelScore> = scores
            .top(SCORES_MAX)
            .into_iter()
            .filter_map(|best| {
                let label = self.bundle.labels().get(best.class)?.clone();
                Some(LabelScore { label, score: best.score })
            })
            .collect();
        let best = scores.first().ok_or_else(|| failed(&"the model has no labels"))?;
        let result = TaskResult::Classify { label: best.label.clone(), scores };
        Ok(Opinion { result, model: self.bundle.model_ref() })
    }

    fn alone(&self) -> Vec<OsString> {
        self.args.clone()
    }
}
