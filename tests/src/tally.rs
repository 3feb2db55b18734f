//! The harness's own count of what must arrive: answers it was given, corrections found in the sinks.
//!
//! Nothing here comes from an agent's counters. An id is *lost* when the agent said its case was stored and no
//! sink ever showed its correction; it is a *duplicate* when a sink shows one revision of it twice.

use std::collections::{HashMap, HashSet};

use hedge_core::agree::agree;
use hedge_proto::{Answer, CaseFate, CaseId, Outcome, Output};

/// What one sample was answered, and what it should have been.
#[derive(Debug)]
struct Sample {
    local: Option<Output>,
    /// What the sample really shows, where that is known.
    truth: Option<String>,
    deferred: bool,
    /// The agent promised a correction.
    promised: bool,
}

/// The last word on one sample.
#[derive(Debug)]
struct Correction {
    revision: u32,
    said: Option<Output>,
    changed: bool,
}

/// Answers and corrections by id, in whatever order they are noticed.
#[derive(Debug, Default)]
pub struct Tally {
    samples: HashMap<CaseId, Sample>,
    corrections: HashMap<CaseId, Correction>,
    /// How often each revision stood in a sink.
    seen: HashMap<(CaseId, u32), u64>,
}

/// Everything a run is judged by.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Totals {
    pub samples: u64,
    pub kept: u64,
    pub deferred: u64,
    /// Deferred, and not taken by the outbox: nothing was promised for these.
    pub refused: u64,
    pub verdicts: u64,
    /// Verdicts that said something else than the local answer.
    pub corrected: u64,
    /// Promised, and no correction so far.
    pub missing: u64,
    /// Ids with more than one correction of a revision in a sink.
    pub duplicates: u64,
    /// Corrections for ids that were never answered to this harness.
    pub strangers: u64,
}

/// How often answers were right, among samples whose truth is known.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Accuracy {
    /// Samples with a known truth.
    pub samples: u64,
    pub local: f64,
    pub hybrid: f64,
    pub deferred_share: f64,
}

/// How much answers say what another model says of the same samples: of boxes, the mean F1 at IoU 0.5.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Agreement {
    pub samples: u64,
    pub local: f64,
    pub hybrid: f64,
    pub deferred_share: f64,
}

impl Tally {
    /// Notes an answer the agent gave, and what would be right.
    pub fn answered(&mut self, answer: &Answer, truth: Option<&str>) {
        let deferred = answer.decision.outcome == Outcome::Defer;
        let promised = deferred && matches!(answer.case, Some(CaseFate::Stored | CaseFate::Pending));
        let truth = truth.map(str::to_owned);
        self.samples.insert(answer.id.clone(), Sample { local: answer.said.clone(), truth, deferred, promised });
    }

    /// Notes one line of a sink that is a correction; to be called once for each line.
    pub fn corrected(&mut self, correction: &Answer) {
        let revision = correction.revision;
        *self.seen.entry((correction.id.clone(), revision)).or_default() += 1;
        if self.corrections.get(&correction.id).is_none_or(|known| known.revision < revision) {
            let correction_now = Correction { revision, said: correction.said.clone(), changed: correction.changed };
            self.corrections.insert(correction.id.clone(), correction_now);
        }
    }

    /// Ids for which a correction was promised and has not come.
    pub fn missing(&self) -> impl Iterator<Item = &CaseId> {
        let open = |(id, sample): &(&CaseId, &Sample)| sample.promised && !self.corrections.contains_key(*id);
        self.samples.iter().filter(open).map(|(id, _)| id)
    }

    #[must_use]
    pub fn totals(&self) -> Totals {
        let count = |wanted: fn(&Sample) -> bool| self.samples.values().filter(|sample| wanted(sample)).count() as u64;
        let twice: HashSet<_> = self.seen.iter().filter(|(_, times)| **times > 1).map(|((id, _), _)| id).collect();
        let known = || self.corrections.iter().filter(|(id, _)| self.samples.contains_key(*id));
        Totals {
            samples: self.samples.len() as u64,
            kept: count(|sample| !sample.deferred),
            deferred: count(|sample| sample.deferred),
            refused: count(|sample| sample.deferred && !sample.promised),
            verdicts: known().count() as u64,
            corrected: known().filter(|(_, correction)| correction.changed).count() as u64,
            missing: self.missing().count() as u64,
            duplicates: twice.len() as u64,
            strangers: (self.corrections.len() - known().count()) as u64,
        }
    }

    /// How much these samples' answers say what `references` say of them; `None` without any of them.
    #[must_use]
    pub fn agreement(&self, references: &HashMap<CaseId, Output>) -> Option<Agreement> {
        let known: Vec<_> =
            references.iter().filter_map(|(id, reference)| Some((id, self.samples.get(id)?, reference))).collect();
        let mean = |share: &dyn Fn(&CaseId, &Sample, &Output) -> f64| {
            known.iter().map(|(id, sample, reference)| share(id, sample, reference)).sum::<f64>() / known.len() as f64
        };
        let alike =
            |said: &Option<Output>, reference: &Output| said.as_ref().map_or(0.0, |said| agree(said, reference));
        (!known.is_empty()).then(|| Agreement {
            samples: known.len() as u64,
            local: mean(&|_, sample, reference| alike(&sample.local, reference).into()),
            hybrid: mean(&|id, sample, reference| alike(self.last_word(id, sample), reference).into()),
            deferred_share: mean(&|_, sample, _| f64::from(u8::from(sample.deferred))),
        })
    }

    fn last_word<'a>(&'a self, id: &CaseId, sample: &'a Sample) -> &'a Option<Output> {
        self.corrections.get(id).map_or(&sample.local, |correction| &correction.said)
    }

    /// `None` when no sample's truth is known.
    #[must_use]
    pub fn accuracy(&self) -> Option<Accuracy> {
        let known: Vec<_> = self.samples.iter().filter(|(_, sample)| sample.truth.is_some()).collect();
        let share = |right: &dyn Fn(&CaseId, &Sample) -> bool| {
            let count = known.iter().filter(|(id, sample)| right(id, sample)).count();
            count as f64 / known.len() as f64
        };
        (!known.is_empty()).then(|| Accuracy {
            samples: known.len() as u64,
            local: share(&|_, sample| headline(&sample.local) == sample.truth),
            hybrid: share(&|id, sample| headline(self.last_word(id, sample)) == sample.truth),
            deferred_share: share(&|_, sample| sample.deferred),
        })
    }
}

/// The label of a classification; `None` where the model's output was unusable.
#[must_use]
pub fn label(answer: &Answer) -> Option<String> {
    headline(&answer.said)
}

fn headline(said: &Option<Output>) -> Option<String> {
    said.as_ref().map(Output::headline)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn answer(sequence: u64, revision: u32, label: &str, outcome: &str, case: &str) -> Answer {
        serde_json::from_value(json!({
            "id": format!("device.0000000000000001.{sequence}"),
            "source": "s", "task": "t", "revision": revision, "authority": "device",
            "model": { "name": "m", "version": "1" },
            "result": { "classify": { "label": label, "scores": [] } },
            "provisional": true, "changed": revision > 0,
            "decision": { "outcome": outcome, "threshold": 0.5, "mode": "fixed", "because": "" },
            "case": case, "link": "online",
            "captured": { "powered_ms": 0, "boot": "b", "synced": false },
        }))
        .expect("an answer")
    }

    #[test]
    fn a_promised_correction_that_never_came_is_missing_and_a_repeated_one_is_a_duplicate() {
        let mut tally = Tally::default();
        tally.answered(&answer(0, 0, "coat", "keep", "stored"), Some("coat"));
        tally.answered(&answer(1, 0, "coat", "defer", "stored"), Some("shirt"));
        tally.answered(&answer(2, 0, "coat", "defer", "stored"), Some("shirt"));
        for _ in 0..2 {
            tally.corrected(&answer(1, 1, "shirt", "defer", "stored"));
        }
        tally.corrected(&answer(9, 1, "shirt", "defer", "stored"));
        let totals = tally.totals();
        assert_eq!((totals.missing, totals.duplicates, totals.strangers), (1, 1, 1));
        assert_eq!((totals.samples, totals.kept, totals.deferred, totals.verdicts, totals.corrected), (3, 1, 2, 1, 1));
        let accuracy = tally.accuracy().expect("truths are known");
        assert!((accuracy.local - 1.0 / 3.0).abs() < 1e-9 && (accuracy.hybrid - 2.0 / 3.0).abs() < 1e-9);
    }

    #[test]
    fn two_revisions_of_one_id_are_no_duplicate() {
        let mut tally = Tally::default();
        tally.answered(&answer(1, 0, "coat", "defer", "stored"), None);
        tally.corrected(&answer(1, 1, "shirt", "defer", "stored"));
        tally.corrected(&answer(1, 2, "coat", "defer", "stored"));
        assert_eq!(tally.totals().duplicates, 0);
        assert_eq!(tally.accuracy(), None);
    }
}
