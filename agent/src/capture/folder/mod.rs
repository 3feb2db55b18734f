//! Pictures that appear in a folder, each with a defined fate.
//!
//! A regular file is taken when it was closed after writing or moved in; one that was there before, when it
//! looks the same twice. Dotfiles, `*.part`, `*.tmp`, `*~`, folders, links and pipes are left alone.
//!
//! ```text
//! complete ─answered or passed over→ done/ (or deleted)
//!          ─unusable→ failed/, with the reason in `<name>.error.txt`
//!          ─no room, model not ready, agent stops→ stays, and is offered again
//! ```
//! Files that wait are answered oldest first; with `interval_ms` the newest is, and the others are passed over.
//! After a crash between answer and move a file is answered again: at least once, and once within a run.

mod fate;
mod files;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::OsString;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::Bytes;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::fate::Ending;
use self::files::{Found, Look, Reading};
use self::watch::Watch;
use super::{Intake, RETRY_WAIT, Source, passes, picture};
use crate::daemon::config::Fate;

/// How often a folder is looked through for what no event told.
const SCAN_INTERVAL: Duration = Duration::from_secs(10);

/// How long after a first look at a file the second one follows.
const SECOND_LOOK_WAIT: Duration = Duration::from_secs(1);

/// How often a missing folder is looked for.
const MISSING_WAIT: Duration = Duration::from_secs(2);

/// Files that wait to be answered. Further ones are found by a later scan.
const WAITING_MAX: usize = 1024;

/// Answered files that could not be moved away. With more of them nothing further is taken.
const STUCK_MAX: usize = 1024;

/// Watches the folder until `stop`.
pub(super) async fn run<I: Intake>(source: Source<I>, path: PathBuf, after: Fate, stop: CancellationToken) {
    let mut folder = Folder {
        source,
        path,
        after,
        waiting: VecDeque::new(),
        looks: HashMap::new(),
        stuck: HashSet::new(),
        trouble: None,
        next: Instant::now(),
    };
    let watching = async {
        loop {
            let reason = folder.watch().await;
            folder.looks.clear();
            folder.waiting.clear();
            folder.say(Some(format!("{} {reason}; watching for it to return", folder.path.display())));
            sleep(MISSING_WAIT).await;
        }
    };
    tokio::select! {
        () = watching => {}
        () = stop.cancelled() => {}
    }
}

struct Folder<I> {
    source: Source<I>,
    path: PathBuf,
    after: Fate,
    /// Complete files, oldest first.
    waiting: VecDeque<OsString>,
    /// How files looked at the last scan.
    looks: HashMap<OsString, Look>,
    /// Answered, but still where they were.
    stuck: HashSet<Look>,
    /// What is wrong now, as last said.
    trouble: Option<String>,
    /// No file is taken before.
    next: Instant,
}

impl<I: Intake> Folder<I> {
    /// Answers what appears, until the folder is gone; says how it is gone.
    async fn watch(&mut self) -> String {
        let identity = match self.identity().await {
            Ok(identity) => identity,
            Err(reason) => return reason,
        };
        let watch = Watch::start(&self.path);
        if let Err(error) = &watch {
            tracing::warn!(source = %self.source.name, "no events from {}: {error}", self.path.display());
        }
        self.trouble = None;
        self.source.say(format!("watching {}", self.path.display()));
        let mut scan_at = Instant::now();
        loop {
            tokio::select! {
                () = sleep_until(self.next), if !self.waiting.is_empty() => self.take_next().await,
                () = sleep_until(scan_at) => {
                    match self.identity().await {
                        Ok(now) if now == identity => {}
                        Ok(_) => return "was replaced".to_owned(),
                        Err(reason) => return reason,
                    }
                    scan_at = Instant::now() + self.scan().await;
                }
                () = watch::changed(&watch) => {}
            }
            let (complete, look_again) = watch::taken(&watch);
            if look_again {
                scan_at = Instant::now();
            }
            let free = WAITING_MAX.saturating_sub(self.waiting.len());
            self.waiting.extend(complete.into_iter().take(free));
        }
    }

    /// Device and inode: another folder at the same path needs another watch.
    async fn identity(&self) -> Result<(u64, u64), String> {
        let path = self.path.clone();
        let identity = blocking(move || files::identity(&path)).await;
        identity.map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => "does not exist".to_owned(),
            io::ErrorKind::NotADirectory => "is not a folder".to_owned(),
            _ => format!("cannot be read ({error})"),
        })
    }

    /// Queues the files that look the same as last time. Returns when to look again.
    async fn scan(&mut self) -> Duration {
        let path = self.path.clone();
        let found = match blocking(move || files::scan(&path, WAITING_MAX + STUCK_MAX)).await {
            Ok(found) => found,
            Err(error) => {
                self.say(Some(format!("{} cannot be read: {error}", self.path.display())));
                return SCAN_INTERVAL;
            }
        };
        let mut looks = HashMap::new();
        let mut complete = Vec::new();
        let known: HashSet<&OsString> = self.waiting.iter().collect();
        for Found { name, look } in found {
            if self.stuck.contains(&look) || known.contains(&name) {
                continue;
            }
            if self.looks.get(&name) == Some(&look) {
                complete.push(name);
            } else {
                looks.insert(name, look);
            }
        }
        let free = WAITING_MAX.saturating_sub(self.waiting.len());
        let more = complete.len() > free || !looks.is_empty();
        self.waiting.extend(complete.into_iter().take(free));
        self.looks = looks;
        if more { SECOND_LOOK_WAIT } else { SCAN_INTERVAL }
    }

    async fn take_next(&mut self) {
        if self.stuck.len() >= STUCK_MAX {
            self.next = Instant::now() + SCAN_INTERVAL;
            let text = format!("{STUCK_MAX} answered files cannot be moved away; no further ones are taken");
            return self.say(Some(text));
        }
        let Some(interval) = self.source.interval else {
            if let Some(name) = self.waiting.pop_front() {
                self.take(name).await;
            }
            return;
        };
        let Some(newest) = self.waiting.pop_back() else { return };
        self.next = Instant::now() + interval;
        let passed_over: Vec<_> = self.waiting.drain(..).filter(|name| *name != newest).collect();
        self.take(newest).await;
        for name in passed_over {
            let (path, file) = (self.path.clone(), name.clone());
            if let Ok(look) = blocking(move || files::look(&path.join(file))).await {
                self.source.intake.count_skipped(&self.source.name, 1);
                self.end(name, look, Ending::Done(self.after)).await;
            }
        }
    }

    /// Answers one file and settles its fate.
    async fn take(&mut self, name: OsString) {
        let (path, bytes_max) = (self.path.join(&name), self.source.sample_bytes_max);
        match blocking(move || Ok(files::read(&path, bytes_max))).await {
            Ok(Reading::Whole(look, _)) if self.stuck.contains(&look) => {}
            Ok(Reading::Whole(look, bytes)) => self.answer(name, look, bytes.into()).await,
            Ok(Reading::Unusable(look, reason)) => self.end(name, look, Ending::Failed(reason)).await,
            // Gone, being written again, or nothing to take: an event or a scan brings back what is worth it.
            Ok(Reading::NotNow) => {}
            Err(error) => {
                self.say(Some(format!("files in {} cannot be read: {error}", self.path.display())));
                self.offer_again(name);
            }
        }
    }

    async fn answer(&mut self, name: OsString, look: Look, bytes: Bytes) {
        let reference = Some(self.reference(&name, &look));
        let answered = match picture(&self.source.name, reference, bytes) {
            // Its line is on disk before it is moved: nothing would answer it again.
            Ok(sample) => self.source.intake.answer_and_keep(sample).await.map(drop),
            Err(error) => Err(error),
        };
        match answered {
            Ok(()) => self.end(name, look, Ending::Done(self.after)).await,
            Err(error) if passes(&error) => {
                self.say(Some(format!("files in {} wait: {error}", self.path.display())));
                self.offer_again(name);
            }
            Err(error) => self.end(name, look, Ending::Failed(error.to_string())).await,
        }
    }

    fn offer_again(&mut self, name: OsString) {
        if self.source.interval.is_some() {
            self.waiting.push_back(name)
        } else {
            self.waiting.push_front(name)
        }
        self.next = Instant::now() + RETRY_WAIT;
    }

    /// The file's name; one used before in this run for other content gets the time it was written as well.
    fn reference(&self, name: &std::ffi::OsStr, look: &Look) -> String {
        let name = name.to_string_lossy().into_owned();
        match self.source.intake.answers().by_reference(&self.source.name, &name) {
            None => name,
            Some(_) => format!("{name}#{}", look.written_ms()),
        }
    }

    async fn end(&mut self, name: OsString, look: Look, ending: Ending) {
        let path = self.path.clone();
        match blocking(move || fate::settle(&path, &name, &ending)).await {
            // Not after each file, so that the state does not flicker.
            Ok(()) if self.waiting.is_empty() => self.say(None),
            Ok(()) => {}
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                self.stuck.insert(look);
                let text = "answered files cannot be moved away, and stay where they are";
                self.say(Some(format!("{text}: {error}")));
            }
        }
    }

    /// Says what is wrong, or that nothing is any more; each once.
    fn say(&mut self, trouble: Option<String>) {
        if trouble == self.trouble {
            return;
        }
        match &trouble {
            Some(text) => self.source.say(text.clone()),
            None => self.source.say(format!("watching {}", self.path.display())),
        }
        self.trouble = trouble;
    }
}

/// Runs file operations where they may block.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(f).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
