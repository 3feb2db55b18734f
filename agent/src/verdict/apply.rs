//! Applies a verdict: durable first, then told to everyone inside.
//!
//! Sinks outside are served by `delivery`, from the disk, at their own pace.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};

use bytes::Bytes;
use hedge_core::agree::agree;
use hedge_core::clock::Moment;
use hedge_core::verdict::{corrects, misfit};
use hedge_proto::{
    Answer, Authority, Case, CaseFate, CaseKey, Epoch, Explanation, LinkState, MESSAGE_BYTES_MAX, Name, Outcome,
    PayloadForm, Share, Verdict, from_cbor, to_cbor,
};
use tokio::sync::watch;

use super::Locals;
use crate::answers::{ANSWER_AGE_MAX, Answers, Remembered};
use crate::faults::Faults;
use crate::figures::Figures;
use crate::in_force::InForce;
use crate::learned::{Learned, Recalled};
use crate::link::LinkView;
use hedge_outbox::{Applied, NewCase, Outbox, ReadError, Recent, State, StoredCase};

/// How many of the cases that were stored last are looked through for names at a start: a second's reading of a log
/// on an SD card.
const RECALLED_MAX: usize = 4096;

/// What sets the key of a case that was brought back apart from those of all runs.
const AGAIN: u64 = 0xA6A1_0000_0000_0000;

/// Why a verdict was not applied.
#[derive(Debug, thiserror::Error)]
pub enum ApplyError {
    /// It is not durable, and must come again.
    #[error("the outbox: {0}")]
    NotDurable(String),
    /// It answers another question than the case asks. The case is as open as before.
    #[error("{0}")]
    Misfit(String),
}

/// Where verdicts are applied. Cheap to clone.
#[derive(Clone)]
pub struct Verdicts {
    pub outbox: Outbox,
    pub answers: Answers,
    pub figures: Arc<Figures>,
    pub link: watch::Receiver<LinkView>,
    pub settings: watch::Receiver<Arc<InForce>>,
    /// What is learned of each model, which a verdict is a lesson for.
    pub learned: BTreeMap<Name, Learned>,
    /// Changes when there is a correction for the sinks.
    pub news: watch::Sender<()>,
    /// Local answers for the sinks that want them.
    pub locals: Locals,
    /// Where it is noted that a sink cannot be used or takes nothing.
    pub faults: Faults,
    /// One bit for each configured sink: a case is forgotten when all of them are set.
    pub sinks: Arc<AtomicU16>,
}

impl Verdicts {
    /// Stores the verdict and, if it counts, corrects the answer. Done means durable, or late and counted; false if the
    /// case is as open as before.
    pub async fn apply(&self, verdict: Verdict) -> Result<bool, ApplyError> {
        let mut key = verdict.id.key;
        let mut case = self.asked(key, &verdict).await?;
        let mut applied = self.answered(key, &verdict).await?;
        if applied == Applied::Unknown
            && let Some(again) = self.bring_back(&verdict).await?
        {
            key = again;
            case = self.asked(key, &verdict).await?;
            applied = self.answered(key, &verdict).await?;
        }
        match applied {
            Applied::New => {}
            Applied::Late | Applied::Unknown => {
                Figures::count(&self.figures.late_verdicts);
                tracing::debug!(id = %verdict.id, revision = verdict.revision, "a late verdict");
                return Ok(!self.outbox.lookup(key).is_some_and(|entry| entry.state.is_open()));
            }
        }
        Figures::count(&self.figures.verdicts);
        if let Some(case) = case {
            if let Some(learned) = self.learned_of(&case) {
                learned.learn(&case, &verdict);
            }
            let correction = self.correct(case, verdict);
            if correction.changed {
                Figures::count(&self.figures.corrected);
            }
            self.answers.correct(correction);
        }
        self.news.send_replace(());
        // What is answered needs no more waiting: the next start would forget it too. There are no more of these tasks
        // than cases that the cloud owes an answer to.
        let verdicts = self.clone();
        tokio::spawn(async move { verdicts.forget_if_delivered(key).await });
        Ok(true)
    }

    async fn answered(&self, key: CaseKey, verdict: &Verdict) -> Result<Applied, ApplyError> {
        let applied = self.outbox.answered(key, verdict.revision, to_cbor(verdict)).await;
        applied.map_err(|error| ApplyError::NotDurable(error.to_string()))
    }

    /// The case that a verdict is on, if it is an answer to that. Nothing if there is no such case, or it cannot be read now:
    /// then the verdict is kept all the same.
    async fn asked(&self, key: CaseKey, verdict: &Verdict) -> Result<Option<Case>, ApplyError> {
        let read = self.read(key).await.inspect_err(|error| {
            tracing::warn!(id = %verdict.id, %error, "the case of a verdict cannot be read now");
        });
        let Ok(Some(stored)) = read else { return Ok(None) };
        let case = from_cbor::<Case>(&stored.header, MESSAGE_BYTES_MAX).inspect_err(|error| {
            tracing::warn!(id = %verdict.id, %error, "the case of a verdict cannot be read");
        });
        let Ok(case) = case else { return Ok(None) };
        fits(&case, verdict)?;
        Ok(Some(case))
    }

    /// Stores a case again that every sink has had, and that a person corrects now, as the log still has it. It gets a key
    /// of its own, since that of a forgotten case must not be used again; one and the same for each revision, so that a
    /// word that comes again finds it. Should the agent end before it is answered, the cloud is asked, and says the same.
    async fn bring_back(&self, verdict: &Verdict) -> Result<Option<CaseKey>, ApplyError> {
        let has_it = |known: Remembered| known.correction.is_some_and(|known| known.revision >= verdict.revision);
        if verdict.authority != Authority::Person || self.answers.get(&verdict.id).is_some_and(has_it) {
            return Ok(None);
        }
        let CaseKey { epoch, sequence } = verdict.id.key;
        let key = CaseKey { epoch: Epoch(epoch.0 ^ AGAIN ^ u64::from(verdict.revision)), sequence };
        if self.outbox.lookup(key).is_some() {
            return Ok(Some(key));
        }
        let (outbox, id) = (self.outbox.clone(), verdict.id.clone());
        let find = move || {
            let cases = outbox.recent(RECALLED_MAX, Moment(0))?.into_iter();
            let mut cases =
                cases.filter_map(|one| Some((from_cbor::<Case>(&one.header, MESSAGE_BYTES_MAX).ok()?, one)));
            Ok::<_, std::io::Error>(cases.find(|(case, _)| case.id == id))
        };
        let found = tokio::task::spawn_blocking(find).await.map_err(std::io::Error::from).flatten();
        let Some((case, Recent { header, .. })) = found.map_err(|error| ApplyError::NotDurable(error.to_string()))?
        else {
            tracing::warn!(id = %verdict.id, "a person corrects a case that is no longer in the log");
            return Ok(None);
        };
        fits(&case, verdict)?;
        let stored_at = Moment(case.captured.powered_ms);
        let again = NewCase { key, sort_key: 0.0, stored_at, header, payload: Bytes::new() };
        // Without room it is no reason to hold up the verdicts behind it.
        let stored = self.outbox.store(again).await;
        Ok(stored
            .inspect_err(|refusal| tracing::warn!(id = %verdict.id, "the outbox keeps no word of a person: {}", refusal.sentence()))
            .ok()
            .map(|()| key))
    }

    /// The correction of an answered case, made from what is on disk. `None` if there never will be one; an error if the
    /// disk cannot be read now.
    pub(super) async fn correction(&self, key: CaseKey) -> Result<Option<Answer>, std::io::Error> {
        Ok(self.closed(key).await?.map(|(case, verdict)| self.correct(case, verdict)))
    }

    /// An answered case and its verdict, as they are on disk.
    async fn closed(&self, key: CaseKey) -> Result<Option<(Case, Verdict)>, std::io::Error> {
        let Some(stored) = self.read(key).await? else { return Ok(None) };
        Ok(with_verdict(stored)
            .inspect_err(|reason| tracing::warn!(sequence = key.sequence, reason, "a correction cannot be delivered"))
            .ok())
    }

    /// A case as it is on disk. A damaged one is ended, and is none.
    async fn read(&self, key: CaseKey) -> Result<Option<StoredCase>, std::io::Error> {
        let reader = self.outbox.clone();
        match tokio::task::spawn_blocking(move || reader.read(key)).await? {
            Ok(stored) => Ok(stored),
            Err(ReadError::Damaged) => {
                tracing::warn!(sequence = key.sequence, "a case is damaged, and its correction cannot be delivered");
                Ok(None)
            }
            Err(ReadError::Io(error)) => Err(error),
        }
    }

    fn correct(&self, case: Case, verdict: Verdict) -> Answer {
        correct(case, verdict, self.link.borrow().state, self.score_min())
    }

    /// Where the model that judged a case learns what came of it.
    fn learned_of(&self, case: &Case) -> Option<&Learned> {
        self.learned.get(&self.model_of(case)?)
    }

    fn model_of(&self, case: &Case) -> Option<Name> {
        let source = Name::new(&case.source).ok()?;
        Some(self.settings.borrow().sources.get(&source)?.model.clone())
    }

    fn score_min(&self) -> Share {
        self.settings.borrow().config.verdicts.score_min.unwrap_or(Share::ZERO)
    }

    /// Remembers the named samples among the cases that earlier runs stored last, so that a repeated `ref` is the same
    /// sample across a restart, too. Blocks on the disk.
    pub fn recall(&self, now: Moment) {
        let link = self.link.borrow().state;
        let not_before = Moment(now.0.saturating_sub(u64::try_from(ANSWER_AGE_MAX.as_millis()).unwrap_or(u64::MAX)));
        let recent = self.outbox.recent(RECALLED_MAX, not_before).unwrap_or_else(|error| {
            tracing::warn!(%error, "the log is not looked through for names: a repeated `ref` may be a new sample");
            Vec::new()
        });
        let mut lessons: BTreeMap<Name, Vec<Recalled>> = BTreeMap::new();
        // The oldest first, as they came.
        for recent in recent.into_iter().rev() {
            let Ok(case) = from_cbor::<Case>(&recent.header, MESSAGE_BYTES_MAX) else { continue };
            let verdict = recent.verdict.and_then(|verdict| from_cbor::<Verdict>(&verdict, MESSAGE_BYTES_MAX).ok());
            if let Some(model) = self.model_of(&case) {
                lessons.entry(model).or_default().push(Recalled {
                    case: case.clone(),
                    payload_bytes: u64::from(recent.payload_bytes),
                    verdict: verdict.clone(),
                });
            }
            if case.reference.is_none() {
                continue;
            }
            self.answers.recall(Remembered {
                // Of a poorer form the sum says nothing about the sample.
                content: (case.form == PayloadForm::Whole).then_some(case.payload_sha256),
                correction: verdict.map(|verdict| Arc::new(correct(case.clone(), verdict, link, self.score_min()))),
                local: Arc::new(recalled(case, link)),
            });
        }
        for (model, cases) in lessons {
            if let Some(learned) = self.learned.get(&model) {
                learned.recall(cases);
            }
        }
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
        for entry in self.outbox.all_answered() {
            self.forget_if_delivered(entry.key).await;
        }
    }
}

fn fits(case: &Case, verdict: &Verdict) -> Result<(), ApplyError> {
    let Some(why) = misfit(&case.task, case.said.as_ref(), verdict) else { return Ok(()) };
    tracing::warn!(id = %verdict.id, "a verdict is no answer to its case: {why}");
    Err(ApplyError::Misfit(why))
}

fn with_verdict(stored: StoredCase) -> Result<(Case, Verdict), String> {
    let verdict = stored.verdict.ok_or("it has no verdict")?;
    let case: Case = from_cbor(&stored.header, MESSAGE_BYTES_MAX).map_err(|error| error.to_string())?;
    let verdict: Verdict = from_cbor(&verdict, MESSAGE_BYTES_MAX).map_err(|error| error.to_string())?;
    Ok((case, verdict))
}

fn correct(case: Case, verdict: Verdict, link: LinkState, score_min: Share) -> Answer {
    let Verdict { revision, authority, task, said, model, .. } = verdict;
    let decision = explanation(&case, authority);
    let agreement = case.said.as_ref().map(|local| agree(local, &said));
    let own = Answer { task, revision, provisional: false, case: None, ..answer_of(case, decision, link) };
    if own.said.is_some() && !corrects(authority, said.score(), score_min, true) {
        let because = format!(
            "the cloud said `{}` with {:.2}, below verdicts.score_min {:.2}; the device's answer stands",
            said.headline(),
            said.score().unwrap_or_default(),
            score_min.value()
        );
        return Answer { decision: Explanation { because, ..own.decision }, ..own };
    }
    Answer { authority, model, said: Some(said), changed: agreement.is_none_or(|share| share < 1.0), ..own }
}

/// What an earlier run answered, as far as its case says.
fn recalled(case: Case, link: LinkState) -> Answer {
    let because = "answered before the agent's last start".to_owned();
    let decision = Explanation { because, ..explanation(&case, Authority::Device) };
    answer_of(case, decision, link)
}

/// The device's own answer, of which this is the case.
fn answer_of(case: Case, decision: Explanation, link: LinkState) -> Answer {
    Answer {
        id: case.id,
        reference: case.reference,
        source: case.source,
        task: case.task,
        revision: 0,
        authority: Authority::Device,
        model: case.model,
        said: case.said,
        provisional: true,
        changed: false,
        decision,
        case: Some(CaseFate::Stored),
        link,
        captured: case.captured,
        metadata: case.metadata,
        crops: Vec::new(),
    }
}

fn explanation(case: &Case, authority: Authority) -> Explanation {
    Explanation {
        outcome: Outcome::Defer,
        reason: Some(case.decision.reason.clone()),
        check: case.decision.check,
        agreement: None,
        score: case.doubt.score().or_else(|| case.said.as_ref()?.score()),
        doubt: case.doubt,
        threshold: case.decision.threshold,
        mode: case.decision.mode,
        because: match authority {
            Authority::Device => "the cloud got nothing of the sample and lets the device's answer stand".to_owned(),
            _ => "the cloud was asked".to_owned(),
        },
    }
}

#[cfg(test)]
mod tests {
    use hedge_proto::{LabelScore, Output};

    use super::*;
    use crate::capture::testing::case;

    fn said(label: &str, score: f32) -> Output {
        Output::Classes(vec![LabelScore { label: label.to_owned(), score }])
    }

    #[test]
    fn a_verdict_below_score_min_lets_the_devices_answer_stand_and_says_so() {
        let case = Case { said: Some(said("lynx", 0.4)), ..case(1) };
        let verdict = |score| Verdict {
            v: 1,
            id: case.id.clone(),
            revision: 1,
            authority: Authority::Model,
            task: case.task.clone(),
            said: said("tabby", score),
            model: case.model.clone(),
        };
        let half = Share::new(0.5).expect("a share");
        let weak = correct(case.clone(), verdict(0.1), LinkState::Online, half);
        assert_eq!(weak.said.map(|said| said.headline()).as_deref(), Some("lynx"));
        assert_eq!((weak.changed, weak.provisional, weak.authority), (false, false, Authority::Device));
        let because = "the cloud said `tabby` with 0.10, below verdicts.score_min 0.50; the device's answer stands";
        assert_eq!(weak.decision.because, because);

        let sure = correct(case.clone(), verdict(0.5), LinkState::Online, half);
        assert_eq!((sure.changed, sure.authority), (true, Authority::Model));
        let nothing_local = Case { said: None, ..case.clone() };
        assert!(correct(nothing_local, verdict(0.1), LinkState::Online, half).changed, "better than no answer");
    }
}
