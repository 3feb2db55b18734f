//! The thread that owns the log: it gathers what waits, appends it, syncs once and acknowledges all.
//!
//! A batch holds at most one operation per case, so that every operation is planned against what is durable.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_proto::{CaseKey, Epoch, Refusal};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::behind;
use super::case::{Applied, Limits, StoreError};
use super::log::Pointer;
use super::log::record::{Head, Kind, Record};
use super::log::writer::Writer;
use super::shared::Shared;
use super::table::{Line, Stage, Table};

/// The most operations under one sync.
const BATCH_OPS_MAX: usize = 1024;
/// The most bytes under one sync; a single larger record still goes alone.
const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// Given back to a full disk so that it still takes verdicts and tombstones.
const RESERVE_BYTES: u64 = 512 * 1024;
/// How often tidying goes on while nobody asks for anything.
const TIDY: Duration = Duration::from_millis(200);

/// How often a dead letter can be queued again: lives are counted in a byte.
const LIVES_MAX: u8 = 250;

/// Belongs to no case.
pub(super) const NO_CASE: CaseKey = CaseKey { epoch: Epoch(0), sequence: 0 };

/// What callers ask for.
#[derive(Debug)]
pub(crate) enum Ask {
    /// The permit is for the bytes that wait in memory.
    Store(Record, OwnedSemaphorePermit),
    Attempt(CaseKey),
    Answer {
        key: CaseKey,
        revision: u32,
        verdict: Bytes,
    },
    Deliver {
        key: CaseKey,
        revision: u32,
        sink: u8,
    },
    Forget(CaseKey),
    Bury {
        key: CaseKey,
        reason: Bytes,
    },
    Requeue(CaseKey),
    Clock(Moment),
}

/// What they get.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Done {
    Written,
    Attempts(u32),
    Applied(Applied),
}

pub(crate) type Reply = oneshot::Sender<Result<Done, StoreError>>;
pub(crate) type Request = (Ask, Reply);

/// One operation of a batch.
struct Planned {
    record: Record,
    done: Done,
    reply: Reply,
    /// Freed with the batch.
    _permit: Option<OwnedSemaphorePermit>,
}

pub(crate) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
    limits: Limits,
    waiting: VecDeque<Request>,
    /// How many changes the queue on disk was behind when it was opened.
    lag_extra: usize,
    reserve_kept: bool,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer, limits: Limits) -> Self {
        let lag_extra = shared.table().dirty_len();
        let mut committer = Self { shared, writer, limits, waiting: VecDeque::new(), lag_extra, reserve_kept: false };
        committer.keep_reserve();
        committer.publish();
        committer
    }

    /// Serves until every sender is gone.
    pub(crate) async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        let mut busy = true;
        loop {
            let next = if busy { tokio::time::timeout(TIDY, requests.recv()).await } else { Ok(requests.recv().await) };
            match next {
                Ok(None) => return,
                Ok(Some(request)) => {
                    self.waiting.push_back(request);
                    while !self.waiting.is_empty() {
                        while self.waiting.len() < BATCH_OPS_MAX {
                            let Ok(request) = requests.try_recv() else { break };
                            self.waiting.push_back(request);
                        }
                        self.commit();
                    }
                    busy = true;
                }
                Err(_) => busy = self.tidy_idle(),
            }
        }
    }

    /// One batch: plan, append, sync, apply, acknowledge.
    fn commit(&mut self) {
        let mut batch = self.plan();
        let records: Vec<_> = batch.iter().map(|planned| planned.record.clone()).collect();
        let mut written = self.write(&records);
        if let Some(error) = written.error.as_ref().filter(|_| self.reserve_kept) {
            tracing::warn!(%error, "the disk refuses the outbox's log; the reserve is given up");
            self.give_up_reserve();
            let rest = batch.split_off(written.durable.len());
            let (cases, mut marks): (Vec<_>, Vec<_>) = rest.into_iter().partition(Planned::is_case);
            cases.into_iter().for_each(|planned| planned.refuse(error));
            let retried = self.write(&marks.iter().map(|planned| planned.record.clone()).collect::<Vec<_>>());
            batch.append(&mut marks);
            written.durable.extend(retried.durable);
            written.error = retried.error;
        }
        self.acknowledge(batch, &written.durable, written.error);
        self.tidy_step();
        behind::tell(&self.shared, self.lag_extra);
    }

    /// Writes and applies: what is durable is also in the table.
    pub(super) fn write(&mut self, records: &[Record]) -> super::log::writer::Committed {
        let written = self.writer.commit(records);
        let mut table = self.shared.table();
        for (record, at) in records.iter().zip(&written.durable) {
            table.apply(&record.head, *at);
        }
        if let Some((record, at)) = records.iter().zip(&written.durable).next_back() {
            let end = u64::from(at.offset) + record.bytes();
            table.set_position(Pointer { segment: at.segment, offset: u32::try_from(end).unwrap_or(u32::MAX) });
        }
        drop(table);
        self.publish();
        written
    }

    fn acknowledge(&self, batch: Vec<Planned>, durable: &[Pointer], error: Option<io::Error>) {
        let failure = error.unwrap_or_else(|| io::Error::other("not written"));
        for (number, planned) in batch.into_iter().enumerate() {
            if number < durable.len() {
                answer(planned.reply, Ok(planned.done));
            } else {
                planned.refuse(&failure);
            }
        }
    }

    /// Takes operations from the front until one has to wait for this batch.
    fn plan(&mut self) -> Vec<Planned> {
        let shared = Arc::clone(&self.shared);
        let table = shared.table();
        let mut room = Room::new(&self.limits, &table, &*self.shared.disk);
        let mut batch: Vec<Planned> = Vec::new();
        let mut taken = HashSet::new();
        let mut bytes = 0;
        while let Some((ask, reply)) = self.waiting.pop_front() {
            let key = ask.key();
            let planned = if taken.contains(&key) { None } else { Some(plan(&table, &mut room, &ask)) };
            match planned {
                Some(Plan::Write(record, done)) => {
                    taken.insert(key);
                    bytes += record.bytes();
                    batch.push(Planned { record, done, reply, _permit: ask.into_permit() });
                }
                Some(Plan::Reply(result)) => answer(reply, result),
                None => {
                    self.waiting.push_front((ask, reply));
                    break;
                }
            }
            if bytes >= BATCH_BYTES_MAX || batch.len() >= BATCH_OPS_MAX {
                break;
            }
        }
        batch
    }

    pub(super) fn publish(&self) {
        let bytes = self.writer.sizes().values().sum();
        self.shared.log_bytes.store(bytes, Ordering::Relaxed);
        self.shared.written_bytes.store(self.writer.written_bytes(), Ordering::Relaxed);
    }

    /// Whether the reserve is there; tries to take it again once there is room for it.
    pub(super) fn keep_reserve(&mut self) -> bool {
        let room = self
            .shared
            .disk
            .free_bytes()
            .is_ok_and(|free| free > self.limits.free_bytes_min.saturating_add(RESERVE_BYTES));
        if !self.reserve_kept && room {
            self.reserve_kept = self.shared.disk.keep_reserve(Some(RESERVE_BYTES)).is_ok();
        }
        self.reserve_kept || !room
    }

    fn give_up_reserve(&mut self) {
        self.reserve_kept = false;
        if let Err(error) = self.shared.disk.keep_reserve(None) {
            tracing::warn!(%error, "the outbox's reserve cannot be removed");
        }
    }
}

impl Planned {
    fn is_case(&self) -> bool {
        self.record.head.kind == Kind::Case
    }

    fn refuse(self, error: &io::Error) {
        let failure =
            if self.is_case() { StoreError::Refused(Refusal::Disk) } else { StoreError::Disk(error.to_string()) };
        answer(self.reply, Err(failure));
    }
}

/// A caller that no longer waits has lost nothing: what it asked for is done.
fn answer(reply: Reply, result: Result<Done, StoreError>) {
    drop(reply.send(result));
}

/// What still fits, counting what the batch already takes.
struct Room {
    cases: u64,
    bytes: u64,
    disk_bytes: u64,
}

impl Room {
    fn new(limits: &Limits, table: &Table, disk: &dyn super::disk::Disk) -> Self {
        let totals = table.totals();
        // A disk that cannot even say how much is free is asked to take the case.
        let free = disk.free_bytes().unwrap_or(u64::MAX);
        Self {
            cases: limits.cases_max.saturating_sub(totals.cases()),
            bytes: limits.bytes_max.saturating_sub(totals.live_bytes),
            disk_bytes: free.saturating_sub(limits.free_bytes_min),
        }
    }

    fn take(&mut self, bytes: u64) -> Result<(), Refusal> {
        if self.disk_bytes < bytes {
            return Err(Refusal::Disk);
        }
        if self.cases == 0 || self.bytes < bytes {
            return Err(Refusal::Full);
        }
        self.cases -= 1;
        self.bytes -= bytes;
        self.disk_bytes -= bytes;
        Ok(())
    }
}

enum Plan {
    Write(Record, Done),
    Reply(Result<Done, StoreError>),
}

fn plan(table: &Table, room: &mut Room, ask: &Ask) -> Plan {
    let moment = table.clock().unwrap_or_default();
    let known = table.get(ask.key());
    match (ask, known) {
        (Ask::Clock(now), _) => Plan::mark(Head::mark(Kind::Clock, NO_CASE, *now), Done::Written),
        (Ask::Store(..), Some(_)) => Plan::Reply(Ok(Done::Written)), // stored before: the promise holds already
        (Ask::Store(record, _), None) => match room.take(record.bytes()) {
            Ok(()) => Plan::Write(record.clone(), Done::Written),
            Err(refusal) => Plan::Reply(Err(StoreError::Refused(refusal))),
        },
        (Ask::Answer { .. }, None) => Plan::Reply(Ok(Done::Applied(Applied::Unknown))),
        (Ask::Forget(_), None) => Plan::Reply(Ok(Done::Written)),
        (_, None) => Plan::Reply(Err(StoreError::Unknown)),
        (Ask::Attempt(key), Some(line)) => {
            let count = u32::from(line.slot.attempts.saturating_add(1));
            let head = Head { life: line.slot.life, count, ..Head::mark(Kind::Attempt, *key, moment) };
            Plan::mark(head, Done::Attempts(count))
        }
        (Ask::Answer { key, revision, verdict }, Some(line)) => {
            if !takes_verdict(&line, *revision) {
                return Plan::Reply(Ok(Done::Applied(Applied::Late)));
            }
            let head = Head { count: *revision, ..Head::mark(Kind::Verdict, *key, moment) };
            Plan::record(head, verdict, Done::Applied(Applied::New))
        }
        (Ask::Deliver { key, revision, sink }, Some(line)) => {
            if !awaits_delivery(&line, *revision, *sink) {
                return Plan::Reply(Ok(Done::Written));
            }
            let head = Head { count: *revision, tag: *sink, ..Head::mark(Kind::Delivered, *key, moment) };
            Plan::mark(head, Done::Written)
        }
        (Ask::Forget(key), Some(_)) => Plan::mark(Head::mark(Kind::Forgotten, *key, moment), Done::Written),
        (Ask::Bury { key, reason }, Some(line)) => {
            if matches!(line.slot.stage, Stage::Answered | Stage::Dead) {
                return Plan::Reply(Ok(Done::Written));
            }
            let head = Head { life: line.slot.life.saturating_add(1), ..Head::mark(Kind::Dead, *key, moment) };
            Plan::record(head, reason, Done::Written)
        }
        (Ask::Requeue(key), Some(line)) => {
            if line.slot.stage != Stage::Dead {
                return Plan::Reply(Ok(Done::Written));
            }
            if line.slot.life >= LIVES_MAX {
                return Plan::Reply(Err(StoreError::Refused(Refusal::Full)));
            }
            let head = Head { life: line.slot.life.saturating_add(1), ..Head::mark(Kind::Requeued, *key, moment) };
            Plan::mark(head, Done::Written)
        }
    }
}

fn takes_verdict(line: &Line, revision: u32) -> bool {
    match line.slot.stage {
        Stage::Dead => false,
        Stage::Answered => line.outcome.is_none_or(|outcome| revision > outcome.revision),
        Stage::Waiting | Stage::Sent | Stage::Received => true,
    }
}

fn awaits_delivery(line: &Line, revision: u32, sink: u8) -> bool {
    let answered = line.outcome.filter(|_| line.slot.stage == Stage::Answered);
    answered.is_some_and(|outcome| {
        outcome.revision == revision && outcome.delivered & 1u8.checked_shl(u32::from(sink)).unwrap_or(0) == 0
    })
}

impl Plan {
    fn mark(head: Head, done: Done) -> Self {
        Self::Write(Record::mark(head), done)
    }

    fn record(head: Head, payload: &Bytes, done: Done) -> Self {
        match Record::new(head, Vec::new(), payload.clone()) {
            Ok(record) => Self::Write(record, done),
            Err(_) => Self::Reply(Err(StoreError::Refused(Refusal::TooLarge))),
        }
    }
}

impl Ask {
    fn key(&self) -> CaseKey {
        match self {
            Self::Store(record, _) => record.head.key,
            Self::Attempt(key) | Self::Forget(key) | Self::Requeue(key) => *key,
            Self::Answer { key, .. } | Self::Deliver { key, .. } | Self::Bury { key, .. } => *key,
            Self::Clock(_) => NO_CASE,
        }
    }

    fn into_permit(self) -> Option<OwnedSemaphorePermit> {
        match self {
            Self::Store(_, permit) => Some(permit),
            _ => None,
        }
    }
}
