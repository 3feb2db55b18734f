//! A model bundle in ONNX Runtime as an answerer: what the device judged, judged again.

use std::ffi::OsString;
use std::path::Path;

use hedge_inference::task::Tensors;
use hedge_inference::{Bundle, BundleError, Model, ModelError, Runtime, SessionOptions, Tensor};
use hedge_proto::{Case, in_one_line};

use super::{Answerer, Job, ModelFailure, Opinion, placed, tensor};

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
    batch_max: usize,
}

fn failed(error: &(dyn std::error::Error + 'static)) -> ModelFailure {
    ModelFailure::Failed(in_one_line(error))
}

impl Onnx {
    fn read(&self, case: &Case, tensor: &Tensor, outputs: &Tensors) -> Result<Opinion, ModelFailure> {
        let (said, _) = self.model.task().read(outputs, &tensor.frame).map_err(|error| failed(&error))?;
        Ok(Opinion { said: placed(said, case), model: self.bundle.model_ref() })
    }

    /// Answers several cases in one run, where the model takes them and says the same of them then.
    #[must_use]
    pub fn batching(mut self, batch_max: usize) -> Self {
        self.batch_max = if batch_max > 1 && self.batches_well() { batch_max } else { 1 };
        if self.batch_max != batch_max {
            tracing::warn!(
                task = self.bundle.task(),
                "its model takes one sample at a time, or says otherwise of several at once; `batch_max` is without effect"
            );
        }
        self
    }

    /// Some models that are quantised while they run are not: their scale is that of all samples together.
    fn batches_well(&mut self) -> bool {
        const FAR: f32 = 0.01;
        let goldens = &self.bundle.manifest().goldens;
        let bytes = goldens.iter().filter_map(|golden| self.bundle.read_golden(golden).ok());
        let mut samples: Vec<Tensor> = bytes.filter_map(|bytes| self.model.samples(&bytes).ok()).flatten().collect();
        let Some(first) = samples.first().cloned() else { return self.model.takes_batches() };
        samples.push(first);
        let apart: Result<Vec<_>, _> = samples.iter().map(|sample| self.model.run(sample)).collect();
        let (Ok(apart), Ok(together)) = (apart, self.model.run_all(&samples)) else { return false };
        let numbers = |all: &[Tensors]| -> Vec<f32> {
            all.iter().flat_map(|one| &one.0).flat_map(|(_, tensor)| tensor.data.iter().copied()).collect()
        };
        let (apart, together) = (numbers(&apart), numbers(&together));
        let near = |one: f32, other: f32| (one - other).abs() <= FAR * one.abs().max(other.abs()).max(1.0);
        self.model.takes_batches()
            && apart.len() == together.len()
            && apart.iter().zip(&together).all(|(one, other)| near(*one, *other))
    }

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
        Ok(Self { bundle, model, args, batch_max: 1 })
    }
}

impl Answerer for Onnx {
    fn task(&self) -> &str {
        self.bundle.task()
    }

    fn labels(&self) -> &[String] {
        self.bundle.labels()
    }

    fn answer(&mut self, case: &Case, payload: &[u8]) -> Result<Opinion, ModelFailure> {
        let tensor = tensor(&self.bundle, case, payload)?;
        let outputs = self.model.run(&tensor).map_err(|error| failed(&error))?;
        self.read(case, &tensor, &outputs)
    }

    fn batch_max(&self) -> usize {
        self.batch_max
    }

    fn answer_all(&mut self, jobs: &[Job]) -> Vec<Result<Opinion, ModelFailure>> {
        let tensors: Vec<_> = jobs.iter().map(|job| tensor(&self.bundle, &job.case, &job.payload)).collect();
        let usable: Vec<Tensor> = tensors.iter().filter_map(|tensor| tensor.as_ref().ok().cloned()).collect();
        let mut outputs = match self.model.run_all(&usable) {
            Ok(outputs) => outputs.into_iter(),
            // Which of them it was is found out one by one.
            Err(_) => return jobs.iter().map(|job| self.answer(&job.case, &job.payload)).collect(),
        };
        let read = |(tensor, job): (Result<Tensor, ModelFailure>, &Job)| {
            let (tensor, outputs) = (tensor?, outputs.next().unwrap_or_default());
            self.read(&job.case, &tensor, &outputs)
        };
        tensors.into_iter().zip(jobs).map(read).collect()
    }

    fn alone(&self) -> Vec<OsString> {
        self.args.clone()
    }
}
