//! What the log's records mean: one line per case, in memory, in blocks and in order.
//!
//! [`Table::apply`] is the only place that gives records a meaning, and it does so however they were copied: a
//! forgotten case stays forgotten, a dead one dead until a verdict or a later life comes, and the later of two copies
//! counts. The same function serves
//! a commit and a replay. How the blocks are kept on disk is up to `index`.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use hedge_core::clock::Moment;
use hedge_proto::CaseKey;

use super::block::{self, Block, BlockId};
use super::case::{Entry, Progress};
use super::line::{Line, Outcome, Slot, Stage};
use super::log::Pointer;
use super::log::record::{Head, Kind};
use super::order::{Class, Order};

/// What counts and bytes there are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Totals {
    pub(crate) open: u64,
    pub(crate) open_bytes: u64,
    pub(crate) answered: u64,
    pub(crate) dead: u64,
    pub(crate) live_bytes: u64,
}

impl Totals {
    pub(crate) fn cases(&self) -> u64 {
        self.open + self.answered + self.dead
    }
}

/// What the queue on disk has to be told.
#[derive(Debug, Default)]
pub(crate) struct Changes {
    pub(crate) blocks: BTreeSet<BlockId>,
    /// How often a case in one of them has changed.
    pub(crate) count: usize,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    blocks: BTreeMap<BlockId, Block>,
    outcomes: HashMap<CaseKey, Outcome>,
    order: Order,
    totals: Totals,
    /// Live bytes of each segment.
    live: BTreeMap<u32, u64>,
    /// What the queue on disk does not show as it is.
    changes: Changes,
    /// Everything up to here has been applied.
    position: Pointer,
    clock: Option<Moment>,
    /// The newest segment that holds a record of this time or later.
    clock_segment: u32,
    /// The outbox is being closed.
    pub(crate) stopping: bool,
}

impl Table {
    pub(crate) fn get(&self, key: CaseKey) -> Option<Line> {
        let slot = *self.blocks.get(&BlockId::of(key))?.get(key)?;
        Some(Line { slot, outcome: self.outcome(key, slot.stage) })
    }

    fn outcome(&self, key: CaseKey, stage: Stage) -> Option<Outcome> {
        if stage.has_outcome() { self.outcomes.get(&key).copied() } else { None }
    }

    pub(crate) fn totals(&self) -> Totals {
        self.totals
    }

    pub(crate) fn live_bytes_of(&self, segment: u32) -> u64 {
        self.live.get(&segment).copied().unwrap_or(0)
    }

    pub(crate) fn set_position(&mut self, position: Pointer) {
        self.position = position;
    }

    pub(crate) fn position(&self) -> Pointer {
        self.position
    }

    pub(crate) fn clock(&self) -> Option<Moment> {
        self.clock
    }

    /// Which segment must not go before the time is written again.
    pub(crate) fn clock_segment(&self) -> u32 {
        self.clock_segment
    }

    pub(crate) fn see_clock(&mut self, moment: Moment, segment: u32) {
        if Some(moment) >= self.clock {
            self.clock = Some(moment);
            self.clock_segment = segment.max(self.clock_segment);
        }
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = CaseKey> {
        self.slots().map(|(key, _)| key)
    }

    fn slots(&self) -> impl Iterator<Item = (CaseKey, &Slot)> {
        self.blocks.iter().flat_map(|(id, block)| block.slots().iter().map(|slot| (id.key(slot.index), slot)))
    }

    /// The oldest case without a verdict. Walks them all.
    pub(crate) fn oldest_open(&self) -> Option<Moment> {
        self.slots().filter(|(_, slot)| !slot.stage.has_outcome()).map(|(_, slot)| slot.stored_at()).min()
    }

    /// Up to `n` cases that were stored before `too_early`. Walks them all.
    pub(crate) fn stored_before(&self, too_early: Moment, n: usize) -> Vec<Entry> {
        let old = self.slots().filter(|(_, slot)| slot.stored_at() < too_early);
        old.filter_map(|(key, _)| Some(self.get(key)?.entry(key))).take(n).collect()
    }

    /// Up to `n` cases of a class, in order, that satisfy `wanted`.
    pub(crate) fn walk(&self, class: Class, n: usize, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let entries = self.order.class(class).filter_map(|key| Some(self.get(key)?.entry(key)));
        entries.filter(wanted).take(n).collect()
    }

    /// The cases of a class, the one that is worth least first.
    pub(crate) fn lowest_first(&self, class: Class) -> impl Iterator<Item = (CaseKey, Line)> {
        self.order.class(class).rev().filter_map(|key| Some((key, self.get(key)?)))
    }

    /// Takes over one line as the queue on disk shows it.
    pub(crate) fn load(&mut self, key: CaseKey, line: Line) -> bool {
        let old = self.get(key);
        self.put(key, old, Some(line));
        old.is_none()
    }

    /// Changes how far sending has come; nothing for a case that is not open.
    pub(crate) fn mark(&mut self, key: CaseKey, progress: Progress) {
        let Some(old) = self.get(key).filter(|line| line.class() == Class::Open) else { return };
        let mut line = old;
        line.slot.stage = match progress {
            Progress::Waiting => Stage::Waiting,
            Progress::Sent => Stage::Sent,
            Progress::Received => Stage::Received,
        };
        self.change(key, Some(old), Some(line));
    }

    /// Takes in one durable record that lies at `at`.
    pub(crate) fn apply(&mut self, head: &Head, at: Pointer) {
        self.see_clock(head.moment, at.segment);
        let key = head.key;
        let old = self.get(key);
        let mut line = old.unwrap_or(Line { slot: Slot::empty(), outcome: None });
        match head.kind {
            Kind::Clock => return,
            Kind::Forgotten => return self.change(key, old, None),
            Kind::Case => {
                line.slot.place(at, head);
                line.live_until(head);
            }
            Kind::Attempt | Kind::Requeued => line.live_until(head),
            Kind::Verdict => line.answer(head, at),
            Kind::Delivered => line.deliver(head),
            Kind::Dead => line.die(head, at),
        }
        self.change(key, old, Some(line));
    }

    /// Drops what a replay has only heard of: cases whose own record is gone.
    pub(crate) fn drop_bodyless(&mut self) {
        let bodyless: Vec<_> =
            self.slots().filter(|(_, slot)| slot.body == Pointer::NOWHERE).map(|(key, _)| key).collect();
        for key in bodyless {
            self.change(key, self.get(key), None);
        }
    }

    pub(crate) fn changes(&self) -> usize {
        self.changes.count
    }

    /// What the queue on disk lacks since the last call.
    pub(crate) fn take_changes(&mut self) -> Changes {
        std::mem::take(&mut self.changes)
    }

    /// The queue on disk is made anew and lacks everything.
    pub(crate) fn change_all(&mut self) {
        self.changes = Changes { blocks: self.blocks.keys().copied().collect(), count: self.blocks.len() };
    }

    /// One block as it lies in the queue on disk; nothing if it has no case.
    pub(crate) fn encode(&self, id: BlockId) -> Option<Vec<u8>> {
        let block = self.blocks.get(&id)?;
        let mut bytes = Vec::new();
        for slot in block.slots() {
            block::encode(slot, self.outcome(id.key(slot.index), slot.stage), &mut bytes);
        }
        Some(bytes)
    }

    /// `old` is what is there.
    fn change(&mut self, key: CaseKey, old: Option<Line>, line: Option<Line>) {
        if old != line {
            self.changes.blocks.insert(BlockId::of(key));
            self.changes.count += 1;
            self.put(key, old, line);
        }
    }

    fn put(&mut self, key: CaseKey, old: Option<Line>, line: Option<Line>) {
        if let Some(old) = old.filter(Line::is_whole) {
            self.account(&old, false);
            self.order.remove(old.class(), old.rank(key));
        }
        if old.is_some_and(|old| old.outcome.is_some()) && line.is_none_or(|line| line.outcome.is_none()) {
            self.forget_outcome(key);
        }
        let id = BlockId::of(key);
        let Some(line) = line else {
            if self.blocks.get_mut(&id).is_some_and(|block| block.remove(key)) {
                self.blocks.remove(&id);
            }
            return;
        };
        if line.is_whole() {
            self.account(&line, true);
            self.order.insert(line.class(), line.rank(key));
        }
        self.blocks.entry(id).or_default().put(key, line.slot);
        if let Some(outcome) = line.outcome {
            self.outcomes.insert(key, outcome);
        }
    }

    /// Gives memory back when many are gone.
    fn forget_outcome(&mut self, key: CaseKey) {
        self.outcomes.remove(&key);
        if self.outcomes.capacity() > 1024 && self.outcomes.len() < self.outcomes.capacity() / 8 {
            self.outcomes.shrink_to(self.outcomes.len() * 2);
        }
    }

    fn account(&mut self, line: &Line, add: bool) {
        let count = |total: &mut u64, amount: u64| {
            *total = if add { *total + amount } else { total.saturating_sub(amount) };
        };
        let body = line.body_bytes();
        let outcome = line.outcome_bytes();
        match line.class() {
            Class::Open => {
                count(&mut self.totals.open, 1);
                count(&mut self.totals.open_bytes, body);
            }
            Class::Answered => count(&mut self.totals.answered, 1),
            Class::Dead => count(&mut self.totals.dead, 1),
        }
        count(&mut self.totals.live_bytes, body + outcome);
        let mut count_in = |segment: u32, amount: u64| {
            let live = self.live.entry(segment).or_default();
            count(live, amount);
            if *live == 0 {
                self.live.remove(&segment);
            }
        };
        count_in(line.slot.body.segment, body);
        if let Some(Outcome { at, .. }) = line.outcome {
            count_in(at.segment, outcome);
        }
    }
}
