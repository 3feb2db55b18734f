//! `/v1/settings/reset`: what `hedge-agent settings reset` asks a running agent.

use std::sync::Arc;

use axum::extract::State;
use axum::extract::rejection::JsonRejection;
use axum::http::StatusCode;
use axum::response::Json;
use serde_json::{Map, Value};

use super::{Api, HttpError};
use crate::capture::Intake;
use crate::control::Reset;

/// The body is an empty JSON object, which a browser does not send across sites without asking first.
pub(super) async fn reset<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    body: Result<Json<Map<String, Value>>, JsonRejection>,
) -> Result<Json<Reset>, HttpError> {
    let Json(body) = body?;
    if let Some(field) = body.keys().next() {
        return Err(HttpError::bad_request(format!("a reset takes no `{field}`")));
    }
    let reset = api.intake.control().reset().await;
    match reset {
        Ok(version) => Ok(Json(Reset { version })),
        Err(reason) => Err(HttpError::new(StatusCode::SERVICE_UNAVAILABLE, reason)),
    }
}
