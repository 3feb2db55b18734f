//! Reads one event, decides it against the records, writes the outcome into the batch.

use std::collections::BTreeSet;
use std::time::Instant;

use hedge_core::agree::{AGREES_MIN, agree};
use hedge_proto::{
    Authority, Case, CaseId, CaseMessage, DecodeError, DeviceId, DeviceState, DeviceStatus, Digest, DownMessage,
    Message as _, ModelRef, Output, PayloadForm, Telemetry, Topic, Topics, Verdict, WIRE_VERSION, newer, to_cbor,
};

use serde_bytes::ByteBuf;
use serde_json::json;

use super::Review;
use super::corrections::Corrections;
use super::decide::{self, Arrived, BUSY_S, HOLD_S, Step, Told, dead, failed};
use super::fleet_checks::FleetChecks;
use super::gate::Gate;
use super::lanes::Lanes;
use super::outcome::{Decided, Next};
use super::settings::{self, Document};
use crate::message::Incoming;
use crate::model::{ModelFailure, Outcome, Panels};
use crate::payloads::Storage;
use crate::presence::Heard;
use crate::reply::Replies;
use crate::signed;
use crate::store::{Batch, Keep, StoreError, Totals, Waiting};
use crate::traces::{Came, TakenIn, Traces};
use crate::trend::{Bucket, Stretch};

/// The most devices that are remembered without having sent a case: names are free to make up.
const DEVICES_MAX: u64 = 100_000;

/// How many ids of a question cost as much as one message.
const IDS_PER_THING: usize = 16;

/// The longest reason that is kept and sent.
const REASON_CHARS_MAX: usize = 300;

/// What follows once the batch is committed.
#[derive(Default)]
pub(super) struct Effects {
    pub(super) replies: Replies,
    pub(super) new_work: Vec<Waiting>,
    /// Came by HTTPS, and are on record now.
    pub(super) taken_payloads: Vec<Digest>,
    /// What there is to tell of new cases that are traced.
    pub(super) traced: Vec<TakenIn>,
    /// What became of devices.
    pub(super) trends: Vec<(DeviceId, Stretch)>,
    /// Who is told to wait if the commit fails, and how many cases that concerns.
    senders: BTreeSet<DeviceId>,
    pub(super) cases_seen: u64,
}

impl Effects {
    /// Whom it concerns if nothing can be recorded.
    pub(super) fn concern(&mut self, device: &DeviceId) {
        self.senders.insert(device.clone());
    }

    /// What is said instead when nothing could be recorded.
    pub(super) fn into_busy(self) -> Replies {
        let mut replies = Replies::default();
        for device in self.senders {
            replies.add(&device, DownMessage::Busy { after_s: BUSY_S });
        }
        replies
    }
}

pub(super) struct Desk<'a, 'w> {
    pub(super) batch: &'a Batch<'w>,
    pub(super) topics: &'a Topics,
    pub(super) panels: &'a Panels,
    pub(super) lanes: &'a mut Lanes,
    pub(super) gate: &'a mut Gate,
    pub(super) payloads: &'a Storage,
    pub(super) corrections: &'a mut Corrections,
    pub(super) heard: &'a Heard,
    pub(super) fleet_checks: &'a mut FleetChecks,
    pub(super) totals: &'a mut Totals,
    /// How many there are on record.
    pub(super) devices: &'a mut u64,
    pub(super) effects: &'a mut Effects,
    pub(super) traces: &'a Traces,
    /// How the message came that is looked at.
    pub(super) came: Came,
    pub(super) now_ms: u64,
    /// When this commit began.
    pub(super) begun: Instant,
}

impl Desk<'_, '_> {
    pub(super) fn message(&mut self, message: &Incoming) -> Result<(), StoreError> {
        let payload = &message.payload;
        self.came = message.came;
        let topic = self.topics.read(&message.topic);
        let from = topic.as_ref().and_then(Topic::sender).cloned();
        // A status may also be its will, which the broker publishes.
        let is_will = matches!(topic, Some(Topic::UpStatus(_)));
        if let Some(from) = from.as_ref().filter(|_| !message.retained && !is_will) {
            self.heard.note(from, self.now_ms);
        }
        let error = match topic {
            Some(Topic::UpCase(device)) => match CaseMessage::read(payload) {
                Ok(said) => return self.case_message(&device, said),
                Err(error) => match newer(payload, &CaseMessage::KINDS) {
                    Some(what) => {
                        self.hold(&device, &what);
                        return Ok(());
                    }
                    None => error,
                },
            },
            Some(Topic::UpStatus(device)) if payload.is_empty() => {
                self.charge(&device, 1);
                return self.batch.clear_device_status(&device);
            }
            Some(Topic::UpStatus(device)) => match DeviceStatus::read(payload) {
                Ok(status) => return self.status(&device, &status, message.retained),
                Err(error) => error,
            },
            Some(Topic::UpTelemetry(device)) => match Telemetry::read(payload) {
                Ok(telemetry) => return self.telemetry(&device, &telemetry),
                Err(error) => error,
            },
            Some(Topic::UpReported(device)) => match settings::reported(payload) {
                Ok(reported) => return self.reported(&device, reported, message.retained),
                Err(error) => error,
            },
            Some(Topic::DownDesired(device)) => match settings::desired(payload) {
                Ok(desired) => return self.desired(&device, desired),
                Err(error) => {
                    // An operator's; its device says to whoever wrote it what is wrong.
                    tracing::warn!(%device, "the wanted settings cannot be read: {error}");
                    return Ok(());
                }
            },
            Some(Topic::UpReply(device)) => match settings::reply(payload) {
                Ok(event) => return self.reply(&device, &event),
                Err(error) => error,
            },
            _ => DecodeError::Malformed("no topic this program listens to".to_owned()),
        };
        // What the broker keeps comes again at every connect, and was counted when it was news.
        if message.retained {
            tracing::warn!(topic = message.topic, "what the broker keeps here cannot be read: {error}");
        } else {
            self.malformed(from.as_ref(), &message.topic, &error);
        }
        Ok(())
    }

    /// A message of a later version: what it means cannot be told, so nothing of it is answered or called dead.
    fn hold(&mut self, from: &DeviceId, what: &str) {
        self.totals.newer += 1;
        self.charge(from, 1);
        tracing::warn!(device = %from, "it sends {what}, which this cloud does not read; it is told to wait: update the cloud");
        self.effects.replies.add(from, DownMessage::Busy { after_s: HOLD_S });
    }

    /// Counts what is no new case against its device.
    fn charge(&mut self, from: &DeviceId, things: usize) {
        let things = u32::try_from(things).unwrap_or(u32::MAX);
        if things > 0 && !self.gate.charge(from, things, self.begun) {
            self.effects.replies.add(from, DownMessage::Busy { after_s: BUSY_S });
        }
    }

    fn malformed(&mut self, from: Option<&DeviceId>, topic: &str, error: &DecodeError) {
        self.totals.malformed += 1;
        if let Some(from) = from {
            self.charge(from, 1);
        }
        tracing::warn!(topic, "message set aside: {error}");
    }

    fn case_message(&mut self, from: &DeviceId, said: CaseMessage) -> Result<(), StoreError> {
        self.effects.concern(from);
        match said {
            CaseMessage::Case(case) => self.case(from, *case),
            CaseMessage::Batch(cases) => cases.into_iter().try_for_each(|case| self.case(from, case)),
            CaseMessage::Ask { ids } => {
                self.charge(from, 1 + ids.len() / IDS_PER_THING);
                ids.iter().try_for_each(|id| self.asked(from, id))
            }
        }
    }

    fn case(&mut self, from: &DeviceId, mut case: Case) -> Result<(), StoreError> {
        self.effects.cases_seen += 1;
        if case.v > WIRE_VERSION {
            self.hold(from, &format!("wire version {}", case.v));
            return Ok(());
        }
        let known = self.batch.known(&case.id)?;
        // A known case is answered from its record: only a payload that is new is worth hashing.
        let is_news = known.as_ref().is_none_or(|known| known.wants(&case));
        let (payload, uploaded) = match case.payload.take() {
            None if is_news && case.form != PayloadForm::Nothing => (self.uploaded(case.payload_sha256), true),
            payload => (payload.map(ByteBuf::into_vec), false),
        };
        let payload_sha256 = payload.as_ref().filter(|_| is_news).map(|bytes| Digest::of(bytes));
        let arrived = Arrived { from, case: &case, payload_sha256, header_bytes: to_cbor(&case).len() };
        let bytes = payload.as_ref().map_or(0, |payload| payload.len() as u64);
        let room = self.lanes.room(&case.task, from, bytes);
        let step = decide::on_case(&arrived, known.as_ref(), room);
        if uploaded && matches!(step, Step::Record | Step::Complete) {
            self.effects.taken_payloads.push(case.payload_sha256);
        }
        match step {
            Step::Record => self.record(from, case, payload.as_deref().unwrap_or(&[])),
            Step::Complete => self.complete(from, &case, payload.as_deref().unwrap_or(&[])),
            Step::MakeDo => {
                self.effects.replies.add(from, DownMessage::Received { ids: vec![case.id.clone()] });
                self.make_do(&case.id)
            }
            Step::Note => self.note(from, &case),
            Step::Reopen => self.reopen(from, &case.id),
            Step::Repeat(message) => {
                self.totals.repeated += 1;
                self.charge(from, 1);
                self.effects.replies.add(from, message);
                Ok(())
            }
            Step::Refuse(message) => {
                self.totals.refused += 1;
                self.charge(from, 1);
                tracing::warn!(device = %from, case = %case.id, "case refused: {}", reason_of(&message));
                self.effects.replies.add(from, message);
                Ok(())
            }
            Step::Hold(message) => {
                self.totals.busy += 1;
                // What it sends before it has heard that is turned away unread.
                self.gate.shut_out(from, self.begun, "as many of its cases wait as there is room for");
                self.effects.replies.add(from, message);
                Ok(())
            }
        }
    }

    /// A payload that came by HTTPS. One that cannot be read is as good as missing: its device asks again.
    fn uploaded(&self, sum: Digest) -> Option<Vec<u8>> {
        self.payloads.read(sum).unwrap_or_else(|error| {
            tracing::error!("the payload {sum} cannot be read: {error}");
            None
        })
    }

    fn record(&mut self, from: &DeviceId, case: Case, payload: &[u8]) -> Result<(), StoreError> {
        self.batch.record(&case, payload, self.now_ms)?;
        let bytes = payload.len() as u64;
        self.effects.traced.extend(self.traces.taking_in(&case, self.came, bytes));
        self.note_trend(from, Bucket::case(bytes));
        self.totals.cases += 1;
        self.totals.waiting += 1;
        self.totals.received_bytes += bytes;
        self.totals.payload_bytes += signed(bytes);
        self.effects.replies.add(from, DownMessage::Received { ids: vec![case.id.clone()] });
        self.take_work(Waiting::new(case.id, case.task, bytes));
        Ok(())
    }

    fn reopen(&mut self, from: &DeviceId, id: &CaseId) -> Result<(), StoreError> {
        let work = self.batch.as_waiting(id)?;
        self.batch.reopen(id)?;
        self.totals.failed -= 1;
        self.totals.waiting += 1;
        self.effects.replies.add(from, DownMessage::Received { ids: vec![id.clone()] });
        self.take_work(work);
        Ok(())
    }

    pub(super) fn take_work(&mut self, work: Waiting) {
        self.lanes.reserve(&work.task, &work.id.device, work.bytes);
        self.effects.new_work.push(work);
    }

    fn asked(&mut self, from: &DeviceId, id: &CaseId) -> Result<(), StoreError> {
        match decide::on_ask(from, id, self.batch.known(id)?.as_ref()) {
            Told::Say(message) => self.effects.replies.add(from, message),
            Told::Reopen => self.reopen(from, id)?,
            Told::Nothing => {
                self.totals.refused += 1;
                self.charge(from, 1);
                tracing::warn!(device = %from, case = %id, "it asks about another device's case");
            }
        }
        Ok(())
    }

    fn status(&mut self, device: &DeviceId, status: &DeviceStatus, retained: bool) -> Result<(), StoreError> {
        if status.state == DeviceState::Online && !retained {
            self.heard.note(device, self.now_ms);
        }
        // What the broker keeps comes at our connect, not at the device's will.
        self.charge(device, usize::from(!retained));
        let on_record = self.batch.device_status(device)?;
        // A retained status comes again at every connect of ours; the time on record is when it was news.
        let news = on_record.as_ref() != Some(status) && decide::replaces(status, on_record.as_ref());
        if news && self.admits(device)? {
            let before = on_record.as_ref().map_or(&[][..], |known| &known.models);
            if before != status.models {
                let told = self.batch.telemetry(device)?.map(|(told, _)| told);
                for change in decide::bundle_changes(before, &status.models, told.as_ref()) {
                    self.batch.add_event(device, "bundle", &json!(change).to_string(), self.now_ms)?;
                }
            }
            self.batch.set_device_status(device, status, self.now_ms)?;
        }
        if status.state == DeviceState::Online {
            let is_new_connection = on_record.is_none_or(|known| known.connection != status.connection);
            self.correct_again(device, is_new_connection)?;
        }
        Ok(())
    }

    fn telemetry(&mut self, device: &DeviceId, telemetry: &Telemetry) -> Result<(), StoreError> {
        self.charge(device, 1);
        if self.admits(device)? {
            let before = self.batch.telemetry(device)?;
            let before = before.as_ref().map(|(before, at_ms)| (before, *at_ms));
            self.effects.trends.push((device.clone(), Stretch::between(before, telemetry, self.now_ms)));
            self.batch.set_telemetry(device, telemetry, self.now_ms)?;
            for judge in telemetry.model_figures.values().filter_map(|model| model.judge.as_ref()) {
                self.spot_checks(device, judge)?;
            }
        }
        self.correct_again(device, false)
    }

    pub(super) fn note_trend(&mut self, device: &DeviceId, at: Bucket) {
        self.effects.trends.push((device.clone(), Stretch::at(self.now_ms, at)));
    }

    fn reported(&mut self, device: &DeviceId, told: Document, retained: bool) -> Result<(), StoreError> {
        self.charge(device, usize::from(!retained));
        let (on_record, _) = self.batch.settings_documents(device)?;
        // A retained document comes again at every connect of ours, and of the device.
        if on_record != told.json && self.admits(device)? {
            self.batch.set_reported(device, told.json.as_deref(), self.now_ms)?;
            self.batch.add_event(device, "reported", &told.event, self.now_ms)?;
        }
        Ok(())
    }

    fn desired(&mut self, device: &DeviceId, told: Document) -> Result<(), StoreError> {
        let (_, on_record) = self.batch.settings_documents(device)?;
        if on_record != told.json && self.admits(device)? {
            self.batch.set_desired(device, told.json.as_deref(), self.now_ms)?;
            self.batch.add_event(device, "desired", &told.event, self.now_ms)?;
        }
        Ok(())
    }

    fn reply(&mut self, device: &DeviceId, event: &str) -> Result<(), StoreError> {
        self.charge(device, 1);
        // A device repeats a result for a command that comes again.
        if !self.batch.has_event(device, "reply", event)? && self.admits(device)? {
            self.batch.add_event(device, "reply", event, self.now_ms)?;
        }
        Ok(())
    }

    fn admits(&mut self, device: &DeviceId) -> Result<bool, StoreError> {
        if self.batch.is_device(device)? {
            return Ok(true);
        }
        let admitted = *self.devices < DEVICES_MAX;
        // One whose commit fails counts all the same, until the next start.
        *self.devices += u64::from(admitted);
        self.totals.refused += u64::from(!admitted);
        Ok(admitted)
    }

    /// What came of asking one answerer, and what becomes of the case.
    pub(super) fn outcome(&mut self, decided: &mut Decided) -> Result<(), StoreError> {
        let Decided { outcome, next, authority, .. } = decided;
        let Outcome { case, opinion, .. } = &**outcome;
        if !matches!(next, Next::Again) && !self.batch.is_ours(&case.id)? {
            // Another instance took this one for dead and has its cases, or has answered this one already.
            tracing::info!(case = %case.id, "an answer came when the case was no longer waiting for it here");
            return Ok(());
        }
        match next {
            Next::Again => return Ok(()),
            Next::Pass { by, .. } => return self.batch.decline(&case.id, by),
            Next::Want if self.want(case)? => return Ok(()),
            Next::Want => *next = Next::Close,
            Next::Close => {}
        }
        let message = match opinion {
            Ok(opinion) => {
                let word =
                    Word { said: &opinion.said, authority: *authority, model: opinion.model.clone(), revision: 1 };
                self.closes(case, word)?;
                self.totals.waiting -= 1;
                return Ok(());
            }
            Err(failure @ ModelFailure::Failed(_)) => {
                let reason = shortened(&failure.to_string());
                self.batch.fail(&case.id, &reason)?;
                self.totals.failed += 1;
                failed(&case.id, &reason)
            }
            Err(failure) => {
                let reason = shortened(&failure.to_string());
                self.batch.kill(&case.id, &reason)?;
                self.totals.dead += 1;
                dead(&case.id, &reason)
            }
        };
        self.totals.waiting -= 1;
        self.effects.replies.add(&case.id.device, message);
        Ok(())
    }

    /// Records a word on a case that has none yet, or none of this revision, and tells the device.
    pub(super) fn closes(&mut self, case: &Case, word: Word<'_>) -> Result<(), StoreError> {
        let verdict = word.on(case);
        let revision = verdict.revision;
        let agrees = case.said.as_ref().map(|own| agree(own, &verdict.said) >= AGREES_MIN);
        self.batch.answer(&verdict, agrees, self.now_ms)?;
        // A later word is about the same answer of the device.
        if let (1, Some(confidence), Some(agrees)) = (revision, case.doubt.score(), agrees) {
            self.note_trend(&case.id.device, Bucket::answer(confidence, agrees));
        }
        self.totals.answered += u64::from(revision == 1);
        self.totals.agreed += i64::from(agrees == Some(true));
        self.totals.disagreed += i64::from(agrees == Some(false));
        self.effects.replies.add(&case.id.device, DownMessage::Verdict(verdict));
        Ok(())
    }

    pub(super) fn prune(&mut self, keep: &Keep, aged_ms: u64) -> Result<(), StoreError> {
        let removed = self.batch.prune(keep, aged_ms)?;
        self.totals.payload_bytes -= signed(removed);
        Ok(())
    }
}

/// What somebody says of a case.
pub(super) struct Word<'a> {
    pub(super) said: &'a Output,
    pub(super) authority: Authority,
    pub(super) model: ModelRef,
    pub(super) revision: u32,
}

impl<'a> Word<'a> {
    pub(super) fn of(review: &'a Review) -> Self {
        let person = ModelRef { name: review.by.clone(), version: String::new() };
        Self { said: &review.said, authority: Authority::Person, model: person, revision: 1 }
    }

    /// What the device of this case is told.
    pub(super) fn on(self, case: &Case) -> Verdict {
        let Self { said, authority, model, revision } = self;
        let (v, id, task, said) = (said.wire_version(), case.id.clone(), case.task.clone(), said.clone());
        Verdict { v, id, revision, authority, task, said, model }
    }
}

fn shortened(reason: &str) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

fn reason_of(message: &DownMessage) -> &str {
    match message {
        DownMessage::Dead { reason, .. } | DownMessage::Failed { reason, .. } => reason,
        _ => "",
    }
}
