//! Pictures for lists of cases: small, made once for all pages, and only when one is looked at.

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, PoisonError};

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse, Response};
use hedge_inference::{ContentType, preview};
use hedge_proto::CaseId;
use tokio::sync::Semaphore;

use super::{ApiError, View, sample, sample_headers, shape};

/// Pixels of the longer side: sharp on a card, about three kilobytes of a photo.
const SIDE_MAX: u32 = 160;

/// A picture that is smaller already goes as it came.
const BYTES_MAX: u64 = 8 * 1024;

/// How many are held, a few megabytes of them.
const HELD_MAX: usize = 1000;

/// How many are made at once: a page that opens must not take the processor from the cases.
const MADE_AT_ONCE: usize = 2;

/// Those that were made last.
pub(super) struct Previews {
    held: Mutex<(HashMap<CaseId, Bytes>, VecDeque<CaseId>)>,
    places: Semaphore,
}

impl Default for Previews {
    fn default() -> Self {
        Self { held: Mutex::default(), places: Semaphore::new(MADE_AT_ONCE) }
    }
}

impl Previews {
    fn get(&self, id: &CaseId) -> Option<Bytes> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).0.get(id).cloned()
    }

    fn hold(&self, id: CaseId, jpeg: Bytes) {
        let (held, order) = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if held.insert(id.clone(), jpeg).is_none() {
            order.push_back(id);
        }
        if order.len() > HELD_MAX
            && let Some(oldest) = order.pop_front()
        {
            held.remove(&oldest);
        }
    }

    /// Those of cases that are gone.
    pub(super) fn forget(&self, ids: &[CaseId]) {
        let (held, order) = &mut *self.held.lock().unwrap_or_else(PoisonError::into_inner);
        ids.iter().for_each(|id| drop(held.remove(id)));
        order.retain(|id| held.contains_key(id));
    }
}

/// `GET /api/cases/{id}/preview`
pub(super) async fn get(State(view): State<View>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let wanted: CaseId = id.parse()?;
    let jpeg = |bytes| (sample_headers("image/jpeg", "inline"), bytes).into_response();
    if let Some(held) = view.previews.get(&wanted) {
        return Ok(jpeg(held));
    }
    let looked_up = wanted.clone();
    let known = view.records.read(move |reader| reader.case(&looked_up)).await?;
    // What is small waits for nobody.
    if known.is_some_and(|row| row.payload_bytes <= BYTES_MAX) {
        let (content_type, bytes) = sample(&view, &wanted).await?;
        let picture = shape::picture_type(&content_type).ok_or(ApiError::NoPicture(wanted))?;
        return Ok((sample_headers(picture, "inline"), bytes).into_response());
    }
    // Read only then: many that wait must not hold many whole pictures.
    let _place = view.previews.places.acquire().await.map_err(|_| ApiError::Stopping)?;
    // Another page may have asked for it meanwhile.
    if let Some(held) = view.previews.get(&wanted) {
        return Ok(jpeg(held));
    }
    let (content_type, bytes) = sample(&view, &wanted).await?;
    let made = tokio::task::spawn_blocking(move || {
        let content_type = ContentType::parse(&content_type)?;
        preview(&content_type, &bytes, SIDE_MAX).ok().flatten()
    });
    let made = made.await.map_err(|_| ApiError::Stopping)?.ok_or_else(|| ApiError::NoPicture(wanted.clone()))?;
    let made = Bytes::from(made);
    view.previews.hold(wanted, made.clone());
    Ok(jpeg(made))
}
