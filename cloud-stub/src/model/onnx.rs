//! A model bundle in ONNX Runtime as an answerer: what the device judged, judged again.

use std::ffi::OsString;
use std::path::Path;

use hedge_inference::{
    Bundle, BundleError, ContentType, FeatureError, Model, ModelError, Region, Runtime, SessionOptions,
};
use hedge_proto::{Case, PayloadForm, Rect, in_one_line};

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
                let (said, expected) = outcome.in_words();
                tracing::warn!(
                    bundle = %dir.display(),
                    "a golden sample is {said} here, not {expected} as where the bundle was made",
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
        let unusable = |error: FeatureError| ModelFailure::Dead(error.to_string());
        let region = region(case).map_err(ModelFailure::Dead)?;
        let tensor = self.model.tensor(&content_type, payload, region.as_ref()).map_err(unusable)?;
        let failed = |error: &(dyn std::error::Error + 'static)| ModelFailure::Failed(in_one_line(error));
        let outputs = self.model.run(&tensor).map_err(|error| failed(&error))?;
        let (said, _) = self.model.task().read(&outputs, &tensor.frame).map_err(|error| failed(&error))?;
        let said = match (case.form, case.view) {
            (PayloadForm::Crop, Some(view)) => said.within(&view),
            _ => said,
        };
        Ok(Opinion { said, model: self.bundle.model_ref() })
    }

    fn alone(&self) -> Vec<OsString> {
        self.args.clone()
    }
}

/// The part of the payload that the device judged: its view, unless that is all that came.
fn region(case: &Case) -> Result<Option<Region>, String> {
    let Some(Rect { left, top, width, height }) = case.view.filter(|_| case.form != PayloadForm::Crop) else {
        return Ok(None);
    };
    let [left, top, width, height] = [left, top, width, height].map(f64::from);
    let region = Region::new(left, top, width, height);
    region.map(Some).map_err(|error| format!("the case's `view` cannot be meant: {error}"))
}
