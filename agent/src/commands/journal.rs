//! The journal of commands on disk: JSON lines, each with its CRC-32C, in the order in which things happened.
//!
//! A torn tail is cut off, a damaged line is set aside, and the rest counts. When most lines are of no more use the
//! journal is written anew beside itself and renamed. After a failed write or sync nothing more is appended: the next
//! record begins with a new journal.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use hedge_core::control::commands::Record;
use hedge_proto::to_json;

use hedge_outbox::files::{is_at, replace};

/// A journal has this many lines before it is looked at whether it could be shorter.
const LINES_MIN: usize = 300;

/// More than a thousand results of the greatest size, twice. A longer file is none of ours.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// What is set aside stops growing here.
const ASIDE_BYTES_MAX: u64 = 1024 * 1024;

/// `["xxxxxxxx",` before the record, `]` behind it.
const CRC_BYTES: usize = 12;

/// An open journal.
#[derive(Debug)]
pub(super) struct Journal {
    path: PathBuf,
    file: File,
    lines: usize,
    broken: bool,
    /// Why nothing is ever written: the folder cannot be used, and what lies there is left alone.
    closed: Option<String>,
}

/// What was found at the start.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Found {
    pub records: Vec<Record>,
    pub torn_bytes: u64,
    pub damaged_lines: u64,
}

impl Journal {
    /// Reads `commands.jsonl` in `dir` and cuts off what was not written to its end. A journal that cannot be read is
    /// set aside: it must not keep the agent from starting.
    pub(super) fn open(dir: &Path) -> io::Result<(Self, Found)> {
        fs::create_dir_all(dir)?;
        let path = dir.join("commands.jsonl");
        Self::read(dir, path.clone()).or_else(|error| {
            tracing::error!(%error, path = %path.display(), "the journal of commands cannot be read; it is set aside");
            fs::rename(&path, path.with_extension("jsonl.unreadable"))?;
            Self::read(dir, path)
        })
    }

    /// Takes nothing: what needs a record is refused.
    pub(super) fn closed(dir: &Path, why: &str) -> io::Result<Self> {
        let file = File::open("/dev/null")?;
        Ok(Self { path: dir.join("commands.jsonl"), file, lines: 0, broken: true, closed: Some(why.to_owned()) })
    }

    fn read(dir: &Path, path: PathBuf) -> io::Result<(Self, Found)> {
        let mut file = open(&path)?;
        let mut found = Found::default();
        let length = file.metadata()?.len();
        if length > FILE_BYTES_MAX {
            fs::rename(&path, path.with_extension("jsonl.damaged"))?;
            file = open(&path)?;
            found.damaged_lines = 1;
        }
        File::open(dir)?.sync_all()?; // a journal made just now is there after a power cut, too
        let bytes = fs::read(&path)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        if whole < bytes.len() {
            found.torn_bytes = (bytes.len() - whole) as u64;
            file.set_len(whole as u64)?;
            file.sync_data()?;
        }
        let mut journal = Self { path, file, lines: 0, broken: false, closed: None };
        for line in bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty()) {
            journal.lines += 1;
            match read(line) {
                Some(record) => found.records.push(record),
                None => {
                    found.damaged_lines += 1;
                    journal.set_aside(line);
                }
            }
        }
        // Damaged lines are set aside once.
        journal.broken = found.damaged_lines > 0;
        Ok((journal, found))
    }

    /// Whether [`Self::rewrite`] must come before the next record, or would halve the journal, with `kept` records.
    pub(super) fn wants_rewrite(&self, kept: usize) -> bool {
        // Into one that was deleted nothing is written; the records in memory make another.
        self.closed.is_none() && (self.broken || !is_at(&self.file, &self.path) || self.lines > LINES_MIN.max(2 * kept))
    }

    /// Writes one record; with `durable` it has reached the disk afterwards.
    pub(super) fn append(&mut self, record: &Record, durable: bool) -> io::Result<()> {
        if self.broken {
            let why = self.closed.clone().unwrap_or_else(|| "an earlier write failed".to_owned());
            return Err(io::Error::other(why));
        }
        let written =
            self.file.write_all(&line(record)).and_then(|()| if durable { self.file.sync_data() } else { Ok(()) });
        self.broken = written.is_err();
        self.lines += 1;
        written
    }

    /// Replaces the journal by one that holds only these.
    pub(super) fn rewrite(&mut self, records: &[Record]) -> io::Result<()> {
        let bytes: Vec<u8> = records.iter().flat_map(line).collect();
        replace(&self.path, &bytes)?;
        (self.file, self.lines, self.broken) = (open(&self.path)?, records.len(), false);
        Ok(())
    }

    /// Writes fail from now on, as on a full disk.
    #[cfg(test)]
    pub(super) fn refuse_writes(&mut self) {
        self.file = File::open(&self.path).expect("opens");
        self.path = "/dev/null/nowhere".into();
    }

    fn set_aside(&self, line: &[u8]) {
        let path = self.path.with_extension("jsonl.damaged");
        let written = OpenOptions::new().create(true).append(true).open(&path).and_then(|mut file| {
            if file.metadata()?.len() < ASIDE_BYTES_MAX {
                file.write_all(line)?;
                file.write_all(b"\n")?;
            }
            Ok(())
        });
        if let Err(error) = written {
            tracing::warn!(%error, path = %path.display(), "a damaged record of a command could not be set aside");
        }
    }
}

fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().read(true).append(true).create(true).open(path)
}

fn line(record: &Record) -> Vec<u8> {
    let json = to_json(record);
    let mut line = format!("[\"{:08x}\",", crc32c::crc32c(&json)).into_bytes();
    line.extend(json);
    line.extend(b"]\n");
    line
}

fn read(line: &[u8]) -> Option<Record> {
    let (head, rest) = line.split_at_checked(CRC_BYTES)?;
    let json = rest.strip_suffix(b"]")?;
    let crc = head.strip_prefix(b"[\"")?.strip_suffix(b"\",")?;
    let crc = u32::from_str_radix(std::str::from_utf8(crc).ok()?, 16).ok()?;
    (crc == crc32c::crc32c(json)).then(|| serde_json::from_slice(json).ok())?
}

/// Any bytes as a line of the journal.
#[cfg(any(test, fuzzing))]
pub fn journal(bytes: &[u8]) {
    let sealed = [format!("[\"{:08x}\",", crc32c::crc32c(bytes)).as_bytes(), bytes, b"]"].concat();
    for text in [bytes, &sealed] {
        if let Some(record) = read(text) {
            let written = line(&record);
            let again = read(written.strip_suffix(b"\n").unwrap_or(&written));
            assert_eq!(again, Some(record), "it does not read back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read as _, Seek as _, SeekFrom};

    fn said(id: u32) -> Record {
        Record::Said { id: id.to_string() }
    }

    #[track_caller]
    fn reopen(dir: &Path) -> (Journal, Found) {
        Journal::open(dir).expect("opens")
    }

    fn with(dir: &Path, ids: std::ops::Range<u32>) -> Journal {
        let (mut journal, _) = reopen(dir);
        ids.for_each(|id| journal.append(&said(id), id % 2 == 0).expect("writes"));
        journal
    }

    fn change(dir: &Path, change: impl FnOnce(&mut Vec<u8>)) {
        let path = dir.join("commands.jsonl");
        let mut bytes = fs::read(&path).expect("reads");
        change(&mut bytes);
        fs::write(&path, bytes).expect("writes");
    }

    #[test]
    fn a_journal_that_was_deleted_is_made_anew_from_memory_before_the_next_record() {
        let dir = tempfile::tempdir().expect("folder");
        let mut journal = with(dir.path(), 0..3);
        assert!(!journal.wants_rewrite(3));
        fs::remove_file(dir.path().join("commands.jsonl")).expect("deleted");
        assert!(journal.wants_rewrite(3));
        journal.rewrite(&[said(1), said(2)]).expect("made");
        journal.append(&said(9), true).expect("writes");
        assert_eq!(reopen(dir.path()).1.records, [said(1), said(2), said(9)]);
    }

    #[test]
    fn a_journal_cut_anywhere_keeps_every_whole_line() {
        let dir = tempfile::tempdir().expect("folder");
        with(dir.path(), 0..3);
        let whole = fs::read(dir.path().join("commands.jsonl")).expect("reads");
        for length in 0..=whole.len() {
            change(dir.path(), |bytes| *bytes = whole[..length].to_vec());
            let lines = whole[..length].iter().filter(|byte| **byte == b'\n').count();
            let (mut journal, found) = reopen(dir.path());
            assert_eq!((found.records.len(), found.damaged_lines), (lines, 0), "cut at {length}");
            journal.append(&said(9), true).expect("goes on");
            assert_eq!(reopen(dir.path()).1.records.last(), Some(&said(9)));
        }
    }

    #[test]
    fn a_damaged_line_is_set_aside_once_and_loses_no_other() {
        let dir = tempfile::tempdir().expect("folder");
        with(dir.path(), 0..3);
        let length = fs::metadata(dir.path().join("commands.jsonl")).expect("there").len();
        change(dir.path(), |bytes| bytes[usize::try_from(length).expect("small") / 2] ^= 1);
        let (mut journal, found) = reopen(dir.path());
        assert_eq!((found.records.clone(), found.damaged_lines), (vec![said(0), said(2)], 1));
        assert!(journal.wants_rewrite(2));
        journal.rewrite(&found.records).expect("rewrites");
        journal.append(&said(3), true).expect("goes on");
        assert_eq!(reopen(dir.path()).1.records, [said(0), said(2), said(3)]);
        let aside = fs::read_to_string(dir.path().join("commands.jsonl.damaged")).expect("set aside");
        assert_eq!(aside.lines().count(), 1);
    }

    #[test]
    fn a_journal_that_cannot_be_read_keeps_nobody_from_starting() {
        let dir = tempfile::tempdir().expect("folder");
        fs::create_dir(dir.path().join("commands.jsonl")).expect("makes");
        let (mut journal, found) = reopen(dir.path());
        assert_eq!(found, Found::default());
        journal.append(&said(1), true).expect("goes on");
        assert!(dir.path().join("commands.jsonl.unreadable").is_dir());
    }

    #[test]
    fn a_journal_of_old_lines_is_written_anew() {
        let dir = tempfile::tempdir().expect("folder");
        let mut journal = with(dir.path(), 0..301);
        assert!(journal.wants_rewrite(150) && !journal.wants_rewrite(151));
        journal.rewrite(&[said(7)]).expect("rewrites");
        assert!(!journal.wants_rewrite(1));
        assert_eq!(reopen(dir.path()).1.records, [said(7)]);
    }

    #[test]
    fn after_a_failed_write_nothing_is_appended_before_a_new_journal() {
        let dir = tempfile::tempdir().expect("folder");
        let mut journal = with(dir.path(), 0..2);
        // A file that cannot be written stands for a full disk.
        journal.file = File::open(dir.path().join("commands.jsonl")).expect("opens");
        assert!(journal.append(&said(2), true).is_err());
        assert!(journal.append(&said(2), true).is_err() && journal.wants_rewrite(1000));
        journal.rewrite(&[said(0), said(1)]).expect("rewrites");
        journal.append(&said(2), true).expect("goes on");
        let mut text = String::new();
        journal.file.seek(SeekFrom::Start(0)).expect("seeks");
        journal.file.read_to_string(&mut text).expect("reads");
        assert_eq!(text.lines().count(), 3);
    }
}
