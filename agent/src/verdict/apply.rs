//! Applies a verdict: durable first, then told to everyone inside.
//!
//! Sinks outside are served by `delivery`, from the disk, at their own pace.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use hedge_proto::{
    Answer, Authority, Case, CaseKey, Explanation, LinkState, MESSAGE_BYTES_MAX, Outcome, TaskResult, Verdict,
    from_cbor, to_cbor,
};
use tokio::sync::{Notify, watch};

use crate::answers::Answers;
use crate::figures::Figures;
use crate::outbox::{Applied, Outbox, State};
use crate::pipeline::LinkView;

/// Why a verdict is not durable. It must come again.
#[derive(Debug, thiserror::Error)]
#[error("the outbox: {0}")]
pub struct ApplyError(String);

/// Where verdicts are applied. Cheap to clone.
#[derive(Clone)]
pub struct Verdicts {
    pub outbox: Outbox,
    pub answers: Answers,
    pub figures: Arc<Figures>,
    pub link: watch::Receiver<LinkView>,
    /// Woken when there is something for the sinks.
    pub news: Arc<Notify>,
    /// One bit for each configured sink: a case is forgotten when all of them are set.
    pub sinks: Arc<AtomicU8>,
}

impl Verdicts {
    /// Stores the verdict and, if it counts, corrects the answer. Done means durable, or late and counted; false if the
    /// case is as open as before.
    pub async fn apply(&self, verdict: Verdict) -> Result<bool, ApplyError> {
        let key = verdict.id.key;
        let applied = self.outbox.answered(key, verdict.revision, to_cbor(&verdict)).await;
        match applied.map_err(|error| ApplyError(error.to_string()))? {
            Applied::New => {}
            Applied::Late | Applied::Unknown => {
                Figures::count(&self.figures.late_verdicts);
                tracing::debug!(id = %verdict.id, revision = verdict.revision, "a late verdict");
                return Ok(!self.outbox.lookup(key).is_some_and(|entry| entry.state.is_open()));
            }
        }
        Figures::count(&self.figures.verdicts);
        let link = self.link.borrow().state;
        match correction(&self.outbox, key, link).await {
            Ok(correction) => {
                if correction.changed {
                    Figures::count(&self.figures.corrected);
                }
                self.answers.correct(correction);
            }
            Err(reason) => tracing::warn!(id = %verdict.id, reason, "the case of a verdict cannot be read"),
        }
        self.news.notify_waiters();
        // What is answered needs no more waiting: the next start would forget it too. There are no more of these tasks
        // than cases that the cloud owes an answer to.
        let verdicts = self.clone();
        tokio::spawn(async move { verdicts.forget_if_delivered(key).await });
        Ok(true)
    }

    /// Forgets an answered case once every configured sink has it.
    pub async fn forget_if_delivered(&self, key: CaseKey) {
        let Some(State::Answered { delivered, .. }) = self.outbox.lookup(key).map(|entry| entry.state) else { return };
        let sinks = self.sinks.load(Ordering::Relaxed);
        if delivered & sinks == sinks
            && let Err(error) = self.outbox.forget(key).await
        {
            tracing::warn!(%error, "an answered case could not be forgotten; it will be at the next start");
        }
    }

    /// Forgets what was delivered before, under this or another configuration of sinks.
    pub async fn forget_all_delivered(&self) {
        for entry in self.outbox.undelivered(NO_SINK, usize::MAX) {
            self.forget_if_delivered(entry.key).await;
        }
    }
}

/// A bit no sink uses, so that every answered case lacks it.
const NO_SINK: u8 = 7;

/// The correction of an answered case, made from what is on disk.
pub(super) async fn correction(outbox: &Outbox, key: CaseKey, link: LinkState) -> Result<Answer, String> {
    let reader = outbox.clone();
    let read = tokio::task::spawn_blocking(move || reader.read(key)).await.map_err(|stopped| stopped.to_string())?;
    let stored = read.map_err(|error| error.to_string())?.ok_or("it is no longer in the outbox")?;
    let verdict = stored.verdict.ok_or("it has no verdict")?;
    let case: Case = from_cbor(&stored.header, MESSAGE_BYTES_MAX).map_err(|error| error.to_string())?;
    let verdict: Verdict = from_cbor(&verdict, MESSAGE_BYTES_MAX).map_err(|error| error.to_string())?;
    Ok(correct(case, verdict, link))
}

fn correct(case: Case, verdict: Verdict, link: LinkState) -> Answer {
    let local = local_result(&case);
    Answer {
        changed: local.as_ref().is_none_or(|local| !local.agrees_with(&verdict.result)),
        decision: explanation(&case, verdict.authority),
        id: case.id,
        reference: case.reference,
        source: case.source,
        task: verdict.task,
        revision: verdict.revision,
        authority: verdict.authority,
        model: verdict.model,
        result: Some(verdict.result),
        provisional: false,
        case: None,
        link,
        captured: case.captured,
        metadata: case.metadata,
    }
}

/// What the device itself had said.
#[must_use]
pub(super) fn local_result(case: &Case) -> Option<TaskResult> {
    let best = case.scores.first()?;
    Some(TaskResult::Classify { label: best.label.clone(), scores: case.scores.clone() })
}

fn explanation(case: &Case, authority: Authority) -> Explanation {
    Explanation {
        outcome: Outcome::Defer,
        reason: Some(case.decision.reason),
        score: case.scores.first().map(|best| best.score),
        margin: None,
        entropy: None,
        threshold: case.decision.threshold,
        mode: case.decision.mode,
        because: match authority {
            Authority::Device => "the cloud got nothing of the sample and lets the device's answer stand".to_owned(),
            _ => "the cloud was asked".to_owned(),
        },
    }
}
