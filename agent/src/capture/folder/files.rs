//! Looks at files and reads them. Everything here may block.

use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use rustix::fs::{Mode, OFlags};

use crate::sample::SampleError;

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Look {
    /// When it was written: seconds and nanoseconds since 1970. First, so that looks sort by age.
    written: (i64, i64),
    bytes: u64,
    inode: u64,
}

impl Look {
    fn of(metadata: &Metadata) -> Self {
        Self { written: (metadata.mtime(), metadata.mtime_nsec()), bytes: metadata.len(), inode: metadata.ino() }
    }

    pub(super) fn written_ms(&self) -> i64 {
        self.written.0.saturating_mul(1000).saturating_add(self.written.1 / 1_000_000)
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) look: Look,
    pub(super) name: OsString,
}

/// Whether a file of this name is meant for us.
pub(super) fn is_wanted(name: &OsStr) -> bool {
    let name = name.as_bytes();
    !name.starts_with(b".") && ![&b".part"[..], b".tmp", b"~"].iter().any(|ending| name.ends_with(ending))
}

/// The `count_max` oldest files, oldest first.
pub(super) fn scan(folder: &Path, count_max: usize) -> io::Result<Vec<Found>> {
    let mut oldest = BinaryHeap::new();
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name();
        if !is_wanted(&name) {
            continue;
        }
        // One that went away meanwhile is nobody's loss.
        let Ok(look) = look(&entry.path()) else { continue };
        oldest.push(Found { look, name });
        if oldest.len() > count_max {
            oldest.pop();
        }
    }
    Ok(oldest.into_sorted_vec())
}

/// Looks at a regular file, not through links.
pub(super) fn look(path: &Path) -> io::Result<Look> {
    let metadata = std::fs::symlink_metadata(path)?;
    if metadata.is_file() { Ok(Look::of(&metadata)) } else { Err(io::ErrorKind::InvalidInput.into()) }
}

pub(super) fn identity(folder: &Path) -> io::Result<(u64, u64)> {
    let metadata = std::fs::metadata(folder)?;
    if metadata.is_dir() { Ok((metadata.dev(), metadata.ino())) } else { Err(io::ErrorKind::NotADirectory.into()) }
}

pub(super) enum Reading {
    Whole(Look, Vec<u8>),
    /// It will never be a sample, for this reason.
    Unusable(Look, String),
    /// Gone, not a file, or being written.
    NotNow,
}

/// Reads a file of at most `bytes_max` bytes. The size is checked before, and again while reading.
pub(super) fn read(path: &Path, bytes_max: usize) -> Reading {
    let Ok(before) = look(path) else { return Reading::NotNow };
    if before.bytes > bytes_max as u64 {
        let error = SampleError::TooLarge { bytes: before.bytes, bytes_max: bytes_max as u64 };
        return Reading::Unusable(before, error.to_string());
    }
    match read_as_it_was(path, &before) {
        Ok(Some(bytes)) if bytes.is_empty() => Reading::Unusable(before, "the file is empty".to_owned()),
        Ok(Some(bytes)) => Reading::Whole(before, bytes),
        Ok(None) => Reading::NotNow,
        Err(error) if error.kind() == io::ErrorKind::NotFound => Reading::NotNow,
        Err(error) => Reading::Unusable(before, format!("the file cannot be read: {error}")),
    }
}

/// `None` if it changed meanwhile.
fn read_as_it_was(path: &Path, before: &Look) -> io::Result<Option<Vec<u8>>> {
    // Neither a link nor a pipe that took the file's place in this moment can lead or hold us elsewhere.
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NOFOLLOW | OFlags::NONBLOCK;
    let mut file = File::from(rustix::fs::open(path, flags, Mode::empty())?);
    if Look::of(&file.metadata()?) != *before {
        return Ok(None);
    }
    let mut bytes = Vec::with_capacity(usize::try_from(before.bytes).unwrap_or(0));
    (&mut file).take(before.bytes + 1).read_to_end(&mut bytes)?;
    Ok((Look::of(&file.metadata()?) == *before).then_some(bytes))
}
