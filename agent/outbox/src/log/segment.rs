//! The beginning of a segment: format version and salt, written twice.

use std::io;

use super::super::disk::SegmentFile;

/// The format this program writes and the newest it reads.
pub(crate) const FORMAT: u16 = 1;

/// Both copies of the file header; records begin here.
pub(crate) const FILE_HEADER_BYTES: usize = 2 * COPY_BYTES;
const COPY_BYTES: usize = 32;
const MAGIC: [u8; 8] = *b"HedgeLog";

/// What a file header says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct FileHeader {
    pub(crate) segment: u32,
    pub(crate) salt: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Opening {
    Fine(FileHeader),
    /// Written by a newer version of this program.
    Newer(u16),
    /// It never reached the disk, so nothing behind it was ever synced: the first sync takes the whole file.
    Blank,
    Unreadable,
}

impl FileHeader {
    pub(crate) fn encode(self) -> [u8; FILE_HEADER_BYTES] {
        let mut copy = [0; COPY_BYTES];
        copy[..8].copy_from_slice(&MAGIC);
        copy[8..10].copy_from_slice(&FORMAT.to_le_bytes());
        copy[12..16].copy_from_slice(&self.segment.to_le_bytes());
        copy[16..24].copy_from_slice(&self.salt.to_le_bytes());
        let crc = crc32c::crc32c(&copy[..28]);
        copy[28..].copy_from_slice(&crc.to_le_bytes());
        let mut bytes = [0; FILE_HEADER_BYTES];
        bytes[..COPY_BYTES].copy_from_slice(&copy);
        bytes[COPY_BYTES..].copy_from_slice(&copy);
        bytes
    }

    /// Reads the file header of `segment` from either copy.
    pub(crate) fn read(file: &dyn SegmentFile, segment: u32) -> io::Result<Opening> {
        let mut bytes = [0; FILE_HEADER_BYTES];
        let read = file.read_at(&mut bytes, 0)?;
        let opening = bytes[..read].as_chunks().0.iter().find_map(Self::decode);
        Ok(match opening {
            Some(Opening::Fine(header)) if header.segment != segment => Opening::Unreadable,
            Some(opening) => opening,
            None if read == FILE_HEADER_BYTES && bytes == [0; FILE_HEADER_BYTES] => Opening::Blank,
            None => Opening::Unreadable,
        })
    }

    fn decode(copy: &[u8; COPY_BYTES]) -> Option<Opening> {
        let crc = crc32c::crc32c(&copy[..28]);
        if copy[..8] != MAGIC || copy[28..] != crc.to_le_bytes() {
            return None;
        }
        let format = u16::from_le_bytes([copy[8], copy[9]]);
        if format > FORMAT {
            return Some(Opening::Newer(format));
        }
        let segment = u32::from_le_bytes([copy[12], copy[13], copy[14], copy[15]]);
        let mut salt = [0; 8];
        salt.copy_from_slice(&copy[16..24]);
        Some(Opening::Fine(Self { segment, salt: u64::from_le_bytes(salt) }))
    }
}
