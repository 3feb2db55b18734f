//! A server of the Open Inference Protocol v2 (Triton, KServe, MLServer, OpenVINO) as an answerer, over HTTP.
//!
//! The bundle here makes the tensor and reads the outputs; the server runs the model. That it is the bundle's model is
//! checked by its metadata each time before it gets cases: names, number types, shapes.

use std::path::Path;
use std::sync::atomic::Ordering;

use hedge_inference::model::shape_in_words;
use hedge_inference::task::Tensors;
use hedge_inference::{Bundle, Task, Tensor};
use hedge_proto::{Case, ModelRef, Output, in_one_line};
use serde::Deserialize;
use serde_json::{Value, json};

use super::call::{Answered, Caller, quoted};
use super::{ModelFailure, placed, tensor};
use crate::answerers::{AnswererConfig, TensorsAs};

const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

/// The most dimensions and numbers of an output that are read.
const NUMBERS_MAX: usize = 16 * 1024 * 1024;

pub(super) struct OpenInference {
    caller: Caller,
    bundle: Bundle,
    task: Task,
    path: String,
    tensors: TensorsAs,
    /// What the server's input holds, once it has said so.
    datatype: std::sync::Mutex<Option<Datatype>>,
}

/// Number types of the protocol that models take and give.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "UPPERCASE")]
enum Datatype {
    Fp16,
    Fp32,
    Fp64,
    Uint8,
    Int8,
    Int32,
    Int64,
}

#[derive(Debug, Deserialize)]
struct Metadata {
    inputs: Vec<Port>,
    outputs: Vec<Port>,
}

#[derive(Debug, Deserialize)]
struct Port {
    name: String,
    datatype: String,
    #[serde(default)]
    shape: Vec<i64>,
}

#[derive(Debug, Deserialize)]
struct Answer {
    outputs: Vec<Given>,
}

#[derive(Debug, Deserialize)]
struct Given {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    #[serde(default)]
    data: Value,
    #[serde(default)]
    parameters: Parameters,
}

#[derive(Debug, Default, Deserialize)]
struct Parameters {
    binary_data_size: Option<usize>,
}

impl OpenInference {
    pub(super) fn new(config: &AnswererConfig) -> Result<Self, String> {
        let dir = config.bundle.as_deref().unwrap_or(Path::new(""));
        let bundle =
            Bundle::open(dir).map_err(|error| format!("bundle = {}: {}", dir.display(), in_one_line(&error)))?;
        let model = config.model.as_deref().unwrap_or_default();
        let version = config.version.as_ref().map(|version| format!("/versions/{version}")).unwrap_or_default();
        let task = bundle.reading();
        Ok(Self {
            caller: Caller::new(config)?,
            path: format!("v2/models/{model}{version}"),
            task,
            bundle,
            tensors: config.tensors.unwrap_or_default(),
            datatype: std::sync::Mutex::default(),
        })
    }

    pub(super) fn task(&self) -> &str {
        self.bundle.task()
    }

    pub(super) fn model_ref(&self) -> ModelRef {
        self.bundle.model_ref()
    }

    fn url(&self, what: &str) -> String {
        format!("{}/{}{what}", self.caller.url.trim_end_matches('/'), self.path)
    }

    pub(super) async fn answer(&self, case: &Case, payload: &[u8]) -> Result<Output, ModelFailure> {
        let tensor = tensor(&self.bundle, case, payload)?;
        let datatype = self.datatype().unwrap_or(Datatype::Fp32);
        let (head, data) = self.request(case, &tensor, datatype)?;
        let request = self.caller.post(&self.url("/infer"));
        let request = match data {
            None => request.header("content-type", "application/json").body(head),
            Some(data) => request
                .header("content-type", "application/octet-stream")
                .header(HEADER_LENGTH, head.len())
                .body([head, data].concat()),
        };
        let answered = self.caller.call(request, self.caller.deadline).await?;
        let outputs = self.outputs(&answered)?;
        let (said, _) =
            self.task.read(&outputs, &tensor.frame).map_err(|error| ModelFailure::Failed(in_one_line(&error)))?;
        self.caller.is_proven.store(true, Ordering::Relaxed);
        Ok(placed(said, case))
    }

    fn datatype(&self) -> Option<Datatype> {
        *self.datatype.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// Ready, and with the bundle's model.
    pub(super) async fn question(&self) -> Result<(), ModelFailure> {
        let get = |what: &str| self.caller.call(self.caller.get(&self.url(what)), self.caller.deadline);
        // While it loads, it refuses with whatever status it likes.
        get("/ready").await.map_err(|failure| match failure {
            ModelFailure::Dead(why) | ModelFailure::Failed(why) => ModelFailure::Down { why, had_it: false },
            other => other,
        })?;
        let answered = get("").await?;
        let down = |why: String| ModelFailure::Down { why, had_it: false };
        let metadata: Metadata = serde_json::from_slice(&answered.body).map_err(|error| {
            down(format!(
                "its model's metadata cannot be read: {error}{}",
                quoted(&String::from_utf8_lossy(&answered.body))
            ))
        })?;
        let datatype =
            self.fits(&metadata).map_err(|why| down(format!("it has another model than the bundle's: {why}")))?;
        *self.datatype.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(datatype);
        Ok(())
    }

    fn fits(&self, metadata: &Metadata) -> Result<Datatype, String> {
        let input = self.bundle.input();
        let list = |ports: &[Port]| ports.iter().map(|port| format!("`{}`", port.name)).collect::<Vec<_>>().join(", ");
        let [port] = metadata.inputs.as_slice() else {
            return Err(format!("its inputs are {}; models with one are supported", list(&metadata.inputs)));
        };
        if port.name != input.name {
            return Err(format!("its input is `{}`, the bundle's `{}`", port.name, input.name));
        }
        let datatype = datatype(&port.datatype).ok_or_else(|| {
            format!("its input holds {}; FP32, FP16, FP64, UINT8, INT8, INT32 and INT64 are supported", port.datatype)
        })?;
        let fits = |own: &[i64], wanted: &[usize]| {
            own.len() == wanted.len()
                && own.iter().zip(wanted).all(|(own, wanted)| *own < 0 || usize::try_from(*own) == Ok(*wanted))
        };
        // Some servers leave the batch out of what they tell.
        let is_known = !port.shape.is_empty();
        if is_known && !fits(&port.shape, &input.shape) && !fits(&port.shape, input.shape.get(1..).unwrap_or_default())
        {
            let wanted: Vec<i64> = input.shape.iter().map(|side| i64::try_from(*side).unwrap_or(i64::MAX)).collect();
            let (own, wanted) = (shape_in_words(&port.shape), shape_in_words(&wanted));
            return Err(format!("its input has the shape {own}, the bundle's {wanted}"));
        }
        for name in self.task.names() {
            let output = metadata.outputs.iter().find(|port| port.name == name);
            let output =
                output.ok_or_else(|| format!("its outputs are {}, and `{name}` is read", list(&metadata.outputs)))?;
            if self::datatype(&output.datatype).is_none() {
                return Err(format!("its output `{name}` holds {}", output.datatype));
            }
        }
        Ok(datatype)
    }

    fn request(
        &self,
        case: &Case,
        tensor: &Tensor,
        datatype: Datatype,
    ) -> Result<(Vec<u8>, Option<Vec<u8>>), ModelFailure> {
        let is_binary = self.tensors == TensorsAs::Binary;
        let outputs: Vec<Value> = self
            .task
            .names()
            .into_iter()
            .map(|name| match is_binary {
                true => json!({"name": name, "parameters": {"binary_data": true}}),
                false => json!({"name": name}),
            })
            .collect();
        let mut input = json!({"name": self.bundle.input().name, "shape": tensor.shape, "datatype": word(datatype)});
        let data = match is_binary {
            true => {
                let data = datatype.bytes(&tensor.data);
                input["parameters"] = json!({"binary_data_size": data.len()});
                Some(data)
            }
            false => {
                input["data"] = datatype.json(&tensor.data);
                None
            }
        };
        let head = json!({"id": case.id.to_string(), "inputs": [input], "outputs": outputs});
        Ok((serde_json::to_vec(&head).map_err(|error| ModelFailure::Failed(error.to_string()))?, data))
    }

    /// What it gave. An answer that is not whole is none.
    fn outputs(&self, answered: &Answered) -> Result<Tensors, ModelFailure> {
        let half = |what: &str| ModelFailure::Down { why: format!("its answer is not whole: {what}"), had_it: true };
        let length = answered.headers.get(HEADER_LENGTH);
        let length = length.map(|length| length.to_str().ok()?.trim().parse::<usize>().ok());
        let (head, mut rest) = match length {
            None => (answered.body.as_slice(), [].as_slice()),
            Some(Some(length)) if length <= answered.body.len() => answered.body.split_at(length),
            Some(_) => return Err(half("its header is cut off")),
        };
        let answer: Answer = serde_json::from_slice(head).map_err(|error| half(&error.to_string()))?;
        let mut given = Vec::new();
        for Given { name, datatype, shape, data, parameters } in answer.outputs {
            let count = shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
            let count = count.filter(|count| *count <= NUMBERS_MAX).ok_or_else(|| half("an output is too large"))?;
            let kind = self::datatype(&datatype);
            let numbers = match parameters.binary_data_size {
                Some(bytes) if bytes <= rest.len() => {
                    let (own, behind) = rest.split_at(bytes);
                    rest = behind;
                    kind.and_then(|kind| kind.read(own))
                }
                Some(_) => return Err(half("a tensor is cut off")),
                None => kind.and_then(|kind| flat(&data, kind)),
            };
            match numbers {
                Some(numbers) if numbers.len() == count => given.push((name, Tensor::new(shape, numbers))),
                // One that nobody reads may hold what it likes.
                _ if !self.task.names().contains(&name.as_str()) => {}
                Some(numbers) => {
                    return Err(half(&format!("`{name}` has {} numbers for the shape {shape:?}", numbers.len())));
                }
                None => return Err(half(&format!("`{name}` holds no numbers"))),
            }
        }
        for name in self.task.names() {
            if given.iter().all(|(own, _)| own != name) {
                return Err(half(&format!("there is no output `{name}`")));
            }
        }
        Ok(Tensors(given))
    }
}

/// The protocol's names of number types.
const WORDS: [(&str, Datatype); 7] = [
    ("FP16", Datatype::Fp16),
    ("FP32", Datatype::Fp32),
    ("FP64", Datatype::Fp64),
    ("UINT8", Datatype::Uint8),
    ("INT8", Datatype::Int8),
    ("INT32", Datatype::Int32),
    ("INT64", Datatype::Int64),
];

fn datatype(text: &str) -> Option<Datatype> {
    WORDS.iter().find(|(word, _)| *word == text).map(|(_, datatype)| *datatype)
}

fn word(datatype: Datatype) -> &'static str {
    WORDS.iter().find(|(_, own)| *own == datatype).map_or("FP32", |(word, _)| word)
}

#[expect(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "casts that saturate are wanted, as in ONNX Runtime's answerer"
)]
impl Datatype {
    fn bytes(self, numbers: &[f32]) -> Vec<u8> {
        macro_rules! all {
            ($to:expr) => {
                numbers.iter().flat_map(|number| $to(*number).to_le_bytes()).collect()
            };
        }
        match self {
            Self::Fp32 => all!(|number: f32| number),
            Self::Fp16 => all!(half::f16::from_f32),
            Self::Fp64 => all!(f64::from),
            Self::Uint8 => all!(|number: f32| number.round() as u8),
            Self::Int8 => all!(|number: f32| number.round() as i8),
            Self::Int32 => all!(|number: f32| number.round() as i32),
            Self::Int64 => all!(|number: f32| number.round() as i64),
        }
    }

    fn json(self, numbers: &[f32]) -> Value {
        match self {
            Self::Fp16 | Self::Fp32 | Self::Fp64 => json!(numbers),
            Self::Uint8 => numbers.iter().map(|number| number.round() as u8).collect(),
            Self::Int8 => numbers.iter().map(|number| number.round() as i8).collect(),
            Self::Int32 | Self::Int64 => numbers.iter().map(|number| number.round() as i64).collect(),
        }
    }

    fn read(self, bytes: &[u8]) -> Option<Vec<f32>> {
        macro_rules! all {
            ($of:ty, $to:expr) => {{
                let (numbers, rest) = bytes.as_chunks::<{ size_of::<$of>() }>();
                rest.is_empty().then(|| numbers.iter().map(|one| $to(<$of>::from_le_bytes(*one))).collect())
            }};
        }
        match self {
            Self::Fp32 => all!(f32, |number: f32| number),
            Self::Fp16 => all!(half::f16, |number: half::f16| number.to_f32()),
            Self::Fp64 => all!(f64, |number: f64| number as f32),
            Self::Uint8 => all!(u8, f32::from),
            Self::Int8 => all!(i8, |number: i8| f32::from(number) + SIGNED),
            Self::Int32 => all!(i32, |number: i32| number as f32),
            Self::Int64 => all!(i64, |number: i64| number as f32),
        }
    }
}

/// A byte with a sign is counted from the lowest, as everywhere outputs are read.
const SIGNED: f32 = 128.0;

/// The numbers of JSON lists, however they are nested.
fn flat(data: &Value, kind: Datatype) -> Option<Vec<f32>> {
    let mut numbers = Vec::new();
    let mut open = vec![data.as_array()?.iter()];
    while let Some(list) = open.last_mut() {
        match list.next() {
            None => drop(open.pop()),
            Some(Value::Array(inner)) if open.len() < 16 => open.push(inner.iter()),
            #[expect(clippy::cast_possible_truncation, reason = "rounded to f32, as everything after it is")]
            Some(Value::Number(number)) if numbers.len() < NUMBERS_MAX => {
                let number = number.as_f64()? as f32;
                numbers.push(if kind == Datatype::Int8 { number + SIGNED } else { number });
            }
            Some(_) => return None,
        }
    }
    Some(numbers)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_of_every_type_travel_and_come_back() {
        for (word, kind) in WORDS {
            let numbers = [0.0, 1.0, 2.0, 100.0];
            let signed = if kind == Datatype::Int8 { SIGNED } else { 0.0 };
            let expected: Vec<f32> = numbers.iter().map(|number| number + signed).collect();
            assert_eq!(kind.read(&kind.bytes(&numbers)), Some(expected.clone()), "{word}");
            assert_eq!(flat(&kind.json(&numbers), kind), Some(expected), "{word}");
            assert_eq!((datatype(word), self::word(kind)), (Some(kind), word));
        }
        assert_eq!(Datatype::Fp32.read(&[0; 7]), None, "cut off");
        assert_eq!(flat(&json!([[1, 2], [3]]), Datatype::Int32), Some(vec![1.0, 2.0, 3.0]));
        assert_eq!(flat(&json!([1, null]), Datatype::Fp32), None, "NaN has no number in JSON");
    }
}
