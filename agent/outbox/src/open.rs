//! An outbox begins and ends: its lock, its folder, its two threads.

use std::fs::File;
use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::{Semaphore, mpsc};

use super::behind::Behind;
use super::commit::Committer;
use super::disk::{Disk, Folder, NoDisk};
use super::inspect::{self, Inspection};
use super::log::writer::{SEGMENT_BYTES, Writer};
use super::recover::{self, RecoverError, Recovered};
use super::shared::Shared;
use super::table::Table;
use super::{Inner, Limits, OpenError, OpenReport, Outbox, REQUEST_BYTES_MAX, REQUESTS_MAX};

impl Outbox {
    /// Opens the outbox in `dir`, or makes it. Blocks until every stored case is known again.
    pub fn open(dir: &Path, limits: Limits) -> Result<(Self, OpenReport), OpenError> {
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        std::fs::create_dir_all(dir).map_err(io)?;
        let lock = File::create(dir.join("lock")).map_err(io)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(std::fs::TryLockError::WouldBlock) => return Err(OpenError::InUse(dir.to_owned())),
            Err(std::fs::TryLockError::Error(error)) => return Err(io(error)),
        }
        let disk = Folder::open(&dir.join("log")).map_err(io)?;
        let opened = Self::open_on(Arc::new(disk), &dir.join("queue"), limits, SEGMENT_BYTES, Some(lock));
        opened.map_err(|error| match error {
            RecoverError::Newer { segment, format } => OpenError::Newer { segment, format },
            RecoverError::Io(error) => io(error),
        })
    }

    /// An outbox that takes nothing, for a folder that cannot be used. What may lie there is left alone.
    #[must_use]
    pub fn refusing(dir: &Path, limits: Limits, why: &str) -> Self {
        let shared = Shared::new(Table::default(), Arc::new(NoDisk), dir.join("queue"));
        let inner = Inner {
            shared: Arc::new(shared),
            limits,
            requests: Mutex::new(None),
            request_bytes: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)),
            threads: Mutex::new(None),
            refuses: Some(why.to_owned()),
            _lock: None,
        };
        Self { inner: Arc::new(inner) }
    }

    pub(super) fn open_on(
        disk: Arc<dyn Disk>,
        queue_path: &Path,
        limits: Limits,
        segment_bytes: u64,
        lock: Option<File>,
    ) -> Result<(Self, OpenReport), RecoverError> {
        let Recovered { table, queue, segments, report } = recover::recover(&*disk, queue_path)?;
        let writer = Writer::new(Arc::clone(&disk), segments.sizes, segments.tail, segment_bytes)?;

        let shared = Arc::new(Shared::new(table, disk, queue_path.to_owned()));
        shared.count_damaged(report.damaged_records);
        let queue_thread = Behind::start(Arc::clone(&shared), queue)?;
        let committer = Committer::new(Arc::clone(&shared), writer, limits);
        let (requests, received) = mpsc::channel(REQUESTS_MAX);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build()?;
        let log_thread = std::thread::Builder::new()
            .name("outbox-log".into())
            .spawn(move || runtime.block_on(committer.run(received)))?;
        let inner = Inner {
            shared,
            limits,
            requests: Mutex::new(Some(requests)),
            request_bytes: Arc::new(Semaphore::new(REQUEST_BYTES_MAX)),
            threads: Mutex::new(Some((log_thread, queue_thread))),
            refuses: None,
            _lock: lock,
        };
        Ok((Self { inner: Arc::new(inner) }, report))
    }

    /// Like [`Self::inspect`] without opening the outbox in `dir`; an error while an agent uses it.
    pub fn inspect_closed(dir: &Path) -> Result<Inspection, OpenError> {
        let io = |source| OpenError::Io { path: dir.to_owned(), source };
        let lock = match File::open(dir.join("lock")) {
            Ok(lock) => Some(lock),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(io(error)),
        };
        match lock.as_ref().map(File::try_lock) {
            None | Some(Ok(())) => inspect::folder(dir).map_err(io),
            Some(Err(std::fs::TryLockError::WouldBlock)) => Err(OpenError::InUse(dir.to_owned())),
            Some(Err(std::fs::TryLockError::Error(error))) => Err(io(error)),
        }
    }

    /// Finishes what was handed over, makes the queue durable and stops. Other clones get `Stopping`.
    pub async fn close(self) {
        let inner = Arc::clone(&self.inner);
        if tokio::task::spawn_blocking(move || inner.stop()).await.is_err() {
            tracing::error!("the outbox did not stop cleanly; the next start reads its log");
        }
    }
}

impl Inner {
    pub(super) fn stop(&self) {
        drop(self.requests.lock().unwrap_or_else(PoisonError::into_inner).take());
        let Some((log, queue)) = self.threads.lock().unwrap_or_else(PoisonError::into_inner).take() else { return };
        if log.join().is_err() {
            tracing::error!("the outbox's log thread panicked; the next start reads its log");
        }
        queue.join(&self.shared);
    }
}
