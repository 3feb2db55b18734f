//! Whose turn it is: what waits is kept apart by device and handed out in turns, so that a device which sends without
//! end waits behind itself only. What is done with it is not decided here.
//!
//! Turns are deficit round robin (Shreedhar and Varghese, 1995): with each turn a device may take `quantum` more than
//! it has cost so far. Room is a dynamic threshold (Choudhury and Hahne, 1998): a device may hold as much as is still
//! free, so one alone gets half, and whoever comes next always finds a place.

use std::collections::{HashMap, VecDeque};

use hedge_proto::DeviceId;

/// How much is held, in all and by each device.
#[derive(Debug)]
pub struct Tally {
    items_max: usize,
    bytes_max: u64,
    all: Held,
    devices: HashMap<DeviceId, Held>,
}

#[derive(Debug, Clone, Copy, Default)]
struct Held {
    items: usize,
    bytes: u64,
}

impl Tally {
    #[must_use]
    pub fn new(items_max: usize, bytes_max: u64) -> Self {
        Self { items_max, bytes_max, all: Held::default(), devices: HashMap::new() }
    }

    /// Whether the device may hold one more thing of this size. Its first one is held whatever its size, while there
    /// are bytes left at all.
    #[must_use]
    pub fn has_room(&self, device: &DeviceId, bytes: u64) -> bool {
        let mine = self.devices.get(device).copied().unwrap_or_default();
        let items_left = self.items_max.saturating_sub(self.all.items);
        let bytes_left = self.bytes_max.saturating_sub(self.all.bytes);
        mine.items < items_left && bytes_left > 0 && (mine.items == 0 || mine.bytes.saturating_add(bytes) <= bytes_left)
    }

    pub fn add(&mut self, device: &DeviceId, bytes: u64) {
        for held in [&mut self.all, self.devices.entry(device.clone()).or_default()] {
            held.items += 1;
            held.bytes = held.bytes.saturating_add(bytes);
        }
    }

    pub fn remove(&mut self, device: &DeviceId, bytes: u64) {
        let Some(mine) = self.devices.get_mut(device) else { return };
        for held in [&mut self.all, &mut *mine] {
            held.items = held.items.saturating_sub(1);
            held.bytes = held.bytes.saturating_sub(bytes);
        }
        if mine.items == 0 {
            self.devices.remove(device);
        }
    }

    #[must_use]
    pub fn items(&self) -> usize {
        self.all.items
    }

    /// How many more things fit in, whoever they are from.
    #[must_use]
    pub fn items_left(&self) -> usize {
        self.items_max.saturating_sub(self.all.items)
    }

    #[must_use]
    pub fn items_of(&self, device: &DeviceId) -> usize {
        self.devices.get(device).map_or(0, |held| held.items)
    }
}

/// What waits, by device.
#[derive(Debug)]
pub struct Turns<T> {
    tally: Tally,
    queues: HashMap<DeviceId, Queue<T>>,
    /// Devices that have something waiting, the next one first.
    order: VecDeque<DeviceId>,
    quantum: u64,
    cost: fn(u64) -> u64,
}

#[derive(Debug)]
struct Queue<T> {
    waiting: VecDeque<(T, u64)>,
    deficit: u64,
}

impl<T> Turns<T> {
    /// One thing a turn, whatever its size: for what takes about as long each.
    #[must_use]
    pub fn one_each(items_max: usize, bytes_max: u64) -> Self {
        Self::new(items_max, bytes_max, 1, |_| 1)
    }

    /// About `quantum` bytes a turn: for what takes the longer the larger it is. `each` is what the smallest costs.
    #[must_use]
    pub fn by_bytes(items_max: usize, bytes_max: u64) -> Self {
        /// An fsync's worth of small messages.
        const QUANTUM_BYTES: u64 = 16 * 1024;
        Self::new(items_max, bytes_max, QUANTUM_BYTES, |bytes| bytes.max(QUANTUM_BYTES / 8))
    }

    fn new(items_max: usize, bytes_max: u64, quantum: u64, cost: fn(u64) -> u64) -> Self {
        let tally = Tally::new(items_max, bytes_max);
        Self { tally, queues: HashMap::new(), order: VecDeque::new(), quantum, cost }
    }

    #[must_use]
    pub fn has_room(&self, device: &DeviceId, bytes: u64) -> bool {
        self.tally.has_room(device, bytes)
    }

    /// How many more things fit in, whoever they are from.
    #[must_use]
    pub fn items_left(&self) -> usize {
        self.tally.items_left()
    }

    #[must_use]
    pub fn len_of(&self, device: &DeviceId) -> usize {
        self.tally.items_of(device)
    }

    /// Behind what waits of this device already. Whether there is room is the caller's to ask.
    pub fn put(&mut self, device: &DeviceId, item: T, bytes: u64) {
        self.queue(device, bytes).waiting.push_back((item, bytes));
    }

    /// In front of what waits of this device: it had its turn, and nothing came of it.
    pub fn put_back(&mut self, device: &DeviceId, item: T, bytes: u64) {
        self.queue(device, bytes).waiting.push_front((item, bytes));
    }

    fn queue(&mut self, device: &DeviceId, bytes: u64) -> &mut Queue<T> {
        self.tally.add(device, bytes);
        if !self.queues.contains_key(device) {
            self.order.push_back(device.clone());
        }
        self.queues.entry(device.clone()).or_insert_with(|| Queue { waiting: VecDeque::new(), deficit: 0 })
    }

    pub fn pop(&mut self) -> Option<T> {
        self.pop_of(|_| true)
    }

    /// The next thing of a device that `may` have its turn now.
    pub fn pop_of(&mut self, mut may: impl FnMut(&DeviceId) -> bool) -> Option<T> {
        // Whoever may not keeps its place and its deficit.
        let mut passed_over = 0;
        while passed_over < self.order.len() {
            let device = self.order.front()?.clone();
            if !may(&device) {
                self.order.rotate_left(1);
                passed_over += 1;
                continue;
            }
            let queue = self.queues.get_mut(&device)?;
            let (_, bytes) = queue.waiting.front()?;
            let cost = (self.cost)(*bytes);
            if queue.deficit < cost {
                queue.deficit += self.quantum;
                self.order.rotate_left(1);
                passed_over = 0;
                continue;
            }
            queue.deficit -= cost;
            let (item, bytes) = queue.waiting.pop_front()?;
            if queue.waiting.is_empty() {
                self.queues.remove(&device);
                self.order.pop_front();
            }
            self.tally.remove(&device, bytes);
            return Some(item);
        }
        None
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.tally.items()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(name: &str) -> DeviceId {
        DeviceId::new(name).expect("valid")
    }

    #[test]
    fn one_who_sends_without_end_waits_behind_itself_only() {
        let (evil, good) = (device("evil"), device("good"));
        for bytes in [0, 300, 16 * 1024] {
            let mut turns = Turns::by_bytes(10_000, u64::MAX);
            (0..2_000).for_each(|_| turns.put(&evil, "evil", 300));
            turns.put(&good, "good", bytes);
            let before = std::iter::from_fn(|| turns.pop()).position(|item| item == "good").expect("its turn");
            assert!(before <= 16, "{before} of the other's before it, with {bytes} bytes");
        }
        let mut turns = Turns::one_each(10_000, u64::MAX);
        (0..2_000).for_each(|_| turns.put(&evil, "evil", 300));
        turns.put(&good, "good", 10_000_000);
        let before = std::iter::from_fn(|| turns.pop()).position(|item| item == "good").expect("its turn");
        assert!(before <= 1, "{before}");
    }

    #[test]
    fn whoever_comes_next_finds_a_place_however_many_have_filled_theirs() {
        let mut tally = Tally::new(1_000, 1_000_000);
        for n in 0..6 {
            let greedy = device(&format!("greedy-{n}"));
            let mut held = 0;
            while tally.has_room(&greedy, 100) {
                tally.add(&greedy, 100);
                held += 1;
            }
            assert!(held > 0 && (n > 0 || held == 500), "{n}: {held}");
        }
        assert!(tally.has_room(&device("good"), 100));
        // By bytes, too.
        let mut tally = Tally::new(1_000, 1_000_000);
        let (greedy, good) = (device("greedy"), device("good"));
        while tally.has_room(&greedy, 60_000) {
            tally.add(&greedy, 60_000);
        }
        assert!(tally.items() < 10 && tally.has_room(&good, 300_000));
        tally.remove(&greedy, 60_000);
        assert!(tally.has_room(&greedy, 60_000));
    }

    #[test]
    fn all_that_is_put_comes_out_once_and_in_order_of_its_device() {
        let mut turns = Turns::by_bytes(1_000, u64::MAX);
        for n in 0..30_u64 {
            turns.put(&device(&format!("d{}", n % 3)), n, n * 1_000);
        }
        assert!(turns.pop_of(|_| false).is_none());
        let only = turns.pop_of(|who| who.as_str() == "d1").expect("its turn");
        turns.put_back(&device("d1"), only, 1_000);
        let out: Vec<u64> = std::iter::from_fn(|| turns.pop()).collect();
        assert_eq!(out.len(), 30);
        for device in 0..3 {
            assert!(out.iter().filter(|n| **n % 3 == device).is_sorted());
        }
        assert!(turns.is_empty());
    }
}
