//! What the log's records mean: one line per case, in memory.
//!
//! [`Table::apply`] is the only place that gives records a meaning, and it does so whatever their order: a
//! forgotten case stays forgotten, a dead one dead, and the later of two copies counts. The same function serves
//! a commit and a replay. Where the lines are kept in order on disk is up to `index`.

use std::collections::{BTreeMap, HashMap};

use hedge_core::clock::Moment;
use hedge_proto::CaseKey;

use super::case::{Entry, Progress, State};
use super::index;
use super::log::Pointer;
use super::log::record::{Head, Kind, record_bytes};
use super::lowest::Lowest;
use super::order::{Class, OrderKey};

/// One case. 48 bytes with its key, because 100,000 of them must stay small.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Slot {
    pub(crate) sort_key: f64,
    /// Of the case record; nowhere while a replay has only seen what comes after it.
    pub(crate) body: Pointer,
    pub(crate) payload_bytes: u32,
    stored_at_low: u32,
    stored_at_high: u16,
    pub(crate) header_bytes: u16,
    pub(crate) attempts: u8,
    pub(crate) life: u8,
    pub(crate) stage: Stage,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Stage {
    Waiting,
    Sent,
    Received,
    Answered,
    Dead,
}

impl Stage {
    pub(crate) fn from_byte(byte: u8) -> Option<Self> {
        [Self::Waiting, Self::Sent, Self::Received, Self::Answered, Self::Dead].get(usize::from(byte)).copied()
    }
}

/// The second record of an answered or dead case.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Outcome {
    /// Of the verdict, or of the record that says why it is dead.
    pub(crate) at: Pointer,
    pub(crate) payload_bytes: u32,
    /// Of the verdict; for a dead case the number of the life that it does not reach.
    pub(crate) revision: u32,
    pub(crate) delivered: u8,
}

/// A slot and what belongs to it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Line {
    pub(crate) slot: Slot,
    pub(crate) outcome: Option<Outcome>,
}

impl Slot {
    pub(crate) fn empty() -> Self {
        Self {
            sort_key: 0.0,
            body: Pointer::NOWHERE,
            payload_bytes: 0,
            stored_at_low: 0,
            stored_at_high: 0,
            header_bytes: 0,
            attempts: 0,
            life: 0,
            stage: Stage::Waiting,
        }
    }

    /// Milliseconds, 48 bits of them: 8,900 years.
    pub(crate) fn stored_at(&self) -> Moment {
        Moment(u64::from(self.stored_at_high) << 32 | u64::from(self.stored_at_low))
    }

    pub(crate) fn set_stored_at(&mut self, at: Moment) {
        let ms = at.0.min((1 << 48) - 1);
        let [b0, b1, b2, b3, b4, b5, ..] = ms.to_le_bytes();
        self.stored_at_low = u32::from_le_bytes([b0, b1, b2, b3]);
        self.stored_at_high = u16::from_le_bytes([b4, b5]);
    }

    fn place(&mut self, body: Pointer, head: &Head) {
        self.body = body;
        self.sort_key = head.sort_key;
        self.payload_bytes = head.payload_bytes;
        self.header_bytes = head.header_bytes;
        self.set_stored_at(head.moment);
    }
}

impl Line {
    pub(crate) fn class(&self) -> Class {
        match self.slot.stage {
            Stage::Waiting | Stage::Sent | Stage::Received => Class::Open,
            Stage::Answered => Class::Answered,
            Stage::Dead => Class::Dead,
        }
    }

    pub(crate) fn order_key(&self) -> OrderKey {
        match (self.slot.stage, self.outcome) {
            (Stage::Answered, Some(outcome)) => OrderKey::by_age(outcome.at, self.slot.body),
            _ => OrderKey::by_sort_key(self.class(), self.slot.sort_key, self.slot.body),
        }
    }

    pub(crate) fn entry(&self, key: CaseKey) -> Entry {
        let outcome = self.outcome.unwrap_or_default();
        let answered = self.slot.stage == Stage::Answered;
        Entry {
            key,
            sort_key: self.slot.sort_key,
            state: match self.slot.stage {
                Stage::Waiting => State::Waiting,
                Stage::Sent => State::Sent,
                Stage::Received => State::Received,
                Stage::Answered => State::Answered { revision: outcome.revision, delivered: outcome.delivered },
                Stage::Dead => State::Dead,
            },
            payload_bytes: if answered { 0 } else { self.slot.payload_bytes },
            stored_at: self.slot.stored_at(),
            attempts: u32::from(self.slot.attempts),
        }
    }

    /// What the case record still counts for: from `answered` on its payload may go.
    pub(crate) fn body_bytes(&self) -> u64 {
        let payload_bytes = if self.slot.stage == Stage::Answered { 0 } else { self.slot.payload_bytes };
        record_bytes(self.slot.header_bytes, payload_bytes)
    }

    /// What the case counts for in all.
    pub(crate) fn live_bytes(&self) -> u64 {
        self.body_bytes() + self.outcome_bytes()
    }

    fn outcome_bytes(&self) -> u64 {
        self.outcome.map_or(0, |outcome| record_bytes(0, outcome.payload_bytes))
    }

    /// Whether the log needs this segment for the case.
    pub(crate) fn lies_in(&self, segment: u32) -> bool {
        self.slot.body.segment == segment || self.outcome.is_some_and(|outcome| outcome.at.segment == segment)
    }

    fn is_whole(&self) -> bool {
        self.slot.body != Pointer::NOWHERE
    }
}

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
#[derive(Debug)]
pub(crate) struct Changes {
    pub(crate) lines: Vec<Change>,
    pub(crate) position: Pointer,
    pub(crate) clock: Option<Moment>,
}

#[derive(Debug)]
pub(crate) struct Change {
    pub(crate) key: CaseKey,
    /// Where the queue shows the case until now.
    pub(crate) shown: Option<OrderKey>,
    /// What it is to show from now on.
    pub(crate) line: Option<Line>,
}

#[derive(Debug, Default)]
pub(crate) struct Table {
    slots: HashMap<CaseKey, Slot>,
    outcomes: HashMap<CaseKey, Outcome>,
    totals: Totals,
    /// Live bytes of each segment.
    live: BTreeMap<u32, u64>,
    /// Cases that the queue on disk does not show as they are, and the key under which it shows them.
    dirty: HashMap<CaseKey, Option<OrderKey>>,
    /// Everything up to here has been applied.
    position: Pointer,
    clock: Option<Moment>,
    /// The newest segment that holds a record of this time or later.
    clock_segment: u32,
    /// Where dirty cases belong in the order, so that a walk misses none of them.
    young: BTreeMap<OrderKey, CaseKey>,
    /// The queue on disk; none while it cannot be written, and then everything is young.
    pub(crate) queue: Option<sled::Db>,
    /// The outbox is being closed.
    pub(crate) stopping: bool,
    lowest_open: Lowest,
    lowest_dead: Lowest,
}

impl Table {
    pub(crate) fn get(&self, key: CaseKey) -> Option<Line> {
        let slot = *self.slots.get(&key)?;
        let outcome =
            if matches!(slot.stage, Stage::Answered | Stage::Dead) { self.outcomes.get(&key).copied() } else { None };
        Some(Line { slot, outcome })
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

    pub(crate) fn dirty_len(&self) -> usize {
        self.dirty.len()
    }

    /// The oldest case without a verdict. Walks them all.
    pub(crate) fn oldest_open(&self) -> Option<Moment> {
        let open = self.slots.values().filter(|slot| !matches!(slot.stage, Stage::Answered | Stage::Dead));
        open.map(Slot::stored_at).min()
    }

    pub(crate) fn keys(&self) -> impl Iterator<Item = CaseKey> {
        self.slots.keys().copied()
    }

    /// Takes over one line as the queue on disk shows it.
    pub(crate) fn load(&mut self, key: CaseKey, line: Line) -> bool {
        let new = !self.slots.contains_key(&key);
        self.put(key, Some(line));
        new
    }

    /// Changes how far sending has come; nothing for a case that is not open.
    pub(crate) fn mark(&mut self, key: CaseKey, progress: Progress) {
        let Some(mut line) = self.get(key).filter(|line| line.class() == Class::Open) else { return };
        line.slot.stage = match progress {
            Progress::Waiting => Stage::Waiting,
            Progress::Sent => Stage::Sent,
            Progress::Received => Stage::Received,
        };
        self.change(key, Some(line));
    }

    /// Takes in one durable record that lies at `at`.
    pub(crate) fn apply(&mut self, head: &Head, at: Pointer) {
        self.see_clock(head.moment, at.segment);
        let key = head.key;
        let old = self.get(key);
        let mut line = old.unwrap_or(Line { slot: Slot::empty(), outcome: None });
        match head.kind {
            Kind::Clock => return,
            Kind::Forgotten => return self.change(key, None),
            Kind::Case => {
                line.slot.place(at, head);
                line.live_until(head);
            }
            Kind::Attempt | Kind::Requeued => line.live_until(head),
            Kind::Verdict => line.answer(head, at),
            Kind::Delivered => line.deliver(head),
            Kind::Dead => line.die(head, at),
        }
        self.change(key, Some(line));
    }

    /// Drops what a replay has only heard of: cases whose own record is gone.
    pub(crate) fn drop_bodyless(&mut self) {
        let bodyless: Vec<_> =
            self.slots.iter().filter(|(_, slot)| slot.body == Pointer::NOWHERE).map(|(key, _)| *key).collect();
        for key in bodyless {
            self.change(key, None);
        }
    }

    /// What the queue on disk lacks since the last call, and up to where that is everything.
    pub(crate) fn take_changes(&mut self) -> Changes {
        let dirty = std::mem::take(&mut self.dirty);
        let lines = dirty.into_iter().map(|(key, shown)| Change { key, shown, line: self.get(key) }).collect();
        Changes { lines, position: self.position, clock: self.clock }
    }

    /// The queue on disk now shows these changes.
    pub(crate) fn settle(&mut self, changes: &[Change]) {
        for Change { key, line, .. } in changes {
            if let Some(line) = line.filter(|_| !self.dirty.contains_key(key)) {
                self.young.remove(&line.order_key());
            }
        }
    }

    /// Goes on without a queue on disk, or makes it anew from here.
    pub(crate) fn renew_queue(&mut self, queue: Option<sled::Db>) {
        let keys: Vec<_> = self.slots.keys().copied().collect();
        self.dirty = if queue.is_some() { keys.iter().map(|key| (*key, None)).collect() } else { HashMap::new() };
        self.young = keys.into_iter().filter_map(|key| Some((self.get(key)?.order_key(), key))).collect();
        self.queue = queue;
    }

    /// Up to `n` cases of a class, in order, that satisfy `wanted`.
    pub(crate) fn walk(&self, class: Class, n: usize, wanted: impl Fn(&Entry) -> bool) -> Vec<Entry> {
        let (from, to) = OrderKey::range(class);
        let young = self.young.range(from..to).map(|(order, key)| (*order, *key));
        let shown = self.queue.iter().flat_map(|queue| index::keys(queue, from, to));
        let places = merged(young, shown, |a, b| a < b);
        let entries = places.filter_map(|(order, key)| Some(self.at(order, key)?.entry(key)));
        entries.filter(wanted).take(n).collect()
    }

    /// Takes out of turn the case of a class with the lowest sort key that is `wanted`. It is not offered again
    /// before it has changed or [`Self::note_lowest`] brings it back.
    pub(crate) fn pop_lowest(&mut self, class: Class, wanted: impl Fn(&CaseKey) -> bool) -> Option<(CaseKey, Line)> {
        let mut looked_up = false;
        loop {
            while let Some((order, key)) = self.lowest(class)?.pop() {
                if let Some(line) = self.at(order, key).filter(|_| wanted(&key)) {
                    return Some((key, line));
                }
            }
            if looked_up {
                return None;
            }
            looked_up = true;
            let (from, to) = OrderKey::range(class);
            let young = self.young.range(from..to).rev().map(|(order, key)| (*order, *key));
            let shown = self.queue.iter().flat_map(|queue| index::keys(queue, from, to).rev());
            let places = merged(young, shown, |a, b| a > b);
            let mut lowest = Lowest::default();
            lowest.fill(places.filter(|(order, key)| wanted(key) && self.at(*order, *key).is_some()), from);
            *self.lowest(class)? = lowest;
        }
    }

    /// Offers a case to [`Self::pop_lowest`] again.
    pub(crate) fn note_lowest(&mut self, key: CaseKey) {
        let Some(line) = self.get(key) else { return };
        if let Some(lowest) = self.lowest(line.class()) {
            lowest.note(line.order_key(), key);
        }
    }

    /// All cases are offered to [`Self::pop_lowest`] again.
    pub(crate) fn forget_lowest(&mut self) {
        self.lowest_open.reset();
        self.lowest_dead.reset();
    }

    fn lowest(&mut self, class: Class) -> Option<&mut Lowest> {
        match class {
            Class::Open => Some(&mut self.lowest_open),
            Class::Dead => Some(&mut self.lowest_dead),
            Class::Answered => None,
        }
    }

    /// The case at this place of the order. The queue lags behind the table: what it shows elsewhere comes, or came,
    /// at its right place.
    fn at(&self, order: OrderKey, key: CaseKey) -> Option<Line> {
        self.get(key).filter(|line| line.order_key() == order)
    }

    /// Up to `n` cases that were stored before `too_early`. Walks them all.
    pub(crate) fn stored_before(&self, too_early: Moment, n: usize) -> Vec<Entry> {
        let old = self.slots.iter().filter(|(_, slot)| slot.stored_at() < too_early);
        old.filter_map(|(key, _)| Some(self.get(*key)?.entry(*key))).take(n).collect()
    }

    fn change(&mut self, key: CaseKey, line: Option<Line>) {
        let old = self.get(key);
        if old == line {
            return;
        }
        let shown = old.filter(Line::is_whole).map(|old| old.order_key());
        self.dirty.entry(key).or_insert(shown);
        if let Some(shown) = shown {
            self.young.remove(&shown);
        }
        if let Some(line) = line.filter(Line::is_whole) {
            self.young.insert(line.order_key(), key);
            if let Some(lowest) = self.lowest(line.class()) {
                lowest.note(line.order_key(), key);
            }
        }
        self.put(key, line);
    }

    fn put(&mut self, key: CaseKey, line: Option<Line>) {
        if let Some(old) = self.get(key) {
            self.account(&old, false);
        }
        let Some(line) = line else {
            self.slots.remove(&key);
            self.outcomes.remove(&key);
            self.shrink();
            return;
        };
        self.account(&line, true);
        self.slots.insert(key, line.slot);
        match line.outcome {
            Some(outcome) => drop(self.outcomes.insert(key, outcome)),
            None => drop(self.outcomes.remove(&key)),
        }
    }

    /// Gives memory back after a drain.
    fn shrink(&mut self) {
        if self.slots.capacity() > 1024 && self.slots.len() < self.slots.capacity() / 8 {
            self.slots.shrink_to(self.slots.len() * 2);
        }
    }

    fn account(&mut self, line: &Line, add: bool) {
        if !line.is_whole() {
            return;
        }
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

impl Line {
    fn answer(&mut self, head: &Head, at: Pointer) {
        let known = self.outcome.filter(|_| self.slot.stage == Stage::Answered);
        let stale = known.is_some_and(|known| known.revision > head.count);
        if stale || self.slot.stage == Stage::Dead {
            return;
        }
        let same = known.filter(|known| known.revision == head.count);
        let delivered = head.tag | same.map_or(0, |same| same.delivered);
        self.slot.stage = Stage::Answered;
        self.outcome = Some(Outcome { at, payload_bytes: head.payload_bytes, revision: head.count, delivered });
    }

    fn deliver(&mut self, head: &Head) {
        let answered = self.slot.stage == Stage::Answered;
        if let Some(outcome) = self.outcome.as_mut().filter(|outcome| answered && outcome.revision == head.count) {
            outcome.delivered |= 1u8.checked_shl(u32::from(head.tag)).unwrap_or(0);
        }
    }

    fn die(&mut self, head: &Head, at: Pointer) {
        if head.life > self.slot.life {
            self.slot.stage = Stage::Dead;
            let death = u32::from(head.life);
            self.outcome = Some(Outcome { at, payload_bytes: head.payload_bytes, revision: death, delivered: 0 });
        }
    }

    /// Takes over a later life, or more failed tries of this one; a later life ends being dead.
    fn live_until(&mut self, head: &Head) {
        let attempts = u8::try_from(head.count).unwrap_or(u8::MAX);
        (self.slot.life, self.slot.attempts) = (self.slot.life, self.slot.attempts).max((head.life, attempts));
        let death = self.outcome.filter(|_| self.slot.stage == Stage::Dead).map(|outcome| outcome.revision);
        if death.is_some_and(|death| death <= u32::from(self.slot.life)) {
            self.slot.stage = Stage::Waiting;
            self.outcome = None;
        }
    }
}

/// Both walks as one, in their order; what stands at the same place of both comes once.
fn merged<T: Ord + Copy, K>(
    young: impl Iterator<Item = (T, K)>,
    shown: impl Iterator<Item = (T, K)>,
    before: impl Fn(T, T) -> bool,
) -> impl Iterator<Item = (T, K)> {
    let (mut young, mut shown) = (young.peekable(), shown.peekable());
    std::iter::from_fn(move || match (young.peek(), shown.peek()) {
        (Some(a), Some(b)) if a.0 == b.0 => {
            shown.next();
            young.next()
        }
        (Some(a), Some(b)) if before(a.0, b.0) => young.next(),
        (_, Some(_)) => shown.next(),
        (_, None) => young.next(),
    })
}
