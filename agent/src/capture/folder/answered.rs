//! Remembers which files were answered and still lie in the folder, across restarts too. Everything here may block.
//!
//! A file is noted after its answer and before it is moved away, so a kill between the two does not answer it twice.
//! Nothing is synced: after a power cut the last file may be answered again.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::path::PathBuf;

use hedge_proto::Digest;
use serde::{Deserialize, Serialize};

use super::files::Look;

pub(super) struct Answered {
    path: PathBuf,
    file: Option<File>,
    /// By inode.
    noted: HashMap<u64, Noted>,
    /// It was said that nothing can be written.
    complained: bool,
}

/// A line of the file; a later one of the same inode counts.
#[derive(Serialize, Deserialize)]
pub(super) struct Noted {
    pub(super) look: Look,
    /// Of one that could not be moved away: its look changes when its owner is put right.
    pub(super) content: Option<Digest>,
    /// Why it failed, if it did.
    pub(super) failed: Option<String>,
}

impl Answered {
    /// What an earlier run left behind. A file that cannot be read counts as empty.
    pub(super) fn open(path: PathBuf) -> Self {
        let text = std::fs::read_to_string(&path).unwrap_or_default();
        // A line that a kill cut short is of a file whose answer was just given; at worst it is answered again.
        let noted = text.lines().filter_map(|line| serde_json::from_str::<Noted>(line).ok());
        let noted = noted.map(|noted| (noted.look.inode(), noted)).collect();
        Self { path, file: None, noted, complained: false }
    }

    pub(super) fn count(&self) -> usize {
        self.noted.len()
    }

    /// What is noted of the file that looks so, as far as can be told without reading it.
    pub(super) fn of(&self, look: &Look) -> Option<&Noted> {
        self.noted.get(&look.inode()).filter(|noted| noted.look == *look)
    }

    /// The same with the file's content.
    pub(super) fn has(&self, look: &Look, bytes: &[u8]) -> bool {
        let same = |content: &Digest| *content == Digest::of(bytes);
        let noted = self.noted.get(&look.inode()).filter(|noted| noted.look.is_content_of(look));
        noted.is_some_and(|noted| noted.look == *look || noted.content.as_ref().is_some_and(same))
    }

    /// It has its answer, or was told that it gets none.
    pub(super) fn note(&mut self, noted: Noted) {
        let line = serde_json::to_string(&noted).unwrap_or_default() + "\n";
        self.noted.insert(noted.look.inode(), noted);
        let written = self.file().and_then(|mut file| file.write_all(line.as_bytes()));
        self.complain(written);
    }

    /// It is not in the folder any more.
    pub(super) fn forget(&mut self, look: &Look) {
        if self.noted.remove(&look.inode()).is_some() {
            let written = self.write_all();
            self.complain(written);
        }
    }

    /// Forgets all that are not in the folder any more.
    pub(super) fn keep_only(&mut self, found: impl Fn(u64) -> bool) {
        let before = self.noted.len();
        self.noted.retain(|inode, _| found(*inode));
        if self.noted.len() < before {
            let written = self.write_all();
            self.complain(written);
        }
    }

    fn write_all(&mut self) -> io::Result<()> {
        let lines = self.noted.values().filter_map(|noted| serde_json::to_string(noted).ok());
        let text: String = lines.map(|line| line + "\n").collect();
        let mut file = self.file()?;
        file.set_len(0)?;
        file.write_all(text.as_bytes())
    }

    fn file(&mut self) -> io::Result<&File> {
        if self.file.is_none() {
            self.file = Some(OpenOptions::new().create(true).append(true).open(&self.path)?);
        }
        self.file.as_ref().ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn complain(&mut self, written: io::Result<()>) {
        if let Err(error) = written
            && !std::mem::replace(&mut self.complained, true)
        {
            let path = self.path.display();
            tracing::warn!(
                "cannot write {path}: {error}; a file answered but not moved away is answered again after a restart"
            );
        }
    }
}
