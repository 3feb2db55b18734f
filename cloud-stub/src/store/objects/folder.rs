//! A folder as the store: a file for each payload, in one of 256 folders by the first two digits of its sum.

use std::fs::{self, DirBuilder, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::UNIX_EPOCH;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::sweep::as_listed;
use super::{AT_ONCE, Failed, PROBE};

#[derive(Debug, Clone)]
pub(super) struct Folder {
    path: PathBuf,
    turns: Arc<Semaphore>,
}

/// Reads `file:///PATH`.
pub(super) fn read(url: &str) -> Option<Result<Folder, String>> {
    let path = Path::new(url.strip_prefix("file://")?);
    let wrong = || Err(format!("`{url}` has no absolute path: write file:///srv/payloads"));
    let open = || Folder { path: path.to_owned(), turns: Arc::new(Semaphore::new(AT_ONCE)) };
    Some(if path.is_absolute() { Ok(open()) } else { wrong() })
}

impl Folder {
    /// None is ever refused: nobody closes them.
    pub(super) async fn turn(&self) -> Option<OwnedSemaphorePermit> {
        self.turns.clone().acquire_owned().await.ok()
    }

    /// Makes the folder, but not the one it is in: that one may be a disk which is not mounted.
    pub(super) fn make(&self) -> Result<(), Failed> {
        match DirBuilder::new().mode(0o700).create(&self.path) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => hedge_identity::write_whole(&self.path.join(PROBE), b"", 0o600),
        }
        .map_err(|error| Failed::Refused(format!("{}: {error}", self.path.display())))
    }

    pub(super) fn put(&self, key: &str, bytes: &[u8]) -> Result<(), Failed> {
        self.is_there()?;
        let path = self.path(key);
        let write = || hedge_identity::write_whole(&path, bytes, 0o600);
        let outcome = match write() {
            Err(error) if error.kind() == ErrorKind::NotFound => self.make_inner(&path).and_then(|()| write()),
            outcome => outcome,
        };
        outcome.map_err(|error| self.failed(&error))
    }

    pub(super) fn get(&self, key: &str) -> Result<Option<Vec<u8>>, Failed> {
        match fs::read(self.path(key)) {
            // Nothing lies in a disk that is not mounted, which says nothing of what is on it.
            Err(error) if error.kind() == ErrorKind::NotFound => self.is_there().map(|()| None),
            outcome => outcome.map(Some).map_err(|error| self.failed(&error)),
        }
    }

    pub(super) fn delete(&self, key: &str) -> Result<(), Failed> {
        let path = self.path(key);
        for path in [unfinished(&path), path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(self.failed(&error)),
                _ => {}
            }
        }
        Ok(())
    }

    /// Keys and times of files behind this one. What ended in the middle of its writing counts as written.
    pub(super) fn list(&self, after: Option<&str>, most: usize) -> Result<Vec<(String, String)>, Failed> {
        self.is_there()?;
        let after = after.map(|key| self.path(key));
        let mut found = Vec::new();
        for first in 0..=u8::MAX {
            let inner = self.path.join(format!("{first:02x}"));
            if found.len() >= most || after.as_ref().is_some_and(|after| !after.starts_with(&inner) && *after > inner) {
                continue;
            }
            let mut files = files(&inner).map_err(|error| self.failed(&error))?;
            files.retain(|(key, _)| after.as_ref().is_none_or(|after| self.path(key) > *after));
            files.sort_by_cached_key(|(key, _)| self.path(key));
            found.extend(files.into_iter().take(most - found.len()));
        }
        Ok(found)
    }

    /// Whether this is the folder that was made, and not the place at which its disk belongs.
    fn is_there(&self) -> Result<(), Failed> {
        match fs::metadata(self.path.join(PROBE)) {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let advice = "is its disk mounted? If the folder is new, make that file";
                Err(Failed::Away(format!("{} has no file `{PROBE}`: {advice}", self.path.display())))
            }
            outcome => outcome.map(drop).map_err(|error| self.failed(&error)),
        }
    }

    fn make_inner(&self, path: &Path) -> io::Result<()> {
        match DirBuilder::new().mode(0o700).create(path.parent().unwrap_or(&self.path)) {
            Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(error),
            _ => File::open(&self.path)?.sync_all(),
        }
    }

    fn path(&self, key: &str) -> PathBuf {
        let (id, sum) = key.split_once('/').unwrap_or(("", key));
        self.path.join(sum.get(..2).unwrap_or(sum)).join(format!("{id}_{sum}"))
    }

    fn failed(&self, error: &io::Error) -> Failed {
        Failed::Away(format!("{}: {error}", self.path.display()))
    }
}

/// What [`hedge_identity::write_whole`] leaves behind when it is ended.
fn unfinished(path: &Path) -> PathBuf {
    path.with_added_extension(NEW)
}

const NEW: &str = "new";

/// Keys and times.
fn files(inner: &Path) -> io::Result<Vec<(String, String)>> {
    let entries = match fs::read_dir(inner) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut files = Vec::new();
    for entry in entries {
        let path = entry?.path();
        let key = path.file_name().and_then(|name| key(name.to_str()?));
        // It may have been deleted meanwhile.
        if let Some((key, modified)) = key.zip(fs::metadata(&path).and_then(|of| of.modified()).ok()) {
            let since = modified.duration_since(UNIX_EPOCH).unwrap_or_default();
            files.push((key, as_listed(u64::try_from(since.as_millis()).unwrap_or(u64::MAX))));
        }
    }
    Ok(files)
}

fn key(file_name: &str) -> Option<String> {
    let file_name = file_name.strip_suffix(NEW).and_then(|rest| rest.strip_suffix('.')).unwrap_or(file_name);
    file_name.rsplit_once('_').map(|(id, sum)| format!("{id}/{sum}"))
}

#[cfg(test)]
mod tests {
    use hedge_proto::{Case, Digest};

    use crate::store::testing::{case, everywhere};
    use crate::store::{Objects, Payload, Reader, RecordsAt, StoreError, Writer};

    fn opened(folder: &std::path::Path) -> Objects {
        Objects::open(&format!("file://{}", folder.display()), &|_| None).expect("opened")
    }

    fn writer(at: &RecordsAt) -> Writer {
        Writer::open(at, &hedge_proto::Name::new("one").expect("valid")).expect("records")
    }

    fn record(writer: &mut Writer, case: &Case) -> Result<(), StoreError> {
        let batch = writer.batch()?;
        batch.record(case, b"p", 1)?;
        batch.commit()
    }

    /// What lies in it, by name.
    fn names(folder: &std::path::Path) -> Vec<String> {
        let inner = std::fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path());
        let inner = inner.filter(|path| path.is_dir() && !path.ends_with("lost+found"));
        let files = inner.flat_map(|inner| std::fs::read_dir(inner).expect("a folder"));
        let mut names: Vec<String> =
            files.map(|entry| entry.expect("an entry").file_name().into_string().expect("a name")).collect();
        names.sort();
        names
    }

    fn name_of(case: &Case) -> String {
        format!("{}_{}", case.id, case.payload_sha256)
    }

    #[test]
    fn a_payload_lies_in_the_folder_before_its_record_is_read_from_there_and_goes_with_it() {
        everywhere(|records| {
            let dir = tempfile::tempdir().expect("a folder");
            let folder = dir.path().join("payloads");
            let at = records.at.clone().with_objects(opened(&folder));
            let mut writer = writer(&at);
            for sequence in 0..2 {
                record(&mut writer, &case(sequence)).expect("recorded");
            }
            assert_eq!(names(&folder), [0, 1].map(|sequence| name_of(&case(sequence))));
            let reader = Reader::open(&at).expect("records");
            assert_eq!(reader.payload(&case(1).id).expect("read").expect("kept").1, b"p");

            let batch = writer.batch().expect("a batch");
            batch.delete(&case(1).id).expect("deleted");
            batch.commit().expect("committed");
            let until = std::time::Instant::now() + std::time::Duration::from_secs(30);
            while names(&folder) != [name_of(&case(0))] {
                assert!(std::time::Instant::now() < until, "{:?}", names(&folder));
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn while_the_folder_s_disk_is_not_mounted_nothing_is_recorded_there_and_no_payload_counts_as_gone() {
        everywhere(|records| {
            let dir = tempfile::tempdir().expect("a folder");
            let (folder, away) = (dir.path().join("payloads"), dir.path().join("away"));
            let at = records.at.clone().with_objects(opened(&folder));
            let mut writer = writer(&at);
            record(&mut writer, &case(0)).expect("recorded");
            std::fs::rename(&folder, &away).expect("moved");
            std::fs::create_dir(&folder).expect("the place of the disk");
            let error = record(&mut writer, &case(1)).expect_err("it is away");
            assert!(error.to_string().contains("is its disk mounted?"), "{error}");
            assert!(writer.batch().expect("a batch").probe().is_err());
            let Ok(Some((_, Payload::Coming(coming)))) = writer.load(&case(0).id) else { panic!("it is elsewhere") };
            assert!(futures_executor::block_on(coming).expect("told").is_err());
            // A start changes nothing about that, and is none of a new folder.
            drop(writer);
            let mut writer = self::writer(&at);
            assert!(record(&mut writer, &case(1)).is_err());
            std::fs::remove_dir(&folder).expect("nothing was written to it");
            std::fs::rename(&away, &folder).expect("moved");
            record(&mut writer, &case(1)).expect("recorded");
            assert_eq!(names(&folder), [0, 1].map(|sequence| name_of(&case(sequence))));
        });
    }

    #[test]
    fn what_no_record_names_is_deleted_from_the_folder_once_it_is_old_also_unfinished() {
        everywhere(|records| {
            let dir = tempfile::tempdir().expect("a folder");
            let objects = opened(dir.path());
            let at = records.at.clone().with_objects(objects.clone());
            let mut writer = writer(&at);
            record(&mut writer, &case(0)).expect("recorded");
            // More than one list of them, and ids of which one begins with another.
            let leave = |sequence: u64, content: &[u8], ending: &str| {
                let (id, sum) = (case(sequence).id, Digest::of(content).to_string());
                std::fs::create_dir_all(dir.path().join(&sum[..2])).expect("a folder");
                std::fs::write(dir.path().join(&sum[..2]).join(format!("{id}_{sum}{ending}")), b"pic")
                    .expect("written");
            };
            for n in 0..2_200_u64 {
                leave(n % 40, &n.to_be_bytes(), "");
            }
            leave(50, b"cut", ".new");
            std::fs::create_dir(dir.path().join("lost+found")).expect("as on a disk of its own");
            let reader = Reader::open(&at).expect("records");
            assert_eq!(objects.sweep(&reader, 1_000).expect("swept"), 0, "none is that old");
            assert_eq!(objects.sweep(&reader, crate::wall_ms() + 60_000).expect("swept"), 2_201);
            let until = std::time::Instant::now() + std::time::Duration::from_secs(60);
            while names(dir.path()) != [name_of(&case(0))] {
                assert!(std::time::Instant::now() < until, "{} are left", names(dir.path()).len());
                std::thread::yield_now();
            }
        });
    }

    #[test]
    fn a_folder_that_cannot_be_made_is_named_at_the_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let missing = dir.path().join("disk/payloads");
        let at = RecordsAt::file(dir.path().join("records.sqlite")).with_objects(opened(&missing));
        let opened = Writer::open(&at, &hedge_proto::Name::new("one").expect("valid"));
        let error = opened.err().expect("its parent is missing").to_string();
        assert!(error.contains("disk/payloads"), "{error}");
        let error = Objects::open("file://payloads", &|_| None).expect_err("not absolute").to_string();
        assert!(error.contains("file:///srv/payloads"), "{error}");
    }
}
