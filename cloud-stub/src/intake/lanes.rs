//! Which cases wait for which model, whose turn it is, and how many a device may have waiting. Ids only: payloads are
//! on record.

use std::collections::BTreeMap;
use std::time::Duration;

use hedge_proto::{CaseId, DeviceId};

use super::decide::Room;
use crate::store::Waiting;
use crate::turns::{Tally, Turns};

/// How many cases may wait for models before devices are told to wait: about 1 MiB of ids.
const WAITING_MAX: usize = 10_000;

/// How many cases of tasks without a model are held.
const HELD_MAX: usize = 1_000;

/// How much work for a model a device may have waiting, by what its cases took so far. A model is kept busy by this
/// until whoever was told to wait ([`super::decide::BUSY_S`]) comes again; more would only be a longer wait.
const WORK_MAX: Duration = Duration::from_secs(20);

/// How many cases a device may have waiting however long the model takes.
const WAITING_MIN: usize = 64;

/// One case that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: CaseId,
    pub(super) bytes: u64,
    /// A process before this one had it when it ended.
    pub(super) left_over: bool,
}

struct Lane {
    waiting: Turns<Entry>,
    /// What a case takes, smoothed.
    took: Duration,
}

impl Lane {
    fn waiting_max(&self) -> usize {
        let took = self.took.as_micros().max(1);
        usize::try_from(WORK_MAX.as_micros() / took).unwrap_or(usize::MAX).max(WAITING_MIN)
    }
}

/// One lane per task that has a model, and a count of the rest.
pub(super) struct Lanes {
    lanes: BTreeMap<String, Lane>,
    /// Cases without a verdict: those that wait, and those that a model has.
    open: Tally,
    held: Tally,
}

impl Lanes {
    /// `bytes_max`: how many payload bytes may wait, in all.
    pub(super) fn new(tasks: impl Iterator<Item = String>, left_over: Vec<Waiting>, bytes_max: u64) -> Self {
        let mut lanes = Self {
            lanes: tasks
                .map(|task| (task, Lane { waiting: Turns::one_each(usize::MAX, u64::MAX), took: Duration::ZERO }))
                .collect(),
            open: Tally::new(WAITING_MAX, bytes_max),
            held: Tally::new(HELD_MAX, bytes_max),
        };
        for Waiting { id, task, bytes } in left_over {
            lanes.reserve(&task, &id.device, bytes);
            lanes.put(&task, Entry { id, bytes, left_over: true });
        }
        lanes
    }

    pub(super) fn room(&self, task: &str, device: &DeviceId, bytes: u64) -> Room {
        let has_room = self.tally(task).has_room(device, bytes);
        match self.lanes.get(task) {
            Some(lane) if has_room && self.open.items_of(device) < lane.waiting_max() => Room::Free,
            Some(_) => Room::Full,
            None if has_room => Room::Free,
            None => Room::NoModel,
        }
    }

    /// A model of this task has taken so long for a case.
    pub(super) fn took(&mut self, task: &str, took: Duration) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.took = if lane.took.is_zero() { took } else { (lane.took * 7 + took) / 8 };
        }
    }

    fn tally(&self, task: &str) -> &Tally {
        if self.lanes.contains_key(task) { &self.open } else { &self.held }
    }

    fn tally_mut(&mut self, task: &str) -> &mut Tally {
        if self.lanes.contains_key(task) { &mut self.open } else { &mut self.held }
    }

    /// Takes a place, for a case that is about to be recorded.
    pub(super) fn reserve(&mut self, task: &str, device: &DeviceId, bytes: u64) {
        self.tally_mut(task).add(device, bytes);
    }

    /// Gives a place back: the case is closed, or was not recorded after all.
    pub(super) fn release(&mut self, task: &str, device: &DeviceId, bytes: u64) {
        self.tally_mut(task).remove(device, bytes);
    }

    /// A case that has its place.
    pub(super) fn put(&mut self, task: &str, entry: Entry) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.waiting.put(&entry.id.device.clone(), entry, 0);
        }
    }

    pub(super) fn put_back(&mut self, task: &str, entry: Entry) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.waiting.put_back(&entry.id.device.clone(), entry, 0);
        }
    }

    /// The next case of a device for which the model has room.
    pub(super) fn next(&mut self, task: &str, has_room: impl FnMut(&DeviceId) -> bool) -> Option<Entry> {
        self.lanes.get_mut(task)?.waiting.pop_of(has_room)
    }

    pub(super) fn held(&self) -> usize {
        self.held.items()
    }

    pub(super) fn open(&self) -> usize {
        self.open.items()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_has_no_more_waiting_than_its_model_does_in_a_while_and_others_still_find_room() {
        let (evil, good) = (DeviceId::new("evil").expect("valid"), DeviceId::new("good").expect("valid"));
        for (took_ms, waiting) in [(0, 5_000), (1, 5_000), (20, 1_000), (60_000, WAITING_MIN)] {
            let mut lanes = Lanes::new(["t".to_owned()].into_iter(), Vec::new(), u64::MAX);
            lanes.took("t", Duration::from_millis(took_ms));
            let taken = (0..20_000).take_while(|_| {
                let is_free = lanes.room("t", &evil, 10) == Room::Free;
                lanes.reserve("t", &evil, 10);
                is_free
            });
            assert_eq!(taken.count(), waiting, "{took_ms} ms");
            assert_eq!(lanes.room("t", &good, 10), Room::Free);
            assert_eq!(lanes.room("without a model", &evil, 10), Room::Free);
        }
    }
}
