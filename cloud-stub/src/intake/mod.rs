//! Takes in what arrives, on one thread that owns the records.
//!
//! ```text
//! message ─► gate ─► turns by device ─┐
//!               └► turned away: busy  ├─► decide ─► one commit ─► PUBACK ─► replies ─► jobs for the models
//! outcome of an answerer, a person's ─┘
//! ```
//! Outcomes do not wait behind messages: the more cases came in, the fewer would be answered.
//!
//! What lies ready shares a commit, and while commits follow each other what comes within `COMMIT_EVERY`; of messages at
//! most as many as are decided in `BATCH_MAX`: whoever floods waits for its next turn, and nobody waits for it. Nothing is
//! acknowledged or answered before it, so a message is either on record or will be sent again by its device. Which answer
//! a case gets is decided in [`decide`]; topics and sessions are the link's, inference is the model's.
//!
//! A case whose task has no model here is recorded and held until a later start has one; a bound keeps such
//! cases from filling the disk.

mod ages;
mod corrections;
pub mod decide;
mod delete;
mod desk;
mod event;
mod fleet_checks;
mod forms;
mod gate;
mod lanes;
mod line;
mod outcome;
mod panels;
mod settings;
mod trends;

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hedge_proto::{CaseId, DeviceId, DownMessage, Topics};
use tokio::runtime::Handle;
use tokio::sync::oneshot;

use crate::answerers::Ledger;
use crate::message::{Incoming, Settled};
use crate::model::Panels;
use crate::payloads::Storage;
use crate::reply::Reply;
use crate::store::{Keep, StoreError, Totals, Waiting, Writer};
use crate::turns::Turns;
use crate::wall_ms;
use ages::Ages;
use corrections::Corrections;
pub use delete::{DELETED_AT_ONCE_MAX, Unwanted};
use desk::{Desk, Effects};
use event::ARRIVED_MAX;
pub use event::{Event, Inlets, NotReviewed, Outlets, Review};
use fleet_checks::FleetChecks;
pub use forms::Enough;
use gate::Gate;
pub use gate::{Admission, Shut};
use lanes::{Entry, Lanes};
use outcome::Decided;
pub use panels::{AnswererNow, Taking};
use trends::{Due, Trends};

/// How many messages share one commit: a broker's window for a few hundred devices.
const MESSAGES_PER_COMMIT_MAX: usize = 256;

/// How many acknowledgements may lie before the link: one for each message that was read and is not in its hands again.
pub const SETTLED_MAX: usize = 2 * (ARRIVED_MAX + MESSAGES_MAX + MESSAGES_PER_COMMIT_MAX);

/// How many messages wait for their turn here: one device alone gets half, more than the broker's window.
const MESSAGES_MAX: usize = 512;
const MESSAGES_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// After this long no further message joins a commit: what a good device may wait for a flood's turn.
const BATCH_MAX: Duration = Duration::from_millis(10);

/// Commits begin this far apart while more keeps coming. A commit writes a whole page of each index for nearly every case,
/// however few they are, and a disk that syncs at once would get one for each handful.
const COMMIT_EVERY: Duration = Duration::from_millis(10);

/// Who waits for more looks this often, for to be woken by each message would cost what the commits save; and waits no
/// longer once nothing came, as when the broker's window is used up.
const MORE_EVERY: Duration = Duration::from_millis(2);

/// How often the intake looks after what nobody waits for.
pub const TICK: Duration = Duration::from_secs(1);

/// Every how many ticks the age and size of the records are looked at.
const PRUNE_TICKS: u64 = 10;

/// Figures alone are committed at most this often: what changes nothing else needs no sync of its own.
const FIGURES_EVERY: Duration = Duration::from_millis(50);

/// Why the intake ends before it is told to.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the model for `{0}` has died; see the log above for why")]
    ModelGone(String),
}

/// What is committed besides messages.
#[derive(Default)]
struct Others {
    outcomes: Vec<Decided>,
    reviews: Vec<Reviewed>,
    unwanted: Vec<Unwanted>,
    is_tick: bool,
    trends: Due,
}

/// A person's word, whom to tell, and, if it was taken, how many bytes the payload has of a case that waited for it.
struct Reviewed {
    review: Review,
    told: oneshot::Sender<Result<(), NotReviewed>>,
    taken: Result<Option<u64>, NotReviewed>,
}

/// The intake before it runs.
pub struct Intake {
    writer: Writer,
    totals: Totals,
    /// How many are on record: to count them takes the longer the more there are.
    devices: u64,
    topics: Topics,
    keep: Keep,
    lanes: Lanes,
    panels: Panels,
    ledger: Ledger,
    enough: Enough,
    /// What was asked of an answerer and has not come back.
    under_way: HashMap<CaseId, Entry>,
    /// Whether the records can be written.
    is_healthy: bool,
    /// What was said last when an answerer failed, by task and place.
    failures: HashMap<(String, usize), String>,
    corrections: Corrections,
    fleet_checks: FleetChecks,
    payloads: Storage,
    outlets: Outlets,
    gate: Gate,
    messages: Turns<Incoming>,
    trends: Trends,
    ages: Ages,
    ticks: u64,
    /// When figures were committed last, and whether they have changed since.
    figures: (Instant, bool),
    /// What a commit that failed had taken in. A server may have carried it out all the same, and not been heard.
    in_doubt: Option<Vec<Waiting>>,
}

impl Intake {
    /// Opens the work left over by the last process.
    pub fn new(
        writer: Writer,
        topics: Topics,
        (keep, enough): (Keep, Enough),
        panels: Panels,
        ledger: Ledger,
        payloads: Storage,
        outlets: Outlets,
    ) -> Result<Self, StoreError> {
        let (totals, devices) = (writer.totals()?, writer.device_count()?);
        let stands = |case: &Waiting| panels::stands_in(&panels, case);
        let corrections = Corrections::new(writer.unheard()?);
        let lanes = Lanes::new(panels.keys().cloned(), writer.waiting()?, keep.payload_bytes_max, stands);
        let ages = Ages::new(writer.newest_ms()?, wall_ms(), Instant::now());
        Ok(Self {
            writer,
            totals,
            devices,
            topics,
            keep,
            lanes,
            panels,
            ledger,
            enough,
            under_way: HashMap::new(),
            is_healthy: true,
            failures: HashMap::new(),
            corrections,
            fleet_checks: FleetChecks::default(),
            payloads,
            gate: Gate::new(outlets.shut.clone()),
            outlets,
            messages: Turns::by_bytes(MESSAGES_MAX, MESSAGES_BYTES_MAX),
            trends: Trends::default(),
            ages,
            ticks: 0,
            figures: (Instant::now(), false),
            in_doubt: None,
        })
    }

    /// Works until [`Event::Stop`] or until every sender has gone. Blocks: give it a thread.
    pub fn run(mut self, inlets: &mut Inlets, runtime: &Handle) -> Result<(), IntakeError> {
        if self.lanes.open() + self.lanes.held() + self.lanes.in_review() > 0 {
            tracing::info!(
                unanswered = self.lanes.open(),
                without_model = self.lanes.held(),
                in_review = self.lanes.in_review(),
                "cases left over from the last run"
            );
        }
        let mut stopping = false;
        let mut begun: Option<Instant> = None;
        self.dispatch()?;
        loop {
            // What finds no place because of all the others stays where it is, and holds up the link, and the link the
            // broker. One device that fills its own share is turned away.
            let room = if stopping { 0 } else { MESSAGES_PER_COMMIT_MAX.min(self.messages.items_left()) };
            let (mut events, mut messages) = inlets.take(room);
            if events.is_empty() && messages.is_empty() && self.messages.is_empty() {
                if stopping {
                    return Ok(());
                }
                let (said, is_heard) = (&self.outlets.replies, self.is_heard());
                let next = runtime.block_on(async {
                    tokio::select! {
                        next = inlets.wait() => next,
                        _ = said.reserve_many(said.max_capacity() / 2), if !is_heard => Some(Default::default()),
                    }
                });
                let Some(next) = next else { return Ok(()) };
                (events, messages) = next;
            }
            while !stopping && messages.len() < room && begun.is_some_and(|begun| begun.elapsed() < COMMIT_EVERY) {
                runtime.block_on(async { tokio::time::sleep(MORE_EVERY).await });
                let more = inlets.take(room - messages.len());
                if more.0.is_empty() && more.1.is_empty() {
                    break;
                }
                events.extend(more.0);
                messages.extend(more.1);
            }
            begun = Some(Instant::now());
            messages.into_iter().for_each(|message| self.line_up(message));
            let mut others = Others::default();
            for event in events {
                match event {
                    Event::Outcome(outcome) => others.outcomes.extend(self.decide(outcome)),
                    Event::Questioned(questioned) => self.questioned(questioned),
                    Event::Reviewed(review, told) => {
                        others.reviews.push(Reviewed { review, told, taken: Ok(None) });
                    }
                    Event::Unwanted(unwanted) => others.unwanted.push(unwanted),
                    Event::Tick => others.is_tick = true,
                    Event::Stop => stopping = true,
                }
            }
            if others.is_tick {
                self.look_after_answerers();
                self.keep_lease()?;
            }
            self.take(others);
            if !stopping && self.is_heard() {
                self.dispatch()?;
            }
        }
    }

    /// Whether the link keeps up with what is said. Otherwise no more is answered, for there is no place for the answers;
    /// messages are taken all the same, or the link, which also carries answers, would stand still over them.
    fn is_heard(&self) -> bool {
        self.outlets.replies.capacity() >= self.outlets.replies.max_capacity() / 2
    }

    /// One commit, and what follows from it.
    fn take(&mut self, mut others: Others) {
        let before = self.totals;
        let mut effects = Effects::default();
        let now = Instant::now();
        let mut messages: Vec<Incoming> =
            std::iter::from_fn(|| self.next_message(now)).take(MESSAGES_PER_COMMIT_MAX).collect();
        let mut decided = 0;
        let committed = self.commit(&mut others, &messages, &mut decided, &mut effects);
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
        let is_recorded = committed.is_ok();
        others.outcomes.into_iter().for_each(|decided| self.close(decided, is_recorded));
        for Reviewed { review, told, taken } in others.reviews {
            let taken = if is_recorded { taken } else { Err(NotReviewed::NotRecorded) };
            if let Ok(Some(bytes)) = &taken {
                self.lanes.reviewed(&review.id.device, *bytes);
            }
            if told.send(taken.map(drop)).is_err() {
                tracing::debug!("who answered a case has closed the page meanwhile");
            }
        }
        others.unwanted.into_iter().for_each(|unwanted| unwanted.close(is_recorded, &mut self.lanes));
        match committed {
            Ok(changed) => self.follow(effects, changed),
            Err(error) => {
                self.totals = before;
                self.trends.put_back(others.trends);
                self.totals.busy += effects.cases_seen;
                for waiting in &effects.new_work {
                    self.lanes.release(&waiting.task, &waiting.id.device, waiting.bytes);
                }
                self.in_doubt.get_or_insert_default().append(&mut effects.new_work);
                self.wait_because(&error, "devices are told to wait");
                effects.into_busy().into_messages().into_iter().for_each(|reply| drop(self.reply(reply)));
            }
        }
    }

    /// Decides on `others`, and on messages by turns for as long as there is time. `true`: something was written.
    fn commit(
        &mut self,
        others: &mut Others,
        messages: &[Incoming],
        decided: &mut usize,
        effects: &mut Effects,
    ) -> Result<bool, StoreError> {
        self.clear_doubt()?;
        let (now_ms, begun, before) = (wall_ms(), Instant::now(), self.totals);
        self.totals.busy += self.gate.shut.take_turned_away();
        let about: Vec<DeviceId> = messages.iter().map(|message| self.about(message)).collect();
        let of_outcomes = others.outcomes.iter().map(|decided| &decided.outcome.case.id.device);
        let of_reviews = others.reviews.iter().map(|reviewed| &reviewed.review.id.device);
        let of_unwanted = others.unwanted.iter().flat_map(|unwanted| &unwanted.ids).map(|id| &id.device);
        let of_unwanted = of_unwanted.chain(others.unwanted.iter().filter_map(|unwanted| unwanted.whole.as_ref()));
        if others.is_tick {
            self.ticks += 1;
            let is_wide = self.ticks % PRUNE_TICKS == 1;
            others.trends = if is_wide { self.trends.due_with_old(&self.writer)? } else { self.trends.due() };
        }
        let overdue = if others.is_tick { self.overdue(now_ms)? } else { Vec::new() };
        let of_others = of_outcomes.chain(of_reviews).chain(of_unwanted).chain(others.trends.devices());
        let of_others = of_others.chain(overdue.iter().map(|id| &id.device));
        let batch = self.writer.batch_about(about.iter().chain(of_others))?;
        let mut desk = Desk {
            batch: &batch,
            topics: &self.topics,
            panels: &self.panels,
            lanes: &mut self.lanes,
            gate: &mut self.gate,
            payloads: &self.payloads,
            corrections: &mut self.corrections,
            fleet_checks: &mut self.fleet_checks,
            heard: &self.outlets.heard,
            totals: &mut self.totals,
            devices: &mut self.devices,
            effects,
            traces: &self.outlets.traces,
            came: Default::default(),
            now_ms,
            begun,
        };
        for decided in &mut others.outcomes {
            desk.outcome(decided)?;
        }
        overdue.iter().try_for_each(|id| desk.make_do(id))?;
        for Reviewed { review, taken, .. } in &mut others.reviews {
            *taken = desk.reviewed(review)?;
        }
        for unwanted in &mut others.unwanted {
            unwanted.whole.iter().for_each(|device| self.trends.forget(device));
            desk.delete(unwanted)?;
        }
        if others.is_tick {
            let aged_ms = self.ages.now_ms(now_ms, begun);
            others.trends.write(&batch, aged_ms)?;
            if self.ticks % PRUNE_TICKS == 1 {
                desk.prune(&self.keep, aged_ms)?;
                if let Err(error) = self.payloads.prune(aged_ms) {
                    tracing::warn!("old payloads cannot be looked for: {error}");
                }
            }
        }
        // Outcomes take none of the messages' time: a backlog would keep all but one of them out of each commit.
        let others_done = Instant::now();
        for message in messages {
            desk.message(message)?;
            *decided += 1;
            if others_done.elapsed() >= BATCH_MAX || batch.is_full() {
                break;
            }
        }
        let (at, changed) = self.figures;
        let figures = changed || self.totals != before;
        // While nothing can be written, each try is also a question whether it can be again.
        let tries = !self.is_healthy;
        if tries {
            batch.probe()?;
        }
        if !tries && !batch.has_changed() && (!figures || begun.saturating_duration_since(at) < FIGURES_EVERY) {
            self.figures = (at, figures);
            return Ok(false);
        }
        batch.set_totals(&self.totals)?;
        let spent = panels::keep_spent(&batch, &self.ledger)?;
        batch.commit()?;
        self.ledger.recorded(spent);
        self.figures = (begun, false);
        Ok(true)
    }

    /// Finds out what became of commits that failed.
    fn clear_doubt(&mut self) -> Result<(), StoreError> {
        let Some(doubtful) = self.in_doubt.clone() else { return Ok(()) };
        let batch = self.writer.batch_about(doubtful.iter().map(|waiting| &waiting.id.device))?;
        let mut recorded = Vec::new();
        for waiting in doubtful {
            if batch.is_ours(&waiting.id)? {
                recorded.push(waiting);
            }
        }
        drop(batch);
        let busy = self.totals.busy;
        self.totals = self.writer.totals()?;
        self.totals.busy = self.totals.busy.max(busy);
        self.in_doubt = None;
        for Waiting { id, task, bytes, .. } in recorded {
            self.lanes.reserve(&task, &id.device, bytes);
            self.lanes.put(&task, Entry::new(id, bytes));
        }
        Ok(())
    }

    fn follow(&mut self, effects: Effects, changed: bool) {
        if changed {
            if !std::mem::replace(&mut self.is_healthy, true) {
                tracing::info!("the records can be used again");
                self.tell();
            }
            self.outlets.commits.send_modify(|commits| *commits += 1);
        }
        effects.trends.into_iter().for_each(|(device, stretch)| self.trends.add(device, &stretch));
        effects.traced.into_iter().for_each(|taken| self.outlets.traces.taken_in(taken));
        effects.taken_payloads.iter().for_each(|sum| self.payloads.remove(*sum));
        for Waiting { id, task, bytes, .. } in effects.new_work {
            self.lanes.put(&task, Entry::new(id, bytes));
        }
        for reply in effects.replies.into_messages() {
            if let Some(dropped) = self.reply(reply)
                && let DownMessage::Verdict(verdict) = dropped.message
            {
                self.corrections.not_sent(&verdict.id);
            }
        }
    }

    fn settle(&self, settled: Settled) {
        // There is room for every message that may have been read; without it this one comes again with the next
        // connection.
        if self.outlets.settled.try_send(settled).is_err() {
            tracing::warn!("a message could not be acknowledged; it comes again with the next connection");
        }
    }

    /// Gives it back if the link takes no more now.
    fn reply(&self, reply: Reply) -> Option<Reply> {
        // The device asks again for what it does not hear.
        let dropped = self.outlets.replies.try_send(reply).err()?;
        tracing::debug!("a reply was dropped: the link takes no more now");
        Some(dropped.into_inner())
    }
}
