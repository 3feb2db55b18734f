//! The queue on disk: the table's blocks, so that a start need not read the log.
//!
//! It is written behind the acknowledgement, in atomic batches that carry the log position they are complete up
//! to, and it holds nothing the log cannot give back. Nothing in it is believed: a count and a fingerprint of all
//! blocks are compared when it is loaded, and whatever does not add up is moved aside whole.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use hedge_core::clock::Moment;

use super::block::{self, BlockId, Fields};
use super::line::Line;
use super::log::Pointer;
use super::shared::Shared;
use super::table::{Changes, Table};

/// Of the entries below. Another one is rebuilt, not converted.
const FORMAT: u16 = 3;
const SUMMARY_KEY: &[u8] = b"m";
/// Sled keeps at least its dirty pages; more cache than this buys nothing for what is only written.
const CACHE_BYTES: u64 = 256 * 1024;
/// Sled keeps everything in memory that an atomic batch touches until it ends, and does not give it back.
const BATCH_BLOCKS_MAX: usize = 16;
/// Sled's buffers are of this size; with its own choice of 512 KiB it takes 4 MiB more.
const BUFFER_BYTES: usize = 64 * 1024;
/// How many damaged queues are kept for inspection.
const DAMAGED_MAX: usize = 2;

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

/// The queue on disk.
pub(crate) struct Queue {
    path: PathBuf,
    sled: sled::Db,
    summary: Summary,
    /// The fingerprint of every block in it.
    shown: HashMap<BlockId, u64>,
}

/// What all blocks together must add up to.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Summary {
    position: Pointer,
    blocks: u64,
    fingerprint: u64,
    clock: Option<Moment>,
}

/// Up to where a loaded queue is complete.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Loaded {
    pub(crate) position: Pointer,
    pub(crate) clock: Option<Moment>,
}

impl Queue {
    /// Makes an empty queue. Its summary is durable at once, so that one without is known to be damaged.
    pub(crate) fn make(path: &Path) -> Result<Self, IndexError> {
        set_aside(path)?;
        let mut queue =
            Self { path: path.to_owned(), sled: open(path)?, summary: Summary::default(), shown: HashMap::new() };
        queue.apply(sled::Batch::default())?;
        queue.sync()?;
        Ok(queue)
    }

    /// Opens the queue and fills an empty table from it.
    pub(crate) fn load(path: &Path, table: &mut Table) -> Result<(Self, Loaded), IndexError> {
        let sled = open(path)?;
        let mut shown = HashMap::new();
        let summary = unpanicked(|| {
            let summary = sled.get(SUMMARY_KEY)?.ok_or(IndexError::Wrong("its summary is missing"))?;
            let summary = Summary::decode(&summary).ok_or(IndexError::Wrong("its summary is unreadable"))?;
            for entry in sled.iter() {
                let (id, bytes) = entry?;
                if id == SUMMARY_KEY {
                    continue;
                }
                let id = id.as_ref().try_into().map_err(|_| IndexError::Wrong("an entry is no block"))?;
                let id = BlockId::from_bytes(id);
                load_block(id, &bytes, table)?;
                shown.insert(id, fingerprint(id, &bytes));
            }
            Ok(summary)
        })?;
        let found = shown.values().fold(0, |sum: u64, fingerprint| sum.wrapping_add(*fingerprint));
        if (summary.blocks, summary.fingerprint) != (shown.len() as u64, found) {
            return Err(IndexError::Wrong("blocks are missing"));
        }
        let loaded = Loaded { position: summary.position, clock: summary.clock };
        Ok((Self { path: path.to_owned(), sled, summary, shown }, loaded))
    }

    /// Writes what has changed, in atomic batches, and makes it durable. The position moves on with the last batch:
    /// until then the queue is ahead of it, and a replay of what it has already seen changes nothing.
    pub(crate) fn write(&mut self, shared: &Shared) -> Result<(), IndexError> {
        let (Changes { blocks, .. }, position, clock) = {
            let mut table = shared.table();
            (table.take_changes(), table.position(), table.clock())
        };
        let blocks: Vec<_> = blocks.into_iter().collect();
        for some in blocks.chunks(BATCH_BLOCKS_MAX) {
            let mut batch = sled::Batch::default();
            for id in some {
                let bytes = shared.table().encode(*id);
                self.note(*id, bytes.as_deref());
                match bytes {
                    Some(bytes) => batch.insert(&id.to_bytes(), bytes),
                    None => batch.remove(&id.to_bytes()),
                }
            }
            self.apply(batch)?;
        }
        (self.summary.position, self.summary.clock) = (position, clock);
        self.apply(sled::Batch::default())?;
        self.sync()
    }

    pub(crate) fn position(&self) -> Pointer {
        self.summary.position
    }

    pub(crate) fn bytes(&self) -> u64 {
        self.sled.size_on_disk().unwrap_or(0)
    }

    fn note(&mut self, id: BlockId, bytes: Option<&[u8]>) {
        let old = match bytes {
            Some(bytes) => self.shown.insert(id, fingerprint(id, bytes)),
            None => self.shown.remove(&id),
        };
        let new = self.shown.get(&id).copied().unwrap_or(0);
        self.summary.blocks = self.shown.len() as u64;
        self.summary.fingerprint = self.summary.fingerprint.wrapping_sub(old.unwrap_or(0)).wrapping_add(new);
    }

    fn apply(&mut self, mut batch: sled::Batch) -> Result<(), IndexError> {
        batch.insert(SUMMARY_KEY, &self.summary.encode()[..]);
        unpanicked(|| Ok(self.sled.apply_batch(batch)?))
    }

    /// Sled's own flush does not survive a power cut without the second sync.
    fn sync(&self) -> Result<(), IndexError> {
        unpanicked(|| Ok(self.sled.flush()?))?;
        Ok(fs::File::open(self.path.join("db"))?.sync_data()?)
    }
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

fn load_block(id: BlockId, bytes: &[u8], table: &mut Table) -> Result<(), IndexError> {
    let mut fields = Fields(bytes);
    while !fields.0.is_empty() {
        let (slot, outcome) = block::decode(&mut fields).ok_or(IndexError::Wrong("a block is unreadable"))?;
        if !table.load(id.key(slot.index), Line { slot, outcome }) {
            return Err(IndexError::Wrong("it holds a case twice"));
        }
    }
    Ok(())
}

/// A number that differs for nearly all blocks and contents; sums of them compare whole queues.
fn fingerprint(id: BlockId, bytes: &[u8]) -> u64 {
    let low = crc32c::crc32c_append(crc32c::crc32c(&id.to_bytes()), bytes);
    let high = crc32c::crc32c_append(low, &id.to_bytes());
    u64::from(high) << 32 | u64::from(low)
}

/// Moves the queue away whole. The newest few are kept for inspection.
fn set_aside(path: &Path) -> io::Result<()> {
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

    fn encode(&self) -> [u8; Self::BYTES] {
        let mut bytes = [0; Self::BYTES];
        bytes[..2].copy_from_slice(&FORMAT.to_le_bytes());
        bytes[2..6].copy_from_slice(&self.position.segment.to_le_bytes());
        bytes[6..10].copy_from_slice(&self.position.offset.to_le_bytes());
        bytes[10..18].copy_from_slice(&self.blocks.to_le_bytes());
        bytes[18..26].copy_from_slice(&self.fingerprint.to_le_bytes());
        bytes[26..].copy_from_slice(&self.clock.map_or(u64::MAX, |clock| clock.0).to_le_bytes());
        bytes
    }

    fn decode(bytes: &[u8]) -> Option<Self> {
        let mut fields = Fields(bytes);
        if u16::from_le_bytes(fields.take()?) != FORMAT {
            return None;
        }
        let (position, blocks, fingerprint, clock) = (fields.pointer()?, fields.u64()?, fields.u64()?, fields.u64()?);
        let clock = (clock != u64::MAX).then_some(Moment(clock));
        fields.0.is_empty().then_some(Self { position, blocks, fingerprint, clock })
    }
}
