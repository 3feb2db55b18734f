//! What the threads of the outbox and its callers share.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use hedge_proto::CaseKey;
use tokio::sync::{broadcast, watch};

use super::case::{Drops, Trouble};
use super::disk::Disk;
use super::table::Table;

/// How far a listener may fall behind before it has to look for itself.
const ENDINGS_KEPT: usize = 256;

pub(crate) struct Shared {
    table: Mutex<Table>,
    /// The table has changes for the queue on disk, or the outbox stops.
    pub(crate) changed: Condvar,
    /// Cases that ended without a verdict: dead letters, and those that were dropped.
    pub(crate) endings: broadcast::Sender<CaseKey>,
    pub(crate) disk: Arc<dyn Disk>,
    pub(crate) queue_path: PathBuf,
    pub(crate) queue_bytes: AtomicU64,
    /// It cannot be written now.
    pub(crate) queue_broken: AtomicBool,
    pub(crate) log_bytes: AtomicU64,
    pub(crate) written_bytes: AtomicU64,
    pub(crate) damaged_records: AtomicU64,
    pub(crate) evicted: AtomicU64,
    pub(crate) expired: AtomicU64,
    pub(crate) undelivered: AtomicU64,
    /// How long the log was to be when it was found shorter at the last look, 0 if it was not.
    pub(crate) short_of: AtomicU64,
    /// Why nothing can be stored now.
    pub(crate) trouble: watch::Sender<Option<Trouble>>,
}

impl Shared {
    pub(crate) fn new(table: Table, disk: Arc<dyn Disk>, queue_path: PathBuf) -> Self {
        Self {
            table: Mutex::new(table),
            changed: Condvar::new(),
            endings: broadcast::channel(ENDINGS_KEPT).0,
            disk,
            queue_path,
            queue_bytes: AtomicU64::new(0),
            queue_broken: AtomicBool::new(false),
            log_bytes: AtomicU64::new(0),
            written_bytes: AtomicU64::new(0),
            damaged_records: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
            expired: AtomicU64::new(0),
            undelivered: AtomicU64::new(0),
            short_of: AtomicU64::new(0),
            trouble: watch::Sender::new(None),
        }
    }

    /// A thread that panicked while it held the table left whole lines behind, so going on is right.
    pub(crate) fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes what is wrong with the disk, or that nothing is.
    pub(crate) fn note(&self, trouble: Option<Trouble>) {
        let changed = self.trouble.send_if_modified(|now| {
            // What is gone does not come back before a restart.
            let changed = *now != trouble && *now != Some(Trouble::Gone);
            if changed {
                now.clone_from(&trouble);
            }
            changed
        });
        if changed && let Some(trouble) = &trouble {
            tracing::warn!("nothing can be stored: {trouble}");
        }
    }

    pub(crate) fn count_damaged(&self, records: u64) {
        self.damaged_records.fetch_add(records, Ordering::Relaxed);
    }

    pub(crate) fn dropped(&self) -> Drops {
        Drops {
            evicted: self.evicted.load(Ordering::Relaxed),
            expired: self.expired.load(Ordering::Relaxed),
            undelivered: self.undelivered.load(Ordering::Relaxed),
        }
    }
}
