//! Reads request bodies within a bound on each, on all of them together, and on the time they take.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;

use super::HttpError;
use crate::sample::SampleError;

/// The memory all bodies together may take, unless one alone may take more: two of the largest by default.
const BODIES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long a body may take to arrive, including the wait for room. Senders are on this machine.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);

/// How much is set aside on the sender's word alone.
const STATED_BYTES_MAX: usize = 1024 * 1024;

/// Room is counted in this unit, so that it fits the semaphore.
const ROOM_UNIT_BYTES: u64 = 1024;

/// The room for bodies.
pub(in crate::capture) struct Bodies {
    body_bytes_max: u64,
    room: Arc<Semaphore>,
}

/// A whole body, and the room it takes until it is dropped.
pub(in crate::capture) struct Received {
    pub(in crate::capture) bytes: Bytes,
    _room: OwnedSemaphorePermit,
}

impl Bodies {
    pub(super) fn new(body_bytes_max: u64) -> Self {
        let room = units(BODIES_BYTES_MAX.max(body_bytes_max));
        Self { body_bytes_max, room: Arc::new(Semaphore::new(room as usize)) }
    }

    /// Reads one body. One that says it is too large is refused before a byte of it is read.
    pub(in crate::capture) async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<Received, HttpError> {
        let stated: Option<u64> =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        if let Some(bytes) = stated.filter(|bytes| *bytes > self.body_bytes_max) {
            return Err(SampleError::TooLarge { bytes, bytes_max: self.body_bytes_max }.into());
        }
        // What unpacks to a thousand times its size would escape every bound here.
        if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            let text = "a body with Content-Encoding is not read; send it as it is";
            return Err(HttpError::closing(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        // A body of unstated length takes room for the largest, so that two half-read ones cannot block each other.
        let room = self.room.clone().acquire_many_owned(units(stated.unwrap_or(self.body_bytes_max)));
        let whole = async {
            let room =
                room.await.map_err(|_| HttpError::later(StatusCode::SERVICE_UNAVAILABLE, "the agent is stopping"))?;
            Ok(Received { bytes: self.read(stated.unwrap_or(0), body).await?, _room: room })
        };
        timeout(BODY_WAIT_MAX, whole).await.unwrap_or_else(|_| {
            let text = format!("the body did not arrive within {} s", BODY_WAIT_MAX.as_secs());
            Err(HttpError::closing(StatusCode::REQUEST_TIMEOUT, text))
        })
    }

    async fn read(&self, stated: u64, body: Body) -> Result<Bytes, HttpError> {
        let capacity = usize::try_from(stated).unwrap_or(usize::MAX).min(STATED_BYTES_MAX);
        let mut bytes = BytesMut::with_capacity(capacity);
        let mut chunks = body.into_data_stream();
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk.map_err(|error| {
                HttpError::closing(StatusCode::BAD_REQUEST, format!("the body ended too early: {error}"))
            })?;
            let length = bytes.len() as u64 + chunk.len() as u64;
            if length > self.body_bytes_max {
                return Err(SampleError::TooLarge { bytes: length, bytes_max: self.body_bytes_max }.into());
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes.freeze())
    }
}

/// At least one unit, so that even empty bodies are limited in number.
fn units(bytes: u64) -> u32 {
    u32::try_from(bytes.div_ceil(ROOM_UNIT_BYTES).max(1)).unwrap_or(u32::MAX)
}
