//! Payloads in a store that speaks S3 or in a folder, in the place of the database.
//!
//! ```text
//! put all of a commit's objects ─► commit ─► acknowledge            delete rows ─► commit ─► delete their objects
//! ```
//! So a row never names an object that is not there, whatever ends this process. What is left over is an object without a
//! row: that of a commit that came to nothing, which the device's next try names again, or of a deletion that was not
//! carried out. [`Objects::sweep`] finds them.
//!
//! All requests run on one thread; who needs an outcome at once waits for it, with a bound.

mod address;
mod bucket;
mod folder;
mod sweep;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Duration;

use futures_util::{StreamExt as _, TryStreamExt as _, stream};
use hedge_proto::{CaseId, Digest};
use tokio::runtime::Handle;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::time::timeout;

use super::sql::{Row, Sql};
use super::{StoreError, damaged};
use bucket::Bucket;
use folder::Folder;
pub(super) use sweep::Sweeping;

/// Requests at once, of each kind.
const AT_ONCE: usize = 32;

/// How long the objects of one commit may take: a server would end the open transaction after five seconds, and others take
/// this instance for dead after four.
const PUT_MAX: Duration = Duration::from_secs(3);

/// How many payload bytes one commit brings: what a link of 30 Mbit/s carries in that time.
pub(super) const COMMIT_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// How long one other request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// An object of nobody's, by which it is seen whether the store can be used.
const PROBE: &str = "probe";

/// How many objects may wait to be deleted. What finds no place is left for [`Objects::sweep`].
const DELETIONS_MAX: usize = 16 * 1024;

/// A payload that is on its way here. Nothing: there is no such object.
pub type Coming = oneshot::Receiver<Result<Option<Vec<u8>>, String>>;

/// Why a request came to nothing.
#[derive(Debug, thiserror::Error)]
enum Failed {
    /// It would tomorrow, too, unless somebody changes something.
    #[error("{0}")]
    Refused(String),
    #[error("{0}")]
    Away(String),
}

impl From<Failed> for StoreError {
    fn from(failed: Failed) -> Self {
        Self::Objects(failed.to_string())
    }
}

/// The store. Clones are the same; dropping the last ends its thread.
#[derive(Debug, Clone)]
pub struct Objects(Arc<Open>);

#[derive(Debug)]
struct Open {
    backend: Backend,
    /// The thread's.
    runtime: Handle,
    gets: Arc<Semaphore>,
    deletions: mpsc::Sender<String>,
}

/// Where they are. Clones are the same.
#[derive(Debug, Clone)]
enum Backend {
    Bucket(Arc<Bucket>),
    Folder(Folder),
}

impl Backend {
    async fn put(&self, key: String, bytes: Vec<u8>) -> Result<(), Failed> {
        match self {
            Self::Bucket(bucket) => bucket.put(key, bytes).await,
            Self::Folder(folder) => in_folder(folder, move |folder| folder.put(&key, &bytes)).await,
        }
    }

    async fn get(&self, key: String) -> Result<Option<Vec<u8>>, Failed> {
        match self {
            Self::Bucket(bucket) => bucket.get(&key).await,
            Self::Folder(folder) => in_folder(folder, move |folder| folder.get(&key)).await,
        }
    }

    async fn delete(&self, key: String) -> Result<(), Failed> {
        match self {
            Self::Bucket(bucket) => bucket.delete(&key).await,
            Self::Folder(folder) => in_folder(folder, move |folder| folder.delete(&key)).await,
        }
    }

    /// Names and times of objects behind this one.
    async fn list(&self, after: Option<String>, most: usize) -> Result<Vec<(String, String)>, Failed> {
        match self {
            Self::Bucket(bucket) => bucket.list(after.as_deref(), most).await,
            Self::Folder(folder) => in_folder(folder, move |folder| folder.list(after.as_deref(), most)).await,
        }
    }

    /// Makes it ready, and tries it. `has_some`: payloads are there already.
    async fn prepare(&self, has_some: bool) -> Result<(), Failed> {
        match self {
            Self::Bucket(bucket) => bucket.put(PROBE.to_owned(), Vec::new()).await?,
            // An empty place of a disk that is not mounted would pass for a new folder.
            Self::Folder(_) if has_some => {}
            Self::Folder(folder) => in_folder(folder, Folder::make).await?,
        }
        self.probe().await
    }

    /// Whether what answers is the store: others, such as a portal that wants a login, answer everything.
    async fn probe(&self) -> Result<(), Failed> {
        match self.get(PROBE.to_owned()).await? {
            Some(bytes) if !bytes.is_empty() => {
                Err(Failed::Away(format!("what answers is not the store: it has {} bytes as `{PROBE}`", bytes.len())))
            }
            _ => Ok(()),
        }
    }

    /// A payload as it was put. What is another now counts as gone: its device still has it, and is asked for it.
    async fn get_whole(&self, key: String) -> Result<Option<Vec<u8>>, Failed> {
        let found = self.get(key.clone()).await?;
        let sum = key.rsplit_once('/').map_or("", |(_, sum)| sum);
        if found.as_ref().is_none_or(|bytes| Digest::of(bytes).to_string() == sum) {
            return Ok(found);
        }
        self.probe().await?;
        tracing::warn!(key, "the store gives other bytes than were put there; the payload counts as gone");
        Ok(None)
    }
}

/// A disk, too, may be at the other end of a network that is away, and its thread then stands. As many as may stand wait for
/// a turn with what they would write, and no more: whoever waits in vain has gone by its bound.
async fn in_folder<T: Send + 'static>(
    folder: &Folder,
    work: impl FnOnce(&Folder) -> Result<T, Failed> + Send + 'static,
) -> Result<T, Failed> {
    let (folder, turn) = (folder.clone(), folder.turn().await);
    let done = tokio::task::spawn_blocking(move || {
        let _turn = turn;
        work(&folder)
    });
    done.await.unwrap_or_else(|_| Err(stopping()))
}

impl Objects {
    /// Reads `file:///PATH`, or `s3://BUCKET/PREFIX` and the rest from the variables that AWS's own tools read. Nothing is
    /// dialled.
    pub fn open(url: &str, variable: &dyn Fn(&str) -> Option<String>) -> Result<Self, StoreError> {
        let backend = match folder::read(url) {
            Some(folder) => folder.map(Backend::Folder),
            None => address::read(url, variable).and_then(Bucket::new).map(|bucket| Backend::Bucket(Arc::new(bucket))),
        };
        let backend = backend.map_err(StoreError::ObjectsAddress)?;
        let no_thread = |error: std::io::Error| StoreError::Objects(error.to_string());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(no_thread)?;
        let handle = runtime.handle().clone();
        let (deletions, mut to_delete) = mpsc::channel::<String>(DELETIONS_MAX);
        let deleting = backend.clone();
        let work = async move {
            while let Some(key) = to_delete.recv().await {
                if let Err(why) = timed(REQUEST_MAX, deleting.delete(key.clone())).await {
                    tracing::warn!(key, "an object could not be deleted, and is looked for later: {why}");
                }
            }
        };
        // The thread lasts as long as anybody could give it something to delete.
        let thread = std::thread::Builder::new().name("objects".to_owned());
        thread.spawn(move || runtime.block_on(work)).map_err(no_thread)?;
        let gets = Arc::new(Semaphore::new(AT_ONCE));
        Ok(Self(Arc::new(Open { backend, runtime: handle, gets, deletions })))
    }

    /// Whether the store answers now.
    pub(super) fn probe(&self) -> Result<(), StoreError> {
        let backend = self.0.backend.clone();
        Ok(self.wait(async move { timed(PUT_MAX, backend.probe()).await })?)
    }

    /// Looks whether the store is one that can be used; it may be away now. `has_some`: payloads are there already.
    pub(super) fn check(&self, has_some: bool) -> Result<(), StoreError> {
        let backend = self.0.backend.clone();
        match self.wait(async move { timed(PUT_MAX, backend.prepare(has_some)).await }) {
            Err(Failed::Away(why)) => {
                tracing::warn!("the payloads' store cannot be used now, and no case is taken: {why}");
                Ok(())
            }
            checked => Ok(checked?),
        }
    }

    /// Returns once all are there.
    pub(super) fn put_all(&self, objects: Vec<(String, Vec<u8>)>) -> Result<(), StoreError> {
        if objects.is_empty() {
            return Ok(());
        }
        let backend = self.0.backend.clone();
        Ok(self.wait(async move {
            let puts = stream::iter(objects).map(|(key, bytes)| backend.put(key, bytes));
            timed(PUT_MAX, puts.buffer_unordered(AT_ONCE).try_collect::<()>()).await
        })?)
    }

    /// Begins to fetch an object.
    pub(super) fn get(&self, key: String) -> Coming {
        let (told, coming) = oneshot::channel();
        let (backend, gets) = (self.0.backend.clone(), self.0.gets.clone());
        self.0.runtime.spawn(async move {
            let _turn = gets.acquire_owned().await;
            // Whoever wanted it may have gone meanwhile.
            drop(told.send(timed(REQUEST_MAX, backend.get_whole(key)).await.map_err(|failed| failed.to_string())));
        });
        coming
    }

    /// Fetches an object and waits for it.
    pub(super) fn get_now(&self, key: String) -> Result<Option<Vec<u8>>, StoreError> {
        let coming = self.get(key);
        futures_executor::block_on(coming).unwrap_or_else(|_| Err(stopping().to_string())).map_err(StoreError::Objects)
    }

    /// Has objects deleted whose rows are gone.
    pub(super) fn delete(&self, keys: Vec<String>) {
        for key in keys {
            if self.0.deletions.try_send(key).is_err() {
                tracing::debug!("too many objects wait to be deleted; the next sweep finds this one");
            }
        }
    }

    fn wait<T: Send + 'static>(
        &self,
        work: impl Future<Output = Result<T, Failed>> + Send + 'static,
    ) -> Result<T, Failed> {
        let (told, outcome) = oneshot::channel();
        self.0.runtime.spawn(async move { drop(told.send(work.await)) });
        futures_executor::block_on(outcome).unwrap_or_else(|_| Err(stopping()))
    }
}

fn stopping() -> Failed {
    Failed::Away("this program is stopping".to_owned())
}

async fn timed<T>(bound: Duration, work: impl Future<Output = Result<T, Failed>>) -> Result<T, Failed> {
    let late = || Failed::Away(format!("no answer within {} s", bound.as_secs()));
    timeout(bound, work).await.unwrap_or_else(|_| Err(late()))
}

/// Where a case's payload lies. With the sum, because a case may get another payload, and each row must find its own.
pub(super) fn key(id: &CaseId, sum: &Digest) -> String {
    format!("{id}/{sum}")
}

/// Of a payload as [`kept`] reads it. Where the bytes are not, though there are some, they are in the store.
pub(super) const KEPT_COLUMNS: &str = "bytes, payload_bytes, payload_sha256";

/// The bytes of a row's payload, or the key of its object; `first` is the first of its columns.
pub(super) fn kept(row: &Row<'_>, first: usize, id: &CaseId) -> Result<Result<Vec<u8>, String>, StoreError> {
    let (bytes, count): (Vec<u8>, i64) = (row.get(first)?, row.get(first + 1)?);
    if !bytes.is_empty() || count == 0 {
        return Ok(Ok(bytes));
    }
    let sum: Vec<u8> = row.get(first + 2)?;
    Ok(Err(key(id, &Digest(sum.as_slice().try_into().map_err(damaged)?))))
}

/// Whether the newest payload on record is in the store.
pub(super) fn has_some(sql: &Sql) -> Result<bool, StoreError> {
    let newest = "SELECT CAST(length(bytes) AS BIGINT), payload_bytes FROM payloads JOIN cases USING (seq) \
         ORDER BY seq DESC LIMIT 1";
    let is_there = sql.row(newest, &[], |row| Ok((row.get::<i64>(0)?, row.get::<i64>(1)?)))?;
    Ok(is_there.is_some_and(|(here, count)| here == 0 && count > 0))
}

/// A payload that is wanted.
#[derive(Debug)]
pub enum Payload {
    Here(Vec<u8>),
    Coming(Coming),
}
