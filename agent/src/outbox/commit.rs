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

/// Records to be written together, and who waits for each.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    waiters: Vec<Waiter>,
}

struct Waiter {
    is_case: bool,
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
        let Batch { records, waiters } = self.plan();
        let written = self.write(&records);
        let mut waiters = waiters.into_iter();
        for waiter in waiters.by_ref().take(written.durable.len()) {
            answer(waiter.reply, Ok(waiter.done));
        }
        if let Some(error) = written.error {
            let rest = records.into_iter().skip(written.durable.len()).zip(waiters).collect();
            self.fail(rest, &error);
        }
        self.tidy_step();
        behind::tell(&self.shared, self.lag_extra);
    }

    /// Refuses cases, and gives up the reserve so that the rest still finds room.
    fn fail(&mut self, rest: Vec<(Record, Waiter)>, error: &io::Error) {
        tracing::warn!(%error, "the disk refuses the outbox's log");
        let (cases, marks): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, waiter)| waiter.is_case);
        cases.into_iter().for_each(|(_, waiter)| waiter.refuse(error));
        let (records, waiters): (Vec<_>, Vec<_>) = marks.into_iter().unzip();
        if records.is_empty() {
            return;
        }
        self.give_up_reserve();
        let retried = self.write(&records);
        let failure = retried.error.unwrap_or_else(|| io::Error::other("not written"));
        for (number, waiter) in waiters.into_iter().enumerate() {
            if number < retried.durable.len() {
                answer(waiter.reply, Ok(waiter.done));
            } else {
                waiter.refuse(&failure);
            }
        }
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

    /// Takes operations from the front until one has to wait for this batch.
    fn plan(&mut self) -> Batch {
        let shared = Arc::clone(&self.shared);
        let table = shared.table();
        let mut room = Room::new(&self.limits, &table, &*self.shared.disk);
        let mut batch = Batch::default();
        let mut taken = HashSet::new();
        let mut bytes = 0;
        while bytes < BATCH_BYTES_MAX && batch.records.len() < BATCH_OPS_MAX {
            if self.waiting.front().is_none_or(|(ask, _)| taken.contains(&ask.key())) {
                break;
            }
            let Some((ask, reply)) = self.waiting.pop_front() else { break };
            let key = ask.key();
            match plan(&table, &mut room, ask) {
                Plan::Write(record, done, permit) => {
                    taken.insert(key);
                    bytes += record.bytes();
                    let is_case = record.head.kind == Kind::Case;
                    batch.records.push(record);
                    batch.waiters.push(Waiter { is_case, done, reply, _permit: permit });
                }
                Plan::Reply(result) => answer(reply, result),
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

impl Waiter {
    fn refuse(self, error: &io::Error) {
        let failure =
            if self.is_case { StoreError::Refused(Refusal::Disk) } else { StoreError::Disk(error.to_string()) };
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
    Write(Record, Done, Option<OwnedSemaphorePermit>),
    Reply(Result<Done, StoreError>),
}

fn plan(table: &Table, room: &mut Room, ask: Ask) -> Plan {
    let moment = table.clock().unwrap_or_default();
    let known = table.get(ask.key());
    match (ask, known) {
        (Ask::Clock(now), _) => Plan::mark(Head::mark(Kind::Clock, NO_CASE, now), Done::Written),
        (Ask::Store(..), Some(_)) => Plan::Reply(Ok(Done::Written)), // stored before: the promise holds already
        (Ask::Store(record, permit), None) => match room.take(record.bytes()) {
            Ok(()) => Plan::Write(record, Done::Written, Some(permit)),
            Err(refusal) => Plan::Reply(Err(StoreError::Refused(refusal))),
        },
        (Ask::Answer { .. }, None) => Plan::Reply(Ok(Done::Applied(Applied::Unknown))),
        (Ask::Forget(_), None) => Plan::Reply(Ok(Done::Written)),
        (_, None) => Plan::Reply(Err(StoreError::Unknown)),
        (Ask::Attempt(key), Some(line)) => {
            let count = u32::from(line.slot.attempts.saturating_add(1));
            let head = Head { life: line.slot.life, count, ..Head::mark(Kind::Attempt, key, moment) };
            Plan::mark(head, Done::Attempts(count))
        }
        (Ask::Answer { key, revision, verdict }, Some(line)) => {
            if !takes_verdict(&line, revision) {
                return Plan::Reply(Ok(Done::Applied(Applied::Late)));
            }
            let head = Head { count: revision, ..Head::mark(Kind::Verdict, key, moment) };
            Plan::record(head, verdict, Done::Applied(Applied::New))
        }
        (Ask::Deliver { key, revision, sink }, Some(line)) => {
            if !awaits_delivery(&line, revision, sink) {
                return Plan::Reply(Ok(Done::Written));
            }
            let head = Head { count: revision, tag: sink, ..Head::mark(Kind::Delivered, key, moment) };
            Plan::mark(head, Done::Written)
        }
        (Ask::Forget(key), Some(_)) => Plan::mark(Head::mark(Kind::Forgotten, key, moment), Done::Written),
        (Ask::Bury { key, reason }, Some(line)) => {
            if matches!(line.slot.stage, Stage::Answered | Stage::Dead) {
                return Plan::Reply(Ok(Done::Written));
            }
            let head = Head { life: line.slot.life.saturating_add(1), ..Head::mark(Kind::Dead, key, moment) };
            Plan::record(head, reason, Done::Written)
        }
        (Ask::Requeue(key), Some(line)) => {
            if line.slot.stage != Stage::Dead {
                return Plan::Reply(Ok(Done::Written));
            }
            if line.slot.life >= LIVES_MAX {
                return Plan::Reply(Err(StoreError::Refused(Refusal::Full)));
            }
            let head = Head { life: line.slot.life.saturating_add(1), ..Head::mark(Kind::Requeued, key, moment) };
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
        Self::Write(Record::mark(head), done, None)
    }

    fn record(head: Head, payload: Bytes, done: Done) -> Self {
        match Record::new(head, Vec::new(), payload) {
            Ok(record) => Self::Write(record, done, None),
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
}
