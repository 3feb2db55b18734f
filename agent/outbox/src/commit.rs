//! The thread that owns the log: it gathers what waits, appends it, syncs once and acknowledges all.
//!
//! A batch holds at most one operation per case, so that every operation is planned against what is durable.

use std::collections::{HashSet, VecDeque};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_proto::{CaseKey, Refusal};
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot};

use super::case::{Limits, StoreError, Trouble};
use super::disk::Place;
use super::log::Pointer;
use super::log::record::{Head, Kind, Record};
use super::log::writer::{Committed, Writer};
use super::plan::{Ask, Done, Plan, Room, plan};
use super::shared::Shared;

/// The most operations under one sync.
const BATCH_OPS_MAX: usize = 1024;
/// The most bytes under one sync; a single larger record still goes alone.
const BATCH_BYTES_MAX: u64 = 8 * 1024 * 1024;
/// What verdicts and tombstones find on a full disk. Beside it the reserve holds one segment, so that the oldest
/// one can be copied and freed there: without that a full disk could stay full although most of it is dead.
const RESERVE_MARKS_BYTES: u64 = 512 * 1024;
/// How often tidying goes on while nobody asks for anything.
const TIDY: Duration = Duration::from_millis(200);

pub(crate) type Reply = oneshot::Sender<Result<Done, StoreError>>;
pub(crate) type Request = (Ask, Reply);

/// Records to be written together, and who waits for each.
#[derive(Default)]
struct Batch {
    records: Vec<Record>,
    waiters: Vec<Waiter>,
    /// The cases it changes.
    taken: HashSet<CaseKey>,
    bytes: u64,
}

/// Who waits for a record.
enum Waiter {
    Caller {
        is_case: bool,
        done: Done,
        reply: Reply,
        /// Freed with the batch.
        _permit: Option<OwnedSemaphorePermit>,
    },
    /// Nobody: the case gives way to the next one of the batch.
    Evicted,
}

pub(crate) struct Committer {
    pub(super) shared: Arc<Shared>,
    pub(super) writer: Writer,
    limits: Limits,
    waiting: VecDeque<Request>,
    reserve_kept: bool,
}

impl Committer {
    pub(crate) fn new(shared: Arc<Shared>, writer: Writer, limits: Limits) -> Self {
        let mut committer = Self { shared, writer, limits, waiting: VecDeque::new(), reserve_kept: false };
        // Of an earlier run: a disk that is full now has no room for another.
        committer.reserve_kept = committer.shared.disk.has_reserve(committer.reserve_bytes());
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
                // Only once nothing waits any more: a channel gives out what it holds before it ends.
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
        let Batch { records, waiters, .. } = self.plan();
        let written = self.write(&records);
        if !records.is_empty() {
            let refused = written.error.as_ref().map(|error| Trouble::Refused(error.to_string()));
            self.shared.note(self.lost().or(refused));
        }
        let mut waiters = waiters.into_iter();
        // Durable and in the table by now: a caller that reads at once finds its case.
        waiters.by_ref().take(written.durable.len()).for_each(|waiter| waiter.satisfy(&self.shared));
        if let Some(error) = written.error {
            let rest = records.into_iter().skip(written.durable.len()).zip(waiters).collect();
            self.fail(rest, &error);
        }
        self.tidy_step();
        self.shared.changed.notify_one();
    }

    /// Refuses cases, and gives up the reserve so that the rest still finds room.
    fn fail(&mut self, rest: Vec<(Record, Waiter)>, error: &io::Error) {
        let (cases, marks): (Vec<_>, Vec<_>) = rest.into_iter().partition(|(_, waiter)| waiter.is_for_a_case());
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
                waiter.satisfy(&self.shared);
            } else {
                waiter.refuse(&failure);
            }
        }
    }

    /// Where the log went, if what is written to it now will not be found by a start.
    fn lost(&self) -> Option<Trouble> {
        match self.shared.disk.place() {
            Place::Elsewhere => Some(Trouble::Elsewhere),
            Place::Gone => Some(Trouble::Gone),
            Place::Here => self.writer.head_is_spoilt().then_some(Trouble::Gone),
        }
    }

    /// Appends and syncs where a start will look. A folder may go while it is written to, so it is looked at afterwards,
    /// too: nothing that is said to be stored has gone by then.
    fn append(&mut self, records: &[Record]) -> Committed {
        if let Some(refused) = self.refused() {
            return refused;
        }
        let written = self.writer.commit(records);
        self.refused().unwrap_or(written)
    }

    /// Nothing is durable in a log that went away.
    fn refused(&mut self) -> Option<Committed> {
        let trouble = self.lost()?;
        // Noted first: a spoilt head is closed here, and would not be known as such any more.
        self.shared.note(Some(trouble.clone()));
        self.writer.close_head();
        Some(Committed { durable: Vec::new(), error: Some(io::Error::other(trouble.to_string())) })
    }

    /// Writes and applies: what is durable is also in the table.
    pub(super) fn write(&mut self, records: &[Record]) -> Committed {
        let written = self.append(records);
        let mut table = self.shared.table();
        let mut endings = Vec::new();
        for (record, at) in records.iter().zip(&written.durable) {
            let head = &record.head;
            let ends = matches!(head.kind, Kind::Forgotten | Kind::Dead)
                && table.get(head.key).is_some_and(|line| line.entry(head.key).state.is_open());
            endings.extend(ends.then_some(head.key));
            table.apply(head, *at);
        }
        if let Some((record, at)) = records.iter().zip(&written.durable).next_back() {
            let end = u64::from(at.offset) + record.bytes();
            table.set_position(Pointer { segment: at.segment, offset: u32::try_from(end).unwrap_or(u32::MAX) });
        }
        drop(table);
        // An error means that nobody waits for one.
        endings.into_iter().for_each(|key| drop(self.shared.endings.send(key)));
        self.publish();
        written
    }

    /// Takes operations from the front until one has to wait for this batch.
    fn plan(&mut self) -> Batch {
        let shared = Arc::clone(&self.shared);
        let table = shared.table();
        // A reserve that was given up is taken again before new cases get any room.
        let owed_bytes = if self.reserve_kept { 0 } else { self.reserve_bytes() };
        let mut room = Room::new(&self.limits, &table, &*self.shared.disk, owed_bytes);
        let mut batch = Batch::default();
        while batch.bytes < BATCH_BYTES_MAX && batch.records.len() < BATCH_OPS_MAX {
            if self.waiting.front().is_none_or(|(ask, _)| batch.taken.contains(&ask.key())) {
                break;
            }
            let Some((ask, reply)) = self.waiting.pop_front() else { break };
            match plan(&table, &mut room, &batch.taken, ask) {
                Plan::Write(record, done, permit) => batch.add(record, done, reply, permit),
                Plan::Replace(evicted, record, permit) => {
                    let moment = table.clock().unwrap_or_default();
                    evicted.into_iter().for_each(|key| batch.evict(key, moment));
                    batch.add(record, Done::Written, reply, Some(permit));
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

    fn reserve_bytes(&self) -> u64 {
        RESERVE_MARKS_BYTES + with_overhead(self.writer.segment_bytes())
    }

    /// Whether the reserve is there; tries to take it again once there is room for it.
    pub(super) fn keep_reserve(&mut self) -> bool {
        if self.reserve_kept {
            return true;
        }
        let bytes = self.reserve_bytes();
        let wanted = self.limits.free_bytes_min.saturating_add(bytes);
        let room = self.shared.disk.free_bytes().is_ok_and(|free| free > wanted);
        if room {
            self.reserve_kept = self.shared.disk.keep_reserve(Some(bytes)).is_ok();
        }
        self.reserve_kept || !room
    }

    /// Whether so many live bytes can be copied to the head and tombstones still find room; gives up the reserve
    /// if that is what it takes.
    pub(super) fn has_room_to_copy(&mut self, bytes: u64) -> bool {
        let Ok(free) = self.shared.disk.free_bytes() else { return true };
        let needed = with_overhead(bytes) + RESERVE_MARKS_BYTES / 2;
        if free < needed && self.reserve_kept && free + self.reserve_bytes() >= needed {
            self.give_up_reserve();
            return true;
        }
        free >= needed
    }

    fn give_up_reserve(&mut self) {
        self.reserve_kept = false;
        if let Err(error) = self.shared.disk.keep_reserve(None) {
            tracing::debug!(%error, "the outbox's reserve cannot be removed");
        }
    }
}

/// An eighth more, for heads and blocks of the file system.
fn with_overhead(bytes: u64) -> u64 {
    bytes + bytes / 8
}

impl Batch {
    fn add(&mut self, record: Record, done: Done, reply: Reply, permit: Option<OwnedSemaphorePermit>) {
        let is_case = record.head.kind == Kind::Case;
        self.push(record, Waiter::Caller { is_case, done, reply, _permit: permit });
    }

    /// The tombstone goes before the case that takes the room, so that the caps hold whatever a cut leaves of both.
    fn evict(&mut self, key: CaseKey, moment: Moment) {
        self.push(Record::mark(Head::mark(Kind::Forgotten, key, moment)), Waiter::Evicted);
    }

    fn push(&mut self, record: Record, waiter: Waiter) {
        self.taken.insert(record.head.key);
        self.bytes += record.bytes();
        self.records.push(record);
        self.waiters.push(waiter);
    }
}

impl Waiter {
    /// A disk that refuses a case also keeps what should have given way to it.
    fn is_for_a_case(&self) -> bool {
        matches!(self, Self::Caller { is_case: true, .. } | Self::Evicted)
    }

    fn satisfy(self, shared: &Shared) {
        match self {
            Self::Caller { done, reply, .. } => answer(reply, Ok(done)),
            Self::Evicted => drop(shared.evicted.fetch_add(1, Ordering::Relaxed)),
        }
    }

    fn refuse(self, error: &io::Error) {
        match self {
            Self::Caller { is_case: true, reply, .. } => answer(reply, Err(StoreError::Refused(Refusal::Disk))),
            Self::Caller { reply, .. } => answer(reply, Err(StoreError::Disk(error.to_string()))),
            Self::Evicted => {}
        }
    }
}

/// A caller that no longer waits has lost nothing: what it asked for is done.
fn answer(reply: Reply, result: Result<Done, StoreError>) {
    drop(reply.send(result));
}
