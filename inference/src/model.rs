//! A model in ONNX Runtime: checked against its manifest once, then one sample in, its raw outputs out.
//!
//! One [`Model`] serves one sample at a time; more threads of work need more models. Reading the outputs as
//! scores is up to `hedge-core`; only golden samples are read here, to compare them.

use std::path::{Path, PathBuf};

use hedge_core::judge::{ClassScore, OutputKind, Scores, Temperature};
use ort::session::Session;
use ort::value::{Outlet, TensorElementType, TensorRef, ValueType};

use crate::bundle::{Bundle, BundleError, GOLDEN_TOLERANCE, Golden, Input, Variant};
use crate::features::{self, ContentType, FeatureError, Picture, Region, StageTimes, Tensor};
use crate::runtime::Runtime;

/// Why a model cannot be used or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    #[error(transparent)]
    Bundle(#[from] BundleError),
    #[error("ONNX Runtime cannot load {}: {reason}", path.display())]
    Load { path: PathBuf, reason: String },
    /// The manifest and the file say different things.
    #[error("{}: {message}", path.display())]
    Mismatch { path: PathBuf, message: String },
    #[error(transparent)]
    Feature(#[from] FeatureError),
    #[error("ONNX Runtime failed: {0}")]
    Run(String),
    #[error("the model gave {values} values for {labels} labels; the label file belongs to another model")]
    OutputSize { values: usize, labels: usize },
}

/// How a session works.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads within one inference. One costs the least processor time per answer on small boards.
    pub threads: u8,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { threads: 1 }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    session: Session,
    input: Input,
    output_name: String,
    labels: usize,
}

impl Model {
    /// Loads a variant (the manifest's first if not named) and checks its input and output by the manifest.
    pub fn load(
        runtime: &Runtime,
        bundle: &Bundle,
        variant: Option<&str>,
        options: &SessionOptions,
    ) -> Result<Self, ModelError> {
        let path = bundle.variant_path(bundle.variant(variant)?);
        let session = open(runtime, &path, options)?;
        let mismatch = |message| ModelError::Mismatch { path: path.clone(), message };
        let outline = Outline::of(&session);
        outline.check_input(bundle.input()).map_err(mismatch)?;
        let output_name = bundle.manifest().output.name.clone();
        outline.check_output(&output_name, bundle.labels().len()).map_err(mismatch)?;
        Ok(Self { session, input: bundle.input().clone(), output_name, labels: bundle.labels().len() })
    }

    /// The input tensor for a sample.
    pub fn tensor(
        &self,
        content_type: &ContentType,
        bytes: &[u8],
        region: Option<&Region>,
    ) -> Result<Tensor, FeatureError> {
        self.input.tensor(content_type, bytes, region)
    }

    /// The input tensor for a whole sample, and how long each step to it took.
    pub fn timed_tensor(&self, content_type: &ContentType, bytes: &[u8]) -> Result<(Tensor, StageTimes), FeatureError> {
        let mut times = StageTimes::default();
        let tensor = features::tensor(&self.input, content_type, bytes, None, &mut times)?;
        Ok((tensor, times))
    }

    /// The input tensor for a picture that is already decoded.
    pub fn tensor_of(&self, picture: &Picture) -> Result<Tensor, FeatureError> {
        features::tensor_of(&self.input, picture)
    }

    /// One sample in, one number per label out.
    pub fn run(&mut self, tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
        let failed = |error: ort::Error| ModelError::Run(error.to_string());
        let value = TensorRef::from_array_view((tensor.shape.as_slice(), tensor.data.as_slice())).map_err(failed)?;
        let outputs = self.session.run(ort::inputs![self.input.name.as_str() => value]).map_err(failed)?;
        let output = outputs
            .get(&self.output_name)
            .ok_or_else(|| ModelError::Run(format!("there is no output `{}`", self.output_name)))?;
        let (_, values) = output.try_extract_tensor::<f32>().map_err(failed)?;
        if values.len() != self.labels {
            return Err(ModelError::OutputSize { values: values.len(), labels: self.labels });
        }
        Ok(values.to_vec())
    }

    /// Runs a golden sample of the bundle this model was loaded from.
    pub fn check_golden(
        &mut self,
        bundle: &Bundle,
        variant: &Variant,
        golden: &Golden,
    ) -> Result<GoldenOutcome, ModelError> {
        let bytes = bundle.read_golden(golden)?;
        // What is neither JPEG nor PNG is a raw tensor of the model's shape.
        let content_type =
            ContentType::sniff(&bytes).unwrap_or_else(|| ContentType::Tensor { shape: self.input.shape.clone() });
        let output = self.run(&self.tensor(&content_type, &bytes, None)?)?;
        let kind = match bundle.output_kind() {
            OutputKind::Logits { .. } => OutputKind::Logits { temperature: Temperature::ONE },
            OutputKind::Probabilities => OutputKind::Probabilities,
        };
        let scores = Scores::read(&output, kind).map_err(|error| ModelError::Run(error.to_string()))?;
        let best = scores.top(1).first().copied().unwrap_or(ClassScore { class: 0, score: 0.0 });
        Ok(GoldenOutcome {
            label: bundle.labels().get(best.class).cloned().unwrap_or_default(),
            score: best.score,
            expected_label: golden.label.clone(),
            expected_score: golden.scores.get(variant.name.as_str()).copied(),
        })
    }

    #[must_use]
    pub fn input_shape(&self) -> &[usize] {
        &self.input.shape
    }

    #[must_use]
    pub fn input_name(&self) -> &str {
        &self.input.name
    }

    #[must_use]
    pub fn output_name(&self) -> &str {
        &self.output_name
    }
}

/// What a model said about a golden sample, before the temperature, and what it should have said.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenOutcome {
    pub label: String,
    pub score: f32,
    pub expected_label: String,
    /// None if the manifest gives no score for this variant.
    pub expected_score: Option<f32>,
}

impl GoldenOutcome {
    #[must_use]
    pub fn passed(&self) -> bool {
        let near = |expected: f32| (self.score - expected).abs() <= GOLDEN_TOLERANCE;
        self.label == self.expected_label && self.expected_score.is_none_or(near)
    }
}

fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Session, ModelError> {
    let load = |error: ort::Error| ModelError::Load { path: path.to_owned(), reason: error.to_string() };
    runtime.session(options.threads).map_err(load)?.commit_from_file(path).map_err(load)
}

/// What an ONNX file says about itself.
#[derive(Debug, Clone, PartialEq)]
pub struct Outline {
    pub inputs: Vec<Port>,
    pub outputs: Vec<Port>,
}

/// An input or output of an ONNX file.
#[derive(Debug, Clone, PartialEq)]
pub struct Port {
    pub name: String,
    /// -1 where the file leaves the size open; none if this is no tensor of f32.
    pub shape: Option<Vec<i64>>,
    /// The type in ONNX Runtime's words, for error texts.
    pub kind: String,
}

impl Outline {
    /// Reads an ONNX file that need not be part of a bundle.
    pub fn read(runtime: &Runtime, path: &Path) -> Result<Self, ModelError> {
        Ok(Self::of(&open(runtime, path, &SessionOptions::default())?))
    }

    fn of(session: &Session) -> Self {
        let ports = |outlets: &[Outlet]| outlets.iter().map(Port::new).collect();
        Self { inputs: ports(session.inputs()), outputs: ports(session.outputs()) }
    }

    fn check_input(&self, wanted: &Input) -> Result<(), String> {
        let [port] = self.inputs.as_slice() else {
            return Err(format!("the model has the inputs {}; models with one are supported", names(&self.inputs)));
        };
        if port.name != wanted.name {
            return Err(format!(
                "`input.name` is \"{}\" in the manifest, but \"{}\" in the model",
                wanted.name, port.name
            ));
        }
        let shape = port.f32_shape("input")?;
        let fits = shape.len() == wanted.shape.len()
            && shape.iter().zip(&wanted.shape).all(|(own, wanted)| *own < 0 || usize::try_from(*own) == Ok(*wanted));
        if fits {
            Ok(())
        } else {
            Err(format!("`input.shape` is {:?} in the manifest, but {shape:?} in the model", wanted.shape))
        }
    }

    fn check_output(&self, name: &str, labels: usize) -> Result<(), String> {
        let port = self.outputs.iter().find(|port| port.name == name).ok_or_else(|| {
            format!("`output.name` is \"{name}\" in the manifest, but the model has {}", names(&self.outputs))
        })?;
        let shape = port.f32_shape("output")?;
        match shape.last() {
            Some(&last) if last >= 0 && usize::try_from(last) != Ok(labels) => {
                Err(format!("the model tells {last} classes apart, but there are {labels} labels"))
            }
            _ => Ok(()),
        }
    }
}

impl Port {
    fn new(outlet: &Outlet) -> Self {
        let shape = match outlet.dtype() {
            ValueType::Tensor { ty: TensorElementType::Float32, shape, .. } => Some(shape.to_vec()),
            _ => None,
        };
        Self { name: outlet.name().to_owned(), shape, kind: outlet.dtype().to_string() }
    }

    fn f32_shape(&self, side: &str) -> Result<&[i64], String> {
        self.shape
            .as_deref()
            .ok_or_else(|| format!("the {side} `{}` is {}; tensors of f32 are supported", self.name, self.kind))
    }
}

fn names(ports: &[Port]) -> String {
    let names: Vec<String> = ports.iter().map(|port| format!("`{}`", port.name)).collect();
    names.join(", ")
}
