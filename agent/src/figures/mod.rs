//! Counts what passes through the device. Atomic, so that the keep path waits for nobody.
//!
//! Each figure is counted here once; `telemetry` puts them into the one document that `/v1/status`,
//! `up/telemetry` and `/metrics` are written from.

mod latency;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use hedge_proto::{LatencyFigures, Name, Refusal, SampleFigures, SinkFigures, SourceFigures};
use tokio::time::Instant;

pub use self::latency::{BOUNDS_S, Latency, Spread};
use hedge_config::Quiet;

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
    flows: Mutex<BTreeMap<Name, Flow>>,
    latencies: [Latency; Timed::ALL.len()],
}

/// What comes from a source that is on, and when it last did.
#[derive(Debug, Clone)]
struct Flow {
    began: Instant,
    quiet: Option<Quiet>,
    sample: Option<Instant>,
    new: Option<Instant>,
    answer: Option<Instant>,
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
    pub fn sink(&self, name: &Name, change: impl FnOnce(&mut SinkFigures)) {
        let mut sinks = self.sinks.lock().unwrap_or_else(PoisonError::into_inner);
        match sinks.get_mut(name.as_str()) {
            Some(figures) => change(figures),
            None => change(sinks.entry(name.to_string()).or_default()),
        }
    }

    #[must_use]
    pub fn sinks(&self) -> BTreeMap<String, SinkFigures> {
        self.sinks.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A source is on: from now on it is expected to bring something.
    pub fn begin_source(&self, source: &Name, quiet: Option<Quiet>) {
        let flow = Flow { began: Instant::now(), quiet, sample: None, new: None, answer: None };
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).insert(source.clone(), flow);
    }

    pub fn end_source(&self, source: &Name) {
        self.flows.lock().unwrap_or_else(PoisonError::into_inner).remove(source);
    }

    /// A sample came.
    pub fn saw(&self, source: &Name, is_new: bool) {
        self.flow(source, |flow| {
            let now = Instant::now();
            flow.sample = Some(now);
            if is_new {
                let between = now - flow.new.replace(now).unwrap_or(now);
                if let Some(quiet) = &mut flow.quiet {
                    quiet.saw(between);
                }
            }
        });
    }

    pub fn answered_of(&self, source: &Name) {
        self.flow(source, |flow| flow.answer = Some(Instant::now()));
    }

    fn flow(&self, source: &Name, change: impl FnOnce(&mut Flow)) {
        let mut flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(flow) = flows.get_mut(source) {
            change(flow);
        }
    }

    #[must_use]
    pub fn source_figures(&self) -> BTreeMap<Name, SourceFigures> {
        let ago = |at: Option<Instant>| at.map(|at| at.elapsed().as_secs());
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = |(name, flow): (&Name, &Flow)| {
            let figures = SourceFigures {
                sample_s: ago(flow.sample),
                new_s: ago(flow.new),
                answer_s: ago(flow.answer),
                quiet_after_s: flow.quiet.map(|quiet| quiet.after.as_secs()),
            };
            (name.clone(), figures)
        };
        flows.iter().map(figures).collect()
    }

    /// What is wrong with each source that is on: it has been quiet for too long, or says the same again and again.
    #[must_use]
    pub fn quiet_sources(&self) -> BTreeMap<Name, Option<String>> {
        let flows = self.flows.lock().unwrap_or_else(PoisonError::into_inner);
        flows.iter().map(|(name, flow)| (name.clone(), flow.fault())).collect()
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

impl Flow {
    fn fault(&self) -> Option<String> {
        let after = self.quiet?.after;
        if self.new.unwrap_or(self.began).elapsed() <= after {
            return None;
        }
        let seconds = after.as_secs();
        let frozen = self.sample.is_some_and(|sample| sample.elapsed() <= after);
        Some(if frozen {
            format!(
                "the same picture, byte for byte, for more than {seconds} s: the camera is frozen, or `quiet_after_s = 0` \
                 says that it may be"
            )
        } else {
            format!(
                "nothing came for more than {seconds} s: see that what brings its samples works, or say with \
                 `quiet_after_s` how long it may be quiet"
            )
        })
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

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_source_that_is_quiet_or_says_the_same_for_too_long_is_a_fault_until_it_brings_something_new() {
        let (figures, porch) = (Figures::default(), Name::new("porch").expect("valid"));
        let fault = |part: &str| {
            let fault = figures.quiet_sources().remove(&porch).flatten();
            assert_eq!(fault.is_some(), !part.is_empty(), "{fault:?}");
            assert!(fault.unwrap_or_default().contains(part));
        };
        let later = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        figures.begin_source(&porch, Some(Quiet::of_command(None)));
        later(60).await;
        fault("");
        later(1).await;
        fault("nothing came for more than 60 s");
        figures.saw(&porch, true);
        fault("");
        for _ in 0..61 {
            later(1).await;
            figures.saw(&porch, false);
        }
        fault("the same picture");
        figures.saw(&porch, true);
        fault("");
        // One picture every 61 s is what this source does.
        later(100).await;
        fault("");
        let figures_now = figures.source_figures().remove(&porch).expect("there");
        assert_eq!((figures_now.new_s, figures_now.quiet_after_s, figures_now.answer_s), (Some(100), Some(183), None));
        figures.end_source(&porch);
        later(1000).await;
        assert!(figures.quiet_sources().is_empty(), "a source that is off is expected to be quiet");
    }
}
