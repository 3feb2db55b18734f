//! Takes in what arrives, on one thread that owns the records.
//!
//! ```text
//! event(s) ─► decide ─► one commit ─► PUBACK ─► replies ─► jobs for the models
//! ```
//! Events that lie ready share a commit. Nothing is acknowledged or answered before it, so a message is
//! either on record or will be sent again by its device. Which answer a case gets is decided in [`decide`];
//! topics and sessions are the link's, inference is the model's.
//!
//! A case whose task has no model here is recorded and held until a later start has one; a bound keeps such
//! cases from filling the disk.

pub mod decide;
mod desk;
mod lanes;
mod settings;

use std::sync::mpsc::TrySendError;
use std::time::Duration;

use bytes::Bytes;
use hedge_proto::Topics;
use tokio::sync::{mpsc, watch};

use crate::link::Receipt;
use crate::model::{Job, Outcome, Workers};
use crate::payloads::Storage;
use crate::reply::Reply;
use crate::store::{Keep, StoreError, Totals, Writer};
use crate::wall_ms;
use desk::{Desk, Effects};
use lanes::{Entry, Lanes};

/// How many events share one commit: a broker's window for a few hundred devices.
const EVENTS_PER_COMMIT_MAX: usize = 256;

/// How many events may lie before the intake. The broker's window ([`crate::link::RECEIVE_MAX`]) and the
/// models' queues must fit, for neither may wait on the other.
pub const EVENTS_MAX: usize = 1024;

/// How often the age and size of the records are looked at.
pub const TICK: Duration = Duration::from_secs(10);

/// Runs begun on a case left over by a process that died, before the case is called dead.
const ATTEMPTS_MAX: u32 = 3;

/// Something that has happened.
pub enum Event {
    Message(Incoming),
    Outcome(Box<Outcome>),
    /// Time to look after the records.
    Tick,
    /// No more is taken in. What lies before this is still committed.
    Stop,
}

/// One MQTT message as it came.
pub struct Incoming {
    pub topic: String,
    pub payload: Bytes,
    /// To be settled exactly once; absent for QoS 0.
    pub receipt: Option<Receipt>,
}

/// A message that needs nothing more from the broker.
pub struct Settled {
    pub receipt: Receipt,
    /// `false`: it could not be recorded, and the device was told to wait.
    pub taken: bool,
}

/// Why the intake ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the model for `{0}` has died; see the log above for why")]
    ModelGone(String),
}

/// Where the intake's effects go.
pub struct Outlets {
    pub settled: mpsc::Sender<Settled>,
    pub replies: mpsc::Sender<Reply>,
    /// Counts commits, for those who show the records.
    pub commits: watch::Sender<u64>,
    /// Whether the records can be written.
    pub healthy: watch::Sender<bool>,
}

/// The intake before it runs.
pub struct Intake {
    writer: Writer,
    totals: Totals,
    topics: Topics,
    keep: Keep,
    lanes: Lanes,
    workers: Workers,
    payloads: Storage,
    outlets: Outlets,
}

impl Intake {
    /// Opens the work left over by the last process.
    pub fn new(
        writer: Writer,
        topics: Topics,
        keep: Keep,
        workers: Workers,
        payloads: Storage,
        outlets: Outlets,
    ) -> Result<Self, StoreError> {
        let totals = writer.totals()?;
        let lanes = Lanes::new(workers.keys().cloned(), writer.waiting()?);
        Ok(Self { writer, totals, topics, keep, lanes, workers, payloads, outlets })
    }

    /// Works until [`Event::Stop`] or until every sender has gone. Blocks: give it a thread.
    pub fn run(mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), IntakeError> {
        if self.lanes.left_over() + self.lanes.held() > 0 {
            tracing::info!(
                unanswered = self.lanes.left_over(),
                without_model = self.lanes.held(),
                "cases left over from the last run"
            );
        }
        let mut ready = Vec::with_capacity(EVENTS_PER_COMMIT_MAX);
        self.dispatch()?;
        while events.blocking_recv_many(&mut ready, EVENTS_PER_COMMIT_MAX) > 0 {
            let stopping = ready.iter().any(|event| matches!(event, Event::Stop));
            self.take(&mut ready)?;
            if stopping {
                return Ok(());
            }
            self.dispatch()?;
        }
        Ok(())
    }

    /// One commit, and what follows from it.
    fn take(&mut self, ready: &mut Vec<Event>) -> Result<(), IntakeError> {
        let before = self.totals;
        let mut effects = Effects::default();
        let committed = self.commit(ready, &mut effects);
        for event in ready.drain(..) {
            match event {
                Event::Message(Incoming { receipt: Some(receipt), .. }) => {
                    self.settle(Settled { receipt, taken: committed.is_ok() });
                }
                Event::Outcome(outcome) => {
                    self.lanes.finished(&outcome.case.task);
                    if committed.is_err() {
                        let entry = Entry { id: outcome.case.id.clone(), left_over: false };
                        self.lanes.put_back(&outcome.case.task, entry);
                    }
                }
                Event::Message(_) | Event::Tick | Event::Stop => {}
            }
        }
        match committed {
            Ok(()) => self.follow(effects),
            Err(error) => {
                tracing::error!("{error}; devices are told to wait");
                self.totals = before;
                self.totals.busy += effects.cases_seen;
                self.outlets.healthy.send_if_modified(|healthy| std::mem::replace(healthy, false));
                effects.into_busy().into_messages().into_iter().for_each(|reply| self.reply(reply));
            }
        }
        Ok(())
    }

    fn commit(&mut self, ready: &[Event], effects: &mut Effects) -> Result<(), StoreError> {
        let now_ms = wall_ms();
        let batch = self.writer.batch()?;
        let mut desk = Desk::new(&batch, &self.topics, &self.lanes, &self.payloads, &mut self.totals, effects, now_ms);
        for event in ready {
            match event {
                Event::Message(message) => desk.message(message)?,
                Event::Outcome(outcome) => desk.outcome(outcome)?,
                Event::Tick => {
                    desk.prune(&self.keep)?;
                    if let Err(error) = self.payloads.prune(now_ms) {
                        tracing::warn!("old payloads cannot be looked for: {error}");
                    }
                }
                Event::Stop => {}
            }
        }
        batch.set_totals(&self.totals)?;
        batch.commit()
    }

    fn follow(&mut self, effects: Effects) {
        self.outlets.healthy.send_if_modified(|healthy| !std::mem::replace(healthy, true));
        self.outlets.commits.send_modify(|commits| *commits += 1);
        effects.taken_payloads.iter().for_each(|sum| self.payloads.remove(*sum));
        for waiting in effects.new_work {
            self.lanes.put(&waiting.task, Entry { id: waiting.id, left_over: false });
        }
        effects.replies.into_messages().into_iter().for_each(|reply| self.reply(reply));
    }

    fn settle(&self, settled: Settled) {
        // Room for every receipt of one connection; a full or closed channel means that connection has gone.
        if self.outlets.settled.try_send(settled).is_err() {
            tracing::debug!("an acknowledgement came too late for its connection");
        }
    }

    fn reply(&self, reply: Reply) {
        // The device asks again for what it does not hear.
        if self.outlets.replies.try_send(reply).is_err() {
            tracing::debug!("a reply was dropped: the link takes no more now");
        }
    }

    /// Gives the models what they can take.
    fn dispatch(&mut self) -> Result<(), IntakeError> {
        if !*self.outlets.healthy.borrow() {
            return Ok(());
        }
        for (task, worker) in &self.workers {
            while let Some(entry) = self.lanes.next(task) {
                let job = match prepare(&mut self.writer, &mut self.totals, &entry) {
                    Ok(Some(job)) => job,
                    Ok(None) => continue,
                    Err(error) => {
                        tracing::error!("{error}; the models wait");
                        self.lanes.put_back(task, entry);
                        self.outlets.healthy.send_replace(false);
                        return Ok(());
                    }
                };
                match worker.try_send(job) {
                    Ok(()) => self.lanes.started(task),
                    Err(TrySendError::Full(_)) => {
                        self.lanes.put_back(task, entry);
                        break;
                    }
                    Err(TrySendError::Disconnected(_)) => return Err(IntakeError::ModelGone(task.clone())),
                }
            }
        }
        Ok(())
    }
}

/// Fetches a case for its model; `None` if it is not to be run after all.
fn prepare(writer: &mut Writer, totals: &mut Totals, entry: &Entry) -> Result<Option<Job>, StoreError> {
    if entry.left_over && !begin_again(writer, totals, entry)? {
        return Ok(None);
    }
    if let Some((case, payload)) = writer.load(&entry.id)? {
        return Ok(Some(Job { case, payload }));
    }
    tracing::warn!(case = %entry.id, "the payload is no longer here; the case cannot be answered");
    lose(writer, totals, entry)?;
    Ok(None)
}

/// Notes on disk that a left-over case is tried, before the model sees it: if it is what killed the last
/// process, it must not kill every following one. `false`: it was tried too often and is dead now.
fn begin_again(writer: &mut Writer, totals: &mut Totals, entry: &Entry) -> Result<bool, StoreError> {
    let batch = writer.batch()?;
    let tried = batch.attempt(&entry.id)? > ATTEMPTS_MAX;
    if tried {
        batch.kill(&entry.id, &format!("the model ended {ATTEMPTS_MAX} times while it had this case"))?;
        totals.waiting = totals.waiting.saturating_sub(1);
        totals.dead += 1;
        batch.set_totals(totals)?;
    }
    batch.commit()?;
    Ok(!tried)
}

fn lose(writer: &mut Writer, totals: &mut Totals, entry: &Entry) -> Result<(), StoreError> {
    let batch = writer.batch()?;
    batch.fail(&entry.id, "the payload is no longer kept here")?;
    totals.waiting = totals.waiting.saturating_sub(1);
    totals.failed += 1;
    batch.set_totals(totals)?;
    batch.commit()
}
