//! Cases as people look for them: filtered, in an order in which one follows the other, each with an address of its own.

use axum::Json;
use axum::extract::{Path, State};
use axum::http::HeaderName;
use hedge_proto::{Authority, CaseId, DeviceId};
use serde::Deserialize;

use super::query::Query;
use super::{ApiError, CASES_LIMIT, CASES_LIMIT_MAX, CaseView, VerdictView, View};
use crate::export::Format;
use crate::store::{CaseList, Place, Sought};

/// What is asked for.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Wanted {
    /// Of a training set; nothing for a list.
    pub(super) format: Option<Format>,
    pub(super) limit: Option<u32>,
    pub(super) device: Option<DeviceId>,
    task: Option<String>,
    /// Said by the device or in the verdict.
    label: Option<String>,
    /// Whether device and verdict say the same.
    agrees: Option<bool>,
    /// Whose word the verdict is.
    authority: Option<Authority>,
    /// `true`: only what waits for a person.
    waiting: bool,
    since_ms: Option<u64>,
    until_ms: Option<u64>,
    /// What comes first; the newest if not given.
    order: Option<Order>,
    /// The list begins behind this case, or, the nearest first, in front of it.
    after: Option<CaseId>,
    before: Option<CaseId>,
}

#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Order {
    Newest,
    Disagreement,
}

impl Wanted {
    pub(super) fn limit(&self) -> u32 {
        self.limit.unwrap_or(CASES_LIMIT).min(CASES_LIMIT_MAX)
    }

    /// For what is about all cases that are looked for.
    pub(super) fn every_one(self) -> Result<Sought, ApiError> {
        if self.limit.is_some() {
            let why = "`limit` is for lists; this is about all cases that are looked for";
            return Err(ApiError::BadRequest(why.to_owned()));
        }
        self.sought()
    }

    fn sought(self) -> Result<Sought, ApiError> {
        let place = match (self.after, self.before) {
            (None, None) => Place::Top,
            (Some(id), None) => Place::After(id),
            (None, Some(id)) => Place::Before(id),
            (Some(_), Some(_)) => return Err(ApiError::BadRequest("give either `after` or `before`".to_owned())),
        };
        Ok(Sought {
            device: self.device,
            task: self.task,
            label: self.label,
            agrees: self.agrees,
            authority: self.authority,
            waits_for_person: self.waiting,
            since_ms: self.since_ms,
            until_ms: self.until_ms,
            disagreements_first: self.order == Some(Order::Disagreement),
            place,
        })
    }
}

/// Behind which case there may be more.
const NEXT: HeaderName = HeaderName::from_static("hedge-next");

type WithNext = (Option<[(HeaderName, String); 1]>, Json<Vec<CaseView>>);

/// `GET /api/cases`
pub(super) async fn list(State(view): State<View>, Query(wanted): Query<Wanted>) -> Result<WithNext, ApiError> {
    let limit = wanted.limit();
    let sought = wanted.sought()?;
    let begins = match &sought.place {
        Place::Top => String::new(),
        Place::After(id) | Place::Before(id) => id.to_string(),
    };
    let found = view.records.read(move |reader| reader.find(&sought, limit)).await?;
    let CaseList { rows, more_after } = found.ok_or(ApiError::NoCase(begins))?;
    let next = more_after.map(|id| [(NEXT, id.to_string())]);
    Ok((next, Json(rows.into_iter().map(CaseView::from).collect())))
}

/// `GET /api/cases/{id}`
pub(super) async fn one(State(view): State<View>, Path(id): Path<String>) -> Result<Json<CaseView>, ApiError> {
    let wanted: CaseId = id.parse()?;
    let row = view.records.read(move |reader| reader.case(&wanted)).await?;
    row.map(|row| Json(CaseView::from(row))).ok_or(ApiError::NoCase(id))
}

/// `GET /api/cases/{id}/words`
pub(super) async fn words(
    State(view): State<View>,
    Path(id): Path<String>,
) -> Result<Json<Vec<VerdictView>>, ApiError> {
    let wanted: CaseId = id.parse()?;
    let words = view.records.read(move |reader| reader.words(&wanted)).await?;
    Ok(Json(words.into_iter().map(|(verdict, given_ms)| VerdictView::new(verdict, Some(given_ms))).collect()))
}

/// Which task is meant.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct OfTask {
    task: String,
}

/// `GET /api/labels`
pub(super) async fn labels(State(view): State<View>, Query(OfTask { task }): Query<OfTask>) -> Json<Vec<String>> {
    Json(view.shown.labels.get(&task).cloned().unwrap_or_default())
}
