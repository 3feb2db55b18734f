//! The few file operations the log needs, so that a test can put a worse disk under it.
//!
//! Nothing above this file touches a path or a file descriptor. What is promised here is only what a disk
//! promises: appended bytes may be lost, torn or reordered until [`SegmentFile::sync`] returns.

use std::fs::File;
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{FileExt, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use crate::files::is_deleted;

/// A good disk takes milliseconds, a worn SD card now and then half a second.
const SLOW_SYNC: Duration = Duration::from_secs(1);

/// How many damaged segments are kept for inspection: 32 MiB at most.
const SET_ASIDE_MAX: usize = 8;

/// One append-only file.
pub(crate) trait SegmentFile: Send {
    /// Writes all the bytes at the end, or fails having written some of them.
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()>;
    /// Makes everything appended so far durable.
    fn sync(&mut self) -> io::Result<()>;
    /// Cuts the file to `bytes`.
    fn cut(&mut self, bytes: u64) -> io::Result<()>;
    /// Reads up to `into.len()` bytes at `offset`; fewer only at the end of the file.
    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize>;
    fn bytes(&self) -> io::Result<u64>;
    /// Whether somebody has deleted it: what is appended is gone when it is closed.
    fn is_deleted(&self) -> bool {
        false
    }
}

/// Where the folder is that was opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Place {
    Here,
    /// Something else is at its path, or nothing: it was moved, or its mount has gone. It may come back.
    Elsewhere,
    /// It was deleted, or another one is there in its stead.
    Gone,
}

/// The folder the segments lie in.
pub(crate) trait Disk: Send + Sync {
    /// A new, empty segment; fails if there is one of this number.
    fn create(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>>;
    fn open(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>>;
    fn remove(&self, segment: u32) -> io::Result<()>;
    /// Moves a segment out of the way, under a name that is never read again. Only the newest few are kept.
    fn set_aside(&self, segment: u32) -> io::Result<()>;
    /// All segments, in any order.
    fn segments(&self) -> io::Result<Vec<u32>>;
    /// Of all segments. One that is removed meanwhile counts nothing.
    fn bytes(&self) -> io::Result<u64> {
        let of = |segment| match self.open(segment).and_then(|file| file.bytes()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
            bytes => bytes,
        };
        self.segments()?.into_iter().map(of).sum()
    }
    /// Makes creations and removals durable.
    fn sync_folder(&self) -> io::Result<()>;
    fn free_bytes(&self) -> io::Result<u64>;
    /// Takes or gives back `bytes` of the disk, so that a full disk still takes a tombstone.
    fn keep_reserve(&self, bytes: Option<u64>) -> io::Result<()>;
    /// Whether so much is kept already.
    fn has_reserve(&self, bytes: u64) -> bool;
    /// Whether what is written still gets to where a start will look for it. Asked at each commit.
    fn place(&self) -> Place {
        Place::Here
    }
}

/// A folder of a real file system.
#[derive(Debug)]
pub(crate) struct Folder {
    path: PathBuf,
    /// The folder itself, wherever it goes.
    opened: File,
}

impl Folder {
    /// Makes the folder if it is not there.
    pub(crate) fn open(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        if let Some(parent) = path.parent() {
            File::open(parent)?.sync_all()?;
        }
        Ok(Self { path: path.to_owned(), opened: File::open(path)? })
    }

    fn path_of(&self, segment: u32) -> PathBuf {
        self.path.join(format!("{segment:08}.log"))
    }

    fn numbers(&self, ending: &str) -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for file in std::fs::read_dir(&self.path)? {
            let name = file?.file_name();
            let stem = name.to_str().and_then(|name| name.strip_suffix(ending));
            numbers.extend(stem.and_then(|stem| stem.parse::<u32>().ok()));
        }
        Ok(numbers)
    }

    fn reserve(&self) -> PathBuf {
        self.path.join("reserve")
    }
}

impl Disk for Folder {
    fn create(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>> {
        let file = File::options().read(true).append(true).create_new(true).open(self.path_of(segment))?;
        Ok(Box::new(file))
    }

    fn open(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>> {
        Ok(Box::new(File::options().read(true).append(true).open(self.path_of(segment))?))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        std::fs::remove_file(self.path_of(segment))
    }

    fn set_aside(&self, segment: u32) -> io::Result<()> {
        let path = self.path_of(segment);
        std::fs::rename(&path, path.with_extension("damaged"))?;
        let mut kept = self.numbers(".damaged")?;
        kept.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
        kept.iter()
            .skip(SET_ASIDE_MAX)
            .try_for_each(|old| std::fs::remove_file(self.path_of(*old).with_extension("damaged")))
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        self.numbers(".log")
    }

    fn sync_folder(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }

    fn free_bytes(&self) -> io::Result<u64> {
        let stat = rustix::fs::statvfs(&self.path)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn keep_reserve(&self, bytes: Option<u64>) -> io::Result<()> {
        let path = self.reserve();
        let Some(bytes) = bytes else {
            return match std::fs::remove_file(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                done => done,
            };
        };
        let file = File::create(&path)?;
        let taken = rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes);
        taken.map_err(io::Error::from).and_then(|()| file.sync_all()).inspect_err(|_| {
            // What was got of it is better used by others.
            if let Err(error) = std::fs::remove_file(&path) {
                tracing::warn!(%error, "a part of the outbox's reserve stays behind");
            }
        })
    }

    fn place(&self) -> Place {
        let (Ok(opened), there) = (self.opened.metadata(), std::fs::metadata(&self.path)) else { return Place::Here };
        match there {
            Ok(there) if (there.dev(), there.ino()) == (opened.dev(), opened.ino()) => Place::Here,
            _ if is_deleted(&self.opened) => Place::Gone,
            Ok(there) if there.dev() == opened.dev() => Place::Gone,
            Ok(_) => Place::Elsewhere,
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Place::Elsewhere
            }
            // Nobody can tell; what is written will.
            Err(_) => Place::Here,
        }
    }

    fn has_reserve(&self, bytes: u64) -> bool {
        std::fs::metadata(self.reserve()).is_ok_and(|file| file.len() == bytes)
    }
}

/// Where nothing can be kept.
pub(crate) struct NoDisk;

impl Disk for NoDisk {
    fn create(&self, _: u32) -> io::Result<Box<dyn SegmentFile>> {
        Err(no_disk())
    }

    fn open(&self, _: u32) -> io::Result<Box<dyn SegmentFile>> {
        Err(no_disk())
    }

    fn remove(&self, _: u32) -> io::Result<()> {
        Err(no_disk())
    }

    fn set_aside(&self, _: u32) -> io::Result<()> {
        Err(no_disk())
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        Ok(Vec::new())
    }

    fn sync_folder(&self) -> io::Result<()> {
        Err(no_disk())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(0)
    }

    fn keep_reserve(&self, _: Option<u64>) -> io::Result<()> {
        Err(no_disk())
    }

    fn has_reserve(&self, _: u64) -> bool {
        false
    }
}

fn no_disk() -> io::Error {
    io::Error::other("the outbox's folder cannot be used")
}

impl SegmentFile for File {
    fn append(&mut self, mut parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        while !parts.is_empty() {
            match self.write_vectored(parts) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => IoSlice::advance_slices(&mut parts, written),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let begun = Instant::now();
        let synced = self.sync_data();
        let took = begun.elapsed();
        if took >= SLOW_SYNC {
            // Said, and no more: starting the agent again would not make the disk faster.
            tracing::warn!("the disk took {:.1} s to make cases durable", took.as_secs_f64());
        }
        synced
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        self.set_len(bytes)
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let mut read = 0;
        while read < into.len() {
            match FileExt::read_at(self, &mut into[read..], offset + read as u64) {
                Ok(0) => break,
                Ok(more) => read += more,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(read)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn is_deleted(&self) -> bool {
        is_deleted(self)
    }
}
