//! Tells which files were completed in a folder, as the kernel reports it.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use notify::event::{AccessKind, AccessMode, ModifyKind, RemoveKind, RenameMode};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher as _};
use tokio::sync::Notify;

use super::files::is_wanted;

/// Names kept until they are asked for; when there are more, the folder is looked through.
const NAMES_MAX: usize = 1024;

pub(super) struct Watch {
    hints: Arc<Hints>,
    _watcher: RecommendedWatcher,
}

#[derive(Default)]
struct Hints {
    inner: Mutex<Inner>,
    changed: Notify,
}

#[derive(Default)]
struct Inner {
    complete: VecDeque<OsString>,
    look_again: bool,
}

impl Watch {
    pub(super) fn start(folder: &Path) -> notify::Result<Self> {
        let hints = Arc::new(Hints::default());
        let told = hints.clone();
        let root = folder.to_owned();
        let mut watcher = notify::recommended_watcher(move |event| told.note(&root, event))?;
        watcher.watch(folder, RecursiveMode::NonRecursive)?;
        Ok(Self { hints, _watcher: watcher })
    }
}

/// Waits for the next hint; for ever if there is no watch.
pub(super) async fn changed(watch: &notify::Result<Watch>) {
    match watch {
        Ok(watch) => watch.hints.changed.notified().await,
        Err(_) => std::future::pending().await,
    }
}

/// The files completed since the last call, and whether the folder must be looked through.
pub(super) fn taken(watch: &notify::Result<Watch>) -> (VecDeque<OsString>, bool) {
    let Ok(watch) = watch else { return Default::default() };
    let inner = std::mem::take(&mut *watch.hints.inner.lock().unwrap_or_else(PoisonError::into_inner));
    (inner.complete, inner.look_again)
}

impl Hints {
    fn note(&self, root: &Path, event: notify::Result<Event>) {
        let Ok(event) = event else { return self.look_again() };
        let path = event.paths.first().map(std::path::PathBuf::as_path);
        match event.kind {
            _ if event.need_rescan() => self.look_again(),
            EventKind::Access(AccessKind::Close(AccessMode::Write))
            | EventKind::Modify(ModifyKind::Name(RenameMode::To)) => {
                if let Some(name) = path.filter(|path| *path != root).and_then(Path::file_name) {
                    self.complete(name.to_owned());
                }
            }
            // The folder itself was deleted or moved away.
            EventKind::Remove(RemoveKind::Folder | RemoveKind::Other)
            | EventKind::Modify(ModifyKind::Name(RenameMode::From))
                if path == Some(root) =>
            {
                self.look_again();
            }
            _ => {}
        }
    }

    fn complete(&self, name: OsString) {
        if !is_wanted(&name) {
            return;
        }
        let mut inner = self.inner.lock().unwrap_or_else(PoisonError::into_inner);
        if inner.complete.len() < NAMES_MAX {
            inner.complete.push_back(name);
        } else {
            inner.look_again = true;
        }
        drop(inner);
        self.changed.notify_one();
    }

    fn look_again(&self) {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner).look_again = true;
        self.changed.notify_one();
    }
}
