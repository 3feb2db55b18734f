//! Counts what passes through the device. Atomic, so that the keep path waits for nobody.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};

use hedge_proto::{Name, Refusal, SampleFigures};

/// Counters since the process started.
#[derive(Debug, Default)]
pub struct Figures {
    pub answered: AtomicU64,
    pub kept: AtomicU64,
    pub deferred: AtomicU64,
    pub failed: AtomicU64,
    pub skipped: AtomicU64,
    pub verdicts: AtomicU64,
    pub corrected: AtomicU64,
    pub late_verdicts: AtomicU64,
    refused: Mutex<BTreeMap<Refusal, u64>>,
    sources: Mutex<BTreeMap<Name, String>>,
}

impl Figures {
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub fn count_refused(&self, refusal: Refusal) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(refusal).or_default() += 1;
    }

    /// One sentence on a source, for people.
    pub fn set_source(&self, source: &Name, state: String) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(source.clone(), state);
    }

    #[must_use]
    pub fn sources(&self) -> BTreeMap<Name, String> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn samples(&self) -> SampleFigures {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        SampleFigures {
            answered: self.answered.load(Relaxed),
            kept: self.kept.load(Relaxed),
            deferred: self.deferred.load(Relaxed),
            failed: self.failed.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            refused: refused.iter().map(|(refusal, count)| (refusal_name(*refusal), *count)).collect(),
            verdicts: self.verdicts.load(Relaxed),
            corrected: self.corrected.load(Relaxed),
            late_verdicts: self.late_verdicts.load(Relaxed),
        }
    }
}

fn refusal_name(refusal: Refusal) -> String {
    match refusal {
        Refusal::Full => "full",
        Refusal::Disk => "disk",
        Refusal::TooLarge => "too_large",
        Refusal::Overloaded => "overloaded",
        Refusal::Stopping => "stopping",
    }
    .to_owned()
}
