//! A model in ONNX Runtime: checked against its manifest once, then one sample in, its raw outputs out.
//!
//! One [`Model`] serves one sample at a time; more threads of work need more models. Reading the outputs as
//! scores is up to `hedge-core`; only golden samples are read here, to compare them.

use std::fmt;
use std::path::{Path, PathBuf};

use hedge_core::judge::{ClassScore, OutputKind, Scores};
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
    kind: OutputKind,
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
        let (input, kind, labels) = (bundle.input().clone(), bundle.output_kind(), bundle.labels().len());
        Ok(Self { session, input, output_name, kind, labels })
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

    /// The input tensors of a file: one of a picture, one or more of numbers.
    pub fn samples(&self, bytes: &[u8]) -> Result<Vec<Tensor>, FeatureError> {
        self.input.samples(bytes)
    }

    /// One sample in, one number per label out.
    pub fn run(&mut self, tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
        let values = self.values(tensor)?;
        match values.as_slice() {
            [second] if self.labels == 2 => Ok(self.kind.of_two(*second).to_vec()),
            _ => Ok(values),
        }
    }

    /// One sample in, out what the model gives: a number per label, or one for two labels.
    pub fn values(&mut self, tensor: &Tensor) -> Result<Vec<f32>, ModelError> {
        let failed = |error: ort::Error| ModelError::Run(error.to_string());
        let value = TensorRef::from_array_view((tensor.shape.as_slice(), tensor.data.as_slice())).map_err(failed)?;
        let outputs = self.session.run(ort::inputs![self.input.name.as_str() => value]).map_err(failed)?;
        let output = outputs
            .get(&self.output_name)
            .ok_or_else(|| ModelError::Run(format!("there is no output `{}`", self.output_name)))?;
        let (_, values) = output.try_extract_tensor::<f32>().map_err(failed)?;
        if values.len() != self.labels && (values.len(), self.labels) != (1, 2) {
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
        let samples = self.samples(&bytes)?;
        let [sample] = samples.as_slice() else {
            let reason = format!("a golden sample is one sample, and this file holds {}", samples.len());
            return Err(FeatureError::NoSample { reason }.into());
        };
        let output = self.run(sample)?;
        let scores = Scores::read(&output, bundle.output_kind().uncalibrated())
            .map_err(|error| ModelError::Run(error.to_string()))?;
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
    /// What it holds, for error texts.
    pub kind: &'static str,
}

/// A list of maps is what scikit-learn's exports give unless told otherwise.
const MAPS: &str = "a list of maps";

/// `` `probs` (1×4 numbers), `label` (int64) ``, and what to do about a list of maps.
impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = &self.name;
        match &self.shape {
            Some(shape) if shape.is_empty() => write!(f, "`{name}` (one number)"),
            Some(shape) => write!(f, "`{name}` ({} numbers)", shape_in_words(shape)),
            None if self.kind == MAPS => {
                write!(f, "`{name}` ({MAPS}; a model of scikit-learn must be exported with zipmap=False)")
            }
            None => write!(f, "`{name}` ({})", self.kind),
        }
    }
}

/// `any×3×224×224`.
#[must_use]
pub fn shape_in_words(shape: &[i64]) -> String {
    let sizes: Vec<String> =
        shape.iter().map(|size| if *size < 0 { "any".to_owned() } else { size.to_string() }).collect();
    sizes.join("×")
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
            Err(format!(
                "`input.shape` is {:?} in the manifest, but the model takes {}",
                wanted.shape,
                shape_in_words(shape)
            ))
        }
    }

    fn check_output(&self, name: &str, labels: usize) -> Result<(), String> {
        let port = self.outputs.iter().find(|port| port.name == name).ok_or_else(|| {
            format!("`output.name` is \"{name}\" in the manifest, but the model has {}", names(&self.outputs))
        })?;
        port.f32_shape("output")?;
        match port.values() {
            Some(values) if !port.fits(labels) => {
                Err(format!("the model's output {port} tells {values} classes apart, but there are {labels} labels"))
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
        let kind = match outlet.dtype() {
            ValueType::Tensor { ty, .. } => element(*ty),
            ValueType::Sequence(_) | ValueType::Map { .. } => MAPS,
            ValueType::Optional(_) => "an optional value",
        };
        Self { name: outlet.name().to_owned(), shape, kind }
    }

    /// How many numbers one sample gives; `None` where the file leaves that open, or they are no f32.
    #[must_use]
    pub fn values(&self) -> Option<usize> {
        let per_sample = match self.shape.as_deref()? {
            [-1, sizes @ ..] if !sizes.is_empty() => sizes,
            sizes => sizes,
        };
        per_sample.iter().try_fold(1_usize, |product, size| product.checked_mul(usize::try_from(*size).ok()?))
    }

    /// Whether this can be a number for each label, or one number for two.
    #[must_use]
    pub fn fits(&self, labels: usize) -> bool {
        match self.values() {
            Some(values) => values == labels || (values, labels) == (1, 2),
            None => self.shape.is_some(),
        }
    }

    fn f32_shape(&self, side: &str) -> Result<&[i64], String> {
        self.shape
            .as_deref()
            .ok_or_else(|| format!("the {side} `{}` is {}; tensors of float32 are supported", self.name, self.kind))
    }
}

/// As ONNX names it.
fn element(of: TensorElementType) -> &'static str {
    match of {
        TensorElementType::Float32 => "float32",
        TensorElementType::Float16 | TensorElementType::Bfloat16 => "float16",
        TensorElementType::Float64 => "float64",
        TensorElementType::Int64 => "int64",
        TensorElementType::Int32 => "int32",
        TensorElementType::Int8 => "int8",
        TensorElementType::Uint8 => "uint8",
        TensorElementType::Bool => "yes or no",
        TensorElementType::String => "text",
        _ => "numbers of another type",
    }
}

fn names(ports: &[Port]) -> String {
    let names: Vec<String> = ports.iter().map(|port| format!("`{}`", port.name)).collect();
    names.join(", ")
}
