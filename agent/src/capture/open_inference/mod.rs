//! The Open Inference Protocol v2 over HTTP: the local model's raw outputs for clients that already speak it.
//!
//! It judges nothing and defers nothing; an application that wants a second opinion posts to `/v1/samples`.
//! JSON, and the binary tensor extension that tritonclient uses by default. One input, one output, FP32.

mod request;
#[cfg(any(test, fuzzing))]
pub(crate) mod requests;
mod response;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;
use serde_json::json;
use tokio::time::timeout;

use super::http::{Api, HttpError};
use super::{Intake, ModelFacts};

/// Says where the JSON part of a message ends and raw tensors begin.
const JSON_LENGTH_HEADER: &str = "inference-header-content-length";

/// How long one sample may take. Only a stuck model needs longer.
const SCORES_WAIT_MAX: Duration = Duration::from_secs(30);

type Shared<I> = State<Arc<Api<I>>>;

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

/// Ready means that every model is.
async fn ready<I: Intake>(State(api): Shared<I>) -> Response {
    readiness(api.intake.status().models.values().all(Option::is_some))
}

fn readiness(ready: bool) -> Response {
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, Json(json!({ "ready": ready }))).into_response()
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

async fn metadata<I: Intake>(
    State(api): Shared<I>,
    Path(target): Path<Target>,
) -> Result<Json<serde_json::Value>, HttpError> {
    let model = target.find(api.intake.models())?;
    Ok(Json(json!({
        "name": model.name,
        "versions": [model.version],
        "platform": "onnxruntime_onnx",
        "inputs": [{ "name": model.input_name, "datatype": "FP32", "shape": model.input_shape }],
        "outputs": [{ "name": model.output_name, "datatype": "FP32", "shape": model.output_shape }],
        "parameters": { "labels": model.labels },
    })))
}

async fn model_ready<I: Intake>(State(api): Shared<I>, Path(target): Path<Target>) -> Result<Response, HttpError> {
    let model = target.find(api.intake.models())?;
    let status = if model.ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    Ok((status, Json(json!({ "name": model.name, "ready": model.ready }))).into_response())
}

async fn infer<I: Intake>(
    State(api): Shared<I>,
    Path(target): Path<Target>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let model = target.find(api.intake.models())?;
    let received = api.bodies.receive(&headers, body).await?;
    let request = request::read(&model, &headers, &received.bytes).map_err(HttpError::bad_request)?;
    drop(received);

    let samples = request.samples.len();
    let mut output = Vec::new();
    for tensor in request.samples {
        let scores = timeout(SCORES_WAIT_MAX, api.intake.scores(&model.name, tensor)).await.map_err(|_| {
            let text = format!("the model gave no answer within {} s", SCORES_WAIT_MAX.as_secs());
            HttpError::new(StatusCode::GATEWAY_TIMEOUT, text)
        })??;
        output.extend(scores);
    }
    response::write(&model, request.id, request.binary_output, samples, output)
}
