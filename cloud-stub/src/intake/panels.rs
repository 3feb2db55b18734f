//! Gives cases to answerers, takes them back, and tells how the answerers are.

use std::collections::BTreeMap;
use std::time::Instant;

use super::lanes::Entry;
use super::outcome::{self, Decided, Next};
use super::{Intake, IntakeError};
use crate::answerers::{Choice, Condition, Declined, Ending, Ledger, Micro, Month, Seat};
use crate::model::{Job, ModelFailure, Outcome, Panel, Panels, Questioned, Worker};
use crate::store::{Batch, Payload, StoreError, Totals, Waiting, Writer};
use crate::traces::Called;
use crate::wall_ms;

/// Every how many ticks an answerer that can be asked for nothing is asked whether it is still ready.
const WATCH_TICKS: u64 = 10;

/// What devices are told to do with new cases.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Taking {
    #[default]
    All,
    /// Some tasks have nobody who answers now.
    Slowly,
    /// No task has anybody who answers now: cases wait on their devices, the most valuable first.
    Nothing,
    /// Nothing can be recorded.
    Unhealthy,
}

/// How an answerer is, for people.
#[derive(Debug, Clone, PartialEq)]
pub struct AnswererNow {
    pub name: String,
    pub task: String,
    pub condition: Condition,
    /// Why it is not up.
    pub why: Option<String>,
    /// What its calls have cost this month, and what all together may cost.
    pub spent: f64,
    pub month_max: Option<f64>,
}

/// Where a case that is left over stands in its task's route; `None` if it waits for a person who is still there.
fn stands(panel: &Panel, case: &Waiting) -> Option<Declined> {
    let seats = panel.route.seats();
    if case.review && seats.iter().any(Seat::is_person) {
        return None;
    }
    let has_declined = |(place, _): &(usize, _)| case.declined.contains(&seats[*place].name);
    let declined = seats.iter().enumerate().filter(has_declined);
    Some(declined.fold(Declined::default(), |declined, (place, _)| declined.with(place)))
}

/// The same, where its task may have nobody here.
pub(super) fn stands_in(panels: &Panels, case: &Waiting) -> Option<Declined> {
    panels.get(&case.task).map_or(Some(Declined::default()), |panel| stands(panel, case))
}

/// Notes what was spent, in the same commit as what it was spent on. Returns what is on record then.
pub(super) fn keep_spent(batch: &Batch<'_>, ledger: &Ledger) -> Result<BTreeMap<String, Micro>, StoreError> {
    let noted = ledger.unrecorded().iter().filter(|(_, micro)| **micro != 0);
    noted.map(|(name, micro)| Ok((name.clone(), batch.add_spent(ledger.month(), name, *micro)?))).collect()
}

/// Between 0 and 1; 0 where the system has no chance, which costs only the jitter.
fn chance() -> f64 {
    f64::from(getrandom::u32().unwrap_or(0)) / f64::from(u32::MAX)
}

impl Intake {
    /// What a call that has ended means; nothing if nobody waits for it.
    pub(super) fn decide(&mut self, outcome: Box<Outcome>) -> Option<Decided> {
        let entry = self.under_way.remove(&outcome.case.id)?;
        let (task, place) = (outcome.case.task.clone(), outcome.place);
        if let Err(failure @ ModelFailure::NoPayload(_)) = &outcome.opinion {
            self.wait_because(failure, "the answerers wait");
        }
        let panel = self.panels.get_mut(&task)?;
        if let Err(failure @ (ModelFailure::Later { .. } | ModelFailure::Down { .. })) = &outcome.opinion {
            self.failures.insert((task, place), failure.to_string());
        }
        Some(outcome::decide(outcome, entry, panel, &mut self.ledger, &self.enough, (Instant::now(), chance())))
    }

    /// Puts a case where it belongs after its outcome was recorded, or was not.
    pub(super) fn close(&mut self, decided: Decided, is_recorded: bool) {
        self.trace(&decided);
        let Decided { outcome, mut entry, next, .. } = decided;
        let task = &outcome.case.task;
        (entry.left_over, entry.since_ms) = (false, wall_ms());
        match next {
            _ if !is_recorded => self.lanes.put_back(task, entry),
            // While it waits for its device, it takes no place from those that wait for a model.
            Next::Close | Next::Want => {
                self.lanes.took(task, outcome.took / self.places(task, outcome.place));
                self.lanes.release(task, &entry.id.device, entry.bytes);
            }
            Next::Pass { declined, .. } => self.lanes.put(task, Entry { declined, ends: 0, ..entry }),
            // Behind the others of its device: one that its answerer cannot bear does not keep them waiting.
            Next::Again => self.lanes.put(task, entry),
        }
    }

    fn trace(&self, Decided { outcome, entry, .. }: &Decided) {
        let Some(trace) = self.outlets.traces.of(&entry.id) else { return };
        let panel = self.panels.get(&outcome.case.task);
        let seat = panel.and_then(|panel| panel.route.seats().get(outcome.place));
        let worker = panel.and_then(|panel| panel.workers.get(outcome.place));
        let (word, why) = match &outcome.opinion {
            Ok(_) => ("verdict", None),
            Err(failure) => (failure.word(), Some(failure.to_string())),
        };
        trace.called(Called {
            answerer: seat.map_or("", |seat| &seat.name),
            is_remote: worker.is_some_and(Worker::is_remote),
            since_ms: entry.since_ms,
            left_over: entry.left_over,
            began_ms: outcome.began_ms,
            took: outcome.took,
            span: outcome.span,
            outcome: word,
            why,
        });
    }

    /// How many cases an answerer works on at once.
    fn places(&self, task: &str, place: usize) -> u32 {
        let worker = self.panels.get(task).and_then(|panel| panel.workers.get(place));
        worker.map_or(1, Worker::at_once)
    }

    /// Once a second: says that this instance lives, takes over what was a dead one's, and hears what others have spent.
    pub(super) fn keep_lease(&mut self) -> Result<(), IntakeError> {
        match self.writer.renew() {
            Ok(taken_over) if taken_over.is_empty() => {}
            Ok(taken_over) => {
                tracing::warn!(cases = taken_over.len(), "an instance has gone; its open cases are answered here");
                let panels = &self.panels;
                self.lanes.take_over(taken_over, |case| stands_in(panels, case));
            }
            Err(error @ StoreError::Replaced(_)) => return Err(error.into()),
            // The commit of this tick says so, and devices are told.
            Err(error) => tracing::warn!("{error}; the lease was not renewed"),
        }
        if self.ledger.month_max().is_some() {
            match self.writer.spent(self.ledger.month()) {
                Ok(spent) => self.ledger.refresh(spent),
                Err(error) => tracing::warn!("{error}; what other instances have spent is not known"),
            }
        }
        Ok(())
    }

    pub(super) fn questioned(&mut self, questioned: Questioned) {
        let Questioned { task, place, alive } = questioned;
        let Some(panel) = self.panels.get_mut(&task) else { return };
        let ending = match &alive {
            Ok(()) => Ending::Answered,
            Err(ModelFailure::Later { after, .. }) => Ending::Later(*after),
            Err(_) => Ending::Down,
        };
        if let Err(failure) = &alive {
            self.failures.insert((task, place), failure.to_string());
        }
        panel.route.questioned(place, ending, Instant::now(), chance());
        self.show_answerers();
    }

    /// Once a second: asks those whose rest is over, and tells devices and people how the answerers are.
    pub(super) fn look_after_answerers(&mut self) {
        let now = Instant::now();
        self.ledger.turn(Month::at(wall_ms()));
        for panel in self.panels.values_mut() {
            panel
                .route
                .to_question(now)
                .into_iter()
                .filter_map(|place| panel.workers.get(place))
                .for_each(|worker| worker.question());
            if self.ticks.is_multiple_of(WATCH_TICKS) {
                let watched = panel.workers.iter().enumerate().filter(|(_, worker)| worker.is_watched());
                let up = watched.filter(|(place, _)| panel.route.condition(*place, &self.ledger, now) == Condition::Up);
                up.for_each(|(_, worker)| worker.question());
            }
        }
        self.show_answerers();
        self.tell();
    }

    fn show_answerers(&mut self) {
        let (now, before) = (Instant::now(), self.outlets.answerers.borrow().clone());
        let mut answerers = Vec::new();
        for (task, panel) in &self.panels {
            for (place, seat) in panel.route.seats().iter().enumerate() {
                let condition = panel.route.condition(place, &self.ledger, now);
                let why = self.failures.get(&(task.clone(), place)).filter(|_| condition != Condition::Up);
                answerers.push(AnswererNow {
                    name: seat.name.clone(),
                    task: task.clone(),
                    condition,
                    why: why.cloned(),
                    spent: self.ledger.spent_on(&seat.name).as_sum(),
                    month_max: self.ledger.month_max().map(|most| most.as_sum()),
                });
            }
        }
        for one in &answerers {
            let known = before.iter().find(|known| known.name == one.name && known.task == one.task);
            one.log(known.map(|known| known.condition));
        }
        self.outlets.answerers.send_if_modified(|shown| {
            *shown != answerers && {
                *shown = answerers;
                true
            }
        });
    }

    /// Nothing is taken until the records, or the payloads, can be used again. It is tried every second, and said once.
    pub(super) fn wait_because(&mut self, why: &dyn std::fmt::Display, then: &str) {
        if std::mem::replace(&mut self.is_healthy, false) {
            tracing::error!("{why}; {then}");
        }
        self.tell();
    }

    /// Tells devices what is taken now, if that has changed.
    pub(super) fn tell(&mut self) {
        let now = Instant::now();
        let stuck = self
            .panels
            .values_mut()
            .map(|panel| panel.route.is_stuck(&self.ledger, now))
            .filter(|stuck| *stuck)
            .count();
        let taking = match stuck {
            _ if !self.is_healthy => Taking::Unhealthy,
            0 => Taking::All,
            stuck if stuck == self.panels.len() => Taking::Nothing,
            _ => Taking::Slowly,
        };
        self.outlets.taking.send_if_modified(|known| std::mem::replace(known, taking) != taking);
    }

    /// Gives the answerers what they can take.
    pub(super) fn dispatch(&mut self) -> Result<(), IntakeError> {
        if !self.is_healthy {
            return Ok(());
        }
        let (mut paid, mut to_review, mut unread) = (Vec::new(), Vec::new(), None);
        for (task, panel) in &mut self.panels {
            for declined in self.lanes.declined(task) {
                loop {
                    let place = match panel.route.choose(declined, &self.ledger) {
                        Choice::Ask(place) => place,
                        Choice::Review(_) => {
                            let Some(entry) = self.lanes.next_to_review(task, declined) else { break };
                            to_review.push((task.clone(), entry));
                            continue;
                        }
                        Choice::Wait | Choice::Nobody => break,
                    };
                    let (worker, seat) = (&panel.workers[place], &panel.route.seats()[place]);
                    let Some(entry) = self.lanes.next(task, declined, |device| worker.has_room(device)) else { break };
                    let job = match prepare(&mut self.writer, &mut self.totals, &entry) {
                        Ok(Some(job)) => job,
                        Ok(None) => {
                            self.lanes.release(task, &entry.id.device, entry.bytes);
                            continue;
                        }
                        Err(error) => {
                            self.lanes.put_back(task, entry);
                            unread = Some(error);
                            break;
                        }
                    };
                    let price = seat.price;
                    self.ledger.pay(&seat.name, price);
                    panel.route.started(place);
                    if price.0 > 0 {
                        paid.push((task.clone(), place, job, entry));
                        continue;
                    }
                    self.under_way.insert(entry.id.clone(), entry);
                    if !worker.put(job) {
                        return Err(IntakeError::ModelGone(task.clone()));
                    }
                }
            }
        }
        if let Some(error) = unread {
            self.wait_because(&error, "the answerers wait");
        }
        self.put_recorded(paid, to_review)
    }

    /// What costs money, or leaves the lanes, is on record before it happens.
    fn put_recorded(
        &mut self,
        paid: Vec<(String, usize, Job, Entry)>,
        to_review: Vec<(String, Entry)>,
    ) -> Result<(), IntakeError> {
        if paid.is_empty() && to_review.is_empty() {
            return Ok(());
        }
        if let Err(error) = self.record_paid(&to_review) {
            self.wait_because(&error, "the answerers wait");
            for (task, entry) in to_review {
                self.lanes.back_from_review(&task, entry);
            }
            for (task, place, _, entry) in paid {
                if let Some(panel) = self.panels.get_mut(&task) {
                    panel.route.ended(place, Ending::Answered, Instant::now(), 0.0);
                    let seat = &panel.route.seats()[place];
                    self.ledger.give_back(&seat.name, seat.price);
                }
                self.lanes.put_back(&task, entry);
            }
            return Ok(());
        }
        for (task, place, job, entry) in paid {
            self.under_way.insert(entry.id.clone(), entry);
            if !self.panels.get(&task).is_some_and(|panel| panel.workers[place].put(job)) {
                return Err(IntakeError::ModelGone(task));
            }
        }
        Ok(())
    }

    fn record_paid(&mut self, to_review: &[(String, Entry)]) -> Result<(), StoreError> {
        let batch = self.writer.batch_about(to_review.iter().map(|(_, entry)| &entry.id.device))?;
        to_review.iter().try_for_each(|(_, entry)| batch.review(&entry.id))?;
        let spent = keep_spent(&batch, &self.ledger)?;
        batch.commit()?;
        self.ledger.recorded(spent);
        Ok(())
    }
}

impl AnswererNow {
    /// Says what has changed.
    fn log(&self, before: Option<Condition>) {
        if before.map(Condition::word) == Some(self.condition.word()) {
            return;
        }
        let (answerer, task) = (self.name.as_str(), self.task.as_str());
        match self.condition {
            Condition::Up if before.is_some() => tracing::info!(answerer, task, "it answers"),
            Condition::Resting(rest) => {
                let why = self.why.as_deref().unwrap_or("not asked yet");
                tracing::warn!(answerer, task, retry_ms = rest.as_millis(), "its cases wait: {why}");
            }
            Condition::NoMoney => {
                let most = self.month_max.unwrap_or(0.0);
                tracing::warn!(
                    answerer,
                    task,
                    "this month's {most} are spent; the next answerer or the queue takes over"
                );
            }
            Condition::Up | Condition::Questioned => {}
        }
    }
}

/// Fetches a case for an answerer; `None` if it can no longer be run.
fn prepare(writer: &mut Writer, totals: &mut Totals, entry: &Entry) -> Result<Option<Job>, StoreError> {
    if let Some((case, payload)) = writer.load(&entry.id)? {
        let (payload, coming) = match payload {
            Payload::Here(bytes) => (bytes, None),
            Payload::Coming(coming) => (Vec::new(), Some(coming)),
        };
        return Ok(Some(Job { case, payload, coming, left_over: entry.left_over }));
    }
    let batch = writer.batch_about(std::iter::once(&entry.id.device))?;
    if !batch.is_ours(&entry.id)? {
        tracing::info!(case = %entry.id, "another instance has taken it over");
        return Ok(None);
    }
    tracing::warn!(case = %entry.id, "the payload is no longer here; the case cannot be answered");
    batch.fail(&entry.id, "the payload is no longer kept here")?;
    totals.waiting -= 1;
    totals.failed += 1;
    batch.set_totals(totals)?;
    batch.commit()?;
    Ok(None)
}
