//! Looks at files and reads them. Everything here may block.

use std::collections::BinaryHeap;
use std::ffi::{OsStr, OsString};
use std::fs::{File, Metadata};
use std::io::{self, Read as _};
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

use hedge_inference::ContentType;
use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::fate::{DONE, FAILED};
use crate::capture::command::holds_whole_jpeg;
use crate::sample::SampleError;

/// What tells one state of a file from another.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub(super) struct Look {
    /// When it was written: seconds and nanoseconds since 1970. First, so that looks sort by age.
    written: (i64, i64),
    bytes: u64,
    inode: u64,
    /// When anything of it changed, its name and owner included: unlike `written`, nobody can set it.
    changed: (i64, i64),
}

impl Look {
    fn of(metadata: &Metadata) -> Self {
        Self {
            written: (metadata.mtime(), metadata.mtime_nsec()),
            bytes: metadata.len(),
            inode: metadata.ino(),
            changed: (metadata.ctime(), metadata.ctime_nsec()),
        }
    }

    pub(super) fn inode(&self) -> u64 {
        self.inode
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The same file with nothing written to it since, though it may have been moved.
    pub(super) fn is_content_of(&self, other: &Self) -> bool {
        (self.written, self.bytes, self.inode) == (other.written, other.bytes, other.inode)
    }

    /// Whether it was written after the other was.
    pub(super) fn is_newer_than(&self, other: &Self) -> bool {
        self.written > other.written
    }
}

#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Found {
    pub(super) look: Look,
    pub(super) name: OsString,
}

/// Whether a file of this name is meant for us. One that stands where our own folders belong is its owner's to take away.
pub(super) fn is_wanted(name: &OsStr) -> bool {
    let name = name.as_bytes();
    ![DONE, FAILED].map(str::as_bytes).contains(&name)
        && !name.starts_with(b".")
        && ![&b".part"[..], b".tmp", b"~"].iter().any(|ending| name.ends_with(ending))
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

/// What every PNG begins with.
const PNG_MAGIC: &[u8] = b"\x89PNG\r\n\x1a\n";

/// Whether a picture or a recording ends before its own format says it does, so that more of it may be on its way.
pub(super) fn is_unfinished(bytes: &[u8]) -> bool {
    match ContentType::sniff(bytes) {
        Some(ContentType::Jpeg) => !holds_whole_jpeg(bytes),
        Some(ContentType::Png) => !holds_whole_png(bytes),
        Some(ContentType::Wav) => !holds_whole_wav(bytes),
        Some(_) => false,
        None => [&[0xff, 0xd8, 0xff][..], PNG_MAGIC].iter().any(|magic| magic.starts_with(bytes)),
    }
}

/// The length in its first chunk. A recorder that does not know it yet says a very large one or none.
fn holds_whole_wav(bytes: &[u8]) -> bool {
    let claimed = bytes.get(4..8).and_then(|length| length.try_into().ok()).map_or(0, u32::from_le_bytes);
    let is_known = (1..0x7FFF_F000).contains(&claimed);
    !is_known || bytes.len() as u64 >= u64::from(claimed) + 8
}

/// Steps from chunk to chunk: 4 bytes of length, 4 of kind, the data, 4 of checksum.
fn holds_whole_png(bytes: &[u8]) -> bool {
    let mut rest = bytes.get(PNG_MAGIC.len()..).unwrap_or_default();
    while let Some((length, after)) = rest.split_first_chunk::<4>() {
        let end = usize::try_from(u32::from_be_bytes(*length)).unwrap_or(usize::MAX).saturating_add(4 + 4);
        let Some(next) = after.get(end..) else { return false };
        if after.starts_with(b"IEND") {
            return true;
        }
        rest = next;
    }
    false
}
