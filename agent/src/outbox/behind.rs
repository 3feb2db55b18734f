//! The thread that keeps the queue on disk up to date, behind the acknowledgements.
//!
//! It never makes a caller wait, except when it lags so far behind that memory would grow. A queue that cannot be
//! written (a full disk breaks sled) is given up until it can be made anew; order is kept in memory meanwhile.

use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::index::{self, IndexError, Summary};
use super::shared::Shared;

/// A change waits this long for others: fewer, larger batches write less.
const GATHER: Duration = Duration::from_millis(100);
/// Enough changes for a batch of their own.
const GATHER_CHANGES: usize = 4096;
/// Commits wait when this many changes are not in the queue: about 6 MiB of memory.
const LAG_CHANGES_MAX: usize = 32 * 1024;
/// What a kill costs at the next start is what was stored in so much time.
const CHECKPOINT: Duration = Duration::from_secs(10);
/// A broken queue is made anew at the earliest after this.
const RENEW: Duration = Duration::from_secs(60);

pub(crate) struct Behind {
    shared: Arc<Shared>,
    summary: Summary,
    checkpoint_due: Option<Instant>,
    renew_due: Option<Instant>,
}

/// Stops the thread and waits for it.
pub(crate) struct Stop {
    thread: JoinHandle<()>,
}

impl Behind {
    pub(crate) fn start(shared: Arc<Shared>, summary: Summary) -> std::io::Result<Stop> {
        let renew_due = shared.table().queue.is_none().then(|| Instant::now() + RENEW);
        let mut behind = Self { shared, summary, checkpoint_due: None, renew_due };
        let thread = std::thread::Builder::new().name("outbox-queue".into()).spawn(move || behind.run())?;
        Ok(Stop { thread })
    }

    fn run(&mut self) {
        loop {
            let stopping = self.wait();
            self.write();
            let due = |at: Option<Instant>| at.is_some_and(|at| Instant::now() >= at);
            if stopping || due(self.checkpoint_due) {
                self.checkpoint();
            }
            if stopping {
                self.shared.table().queue = None;
                return;
            }
            if due(self.renew_due) {
                self.renew();
            }
        }
    }

    /// Returns when there is something to write or to do, and whether the outbox stops.
    fn wait(&self) -> bool {
        let shared = &self.shared;
        let table = shared.table();
        let alarm = [self.checkpoint_due, self.renew_due].into_iter().flatten().min();
        let idle = |table: &super::table::Table| table.dirty_len() == 0 && !table.stopping;
        let table = match alarm {
            None => shared.changed.wait_while(table, |table| idle(table)).unwrap_or_else(PoisonError::into_inner),
            Some(at) => {
                let wait = at.saturating_duration_since(Instant::now());
                let woken = shared.changed.wait_timeout_while(table, wait, |table| idle(table));
                woken.unwrap_or_else(PoisonError::into_inner).0
            }
        };
        let few = |table: &super::table::Table| (1..GATHER_CHANGES).contains(&table.dirty_len()) && !table.stopping;
        let woken = shared.changed.wait_timeout_while(table, GATHER, |table| few(table));
        woken.unwrap_or_else(PoisonError::into_inner).0.stopping
    }

    fn write(&mut self) {
        let (queue, mut changes) = {
            let mut table = self.shared.table();
            (table.queue.clone(), table.take_changes())
        };
        let moved = changes.position != self.summary.position;
        let Some(queue) = queue.filter(|_| moved || !changes.lines.is_empty()) else {
            self.shared.settled.notify_all();
            return;
        };
        match index::write(&queue, &mut changes, &mut self.summary) {
            Ok(()) => {
                self.shared.table().settle(&changes.lines);
                self.checkpoint_due.get_or_insert_with(|| Instant::now() + CHECKPOINT);
            }
            Err(error) => self.give_up(&error),
        }
        self.shared.settled.notify_all();
    }

    fn checkpoint(&mut self) {
        self.checkpoint_due = None;
        let Some(queue) = self.shared.table().queue.clone() else { return };
        if let Err(error) = index::checkpoint(&queue, &self.shared.queue_path) {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &IndexError) {
        tracing::warn!(%error, "the outbox's queue cannot be written; its order is kept in memory for now");
        self.shared.table().renew_queue(None);
        self.checkpoint_due = None;
        self.renew_due = Some(Instant::now() + RENEW);
    }

    fn renew(&mut self) {
        let path = &self.shared.queue_path;
        let renewed = index::set_aside(path).map_err(IndexError::Io).and_then(|()| index::make(path));
        match renewed {
            Ok(queue) => {
                self.shared.table().renew_queue(Some(queue));
                self.summary = Summary::default();
                self.renew_due = None;
                tracing::info!("the outbox's queue is written again");
            }
            Err(error) => {
                tracing::debug!(%error, "the outbox's queue still cannot be written");
                self.renew_due = Some(Instant::now() + RENEW);
            }
        }
    }
}

impl Stop {
    /// Writes what is left, makes it durable and ends the thread.
    pub(crate) fn join(self, shared: &Shared) {
        shared.table().stopping = true;
        shared.changed.notify_all();
        if self.thread.join().is_err() {
            tracing::error!("the outbox's queue thread panicked; the queue is rebuilt at the next start");
        }
    }
}

/// Tells the thread of changes; waits while it lags too far behind.
pub(crate) fn tell(shared: &Shared, lag_extra: usize) {
    let table = shared.table();
    shared.changed.notify_one();
    let lag_max = LAG_CHANGES_MAX + lag_extra;
    drop(shared.settled.wait_while(table, |table| table.dirty_len() > lag_max && table.queue.is_some()));
}
