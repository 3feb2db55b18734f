//! Which records answer what is asked for, and what gives way when there is no room.
//!
//! Everything is planned against what is durable. What gives way to what, and which verdict counts, are core's rules;
//! writing is up to `commit`.

use std::collections::HashSet;

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_core::outbox::{EVICTIONS_MAX, WhenFull, gives_way};
use hedge_core::verdict::{Known, Ruling, rule};
use hedge_proto::{CaseKey, Epoch, Refusal};
use tokio::sync::OwnedSemaphorePermit;

use super::case::{Applied, Limits, StoreError, sink_bit};
use super::disk::Disk;
use super::line::{Line, Stage};
use super::log::record::{Head, Kind, Record};
use super::order::Class;
use super::table::Table;

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

pub(super) enum Plan {
    Write(Record, Done, Option<OwnedSemaphorePermit>),
    /// A new case for which others have to give way.
    Replace(Vec<CaseKey>, Record, OwnedSemaphorePermit),
    Reply(Result<Done, StoreError>),
}

/// What still fits, counting what the batch already takes.
pub(super) struct Room {
    when_full: WhenFull,
    cases: u64,
    bytes: u64,
    disk_bytes: u64,
}

impl Room {
    /// `owed_bytes` of the disk belong to somebody else.
    pub(super) fn new(limits: &Limits, table: &Table, disk: &dyn Disk, owed_bytes: u64) -> Self {
        let totals = table.totals();
        // A disk that cannot even say how much is free is asked to take the case.
        let free = disk.free_bytes().unwrap_or(u64::MAX);
        Self {
            when_full: limits.when_full,
            cases: limits.cases_max.saturating_sub(totals.cases()),
            bytes: limits.bytes_max.saturating_sub(totals.live_bytes),
            disk_bytes: free.saturating_sub(limits.free_bytes_min).saturating_sub(owed_bytes),
        }
    }

    fn holds(&self, bytes: u64) -> bool {
        self.cases > 0 && self.bytes >= bytes
    }

    /// Takes room for a new case; those returned have to give way for it.
    fn take(&mut self, record: &Record, table: &Table, taken: &HashSet<CaseKey>) -> Result<Vec<CaseKey>, Refusal> {
        let bytes = record.bytes();
        if self.disk_bytes < bytes {
            return Err(Refusal::Disk);
        }
        let mut evicted = Vec::new();
        if !self.holds(bytes) {
            let (mut cases, mut freed) = (self.cases, self.bytes);
            if self.when_full == WhenFull::RefuseNew {
                return Err(Refusal::Full);
            }
            evicted = evict(table, record.head.sort_key, taken, |line| {
                if cases > 0 && freed >= bytes {
                    return false;
                }
                cases += 1;
                freed += line.live_bytes();
                true
            });
            if cases == 0 || freed < bytes {
                return Err(Refusal::Full);
            }
            (self.cases, self.bytes) = (cases, freed);
        }
        self.cases -= 1;
        self.bytes -= bytes;
        self.disk_bytes -= bytes;
        Ok(evicted)
    }
}

/// Takes cases that give way to one of this sort key, as long as they are `needed`: dead letters, then the lowest.
fn evict(
    table: &Table,
    sort_key: f64,
    taken: &HashSet<CaseKey>,
    mut needed: impl FnMut(&Line) -> bool,
) -> Vec<CaseKey> {
    let mut evicted = Vec::new();
    let dead = (table.totals().dead > 0).then_some(Class::Dead);
    for class in dead.into_iter().chain([Class::Open]) {
        let not_taken = table.lowest_first(class).filter(|(key, _)| !taken.contains(key));
        for (key, line) in not_taken.take(EVICTIONS_MAX - evicted.len()) {
            let yields = class == Class::Dead || gives_way(line.slot.sort_key, sort_key);
            if !yields || !needed(&line) {
                break;
            }
            evicted.push(key);
        }
    }
    evicted
}

/// What to do about one request. `taken` are the cases that the batch changes already.
pub(super) fn plan(table: &Table, room: &mut Room, taken: &HashSet<CaseKey>, ask: Ask) -> Plan {
    let moment = table.clock().unwrap_or_default();
    let line = table.get(ask.key());
    match (ask, line) {
        (Ask::Clock(now), _) => Plan::mark(Head::mark(Kind::Clock, NO_CASE, now), Done::Written),
        (Ask::Store(..), Some(_)) => Plan::Reply(Ok(Done::Written)), // stored before: the promise holds already
        (Ask::Store(record, permit), None) => match room.take(&record, table, taken) {
            Ok(evicted) if evicted.is_empty() => Plan::Write(record, Done::Written, Some(permit)),
            Ok(evicted) => Plan::Replace(evicted, record, permit),
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
            if rule(known(&line), revision) == Ruling::Late {
                return Plan::Reply(Ok(Done::Applied(Applied::Late)));
            }
            let head = Head { count: revision, ..Head::mark(Kind::Verdict, key, moment) };
            Plan::record(head, verdict, Done::Applied(Applied::New))
        }
        (Ask::Deliver { key, revision, sink }, Some(line)) => {
            if !awaits_delivery(&line, revision, sink) {
                return Plan::Reply(Ok(Done::Written));
            }
            let head = Head { count: revision, tag: sink.into(), ..Head::mark(Kind::Delivered, key, moment) };
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

fn known(line: &Line) -> Known {
    match (line.slot.stage, line.outcome) {
        (Stage::Answered, Some(outcome)) => Known::Answered { revision: outcome.revision },
        _ => Known::Open,
    }
}

fn awaits_delivery(line: &Line, revision: u32, sink: u8) -> bool {
    let answered = line.outcome.filter(|_| line.slot.stage == Stage::Answered);
    answered.is_some_and(|outcome| outcome.revision == revision && outcome.delivered & sink_bit(sink.into()) == 0)
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
    pub(super) fn key(&self) -> CaseKey {
        match self {
            Self::Store(record, _) => record.head.key,
            Self::Attempt(key) | Self::Forget(key) | Self::Requeue(key) => *key,
            Self::Answer { key, .. } | Self::Deliver { key, .. } | Self::Bury { key, .. } => *key,
            Self::Clock(_) => NO_CASE,
        }
    }
}
