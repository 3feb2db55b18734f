//! Gathers what becomes of devices until a tick writes it out: a few devices at a time, so that no commit takes long.
//!
//! What lies here is not on record. A process that ends takes it along: at most what came since the device's last turn, a
//! second in a small fleet and a minute in one of ten thousand.

use std::collections::BTreeMap;
use std::ops::Bound;

use hedge_proto::DeviceId;

use crate::store::{Batch, StoreError, Writer};
use crate::trend::{Page, Place, Stretch};

/// How many devices a tick writes out: ten thousand take less than a minute.
const WRITTEN_MAX: usize = 200;

/// How many devices are looked through at a time for what has grown old.
const FOLDED_MAX: u32 = 100;

type Pages = BTreeMap<Place, Page>;

/// What a commit writes of it.
#[derive(Default)]
pub(super) struct Due {
    new: Vec<(DeviceId, Pages)>,
    old: Vec<DeviceId>,
    fleet: Pages,
}

#[derive(Default)]
pub(super) struct Trends {
    pending: BTreeMap<DeviceId, Pages>,
    /// Of all devices together.
    fleet: Pages,
    /// Whose turn came last.
    written: Option<DeviceId>,
    /// Whose pages were looked through last.
    folded: String,
}

impl Trends {
    pub(super) fn add(&mut self, device: DeviceId, stretch: &Stretch) {
        let spread = stretch.spread();
        for pages in [self.pending.entry(device).or_default(), &mut self.fleet] {
            spread.iter().for_each(|(place, page)| pages.entry(*place).or_default().merge(page));
        }
    }

    /// What was not written yet of a device that is forgotten.
    pub(super) fn forget(&mut self, device: &DeviceId) {
        self.pending.remove(device);
    }

    /// What is written next, by turns.
    pub(super) fn due(&mut self) -> Due {
        let from = self.written.take().map_or(Bound::Unbounded, Bound::Excluded);
        let behind = self.pending.range((from, Bound::Unbounded)).take(WRITTEN_MAX);
        let turn: Vec<DeviceId> = behind.map(|(device, _)| device.clone()).collect();
        // Fewer than there may be: the end is reached, and the next turn begins at the first.
        self.written = turn.last().filter(|_| turn.len() == WRITTEN_MAX).cloned();
        let new = turn.iter().filter_map(|device| self.pending.remove_entry(device)).collect();
        Due { new, old: Vec::new(), fleet: std::mem::take(&mut self.fleet) }
    }

    /// The same, and who is looked through for what has grown old.
    pub(super) fn due_with_old(&mut self, writer: &Writer) -> Result<Due, StoreError> {
        let old = writer.devices_behind(&self.folded, FOLDED_MAX)?;
        self.folded = old.last().map(DeviceId::to_string).unwrap_or_default();
        Ok(Due { old, ..self.due() })
    }

    /// What could not be written waits again.
    pub(super) fn put_back(&mut self, due: Due) {
        for (device, pages) in due.new {
            let pending = self.pending.entry(device).or_default();
            pages.iter().for_each(|(place, page)| pending.entry(*place).or_default().merge(page));
        }
        due.fleet.iter().for_each(|(place, page)| self.fleet.entry(*place).or_default().merge(page));
    }
}

impl Due {
    /// Whom it is about.
    pub(super) fn devices(&self) -> impl Iterator<Item = &DeviceId> {
        self.new.iter().map(|(device, _)| device).chain(&self.old)
    }

    pub(super) fn write(&self, batch: &Batch<'_>, now_ms: u64) -> Result<(), StoreError> {
        for (device, pages) in &self.new {
            pages.iter().try_for_each(|(place, page)| batch.add_trend(device.as_str(), *place, page))?;
        }
        let fleet = batch.fleet();
        self.fleet.iter().try_for_each(|(place, page)| batch.add_trend(&fleet, *place, page))?;
        if !self.fleet.is_empty() {
            batch.fold_trends(&fleet, now_ms / 1000)?;
        }
        self.old.iter().try_for_each(|device| batch.fold_trends(device.as_str(), now_ms / 1000))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trend::Bucket;
    use hedge_proto::Name;

    #[test]
    fn every_device_has_its_turn_and_what_was_not_written_is_not_lost() {
        let mut trends = Trends::default();
        let name = |n: usize| Name::new(&format!("d{n:04}")).expect("valid");
        for n in 0..WRITTEN_MAX + 50 {
            trends.add(name(n), &Stretch::at(1_000_000, Bucket::case(1)));
        }
        let first = trends.due();
        assert_eq!((first.new.len(), trends.pending.len()), (WRITTEN_MAX, 50));
        // The first devices are busy and come again: the others are next all the same.
        trends.put_back(first);
        trends.add(name(0), &Stretch::at(1_000_000, Bucket::case(1)));
        let second = trends.due();
        assert_eq!(second.devices().next(), Some(&name(WRITTEN_MAX)));
        let third = trends.due();
        let cases: u64 = third.new[0]
            .1
            .clone()
            .into_iter()
            .flat_map(|page| crate::trend::series([page], 0, 60))
            .map(|shown| shown.bucket.cases)
            .sum();
        assert_eq!((third.devices().next(), cases), (Some(&name(0)), 2));
    }
}
