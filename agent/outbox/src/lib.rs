//! Keeps every case that was said to be stored, through kill, power cut and full disk.
//!
//! [`Outbox::store`] returns `Ok` once the case is durable. What the cases are worth, when they are sent and how
//! often is decided in core; here they are kept, walked in order, and given back. The parts:
//!
//! - `log`: append-only segments, the only truth. `disk` is the file system below it.
//! - `table`: what the log's records mean, one `line` per case in memory, in `block`s and in `order`.
//! - `commit`: the thread that owns the log, group commit. `plan`: which records answer what is asked for, and what
//!   gives way at a cap. `retire`: how room is given back.
//! - `index`: the blocks on disk (sled); `behind` is the thread that writes them after the fact.
//! - `recent`: the newest cases as the log still has them. `inspect`: reads the whole log and only says what is damaged.
//! - `open`: the threads begin and end. `recover`: reads the log back at the start, all of it or what the queue lacks.
//!   `recall`: reads one case.
//!
//! ```text
//! waiting ⇄ sent ⇄ received → answered(revision, delivered to sinks) → forgotten
//!        └───────┴─────────┴→ dead → (requeue) waiting, (a late verdict) answered, (forget) forgotten
//! ```
//! `answered`, `dead` and `forgotten` are on disk when the call returns; how far sending has come is not.
//!
//! What must hold, whatever is changed here:
//!
//! - Nobody is told `stored` before the sync has returned *and* the folder was looked at afterwards: a log that was deleted or
//!   covered by a mount takes writes happily.
//! - The table changes after the disk and before the caller hears of it, so that whoever was told `stored` finds the case.
//! - Only the log's thread writes the log, and a batch holds one operation a case: each is planned against what is
//!   durable, never against another plan.
//! - A segment goes only when it is the oldest: a tombstone must not go before the record that it ends.
//! - A tombstone goes before the case that takes its room, so that the caps hold wherever a cut falls.
//! - After a failed sync nothing more goes into that file. The kernel may have dropped the pages and calls the next sync a
//!   success; what was not promised is cut off, and the next record begins a new segment.
//! - A full disk still takes verdicts and tombstones: the reserve is theirs, never a case's.
//! - The queue (sled) may be wrong, late or gone. It only saves reading: everything in it comes from the log, up to a
//!   position that is written with it.

mod behind;
mod block;
mod case;
mod commit;
mod disk;
pub mod files;
mod index;
mod inspect;
mod line;
mod log;
mod open;
mod order;
mod plan;
mod recall;
mod recent;
#[cfg(any(test, fuzzing, feature = "decoders"))]
pub mod records;
mod recover;
mod retire;
mod shared;
mod table;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::io;
use std::pin::Pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::thread::JoinHandle;

use bytes::Bytes;
use hedge_core::clock::Moment;
use hedge_proto::{CaseKey, Refusal};
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot, watch};

use self::case::sink_bit;
use self::commit::Request;
use self::disk::Place;
use self::log::reader::RecordError;
use self::log::record::{Head, Kind, Record};
use self::order::Class;
use self::plan::{Ask, Done};
use self::shared::Shared;

pub use self::case::{
    Applied, Drops, Entry, Figures, Limits, NewCase, OpenError, OpenReport, Progress, ReadError, SINKS_MAX, State,
    StoreError, StoredCase, Trouble,
};
pub use self::inspect::{Damage, Inspection};
pub use self::log::record::HEADER_BYTES_MAX;
pub use self::recent::Recent;

/// The most requests that wait for the log's thread; more are refused as [`Refusal::Overloaded`].
const REQUESTS_MAX: usize = 1024;
/// The most payload bytes that wait for the log's thread.
const REQUEST_BYTES_MAX: usize = 32 * 1024 * 1024;
/// So many expired cases are ended under one sync: callers who store meanwhile wait little longer.
const EXPIRED_AT_ONCE_MAX: usize = 256;
/// A reader whose record was moved looks again this often.
const READ_TRIES_MAX: usize = 4;

/// The durable queue of cases. Cloning is cheap; the last clone to go stops the threads.
#[derive(Clone)]
pub struct Outbox {
    inner: Arc<Inner>,
}

struct Inner {
    shared: Arc<Shared>,
    limits: Limits,
    requests: Mutex<Option<mpsc::Sender<Request>>>,
    request_bytes: Arc<Semaphore>,
    threads: Mutex<Option<(JoinHandle<()>, behind::Stop)>>,
    /// Why it takes nothing at all.
    refuses: Option<String>,
    /// Held as long as the outbox is open.
    _lock: Option<File>,
}

impl Outbox {
    /// Stores a case. `Ok` means it survives a power cut; a key that is there already is `Ok` and changes nothing.
    /// The key of a forgotten case must not be used again.
    pub async fn store(&self, case: NewCase) -> Result<(), Refusal> {
        self.submit(case)?.await
    }

    /// Hands a case over without waiting for the disk. Dropping the receipt does not take the case back.
    pub fn submit(&self, case: NewCase) -> Result<Receipt, Refusal> {
        if self.inner.refuses.is_some() {
            return Err(Refusal::Disk);
        }
        let NewCase { key, sort_key, stored_at, header, payload } = case;
        if payload.len() as u64 > self.inner.limits.payload_bytes_max {
            return Err(Refusal::TooLarge);
        }
        let permits = u32::try_from(payload.len().min(REQUEST_BYTES_MAX)).map_err(|_| Refusal::TooLarge)?;
        let head = Head { sort_key, ..Head::mark(Kind::Case, key, stored_at) };
        let permit =
            Arc::clone(&self.inner.request_bytes).try_acquire_many_owned(permits).map_err(|_| Refusal::Overloaded)?;
        let record = Record::new(head, header, payload).map_err(|_| Refusal::TooLarge)?;
        let (reply, receipt) = oneshot::channel();
        let requests = self.inner.requests().ok_or(Refusal::Stopping)?;
        requests.try_send((Ask::Store(record, permit), reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => Refusal::Overloaded,
            mpsc::error::TrySendError::Closed(_) => Refusal::Stopping,
        })?;
        Ok(Receipt(receipt))
    }

    #[must_use]
    pub fn lookup(&self, key: CaseKey) -> Option<Entry> {
        self.inner.shared.table().get(key).map(|line| line.entry(key))
    }

    /// Up to `n` cases without a verdict, the highest sort key first; of those that were never sent only the ones whose
    /// payloads are smaller than `below_bytes`.
    #[must_use]
    pub fn fetch(&self, n: usize, below_bytes: u32) -> Vec<Entry> {
        let wanted = |entry: &Entry| entry.state != State::Waiting || entry.payload_bytes < below_bytes;
        self.inner.shared.table().walk(Class::Open, n, wanted)
    }

    /// Up to `n` answered cases whose verdict `sink` has not confirmed, the oldest verdict first.
    #[must_use]
    pub fn undelivered(&self, sink: u8, n: usize) -> Vec<Entry> {
        let bit = sink_bit(sink.into());
        let lacking = |entry: &Entry| matches!(entry.state, State::Answered { delivered, .. } if delivered & bit == 0);
        self.inner.shared.table().walk(Class::Answered, n, lacking)
    }

    /// All answered cases, the oldest verdict first.
    #[must_use]
    pub fn all_answered(&self) -> Vec<Entry> {
        self.inner.shared.table().walk(Class::Answered, usize::MAX, |_| true)
    }

    /// Up to `n` dead letters, the highest sort key first.
    #[must_use]
    pub fn dead_letters(&self, n: usize) -> Vec<Entry> {
        self.inner.shared.table().walk(Class::Dead, n, |_| true)
    }

    /// Reads a case from the log; `None` if there is none. A damaged one is ended and counted.
    /// Blocks on the disk: not for async workers.
    pub fn read(&self, key: CaseKey) -> Result<Option<StoredCase>, ReadError> {
        self.look(key).inspect_err(|error| {
            if matches!(error, ReadError::Damaged) {
                self.set_aside(key);
            }
        })
    }

    /// Like [`Self::read`], but leaves a damaged case where it is.
    pub fn look(&self, key: CaseKey) -> Result<Option<StoredCase>, ReadError> {
        let mut tries = READ_TRIES_MAX;
        loop {
            let Some(line) = self.inner.shared.table().get(key) else { return Ok(None) };
            tries -= 1;
            let error = match recall::read(&*self.inner.shared.disk, key, &line) {
                Ok(case) => return Ok(Some(case)),
                Err(error) => error,
            };
            // Copying to the head may have moved it meanwhile.
            let moved = self.inner.shared.table().get(key).is_none_or(|now| now != line);
            if moved && tries > 0 {
                continue;
            }
            return Err(match error {
                RecordError::Io(error) if self.inner.shared.disk.place() != Place::Here => ReadError::Io(error),
                RecordError::Io(error) if error.kind() != io::ErrorKind::NotFound => ReadError::Io(error),
                RecordError::Io(_) | RecordError::Damaged => ReadError::Damaged,
            });
        }
    }

    /// Notes how far sending has come. Not durable; nothing for a case that is not open.
    #[expect(clippy::unused_async, reason = "callers must not depend on it never waiting")]
    pub async fn mark(&self, marks: Vec<(CaseKey, Progress)>) {
        let mut table = self.inner.shared.table();
        for (key, progress) in marks {
            table.mark(key, progress);
        }
        drop(table);
        self.inner.shared.changed.notify_one();
    }

    /// Counts a failed try and returns how many there are. On disk when it returns.
    pub async fn attempt(&self, key: CaseKey) -> Result<u32, StoreError> {
        match self.ask(Ask::Attempt(key)).await? {
            Done::Attempts(count) => Ok(count),
            Done::Written | Done::Applied(_) => Ok(0),
        }
    }

    /// Takes a verdict if the case is open or a dead letter, or the revision higher than the one it has.
    pub async fn answered(&self, key: CaseKey, revision: u32, verdict: Vec<u8>) -> Result<Applied, StoreError> {
        if self.inner.refuses.is_some() {
            // Its case may lie in the folder: it is asked about once that can be read again.
            return Ok(Applied::Unknown);
        }
        match self.ask(Ask::Answer { key, revision, verdict: verdict.into() }).await? {
            Done::Applied(applied) => Ok(applied),
            Done::Written | Done::Attempts(_) => Ok(Applied::New),
        }
    }

    /// Notes that sink `sink` (below [`SINKS_MAX`]) has this revision.
    pub async fn delivered(&self, key: CaseKey, revision: u32, sink: u8) -> Result<(), StoreError> {
        self.ask(Ask::Deliver { key, revision, sink }).await.map(drop)
    }

    /// Ends a case for good. Fine if there is none.
    pub async fn forget(&self, key: CaseKey) -> Result<(), StoreError> {
        self.ask(Ask::Forget(key)).await.map(drop)
    }

    /// Makes an open case a dead letter. An answered one stays answered.
    pub async fn dead(&self, key: CaseKey, reason: &str) -> Result<(), StoreError> {
        self.ask(Ask::Bury { key, reason: Bytes::copy_from_slice(reason.as_bytes()) }).await.map(drop)
    }

    /// Makes a dead letter wait again, with no failed tries.
    pub async fn requeue(&self, key: CaseKey) -> Result<(), StoreError> {
        self.ask(Ask::Requeue(key)).await.map(drop)
    }

    /// Ends and counts what was stored before `too_early`, whatever has become of it. Returns how many there were.
    pub async fn expire(&self, too_early: Moment) -> Result<u64, StoreError> {
        let mut ended = 0;
        loop {
            let old = self.inner.shared.table().stored_before(too_early, EXPIRED_AT_ONCE_MAX);
            if old.is_empty() {
                return Ok(ended);
            }
            let mut asked = Vec::new();
            for entry in old {
                asked.push((entry.state, self.send(Ask::Forget(entry.key)).await?));
            }
            for (state, done) in asked {
                done.await.unwrap_or(Err(StoreError::Stopping))?;
                let shared = &self.inner.shared;
                let counter = if state.is_answered() { &shared.undelivered } else { &shared.expired };
                counter.fetch_add(1, Ordering::Relaxed);
                ended += 1;
            }
        }
    }

    /// Writes the powered clock down.
    pub async fn clock(&self, now: Moment) -> Result<(), StoreError> {
        self.ask(Ask::Clock(now)).await.map(drop)
    }

    /// Why nothing can be stored now, as it changes.
    #[must_use]
    pub fn trouble(&self) -> watch::Receiver<Option<Trouble>> {
        self.inner.shared.trouble.subscribe()
    }

    /// Looks whether the folder is still there, for an outbox that is not written to. Blocks on the disk.
    pub fn look_for_folder(&self) {
        match self.inner.shared.disk.place() {
            Place::Here if self.is_cut_short() => self.inner.shared.note(Some(Trouble::Gone)),
            Place::Here => {}
            Place::Elsewhere => self.inner.shared.note(Some(Trouble::Elsewhere)),
            Place::Gone => self.inner.shared.note(Some(Trouble::Gone)),
        }
    }

    /// Whether somebody has deleted segments or cut them short. Twice in a row while the log stayed as it was, because its
    /// thread tells of a segment that it removed a moment later.
    fn is_cut_short(&self) -> bool {
        let shared = &self.inner.shared;
        let told = shared.log_bytes.load(Ordering::Relaxed);
        let is_short = shared.disk.bytes().is_ok_and(|bytes| bytes < told);
        shared.short_of.swap(if is_short { told } else { 0 }, Ordering::Relaxed) == told && is_short
    }

    /// Up to `cases_max` cases stored at `not_before` or later, as the log still has them; the newest first. Blocks on
    /// the disk: not for async workers.
    pub fn recent(&self, cases_max: usize, not_before: Moment) -> io::Result<Vec<Recent>> {
        recent::cases(&*self.inner.shared.disk, cases_max, not_before)
    }

    /// Returns once a case ends without a verdict: as a dead letter, or dropped. `stored` says whether it was known to
    /// be here; one that is still on its way to the disk is waited for.
    pub async fn ended(&self, key: CaseKey, mut stored: bool) {
        // Before the first look: what ends between look and subscription would be waited for without end.
        let mut endings = self.inner.shared.endings.subscribe();
        loop {
            match self.lookup(key).map(|entry| entry.state) {
                Some(State::Dead) => return,
                None if stored => return,
                state => stored = state.is_some(),
            }
            loop {
                match endings.recv().await {
                    Ok(ended) if ended == key => return,
                    Ok(_) => {}
                    // It may have been among those that were missed.
                    Err(broadcast::error::RecvError::Lagged(_)) => break,
                    Err(broadcast::error::RecvError::Closed) => return,
                }
            }
        }
    }

    /// Reads the whole log and changes nothing. Blocks on the disk: not for async workers.
    pub fn inspect(&self) -> io::Result<Inspection> {
        let end = self.inner.shared.table().position();
        inspect::log(&*self.inner.shared.disk, Some(end))
    }

    /// Up to `n` of the `wanted` cases: the open ones as they are sent, then answered ones, then dead letters.
    #[must_use]
    pub fn all(&self, n: usize, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let table = self.inner.shared.table();
        let mut entries = Vec::new();
        for class in [Class::Open, Class::Answered, Class::Dead] {
            entries.extend(table.walk(class, n - entries.len(), &wanted));
        }
        entries
    }

    #[must_use]
    pub fn limits(&self) -> Limits {
        self.inner.limits
    }

    #[must_use]
    pub fn dropped(&self) -> Drops {
        self.inner.shared.dropped()
    }

    /// Counts and sizes; walks all cases for the oldest.
    #[must_use]
    pub fn figures(&self) -> Figures {
        let shared = &self.inner.shared;
        let table = shared.table();
        let totals = table.totals();
        Figures {
            waiting: totals.open,
            waiting_bytes: totals.open_bytes,
            answered: totals.answered,
            dead: totals.dead,
            live_bytes: totals.live_bytes,
            disk_bytes: shared.log_bytes.load(Ordering::Relaxed) + shared.queue_bytes.load(Ordering::Relaxed),
            written_bytes: shared.written_bytes.load(Ordering::Relaxed),
            damaged_records: shared.damaged_records.load(Ordering::Relaxed),
            oldest_stored_at: table.oldest_open(),
            queue_broken: shared.queue_broken.load(Ordering::Relaxed),
        }
    }

    async fn ask(&self, ask: Ask) -> Result<Done, StoreError> {
        self.send(ask).await?.await.unwrap_or(Err(StoreError::Stopping))
    }

    async fn send(&self, ask: Ask) -> Result<oneshot::Receiver<Result<Done, StoreError>>, StoreError> {
        if let Some(why) = &self.inner.refuses {
            return Err(StoreError::Disk(why.clone()));
        }
        let (reply, done) = oneshot::channel();
        let requests = self.inner.requests().ok_or(StoreError::Stopping)?;
        requests.send((ask, reply)).await.map_err(|_| StoreError::Stopping)?;
        Ok(done)
    }

    /// Ends a damaged case. If there is no room for the request now, the next read tries again.
    fn set_aside(&self, key: CaseKey) {
        let (reply, _) = oneshot::channel();
        let sent = self.inner.requests().is_some_and(|requests| requests.try_send((Ask::Forget(key), reply)).is_ok());
        if sent {
            self.inner.shared.count_damaged(1);
            tracing::warn!(epoch = key.epoch.0, sequence = key.sequence, "a damaged case is dropped from the outbox");
        }
    }
}

impl Inner {
    fn requests(&self) -> Option<mpsc::Sender<Request>> {
        self.requests.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Becomes ready once the case is durable or refused.
#[derive(Debug)]
pub struct Receipt(oneshot::Receiver<Result<Done, StoreError>>);

impl Future for Receipt {
    type Output = Result<(), Refusal>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.0).poll(context).map(|result| match result {
            Ok(done) => done.map(drop).map_err(StoreError::into_refusal),
            Err(_) => Err(Refusal::Stopping),
        })
    }
}
