//! Gives back the room that dead records take.
//!
//! Segments go oldest first, so that a tombstone never goes before what it ends. A segment without live records is
//! just removed, which works on a full disk; one with a few is copied to the head first, when that is worth it.

use hedge_proto::CaseKey;

use super::commit::Committer;
use super::disk::SegmentFile;
use super::line::{Line, Stage};
use super::log::Pointer;
use super::log::reader::{self, Found, RecordError, Scan};
use super::log::record::{Head, Kind, Record};
use super::log::segment::{FileHeader, Opening};
use super::plan::NO_CASE;

/// Copying begins when the log is larger than its live records by three tenths and so many segments: with less, a
/// byte would be copied too often in its life.
const SLACK_SEGMENTS: u64 = 2;
/// The most segments removed between two commits.
const REMOVALS_MAX: usize = 8;
/// A head without live records is worth a new segment from this size on.
const EMPTY_HEAD_BYTES: u64 = 256 * 1024;

impl Committer {
    /// One step after each commit: frees what is free, or copies one segment.
    pub(super) fn tidy_step(&mut self) {
        for _ in 0..REMOVALS_MAX {
            match self.retire_oldest() {
                Ok(Step::Removed) => {}
                Ok(Step::Copied | Step::Nothing) => break,
                Err(error) => {
                    // That the disk refuses to be written is said once, and elsewhere.
                    tracing::debug!(%error, "an old log segment cannot be retired now");
                    break;
                }
            }
        }
        self.keep_reserve();
        self.publish();
    }

    /// The same without a commit before it. Returns whether there may be more to do.
    pub(super) fn tidy_idle(&mut self) -> bool {
        let before = self.writer.sizes().len();
        let head_bytes = self.writer.sizes().last_key_value().map_or(0, |(_, bytes)| *bytes);
        if head_bytes > EMPTY_HEAD_BYTES && self.shared.table().totals().cases() == 0 {
            self.writer.close_head();
        }
        self.tidy_step();
        !self.keep_reserve() || self.writer.sizes().len() != before
    }

    fn retire_oldest(&mut self) -> Result<Step, RecordError> {
        let sizes = self.writer.sizes();
        let Some(oldest) = sizes.first_key_value().map(|(segment, _)| *segment) else { return Ok(Step::Nothing) };
        if self.writer.head_number() == Some(oldest) {
            return Ok(Step::Nothing);
        }
        let log_bytes: u64 = sizes.values().sum();
        let table = self.shared.table();
        let live_bytes = table.totals().live_bytes;
        let copied_bytes = table.live_bytes_of(oldest);
        let copies = copied_bytes > 0;
        let clock = table.clock().filter(|_| table.clock_segment() <= oldest);
        drop(table);
        if copies && log_bytes <= live_bytes + live_bytes * 3 / 10 + SLACK_SEGMENTS * self.writer.segment_bytes() {
            return Ok(Step::Nothing);
        }
        if copies && !self.has_room_to_copy(copied_bytes) {
            return Ok(Step::Nothing);
        }
        let mut records = if copies { self.live_records(oldest)? } else { Vec::new() };
        records.extend(clock.map(|clock| Record::mark(Head::mark(Kind::Clock, NO_CASE, clock))));
        if let Some(error) = self.write(&records).error {
            return Err(RecordError::Io(error));
        }
        self.forget_unreadable(oldest)?;
        self.writer.remove(oldest)?;
        Ok(if copies { Step::Copied } else { Step::Removed })
    }

    /// Ends the cases whose records in a segment were not even recognised as such.
    fn forget_unreadable(&mut self, segment: u32) -> Result<(), RecordError> {
        let table = self.shared.table();
        if table.live_bytes_of(segment) == 0 {
            return Ok(());
        }
        let moment = table.clock().unwrap_or_default();
        let lies_there = |key: &CaseKey| table.get(*key).is_some_and(|line| line.lies_in(segment));
        let lost: Vec<_> = table.keys().filter(lies_there).collect();
        drop(table);
        tracing::warn!(segment, cases = lost.len(), "damaged cases are dropped from the outbox");
        self.shared.count_damaged(lost.len() as u64);
        let tombstones: Vec<_> =
            lost.into_iter().map(|key| Record::mark(Head::mark(Kind::Forgotten, key, moment))).collect();
        self.write(&tombstones).error.map_or(Ok(()), |error| Err(RecordError::Io(error)))
    }

    /// Copies of a segment's live records with all that later records added. A damaged one becomes a tombstone.
    fn live_records(&self, segment: u32) -> Result<Vec<Record>, RecordError> {
        let file = self.shared.disk.open(segment)?;
        let Opening::Fine(header) = FileHeader::read(&*file, segment)? else { return Err(RecordError::Damaged) };
        let mut records = Vec::new();
        let mut scan = Scan::new(&*file, header, 0)?;
        while let Some(found) = scan.next()? {
            let Found::Record { head, offset } = found else { continue };
            let at = Pointer { segment, offset };
            let Some(line) = self.shared.table().get(head.key) else { continue };
            match copy(&*file, &head, at, &line) {
                Ok(record) => records.extend(record),
                Err(RecordError::Damaged) => {
                    tracing::warn!(segment, offset, "a damaged case is dropped from the outbox");
                    self.shared.count_damaged(1);
                    records.push(Record::mark(Head::mark(Kind::Forgotten, head.key, head.moment)));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(records)
    }
}

enum Step {
    Removed,
    Copied,
    Nothing,
}

/// Nothing for a record that no longer counts.
fn copy(file: &dyn SegmentFile, head: &Head, at: Pointer, line: &Line) -> Result<Option<Record>, RecordError> {
    let answered = line.slot.stage == Stage::Answered;
    let outcome = line.outcome.filter(|outcome| outcome.at == at);
    let (head, header, payload) = match (head.kind, outcome) {
        (Kind::Case, _) if line.slot.body == at => {
            let header = reader::read_header(file, head, at.offset)?;
            let payload = if answered { bytes::Bytes::new() } else { reader::read_payload(file, head, at.offset)? };
            let baked = Head { life: line.slot.life, count: u32::from(line.slot.attempts), ..*head };
            (baked, header, payload)
        }
        (Kind::Verdict, Some(outcome)) => {
            let baked = Head { tag: outcome.delivered, ..*head };
            (baked, Vec::new(), reader::read_payload(file, head, at.offset)?)
        }
        (Kind::Dead, Some(_)) => (*head, Vec::new(), reader::read_payload(file, head, at.offset)?),
        _ => return Ok(None),
    };
    Record::new(head, header, payload).map(Some).map_err(|_| RecordError::Damaged)
}
