//! A place for one picture: a newer one replaces it.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

#[derive(Default)]
pub(super) struct Newest {
    place: Mutex<Place>,
    changed: Notify,
}

#[derive(Default)]
struct Place {
    picture: Option<Bytes>,
    closed: bool,
}

impl Newest {
    /// Says whether an older picture had to go.
    pub(super) fn put(&self, picture: Bytes) -> bool {
        let replaced = self.with(|place| place.picture.replace(picture).is_some());
        self.changed.notify_one();
        replaced
    }

    /// No further picture comes; the last one can still be taken.
    pub(super) fn close(&self) {
        self.with(|place| place.closed = true);
        self.changed.notify_one();
    }

    /// Waits for a picture. `None` once closed and empty. For one taker.
    pub(super) async fn take(&self) -> Option<Bytes> {
        loop {
            let (picture, closed) = self.with(|place| (place.picture.take(), place.closed));
            if picture.is_some() || closed {
                return picture;
            }
            self.changed.notified().await;
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Place) -> T) -> T {
        f(&mut self.place.lock().unwrap_or_else(PoisonError::into_inner))
    }
}
