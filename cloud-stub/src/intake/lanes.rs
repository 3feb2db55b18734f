//! Which cases wait for which model, whose turn it is, and how many a device may have waiting. Ids only: payloads are
//! on record.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::time::Duration;

use hedge_proto::{CaseId, DeviceId};

use super::decide::{BUSY_S, Room};
use crate::answerers::Declined;
use crate::store::Waiting;
use crate::turns::{Tally, Turns};
use crate::wall_ms;

/// How many cases may wait for models before devices are told to wait: about 20 MiB of ids. A fleet that comes back
/// after an outage finds room for what it has kept; what is turned away travels twice.
const WAITING_MAX: usize = 200_000;

/// How many cases of tasks without a model are held.
const HELD_MAX: usize = 1_000;

/// How many cases wait for people.
const REVIEW_MAX: usize = 10_000;

/// How much work for a model a device may have waiting, by what its cases took so far. A model is kept busy by this
/// until whoever was told to wait ([`super::decide::BUSY_S`]) comes again; more would only be a longer wait.
const WORK_MAX: Duration = Duration::from_secs(20);

/// The longest wait that a device is told for a backlog. How long a case takes may change sooner.
const REST_MAX_S: u32 = 300;

/// How many cases a device may have waiting however long the model takes.
const WAITING_MIN: usize = 64;

/// One case that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: CaseId,
    pub(super) bytes: u64,
    /// A process before this one had it when it ended.
    pub(super) left_over: bool,
    /// Who will not answer it.
    pub(super) declined: Declined,
    /// How often an answerer that had nothing else has ended over it.
    pub(super) ends: u8,
    /// Since when it waits, for its trace.
    pub(super) since_ms: u64,
}

impl Entry {
    pub(super) fn new(id: CaseId, bytes: u64) -> Self {
        Self { id, bytes, left_over: false, declined: Declined::default(), ends: 0, since_ms: wall_ms() }
    }
}

#[derive(Default)]
struct Lane {
    /// By who will not answer them: what waits for one that is down holds up nothing that another may have.
    waiting: BTreeMap<Declined, Turns<Entry>>,
    /// What a case takes of all answerers together, smoothed.
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
    /// Those that wait for a person.
    review: Tally,
}

impl Lanes {
    /// `bytes_max`: how many payload bytes may wait, in all. `stands` says where a case that is left over does: `None`,
    /// if it waits for a person.
    pub(super) fn new(
        tasks: impl Iterator<Item = String>,
        left_over: Vec<Waiting>,
        bytes_max: u64,
        stands: impl Fn(&Waiting) -> Option<Declined>,
    ) -> Self {
        let mut lanes = Self {
            lanes: tasks.map(|task| (task, Lane::default())).collect(),
            open: Tally::new(WAITING_MAX, bytes_max),
            held: Tally::new(HELD_MAX, bytes_max),
            review: Tally::new(REVIEW_MAX, bytes_max),
        };
        lanes.take_over(left_over, stands);
        lanes
    }

    /// Takes in what another process had when it ended.
    pub(super) fn take_over(&mut self, left_over: Vec<Waiting>, stands: impl Fn(&Waiting) -> Option<Declined>) {
        for case in left_over {
            let stands = stands(&case);
            let Waiting { id, task, bytes, .. } = case;
            match stands {
                Some(declined) => {
                    self.reserve(&task, &id.device, bytes);
                    self.put(&task, Entry { left_over: true, declined, ..Entry::new(id, bytes) });
                }
                None => self.review.add(&id.device, bytes),
            }
        }
    }

    pub(super) fn room(&self, task: &str, device: &DeviceId, bytes: u64) -> Room {
        let has_room = self.tally(task).has_room(device, bytes);
        match self.lanes.get(task) {
            Some(lane) if has_room && self.open.items_of(device) < lane.waiting_max() => Room::Free,
            Some(lane) => Room::Full { after_s: self.rest_s(lane, device) },
            None if has_room => Room::Free,
            None => Room::NoModel,
        }
    }

    /// When to come again: when about half of the backlog is done, so that the models do not run out of work; and not all
    /// devices at the same time.
    fn rest_s(&self, lane: &Lane, device: &DeviceId) -> u32 {
        let backlog = lane.took.saturating_mul(u32::try_from(self.open.items()).unwrap_or(u32::MAX));
        let half = u32::try_from(backlog.as_secs() / 2).unwrap_or(u32::MAX).clamp(BUSY_S, REST_MAX_S);
        let mut hasher = DefaultHasher::new();
        device.hash(&mut hasher);
        #[expect(clippy::cast_possible_truncation, reason = "any of its bits will do")]
        let spread = hasher.finish() as u32 % half;
        half + spread
    }

    /// A model of this task has taken so long for a case.
    pub(super) fn took(&mut self, task: &str, took: Duration) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.took = if lane.took.is_zero() { took } else { (lane.took * 7 + took) / 8 };
        }
    }

    pub(super) fn has_model(&self, task: &str) -> bool {
        self.lanes.contains_key(task)
    }

    fn tally(&self, task: &str) -> &Tally {
        if self.has_model(task) { &self.open } else { &self.held }
    }

    fn tally_mut(&mut self, task: &str) -> &mut Tally {
        if self.has_model(task) { &mut self.open } else { &mut self.held }
    }

    /// Takes a place, for a case that is about to be recorded.
    pub(super) fn reserve(&mut self, task: &str, device: &DeviceId, bytes: u64) {
        self.tally_mut(task).add(device, bytes);
    }

    /// Gives a place back: the case is closed, or was not recorded after all.
    pub(super) fn release(&mut self, task: &str, device: &DeviceId, bytes: u64) {
        self.tally_mut(task).remove(device, bytes);
    }

    /// A case that has its place, behind what waits of its device.
    pub(super) fn put(&mut self, task: &str, entry: Entry) {
        if let Some(waiting) = self.waiting(task, entry.declined) {
            waiting.put(&entry.id.device.clone(), entry, 0);
        }
    }

    /// In front of what waits of its device.
    pub(super) fn put_back(&mut self, task: &str, entry: Entry) {
        if let Some(waiting) = self.waiting(task, entry.declined) {
            waiting.put_back(&entry.id.device.clone(), entry, 0);
        }
    }

    fn waiting(&mut self, task: &str, declined: Declined) -> Option<&mut Turns<Entry>> {
        let lane = self.lanes.get_mut(task)?;
        Some(lane.waiting.entry(declined).or_insert_with(|| Turns::one_each(usize::MAX, u64::MAX)))
    }

    /// By whom cases of a task have been declined that wait.
    pub(super) fn declined(&self, task: &str) -> Vec<Declined> {
        let waiting = self.lanes.get(task).into_iter().flat_map(|lane| &lane.waiting);
        waiting.filter(|(_, turns)| !turns.is_empty()).map(|(declined, _)| *declined).collect()
    }

    /// The next case of a device for which there is room.
    pub(super) fn next(
        &mut self,
        task: &str,
        declined: Declined,
        has_room: impl FnMut(&DeviceId) -> bool,
    ) -> Option<Entry> {
        self.lanes.get_mut(task)?.waiting.get_mut(&declined)?.pop_of(has_room)
    }

    /// The next case for the review queue, where there is room for it: its place is there from now on.
    pub(super) fn next_to_review(&mut self, task: &str, declined: Declined) -> Option<Entry> {
        let review = &self.review;
        let entry =
            self.lanes.get_mut(task)?.waiting.get_mut(&declined)?.pop_of(|device| review.has_room(device, 0))?;
        self.open.remove(&entry.id.device, entry.bytes);
        self.review.add(&entry.id.device, entry.bytes);
        Some(entry)
    }

    /// It was not put into the review queue after all.
    pub(super) fn back_from_review(&mut self, task: &str, entry: Entry) {
        self.reviewed(&entry.id.device, entry.bytes);
        self.open.add(&entry.id.device, entry.bytes);
        self.put_back(task, entry);
    }

    pub(super) fn reviewed(&mut self, device: &DeviceId, bytes: u64) {
        self.review.remove(device, bytes);
    }

    pub(super) fn in_review(&self) -> usize {
        self.review.items()
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
        for (took_ms, waiting) in [(0, 20_000), (2, 10_000), (20, 1_000), (60_000, WAITING_MIN)] {
            let mut lanes = Lanes::new(["t".to_owned()].into_iter(), Vec::new(), u64::MAX, |_| None);
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

    #[test]
    fn a_fleet_that_finds_no_room_is_told_to_come_again_by_and_by_when_half_of_the_backlog_is_done() {
        for (took_ms, half) in [(0, 10), (20, 20), (60_000, 300)] {
            let mut lanes = Lanes::new(["t".to_owned()].into_iter(), Vec::new(), 2_000, |_| None);
            lanes.took("t", Duration::from_millis(took_ms));
            let fleet: Vec<DeviceId> =
                (0..4_000).map(|number| DeviceId::new(&format!("d{number}")).expect("valid")).collect();
            let mut told = [0; 4];
            for device in &fleet {
                match lanes.room("t", device, 1) {
                    Room::Full { after_s } => told[((after_s - half) * 4 / half) as usize] += 1,
                    _ => lanes.reserve("t", device, 1),
                }
            }
            let turned_away = fleet.len() - lanes.open();
            assert!(told.iter().all(|quarter| quarter * 6 > turned_away), "{told:?} of {turned_away} for {took_ms} ms");
        }
    }
}
