//! The review queue: cases that wait for a person's word; and the word, on one of them or on a case that is closed.

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use hedge_proto::{BOXES_MAX, CaseId, DeviceId, Found, Output};
use serde::Deserialize;
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::query::Query;
use super::routes::{Admitted, Note};
use super::{ApiError, CASES_LIMIT, CASES_LIMIT_MAX, CaseView, View};
use crate::intake::{Event, Review};

/// Which cases are listed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Listed {
    limit: Option<u32>,
    device: Option<DeviceId>,
}

/// `GET /api/review`
pub(super) async fn waiting(
    State(view): State<View>,
    Query(Listed { limit, device }): Query<Listed>,
) -> Result<Json<Vec<CaseView>>, ApiError> {
    let limit = limit.unwrap_or(CASES_LIMIT).min(CASES_LIMIT_MAX);
    let rows = view.records.read(move |reader| reader.to_review(device.as_ref(), limit)).await?;
    Ok(Json(rows.into_iter().map(CaseView::from).collect()))
}

/// What a person says: a label, or what there is to be found, which may be nothing.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Word {
    label: Option<String>,
    found: Option<Vec<Found>>,
    by: Option<String>,
    /// The revision of the verdict they saw, 0 for none.
    seen: Option<u32>,
}

/// `POST /api/review/{id}`
pub(super) async fn answer(
    State(view): State<View>,
    Path(id): Path<String>,
    Extension(who): Admitted,
    Extension(note): Extension<Note>,
    body: Bytes,
) -> Result<Json<Value>, ApiError> {
    let id: CaseId = id.parse()?;
    let Word { label, found, by, seen } = super::operate::read(&body)?;
    let said = match (label, found) {
        (Some(label), None) if !label.trim().is_empty() => Output::label(label.trim()),
        (None, Some(found)) if found.len() <= BOXES_MAX => Output::Boxes(found),
        (None, Some(_)) => return Err(ApiError::BadRequest(format!("`found` takes {BOXES_MAX} boxes at most"))),
        _ => return Err(ApiError::BadRequest("give either `label` or `found`".to_owned())),
    };
    note.say(match &said {
        Output::Boxes(found) => format!("{} boxes", found.len()),
        _ => json!(said).to_string(),
    });
    let by = view.operating.who(&who, by)?;
    let (told, taken) = oneshot::channel();
    let review = Review { id: id.clone(), said, by, seen };
    view.shown.events.send(Event::Reviewed(review, told)).await.map_err(|_| ApiError::Stopping)?;
    taken.await.map_err(|_| ApiError::Stopping)??;
    Ok(Json(json!({"id": id.to_string(), "outcome": "answered"})))
}
