//! Reads every byte of the log and says what is damaged. Changes nothing, and may run beside everything else.

use std::collections::BTreeMap;
use std::io;
use std::path::Path;

use super::disk::{Disk, Folder, SegmentFile};
use super::log::Pointer;
use super::log::reader::{self, Found, RecordError, Scan};
use super::log::record::Kind;
use super::log::segment::{FILE_HEADER_BYTES, FileHeader, Opening};

/// The most damaged places that are listed; all are counted.
const DAMAGE_LISTED_MAX: usize = 100;

/// What reading the whole log has shown.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Inspection {
    pub segments: u64,
    pub bytes: u64,
    /// Records that are as they were written, by what they say.
    pub records: BTreeMap<&'static str, u64>,
    /// Places where bytes have changed, whole segments among them.
    pub damaged: u64,
    /// The first of them.
    pub damage: Vec<Damage>,
    /// Bytes at the very end that are no whole record: a write that a power cut interrupted, never promised.
    pub torn_bytes: u64,
}

/// One place whose bytes have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Damage {
    pub segment: u32,
    pub offset: u64,
    /// How many bytes are of no use.
    pub bytes: u64,
    pub what: &'static str,
}

/// Reads the log in the outbox's folder `dir`, while no agent uses it.
pub(super) fn folder(dir: &Path) -> io::Result<Inspection> {
    let path = dir.join("log");
    if !path.is_dir() {
        return Ok(Inspection::default());
    }
    log(&Folder::open(&path)?, None)
}

/// Reads the log up to `end`, beyond which somebody may be writing; all of it if there is none.
pub(super) fn log(disk: &dyn Disk, end: Option<Pointer>) -> io::Result<Inspection> {
    let mut numbers = disk.segments()?;
    numbers.sort_unstable();
    let mut inspection = Inspection::default();
    for segment in &numbers {
        if end.is_some_and(|end| *segment > end.segment) {
            break;
        }
        let file = match disk.open(*segment) {
            Ok(file) => file,
            // Retired since the folder was read: what lived in it has been copied to the head.
            Err(error) if error.kind() == io::ErrorKind::NotFound && end.is_some() => continue,
            Err(error) => return Err(error),
        };
        let upto = end.filter(|end| end.segment == *segment).map(|end| u64::from(end.offset));
        inspection.segment(&*file, *segment, upto, numbers.last() == Some(segment))?;
    }
    Ok(inspection)
}

impl Inspection {
    fn segment(&mut self, file: &dyn SegmentFile, segment: u32, upto: Option<u64>, last: bool) -> io::Result<()> {
        let bytes = upto.unwrap_or(file.bytes()?);
        self.segments += 1;
        self.bytes += bytes;
        let header = match FileHeader::read(file, segment)? {
            Opening::Fine(header) => header,
            opening if opening == Opening::Blank || bytes <= FILE_HEADER_BYTES as u64 => {
                self.torn_bytes += bytes;
                return Ok(());
            }
            Opening::Blank | Opening::Unreadable => {
                self.add(Damage { segment, offset: 0, bytes, what: "the segment's file header" });
                return Ok(());
            }
            Opening::Newer(_) => {
                self.add(Damage { segment, offset: 0, bytes, what: "a format newer than this version reads" });
                return Ok(());
            }
        };
        // What is bad and followed by nothing good is torn if it is the end of the log, and damage elsewhere.
        let mut tail = Vec::new();
        let mut at = FILE_HEADER_BYTES as u64;
        let mut scan = Scan::new(file, header, 0)?;
        while let Some(found) = scan.next()? {
            if at >= bytes {
                break;
            }
            match found {
                Found::Record { head, offset } => {
                    at = u64::from(offset) + head.record_bytes();
                    match damage_of(
                        reader::read_header(file, &head, offset),
                        reader::read_payload(file, &head, offset),
                    )? {
                        None => {
                            std::mem::take(&mut tail).into_iter().for_each(|damage| self.add(damage));
                            *self.records.entry(name(head.kind)).or_default() += 1;
                        }
                        Some(what) => {
                            let (offset, bytes) = (u64::from(offset), head.record_bytes());
                            tail.push(Damage { segment, offset, bytes, what });
                        }
                    }
                }
                Found::Rubbish { bytes, .. } => {
                    tail.push(Damage { segment, offset: at, bytes, what: "no record begins here" });
                    at += bytes;
                }
            }
        }
        if last && upto.is_none() {
            self.torn_bytes += tail.iter().map(|damage| damage.bytes).sum::<u64>();
        } else {
            tail.into_iter().for_each(|damage| self.add(damage));
        }
        Ok(())
    }

    fn add(&mut self, damage: Damage) {
        self.damaged += 1;
        if self.damage.len() < DAMAGE_LISTED_MAX {
            self.damage.push(damage);
        }
    }
}

fn damage_of<H, P>(
    header: Result<H, RecordError>,
    payload: Result<P, RecordError>,
) -> io::Result<Option<&'static str>> {
    match (header, payload) {
        (Err(RecordError::Io(error)), _) | (_, Err(RecordError::Io(error))) => Err(error),
        (Err(RecordError::Damaged), _) => Ok(Some("a record's header")),
        (_, Err(RecordError::Damaged)) => Ok(Some("a record's payload")),
        (Ok(_), Ok(_)) => Ok(None),
    }
}

fn name(kind: Kind) -> &'static str {
    match kind {
        Kind::Case => "case",
        Kind::Attempt => "attempt",
        Kind::Verdict => "verdict",
        Kind::Delivered => "delivered",
        Kind::Forgotten => "forgotten",
        Kind::Dead => "dead",
        Kind::Clock => "clock",
        Kind::Requeued => "requeued",
    }
}
