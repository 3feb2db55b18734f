//! The outbox as an operator sees it: look, take out, queue again. The same on a running agent and a stopped one.
//!
//! A running agent serves it over HTTP (`capture::http::queue`); for a stopped one the command opens the outbox
//! itself. What is sent and when stays the engine's business: it is told of what has changed.

mod documents;

use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_core::engine::Event;
use hedge_core::outbox::given_up_for_size;
use hedge_core::uplink::Waiting;
use hedge_proto::{Case, CaseId, CaseKey, DeviceId, MESSAGE_BYTES_MAX, from_cbor, word};
use tokio::sync::mpsc;

pub use self::documents::{
    CaseDocument, CaseLine, Changed, CheckReport, DamagedPlace, Id, Listing, Selection, Stage, Stats,
};
use crate::clock::Clock;
use crate::figures::{Dropped, Figures};
use crate::state::StateFile;
use hedge_outbox::{Entry, Limits, OpenError, Outbox, ReadError, State, StoredCase};

/// The most lines one listing has: each costs a read of the disk.
pub const LINES_MAX: usize = 1000;

/// The most cases one request changes. `all_dead` does as many in one go, and says how many are left.
pub const CHANGES_MAX: usize = 1000;

/// Why an operator does not get what was asked for.
#[derive(Debug, thiserror::Error)]
pub enum QueueError {
    #[error("there is no case {0} in the outbox: it was answered, dropped, or never stored")]
    NoCase(Id),
    #[error("case {0} cannot be read: its bytes have changed on the disk; `hedge-agent queue drop` ends it")]
    Damaged(Id),
    #[error("the payload of case {0} is gone: its verdict is here already")]
    PayloadGone(Id),
    #[error("{0} cases at once are too many; at most {CHANGES_MAX}")]
    TooMany(usize),
    #[error("the disk: {0}")]
    Io(#[from] std::io::Error),
}

/// The outbox, and who must hear of changes. Cheap to clone.
#[derive(Clone)]
pub struct Queue {
    device: DeviceId,
    outbox: Outbox,
    clock: Clock,
    running: Option<Running>,
}

#[derive(Clone)]
struct Running {
    events: mpsc::Sender<Event>,
    figures: Arc<Figures>,
}

impl Queue {
    /// Of the agent this is part of.
    #[must_use]
    pub fn running(
        device: DeviceId,
        outbox: Outbox,
        clock: Clock,
        events: mpsc::Sender<Event>,
        figures: Arc<Figures>,
    ) -> Self {
        Self { device, outbox, clock, running: Some(Running { events, figures }) }
    }

    /// Of an agent that does not run: opens what lies in its `state_dir`.
    pub fn stopped(state_dir: &Path, limits: Limits, device: DeviceId) -> Result<Self, OpenError> {
        let io = |source| OpenError::Io { path: state_dir.to_owned(), source };
        let (outbox, report) = Outbox::open(&state_dir.join("outbox"), limits)?;
        let (state, _) = StateFile::open(state_dir).map_err(io)?;
        let clock = Clock::resume(&state.state().clock, report.clock.unwrap_or(Moment(0)));
        Ok(Self { device, outbox, clock, running: None })
    }

    /// The first `limit` cases, or those of one stage. Blocks on the disk.
    #[must_use]
    pub fn list(&self, stage: Option<Stage>, limit: usize) -> Listing {
        let limit = limit.min(LINES_MAX);
        let entries = self.entries(stage, limit + 1);
        let cases = entries.iter().take(limit).map(|entry| match self.outbox.look(entry.key) {
            Ok(Some(stored)) => self.line(entry, &stored),
            Ok(None) => self.bare_line(entry, None),
            Err(error) => self.bare_line(entry, Some(error.to_string())),
        });
        Listing { cases: cases.collect(), more: entries.len() > limit }
    }

    /// The ids of all cases, or those of one stage.
    #[must_use]
    pub fn ids(&self, stage: Option<Stage>) -> Vec<Id> {
        self.entries(stage, usize::MAX).iter().map(|entry| Id(entry.key)).collect()
    }

    /// One case without its payload. Blocks on the disk.
    pub fn show(&self, id: Id) -> Result<CaseDocument, QueueError> {
        let (entry, stored) = self.read(id)?;
        let case = from_cbor::<Case>(&stored.header, MESSAGE_BYTES_MAX).map_err(|_| QueueError::Damaged(id))?;
        let verdict = stored.verdict.as_deref().map(|verdict| from_cbor(verdict, MESSAGE_BYTES_MAX));
        let verdict = verdict.transpose().map_err(|_| QueueError::Damaged(id))?;
        Ok(CaseDocument { line: self.line(&entry, &stored), case, verdict })
    }

    /// The sample as it came. Blocks on the disk.
    pub fn payload(&self, id: Id) -> Result<Bytes, QueueError> {
        let (entry, stored) = self.read(id)?;
        match entry.state {
            State::Answered { .. } => Err(QueueError::PayloadGone(id)),
            _ => Ok(stored.payload),
        }
    }

    #[must_use]
    pub fn stats(&self) -> Stats {
        let (now, limits) = (self.outbox.figures(), self.outbox.limits());
        let cases = [("waiting", now.waiting), ("answered", now.answered), ("dead", now.dead)];
        Stats {
            cases: cases.map(|(stage, count)| (stage.to_owned(), count)).into(),
            cases_max: limits.cases_max,
            bytes: now.live_bytes,
            bytes_max: limits.bytes_max,
            oldest_s: now.oldest_stored_at.map(|at| self.age_s(at)),
            disk_bytes: now.disk_bytes,
            damaged_records: now.damaged_records,
            in_memory: now.queue_broken,
        }
    }

    /// Reads the whole log and changes nothing. Blocks on the disk.
    pub fn check(&self) -> Result<CheckReport, QueueError> {
        Ok(self.outbox.inspect()?.into())
    }

    /// Lets dead letters wait again, with no failed tries.
    pub async fn requeue(&self, selection: &Selection) -> Result<Vec<Changed>, QueueError> {
        let mut changed = Vec::new();
        for id in self.selected(selection)? {
            let entry = self.outbox.lookup(id.0);
            let problem = match entry.map(|entry| entry.state) {
                None => Some(QueueError::NoCase(id).to_string()),
                Some(State::Dead) => self.outbox.requeue(id.0).await.err().map(|error| error.to_string()),
                Some(state) => Some(format!("it is no dead letter but {}", word(&Stage::from(state)))),
            };
            if let (None, Some(entry)) = (&problem, entry) {
                self.tell(Event::Stored(Waiting { sent: false, ..entry.waiting() })).await;
            }
            changed.push(Changed { id: self.id(id.0), problem });
        }
        Ok(changed)
    }

    /// Lets the dead letters wait again that an earlier version made of cases for their size. Returns how many.
    pub async fn revive(&self) -> Result<usize, QueueError> {
        let queue = self.clone();
        let given_up = |stored: &StoredCase| stored.dead.as_deref().is_some_and(given_up_for_size);
        let look = move || {
            let dead = queue.outbox.dead_letters(usize::MAX).into_iter().map(|entry| entry.key);
            dead.filter(|key| matches!(queue.outbox.look(*key), Ok(Some(stored)) if given_up(&stored)))
                .map(Id)
                .collect()
        };
        let ids: Vec<Id> = tokio::task::spawn_blocking(look).await.map_err(std::io::Error::other)?;
        let mut revived = 0;
        for ids in ids.chunks(CHANGES_MAX) {
            let changed = self.requeue(&Selection { ids: ids.to_vec(), all_dead: false }).await?;
            revived += changed.iter().filter(|one| one.problem.is_none()).count();
        }
        Ok(revived)
    }

    /// Ends cases for good: they are neither sent nor answered.
    pub async fn drop_cases(&self, selection: &Selection) -> Result<Vec<Changed>, QueueError> {
        let mut changed = Vec::new();
        for id in self.selected(selection)? {
            let problem = match self.outbox.lookup(id.0) {
                None => Some(QueueError::NoCase(id).to_string()),
                Some(_) => self.outbox.forget(id.0).await.err().map(|error| error.to_string()),
            };
            if problem.is_none() {
                self.tell(Event::Closed { key: id.0, spoken: false }).await;
                if let Some(running) = &self.running {
                    running.figures.count_dropped(Dropped::Operator);
                }
            }
            changed.push(Changed { id: self.id(id.0), problem });
        }
        Ok(changed)
    }

    /// Makes everything durable; for a stopped agent's outbox that this process opened.
    pub async fn close(self) {
        self.outbox.close().await;
    }

    fn selected(&self, selection: &Selection) -> Result<Vec<Id>, QueueError> {
        if selection.ids.len() > CHANGES_MAX {
            return Err(QueueError::TooMany(selection.ids.len()));
        }
        let mut ids = selection.ids.clone();
        if selection.all_dead {
            ids.extend(self.outbox.dead_letters(CHANGES_MAX).iter().map(|entry| Id(entry.key)));
        }
        Ok(ids)
    }

    async fn tell(&self, event: Event) {
        if let Some(running) = &self.running {
            // Without an engine the agent is stopping; the next start finds what is on the disk.
            drop(running.events.send(event).await);
        }
    }

    fn entries(&self, stage: Option<Stage>, n: usize) -> Vec<Entry> {
        self.outbox.all(n, |entry| stage.is_none_or(|stage| Stage::from(entry.state) == stage))
    }

    fn read(&self, id: Id) -> Result<(Entry, StoredCase), QueueError> {
        let entry = self.outbox.lookup(id.0).ok_or(QueueError::NoCase(id))?;
        match self.outbox.look(id.0) {
            Ok(Some(stored)) => Ok((entry, stored)),
            Ok(None) => Err(QueueError::NoCase(id)),
            Err(ReadError::Damaged) => Err(QueueError::Damaged(id)),
            Err(ReadError::Io(error)) => Err(error.into()),
        }
    }

    fn line(&self, entry: &Entry, stored: &StoredCase) -> CaseLine {
        match from_cbor::<Case>(&stored.header, MESSAGE_BYTES_MAX) {
            Ok(case) => CaseLine {
                id: case.id,
                source: Some(case.source),
                reason: Some(case.decision.reason),
                ..self.bare_line(entry, stored.dead.clone())
            },
            Err(error) => self.bare_line(entry, Some(error.to_string())),
        }
    }

    fn bare_line(&self, entry: &Entry, note: Option<String>) -> CaseLine {
        CaseLine {
            id: self.id(entry.key),
            stage: entry.state.into(),
            age_s: self.age_s(entry.stored_at),
            payload_bytes: entry.payload_bytes.into(),
            tries: entry.attempts,
            source: None,
            reason: None,
            note,
        }
    }

    fn id(&self, key: CaseKey) -> CaseId {
        CaseId { device: self.device.clone(), key }
    }

    fn age_s(&self, at: Moment) -> u64 {
        self.clock.now().since(at).as_secs()
    }
}

#[cfg(test)]
mod tests {
    use hedge_core::outbox::WhenFull;
    use hedge_proto::Epoch;

    use super::*;
    use hedge_outbox::NewCase;

    const LIMITS: Limits = Limits {
        cases_max: 10,
        bytes_max: 1024 * 1024,
        free_bytes_min: 0,
        payload_bytes_max: 1024,
        when_full: WhenFull::RefuseNew,
    };

    #[tokio::test]
    async fn what_an_earlier_version_gave_up_for_its_size_waits_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let queue = Queue::stopped(dir.path(), LIMITS, DeviceId::new("dev").expect("valid")).expect("opened");
        let key = |sequence| CaseKey { epoch: Epoch(1), sequence };
        let reasons = [
            "104823 bytes are more than the 100000 the broker takes",
            "2000823 bytes are more than the 100000 that broker and cloud take; give `[payloads] url` another way for it",
            "the cloud takes no payload of this size (413)",
            "unreadable",
        ];
        for (sequence, reason) in (0..).zip(reasons) {
            let (stored_at, payload) = (Moment(0), Bytes::from_static(b"sample"));
            let case = NewCase { key: key(sequence), sort_key: 0.0, stored_at, header: Vec::new(), payload };
            queue.outbox.store(case).await.expect("stored");
            queue.outbox.dead(key(sequence), reason).await.expect("buried");
        }
        assert_eq!(queue.revive().await.expect("looked at"), 3);
        let dead: Vec<_> = queue.ids(Some(Stage::Dead)).iter().map(|id| id.0.sequence).collect();
        assert_eq!((dead, queue.ids(Some(Stage::Waiting)).len()), (vec![3], 3));
        assert_eq!(queue.revive().await.expect("looked at"), 0);
        queue.close().await;
    }

    #[tokio::test]
    async fn all_dead_letters_are_dropped_in_one_go_and_nothing_else() {
        let dir = tempfile::tempdir().expect("a folder");
        let device = DeviceId::new("dev").expect("valid");
        let queue = Queue::stopped(dir.path(), LIMITS, device).expect("opened");
        let key = |sequence| CaseKey { epoch: Epoch(1), sequence };
        for sequence in 0..4 {
            let (stored_at, payload) = (Moment(0), Bytes::from_static(b"sample"));
            let case = NewCase { key: key(sequence), sort_key: 0.0, stored_at, header: Vec::new(), payload };
            queue.outbox.store(case).await.expect("stored");
        }
        for sequence in 1..3 {
            queue.outbox.dead(key(sequence), "unreadable").await.expect("buried");
        }
        let changed = queue.drop_cases(&Selection { ids: Vec::new(), all_dead: true }).await.expect("dropped");
        assert_eq!(changed.len(), 2);
        assert!(changed.iter().all(|case| case.problem.is_none()));
        let left: Vec<_> = queue.ids(None).iter().map(|id| id.0.sequence).collect();
        assert!(left.len() == 2 && left.contains(&0) && left.contains(&3), "{left:?}");
        queue.close().await;
    }
}
