//! Reads records back, one by one or all of a segment.
//!
//! [`Scan`] reads only the fixed parts, so that a log of large payloads is walked in little time. After bytes
//! that are no record it goes on at the next valid one.

use std::io;

use bytes::Bytes;

use super::super::disk::SegmentFile;
use super::record::{HEAD_BYTES, Head, MAGIC, Seal};
use super::segment::{FILE_HEADER_BYTES, FileHeader};

/// How much is read at once where records are small.
const WINDOW_BYTES: usize = 64 * 1024;
/// Behind a record longer than this only the next fixed part is read.
const LONG_RECORD_BYTES: u64 = 16 * 1024;

/// One thing found in a segment.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Found {
    Record {
        head: Head,
        offset: u32,
    },
    /// Bytes that are no record.
    Rubbish {
        bytes: u64,
        /// Nothing valid follows.
        last: bool,
    },
}

pub(crate) struct Scan<'a> {
    file: &'a dyn SegmentFile,
    salt: u64,
    at: u64,
    end: u64,
    window: Vec<u8>,
    window_at: u64,
    long_records: bool,
}

impl<'a> Scan<'a> {
    /// Everything in `file` from `offset` on.
    pub(crate) fn new(file: &'a dyn SegmentFile, header: FileHeader, offset: u64) -> io::Result<Self> {
        let at = offset.max(FILE_HEADER_BYTES as u64);
        let end = file.bytes()?.min(u64::from(u32::MAX));
        Ok(Self { file, salt: header.salt, at, end, window: Vec::new(), window_at: 0, long_records: false })
    }

    /// Nothing more after the last.
    pub(crate) fn next(&mut self) -> io::Result<Option<Found>> {
        if self.at >= self.end {
            return Ok(None);
        }
        if let Some(head) = self.head_at(self.at)? {
            return Ok(Some(self.pass(head)));
        }
        let begun = self.at;
        let next = self.next_valid(begun + 1)?;
        self.at = next.unwrap_or(self.end);
        Ok(Some(Found::Rubbish { bytes: self.at - begun, last: next.is_none() }))
    }

    fn pass(&mut self, head: Head) -> Found {
        let begun = self.at;
        let ends = begun + head.record_bytes();
        if ends > self.end {
            self.at = self.end;
            return Found::Rubbish { bytes: self.end - begun, last: true };
        }
        self.at = ends;
        self.long_records = head.record_bytes() > LONG_RECORD_BYTES;
        let offset = u32::try_from(begun).unwrap_or(u32::MAX); // `end` is at most that
        Found::Record { head, offset }
    }

    fn head_at(&mut self, at: u64) -> io::Result<Option<Head>> {
        if at + HEAD_BYTES as u64 > self.end {
            return Ok(None);
        }
        let salt = self.salt;
        let Some(bytes) = self.bytes_at(at)?.first_chunk::<HEAD_BYTES>() else { return Ok(None) };
        let offset = u32::try_from(at).unwrap_or(u32::MAX);
        Ok(Head::decode(bytes, Seal { salt, offset }))
    }

    fn next_valid(&mut self, from: u64) -> io::Result<Option<u64>> {
        self.long_records = false;
        let mut at = from;
        while at + HEAD_BYTES as u64 <= self.end {
            let bytes = self.bytes_at(at)?;
            match bytes.windows(MAGIC.len()).position(|four| four == MAGIC) {
                Some(skip) => at += skip as u64,
                None => {
                    at += (bytes.len().saturating_sub(MAGIC.len() - 1)).max(1) as u64;
                    continue;
                }
            }
            if self.head_at(at)?.is_some() {
                return Ok(Some(at));
            }
            at += 1;
        }
        Ok(None)
    }

    /// What the window holds from `at` on: at least a fixed part, unless the file ends.
    fn bytes_at(&mut self, at: u64) -> io::Result<&[u8]> {
        let held = at.checked_sub(self.window_at).and_then(|skip| usize::try_from(skip).ok());
        let skip = match held {
            Some(skip) if skip + HEAD_BYTES <= self.window.len() => skip,
            _ => {
                self.window.resize(if self.long_records { HEAD_BYTES } else { WINDOW_BYTES }, 0);
                let read = self.file.read_at(&mut self.window, at)?;
                self.window.truncate(read);
                self.window_at = at;
                0
            }
        };
        Ok(&self.window[skip..])
    }
}

/// Why a record could not be read.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RecordError {
    #[error("its bytes have changed")]
    Damaged,
    #[error(transparent)]
    Io(#[from] io::Error),
}

/// Reads the fixed part at `offset`.
pub(crate) fn read_head(file: &dyn SegmentFile, header: FileHeader, offset: u32) -> Result<Head, RecordError> {
    let mut bytes = [0; HEAD_BYTES];
    if file.read_at(&mut bytes, u64::from(offset))? < HEAD_BYTES {
        return Err(RecordError::Damaged);
    }
    Head::decode(&bytes, Seal { salt: header.salt, offset }).ok_or(RecordError::Damaged)
}

/// Reads and checks the header that follows `head`.
pub(crate) fn read_header(file: &dyn SegmentFile, head: &Head, offset: u32) -> Result<Vec<u8>, RecordError> {
    let mut header = vec![0; usize::from(head.header_bytes)];
    let read = file.read_at(&mut header, u64::from(offset) + HEAD_BYTES as u64)?;
    if read < header.len() || crc32c::crc32c(&header) != head.header_crc {
        return Err(RecordError::Damaged);
    }
    Ok(header)
}

/// Reads and checks the payload that follows `head` and its header.
pub(crate) fn read_payload(file: &dyn SegmentFile, head: &Head, offset: u32) -> Result<Bytes, RecordError> {
    if head.payload_bytes == 0 {
        return Ok(Bytes::new());
    }
    let at = u64::from(offset) + HEAD_BYTES as u64 + u64::from(head.header_bytes);
    if at + u64::from(head.payload_bytes) + 4 > file.bytes()? {
        return Err(RecordError::Damaged); // before anything is allocated for it
    }
    let mut payload = vec![0; head.payload_bytes as usize + 4];
    let read = file.read_at(&mut payload, at)?;
    let sum = payload.split_off(head.payload_bytes as usize);
    if read < payload.len() + sum.len() || sum != crc32c::crc32c(&payload).to_le_bytes() {
        return Err(RecordError::Damaged);
    }
    Ok(payload.into())
}
