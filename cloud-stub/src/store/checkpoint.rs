//! Moves what was committed from the write-ahead log into the database, beside the writer.
//!
//! Pages that many commits change, most of all those of the indexes, are then written once for all of them; and no commit
//! waits for a sync of the whole database.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::Thread;
use std::time::Duration;

use rusqlite::Connection;

use super::schema;

/// How long the log grows before it is moved: what a start after a crash has to read again.
const LOG_BYTES: u64 = 32 * 1024 * 1024;

/// How often its length is looked at.
const EVERY: Duration = Duration::from_millis(500);

/// Ends with the writer.
pub(super) struct Checkpoints {
    over: Arc<AtomicBool>,
    thread: Thread,
}

impl Checkpoints {
    /// Without a thread of its own the writer does it, at a length that it never comes to with one.
    pub(super) fn start(path: &Path) -> Option<Self> {
        let (path, over) = (path.to_owned(), Arc::new(AtomicBool::new(false)));
        let connection =
            schema::connect(&path).inspect_err(|error| tracing::warn!("no checkpoints aside: {error}")).ok()?;
        let told = over.clone();
        let thread = std::thread::Builder::new()
            .name("checkpoints".to_owned())
            .spawn(move || run(&connection, &path.with_extension("sqlite-wal"), &told))
            .inspect_err(|error| tracing::warn!("no checkpoints aside: {error}"))
            .ok()?;
        Some(Self { over, thread: thread.thread().clone() })
    }
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.over.store(true, Ordering::Relaxed);
        self.thread.unpark();
    }
}

fn run(connection: &Connection, log: &PathBuf, over: &AtomicBool) {
    while !over.load(Ordering::Relaxed) {
        std::thread::park_timeout(EVERY);
        if std::fs::metadata(log).is_ok_and(|log| log.len() >= LOG_BYTES) {
            // The bulk of it holds up nobody. What was committed meanwhile is little, and with it the log begins anew.
            for mode in ["PASSIVE", "TRUNCATE"] {
                if let Err(error) = connection.query_row(&format!("PRAGMA wal_checkpoint({mode})"), [], |_| Ok(())) {
                    tracing::warn!("the records' log could not be moved into the database: {error}");
                    break;
                }
            }
        }
    }
}
