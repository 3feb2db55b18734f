//! Pictures that appear in a folder, each with a defined fate.
//!
//! A regular file is taken when its writer closed it or moved it in; where no event says so (it was there before, a
//! network mount, a writer that keeps it open), when it looks the same twice. A picture that ends before its format
//! says so waits for its end, and is taken as it is when nothing was written for a while. Dotfiles, `*.part`, `*.tmp`,
//! `*~`, folders, links and pipes are left alone.
//!
//! ```text
//! complete ─answered or passed over→ done/ (or deleted)
//!          ─unusable→ failed/, with the reason in `<name>.error.txt`
//!          ─no room, model not ready, agent stops→ stays, and is offered again
//! done/, failed/ ─written to after it was moved→ back into the folder
//! ```
//! Files that wait are answered oldest first; with `interval_ms` the newest is, and the others are passed over.
//! Each file that appears is a sample of its own, also under a name, with a time or with a content that was there
//! before. One that cannot be moved away is answered once, across restarts too.

mod answered;
mod fate;
mod files;
#[cfg(test)]
mod tests;
mod watch;

use std::collections::{HashMap, HashSet, VecDeque};
use std::ffi::{OsStr, OsString};
use std::io;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use hedge_proto::Digest;
use tokio::task::spawn_blocking;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use self::answered::{Answered, Noted};
use self::fate::{Ending, Moved, Settled};
use self::files::{Found, Look, Reading};
use self::watch::Watch;
use super::{Intake, RETRY_WAIT, Source, passes, sample};
use hedge_config::Fate;

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

/// Files that one scan looks at: the oldest.
const LOOKED_MAX: usize = WAITING_MAX + STUCK_MAX;

/// How long a picture that ends too early is waited for. A camera's card or a slow upload pauses for seconds; one that
/// stays so for longer was broken off, and comes back when it is written to after all.
const UNFINISHED_WAIT: Duration = Duration::from_secs(30);

/// How long an answered file is looked at for what its writer adds. Later changes are somebody's who uses it.
const DONE_WATCHED: Duration = Duration::from_secs(60);

/// Moved files that are looked at again, in `done/` and `failed/` each: the newest.
const WATCHED_MAX: usize = 512;

/// Watches the folder until `stop`. `answered` is the file that remembers what could not be moved away.
pub(super) async fn run<I: Intake>(
    source: Source<I>,
    path: PathBuf,
    after: Fate,
    answered: PathBuf,
    stop: CancellationToken,
) {
    let answered = spawn_blocking(move || Arc::new(Mutex::new(Answered::open(answered)))).await;
    let Ok(answered) = answered else { return };
    let mut folder = Folder {
        source,
        path,
        after,
        waiting: VecDeque::new(),
        looks: HashMap::new(),
        unfinished: HashMap::new(),
        answered,
        done: VecDeque::new(),
        failed: VecDeque::new(),
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
    /// Pictures that end too early, and since when they look so.
    unfinished: HashMap<OsString, (Look, Instant)>,
    /// Answered, but still where they were.
    answered: Arc<Mutex<Answered>>,
    /// Moved away lately, oldest first.
    done: VecDeque<(Instant, Moved)>,
    failed: VecDeque<Moved>,
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
        self.look_at_failed_before().await;
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
        self.look_at_moved().await;
        let path = self.path.clone();
        let found = match blocking(move || files::scan(&path, LOOKED_MAX)).await {
            Ok(found) => found,
            Err(error) => {
                self.say(Some(format!("{} cannot be read: {error}", self.path.display())));
                return SCAN_INTERVAL;
            }
        };
        let mut looks = HashMap::new();
        let (mut complete, mut stuck) = (Vec::new(), Vec::new());
        self.unfinished.retain(|name, (look, _)| found.iter().any(|now| now.name == *name && now.look == *look));
        // Only who sees all of them can tell which are gone.
        let inodes: Option<HashSet<u64>> =
            (found.len() < LOOKED_MAX).then(|| found.iter().map(|found| found.look.inode()).collect());
        let known: HashSet<&OsString> = self.waiting.iter().collect();
        for Found { name, look } in found {
            if known.contains(&name) || self.unfinished.get(&name).is_some_and(|(_, since)| !is_over(*since)) {
                continue;
            }
            if let Some(noted) = self.answered().of(&look) {
                let ending = noted.failed.clone().map_or(Ending::Done(self.after), Ending::Failed);
                stuck.push((name, look, ending));
            } else if self.looks.get(&name) == Some(&look) {
                complete.push(name);
            } else {
                looks.insert(name, look);
            }
        }
        let free = WAITING_MAX.saturating_sub(self.waiting.len());
        let more = complete.len() > free || !looks.is_empty();
        self.waiting.extend(complete.into_iter().take(free));
        self.looks = looks;
        for (name, look, ending) in stuck {
            self.end(name, look, ending, None).await;
        }
        if let Some(inodes) = inodes.filter(|_| self.answered().count() > 0) {
            let answered = self.answered.clone();
            let kept = blocking(move || {
                lock(&answered).keep_only(|inode| inodes.contains(&inode));
                Ok(())
            });
            drop(kept.await); // it has said itself what went wrong
        }
        if more { SECOND_LOOK_WAIT } else { SCAN_INTERVAL }
    }

    /// Brings back what failed in an earlier run and was written to since.
    async fn look_at_failed_before(&mut self) {
        let path = self.path.clone();
        let found = blocking(move || Ok(fate::failed_before(&path, WATCHED_MAX))).await;
        let (changed, same) = found.unwrap_or_default();
        self.failed = same.into();
        self.bring_back(changed).await;
    }

    /// Brings back what was written to after it was moved away.
    async fn look_at_moved(&mut self) {
        while self.done.front().is_some_and(|(moved_at, _)| moved_at.elapsed() > DONE_WATCHED) {
            self.done.pop_front();
        }
        let (mut done, mut failed) = (std::mem::take(&mut self.done), std::mem::take(&mut self.failed));
        let bytes_max = self.source.sample_bytes_max as u64;
        let looked = blocking(move || {
            let mut changed = Vec::new();
            let mut stays = |moved: &Moved| match moved.has_changed() {
                Some(true) if moved.bytes() <= bytes_max => {
                    changed.push(moved.clone());
                    false
                }
                now => now.is_some(),
            };
            done.retain(|(_, moved)| stays(moved));
            failed.retain(stays);
            Ok((done, failed, changed))
        });
        // Only a panic, which has been said, would lose the lists.
        let Ok((done, failed, changed)) = looked.await else { return };
        (self.done, self.failed) = (done, failed);
        self.bring_back(changed).await;
    }

    async fn bring_back(&self, changed: Vec<Moved>) {
        for moved in changed {
            let path = self.path.clone();
            if let Err(error) = blocking(move || moved.bring_back(&path)).await {
                tracing::warn!(source = %self.source.name, "a file written to after it was moved away stays there: {error}");
            }
        }
    }

    async fn take_next(&mut self) {
        if self.answered().count() >= STUCK_MAX {
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
        let newest = loop {
            let Some(newest) = self.waiting.pop_back() else { return };
            self.waiting.retain(|name| *name != newest);
            self.next = Instant::now() + interval;
            if self.take(newest.clone()).await {
                break newest;
            }
            self.next = Instant::now();
        };
        let (again, passed_over): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|name| *name == newest);
        self.waiting.extend(again);
        for name in passed_over {
            let (path, file) = (self.path.clone(), name.clone());
            if let Ok(look) = blocking(move || files::look(&path.join(file))).await {
                self.source.intake.count_skipped(&self.source.name, 1);
                self.end(name, look, Ending::Done(self.after), None).await;
            }
        }
    }

    /// Answers one file and settles its fate. False if there is nothing to answer under this name now.
    async fn take(&mut self, name: OsString) -> bool {
        let (path, bytes_max) = (self.path.join(&name), self.source.sample_bytes_max);
        match blocking(move || Ok(files::read(&path, bytes_max))).await {
            Ok(Reading::Whole(look, bytes)) => {
                if self.answered().has(&look, &bytes) {
                    self.end(name, look, Ending::Done(self.after), Some(bytes.into())).await;
                    return false;
                }
                if files::is_unfinished(&bytes) && self.waits_for_its_end(&name, &look) {
                    return false;
                }
                self.unfinished.remove(&name);
                self.answer(name, look, bytes.into()).await;
            }
            Ok(Reading::Unusable(look, reason)) => self.end(name, look, Ending::Failed(reason), None).await,
            // Gone, being written again, or nothing to take: an event or a scan brings back what is worth it.
            Ok(Reading::NotNow) => return false,
            Err(error) => {
                self.say(Some(format!("files in {} cannot be read: {error}", self.path.display())));
                self.offer_again(name);
            }
        }
        true
    }

    /// Whether a picture that ends too early was written to lately. Otherwise it is what it is.
    fn waits_for_its_end(&mut self, name: &OsStr, look: &Look) -> bool {
        let now = (look.clone(), Instant::now());
        let seen = self.unfinished.entry(name.to_owned()).or_insert_with(|| now.clone());
        if seen.0 != *look {
            *seen = now;
        }
        !is_over(seen.1)
    }

    async fn answer(&mut self, name: OsString, look: Look, bytes: Bytes) {
        if bytes.is_empty() {
            return self.end(name, look, Ending::Failed("the file is empty".to_owned()), None).await;
        }
        self.source.intake.saw(&self.source.name, true);
        let reference = Some(self.reference(&name, &bytes));
        let answered = match sample(&self.source.name, reference, bytes.clone()) {
            // Its line is on disk before it is moved: nothing would answer it again.
            Ok(sample) => self.source.intake.answer_and_keep(sample).await.map(drop),
            Err(error) => Err(error),
        };
        match answered {
            Ok(()) => self.end(name, look, Ending::Done(self.after), Some(bytes)).await,
            Err(error) if passes(&error) => {
                self.say(Some(format!("files in {} wait: {error}", self.path.display())));
                self.offer_again(name);
            }
            Err(error) => self.end(name, look, Ending::Failed(error.to_string()), None).await,
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

    /// The file's name. Under one that was used before it is another sample, told by its content, and the same content
    /// once more by a number.
    fn reference(&self, name: &OsStr, bytes: &[u8]) -> String {
        let name = name.to_string_lossy().into_owned();
        let answers = self.source.intake.answers();
        let is_free = |reference: &String| answers.by_reference(&self.source.name, reference).is_none();
        if is_free(&name) {
            return name;
        }
        let content: String = Digest::of(bytes).to_string().chars().take(8).collect();
        let more = (2u64..).map(|number| format!("{name}#{content}.{number}"));
        std::iter::once(format!("{name}#{content}")).chain(more).find(is_free).unwrap_or(name)
    }

    /// Moves a file away, or notes that it cannot be. `answered` is the content of one that has its answer.
    async fn end(&mut self, name: OsString, look: Look, ending: Ending, answered: Option<Bytes>) {
        let (path, notes) = (self.path.clone(), self.answered.clone());
        let settled = blocking(move || {
            let mut notes = lock(&notes);
            let known = notes.of(&look).is_some_and(|noted| noted.content.is_some());
            let failed = if let Ending::Failed(reason) = &ending { Some(reason.clone()) } else { None };
            if answered.is_some() && !known {
                notes.note(Noted { look: look.clone(), content: None, failed: None });
            }
            let settled = fate::settle(&path, &name, &look, &ending);
            match &settled {
                Ok(_) => notes.forget(&look),
                Err(error) if error.kind() == io::ErrorKind::NotFound => notes.forget(&look),
                Err(_) if known => {}
                Err(_) => notes.note(Noted { look, content: answered.map(|bytes| Digest::of(&bytes)), failed }),
            }
            settled
        });
        match settled.await {
            Ok(settled) => {
                match settled {
                    Settled::Done(moved) => push_bounded(&mut self.done, (Instant::now(), moved)),
                    Settled::Failed(moved) => push_bounded(&mut self.failed, moved),
                    Settled::Deleted | Settled::Changed => {}
                }
                // Not after each file, so that the state does not flicker.
                if self.waiting.is_empty() && self.answered().count() == 0 {
                    self.say(None);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                let text = "answered files cannot be moved away, and stay where they are";
                self.say(Some(format!("{text}: {error}")));
            }
        }
    }

    fn answered(&self) -> MutexGuard<'_, Answered> {
        lock(&self.answered)
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

fn lock(answered: &Mutex<Answered>) -> MutexGuard<'_, Answered> {
    answered.lock().unwrap_or_else(PoisonError::into_inner)
}

fn is_over(unfinished_since: Instant) -> bool {
    unfinished_since.elapsed() >= UNFINISHED_WAIT
}

fn push_bounded<T>(list: &mut VecDeque<T>, one: T) {
    if list.len() >= WATCHED_MAX {
        list.pop_front();
    }
    list.push_back(one);
}

/// Runs file operations where they may block.
async fn blocking<T: Send + 'static>(f: impl FnOnce() -> io::Result<T> + Send + 'static) -> io::Result<T> {
    spawn_blocking(f).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}
