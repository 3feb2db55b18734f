//! The audit log: who changed or commanded what, when, and what became of it.
//!
//! JSON lines in two files of the state folder; the older one goes when the newer one is full. People read it with
//! `hedge-agent log settings`, on a running agent and a stopped one. Nothing is decided by it, and an agent that cannot
//! write it works on and says so.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::clock::Clock;
use hedge_outbox::files::is_at;

/// One file. Both together hold some ten thousand changes.
const FILE_BYTES_MAX: u64 = 2 * 1024 * 1024;

/// One entry. Longer values are left out.
const ENTRY_BYTES_MAX: usize = 64 * 1024;

const NEWER: &str = "audit.jsonl";
const OLDER: &str = "audit.1.jsonl";

/// What an entry is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// A command, and what became of it.
    Command,
    /// Settings that came into force, or were given back.
    Settings,
    /// A step of a trial of settings.
    Trial,
    /// A bundle that was fetched, and what became of it.
    Bundle,
}

/// One change, command, trial or refusal. Absent fields are left out.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Noted {
    pub kind: Kind,
    /// The command's name, the settings' version, or the step.
    pub what: String,
    /// How it ended: `done`, `refused`, `failed`, `interrupted`, `applied`, ….
    pub outcome: String,
    /// Who gave it, as far as the message says.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
    /// The command's id.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub before: Value,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub after: Value,
}

impl Noted {
    #[must_use]
    pub fn new(kind: Kind, what: impl Into<String>, outcome: impl Into<String>) -> Self {
        Self {
            kind,
            what: what.into(),
            outcome: outcome.into(),
            by: None,
            id: None,
            reason: None,
            before: Value::Null,
            after: Value::Null,
        }
    }
}

/// An entry as it stands in the file.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// UTC, as this device's clock showed it; for people.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub at: Option<String>,
    /// Whether that clock had been set from the network since power-on.
    pub synced: bool,
    /// The powered clock, which never jumps.
    pub powered_ms: u64,
    #[serde(flatten)]
    pub entry: Noted,
}

/// Writes entries. Cheap to clone.
#[derive(Clone)]
pub struct Audit(Arc<Shared>);

struct Shared {
    dir: PathBuf,
    clock: Clock,
    file: Mutex<Option<File>>,
    /// Why the last entry could not be written.
    trouble: Mutex<Option<String>>,
}

impl Audit {
    /// Opens nothing before the first entry.
    #[must_use]
    pub fn new(dir: &Path, clock: Clock) -> Self {
        Self(Arc::new(Shared { dir: dir.to_owned(), clock, file: Mutex::new(None), trouble: Mutex::new(None) }))
    }

    /// Why the last entry could not be written, until one could be or the file can be opened again. Blocks on the disk.
    #[must_use]
    pub fn trouble(&self) -> Option<String> {
        let mut trouble = self.0.trouble.lock().unwrap_or_else(PoisonError::into_inner);
        if trouble.is_some() && open(&self.0.path()).is_ok() {
            *trouble = None;
        }
        trouble.clone()
    }

    /// Writes one entry durably; an error is said in the log.
    pub async fn note(&self, entry: Noted) {
        let shared = self.0.clone();
        let written = tokio::task::spawn_blocking(move || shared.note(entry)).await;
        match written {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the audit log"),
            Err(error) => tracing::error!(%error, "writing the audit log ended badly"),
        }
    }
}

impl Shared {
    fn path(&self) -> PathBuf {
        self.dir.join(NEWER)
    }

    fn note(&self, entry: Noted) -> io::Result<()> {
        let written = self.write(entry);
        let trouble = written.as_ref().err().map(|error| format!("{}: {error}", self.path().display()));
        *self.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
        written
    }

    fn write(&self, entry: Noted) -> io::Result<()> {
        let captured = self.clock.captured();
        let at = captured.wall_ms.map(utc);
        let mut line = Line { at, synced: captured.synced, powered_ms: captured.powered_ms, entry };
        let mut bytes = serde_json::to_vec(&line)?;
        if bytes.len() > ENTRY_BYTES_MAX {
            let left_out = Value::from(format!("left out: the entry had {} bytes", bytes.len()));
            (line.entry.before, line.entry.after) = (left_out.clone(), left_out);
            bytes = serde_json::to_vec(&line)?;
        }
        bytes.push(b'\n');
        let mut place = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let mut file = match place.take() {
            Some(file) if is_at(&file, &self.path()) => file,
            _ => open(&self.path())?,
        };
        if file.metadata()?.len() + bytes.len() as u64 > FILE_BYTES_MAX {
            fs::rename(self.path(), self.dir.join(OLDER))?;
            file = open(&self.path())?;
        }
        file.write_all(&bytes)?;
        file.sync_data()?;
        // Not put back after an error: the next entry then begins on a line of its own.
        *place = Some(file);
        Ok(())
    }
}

/// Opens for appending; what a crash left of a line is ended.
fn open(path: &Path) -> io::Result<File> {
    use std::os::unix::fs::FileExt as _;
    let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
    let length = file.metadata()?.len();
    let mut last = [b'\n'];
    if length > 0 {
        file.read_exact_at(&mut last, length - 1)?;
    }
    if last != [b'\n'] {
        file.write_all(b"\n")?;
    }
    Ok(file)
}

/// The last `last` entries in `dir`, oldest first, and how many lines could not be read.
pub fn read(dir: &Path, last: usize) -> io::Result<(Vec<Line>, u64)> {
    let (mut lines, mut unreadable) = (std::collections::VecDeque::new(), 0);
    for name in [OLDER, NEWER] {
        let file = match File::open(dir.join(name)) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        for text in BufReader::new(file).split(b'\n') {
            let text = text?;
            match serde_json::from_slice(&text) {
                Ok(line) => lines.push_back(line),
                Err(_) if text.is_empty() => {}
                Err(_) => unreadable += 1,
            }
            if lines.len() > last {
                lines.pop_front();
            }
        }
    }
    Ok((lines.into(), unreadable))
}

/// `2026-11-25T14:36:05Z`, by Howard Hinnant's `civil_from_days`.
fn utc(ms: u64) -> String {
    let (days, second) = (ms / 86_400_000, ms / 1000 % 86_400);
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era = (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let (hour, minute, second) = (second / 3600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::ClockMark;
    use hedge_core::clock::Moment;

    fn audit(dir: &Path) -> Audit {
        Audit::new(dir, Clock::resume(&ClockMark::default(), Moment(0)))
    }

    fn entry(what: &str) -> Noted {
        Noted { by: Some("ana".into()), ..Noted::new(Kind::Command, what, "done") }
    }

    #[test]
    fn wall_time_reads_as_people_write_it() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_400_000, "2000-02-29T00:00:00Z"),
            (1_709_251_199_999, "2024-02-29T23:59:59Z"),
            (1_798_761_600_000, "2027-01-01T00:00:00Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00Z"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }

    #[tokio::test]
    async fn entries_are_read_back_in_order_and_a_torn_line_hides_no_other() {
        let dir = tempfile::tempdir().expect("folder");
        for what in ["one", "two"] {
            audit(dir.path()).note(entry(what)).await;
        }
        let path = dir.path().join(NEWER);
        let bytes = fs::read(&path).expect("written");
        fs::write(&path, &bytes[..bytes.len() - 5]).expect("torn");
        audit(dir.path()).note(entry("three")).await;
        let (lines, unreadable) = read(dir.path(), 10).expect("reads");
        let whats: Vec<_> = lines.iter().map(|line| line.entry.what.as_str()).collect();
        assert_eq!((whats, unreadable), (vec!["one", "three"], 1));
        assert_eq!(read(dir.path(), 1).expect("reads").0, lines[1..]);
        assert_eq!(lines[1].entry, entry("three"));
    }

    #[tokio::test]
    async fn a_log_that_was_deleted_is_begun_anew_and_one_that_cannot_be_written_is_said() {
        let dir = tempfile::tempdir().expect("folder");
        let audit = audit(dir.path());
        audit.note(entry("one")).await;
        fs::remove_file(dir.path().join(NEWER)).expect("deleted");
        audit.note(entry("two")).await;
        assert_eq!(read(dir.path(), 9).expect("reads").0.len(), 1, "what came later is there");
        assert_eq!(audit.trouble(), None);
        fs::remove_file(dir.path().join(NEWER)).expect("deleted");
        fs::create_dir(dir.path().join(NEWER)).expect("made");
        audit.note(entry("three")).await;
        assert!(audit.trouble().expect("said").contains(NEWER));
        fs::remove_dir(dir.path().join(NEWER)).expect("removed");
        assert_eq!(audit.trouble(), None, "well again before the next entry");
    }

    #[tokio::test]
    async fn the_log_is_bounded_and_keeps_the_newest() {
        let dir = tempfile::tempdir().expect("folder");
        let audit = audit(dir.path());
        let long = Noted { after: "x".repeat(60_000).into(), ..entry("long") };
        for _ in 0..100 {
            audit.note(long.clone()).await;
        }
        audit.note(Noted { after: "x".repeat(100_000).into(), ..entry("too long") }).await;
        let bytes = |name| fs::metadata(dir.path().join(name)).expect("there").len();
        assert!(bytes(NEWER) <= FILE_BYTES_MAX && bytes(OLDER) <= FILE_BYTES_MAX);
        let (lines, unreadable) = read(dir.path(), 1000).expect("reads");
        assert!(lines.len() > 34 && unreadable == 0, "{}", lines.len());
        assert!(lines.last().expect("one").entry.after.to_string().contains("left out"));
    }
}
