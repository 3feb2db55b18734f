//! What others see of a model's thread without asking it: what it works on, and how it has answered.

use std::sync::{Arc, Mutex, PoisonError};

use tokio::time::Instant;

/// How the model has answered.
#[derive(Clone, Default)]
pub(super) struct Record(Arc<Mutex<Answering>>);

#[derive(Default)]
pub(super) struct Answering {
    pub(super) last: Option<Instant>,
    /// Since then, without an answer in between.
    pub(super) failures: u32,
    /// Why the last of them failed.
    pub(super) reason: Arc<str>,
    /// Why it is not loaded.
    pub(super) missing: Option<Arc<str>>,
}

impl Record {
    pub(super) fn with<T>(&self, f: impl FnOnce(&mut Answering) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// A model was loaded that has answered nothing yet.
    pub(super) fn begin(&self) {
        self.with(|record| *record = Answering::default());
    }

    pub(super) fn answered(&self) {
        self.with(|record| (record.last, record.failures) = (Some(Instant::now()), 0));
    }

    pub(super) fn failed(&self, reason: &str) {
        self.with(|record| {
            record.failures = record.failures.saturating_add(1);
            record.reason = reason.into();
        });
    }
}

/// Since when the thread works on one sample; `None` while it waits for the next.
#[derive(Clone, Default)]
pub(super) struct Work(Arc<Mutex<Option<Instant>>>);

impl Work {
    pub(super) fn set(&self, since: Option<Instant>) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = since;
    }

    pub(super) fn since(&self) -> Option<Instant> {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
