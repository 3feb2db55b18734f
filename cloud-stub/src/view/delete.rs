//! Deletes cases: their records and payloads here, and what their devices still have of them.
//!
//! Without a number of cases nothing is deleted; it is told how many there are. With the number, exactly these are. Their
//! devices are told first: one that is asked for a verdict it still waits for would send its case again.

use std::collections::BTreeMap;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::{Extension, Json};
use futures_util::{StreamExt as _, stream};
use hedge_proto::{CaseId, CommandMessage, DeviceId};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::sync::oneshot;

use super::cases::Wanted;
use super::query::Query;
use super::routes::{Admitted, Note};
use super::{ApiError, View};
use crate::access::Who;
use crate::fleet::errand::{Errand, Report};
use crate::fleet::random_id;
use crate::intake::{DELETED_AT_ONCE_MAX, Event, Unwanted};
use crate::store::{Place, Reader, Sought};
use crate::wall_ms;

/// The most cases one request deletes.
const DELETED_MAX: usize = 100_000;

/// How many a device is told of at once: a command has room for so many.
const FORGOTTEN_AT_ONCE_MAX: usize = 500;

/// How many devices are told at once.
const TOLD_AT_ONCE: usize = 4;

/// How many are looked for at once.
const FOUND_AT_ONCE: u32 = 500;

/// What was told before.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Confirmed {
    cases: Option<usize>,
    /// Cases that came later are left alone.
    until_ms: Option<u64>,
}

impl Confirmed {
    fn read(body: &[u8]) -> Result<Self, ApiError> {
        if body.is_empty() { Ok(Self::default()) } else { super::operate::read(body) }
    }
}

/// What was found, or done.
#[derive(Debug, Serialize)]
pub(super) struct Done {
    /// How many cases it is about.
    cases: usize,
    /// How many devices they are of.
    devices: usize,
    /// Those that were received before this: to be given back with their number.
    #[serde(skip_serializing_if = "Option::is_none")]
    until_ms: Option<u64>,
    /// How many are gone; absent if it was only looked.
    #[serde(skip_serializing_if = "Option::is_none")]
    deleted: Option<usize>,
    /// What each device has said.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    told: Vec<Value>,
}

/// `POST /api/delete`
pub(super) async fn found(
    State(view): State<View>,
    Query(wanted): Query<Wanted>,
    Extension(who): Admitted,
    Extension(note): Extension<Note>,
    body: Bytes,
) -> Result<Json<Done>, ApiError> {
    let mut sought = wanted.every_one()?;
    let whole = sought.whole_device().cloned();
    if sought.is_everything() {
        return Err(ApiError::BadRequest("say which cases: by device, task, label, or time".to_owned()));
    }
    let confirmed = Confirmed::read(&body)?;
    let until_ms = sought.until_ms.into_iter().chain(confirmed.until_ms).min().unwrap_or_else(wall_ms);
    sought.until_ms = Some(until_ms);
    let words = sought.in_words();
    note.say(words.as_str());
    let at = view.records_at.clone();
    // A reader of its own: the page's would be taken for as long as this takes.
    let looked = tokio::task::spawn_blocking(move || all_ids(&Reader::open(&at)?, sought));
    let ids = looked.await.map_err(|_| ApiError::Stopping)?.map_err(ApiError::Records)?;
    let done = delete(&view, &who, ids, whole, Some(until_ms), confirmed.cases).await?;
    if let Some(deleted) = done.deleted {
        note.say(format!("{words}: {deleted} deleted"));
    }
    Ok(Json(done))
}

/// `POST /api/cases/{id}/delete`
pub(super) async fn one(
    State(view): State<View>,
    Path(id): Path<String>,
    Extension(who): Admitted,
    body: Bytes,
) -> Result<Json<Done>, ApiError> {
    let wanted: CaseId = id.parse()?;
    let row = view.records.read(move |reader| reader.case(&wanted)).await?.ok_or(ApiError::NoCase(id))?;
    Ok(Json(delete(&view, &who, vec![row.case.id], None, None, Confirmed::read(&body)?.cases).await?))
}

fn all_ids(reader: &Reader, mut sought: Sought) -> Result<Vec<CaseId>, crate::store::StoreError> {
    let mut ids = Vec::new();
    // One that was deleted meanwhile is no place to go on from; the next request finds the rest.
    while let Some(list) = reader.find(&sought, FOUND_AT_ONCE)? {
        ids.extend(list.rows.into_iter().map(|row| row.case.id));
        match list.more_after {
            Some(id) if ids.len() < DELETED_MAX => sought.place = Place::After(id),
            _ => break,
        }
    }
    ids.truncate(DELETED_MAX);
    Ok(ids)
}

/// `whole`: a device that forgets everything, also what it has not sent yet.
async fn delete(
    view: &View,
    who: &Who,
    ids: Vec<CaseId>,
    whole: Option<DeviceId>,
    until_ms: Option<u64>,
    seen: Option<usize>,
) -> Result<Done, ApiError> {
    let mut of_devices: BTreeMap<DeviceId, Vec<CaseId>> = BTreeMap::new();
    for id in &ids {
        of_devices.entry(id.device.clone()).or_default().push(id.clone());
    }
    let mut done = Done { cases: ids.len(), devices: of_devices.len(), until_ms, deleted: None, told: Vec::new() };
    let Some(seen) = seen else { return Ok(done) };
    if seen != ids.len() {
        return Err(ApiError::OtherNumber { seen, now: ids.len() });
    }
    let orders: Vec<(DeviceId, Value)> = match &whole {
        Some(device) => vec![(device.clone(), json!({"all": true}))],
        None => {
            let some = |(device, ids): (DeviceId, Vec<CaseId>)| {
                let parts: Vec<_> =
                    ids.chunks(FORGOTTEN_AT_ONCE_MAX).map(|ids| (device.clone(), json!({"ids": ids}))).collect();
                parts
            };
            of_devices.into_iter().flat_map(some).collect()
        }
    };
    let by = view.operating.who(who, None)?;
    let told = stream::iter(orders).map(|(device, args)| forget(view, device, args, by.clone()));
    done.told = told.buffer_unordered(TOLD_AT_ONCE).collect().await;
    let mut deleted = 0;
    let mut parts: Vec<&[CaseId]> = ids.chunks(DELETED_AT_ONCE_MAX).collect();
    if parts.is_empty() && whole.is_some() {
        parts.push(&[]);
    }
    for ids in parts {
        let (told, taken) = oneshot::channel();
        let unwanted = Event::Unwanted(Unwanted::new(ids.to_vec(), told).with_history_of(whole.clone()));
        view.shown.events.send(unwanted).await.map_err(|_| ApiError::Stopping)?;
        deleted += taken.await.map_err(|_| ApiError::Stopping)??;
    }
    view.previews.forget(&ids);
    Ok(Done { deleted: Some(deleted), ..done })
}

/// What a device says to it; one that is away takes the command when it is back within an hour.
async fn forget(view: &View, device: DeviceId, args: Value, by: String) -> Value {
    let told = async {
        let (id, command, issued_ms) = (Some(random_id()?), "forget".to_owned(), Some(wall_ms()));
        let message = CommandMessage { id, command, args, issued_ms, by: Some(by) };
        let errand = Errand::command(device.clone(), message).map_err(ApiError::BadRequest)?;
        view.operating.clone().act(device.clone(), |_| Ok(errand)).await
    };
    let told: Result<Report, ApiError> = told.await;
    match told {
        Ok(report) => json!(report),
        Err(error) => json!({"device": device, "outcome": "not_sent", "reason": error.to_string()}),
    }
}
