//! Inputs and outputs of an ONNX file, in its own words and by the manifest's.

use std::fmt;
use std::path::Path;

use ort::session::Session;
use ort::value::{Outlet, TensorElementType, ValueType};

use super::{ModelError, SessionOptions, open};
use crate::bundle::Input;
use crate::runtime::Runtime;
use crate::task::{Reading, Task};

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
    /// -1 where the file leaves the size open; none if this is no tensor of numbers.
    pub shape: Option<Vec<i64>>,
    element: TensorElementType,
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
            Some(shape) if !self.is_float() && shape.len() < 2 => write!(f, "`{name}` ({})", self.kind),
            Some(shape) if !self.is_float() => write!(f, "`{name}` ({} of {})", shape_in_words(shape), self.kind),
            Some(_) if self.values() == Some(1) => write!(f, "`{name}` (one number)"),
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

    pub(super) fn of(session: &Session) -> Self {
        let ports = |outlets: &[Outlet]| outlets.iter().map(Port::new).collect();
        Self { inputs: ports(session.inputs()), outputs: ports(session.outputs()) }
    }

    pub(super) fn is_batch_open(&self, task: &Task) -> bool {
        let is_open = |port: &Port| port.shape.as_ref().is_some_and(|shape| shape.first() == Some(&-1));
        let is_read = |port: &&Port| task.names().contains(&port.name.as_str());
        self.inputs.iter().all(is_open) && self.outputs.iter().filter(is_read).all(is_open)
    }

    /// What the input holds.
    pub(super) fn check_input(&self, wanted: &Input) -> Result<TensorElementType, String> {
        let [port] = self.inputs.as_slice() else {
            return Err(format!("the model has the inputs {}; models with one are supported", names(&self.inputs)));
        };
        if port.name != wanted.name {
            return Err(format!(
                "`input.name` is \"{}\" in the manifest, but \"{}\" in the model",
                wanted.name, port.name
            ));
        }
        let shape = port.numbers("input")?;
        let fits = shape.len() == wanted.shape.len()
            && shape.iter().zip(&wanted.shape).all(|(own, wanted)| *own < 0 || usize::try_from(*own) == Ok(*wanted));
        if fits {
            Ok(port.element)
        } else {
            let (given, takes) = (&wanted.shape, shape_in_words(shape));
            Err(format!("`input.shape` is {given:?} in the manifest, but the model takes {takes}"))
        }
    }

    /// The outputs that the task reads, and their shapes for one sample.
    pub(super) fn check_outputs(&self, task: &Task) -> Result<Vec<(String, Vec<i64>)>, String> {
        let mut outputs = Vec::new();
        for name in task.names() {
            let port = self.outputs.iter().find(|port| port.name == name).ok_or_else(|| {
                let field = match &task.reading {
                    _ if task.confidence.as_deref() == Some(name) => "`confidence` is",
                    _ if task.embedding.as_deref() == Some(name) => "`embedding` is",
                    Reading::Classes(_) => "`output.name` is",
                    Reading::Boxes(_) => "`[output]` names",
                };
                format!("{field} \"{name}\" in the manifest, but the model has {}", names(&self.outputs))
            })?;
            let mut shape = port.numbers("output")?.to_vec();
            if let Some(batch @ -1) = shape.first_mut() {
                *batch = 1;
            }
            outputs.push((name.to_owned(), shape));
            let labels = task.labels.len();
            if let (Reading::Classes(classes), Some(values)) = (&task.reading, port.values())
                && classes.name == name
                && labels > 0
                && !port.fits(labels)
            {
                return Err(format!(
                    "the model's output {port} tells {values} classes apart, but there are {labels} labels"
                ));
            }
        }
        Ok(outputs)
    }
}

impl Port {
    fn new(outlet: &Outlet) -> Self {
        let (held, shape) = match outlet.dtype() {
            ValueType::Tensor { ty, shape, .. } => (*ty, is_number(*ty).then(|| shape.to_vec())),
            _ => (TensorElementType::Undefined, None),
        };
        let kind = match outlet.dtype() {
            ValueType::Tensor { ty, .. } => element(*ty),
            ValueType::Sequence(of) if matches!(**of, ValueType::Tensor { .. }) => "a list of tensors",
            ValueType::Sequence(_) | ValueType::Map { .. } => MAPS,
            ValueType::Optional(_) => "an optional value",
        };
        Self { name: outlet.name().to_owned(), shape, element: held, kind }
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

    /// Whether it holds fractions, as scores do, and not whole numbers.
    #[must_use]
    pub fn is_float(&self) -> bool {
        use TensorElementType::{Float16, Float32, Float64};
        matches!(self.element, Float16 | Float32 | Float64)
    }

    /// Whether it may hold a number for each class: one list of fractions, or of bytes of a quantised model. Larger whole
    /// numbers count or name something.
    #[must_use]
    pub fn may_be_scores(&self) -> bool {
        let sides = self.shape.as_deref().and_then(|shape| shape.get(1..)).unwrap_or_default();
        let is_list = sides.iter().filter(|side| **side != 1).count() < 2;
        is_list && (self.is_float() || self.is_byte())
    }

    /// Whether it holds bytes, with or without a sign.
    #[must_use]
    pub fn is_byte(&self) -> bool {
        matches!(self.element, TensorElementType::Uint8 | TensorElementType::Int8)
    }

    /// The whole numbers that it can hold; none if it holds fractions.
    #[must_use]
    pub fn whole_range(&self) -> Option<(f64, f64)> {
        match self.element {
            TensorElementType::Uint8 => Some((0.0, f64::from(u8::MAX))),
            TensorElementType::Int8 => Some((f64::from(i8::MIN), f64::from(i8::MAX))),
            TensorElementType::Int32 | TensorElementType::Int64 => Some((f64::from(i32::MIN), f64::from(i32::MAX))),
            _ => None,
        }
    }

    fn numbers(&self, side: &str) -> Result<&[i64], String> {
        self.shape.as_deref().ok_or_else(|| {
            format!(
                "the {side} `{}` is {}; tensors of float32, float16 or whole numbers are supported",
                self.name, self.kind
            )
        })
    }
}

fn is_number(element: TensorElementType) -> bool {
    use TensorElementType::{Float16, Float32, Float64, Int8, Int32, Int64, Uint8};
    matches!(element, Float32 | Float16 | Float64 | Int64 | Int32 | Int8 | Uint8)
}

/// As ONNX names it.
fn element(of: TensorElementType) -> &'static str {
    match of {
        TensorElementType::Float32 => "float32",
        TensorElementType::Float16 => "float16",
        TensorElementType::Bfloat16 => "bfloat16",
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
