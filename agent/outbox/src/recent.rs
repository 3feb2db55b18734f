//! Reads what the log still says of the cases that were stored last, those that have ended since included.
//!
//! Best effort, and bounded: what was retired with its segment is gone, and a damaged record is passed over.

use std::collections::{HashMap, HashSet};
use std::io;

use hedge_core::clock::Moment;
use hedge_proto::CaseKey;

use super::disk::{Disk, SegmentFile};
use super::log::Pointer;
use super::log::reader::{self, Found, Scan};
use super::log::record::{Head, Kind};
use super::log::segment::{FileHeader, Opening};

/// How much of the log is looked through: a few seconds' reading on an SD card, less where payloads are large.
const LOG_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A case of this run or an earlier one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recent {
    /// As it was stored.
    pub header: Vec<u8>,
    pub payload_bytes: u32,
    /// The verdict of the highest revision, if there is one.
    pub verdict: Option<Vec<u8>>,
}

/// Up to `cases_max` cases stored at `not_before` or later, the newest first.
pub(super) fn cases(disk: &dyn Disk, cases_max: usize, not_before: Moment) -> io::Result<Vec<Recent>> {
    let mut numbers = disk.segments()?;
    numbers.sort_unstable_by_key(|number| std::cmp::Reverse(*number));
    let mut looking = Looking { disk, verdicts: HashMap::new(), seen: HashSet::new(), found: Vec::new() };
    let mut bytes = 0;
    // A verdict stands behind its case, so walking back it is known before.
    for segment in numbers {
        let file = match disk.open(segment) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(error),
        };
        bytes += file.bytes()?;
        looking.segment(&*file, segment, cases_max, not_before)?;
        if looking.found.len() >= cases_max || bytes > LOG_BYTES_MAX {
            break;
        }
    }
    Ok(looking.found)
}

struct Looking<'a> {
    disk: &'a dyn Disk,
    /// Where the highest revision lies.
    verdicts: HashMap<CaseKey, (u32, Pointer)>,
    seen: HashSet<CaseKey>,
    found: Vec<Recent>,
}

impl Looking<'_> {
    fn segment(
        &mut self,
        file: &dyn SegmentFile,
        segment: u32,
        cases_max: usize,
        not_before: Moment,
    ) -> io::Result<()> {
        let Opening::Fine(header) = FileHeader::read(file, segment)? else { return Ok(()) };
        let mut cases: Vec<(Head, u32)> = Vec::new();
        let mut scan = Scan::new(file, header, 0)?;
        while let Some(found) = scan.next()? {
            let Found::Record { head, offset } = found else { continue };
            match head.kind {
                // A copy at the head of the log stands for its original.
                Kind::Case if head.moment >= not_before && self.seen.insert(head.key) => cases.push((head, offset)),
                Kind::Verdict => {
                    let known = self.verdicts.get(&head.key).is_some_and(|(revision, _)| *revision >= head.count);
                    if !known {
                        self.verdicts.insert(head.key, (head.count, Pointer { segment, offset }));
                    }
                }
                _ => {}
            }
        }
        for (head, offset) in cases.into_iter().rev().take(cases_max - self.found.len()) {
            let Ok(header) = reader::read_header(file, &head, offset) else { continue };
            let verdict = self.verdicts.get(&head.key).and_then(|(_, at)| self.verdict(*at));
            self.found.push(Recent { header, payload_bytes: head.payload_bytes, verdict });
        }
        Ok(())
    }

    fn verdict(&self, at: Pointer) -> Option<Vec<u8>> {
        let file = self.disk.open(at.segment).ok()?;
        let Opening::Fine(header) = FileHeader::read(&*file, at.segment).ok()? else { return None };
        let head = reader::read_head(&*file, header, at.offset).ok()?;
        reader::read_payload(&*file, &head, at.offset).ok().map(Vec::from)
    }
}
