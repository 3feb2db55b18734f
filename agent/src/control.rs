//! The way to the settings: everything that may ask the task of `settings` for a change, and how it asks.

use bytes::Bytes;
use hedge_proto::Name;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot};

/// Requests that may wait. Each takes a write to the disk at most.
pub const REQUESTS_MAX: usize = 32;

/// What an operator, a signal or the broker asks of the settings.
pub(crate) enum Request {
    /// A document on `down/desired`.
    Desired {
        bytes: Bytes,
        by: Option<String>,
        /// The broker had kept it; nobody waits for a word on it.
        retained: bool,
        done: Reply<()>,
    },
    Pause(Option<Name>, Reply<()>),
    Resume(Option<Name>, Reply<()>),
    Confirm(u64, Reply<()>),
    Revert(u64, Reply<()>),
    Reload(Reply<Vec<String>>),
    LogLevel(String, u32, Reply<()>),
    Reset(Reply<Option<u64>>),
}

/// What a reset took out of force.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reset {
    /// None if the local file alone was in force already.
    pub version: Option<u64>,
}

pub(crate) type Reply<T> = oneshot::Sender<Result<T, String>>;

/// Asks the task that owns the settings. Cheap to clone.
#[derive(Clone)]
pub struct Control(mpsc::Sender<Request>);

impl Control {
    #[must_use]
    pub(crate) fn new() -> (Self, mpsc::Receiver<Request>) {
        let (requests, arrived) = mpsc::channel(REQUESTS_MAX);
        (Self(requests), arrived)
    }

    /// Decides on a document of `down/desired`. Done when that is remembered and reported.
    pub async fn desired(&self, bytes: Bytes, by: Option<String>, retained: bool) {
        // Without a word the agent is stopping, and the broker brings the document again.
        drop(self.ask(|done| Request::Desired { bytes, by, retained, done }).await);
    }

    /// Lets one source, or all, take no samples.
    pub async fn pause(&self, source: Option<Name>) -> Result<(), String> {
        self.ask(|reply| Request::Pause(source, reply)).await
    }

    pub async fn resume(&self, source: Option<Name>) -> Result<(), String> {
        self.ask(|reply| Request::Resume(source, reply)).await
    }

    /// Keeps the settings on trial.
    pub async fn confirm(&self, version: u64) -> Result<(), String> {
        self.ask(|reply| Request::Confirm(version, reply)).await
    }

    /// Gives the settings on trial back.
    pub async fn revert(&self, version: u64) -> Result<(), String> {
        self.ask(|reply| Request::Revert(version, reply)).await
    }

    /// Reads the local file again. Returns the fields that take effect only at the next start.
    pub async fn reload(&self) -> Result<Vec<String>, String> {
        self.ask(Request::Reload).await
    }

    /// Takes remote settings out of force and forgets their versions. Returns the one that was in force.
    pub async fn reset(&self) -> Result<Option<u64>, String> {
        self.ask(Request::Reset).await
    }

    /// Logs at another level for a time.
    pub async fn log_level(&self, level: String, for_s: u32) -> Result<(), String> {
        self.ask(|reply| Request::LogLevel(level, for_s, reply)).await
    }

    async fn ask<T>(&self, request: impl FnOnce(Reply<T>) -> Request) -> Result<T, String> {
        let stopping = || "the agent is stopping".to_owned();
        let (reply, answer) = oneshot::channel();
        self.0.send(request(reply)).await.map_err(|_| stopping())?;
        answer.await.unwrap_or_else(|_| Err(stopping()))
    }
}
