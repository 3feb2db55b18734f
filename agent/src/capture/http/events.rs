//! `GET /v1/answers`: every answer and correction as server-sent events.
//!
//! Events are `answer` and `correction` with `id/revision` as id, and `lost` with the number of answers a slow
//! listener missed. Nothing is replayed: what must not be missed is read from the JSON-lines file.

use std::convert::Infallible;
use std::future::ready;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::rejection::QueryRejection;
use axum::extract::{Query, State};
use axum::http::StatusCode;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures_util::{Stream, StreamExt as _};
use hedge_proto::Answer;
use serde::Deserialize;
use tokio_stream::wrappers::BroadcastStream;
use tokio_stream::wrappers::errors::BroadcastStreamRecvError::Lagged;

use super::{Api, HttpError};
use crate::capture::Intake;

/// Listeners at once; each holds a connection for as long as it likes.
pub(super) const LISTENERS_MAX: usize = 32;

/// How often an idle stream shows that it is alive, so that a gone listener is noticed.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AnswersQuery {
    source: Option<String>,
}

pub(super) async fn answers<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    query: Result<Query<AnswersQuery>, QueryRejection>,
) -> Result<Sse<impl Stream<Item = Result<Event, Infallible>>>, HttpError> {
    let Query(AnswersQuery { source }) = query?;
    let place = api.listeners.clone().try_acquire_owned().map_err(|_| {
        HttpError::later(StatusCode::SERVICE_UNAVAILABLE, format!("{LISTENERS_MAX} listeners are the most at once"))
    })?;
    let stopped = api.stop.clone().cancelled_owned();
    let events = BroadcastStream::new(api.intake.answers().listen())
        .filter_map(move |received| {
            let _place = &place; // held for as long as the stream lives
            ready(match received {
                Ok(answer) if source.as_ref().is_some_and(|source| *source != answer.source) => None,
                Ok(answer) => Some(Ok(event(&answer))),
                Err(Lagged(count)) => Some(Ok(Event::default().event("lost").data(count.to_string()))),
            })
        })
        .take_until(stopped);
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

fn event(answer: &Answer) -> Event {
    let kind = if answer.revision == 0 { "answer" } else { "correction" };
    let json = String::from_utf8_lossy(&hedge_proto::to_json(answer)).into_owned();
    Event::default().event(kind).id(answer.idempotency_key()).data(json)
}
