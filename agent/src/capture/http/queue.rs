//! `/v1/queue…`: what `hedge-agent queue` asks a running agent.
//!
//! Changes are POSTs with a JSON body, which a browser does not send across sites without asking first.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use serde::Deserialize;

use super::{Api, HttpError};
use crate::capture::Intake;
use crate::queue::{CaseDocument, Changed, CheckReport, Id, Listing, Queue, QueueError, Stage, Stats};

/// How many cases are listed when nothing else is asked for.
const LINES: usize = 50;

pub(super) fn routes<I: Intake>() -> Router<Arc<Api<I>>> {
    Router::new()
        .route("/v1/queue", get(list::<I>))
        .route("/v1/queue/ids", get(ids::<I>))
        .route("/v1/queue/stats", get(stats::<I>))
        .route("/v1/queue/check", get(check::<I>))
        .route("/v1/queue/cases/{id}", get(show::<I>))
        .route("/v1/queue/cases/{id}/payload", get(payload::<I>))
        .route("/v1/queue/requeue", post(requeue::<I>))
        .route("/v1/queue/drop", post(drop_cases::<I>))
}

#[derive(Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    stage: Option<Stage>,
    limit: Option<usize>,
}

type Asked = Result<Query<Wanted>, QueryRejection>;
type Named = Result<Path<String>, PathRejection>;

async fn list<I: Intake>(State(api): State<Arc<Api<I>>>, wanted: Asked) -> Result<Json<Listing>, HttpError> {
    let Query(wanted) = wanted?;
    let limit = wanted.limit.unwrap_or(LINES);
    Ok(Json(off_the_workers(api.intake.queue(), move |queue| Ok(queue.list(wanted.stage, limit))).await?))
}

async fn ids<I: Intake>(State(api): State<Arc<Api<I>>>, wanted: Asked) -> Result<Json<Vec<Id>>, HttpError> {
    let Query(wanted) = wanted?;
    Ok(Json(off_the_workers(api.intake.queue(), move |queue| Ok(queue.ids(wanted.stage))).await?))
}

async fn stats<I: Intake>(State(api): State<Arc<Api<I>>>) -> Result<Json<Stats>, HttpError> {
    Ok(Json(off_the_workers(api.intake.queue(), |queue| Ok(queue.stats())).await?))
}

async fn check<I: Intake>(State(api): State<Arc<Api<I>>>) -> Result<Json<CheckReport>, HttpError> {
    Ok(Json(off_the_workers(api.intake.queue(), |queue| queue.check()).await?))
}

async fn show<I: Intake>(State(api): State<Arc<Api<I>>>, id: Named) -> Result<Json<CaseDocument>, HttpError> {
    let id = parse(&id?)?;
    Ok(Json(off_the_workers(api.intake.queue(), move |queue| queue.show(id)).await?))
}

async fn payload<I: Intake>(State(api): State<Arc<Api<I>>>, id: Named) -> Result<Response, HttpError> {
    let id = parse(&id?)?;
    let bytes = off_the_workers(api.intake.queue(), move |queue| queue.payload(id)).await?;
    Ok(([(header::CONTENT_TYPE, "application/octet-stream")], bytes).into_response())
}

async fn requeue<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<Changed>>, HttpError> {
    let selection = api.bodies.receive_json(&headers, body).await?;
    Ok(Json(api.intake.queue().requeue(&selection).await?))
}

async fn drop_cases<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<Vec<Changed>>, HttpError> {
    let selection = api.bodies.receive_json(&headers, body).await?;
    Ok(Json(api.intake.queue().drop_cases(&selection).await?))
}

fn parse(id: &str) -> Result<Id, HttpError> {
    id.parse().map_err(|error: String| HttpError::bad_request(error))
}

async fn off_the_workers<T: Send + 'static>(
    queue: Queue,
    look: impl FnOnce(&Queue) -> Result<T, QueueError> + Send + 'static,
) -> Result<T, HttpError> {
    match tokio::task::spawn_blocking(move || look(&queue)).await {
        Ok(looked) => Ok(looked?),
        Err(_) => Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer was lost to a fault")),
    }
}

impl From<QueueError> for HttpError {
    fn from(error: QueueError) -> Self {
        let status = match error {
            QueueError::NoCase(_) => StatusCode::NOT_FOUND,
            QueueError::PayloadGone(_) => StatusCode::GONE,
            QueueError::TooMany(_) => StatusCode::BAD_REQUEST,
            QueueError::Damaged(_) | QueueError::Io(_) => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}
