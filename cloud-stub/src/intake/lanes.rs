//! Which cases wait for which model, and how many each model has before it. Ids only: payloads are on record.

use std::collections::{BTreeMap, VecDeque};

use hedge_proto::CaseId;

use super::decide::Room;
use crate::model::JOBS_AHEAD_MAX;
use crate::store::Waiting;

/// How many cases may wait for models before devices are told to wait: about 1 MiB of ids.
pub(super) const WAITING_MAX: usize = 10_000;

/// How many cases of tasks without a model are held.
pub(super) const HELD_MAX: usize = 1_000;

/// One case that waits.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) id: CaseId,
    /// A process before this one had it when it ended.
    pub(super) left_over: bool,
}

#[derive(Default)]
struct Lane {
    waiting: VecDeque<Entry>,
    in_flight: usize,
}

/// One lane per task that has a model, and a count of the rest.
pub(super) struct Lanes {
    lanes: BTreeMap<String, Lane>,
    held: usize,
}

impl Lanes {
    pub(super) fn new(tasks: impl Iterator<Item = String>, left_over: Vec<Waiting>) -> Self {
        let mut lanes = Self { lanes: tasks.map(|task| (task, Lane::default())).collect(), held: 0 };
        for waiting in left_over {
            lanes.put(&waiting.task, Entry { id: waiting.id, left_over: true });
        }
        lanes
    }

    pub(super) fn room(&self, task: &str, more: usize) -> Room {
        if !self.lanes.contains_key(task) {
            return if self.held + more < HELD_MAX { Room::Free } else { Room::NoModel };
        }
        let waiting: usize = self.lanes.values().map(|lane| lane.waiting.len() + lane.in_flight).sum();
        if waiting + more < WAITING_MAX { Room::Free } else { Room::Full }
    }

    pub(super) fn put(&mut self, task: &str, entry: Entry) {
        match self.lanes.get_mut(task) {
            Some(lane) => lane.waiting.push_back(entry),
            None => self.held += 1,
        }
    }

    pub(super) fn put_back(&mut self, task: &str, entry: Entry) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.waiting.push_front(entry);
        }
    }

    /// The next case for a model that can take one. Left-over cases go alone, so that it is known which one
    /// the model had if the process dies again.
    pub(super) fn next(&mut self, task: &str) -> Option<Entry> {
        let lane = self.lanes.get_mut(task)?;
        let ahead_max = if lane.waiting.front()?.left_over { 1 } else { JOBS_AHEAD_MAX };
        if lane.in_flight < ahead_max { lane.waiting.pop_front() } else { None }
    }

    pub(super) fn started(&mut self, task: &str) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.in_flight += 1;
        }
    }

    pub(super) fn finished(&mut self, task: &str) {
        if let Some(lane) = self.lanes.get_mut(task) {
            lane.in_flight = lane.in_flight.saturating_sub(1);
        }
    }

    pub(super) fn held(&self) -> usize {
        self.held
    }

    pub(super) fn left_over(&self) -> usize {
        self.lanes.values().flat_map(|lane| &lane.waiting).filter(|entry| entry.left_over).count()
    }
}
