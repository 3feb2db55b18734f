//! The thread that keeps the queue on disk up to date, behind the acknowledgements.
//!
//! It never makes a caller wait. A queue that cannot be written (a full disk breaks sled) is given up until it can
//! be made anew; the table is kept in memory meanwhile, as always.

use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::index::{IndexError, Queue};
use super::shared::Shared;
use super::table::Table;

/// A change waits so long for others in its block: what a kill costs at the next start is what was stored in so
/// much time.
const GATHER: Duration = Duration::from_secs(10);
/// Enough changes not to wait for more: a start replays them in a quarter of a second. In tests few, so that short
/// ones see them written.
const GATHER_CHANGES: usize = if cfg!(test) { 8 } else { 64 * 1024 };
/// A broken queue is made anew at the earliest after this.
const RENEW: Duration = Duration::from_secs(60);

pub(crate) struct Behind {
    shared: Arc<Shared>,
    /// None while it cannot be written.
    queue: Option<Queue>,
}

/// Stops the thread and waits for it.
pub(crate) struct Stop {
    thread: JoinHandle<()>,
}

impl Behind {
    pub(crate) fn start(shared: Arc<Shared>, queue: Option<Queue>) -> std::io::Result<Stop> {
        let mut behind = Self { shared, queue };
        behind.publish();
        let thread = std::thread::Builder::new().name("outbox-queue".into()).spawn(move || behind.run())?;
        Ok(Stop { thread })
    }

    fn run(&mut self) {
        loop {
            let stopping = self.wait();
            if self.queue.is_none() && !stopping {
                self.renew();
            }
            self.write();
            self.publish();
            if stopping {
                return;
            }
        }
    }

    /// Returns when there is something to write or to do, and whether the outbox stops.
    ///
    /// No wake-up is missed: `changes` and `stopping` are changed under the table's lock, which is held here from the look to
    /// the wait, and whoever changes them notifies afterwards.
    fn wait(&self) -> bool {
        let changed = &self.shared.changed;
        let mut table = self.shared.table();
        if self.queue.is_some() {
            let idle = |table: &mut Table| table.changes() == 0 && !table.stopping;
            table = changed.wait_while(table, idle).unwrap_or_else(PoisonError::into_inner);
        }
        let begun = Instant::now();
        let (most, enough) = match self.queue {
            Some(_) => (GATHER, GATHER_CHANGES),
            None => (RENEW, usize::MAX),
        };
        loop {
            let left = most.saturating_sub(begun.elapsed());
            if table.stopping || table.changes() >= enough || left.is_zero() {
                return table.stopping;
            }
            table = changed.wait_timeout(table, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    fn write(&mut self) {
        let Some(queue) = &mut self.queue else { return };
        let table = self.shared.table();
        let up_to_date = table.changes() == 0 && table.position() == queue.position();
        drop(table);
        if up_to_date {
            return;
        }
        if let Err(error) = queue.write(&self.shared) {
            self.give_up(&error);
        }
    }

    fn give_up(&mut self, error: &IndexError) {
        tracing::warn!(%error, "the outbox's queue cannot be written; a start without it reads the whole log");
        self.queue = None;
    }

    fn renew(&mut self) {
        match Queue::make(&self.shared.queue_path) {
            Ok(queue) => {
                self.shared.table().change_all();
                self.queue = Some(queue);
                tracing::info!("the outbox's queue is written again");
            }
            Err(error) => tracing::debug!(%error, "the outbox's queue still cannot be written"),
        }
    }

    fn publish(&self) {
        let bytes = self.queue.as_ref().map_or(0, Queue::bytes);
        self.shared.queue_bytes.store(bytes, Ordering::Relaxed);
        self.shared.queue_broken.store(self.queue.is_none(), Ordering::Relaxed);
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
