//! The small state file: what must survive a restart and is not a case.
//!
//! Written whole to a new file, synced, and renamed over the old one. Missing or damaged means starting
//! afresh, which is safe for everything in it; a damaged file is kept beside it for inspection.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use hedge_core::budget::Spent;
use hedge_core::control::settings::Book;
use hedge_outbox::files::replace;
use hedge_proto::{DeviceId, LastDesired, Name};
use serde::{Deserialize, Serialize};

use crate::clock::ClockMark;

/// What the file holds.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct State {
    pub clock: ClockMark,
    /// How often this device has connected; see `DeviceStatus::connection`.
    pub connection: u64,
    /// What counts against the ceilings.
    pub spent: Option<Spent>,
    pub settings: Remembered,
    /// What Home Assistant was told of this device.
    pub announced: Option<Announced>,
    /// Who the device was when that could be told last.
    pub device: Option<DeviceId>,
    /// The numbers of sinks on disk, of those that were given one by their name; see `verdict::numbers`.
    pub sinks: BTreeMap<Name, u8>,
    /// How many runs in a row ended in a crash or without memory; see `daemon::last_run`.
    pub crashes: u32,
    /// Cases that were stored when their folder went under the agent. The next start says how many are missing.
    pub cases_before: Option<u64>,
}

/// What the state file holds of settings.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Remembered {
    pub book: Book,
    pub paused: BTreeSet<Name>,
    /// Told again at every connect.
    pub last: Option<LastDesired>,
}

/// What Home Assistant was told over the broker, so that it can be taken back.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Announced {
    pub topic: String,
    /// Each entity's platform, by its key in the document.
    pub parts: BTreeMap<String, String>,
}

/// The file and what it holds.
#[derive(Debug)]
pub struct StateFile {
    path: PathBuf,
    state: State,
    /// Why nothing is written: the folder cannot be used.
    refused: Option<String>,
    /// Why the last write failed.
    trouble: Option<String>,
}

impl StateFile {
    /// Reads `state.json` in `dir`. The second value says what was lost, if anything.
    pub fn open(dir: &Path) -> io::Result<(Self, Option<String>)> {
        fs::create_dir_all(dir)?;
        let path = dir.join("state.json");
        let (state, lost) = match fs::read(&path) {
            Ok(bytes) => match serde_json::from_slice(&bytes) {
                Ok(state) => (state, None),
                Err(error) => {
                    let aside = dir.join("state.json.damaged");
                    fs::rename(&path, &aside)?;
                    (
                        State::default(),
                        Some(format!("the state file was damaged ({error}); kept as {}", aside.display())),
                    )
                }
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => (State::default(), None),
            Err(error) => return Err(error),
        };
        Ok((Self { path, state, refused: None, trouble: None }, lost))
    }

    /// What can be read of it in a folder that cannot be used. Changes stay in memory.
    #[must_use]
    pub fn in_memory(dir: &Path, why: &str) -> Self {
        let path = dir.join("state.json");
        let read = fs::read(&path).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        Self { path, state: read.unwrap_or_default(), refused: Some(why.to_owned()), trouble: None }
    }

    #[must_use]
    pub fn state(&self) -> &State {
        &self.state
    }

    /// Changes the state and writes it durably. On an error memory has the change and the disk the old state.
    pub fn update(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        change(&mut self.state);
        self.write()
    }

    /// Like [`Self::update`], but on an error memory has the old state, too.
    pub fn commit(&mut self, change: impl FnOnce(&mut State)) -> io::Result<()> {
        let before = self.state.clone();
        change(&mut self.state);
        let written = self.write();
        if written.is_err() {
            self.state = before;
        }
        written
    }

    /// Why it could not be written when that was tried last; a file that could not be is tried again now.
    pub fn trouble(&mut self) -> Option<String> {
        if self.trouble.is_some() {
            // What comes of it is what is returned.
            drop(self.write());
        }
        self.trouble.clone()
    }

    fn write(&mut self) -> io::Result<()> {
        if let Some(why) = &self.refused {
            return Err(io::Error::other(why.clone()));
        }
        let written =
            serde_json::to_vec(&self.state).map_err(io::Error::from).and_then(|bytes| replace(&self.path, &bytes));
        self.trouble = written.as_ref().err().map(|error| format!("{}: {error}", self.path.display()));
        written
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_written_is_there_after_a_restart() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (mut file, lost) = StateFile::open(dir.path()).expect("opens");
        assert_eq!(lost, None);
        file.update(|state| state.connection = 7).expect("writes");
        assert_eq!(StateFile::open(dir.path()).expect("opens").0.state().connection, 7);
    }

    #[test]
    fn a_file_that_cannot_be_written_is_said_and_tried_again() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let (mut file, _) = StateFile::open(dir.path()).expect("opens");
        let in_the_way = dir.path().join("state.json.new");
        fs::create_dir(&in_the_way).expect("made");
        file.update(|state| state.connection = 7).expect_err("refused");
        assert!(file.trouble().expect("said").contains("state.json"));
        fs::remove_dir(&in_the_way).expect("removed");
        assert_eq!(file.trouble(), None);
        assert_eq!(StateFile::open(dir.path()).expect("opens").0.state().connection, 7, "what memory had is there");
    }

    #[test]
    fn a_half_written_file_is_set_aside_and_said() {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::write(dir.path().join("state.json"), b"{\"conn").expect("writes");
        let (file, lost) = StateFile::open(dir.path()).expect("opens");
        assert_eq!(*file.state(), State::default());
        assert!(lost.expect("said").contains("state.json.damaged"));
        assert!(dir.path().join("state.json.damaged").exists());
    }
}
