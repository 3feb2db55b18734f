//! Reads one case back from the log, believing neither table nor queue about where it lies.

use bytes::Bytes;
use hedge_proto::CaseKey;

use super::case::StoredCase;
use super::disk::{Disk, SegmentFile};
use super::line::{Line, Stage};
use super::log::Pointer;
use super::log::reader::{self, RecordError};
use super::log::record::{Head, Kind};
use super::log::segment::{FileHeader, Opening};

/// Everything that is stored of a case; [`RecordError::Damaged`] if any of it is.
pub(crate) fn read(disk: &dyn Disk, key: CaseKey, line: &Line) -> Result<StoredCase, RecordError> {
    let stage = line.slot.stage;
    let body = Place::open(disk, line.slot.body, key, Kind::Case)?;
    let header = body.header()?;
    let payload = if stage == Stage::Answered { Bytes::new() } else { body.payload()? };
    let second = |kind| match line.outcome {
        Some(outcome) => Place::open(disk, outcome.at, key, kind)?.payload().map(Some),
        None => Ok(None),
    };
    let verdict = if stage == Stage::Answered { second(Kind::Verdict)?.map(Vec::from) } else { None };
    let reason = if stage == Stage::Dead { second(Kind::Dead)? } else { None };
    let dead = reason.map(|reason| String::from_utf8_lossy(&reason).into_owned());
    Ok(StoredCase { header, payload, attempts: u32::from(line.slot.attempts), verdict, dead })
}

/// A record whose place, kind and case have been checked.
struct Place {
    file: Box<dyn SegmentFile>,
    head: Head,
    offset: u32,
}

impl Place {
    fn open(disk: &dyn Disk, at: Pointer, key: CaseKey, kind: Kind) -> Result<Self, RecordError> {
        let file = disk.open(at.segment)?;
        let Opening::Fine(header) = FileHeader::read(&*file, at.segment)? else { return Err(RecordError::Damaged) };
        let head = reader::read_head(&*file, header, at.offset)?;
        if head.key != key || head.kind != kind {
            return Err(RecordError::Damaged);
        }
        Ok(Self { file, head, offset: at.offset })
    }

    fn header(&self) -> Result<Vec<u8>, RecordError> {
        reader::read_header(&*self.file, &self.head, self.offset)
    }

    fn payload(&self) -> Result<Bytes, RecordError> {
        reader::read_payload(&*self.file, &self.head, self.offset)
    }
}
