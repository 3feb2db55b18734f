//! Takes in what arrives, on one thread that owns the records.
//!
//! ```text
//! message ─► gate ─► turns by device ─┐
//!               └► turned away: busy  ├─► decide ─► one commit ─► PUBACK ─► replies ─► jobs for the models
//! outcome of a model ─────────────────┘
//! ```
//! Events that lie ready share a commit, at most as many as are decided in `BATCH_MAX`: whoever floods waits for its
//! next turn, and nobody waits for it. Nothing is acknowledged or answered before it, so a message is
//! either on record or will be sent again by its device. Which answer a case gets is decided in [`decide`];
//! topics and sessions are the link's, inference is the model's.
//!
//! A case whose task has no model here is recorded and held until a later start has one; a bound keeps such
//! cases from filling the disk.

pub mod decide;
mod desk;
mod gate;
mod lanes;
mod settings;

use std::time::{Duration, Instant};

use hedge_proto::{DeviceId, DownMessage, Topic, Topics};
use tokio::sync::{mpsc, watch};

use crate::message::{Incoming, Settled};
use crate::model::{Job, Outcome, Workers};
use crate::payloads::Storage;
use crate::presence::Heard;
use crate::reply::Reply;
use crate::store::{Keep, StoreError, Totals, Waiting, Writer};
use crate::turns::Turns;
use crate::wall_ms;
use decide::BUSY_S;
use desk::{Desk, Effects};
use gate::Gate;
pub use gate::{Admission, Shut};
use lanes::{Entry, Lanes};

/// How many events share one commit: a broker's window for a few hundred devices.
const EVENTS_PER_COMMIT_MAX: usize = 256;

/// How many events may lie before the intake. The broker's window ([`crate::link::RECEIVE_MAX`]) and the
/// models' queues must fit, for neither may wait on the other. What does not fit is turned away by the link.
pub const EVENTS_MAX: usize = 1024;

/// How many messages wait for their turn here: one device alone gets half, more than the broker's window.
const MESSAGES_MAX: usize = 512;
const MESSAGES_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// After this long no further message joins a commit: what a good device may wait for a flood's turn.
const BATCH_MAX: Duration = Duration::from_millis(10);

/// How often the intake looks after what nobody waits for.
pub const TICK: Duration = Duration::from_secs(1);

/// Every how many ticks the age and size of the records are looked at.
const PRUNE_TICKS: u64 = 10;

/// Figures alone are committed at most this often: what changes nothing else needs no sync of its own.
const FIGURES_EVERY: Duration = Duration::from_millis(50);

/// Something that has happened.
pub enum Event {
    Message(Incoming),
    Outcome(Box<Outcome>),
    /// Time to look after the records.
    Tick,
    /// No more is taken in. What lies before this is still committed.
    Stop,
}

/// Why the intake ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the model for `{0}` has died; see the log above for why")]
    ModelGone(String),
}

impl From<Box<Outcome>> for Event {
    fn from(outcome: Box<Outcome>) -> Self {
        Self::Outcome(outcome)
    }
}

/// Where the intake's effects go.
pub struct Outlets {
    pub settled: mpsc::Sender<Settled>,
    pub replies: mpsc::Sender<Reply>,
    /// Counts commits, for those who show the records.
    pub commits: watch::Sender<u64>,
    /// Whether the records can be written.
    pub healthy: watch::Sender<bool>,
    pub heard: Heard,
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
    gate: Gate,
    messages: Turns<Incoming>,
    ticks: u64,
    /// When figures were committed last, and whether they have changed since.
    figures: (Instant, bool),
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
        shut: Shut,
    ) -> Result<Self, StoreError> {
        let totals = writer.totals()?;
        let lanes = Lanes::new(workers.keys().cloned(), writer.waiting()?, keep.payload_bytes_max);
        Ok(Self {
            writer,
            totals,
            topics,
            keep,
            lanes,
            workers,
            payloads,
            outlets,
            gate: Gate::new(shut),
            messages: Turns::by_bytes(MESSAGES_MAX, MESSAGES_BYTES_MAX),
            ticks: 0,
            figures: (Instant::now(), false),
        })
    }

    /// Works until [`Event::Stop`] or until every sender has gone. Blocks: give it a thread.
    pub fn run(mut self, events: &mut mpsc::Receiver<Event>) -> Result<(), IntakeError> {
        if self.lanes.open() + self.lanes.held() > 0 {
            tracing::info!(
                unanswered = self.lanes.open(),
                without_model = self.lanes.held(),
                "cases left over from the last run"
            );
        }
        let mut heard = Vec::with_capacity(EVENTS_PER_COMMIT_MAX);
        let mut stopping = false;
        self.dispatch()?;
        loop {
            if self.messages.is_empty() {
                if stopping || events.blocking_recv_many(&mut heard, EVENTS_PER_COMMIT_MAX) == 0 {
                    return Ok(());
                }
            } else {
                let ready = std::iter::from_fn(|| events.try_recv().ok());
                heard.extend(ready.take(EVENTS_PER_COMMIT_MAX));
            }
            let mut others = Vec::new();
            for event in heard.drain(..) {
                match event {
                    Event::Message(message) => self.line_up(message),
                    Event::Stop => stopping = true,
                    other => others.push(other),
                }
            }
            self.take(others);
            if !stopping {
                self.dispatch()?;
            }
        }
    }

    /// Puts a message where it waits for its device's turn, or turns it away.
    fn line_up(&mut self, message: Incoming) {
        let (device, bytes) = (self.about(&message), message.payload.len() as u64);
        if self.messages.has_room(&device, bytes) {
            self.messages.put(&device, message, bytes);
        } else {
            self.gate.shut_out(&device, Instant::now());
            self.turn_away(message);
        }
    }

    /// The next message that is looked at. What a device has sent before it was shut out is turned away, too; an
    /// operator's word is nothing that its device is made to pay for.
    fn next_message(&mut self, now: Instant) -> Option<Incoming> {
        while let Some(message) = self.messages.pop() {
            let topic = self.topics.read(&message.topic);
            match topic.as_ref().and_then(Topic::sender).map(|from| (from, self.gate.shut.way(from, now))) {
                None | Some((_, Admission::In)) => return Some(message),
                Some((_, Admission::Away)) => self.turn_away(message),
                Some((from, Admission::AwayAndTold)) => {
                    self.reply(Reply { device: from.clone(), message: DownMessage::Busy { after_s: BUSY_S } });
                    self.turn_away(message);
                }
            }
        }
        None
    }

    fn put_back(&mut self, message: Incoming) {
        let (device, bytes) = (self.about(&message), message.payload.len() as u64);
        self.messages.put_back(&device, message, bytes);
    }

    /// With whose messages it waits.
    fn about(&self, message: &Incoming) -> DeviceId {
        match self.topics.read(&message.topic) {
            Some(Topic::DownDesired(device)) => device,
            Some(topic) => topic.sender().cloned().unwrap_or_else(nobody),
            None => nobody(),
        }
    }

    fn turn_away(&self, message: Incoming) {
        if let Some(receipt) = message.receipt {
            self.settle(Settled { receipt, taken: false });
        }
    }

    /// One commit, and what follows from it.
    fn take(&mut self, others: Vec<Event>) {
        let before = self.totals;
        let mut effects = Effects::default();
        let now = Instant::now();
        let mut messages: Vec<Incoming> =
            std::iter::from_fn(|| self.next_message(now)).take(EVENTS_PER_COMMIT_MAX).collect();
        let mut decided = 0;
        let committed = self.commit(&others, &messages, &mut decided, &mut effects);
        if committed.is_err() {
            // All of them are told to come again; looking at the rest now would fail in the same way.
            decided = messages.len();
            messages.iter().for_each(|message| effects.concern(&self.about(message)));
        }
        // What there was no time for keeps its place, unless its device was shut out meanwhile.
        for message in messages.split_off(decided.min(messages.len())).into_iter().rev() {
            self.put_back(message);
        }
        for message in messages {
            if let Some(receipt) = message.receipt {
                self.settle(Settled { receipt, taken: committed.is_ok() });
            }
        }
        for event in others {
            let Event::Outcome(outcome) = event else { continue };
            let (case, bytes) = (outcome.case, outcome.payload_bytes);
            self.lanes.took(&case.task, outcome.took);
            if committed.is_ok() {
                self.lanes.release(&case.task, &case.id.device, bytes);
            } else {
                self.lanes.put_back(&case.task, Entry { id: case.id, bytes, left_over: false });
            }
        }
        match committed {
            Ok(changed) => self.follow(effects, changed),
            Err(error) => {
                tracing::error!("{error}; devices are told to wait");
                self.totals = before;
                self.totals.busy += effects.cases_seen;
                for waiting in &effects.new_work {
                    self.lanes.release(&waiting.task, &waiting.id.device, waiting.bytes);
                }
                self.outlets.healthy.send_if_modified(|healthy| std::mem::replace(healthy, false));
                effects.into_busy().into_messages().into_iter().for_each(|reply| self.reply(reply));
            }
        }
    }

    /// Decides on `others`, and on messages by turns for as long as there is time. `true`: something was written.
    fn commit(
        &mut self,
        others: &[Event],
        messages: &[Incoming],
        decided: &mut usize,
        effects: &mut Effects,
    ) -> Result<bool, StoreError> {
        let (now_ms, begun, before) = (wall_ms(), Instant::now(), self.totals);
        self.totals.busy += self.gate.shut.take_turned_away();
        let batch = self.writer.batch()?;
        let mut desk = Desk {
            batch: &batch,
            topics: &self.topics,
            lanes: &mut self.lanes,
            gate: &mut self.gate,
            payloads: &self.payloads,
            heard: &self.outlets.heard,
            totals: &mut self.totals,
            effects,
            now_ms,
            begun,
        };
        for event in others {
            match event {
                Event::Outcome(outcome) => desk.outcome(outcome)?,
                Event::Tick => {
                    self.ticks += 1;
                    if self.ticks % PRUNE_TICKS == 1 {
                        desk.prune(&self.keep)?;
                        if let Err(error) = self.payloads.prune(now_ms) {
                            tracing::warn!("old payloads cannot be looked for: {error}");
                        }
                    }
                }
                Event::Message(_) | Event::Stop => {}
            }
        }
        for message in messages {
            desk.message(message)?;
            *decided += 1;
            if begun.elapsed() >= BATCH_MAX {
                break;
            }
        }
        let (at, changed) = self.figures;
        let figures = changed || self.totals != before;
        // While nothing can be written, each try is also a question whether it can be again.
        let tries = !*self.outlets.healthy.borrow();
        if !tries && !batch.has_changed() && (!figures || begun.saturating_duration_since(at) < FIGURES_EVERY) {
            self.figures = (at, figures);
            return Ok(false);
        }
        batch.set_totals(&self.totals)?;
        batch.commit()?;
        self.figures = (begun, false);
        Ok(true)
    }

    fn follow(&mut self, effects: Effects, changed: bool) {
        if changed {
            self.outlets.healthy.send_if_modified(|healthy| !std::mem::replace(healthy, true));
            self.outlets.commits.send_modify(|commits| *commits += 1);
        }
        effects.taken_payloads.iter().for_each(|sum| self.payloads.remove(*sum));
        for Waiting { id, task, bytes } in effects.new_work {
            self.lanes.put(&task, Entry { id, bytes, left_over: false });
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
            while let Some(entry) = self.lanes.next(task, |device| worker.has_room(device)) {
                let job = match prepare(&mut self.writer, &mut self.totals, &entry) {
                    Ok(Some(job)) => job,
                    Ok(None) => {
                        self.lanes.release(task, &entry.id.device, entry.bytes);
                        continue;
                    }
                    Err(error) => {
                        tracing::error!("{error}; the models wait");
                        self.lanes.put_back(task, entry);
                        self.outlets.healthy.send_replace(false);
                        return Ok(());
                    }
                };
                if !worker.put(job) {
                    return Err(IntakeError::ModelGone(task.clone()));
                }
            }
        }
        Ok(())
    }
}

/// Under whose name messages wait whose topics name no device.
fn nobody() -> DeviceId {
    #[expect(clippy::expect_used, reason = "a dash is a name")]
    DeviceId::new("-").expect("a name")
}

/// Fetches a case for its model; `None` if it can no longer be run.
fn prepare(writer: &mut Writer, totals: &mut Totals, entry: &Entry) -> Result<Option<Job>, StoreError> {
    if let Some((case, payload)) = writer.load(&entry.id)? {
        return Ok(Some(Job { case, payload, left_over: entry.left_over }));
    }
    tracing::warn!(case = %entry.id, "the payload is no longer here; the case cannot be answered");
    let batch = writer.batch()?;
    batch.fail(&entry.id, "the payload is no longer kept here")?;
    totals.waiting = totals.waiting.saturating_sub(1);
    totals.failed += 1;
    batch.set_totals(totals)?;
    batch.commit()?;
    Ok(None)
}
