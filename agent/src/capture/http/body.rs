//! Reads request bodies within a bound on each, on all of them together, and on the time they take.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::Json;
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;
use tokio::time::{Instant, timeout, timeout_at};
use tokio_util::sync::CancellationToken;

use super::HttpError;

/// The memory all bodies together may take, unless one alone may take more: two of the largest by default.
const BODIES_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// How long a body may take to arrive, and before that to find room. Senders are on this machine.
const BODY_WAIT_MAX: Duration = Duration::from_secs(30);

/// How long a body may take while others wait for its room: a moment, and what the slowest board copies in that time.
const GRACE: Duration = Duration::from_millis(500);
const GRACE_BYTES_PER_S: u64 = 32 * 1024 * 1024;

/// How much is set aside on the sender's word alone.
const STATED_BYTES_MAX: usize = 1024 * 1024;

/// The least that a body counts for, so that even empty ones are limited in number.
const ROOM_BYTES_MIN: u64 = 1024;

/// The largest document of a request that changes something: a thousand of the longest ids.
const JSON_BYTES_MAX: u64 = 128 * 1024;

/// The room for bodies.
pub(in crate::capture) struct Bodies {
    body_bytes_max: u64,
    room: Arc<Room>,
}

/// A whole body, and the room it takes until it is dropped.
pub(in crate::capture) struct Received {
    pub(in crate::capture) bytes: Bytes,
    _taken: Taken,
}

/// How large a body may be, and of what.
#[derive(Clone, Copy)]
struct Most {
    bytes: u64,
    of: &'static str,
}

impl Most {
    fn allows(self, bytes: u64) -> Result<(), HttpError> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let text = format!("{bytes} bytes are more than the {} {} may have", self.bytes, self.of);
        Err(HttpError::closing(StatusCode::PAYLOAD_TOO_LARGE, text))
    }
}

impl Bodies {
    pub(super) fn new(body_bytes_max: u64) -> Self {
        Self { body_bytes_max, room: Room::new(BODIES_BYTES_MAX.max(body_bytes_max)) }
    }

    /// Reads one body. One that says it is too large is refused before a byte of it is read.
    pub(in crate::capture) async fn receive(&self, headers: &HeaderMap, body: Body) -> Result<Received, HttpError> {
        self.receive_within(Most { bytes: self.body_bytes_max, of: "a sample" }, headers, body).await
    }

    /// Reads the document of a request that changes something. No web page can send one of this type unasked.
    pub(in crate::capture) async fn receive_json<T: DeserializeOwned>(
        &self,
        headers: &HeaderMap,
        body: Body,
    ) -> Result<T, HttpError> {
        let stated = headers.get(header::CONTENT_TYPE).and_then(|stated| stated.to_str().ok()?.split(';').next());
        if !stated.is_some_and(|stated| stated.trim().eq_ignore_ascii_case("application/json")) {
            let text = "this request needs `Content-Type: application/json`";
            return Err(HttpError::closing(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        let received = self.receive_within(Most { bytes: JSON_BYTES_MAX, of: "such a request" }, headers, body).await?;
        let Json(document) = Json::from_bytes(&received.bytes)?;
        Ok(document)
    }

    async fn receive_within(&self, most: Most, headers: &HeaderMap, body: Body) -> Result<Received, HttpError> {
        let stated: Option<u64> =
            headers.get(header::CONTENT_LENGTH).and_then(|length| length.to_str().ok()?.parse().ok());
        most.allows(stated.unwrap_or(0))?;
        // What unpacks to a thousand times its size would escape every bound here.
        if headers.get(header::CONTENT_ENCODING).is_some_and(|encoding| encoding != "identity") {
            let text = "a body with Content-Encoding is not read; send it as it is";
            return Err(HttpError::closing(StatusCode::UNSUPPORTED_MEDIA_TYPE, text));
        }
        // A body of unstated length takes room for the largest, so that two half-read ones cannot block each other.
        let Ok(place) = timeout(BODY_WAIT_MAX, self.room.enter(stated.unwrap_or(most.bytes))).await else {
            let text = "other bodies take all the room there is for them; send it again";
            return Err(HttpError::closing(StatusCode::SERVICE_UNAVAILABLE, text));
        };
        let read = timeout(BODY_WAIT_MAX, read(stated.unwrap_or(0), most, body));
        let whole = tokio::select! {
            whole = read => whole.ok(),
            () = place.leave.cancelled() => None,
        };
        let Some(whole) = whole else {
            let text = format!(
                "the body did not arrive within {} s, or came slowly while others waited for its room",
                BODY_WAIT_MAX.as_secs()
            );
            return Err(HttpError::closing(StatusCode::REQUEST_TIMEOUT, text));
        };
        place.is_whole();
        Ok(Received { bytes: whole?, _taken: place })
    }
}

async fn read(stated: u64, most: Most, body: Body) -> Result<Bytes, HttpError> {
    let capacity = usize::try_from(stated).unwrap_or(usize::MAX).min(STATED_BYTES_MAX);
    let mut bytes = BytesMut::with_capacity(capacity);
    let mut chunks = body.into_data_stream();
    while let Some(chunk) = chunks.next().await {
        let chunk = chunk.map_err(|error| {
            HttpError::closing(StatusCode::BAD_REQUEST, format!("the body ended too early: {error}"))
        })?;
        most.allows(bytes.len() as u64 + chunk.len() as u64)?;
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes.freeze())
}

/// Memory for bodies. The smallest that waits is let in first, and what has been abandoned leaves for it: no number of
/// half-sent bodies keeps a sample out.
struct Room {
    bodies: Mutex<Known>,
    changed: Notify,
}

struct Known {
    free_bytes: u64,
    next: u64,
    /// By size.
    waiting: BTreeSet<(u64, u64)>,
    /// Those that have room and are not whole: from when on they leave for others.
    arriving: BTreeMap<u64, (Instant, CancellationToken)>,
}

/// What one body takes of the room, until it is dropped.
struct Taken {
    room: Arc<Room>,
    bytes: u64,
    number: u64,
    leave: CancellationToken,
}

impl Room {
    fn new(bytes: u64) -> Arc<Self> {
        let known = Known { free_bytes: bytes, next: 0, waiting: BTreeSet::new(), arriving: BTreeMap::new() };
        Arc::new(Self { bodies: Mutex::new(known), changed: Notify::new() })
    }

    fn known(&self) -> MutexGuard<'_, Known> {
        self.bodies.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn enter(self: &Arc<Self>, bytes: u64) -> Taken {
        let place = {
            let mut known = self.known();
            let (bytes, number) = (bytes.max(ROOM_BYTES_MIN), known.next);
            known.next += 1;
            known.waiting.insert((bytes, number));
            Taken { room: self.clone(), bytes, number, leave: CancellationToken::new() }
        };
        loop {
            let changed = self.changed.notified();
            let look_at = {
                let mut known = self.known();
                if known.lets_in(&place) {
                    // There may be room for the next one, too.
                    self.changed.notify_waiters();
                    break;
                }
                known.send_away_late()
            };
            match look_at {
                Some(at) => drop(timeout_at(at, changed).await),
                None => changed.await,
            }
        }
        place
    }
}

impl Known {
    fn lets_in(&mut self, place: &Taken) -> bool {
        let me = (place.bytes, place.number);
        if self.free_bytes < place.bytes || self.waiting.first() != Some(&me) {
            return false;
        }
        self.waiting.remove(&me);
        self.free_bytes -= place.bytes;
        let late_at = Instant::now() + GRACE + Duration::from_secs_f64(place.bytes as f64 / GRACE_BYTES_PER_S as f64);
        self.arriving.insert(place.number, (late_at, place.leave.clone()));
        true
    }

    /// Returns when the next one is late.
    fn send_away_late(&self) -> Option<Instant> {
        let now = Instant::now();
        for (_, leave) in self.arriving.values().filter(|(late_at, _)| *late_at <= now) {
            leave.cancel();
        }
        self.arriving.values().map(|(late_at, _)| *late_at).filter(|late_at| *late_at > now).min()
    }
}

impl Taken {
    /// From now on it leaves for nobody.
    fn is_whole(&self) {
        self.room.known().arriving.remove(&self.number);
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        let mut known = self.room.known();
        known.arriving.remove(&self.number);
        if !known.waiting.remove(&(self.bytes, self.number)) {
            known.free_bytes += self.bytes;
        }
        drop(known);
        self.room.changed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1024 * 1024;

    #[tokio::test(start_paused = true)]
    async fn half_sent_bodies_keep_no_sample_out() {
        let room = Room::new(64 * MIB);
        // None of them ever becomes whole; each leaves when it is told to.
        let abandoned = |bytes: u64| {
            let room = room.clone();
            tokio::spawn(async move {
                loop {
                    room.enter(bytes).await.leave.cancelled().await;
                }
            })
        };
        let mut abandoned: Vec<_> = (0..200).map(|at| abandoned(if at % 2 == 0 { 30 * MIB } else { MIB })).collect();
        let asking = |known: &Known| known.waiting.len() + known.arriving.len();
        while asking(&room.known()) < abandoned.len() {
            tokio::task::yield_now().await;
        }
        for bytes in [400, 30_000, MIB / 2] {
            let place = timeout(Duration::from_secs(2), room.enter(bytes)).await;
            place.unwrap_or_else(|_| panic!("{bytes} bytes wait")).is_whole();
        }
        abandoned.drain(..).for_each(|one| one.abort());
    }

    #[tokio::test(start_paused = true)]
    async fn all_bodies_together_take_no_more_than_there_is_and_one_that_is_whole_leaves_for_nobody() {
        let room = Room::new(64 * MIB);
        let whole = [room.enter(32 * MIB).await, room.enter(32 * MIB).await];
        whole.iter().for_each(Taken::is_whole);
        assert!(timeout(Duration::from_secs(60), room.enter(1)).await.is_err(), "there is no room");
        assert!(whole.iter().all(|place| !place.leave.is_cancelled()));
        drop(whole);
        drop(timeout(Duration::from_secs(1), room.enter(64 * MIB)).await.expect("all of it is free again"));
        assert_eq!(room.known().free_bytes, 64 * MIB);
        assert!(room.known().waiting.is_empty());
    }
}
