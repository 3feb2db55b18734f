//! A disk in memory that keeps only what was synced, tears and reorders the rest, fills up, and fails to sync when
//! told to. Its camera takes an image of what a power cut would leave at every single thing that is done to it.

use std::collections::BTreeMap;
use std::io::{self, IoSlice};
use std::sync::{Arc, Mutex, MutexGuard};

use super::super::disk::{Disk, SegmentFile};

/// Small numbers that look random and are the same in every run.
pub(super) fn dice(mut seed: u64) -> impl FnMut() -> u64 {
    move || {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        seed >> 33
    }
}

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
    camera: Option<Camera>,
}

/// What the camera saw, and how many marks had been set by then.
pub(super) type Shot = (usize, BTreeMap<u32, Vec<u8>>);

#[derive(Clone)]
struct Camera {
    seed: u64,
    marks: usize,
    shots: Vec<Shot>,
}

#[derive(Default, Clone)]
struct PaperFile {
    content: Arc<Mutex<Content>>,
}

#[derive(Default, Clone)]
struct Content {
    /// What is read.
    bytes: Vec<u8>,
    /// What a power cut cannot take.
    durable: Vec<u8>,
    /// What was done since, in order.
    unsynced: Vec<Unsynced>,
}

#[derive(Clone)]
enum Unsynced {
    Write { at: usize, bytes: Vec<u8> },
    Cut(usize),
}

impl Content {
    fn settled(bytes: Vec<u8>) -> Self {
        Self { durable: bytes.clone(), bytes, unsynced: Vec::new() }
    }

    /// Everything synced, and of the rest the sectors and cuts that `chance` picks.
    fn after_power_cut(&self, mut chance: impl FnMut() -> bool) -> Vec<u8> {
        let mut left = self.durable.clone();
        for change in &self.unsynced {
            match change {
                Unsynced::Cut(bytes) if chance() => left.truncate(*bytes),
                Unsynced::Cut(_) => {}
                Unsynced::Write { at, bytes } => {
                    let end = at + bytes.len();
                    let mut from = *at;
                    while from < end {
                        let to = ((from / SECTOR_BYTES + 1) * SECTOR_BYTES).min(end);
                        if chance() {
                            left.resize(left.len().max(to), 0);
                            left[from..to].copy_from_slice(&bytes[from - at..to - at]);
                        }
                        from = to;
                    }
                }
            }
        }
        left
    }
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
            let file = PaperFile { content: Arc::new(Mutex::new(Content::settled(bytes.clone()))) };
            disk.state().files.insert(*number, file.clone());
            disk.state().durable_names.insert(*number, file);
        }
        disk
    }

    /// What a power cut now would leave: everything synced, and of the rest what `chance` picks.
    pub(super) fn after_power_cut(&self, chance: impl FnMut() -> bool) -> Self {
        Self::of(&self.state().after_power_cut(chance))
    }

    /// From now on every operation is followed by an image.
    pub(super) fn film(&self, seed: u64) {
        self.state().camera = Some(Camera { seed, marks: 0, shots: Vec::new() });
    }

    /// Images taken from now on come after one mark more.
    pub(super) fn mark(&self) {
        if let Some(camera) = &mut self.state().camera {
            camera.marks += 1;
        }
    }

    pub(super) fn shots(&self) -> Vec<Shot> {
        self.state().camera.take().map(|camera| camera.shots).unwrap_or_default()
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

    fn after_power_cut(&self, mut chance: impl FnMut() -> bool) -> BTreeMap<u32, Vec<u8>> {
        let mut left = BTreeMap::new();
        for (number, file) in self.files.iter().chain(&self.durable_names) {
            let (is, was) = (self.files.contains_key(number), self.durable_names.contains_key(number));
            if !left.contains_key(number) && if is == was { is } else { chance() == is } {
                left.insert(*number, file.content.lock().unwrap().after_power_cut(&mut chance));
            }
        }
        left
    }

    fn shoot(&mut self) {
        let Some(mut camera) = self.camera.take() else { return };
        let mut roll = dice(camera.seed);
        camera.seed = roll();
        // Of what is not synced sometimes nearly all is left, sometimes nearly nothing.
        let share = roll() % 5;
        let shot = self.after_power_cut(|| roll() % 4 < share);
        camera.shots.push((camera.marks, shot));
        self.camera = Some(camera);
    }

    fn find(&self, segment: u32) -> io::Result<PaperFile> {
        self.files.get(&segment).cloned().ok_or_else(|| io::ErrorKind::NotFound.into())
    }
}

impl Disk for PaperDisk {
    fn create(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>> {
        let file = PaperFile::default();
        let mut state = self.state();
        if state.files.insert(segment, file.clone()).is_some() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        state.shoot();
        drop(state);
        Ok(Box::new(OpenFile { content: file.content, state: Arc::clone(&self.state) }))
    }

    fn open(&self, segment: u32) -> io::Result<Box<dyn SegmentFile>> {
        let file = self.state().find(segment)?;
        Ok(Box::new(OpenFile { content: file.content, state: Arc::clone(&self.state) }))
    }

    fn remove(&self, segment: u32) -> io::Result<()> {
        let mut state = self.state();
        state.files.remove(&segment).map(drop).ok_or(io::ErrorKind::NotFound)?;
        state.shoot();
        Ok(())
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
        state.shoot();
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

    fn has_reserve(&self, bytes: u64) -> bool {
        self.state().reserve == bytes
    }
}

impl SegmentFile for OpenFile {
    fn append(&mut self, parts: &mut [IoSlice<'_>]) -> io::Result<()> {
        let mut bytes: Vec<u8> = parts.iter().flat_map(|part| part.iter().copied()).collect();
        let mut state = self.state.lock().unwrap();
        let fits = usize::try_from(state.free_bytes()).unwrap_or(usize::MAX).min(bytes.len());
        let all = fits == bytes.len();
        bytes.truncate(fits);
        let mut content = self.content.lock().unwrap();
        let at = content.bytes.len();
        content.bytes.extend_from_slice(&bytes);
        content.unsynced.push(Unsynced::Write { at, bytes });
        drop(content);
        state.shoot();
        if all { Ok(()) } else { Err(io::ErrorKind::StorageFull.into()) }
    }

    fn sync(&mut self) -> io::Result<()> {
        let mut state = self.state.lock().unwrap();
        if state.failing_syncs > 0 {
            state.failing_syncs -= 1;
            return Err(io::Error::other("the disk has lost its pages"));
        }
        let mut content = self.content.lock().unwrap();
        *content = Content::settled(std::mem::take(&mut content.bytes));
        drop(content);
        state.shoot();
        Ok(())
    }

    fn cut(&mut self, bytes: u64) -> io::Result<()> {
        let bytes = usize::try_from(bytes).unwrap();
        let mut content = self.content.lock().unwrap();
        content.bytes.truncate(bytes);
        content.unsynced.push(Unsynced::Cut(bytes));
        drop(content);
        self.state.lock().unwrap().shoot();
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
