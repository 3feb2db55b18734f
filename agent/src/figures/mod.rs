//! Counts what passes through the device. Atomic, so that the keep path waits for nobody.
//!
//! Each figure is counted here once; `telemetry` puts them into the one document that `/v1/status`,
//! `up/telemetry` and `/metrics` are written from.

mod latency;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hedge_proto::{LatencyFigures, Name, Refusal, SampleFigures, SinkFigures};

pub use self::latency::{BOUNDS_S, Latency, Spread};

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
    pub unread: AtomicU64,
    refused: Mutex<BTreeMap<Refusal, u64>>,
    dropped: Mutex<BTreeMap<Dropped, u64>>,
    sources: Mutex<BTreeMap<Name, String>>,
    sinks: Mutex<BTreeMap<String, SinkFigures>>,
    latencies: [Latency; Timed::ALL.len()],
}

/// What takes time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Timed {
    /// From a sample's arrival at the pipeline to its answer, by what became of it.
    Kept,
    Deferred,
    /// From the sample's bytes to the model's input.
    Tensor,
    Inference,
    /// Until a case is on the disk.
    Store,
}

impl Timed {
    pub const ALL: [Self; 5] = [Self::Kept, Self::Deferred, Self::Tensor, Self::Inference, Self::Store];

    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Kept => "kept",
            Self::Deferred => "deferred",
            Self::Tensor => "tensor",
            Self::Inference => "inference",
            Self::Store => "store",
        }
    }
}

/// Why a stored case left the outbox without a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Dropped {
    /// By hand, with `hedge-agent queue drop`.
    Operator,
    /// It gave way to a case worth more.
    Evicted,
    /// It waited too long, or was a dead letter for so long.
    Expired,
    /// Its verdict was here, and some sink did not take it for too long.
    Undelivered,
    /// Its folder or file was deleted under the agent.
    Gone,
}

impl Figures {
    pub fn count(counter: &AtomicU64) {
        counter.fetch_add(1, Relaxed);
    }

    pub fn count_refused(&self, refusal: Refusal) {
        *self.refused.lock().unwrap_or_else(PoisonError::into_inner).entry(refusal).or_default() += 1;
    }

    pub fn count_dropped(&self, why: Dropped) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner).entry(why).or_default() += 1;
    }

    /// Cases that the last run had stored and this one does not find.
    pub fn count_gone(&self, cases: u64) {
        *self.dropped.lock().unwrap_or_else(PoisonError::into_inner).entry(Dropped::Gone).or_default() += cases;
    }

    pub fn took(&self, what: Timed, time: Duration) {
        self.latencies[what as usize].record(time);
    }

    #[must_use]
    pub fn spread(&self, what: Timed) -> Spread {
        self.latencies[what as usize].spread()
    }

    /// What has happened at least once.
    #[must_use]
    pub fn latency(&self) -> BTreeMap<String, LatencyFigures> {
        let timed = Timed::ALL.into_iter().map(|what| (what, self.spread(what)));
        timed
            .filter(|(_, spread)| spread.count > 0)
            .map(|(what, spread)| (what.name().to_owned(), spread.figures()))
            .collect()
    }

    /// One sentence on a source, for people.
    pub fn set_source(&self, source: &Name, state: String) {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).insert(source.clone(), state);
    }

    #[must_use]
    pub fn sources(&self) -> BTreeMap<Name, String> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Changes what is counted of a sink, which begins with this.
    pub fn sink(&self, name: &str, change: impl FnOnce(&mut SinkFigures)) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        match sinks.get_mut(name) {
            Some(figures) => change(figures),
            None => change(sinks.entry(name.to_owned()).or_default()),
        }
    }

    #[must_use]
    pub fn sinks(&self) -> BTreeMap<String, SinkFigures> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    #[must_use]
    pub fn samples(&self) -> SampleFigures {
        let refused = self.refused.lock().unwrap_or_else(PoisonError::into_inner);
        let dropped = self.dropped.lock().unwrap_or_else(PoisonError::into_inner);
        SampleFigures {
            answered: self.answered.load(Relaxed),
            kept: self.kept.load(Relaxed),
            deferred: self.deferred.load(Relaxed),
            failed: self.failed.load(Relaxed),
            skipped: self.skipped.load(Relaxed),
            refused: refused.iter().map(|(refusal, count)| (refusal_name(*refusal).to_owned(), *count)).collect(),
            dropped: dropped.iter().map(|(why, count)| (drop_name(*why).to_owned(), *count)).collect(),
            verdicts: self.verdicts.load(Relaxed),
            corrected: self.corrected.load(Relaxed),
            late_verdicts: self.late_verdicts.load(Relaxed),
        }
    }
}

/// Every reason a case can be refused for, so that a graph shows them before they happen.
pub const REFUSALS: [Refusal; 5] =
    [Refusal::Full, Refusal::Disk, Refusal::TooLarge, Refusal::Overloaded, Refusal::Stopping];

/// Every reason a case can be dropped for. The outbox itself counts all but the first and the last.
pub const DROPS: [Dropped; 5] =
    [Dropped::Operator, Dropped::Evicted, Dropped::Expired, Dropped::Undelivered, Dropped::Gone];

#[must_use]
pub fn refusal_name(refusal: Refusal) -> &'static str {
    match refusal {
        Refusal::Full => "full",
        Refusal::Disk => "disk",
        Refusal::TooLarge => "too_large",
        Refusal::Overloaded => "overloaded",
        Refusal::Stopping => "stopping",
    }
}

#[must_use]
pub fn drop_name(why: Dropped) -> &'static str {
    match why {
        Dropped::Operator => "operator",
        Dropped::Evicted => "evicted",
        Dropped::Expired => "expired",
        Dropped::Undelivered => "undelivered",
        Dropped::Gone => "gone",
    }
}
