//! The queue on disk: the table's lines in the order they are walked, so that a start need not read the log.
//!
//! It is written behind the acknowledgement, in atomic batches that carry the log position they are complete up
//! to, and it holds nothing the log cannot give back. Nothing in it is believed: a count and a fingerprint of all
//! entries are compared when it is loaded, and whatever does not add up is moved aside whole.

use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hedge_core::clock::Moment;
use hedge_proto::CaseKey;

use super::log::Pointer;
use super::order::{Class, OrderKey, from_ordered};
use super::table::{Change, Changes, Line, Outcome, Slot, Stage, Table};

/// Of the entries below. Another one is rebuilt, not converted.
const FORMAT: u16 = 1;
const SUMMARY_KEY: &[u8] = b"m";
/// Sled keeps at least its dirty pages; more cache than this buys nothing for walks of a few hundred entries.
const CACHE_BYTES: u64 = 1024 * 1024;
/// How many damaged queues are kept for inspection.
const DAMAGED_MAX: usize = 2;
/// Sled keeps everything in memory that an atomic batch touches until it ends, and does not give it back: 100,000
/// entries took 293 MiB in batches of 4,096, 104 MiB in batches of 512 and 25 MiB in batches of 256.
const BATCH_ENTRIES_MAX: usize = 256;
/// Sled's buffers are of this size; with its own choice of 512 KiB it takes 4 MiB more.
const BUFFER_BYTES: usize = 64 * 1024;

/// Why the queue on disk cannot be used. The answer is always the same: make a new one.
#[derive(Debug, thiserror::Error)]
pub(crate) enum IndexError {
    #[error("{0}")]
    Sled(#[from] sled::Error),
    #[error("sled panicked")]
    Panic,
    #[error("{0}")]
    Wrong(&'static str),
    #[error("{0}")]
    Io(#[from] io::Error),
}

/// What all entries together must add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Summary {
    pub(crate) position: Pointer,
    entries: u64,
    fingerprint: u64,
    pub(crate) clock: Option<Moment>,
}

pub(crate) fn open(path: &Path) -> Result<sled::Db, IndexError> {
    let config = sled::Config::new()
        .path(path)
        .mode(sled::Mode::LowSpace)
        .cache_capacity(CACHE_BYTES)
        .segment_size(BUFFER_BYTES)
        .flush_every_ms(None)
        .print_profile_on_drop(false);
    unpanicked(|| Ok(config.open()?))
}

/// Sled asserts where it could return errors; a damaged queue must not stop the agent.
fn unpanicked<T>(work: impl FnOnce() -> Result<T, IndexError>) -> Result<T, IndexError> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or(Err(IndexError::Panic))
}

/// Makes an empty queue. Its summary is durable at once, so that one without is known to be damaged.
pub(crate) fn make(path: &Path) -> Result<sled::Db, IndexError> {
    let queue = open(path)?;
    unpanicked(|| Ok(queue.insert(SUMMARY_KEY, &Summary::default().encode()[..]).map(drop)?))?;
    checkpoint(&queue, path)?;
    Ok(queue)
}

/// Fills an empty table.
pub(crate) fn load(queue: &sled::Db, table: &mut Table) -> Result<Summary, IndexError> {
    unpanicked(|| {
        let summary = queue.get(SUMMARY_KEY)?.ok_or(IndexError::Wrong("its summary is missing"))?;
        let summary = Summary::decode(&summary).ok_or(IndexError::Wrong("its summary is unreadable"))?;
        let mut counted = Summary { entries: 0, fingerprint: 0, ..summary };
        for class in [Class::Open, Class::Answered, Class::Dead] {
            let (from, to) = OrderKey::range(class);
            for entry in queue.range(from.0..to.0) {
                let (order, value) = entry?;
                let (key, line) = decode(class, &order, &value).ok_or(IndexError::Wrong("an entry is unreadable"))?;
                if !table.load(key, line) {
                    return Err(IndexError::Wrong("a case stands in it twice"));
                }
                counted.add(&line.order_key(), key);
            }
        }
        if counted == summary { Ok(summary) } else { Err(IndexError::Wrong("entries are missing")) }
    })
}

/// Order and case of each entry in the range, as far as they can be read.
pub(crate) fn keys(
    queue: &sled::Db,
    from: OrderKey,
    to: OrderKey,
) -> impl DoubleEndedIterator<Item = (OrderKey, CaseKey)> {
    queue.range(from.0..to.0).filter_map(Result::ok).filter_map(|(order, value)| {
        let order = OrderKey(order.as_ref().try_into().ok()?);
        Some((order, CaseKey::from_bytes(*value.first_chunk()?)))
    })
}

/// Writes the changes in atomic batches. The position moves on with the last of them: until then the queue is
/// ahead of it, and a replay of what it has already seen changes nothing.
pub(crate) fn write(queue: &sled::Db, changes: &mut Changes, summary: &mut Summary) -> Result<(), IndexError> {
    changes.lines.sort_unstable_by_key(|change| change.line.map(|line| line.order_key()));
    let mut chunks = changes.lines.chunks(BATCH_ENTRIES_MAX).peekable();
    loop {
        let mut batch = sled::Batch::default();
        for change in chunks.next().unwrap_or_default() {
            summary.write(&mut batch, change);
        }
        let last = chunks.peek().is_none();
        if last {
            summary.position = changes.position;
            summary.clock = changes.clock;
        }
        batch.insert(SUMMARY_KEY, &summary.encode()[..]);
        unpanicked(|| Ok(queue.apply_batch(batch)?))?;
        if last {
            return Ok(());
        }
    }
}

/// Makes what was written durable: sled's own flush does not survive a power cut without the second sync.
pub(crate) fn checkpoint(queue: &sled::Db, path: &Path) -> Result<(), IndexError> {
    unpanicked(|| Ok(queue.flush()?))?;
    Ok(fs::File::open(path.join("db"))?.sync_data()?)
}

/// Moves the queue away whole. The newest few are kept for inspection.
pub(crate) fn set_aside(path: &Path) -> io::Result<()> {
    if !path.exists() {
        return Ok(());
    }
    let mut old = damaged_queues(path)?;
    let number = old.last().map_or(1, |(number, _)| number + 1);
    while old.len() >= DAMAGED_MAX {
        fs::remove_dir_all(old.remove(0).1)?;
    }
    fs::rename(path, path.with_extension(format!("damaged-{number}")))
}

fn damaged_queues(path: &Path) -> io::Result<Vec<(u32, PathBuf)>> {
    let prefix = format!("{}.damaged-", path.file_name().unwrap_or_default().to_string_lossy());
    let mut found = Vec::new();
    for entry in fs::read_dir(path.parent().unwrap_or(Path::new(".")))? {
        let entry = entry?;
        let number = entry.file_name().to_str().and_then(|name| name.strip_prefix(&prefix)?.parse().ok());
        found.extend(number.map(|number| (number, entry.path())));
    }
    found.sort_unstable();
    Ok(found)
}

impl Summary {
    const BYTES: usize = 2 + 8 + 8 + 8 + 8;

    fn write(&mut self, batch: &mut sled::Batch, change: &Change) {
        let order = change.line.map(|line| line.order_key());
        if let Some(shown) = change.shown.filter(|shown| Some(*shown) != order) {
            batch.remove(&shown.0);
        }
        if let Some(line) = &change.line {
            batch.insert(&line.order_key().0, encode(change.key, line));
        }
        if let Some(shown) = change.shown {
            self.entries = self.entries.wrapping_sub(1);
            self.fingerprint = self.fingerprint.wrapping_sub(shown.fingerprint(change.key));
        }
        if let Some(order) = order {
            self.add(&order, change.key);
        }
    }

    fn add(&mut self, order: &OrderKey, key: CaseKey) {
        self.entries = self.entries.wrapping_add(1);
        self.fingerprint = self.fingerprint.wrapping_add(order.fingerprint(key));
    }

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[2..6].copy_from_slice(&self.position.segment.to_le_bytes());
        bytes[6..10].copy_from_slice(&self.position.offset.to_le_bytes());
        bytes[10..18].copy_from_slice(&self.entries.to_le_bytes());
        bytes[18..26].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[26..].copy_from_slice(&self.clock.map_or(u64::MAX, |clock| clock.0).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if u16::from_le_bytes(fields.take()?) != FORMAT {
            return None;
        }
        let segment = u32::from_le_bytes(fields.take()?);
        let offset = u32::from_le_bytes(fields.take()?);
        let entries = u64::from_le_bytes(fields.take()?);
        let fingerprint = u64::from_le_bytes(fields.take()?);
        let clock = u64::from_le_bytes(fields.take()?);
        let clock = (clock != u64::MAX).then_some(Moment(clock));
        fields.0.is_empty().then_some(Self { position: Pointer { segment, offset }, entries, fingerprint, clock })
    }
}

/// At most 44 bytes behind the 17 of the order key, which already holds the sort key or the verdict's place.
fn encode(key: CaseKey, line: &Line) -> Vec<u8> {
    let Line { slot, outcome } = line;
    let mut value = Vec::with_capacity(44);
    value.extend(key.to_bytes());
    value.extend(&slot.stored_at().0.to_le_bytes()[..6]);
    value.extend(slot.header_bytes.to_le_bytes());
    value.extend([slot.attempts, slot.life, slot.stage as u8]);
    match (line.class(), outcome) {
        (Class::Answered, Some(outcome)) => {
            value.extend(slot.sort_key.to_le_bytes());
            value.extend(outcome.payload_bytes.to_le_bytes());
            value.extend(outcome.revision.to_le_bytes());
            value.push(outcome.delivered);
        }
        (Class::Dead, Some(outcome)) => {
            value.extend(slot.payload_bytes.to_le_bytes());
            value.extend(outcome.at.segment.to_le_bytes());
            value.extend(outcome.at.offset.to_le_bytes());
            value.extend(outcome.payload_bytes.to_le_bytes());
            value.push(u8::try_from(outcome.revision).unwrap_or(u8::MAX));
        }
        _ => value.extend(slot.payload_bytes.to_le_bytes()),
    }
    value
}

fn decode(class: Class, order: &[u8], value: &[u8]) -> Option<(CaseKey, Line)> {
    let mut order = Fields(order);
    let [_class] = order.take()?;
    let first: [u8; 8] = order.take()?;
    let body = Pointer { segment: u32::from_be_bytes(order.take()?), offset: u32::from_be_bytes(order.take()?) };

    let mut value = Fields(value);
    let key = CaseKey::from_bytes(value.take()?);
    let mut slot = Slot::empty();
    slot.body = body;
    let [s0, s1, s2, s3, s4, s5] = value.take()?;
    slot.set_stored_at(Moment(u64::from_le_bytes([s0, s1, s2, s3, s4, s5, 0, 0])));
    slot.header_bytes = u16::from_le_bytes(value.take()?);
    [slot.attempts, slot.life] = value.take()?;
    let [stage] = value.take()?;
    slot.stage = Stage::from_byte(stage)?;
    let outcome = if class == Class::Answered {
        slot.sort_key = f64::from_le_bytes(value.take()?);
        let [a, b, c, d, e, f, g, h] = first;
        let at = Pointer { segment: u32::from_be_bytes([a, b, c, d]), offset: u32::from_be_bytes([e, f, g, h]) };
        let payload_bytes = u32::from_le_bytes(value.take()?);
        let revision = u32::from_le_bytes(value.take()?);
        let [delivered] = value.take()?;
        Some(Outcome { at, payload_bytes, revision, delivered })
    } else {
        slot.sort_key = from_ordered(!u64::from_be_bytes(first));
        slot.payload_bytes = u32::from_le_bytes(value.take()?);
        if class == Class::Dead { Some(decode_death(&mut value)?) } else { None }
    };
    let line = Line { slot, outcome };
    (value.0.is_empty() && line.class() == class).then_some((key, line))
}

fn decode_death(value: &mut Fields<'_>) -> Option<Outcome> {
    let at = Pointer { segment: u32::from_le_bytes(value.take()?), offset: u32::from_le_bytes(value.take()?) };
    let payload_bytes = u32::from_le_bytes(value.take()?);
    let [life] = value.take()?;
    Some(Outcome { at, payload_bytes, revision: u32::from(life), delivered: 0 })
}

/// Bytes that are taken from the front.
struct Fields<'a>(&'a [u8]);

impl Fields<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (field, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(*field)
    }
}
