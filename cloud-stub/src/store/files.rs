//! The records' file while a process works with it: nobody else does, and it still is what it was opened as.
//!
//! SQLite goes on writing to a file that was removed or replaced under it, and so would acknowledge cases that are gone
//! with the process.

use std::fs::{File, TryLockError};
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use super::StoreError;

/// Held by the one process that writes; given back by the system however it ends.
#[derive(Debug)]
pub(super) struct Lock(#[expect(dead_code, reason = "it is held, not read")] File);

impl Lock {
    /// Before anything of the records is opened.
    pub(super) fn take(records: &Path) -> Result<Self, StoreError> {
        let path = beside(records, ".lock");
        let unusable = |source| StoreError::Unusable { path: path.clone(), source };
        let file = File::create(&path).map_err(unusable)?;
        match file.try_lock() {
            Ok(()) => Ok(Self(file)),
            Err(TryLockError::WouldBlock) => Err(StoreError::InUse(records.to_owned())),
            Err(TryLockError::Error(error)) => Err(unusable(error)),
        }
    }
}

/// Which files the records were when they were opened.
#[derive(Debug)]
pub(super) struct Files {
    records: PathBuf,
    /// The database and its write-ahead log, which has the latest commits.
    files: [(PathBuf, (u64, u64)); 2],
}

impl Files {
    /// Of records that a connection has read from: the log lies beside them as long as it is open.
    pub(super) fn of(records: &Path) -> Result<Self, StoreError> {
        let known = |path: PathBuf| match identity(&path) {
            Ok(identity) => Ok((path, identity)),
            Err(source) => Err(StoreError::Unusable { path, source }),
        };
        Ok(Self { records: records.to_owned(), files: [known(records.to_owned())?, known(beside(records, "-wal"))?] })
    }

    /// Asked after each commit: what was written is where the next process looks for it.
    pub(super) fn check(&self) -> Result<(), StoreError> {
        match self.files.iter().find(|(path, known)| identity(path).ok() != Some(*known)) {
            Some((path, _)) => Err(StoreError::Moved { records: self.records.clone(), file: path.clone() }),
            None => Ok(()),
        }
    }
}

fn identity(path: &Path) -> io::Result<(u64, u64)> {
    std::fs::metadata(path).map(|file| (file.dev(), file.ino()))
}

fn beside(records: &Path, ending: &str) -> PathBuf {
    let mut path = records.as_os_str().to_owned();
    path.push(ending);
    path.into()
}

#[cfg(test)]
mod tests {
    use hedge_proto::Name;

    use crate::store::testing::case;
    use crate::store::{Act, Audit, FILE_NAME, RecordsAt, StoreError, Writer};

    fn open(at: &RecordsAt) -> Result<Writer, StoreError> {
        Writer::open(at, &Name::new("one").expect("valid"))
    }

    #[test]
    fn nothing_counts_as_recorded_in_a_file_that_was_removed_or_replaced() {
        for file in [FILE_NAME.to_owned(), format!("{FILE_NAME}-wal")] {
            let dir = tempfile::tempdir().expect("a directory");
            let at = RecordsAt::file(dir.path().join(FILE_NAME));
            let mut writer = open(&at).expect("records");
            let audit = Audit::open(&at).expect("an audit");
            let mut record = |number| {
                let batch = writer.batch().expect("a batch");
                batch.record(&case(number), b"p", 1).expect("recorded");
                batch.commit()
            };
            record(1).expect("committed");
            audit.begin(&Act::default()).expect("noted");
            let (path, aside) = (dir.path().join(&file), dir.path().join("aside"));
            std::fs::rename(&path, &aside).expect("moved");
            let why = record(2).expect_err("it is not there").to_string();
            assert!(why.contains(&file) && why.contains("put it back"), "{why}");
            assert!(audit.begin(&Act::default()).is_err(), "{file}: who did it cannot be put on record");
            std::fs::copy(&aside, &path).expect("copied");
            record(3).expect_err("another file, even if it has the same in it");
            std::fs::rename(&aside, &path).expect("put back");
            record(4).expect("committed");
        }
    }

    #[test]
    fn a_second_process_does_not_work_with_the_same_file() {
        let dir = tempfile::tempdir().expect("a directory");
        let at = RecordsAt::file(dir.path().join(FILE_NAME));
        let first = open(&at).expect("records");
        let Err(StoreError::InUse(path)) = open(&at) else { panic!("two writers of one file") };
        assert_eq!(path, dir.path().join(FILE_NAME));
        drop(first);
        open(&at).expect("it is free again");
    }
}
