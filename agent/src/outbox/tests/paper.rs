//! A disk in memory that keeps only what was synced, tears the rest, fills up, and fails to sync when told to.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::disk::{Disk, SegmentFile};

/// What a disk writes at once.
const SECTOR_BYTES: usize = 512;

#[derive(Default)]
pub(super) struct PaperDisk {
    state: Arc<Mutex<State>>,
}

#[derive(Default, Clone)]
struct State {
    files: BTreeMap<u32, PaperFile>,
    /// What the folder would hold after a power cut.
    durable_names: BTreeMap<u32, PaperFile>,
    reserve: u64,
    capacity_bytes: Option<u64>,
    failing_syncs: u32,
}

#[derive(Default, Clone)]
struct PaperFile {
    content: Arc<Mutex<Content>>,
}

#[derive(Default, Clone)]
struct Content {
    bytes: Vec<u8>,
    synced_bytes: usize,
}

struct OpenFile {
    content: Arc<Mutex<Content>>,
    state: Arc<Mutex<State>>,
}

impl PaperDisk {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub(super) fn fill_up(&self, capacity_bytes: Option<u64>) {
        self.state().capacity_bytes = capacity_bytes;
    }

    pub(super) fn fail_syncs(&self, times: u32) {
        self.state().failing_syncs = times;
    }

    pub(super) fn used_bytes(&self) -> u64 {
        self.state().used_bytes()
    }

    pub(super) fn flip(&self, segment: u32, at: usize) {
        let file = self.state().find(segment).unwrap();
        file.content.lock().unwrap().bytes[at] ^= 0x55;
    }

    pub(super) fn contents(&self) -> BTreeMap<u32, Vec<u8>> {
        let state = self.state();
        state.files.iter().map(|(number, file)| (*number, file.content.lock().unwrap().bytes.clone())).collect()
    }

    pub(super) fn of(contents: &BTreeMap<u32, Vec<u8>>) -> Self {
        let disk = Self::default();
        for (number, bytes) in contents {
            let content = Content { bytes: bytes.clone(), synced_bytes: bytes.len() };
            let file = PaperFile { content: Arc::new(Mutex::new(content)) };
            disk.state().files.insert(*number, file.clone());
            disk.state().durable_names.insert(*number, file);
        }
        disk
    }

    /// What a power cut now would leave: everything synced, and of the rest the sectors that `chance` picks.
    pub(super) fn after_power_cut(&self, mut chance: impl FnMut() -> bool) -> Self {
        let state = self.state();
        let mut left = BTreeMap::new();
        for (number, file) in &state.durable_names {
            let content = file.content.lock().unwrap();
            let mut bytes = content.bytes.clone();
            let mut end = content.synced_bytes.min(bytes.len());
            let mut at = end;
            while at < bytes.len() {
                let next = (at / SECTOR_BYTES + 1) * SECTOR_BYTES;
                let sector = at..next.min(bytes.len());
                at = sector.end;
                if chance() {
                    end = at;
                } else {
                    bytes[sector].fill(0);
                }
            }
            bytes.truncate(end);
            left.insert(*number, bytes);
        }
        Self::of(&left)
    }
}

impl State {
    fn used_bytes(&self) -> u64 {
        let files = self.files.values().map(|file| file.content.lock().unwrap().bytes.len() as u64);
        files.sum::<u64>() + self.reserve
    }

    fn free_bytes(&self) -> u64 {
        self.capacity_bytes.map_or(u64::MAX / 2, |capacity| capacity.saturating_sub(self.used_bytes()))
    }

    fn find(&self, segment: u32) -> io::Result<PaperFile> {
        self.files.get(&segment).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for PaperDisk {
    fn create(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>> {
        let file = PaperFile::default();
        self.state().files.insert(segment, file.clone());
        Ok(Box::new(OpenFile { content: file.content, state: Arc::clone(&self.state) }))
    }

    fn open(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>> {
        let file = self.state().find(segment)?;
        Ok(Box::new(OpenFile { content: file.content, state: Arc::clone(&self.state) }))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        self.state().files.remove(&segment).map(drop).ok_or_else(|| io::ErrorKind::NotFound.into())
    }

    fn set_aside(&self, segment: u32) -> io::Result<()> {
        self.remove(segment)
    }

    fn segments(&self) -> io::Result<Vec<u32>> {
        Ok(self.state().files.keys().copied().collect())
    }

    fn sync_folder(&self) -> io::Result<()> {
        let mut state = self.state();
        state.durable_names = state.files.clone();
        Ok(())
    }

    fn free_bytes(&self) -> io::Result<u64> {
        Ok(self.state().free_bytes())
    }

    fn keep_reserve(&self, bytes: Option<u64>) -> io::Result<()> {
        let mut state = self.state();
        if bytes.is_some_and(|bytes| bytes > state.free_bytes() + state.reserve) {
            return Err(io::ErrorKind::StorageFull.into());
        }
        state.reserve = bytes.unwrap_or(0);
        Ok(())
    }
}

impl SegmentFile for OpenFile {
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        for part in parts {
            let free = self.state.lock().unwrap().free_bytes();
            let fits = usize::try_from(free).unwrap_or(usize::MAX).min(part.len());
            self.content.lock().unwrap().bytes.extend_from_slice(&part[..fits]);
            if fits < part.len() {
                return Err(io::ErrorKind::StorageFull.into());
            }
        }
        Ok(())
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::other("the disk has lost its pages"));
        }
        drop(state);
        let mut content = self.content.lock().unwrap();
        content.synced_bytes = content.bytes.len();
        Ok(())
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let mut content = self.content.lock().unwrap();
        content.bytes.truncate(usize::try_from(bytes).unwrap());
        content.synced_bytes = content.synced_bytes.min(content.bytes.len());
        Ok(())
    }

    fn read_at(&self, into: &mut [u8], offset: u64) -> io::Result<usize> {
        let content = self.content.lock().unwrap();
        let rest = content.bytes.get(usize::try_from(offset).unwrap()..).unwrap_or_default();
        let read = rest.len().min(into.len());
        into[..read].copy_from_slice(&rest[..read]);
        Ok(read)
    }

    fn bytes(&self) -> io::Result<u64> {
        Ok(self.content.lock().unwrap().bytes.len() as u64)
    }
}
