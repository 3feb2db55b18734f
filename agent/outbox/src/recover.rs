//! Reads the log back when the outbox is opened.
//!
//! After any kill, power cut or full disk: what was said to be stored is found, the torn end of the last segment
//! is cut off, damaged bytes are skipped and counted. Nothing here fails because of damage.

use std::collections::{BTreeMap, HashSet};
use std::io;
use std::path::Path;

use hedge_proto::CaseKey;

use super::case::OpenReport;
use super::disk::{Disk, SegmentFile};
use super::index::{IndexError, Queue};
use super::log::Pointer;
use super::log::reader::{self, Found, RecordError, Scan};
use super::log::record::{Head, Kind};
use super::log::segment::{FILE_HEADER_BYTES, FileHeader, Opening};
use super::table::Table;

/// The segments that can be read, oldest first.
pub(crate) struct Segments {
    pub(crate) sizes: BTreeMap<u32, u64>,
    /// The last of them: the log goes on there.
    pub(crate) tail: Option<FileHeader>,
}

/// Why recovery stopped.
#[derive(Debug)]
pub(crate) enum RecoverError {
    Newer { segment: u32, format: u16 },
    Io(io::Error),
}

impl From<io::Error> for RecoverError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// All that is known about the stored cases.
pub(crate) struct Recovered {
    pub(crate) table: Table,
    /// None if it cannot be made.
    pub(crate) queue: Option<Queue>,
    pub(crate) segments: Segments,
    pub(crate) report: OpenReport,
}

/// The table as the log has it: through the queue on disk if that can be trusted, else from the whole log.
pub(crate) fn recover(disk: &dyn Disk, queue_path: &Path) -> Result<Recovered, RecoverError> {
    let mut report = OpenReport::default();
    let mut segments = survey(disk, &mut report)?;
    let mut trial = report;
    let queue_was_there = queue_path.exists();
    let reason = if queue_was_there {
        match through_queue(disk, queue_path, &mut segments, &mut trial)? {
            Ok((table, queue)) => return Ok(finish(table, Some(queue), segments, trial)),
            Err(error) => error,
        }
    } else {
        IndexError::Wrong("it is missing")
    };

    if !segments.sizes.is_empty() {
        tracing::warn!(%reason, "the outbox's queue cannot be used and is rebuilt from its log");
    }
    report.torn_bytes = trial.torn_bytes; // cut by now
    report.rebuilt = !segments.sizes.is_empty();
    report.queue_damaged = queue_was_there;
    let mut table = Table::default();
    replay(disk, &mut segments, Pointer::NOWHERE, &mut table, &mut report)?;
    let made = Queue::make(queue_path).inspect_err(
        |error| tracing::warn!(%error, "the outbox's queue cannot be made; a start without it reads the whole log"),
    );
    Ok(finish(table, made.ok(), segments, report))
}

fn finish(table: Table, queue: Option<Queue>, segments: Segments, mut report: OpenReport) -> Recovered {
    report.cases = table.totals().cases();
    report.clock = table.clock();
    Recovered { table, queue, segments, report }
}

/// Loads the queue and replays what it lacks; the inner error says why it cannot be trusted.
fn through_queue(
    disk: &dyn Disk,
    queue_path: &Path,
    segments: &mut Segments,
    report: &mut OpenReport,
) -> Result<Result<(Table, Queue), IndexError>, RecoverError> {
    let mut table = Table::default();
    let (queue, loaded) = match Queue::load(queue_path, &mut table) {
        Ok(loaded) => loaded,
        Err(error) => return Ok(Err(error)),
    };
    if !segments.reach(loaded.position) {
        return Ok(Err(IndexError::Wrong("the log does not go back to where it ends")));
    }
    if let Some(clock) = loaded.clock {
        table.see_clock(clock, 0);
    }
    report.rebuilt = loaded.position == Pointer::NOWHERE && !segments.sizes.is_empty();
    replay(disk, segments, loaded.position, &mut table, report)?;
    if !pointers_hold(&table, segments) {
        return Ok(Err(IndexError::Wrong("it names records that are not in the log")));
    }
    Ok(Ok((table, queue)))
}

impl Segments {
    fn reach(&self, position: Pointer) -> bool {
        let held = self.sizes.get(&position.segment).is_some_and(|bytes| u64::from(position.offset) <= *bytes);
        held || position == Pointer::NOWHERE
    }
}

/// Looks at every segment's file header and moves those aside that cannot be read.
pub(crate) fn survey(disk: &dyn Disk, report: &mut OpenReport) -> Result<Segments, RecoverError> {
    let mut numbers = disk.segments()?;
    numbers.sort_unstable();
    let mut found = Segments { sizes: BTreeMap::new(), tail: None };
    for segment in numbers {
        let file = disk.open(segment)?;
        let bytes = file.bytes()?;
        match FileHeader::read(&*file, segment)? {
            Opening::Newer(format) => return Err(RecoverError::Newer { segment, format }),
            Opening::Fine(header) if bytes >= FILE_HEADER_BYTES as u64 => {
                found.sizes.insert(segment, bytes);
                found.tail = Some(header);
            }
            // A cut right after the file was made: nothing in it was ever promised.
            opening if opening == Opening::Blank || bytes <= FILE_HEADER_BYTES as u64 => {
                report.torn_bytes += bytes;
                disk.remove(segment)?;
            }
            Opening::Fine(_) | Opening::Blank | Opening::Unreadable => {
                report.damaged_segments += 1;
                disk.set_aside(segment)?;
            }
        }
    }
    disk.sync_folder()?;
    Ok(found)
}

/// Applies everything from `from` on, and cuts off a torn end.
pub(crate) fn replay(
    disk: &dyn Disk,
    segments: &mut Segments,
    from: Pointer,
    table: &mut Table,
    report: &mut OpenReport,
) -> Result<(), RecoverError> {
    let mut replay = Replay { table, report, ended: HashSet::new() };
    let last = segments.sizes.last_key_value().map(|(segment, _)| *segment);
    for (segment, bytes) in segments.sizes.range_mut(from.segment..) {
        let offset = if *segment == from.segment { from.offset } else { 0 };
        let file = disk.open(*segment)?;
        let Opening::Fine(header) = FileHeader::read(&*file, *segment)? else { continue };
        *bytes = replay.segment(file, header, offset, Some(*segment) == last)?;
    }
    replay.table.drop_bodyless();
    let end = segments.sizes.last_key_value();
    let position = end.map(|(segment, bytes)| Pointer { segment: *segment, offset: clamp(*bytes) });
    table.set_position(position.unwrap_or_default());
    Ok(())
}

/// Whether every case's records lie inside the log.
fn pointers_hold(table: &Table, segments: &Segments) -> bool {
    let inside = |at: Pointer, bytes: u64| {
        segments.sizes.get(&at.segment).is_some_and(|size| u64::from(at.offset) + bytes <= *size)
    };
    table.keys().filter_map(|key| table.get(key)).all(|line| {
        let outcome_fits = line.outcome.is_none_or(|outcome| inside(outcome.at, 0));
        inside(line.slot.body, line.body_bytes()) && outcome_fits
    })
}

struct Replay<'a> {
    table: &'a mut Table,
    report: &'a mut OpenReport,
    /// Forgotten in what was read so far: a copy that follows does not bring them back.
    ended: HashSet<CaseKey>,
}

impl Replay<'_> {
    /// Returns the length of the segment once its torn end is gone.
    fn segment(
        &mut self,
        mut file: Box<dyn SegmentFile>,
        header: FileHeader,
        offset: u32,
        last: bool,
    ) -> Result<u64, RecoverError> {
        let mut good_end = u64::from(offset).max(FILE_HEADER_BYTES as u64);
        let mut bad_bytes = 0;
        let mut bad_regions = 0;
        let mut scan = Scan::new(&*file, header, u64::from(offset))?;
        while let Some(found) = scan.next()? {
            match found {
                Found::Record { head, offset } if !last || is_whole(&*file, &head, offset)? => {
                    self.report.damaged_records += bad_regions;
                    (bad_bytes, bad_regions) = (0, 0);
                    good_end = u64::from(offset) + head.record_bytes();
                    self.record(&head, Pointer { segment: header.segment, offset });
                }
                Found::Record { head, .. } => {
                    bad_bytes += head.record_bytes();
                    bad_regions += 1;
                }
                Found::Rubbish { bytes, .. } => {
                    bad_bytes += bytes;
                    bad_regions += 1;
                }
            }
        }
        drop(scan);
        let bytes = file.bytes()?;
        if bad_regions == 0 {
            return Ok(bytes);
        }
        if !last {
            self.report.damaged_records += bad_regions;
            return Ok(bytes);
        }
        self.report.torn_bytes += bad_bytes;
        file.cut(good_end)?;
        file.sync()?;
        Ok(good_end)
    }

    fn record(&mut self, head: &Head, at: Pointer) {
        if head.kind == Kind::Forgotten {
            self.ended.insert(head.key);
        }
        if head.kind == Kind::Clock || !self.ended.contains(&head.key) || head.kind == Kind::Forgotten {
            self.table.apply(head, at);
        }
    }
}

/// Only the last segment can hold what was never synced, so only there everything is read.
fn is_whole(file: &dyn SegmentFile, head: &Head, offset: u32) -> io::Result<bool> {
    let checked = reader::read_header(file, head, offset).and_then(|_| reader::read_payload(file, head, offset));
    match checked {
        Ok(_) => Ok(true),
        Err(RecordError::Damaged) => Ok(false),
        Err(RecordError::Io(error)) => Err(error),
    }
}

fn clamp(bytes: u64) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}
