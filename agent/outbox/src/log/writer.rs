//! Appends records and makes them durable.
//!
//! Records go to the newest segment, the *head*; a full one is synced before the next begins, so only the last
//! segment can have a torn tail. A failed sync is never tried again on the same file: the head is closed
//! where it was last good, and what was waiting goes to a new segment.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::Arc;

use super::super::disk::{Disk, SegmentFile};
use super::Pointer;
use super::record::{HEAD_BYTES, Record, Seal};
use super::segment::{FILE_HEADER_BYTES, FileHeader};

/// A segment is closed at this size: small enough to be rewritten between two commits.
pub(crate) const SEGMENT_BYTES: u64 = 4 * 1024 * 1024;

/// What became of a batch: the records before `durable.len()` are on disk, the others are not.
#[derive(Debug)]
pub(crate) struct Committed {
    pub(crate) durable: Vec<Pointer>,
    pub(crate) error: Option<io::Error>,
}

pub(crate) struct Writer {
    disk: Arc<dyn Disk>,
    head: Option<HeadSegment>,
    next: u32,
    segment_bytes: u64,
    sizes: BTreeMap<u32, u64>,
    written_bytes: u64,
}

struct HeadSegment {
    number: u32,
    salt: u64,
    file: Box<dyn SegmentFile>,
    bytes: u64,
    synced_bytes: u64,
}

impl Writer {
    /// Goes on after the segments in `sizes`, in the last of them if `tail` is given.
    pub(crate) fn new(
        disk: Arc<dyn Disk>,
        sizes: BTreeMap<u32, u64>,
        tail: Option<FileHeader>,
        segment_bytes: u64,
    ) -> io::Result<Self> {
        let next = sizes.last_key_value().map_or(1, |(number, _)| number + 1);
        let mut writer = Self { disk, head: None, next, segment_bytes, sizes, written_bytes: 0 };
        if let Some(FileHeader { segment, salt }) = tail {
            let mut file = writer.disk.open(segment)?;
            file.sync()?;
            let bytes = file.bytes()?;
            writer.head = Some(HeadSegment { number: segment, salt, file, bytes, synced_bytes: bytes });
        }
        Ok(writer)
    }

    pub(crate) fn segment_bytes(&self) -> u64 {
        self.segment_bytes
    }

    /// Every segment and its length.
    pub(crate) fn sizes(&self) -> &BTreeMap<u32, u64> {
        &self.sizes
    }

    pub(crate) fn head_number(&self) -> Option<u32> {
        self.head.as_ref().map(|head| head.number)
    }

    /// All bytes appended since the start.
    pub(crate) fn written_bytes(&self) -> u64 {
        self.written_bytes
    }

    /// Whether somebody has deleted the segment that is written to, cut it short or written to it: a record is only found
    /// at the place that it is sealed for.
    pub(crate) fn head_is_spoilt(&self) -> bool {
        let is_longer_or_shorter = |head: &HeadSegment| head.file.bytes().is_ok_and(|bytes| bytes != head.bytes);
        self.head.as_ref().is_some_and(|head| head.file.is_deleted() || is_longer_or_shorter(head))
    }

    /// Closes the head: the next record begins a new segment.
    pub(crate) fn close_head(&mut self) {
        self.head = None;
    }

    /// Removes a segment for good.
    pub(crate) fn remove(&mut self, segment: u32) -> io::Result<()> {
        self.disk.remove(segment)?;
        self.sizes.remove(&segment);
        self.disk.sync_folder()
    }

    /// Appends and syncs, as far as the disk allows.
    pub(crate) fn commit(&mut self, records: &[Record]) -> Committed {
        let mut durable = Vec::with_capacity(records.len());
        let mut sync_failed = false;
        while durable.len() < records.len() {
            match self.commit_some(&records[durable.len()..]) {
                Ok(pointers) => durable.extend(pointers),
                // The one retry is on a new file; a disk that fails that too is said to have failed.
                Err(Failed::Sync(_)) if !sync_failed => sync_failed = true,
                Err(Failed::Append(error) | Failed::Sync(error)) => return Committed { durable, error: Some(error) },
            }
        }
        Committed { durable, error: None }
    }

    /// As many of `records` as fit into one segment, at least one.
    fn commit_some(&mut self, records: &[Record]) -> Result<Vec<Pointer>, Failed> {
        let first_bytes = records.first().map_or(0, Record::bytes);
        let bytes_max = self.segment_bytes;
        let head = self.head_with_room(first_bytes).map_err(Failed::Append)?;
        let mut offset = head.bytes;
        let mut pointers = Vec::new();
        let mut heads = Vec::new();
        for record in records {
            let fits = pointers.is_empty() || offset + record.bytes() <= bytes_max;
            let (true, Ok(at)) = (fits, u32::try_from(offset)) else { break };
            heads.push(record.head.encode(Seal { salt: head.salt, offset: at }));
            pointers.push(Pointer { segment: head.number, offset: at });
            offset += record.bytes();
        }
        let mut parts = slices(&heads, records);
        let appended = head.file.append(&mut parts);
        head.bytes = offset;
        let outcome = appended.map_err(Failed::Append).and_then(|()| head.file.sync().map_err(Failed::Sync));
        self.settle(outcome).map(|()| pointers)
    }

    /// Keeps the head after a success, cuts it back or closes it after a failure.
    fn settle(&mut self, outcome: Result<(), Failed>) -> Result<(), Failed> {
        let Some(mut head) = self.head.take() else { return outcome };
        let keep = match &outcome {
            Ok(()) => {
                self.written_bytes += head.bytes - head.synced_bytes;
                head.synced_bytes = head.bytes;
                true
            }
            Err(failure) => {
                // What was not synced must not come back after a restart as if it had been promised. A file whose sync
                // failed is never synced again: Linux marks the lost pages clean, and the next sync would succeed.
                let cut = head.file.cut(head.synced_bytes).is_ok();
                head.bytes = head.synced_bytes;
                cut && matches!(failure, Failed::Append(_))
            }
        };
        self.sizes.insert(head.number, head.bytes);
        if keep {
            self.head = Some(head);
        }
        outcome
    }

    fn head_with_room(&mut self, bytes: u64) -> io::Result<&mut HeadSegment> {
        let full =
            |head: &HeadSegment| head.bytes + bytes > self.segment_bytes && head.bytes > FILE_HEADER_BYTES as u64;
        let head = match self.head.take() {
            Some(head) if !full(&head) => head,
            _ => self.begin()?,
        };
        Ok(self.head.insert(head))
    }

    fn begin(&mut self) -> io::Result<HeadSegment> {
        let number = self.next;
        let salt = getrandom::u64().map_err(io::Error::other)?;
        let mut file = self.disk.create(number)?;
        self.next += 1;
        let header = FileHeader { segment: number, salt }.encode();
        let begun = file.append(&mut [IoSlice::new(&header)]).and_then(|()| self.disk.sync_folder());
        if let Err(error) = begun {
            // An empty segment is harmless, but one less file on a full disk is better.
            if let Err(left) = self.disk.remove(number) {
                tracing::warn!(segment = number, error = %left, "an empty log segment stays behind");
            }
            return Err(error);
        }
        let bytes = FILE_HEADER_BYTES as u64;
        self.sizes.insert(number, bytes);
        Ok(HeadSegment { number, salt, file, bytes, synced_bytes: bytes })
    }
}

enum Failed {
    Append(io::Error),
    Sync(io::Error),
}

fn slices<'a>(heads: &'a [[u8; HEAD_BYTES]], records: &'a [Record]) -> Vec<IoSlice<'a>> {
    let mut parts = Vec::with_capacity(heads.len() * 4);
    for (head, record) in heads.iter().zip(records) {
        parts.push(IoSlice::new(head));
        parts.extend(record.body().map(IoSlice::new));
    }
    parts
}
