//! The Open Inference Protocol v2 over HTTP: the local model's raw outputs for clients that already speak it.
//!
//! It judges nothing and defers nothing; an application that wants a second opinion posts to `/v1/samples`.
//! JSON, and the binary tensor extension that tritonclient uses by default. One input, the outputs that the bundle
//! names, FP32.

mod request;
#[cfg(any(test, fuzzing))]
pub(crate) mod requests;
mod response;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hedge_inference::Tensors;
use hedge_proto::Name;
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::http::{Api, HttpError};
use super::{Intake, ModelFacts};
use crate::faults::Part;

/// Says where the JSON part of a message ends and raw tensors begin.
const JSON_LENGTH_HEADER: &str = "inference-header-content-length";

/// How long one sample may take. Only a stuck model needs longer.
const SCORES_WAIT_MAX: Duration = Duration::from_secs(30);

type Shared<I> = State<Arc<Api<I>>>;
type Named = Result<Path<Target>, PathRejection>;

pub(super) fn routes<I: Intake>() -> Router<Arc<Api<I>>> {
    let mut routes = Router::new()
        .route("/v2", get(server))
        .route("/v2/", get(server))
        .route("/v2/health/live", get(async || Json(json!({ "live": true }))))
        .route("/v2/health/ready", get(ready::<I>));
    for model in ["/v2/models/{model}", "/v2/models/{model}/versions/{version}"] {
        routes = routes
            .route(model, get(metadata::<I>))
            .route(&format!("{model}/ready"), get(model_ready::<I>))
            .route(&format!("{model}/infer"), post(infer::<I>));
    }
    routes
}

async fn server() -> impl IntoResponse {
    Json(json!({
        "name": "hedge-agent",
        "version": env!("CARGO_PKG_VERSION"),
        "extensions": ["binary_tensor_data"],
    }))
}

/// Ready means that every model is loaded and answers.
async fn ready<I: Intake>(State(api): Shared<I>) -> Response {
    let faults = api.intake.faults();
    let missing = api.intake.status().models.into_iter().filter(|(_, model)| model.is_none()).map(|(name, _)| {
        let fault = faults.get(&Part::Model(name.clone()).to_string());
        (name, fault.cloned().unwrap_or_else(|| "it is being loaded".to_owned()))
    });
    let silent = api.intake.models().into_iter().filter_map(|model| Some((model.name, model.cannot_answer?)));
    let reasons: BTreeMap<Name, String> = missing.chain(silent).collect();
    readiness(json!({ "ready": reasons.is_empty() }), "reasons", (!reasons.is_empty()).then(|| json!(reasons)))
}

/// `why` is absent from an answer that says that all is well.
fn readiness(mut answer: serde_json::Value, field: &str, why: Option<serde_json::Value>) -> Response {
    let status = if why.is_none() { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    if let (Some(why), Some(answer)) = (why, answer.as_object_mut()) {
        answer.insert(field.to_owned(), why);
    }
    (status, Json(answer)).into_response()
}

/// What a path names.
#[derive(Deserialize)]
struct Target {
    model: String,
    version: Option<String>,
}

impl Target {
    fn find(&self, models: Vec<ModelFacts>) -> Result<ModelFacts, HttpError> {
        let known = models.iter().map(|model| model.name.as_str()).collect::<Vec<_>>().join(", ");
        let shown = |text: &str| text.chars().take(64).collect::<String>();
        let model = models.into_iter().find(|model| model.name.as_str() == self.model).ok_or_else(|| {
            let text = format!("there is no model named `{}`; there are: {known}", shown(&self.model));
            HttpError::new(StatusCode::NOT_FOUND, text)
        })?;
        match &self.version {
            Some(version) if *version != model.version => {
                let text = format!("model `{}` has version {}, not {}", model.name, model.version, shown(version));
                Err(HttpError::new(StatusCode::NOT_FOUND, text))
            }
            _ => Ok(model),
        }
    }
}

async fn metadata<I: Intake>(State(api): Shared<I>, target: Named) -> Result<Json<serde_json::Value>, HttpError> {
    let model = target?.find(api.intake.models())?;
    let output = |(name, shape): &(String, Vec<i64>)| json!({ "name": name, "datatype": "FP32", "shape": shape });
    let outputs: Vec<serde_json::Value> = model.outputs.iter().map(output).collect();
    Ok(Json(json!({
        "name": model.name,
        "versions": [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{ "name": model.input_name, "datatype": "FP32", "shape": model.input_shape }],
        "outputs": outputs,
        "parameters": { "labels": model.labels },
    })))
}

async fn model_ready<I: Intake>(State(api): Shared<I>, target: Named) -> Result<Response, HttpError> {
    let model = target?.find(api.intake.models())?;
    let answer = json!({ "name": model.name, "ready": model.cannot_answer.is_none() });
    Ok(readiness(answer, "reason", model.cannot_answer.map(serde_json::Value::from)))
}

async fn infer<I: Intake>(
    State(api): Shared<I>,
    target: Named,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let model = target?.find(api.intake.models())?;
    let received = api.bodies.receive(&headers, body).await?;
    let request = request::read(&model, &headers, &received.bytes).map_err(HttpError::bad_request)?;
    drop(received);

    let samples = request.samples.len();
    let mut outputs = Vec::with_capacity(samples);
    for tensor in request.samples {
        let output = timeout(SCORES_WAIT_MAX, api.intake.run(&model.name, tensor)).await.map_err(|_| {
            let text = format!("the model gave no answer within {} s", SCORES_WAIT_MAX.as_secs());
            HttpError::new(StatusCode::GATEWAY_TIMEOUT, text)
        })??;
        outputs.push(output);
    }
    response::write(&model, request.id, request.binary_output, joined(outputs))
}

/// The outputs of all samples, one after the other by name.
fn joined(samples: Vec<Tensors>) -> Tensors {
    let count = samples.len();
    let mut samples = samples.into_iter();
    let mut all = samples.next().unwrap_or_default();
    for sample in samples {
        for ((_, whole), (_, one)) in all.0.iter_mut().zip(sample.0) {
            whole.data.extend(one.data);
        }
    }
    if count > 1 {
        all.0.iter_mut().for_each(|(_, whole)| whole.shape = vec![count, whole.data.len() / count]);
    }
    all
}
