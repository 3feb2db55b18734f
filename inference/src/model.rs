//! A model in ONNX Runtime: checked against its manifest once, then one sample in, its raw outputs out.
//!
//! One [`Model`] serves one sample at a time; more threads of work need more models. What the outputs mean is up to
//! `task`.

mod outline;

use std::io::Read as _;
use std::path::{Path, PathBuf};

use hedge_core::agree::{agree, pairs};
use hedge_proto::{Output, in_one_line};
use ort::session::Session;
use ort::value::{DynValue, TensorElementType, TensorRef, ValueType};

use crate::bundle::{Bundle, BundleError, GOLDEN_TOLERANCE, Golden, Input, Variant};
use crate::features::{self, ContentType, FeatureError, Region, StageTimes, Tensor};
use crate::runtime::{ProviderChoice, RunsOn, Runtime};
use crate::task::{Reading, Task, Tensors};

pub use self::outline::{Outline, Port, shape_in_words};

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
}

/// How a session works.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SessionOptions {
    /// Threads within one inference. One costs the least processor time per answer on small boards.
    pub threads: u8,
    /// What it is to run on; the processor if not given.
    pub provider: Option<ProviderChoice>,
}

impl Default for SessionOptions {
    fn default() -> Self {
        Self { threads: 1, provider: None }
    }
}

/// A loaded model.
#[derive(Debug)]
pub struct Model {
    session: Session,
    input: Input,
    /// What the model's input holds.
    element: TensorElementType,
    task: Task,
    outputs: Vec<(String, Vec<i64>)>,
    /// The file leaves open how many samples go in and come out at once.
    is_batch_open: bool,
    runs_on: RunsOn,
}

impl Model {
    /// Loads a variant (the manifest's first if not named) and checks its input and outputs by the manifest.
    ///
    /// A provider is tried out first, in a child and on the bundle's golden samples. If anything speaks against it the
    /// model runs on the processor, and [`Model::runs_on`] says why.
    pub fn load(
        runtime: &Runtime,
        bundle: &Bundle,
        variant: Option<&str>,
        options: &SessionOptions,
    ) -> Result<Self, ModelError> {
        let Some(choice) = &options.provider else {
            return Self::open(runtime, bundle, variant, options, RunsOn::cpu(None));
        };
        let on_provider = || {
            let file = bundle.variant(variant).map_err(|error| error.to_string())?;
            let (path, shape) = (bundle.variant_path(file), &bundle.input().shape);
            let steps = runtime.try_provider(choice, &path, shape, options.threads)?;
            let runs_on = RunsOn { name: choice.provider.name(), steps, refused: None };
            let mut model =
                Self::open(runtime, bundle, variant, options, runs_on).map_err(|error| error.to_string())?;
            // One that calculates something else is of no use, however fast.
            model.check_goldens(bundle, file)?;
            Ok(model)
        };
        on_provider().or_else(|why: String| {
            let refused = format!("it runs on the cpu and not on {}: {why}", choice.provider);
            tracing::warn!(model = bundle.model_ref().name, "{refused}");
            let options = SessionOptions { provider: None, ..options.clone() };
            Self::open(runtime, bundle, variant, &options, RunsOn::cpu(Some(refused)))
        })
    }

    /// Whether it gives all golden samples' answers; else which one comes out otherwise, in words.
    pub fn check_goldens(&mut self, bundle: &Bundle, variant: &Variant) -> Result<(), String> {
        for golden in &bundle.manifest().goldens {
            let outcome = self.check_golden(bundle, variant, golden).map_err(|error| error.to_string())?;
            if !outcome.passed() {
                let (said, expected) = outcome.in_words();
                return Err(format!("{} is {said}, expected {expected}", golden.file.as_path().display()));
            }
        }
        Ok(())
    }

    fn open(
        runtime: &Runtime,
        bundle: &Bundle,
        variant: Option<&str>,
        options: &SessionOptions,
        runs_on: RunsOn,
    ) -> Result<Self, ModelError> {
        let path = bundle.variant_path(bundle.variant(variant)?);
        let session = open(runtime, &path, options)?;
        let mismatch = |message| ModelError::Mismatch { path: path.clone(), message };
        let outline = Outline::of(&session);
        let element = outline.check_input(bundle.input()).map_err(mismatch)?;
        let task = bundle.reading();
        let outputs = outline.check_outputs(&task).map_err(mismatch)?;
        let is_batch_open = outline.is_batch_open(&task);
        Ok(Self { session, input: bundle.input().clone(), element, task, outputs, is_batch_open, runs_on })
    }

    /// What it runs on, and why it may not be what was asked for.
    #[must_use]
    pub fn runs_on(&self) -> &RunsOn {
        &self.runs_on
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

    /// What it takes.
    #[must_use]
    pub fn input(&self) -> &Input {
        &self.input
    }

    /// The input tensors of a file: one of a picture, one or more of numbers.
    pub fn samples(&self, bytes: &[u8]) -> Result<Vec<Tensor>, FeatureError> {
        self.input.samples(bytes)
    }

    /// One sample in, the outputs that the task reads out.
    pub fn run(&mut self, tensor: &Tensor) -> Result<Tensors, ModelError> {
        let failed = |error: ort::Error| ModelError::Run(error.to_string());
        let (name, shape, data) = (self.input.name.as_str(), tensor.shape.as_slice(), tensor.data.as_slice());
        macro_rules! run {
            ($data:expr) => {{
                let value = TensorRef::from_array_view((shape, $data)).map_err(failed)?;
                self.session.run(ort::inputs![name => value]).map_err(failed)?
            }};
        }
        // A number beyond what the model's input holds becomes the nearest that it does.
        macro_rules! whole {
            ($to:ty) => {{
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::allow_attributes,
                    reason = "a cast that saturates is wanted"
                )]
                #[allow(clippy::cast_sign_loss, reason = "for the unsigned")]
                let data: Vec<$to> = data.iter().map(|number| number.round() as $to).collect();
                run!(data.as_slice())
            }};
        }
        let outputs = match self.element {
            TensorElementType::Float16 => {
                let data: Vec<half::f16> = data.iter().map(|number| half::f16::from_f32(*number)).collect();
                run!(data.as_slice())
            }
            TensorElementType::Float64 => {
                let data: Vec<f64> = data.iter().map(|number| f64::from(*number)).collect();
                run!(data.as_slice())
            }
            TensorElementType::Uint8 => whole!(u8),
            TensorElementType::Int8 => whole!(i8),
            TensorElementType::Int32 => whole!(i32),
            TensorElementType::Int64 => whole!(i64),
            _ => run!(data),
        };
        let mut tensors = Tensors::default();
        for name in self.task.names() {
            let value = outputs.get(name).ok_or_else(|| ModelError::Run(format!("there is no output `{name}`")))?;
            tensors.0.push((name.to_owned(), numbers(value)?));
        }
        Ok(tensors)
    }

    /// Whether several samples may be run at once.
    #[must_use]
    pub fn takes_batches(&self) -> bool {
        self.is_batch_open
    }

    /// Several samples in one run; the outputs of each, in order. All of them have the shape of this model's input.
    pub fn run_all(&mut self, tensors: &[Tensor]) -> Result<Vec<Tensors>, ModelError> {
        if tensors.len() < 2 || !self.is_batch_open {
            return tensors.iter().map(|tensor| self.run(tensor)).collect();
        }
        let mut shape = self.input.shape.clone();
        if let Some(batch) = shape.first_mut() {
            *batch = tensors.len();
        }
        let data = tensors.iter().flat_map(|tensor| tensor.data.iter().copied()).collect();
        let together = self.run(&Tensor::new(shape, data))?;
        let mut apart = vec![Tensors::default(); tensors.len()];
        for (name, tensor) in together.0 {
            if tensor.shape.first() != Some(&tensors.len()) {
                let shape = &tensor.shape;
                let problem = format!("`{name}` has the shape {shape:?} for {} samples", tensors.len());
                return Err(ModelError::Run(problem));
            }
            let own: Vec<usize> = std::iter::once(1).chain(tensor.shape.iter().skip(1).copied()).collect();
            let numbers = tensor.data.chunks(own.iter().product::<usize>().max(1));
            for (one, numbers) in apart.iter_mut().zip(numbers) {
                one.0.push((name.clone(), Tensor::new(own.clone(), numbers.to_vec())));
            }
        }
        Ok(apart)
    }

    /// How this model's outputs become an answer.
    #[must_use]
    pub fn task(&self) -> &Task {
        &self.task
    }

    /// The outputs that are read, and their shapes for one sample: -1 where a size is open.
    #[must_use]
    pub fn outputs(&self) -> &[(String, Vec<i64>)] {
        &self.outputs
    }

    /// Runs a golden sample of the bundle this model was loaded from.
    pub fn check_golden(
        &mut self,
        bundle: &Bundle,
        variant: &Variant,
        golden: &Golden,
    ) -> Result<GoldenOutcome, ModelError> {
        let sample = &bundle.golden_sample(golden)?;
        let outputs = self.run(sample)?;
        let read = self.task.uncalibrated().read(&outputs, &sample.frame);
        let (said, _) = read.map_err(|error| ModelError::Run(in_one_line(&error)))?;
        Ok(GoldenOutcome::of(said, bundle, variant.name.as_str(), golden))
    }

    #[must_use]
    pub fn input_shape(&self) -> &[usize] {
        &self.input.shape
    }

    #[must_use]
    pub fn input_name(&self) -> &str {
        &self.input.name
    }
}

impl Bundle {
    /// A golden sample as the model takes it.
    pub fn golden_sample(&self, golden: &Golden) -> Result<Tensor, ModelError> {
        let samples = self.input().samples(&self.read_golden(golden)?)?;
        let [sample] = samples.as_slice() else {
            let reason = format!("a golden sample is one sample, and this file holds {}", samples.len());
            return Err(FeatureError::NoSample { reason }.into());
        };
        Ok(sample.clone())
    }
}

/// What a model said about a golden sample, before the temperature, and what it should have said.
#[derive(Debug, Clone, PartialEq)]
pub struct GoldenOutcome {
    pub said: Output,
    pub expected: Output,
    /// How far their scores may be apart; none if the manifest gives no scores for this variant.
    tolerance: Option<f32>,
    /// A box that scores no more than this may be shown or not.
    doubtful: f32,
}

impl GoldenOutcome {
    /// Of a model elsewhere, which may calculate more or less exactly than any of the bundle's files: what it says counts,
    /// and not how sure it is.
    #[must_use]
    pub fn elsewhere(said: Output, bundle: &Bundle, golden: &Golden) -> Self {
        let variant = golden.found.keys().next().map_or("", String::as_str);
        Self { tolerance: None, ..Self::of(said, bundle, variant, golden) }
    }

    fn of(said: Output, bundle: &Bundle, variant: &str, golden: &Golden) -> Self {
        let in_clouds_words = |own: &str| bundle.cloud_label(own).to_owned();
        let (expected, tolerance) = match &golden.label {
            Some(label) => {
                let score = golden.scores.get(variant).copied();
                let best = hedge_proto::LabelScore { label: in_clouds_words(label), score: score.unwrap_or(1.0) };
                (Output::Classes(vec![best]), score.map(|_| GOLDEN_TOLERANCE))
            }
            None => {
                let mut found = golden.found.get(variant).cloned().unwrap_or_default();
                found.iter_mut().for_each(|one| one.label = in_clouds_words(&one.label));
                (Output::Boxes(found), Some(GOLDEN_TOLERANCE))
            }
        };
        let doubtful = match &bundle.manifest().output {
            Reading::Boxes(detect) => detect.shown_min.value() + GOLDEN_TOLERANCE,
            Reading::Classes(_) => 0.0,
        };
        Self { said, expected, tolerance, doubtful }
    }

    /// What it said and what it should have said: the label or what was found, and how sure.
    #[must_use]
    pub fn in_words(&self) -> (String, String) {
        let words = |output: &Output| match output.score() {
            Some(score) => format!("{} {score:.4}", output.headline()),
            None => output.headline(),
        };
        let expected = match self.tolerance {
            Some(_) => words(&self.expected),
            None => format!("{} any score", self.expected.headline()),
        };
        (words(&self.said), expected)
    }

    #[must_use]
    pub fn passed(&self) -> bool {
        let near = |one: f32, other: f32| self.tolerance.is_none_or(|tolerance| (one - other).abs() <= tolerance);
        match (&self.said, &self.expected) {
            (Output::Boxes(said), Output::Boxes(expected)) => {
                let pairs = pairs(said, expected);
                let missed = (0..expected.len()).filter(|at| !pairs.contains(&Some(*at))).map(|at| &expected[at]);
                let unexpected = said.iter().zip(&pairs).filter(|(_, pair)| pair.is_none()).map(|(one, _)| one);
                let matched = said.iter().zip(&pairs).filter_map(|(one, pair)| Some((one, &expected[(*pair)?])));
                missed.chain(unexpected).all(|one| one.score <= self.doubtful)
                    && matched.into_iter().all(|(one, other)| near(one.score, other.score))
            }
            (said, expected) => {
                let scores = said.score().zip(expected.score());
                agree(said, expected) >= 1.0 && scores.is_some_and(|(one, other)| near(one, other))
            }
        }
    }
}

/// The numbers of an output, whatever they are. A byte with a sign is counted from the lowest: a softmax does not mind
/// and a probability in bytes begins there.
fn numbers(value: &DynValue) -> Result<Tensor, ModelError> {
    let failed = |error: ort::Error| ModelError::Run(error.to_string());
    let ValueType::Tensor { ty, .. } = value.dtype() else {
        return Err(ModelError::Run("an output is no tensor".to_owned()));
    };
    macro_rules! read {
        ($of:ty, $number:expr) => {{
            let (shape, data) = value.try_extract_tensor::<$of>().map_err(failed)?;
            (shape.to_vec(), data.iter().map($number).collect::<Vec<f32>>())
        }};
    }
    let (shape, data) = match ty {
        TensorElementType::Float16 => read!(half::f16, |number| number.to_f32()),
        #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as everything after it is")]
        TensorElementType::Float64 => read!(f64, |number| *number as f32),
        TensorElementType::Int64 => read!(i64, |number| *number as f32),
        TensorElementType::Int32 => read!(i32, |number| *number as f32),
        TensorElementType::Uint8 => read!(u8, |number| f32::from(*number)),
        TensorElementType::Int8 => read!(i8, |number| f32::from(*number) + 128.0),
        _ => read!(f32, |number| *number),
    };
    Ok(Tensor::new(shape.iter().map(|side| usize::try_from(*side).unwrap_or(0)).collect(), data))
}

fn open(runtime: &Runtime, path: &Path, options: &SessionOptions) -> Result<Session, ModelError> {
    let load = |error: ort::Error| ModelError::Load {
        path: path.to_owned(),
        reason: in_plain_words(path, &error.to_string()),
    };
    let builder = match &options.provider {
        Some(choice) => runtime.session_on(choice, options.threads),
        None => runtime.session(options.threads),
    };
    builder.map_err(load)?.commit_from_file(path).map_err(load)
}

/// What ONNX Runtime says of a file that it does not load, without the place in its source that it names; and what the
/// file is if it is no model.
fn in_plain_words(path: &Path, said: &str) -> String {
    let said =
        said.split_once(" failed:").filter(|(before, _)| before.starts_with("Load model")).map_or(said, |two| two.1);
    if said.starts_with("Protobuf parsing failed") || said.contains("does not have a graph") {
        let mut begin = Vec::new();
        let read = std::fs::File::open(path).and_then(|file| file.take(64).read_to_end(&mut begin));
        return match read.ok().and_then(|_| features::what_else(&begin)) {
            Some(what) => format!("it is {what}, and no ONNX model"),
            None => "it is no ONNX model, or only a part of one; copy or export it again".to_owned(),
        };
    }
    // `/path/file.cc:12 void name(type (*)(int)) What is wrong`
    let Some((_, after)) = said.strip_prefix('/').and_then(|said| said.split_once('(')) else { return said.to_owned() };
    let mut open = 1;
    let end = after.find(|letter| {
        open += i32::from(letter == '(') - i32::from(letter == ')');
        open == 0
    });
    let words = end.and_then(|end| after.get(end + 1..)).unwrap_or(said).trim_start();
    words.strip_prefix("const ").unwrap_or(words).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_runtime_says_of_a_file_is_told_without_its_source() {
        let folder = tempfile::tempdir().expect("a folder");
        let page = folder.path().join("model.onnx");
        std::fs::write(&page, "<!DOCTYPE html><html>").expect("written");
        let signature =
            "/src/core/graph/model.cc:181 onnx::Model::Model(onnx::Proto&&, const std::function<void(int)>&)";
        for (said, words) in [
            (
                format!("Load model from m.onnx failed:{signature} Unsupported model IR version: 99"),
                "Unsupported model IR version: 99",
            ),
            (format!("{signature} const Opset 99 (of 24) is not supported"), "Opset 99 (of 24) is not supported"),
            ("File does not exist".to_owned(), "File does not exist"),
            (
                "Load model from m.onnx failed:Protobuf parsing failed.".to_owned(),
                "it is a web page, and no ONNX model",
            ),
        ] {
            assert_eq!(in_plain_words(&page, &said), words);
        }
    }
}
