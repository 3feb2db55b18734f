//! Brings corrections from the disk to each sink, in a loop of its own, until the sink has confirmed them.
//!
//! A sink that is slow or gone holds up nobody: its corrections stay in the outbox. What every sink has
//! confirmed is forgotten. Local answers, for the sinks that want them, come from memory and are not repeated.

use std::sync::Arc;
use std::time::Duration;

use hedge_proto::{Answer, CaseKey};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

use super::{BATCH_MAX, Sink, SinkError, Verdicts};
use crate::daemon::config::Wanted;
use crate::outbox::{Entry, State};

/// The first wait after a sink failed; doubles up to [`RETRY_WAIT_MAX`]. Short, because a sink that fails every so often
/// must still take more than the cloud can answer.
const RETRY_WAIT_MIN: Duration = Duration::from_millis(100);

/// The longest wait for a sink that fails. One that is back is served within it.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// Without any news the disk is looked at so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// One sink's loop.
pub struct Delivery {
    verdicts: Verdicts,
    sink: Sink,
    wanted: Wanted,
    retry_wait: Duration,
}

impl Delivery {
    #[must_use]
    pub fn new(verdicts: Verdicts, sink: Sink, wanted: Wanted) -> Self {
        Self { verdicts, sink, wanted, retry_wait: RETRY_WAIT_MIN }
    }

    /// Delivers until told to stop. What is under way then is offered again at the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut local_answers = self.verdicts.answers.listen();
        loop {
            let news = self.verdicts.news.clone();
            let news = news.notified();
            let wait = self.deliver_all(&mut local_answers).await;
            tokio::select! {
                () = stop.cancelled() => return,
                () = news, if wait == LOOK_INTERVAL => {}
                answer = local_answers.recv(), if self.wanted != Wanted::Corrections => self.pass_on(answer).await,
                () = tokio::time::sleep(wait) => {}
            }
        }
    }

    /// Delivers what is due and says how long to wait for more.
    async fn deliver_all(&mut self, local_answers: &mut broadcast::Receiver<Arc<Answer>>) -> Duration {
        loop {
            match self.deliver_batch(local_answers).await {
                Ok(0) => {
                    self.retry_wait = RETRY_WAIT_MIN;
                    return LOOK_INTERVAL;
                }
                Ok(_) => {}
                Err(reason) => {
                    let wait = self.retry_wait;
                    if wait > RETRY_WAIT_MIN {
                        tracing::warn!(sink = self.sink.name(), reason, "corrections wait for their sink");
                    }
                    self.retry_wait = (wait * 2).min(RETRY_WAIT_MAX);
                    return wait;
                }
            }
        }
    }

    /// Delivers the oldest corrections that are due. Returns how many were settled; an error means later.
    async fn deliver_batch(&mut self, local_answers: &mut broadcast::Receiver<Arc<Answer>>) -> Result<usize, String> {
        let due = self.verdicts.outbox.undelivered(self.sink.number(), BATCH_MAX);
        // Whatever is due was answered locally before, so that answer is here by now.
        self.pass_on_what_came(local_answers).await;
        let mut settled = Vec::new();
        let mut offered = Vec::new();
        for entry in due {
            match self.correction(entry.key).await {
                Some(answer) if self.wanted.takes(&answer) => offered.push((entry, answer)),
                _ => settled.push(entry),
            }
        }
        let answers: Vec<Arc<Answer>> = offered.iter().map(|(_, answer)| answer.clone()).collect();
        let (delivered, stopped_by) = self.sink.send_all(&answers).await;
        let refused = usize::from(matches!(stopped_by, Err(SinkError::Refused(_))));
        if delivered > 0 {
            // It is there: one that fails now and then must not be waited for as if it were gone.
            self.retry_wait = RETRY_WAIT_MIN;
        }
        settled.extend(offered.into_iter().take(delivered + refused).map(|(entry, _)| entry));
        for entry in &settled {
            self.confirm(entry).await?;
        }
        match stopped_by {
            Ok(()) => Ok(settled.len()),
            Err(SinkError::Refused(reason)) => {
                tracing::warn!(sink = self.sink.name(), reason, "a correction was refused; it is not offered again");
                Ok(settled.len())
            }
            Err(SinkError::Retry(reason)) => Err(reason),
        }
    }

    /// `None` for a case that cannot be read any more: there is nothing to deliver.
    async fn correction(&self, key: CaseKey) -> Option<Arc<Answer>> {
        match self.verdicts.correction(key).await {
            Ok(answer) => Some(Arc::new(answer)),
            Err(reason) => {
                tracing::warn!(sequence = key.sequence, reason, "a correction cannot be delivered");
                None
            }
        }
    }

    async fn confirm(&self, entry: &Entry) -> Result<(), String> {
        let State::Answered { revision, .. } = entry.state else { return Ok(()) };
        let outbox = &self.verdicts.outbox;
        outbox.delivered(entry.key, revision, self.sink.number()).await.map_err(|error| error.to_string())?;
        self.verdicts.forget_if_delivered(entry.key).await;
        Ok(())
    }

    /// Passes on the local answers that are there: one comes before its correction.
    async fn pass_on_what_came(&mut self, local_answers: &mut broadcast::Receiver<Arc<Answer>>) {
        if self.wanted == Wanted::Corrections {
            return;
        }
        // Not without end: corrections must have their turn.
        for _ in 0..BATCH_MAX {
            let answer = match local_answers.try_recv() {
                Ok(answer) => Ok(answer),
                Err(broadcast::error::TryRecvError::Lagged(missed)) => Err(broadcast::error::RecvError::Lagged(missed)),
                Err(_) => return,
            };
            self.pass_on(answer).await;
        }
    }

    /// Passes a local answer on, once. A sink that fails misses it; the count is in the log.
    async fn pass_on(&mut self, answer: Result<Arc<Answer>, broadcast::error::RecvError>) {
        match answer {
            Ok(answer) if answer.revision == 0 && self.sink.wants_local(self.wanted, &answer) => {
                if let (_, Err(error)) = self.sink.send_all(&[answer]).await {
                    tracing::warn!(sink = self.sink.name(), %error, "a local answer was not delivered");
                }
            }
            Err(broadcast::error::RecvError::Lagged(missed)) => {
                tracing::warn!(sink = self.sink.name(), missed, "the sink is too slow for all local answers");
            }
            Ok(_) | Err(broadcast::error::RecvError::Closed) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::sync::atomic::AtomicU8;

    use bytes::Bytes;
    use hedge_core::clock::Moment;
    use hedge_core::outbox::WhenFull;
    use hedge_core::policy::Policies;
    use hedge_proto::{Authority, TaskResult, Verdict, WIRE_VERSION, to_cbor};
    use tokio::sync::watch;

    use super::*;
    use crate::answers::Answers;
    use crate::capture::testing::{answer, case, id};
    use crate::control::InForce;
    use crate::daemon::config::Config;
    use crate::outbox::{Limits, NewCase, Outbox};
    use crate::pipeline::LinkView;
    use crate::verdict::Jsonl;

    const LIMITS: Limits = Limits {
        cases_max: 100,
        bytes_max: 1 << 20,
        free_bytes_min: 0,
        payload_bytes_max: 1 << 10,
        when_full: WhenFull::RefuseNew,
    };

    const CASES: u64 = 20;

    /// Stores case `n`, answered.
    async fn answered(outbox: &Outbox, n: u64) {
        let case = case(n);
        let verdict = Verdict {
            v: WIRE_VERSION,
            id: case.id.clone(),
            revision: 1,
            authority: Authority::Model,
            task: case.task.clone(),
            result: TaskResult::Classify { label: "boot".to_owned(), scores: Vec::new() },
            model: case.model.clone(),
        };
        let (key, payload) = (case.id.key, Bytes::from_static(b"x"));
        let new = NewCase { key, sort_key: 0.0, stored_at: Moment(0), header: to_cbor(&case), payload };
        outbox.store(new).await.expect("stored");
        outbox.answered(key, 1, to_cbor(&verdict)).await.expect("answered");
    }

    #[tokio::test]
    async fn a_sink_that_comes_late_to_its_turn_still_gets_each_answer_before_its_correction() {
        let folder = tempfile::tempdir().expect("a folder");
        let (outbox, _) = Outbox::open(&folder.path().join("outbox"), LIMITS).expect("opens");
        let answers = Answers::default();
        let verdicts = Verdicts {
            outbox: outbox.clone(),
            answers: answers.clone(),
            figures: Arc::default(),
            link: watch::channel(LinkView::starting(Policies::DEFAULT.online)).1,
            settings: watch::channel(Arc::new(InForce::new(0, Config::default(), &BTreeSet::new()))).1,
            news: Arc::default(),
            sinks: Arc::new(AtomicU8::new(u8::MAX)),
        };
        let path = folder.path().join("answers.jsonl");
        let sink = Sink::Jsonl(Jsonl::new(path.clone(), 1 << 20));
        let mut local_answers = answers.listen();
        for n in 0..CASES {
            answers.give(answer(id(n), "cam", None, 0));
            answered(&outbox, n).await;
        }
        Delivery::new(verdicts, sink, Wanted::All).deliver_all(&mut local_answers).await;
        let text = std::fs::read_to_string(&path).expect("written");
        let answer = |line| serde_json::from_str::<Answer>(line).expect("an answer");
        let seen: Vec<_> = text.lines().map(answer).map(|answer| (answer.id.key.sequence, answer.revision)).collect();
        let place = |wanted| seen.iter().position(|one| *one == wanted);
        for n in 0..CASES {
            assert!(place((n, 0)).is_some() && place((n, 0)) < place((n, 1)), "{seen:?}");
        }
    }
}
