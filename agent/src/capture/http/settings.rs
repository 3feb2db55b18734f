//! `/v1/settings/reset`: what `hedge-agent settings reset` asks a running agent.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Json;
use serde_json::{Map, Value};

use super::{Api, HttpError};
use crate::capture::Intake;
use crate::control::Reset;

/// The body is an empty JSON object, which a browser does not send across sites without asking first.
pub(super) async fn reset<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Reset>, HttpError> {
    let body: Map<String, Value> = api.bodies.receive_json(&headers, body).await?;
    if let Some(field) = body.keys().next() {
        return Err(HttpError::bad_request(format!("a reset takes no `{field}`")));
    }
    let reset = api.intake.control().reset().await;
    match reset {
        Ok(version) => Ok(Json(Reset { version })),
        Err(reason) => Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
    }
}
