//! A server of the Open Inference Protocol v2 (Triton, KServe, MLServer, OpenVINO) as an answerer, over HTTP.
//!
//! The bundle here makes the tensor and reads the outputs; the server runs the model. That it is the bundle's model is
//! checked each time before it gets cases: by its metadata (names, number types, shapes), and by the bundle's golden samples
//! where a call costs nothing.

mod numbers;

use std::path::Path;
use std::sync::atomic::Ordering;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hedge_inference::model::{GoldenOutcome, shape_in_words};
use hedge_inference::task::{Tensors, Unusable};
use hedge_inference::{Bundle, Task, Tensor};
use hedge_proto::{Case, ModelRef, Output, Rect, in_one_line};
use serde::Deserialize;
use serde_json::{Value, json};

use self::numbers::{Datatype, NUMBERS_MAX, Numbers, datatype, word};
use super::call::{Answered, Caller, WORDS_BYTES_MAX, quoted};
use super::{ModelFailure, placed, tensor};
use crate::answerers::{AnswererConfig, Micro, TensorsAs};

const HEADER_LENGTH: &str = "Inference-Header-Content-Length";

pub(super) struct OpenInference {
    caller: Caller,
    bundle: Bundle,
    task: Task,
    path: String,
    tensors: TensorsAs,
    is_free: bool,
    served: Mutex<Served>,
}

/// What is known of the server's model.
#[derive(Debug, Clone, Copy, Default)]
struct Served {
    /// What its input holds, once it has said so.
    datatype: Option<Datatype>,
    /// When it gave the golden samples' answers, if it has answered ever since.
    right_at: Option<Instant>,
}

/// A server that is up is asked about the golden samples again so often: it may have loaded another model meanwhile.
const GOLDENS_EVERY: Duration = Duration::from_secs(300);

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
    id: Option<String>,
    outputs: Vec<Given>,
}

#[derive(Debug, Deserialize)]
struct Given {
    name: String,
    datatype: String,
    shape: Vec<usize>,
    #[serde(default)]
    data: Numbers,
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
            is_free: config.price() == Micro::default(),
            served: Mutex::default(),
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
        let outputs = self.infer(&case.id.to_string(), &tensor).await?;
        let said = read(&self.task, &outputs, &tensor.frame)?;
        self.caller.is_proven.store(true, Ordering::Relaxed);
        Ok(placed(said, case))
    }

    /// `id` is the request's, which the server may say again.
    async fn infer(&self, id: &str, tensor: &Tensor) -> Result<Tensors, ModelFailure> {
        let datatype = self.served().datatype.unwrap_or(Datatype::Fp32);
        let (head, data) = self.request(id, tensor, datatype)?;
        let request = self.caller.post(&self.url("/infer"));
        let request = match data {
            None => request.header("content-type", "application/json").body(head),
            Some(data) => request
                .header("content-type", "application/octet-stream")
                .header(HEADER_LENGTH, head.len())
                .body([head, data].concat()),
        };
        let answered = self.caller.call(request, self.caller.deadline).await;
        let outputs = answered.and_then(|answered| self.outputs(&answered, id));
        outputs.inspect_err(|_| self.served().right_at = None)
    }

    fn served(&self) -> MutexGuard<'_, Served> {
        self.served.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ready, and with the bundle's model.
    pub(super) async fn question(&self) -> Result<(), ModelFailure> {
        let right_at = self.served().right_at.take();
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
        self.served().datatype = Some(datatype);
        let right_at = match right_at.filter(|at| at.elapsed() < GOLDENS_EVERY) {
            None if self.is_free => {
                self.try_goldens().await?;
                Some(Instant::now())
            }
            known => known,
        };
        self.served().right_at = right_at;
        Ok(())
    }

    /// Another model of the same shape would answer every case, and wrong.
    async fn try_goldens(&self) -> Result<(), ModelFailure> {
        let task = self.task.uncalibrated();
        for golden in &self.bundle.manifest().goldens {
            let down = |why: String| ModelFailure::Down { why, had_it: false };
            let sample = self.bundle.golden_sample(golden).map_err(|error| down(in_one_line(&error)))?;
            let file = golden.file.as_path().display().to_string();
            let outputs = self.infer("golden", &sample).await?;
            let outcome = GoldenOutcome::elsewhere(read(&task, &outputs, &sample.frame)?, &self.bundle, golden);
            if !outcome.passed() {
                let (said, expected) = outcome.in_words();
                let why = format!("the golden sample {file} is {said} there, not {expected}");
                return Err(down(format!("it has another model than the bundle's: {why}")));
            }
        }
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
            if numbers::datatype(&output.datatype).is_none() {
                return Err(format!("its output `{name}` holds {}", output.datatype));
            }
        }
        Ok(datatype)
    }

    fn request(
        &self,
        id: &str,
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
        let head = json!({"id": id, "inputs": [input], "outputs": outputs});
        Ok((serde_json::to_vec(&head).map_err(|error| ModelFailure::Failed(error.to_string()))?, data))
    }

    /// What it gave. An answer that is not whole is none.
    fn outputs(&self, answered: &Answered, asked: &str) -> Result<Tensors, ModelFailure> {
        let length = answered.headers.get(HEADER_LENGTH);
        let length = length.map(|length| length.to_str().ok()?.trim().parse::<usize>().ok());
        let (head, mut rest) = match length {
            None => (answered.body.as_slice(), [].as_slice()),
            Some(Some(length)) if length <= answered.body.len() => answered.body.split_at(length),
            Some(_) => return Err(half("its header is cut off")),
        };
        let answer: Answer = serde_json::from_slice(head).map_err(|error| {
            let beginning = head.get(..WORDS_BYTES_MAX).unwrap_or(head);
            half(&format!("{error}{}", quoted(&String::from_utf8_lossy(beginning))))
        })?;
        // Not all of them say to which request they answer.
        if let Some(id) = answer.id.filter(|id| !id.is_empty() && id != asked) {
            return Err(half(&format!("it answers another request{}", quoted(&id))));
        }
        let mut given: Vec<(String, Tensor)> = Vec::new();
        for Given { name, datatype, shape, data, parameters } in answer.outputs {
            let count = shape.iter().try_fold(1_usize, |product, side| product.checked_mul(*side));
            let count = count.filter(|count| *count <= NUMBERS_MAX).ok_or_else(|| half("an output is too large"))?;
            let kind = numbers::datatype(&datatype);
            let numbers = match parameters.binary_data_size {
                Some(bytes) if bytes <= rest.len() => {
                    let (own, behind) = rest.split_at(bytes);
                    rest = behind;
                    kind.and_then(|kind| kind.read(own))
                }
                Some(_) => return Err(half("a tensor is cut off")),
                None => kind.and_then(|kind| data.of(kind)),
            };
            match numbers {
                Some(_) if given.iter().any(|(own, _)| *own == name) => {
                    return Err(half(&format!("`{name}` comes twice")));
                }
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

fn read(task: &Task, outputs: &Tensors, frame: &Rect) -> Result<Output, ModelFailure> {
    task.read(outputs, frame).map(|(said, _)| said).map_err(|error| match error {
        // The sample may be why.
        Unusable::NotFinite => ModelFailure::Failed(in_one_line(&error)),
        // It would be the same for every sample: this is another model than the bundle's.
        error => half(&in_one_line(&error)),
    })
}

fn half(what: &str) -> ModelFailure {
    ModelFailure::Down { why: format!("its answer is not whole: {what}"), had_it: true }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::CaseId;

    #[test]
    fn an_answer_to_another_request_or_of_another_model_is_no_verdict_and_blames_no_case() {
        drop(rustls::crypto::ring::default_provider().install_default());
        let bundle = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-large");
        let text = format!(
            "name = \"a\"\nkind = \"open_inference\"\nurl = \"http://h\"\nbundle = \"{bundle}\"\nmodel = \"m\""
        );
        let server = OpenInference::new(&toml::from_str(&text).expect("valid")).expect("a bundle");
        let asked: CaseId = "porch.0000000000000001.7".parse().expect("an id");
        let logits = |count: usize| {
            let data: Vec<usize> = (0..count).collect();
            json!({"name": "logits", "datatype": "FP32", "shape": [1, count], "data": data})
        };
        let check = |answer: Value, expected: &str| {
            let answered = Answered { headers: Default::default(), body: answer.to_string().into_bytes() };
            let outputs = server.outputs(&answered, &asked.to_string());
            let said = match outputs.and_then(|outputs| read(&server.task, &outputs, &Rect::WHOLE)) {
                Ok(said) => said.headline(),
                Err(ModelFailure::Down { why, had_it: true }) => format!("down: {why}"),
                Err(failure) => format!("{failure:?}"),
            };
            assert!(said.starts_with(expected), "{said} is not {expected} for {answer}");
        };
        check(json!({"outputs": [logits(10)]}), "Ankle boot");
        check(json!({"id": "", "outputs": [logits(10)]}), "Ankle boot");
        check(json!({"id": asked, "outputs": [logits(10)]}), "Ankle boot");
        let other = json!({"id": "porch.0000000000000001.8", "outputs": [logits(10)]});
        check(other, "down: its answer is not whole: it answers another request: porch.0000000000000001.8");
        check(json!({"outputs": [logits(10), logits(10)]}), "down: its answer is not whole: `logits` comes twice");
        for count in [0, 9, 11, 20] {
            let why = format!("down: its answer is not whole: the model gave {count} values for 10 labels");
            check(json!({"outputs": [logits(count)]}), &why);
        }
        let refusal = json!({"error": "no such model"});
        check(
            refusal,
            "down: its answer is not whole: missing field `outputs` at line 1 column 25: {\"error\":\"no such",
        );
        let all_nan =
            json!({"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": [1e39, 0, 0, 0, 0, 0, 0, 0, 0, 0]});
        check(json!({"outputs": [all_nan]}), "Failed");
    }
}
