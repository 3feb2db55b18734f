//! Ten thousand power cuts: after any operation of the disk, with any part of what was not synced left.
//!
//! A life is a disk that loses its power again and again and goes on from what is left each time. While it works, an
//! image is taken after every single operation of the disk, and each image is read back: whatever had been said to
//! be done by then must be there, and what was under way is done or not, but not by half.

use std::collections::BTreeSet;
use std::fs;

use super::super::case::OpenReport;
use super::super::log::Pointer;
use super::super::table::Table;
use super::super::{Entry, State, StoredCase, recall, recover};
use super::model::{Expected, Model, Step, take};
use super::paper::{PaperDisk, Shot, dice};
use super::{Bench, case, key};

const LIVES: u64 = 25;
const CUTS_PER_LIFE: u64 = 4;
/// Between two cuts, each of a few steps at once.
const BATCHES: usize = 28;

/// What the disk was asked for and what was said to be done, in the order in which it happened.
enum Event {
    Asked(Vec<Step>),
    Done,
}

#[test]
fn ten_thousand_power_cuts_lose_nothing_that_was_said_to_be_done() {
    let mut images = 0;
    for life in 0..LIVES {
        let mut roll = dice(life);
        let mut bench = Bench::new();
        let mut model = Model::default();
        let mut next = 0;
        for cut in 0..CUTS_PER_LIFE {
            let (outbox, _) = bench.open();
            bench.disk.film(roll());
            let mut events = Vec::new();
            let mut working = model.clone();
            for _ in 0..BATCHES {
                let steps = batch(&working, &mut next, &mut roll);
                events.push(Event::Asked(steps.clone()));
                bench.disk.mark();
                bench.wait(all(steps.iter().map(|step| take(&outbox, step))));
                steps.iter().for_each(|step| working.take(step));
                events.push(Event::Done);
                bench.disk.mark();
            }
            let shots = bench.disk.shots();
            drop(outbox);
            images += shots.len();
            let picked = usize::try_from(roll()).unwrap() % shots.len();
            for (number, shot) in shots.iter().enumerate() {
                let left = check(&model, &events, shot, &format!("life {life}, cut {cut}, image {number}"));
                if number == picked {
                    bench.disk = PaperDisk::of(&shot.1).into();
                    working = left;
                }
            }
            model = working;
            fs::remove_dir_all(bench.queue()).unwrap();
        }
    }
    assert!(images >= 10_000, "{images} images");
}

/// A few steps on different cases.
fn batch(model: &Model, next: &mut u64, roll: &mut impl FnMut() -> u64) -> Vec<Step> {
    let mut touched = BTreeSet::new();
    let mut steps = Vec::new();
    for _ in 0..=roll() % 4 {
        let known = model.cases.keys().nth(usize::try_from(roll()).unwrap() % model.cases.len().max(1)).copied();
        let step = match (known, roll() % 12) {
            (Some(case), 0) => Step::Attempt { case },
            (Some(case), 1..4) => Step::Answer { case, revision: u32::try_from(roll() % 3).unwrap() + 1 },
            (Some(case), 4) => Step::Deliver { case, revision: 1, sink: 2 },
            (Some(case), 5) => Step::Bury { case },
            (Some(case), 6) => Step::Requeue { case },
            (Some(case), 7) => Step::Forget { case },
            (Some(case), 8) if model.cases.len() > 12 => Step::Forget { case },
            _ => {
                *next += 1;
                let bytes = usize::try_from(roll() % 1200).unwrap();
                Step::Store { case: *next, sort_key: 1, bytes }
            }
        };
        if touched.insert(case_of(&step)) {
            steps.push(step);
        }
    }
    steps
}

fn case_of(step: &Step) -> u64 {
    match *step {
        Step::Store { case, .. }
        | Step::Mark { case, .. }
        | Step::Attempt { case }
        | Step::Answer { case, .. }
        | Step::Deliver { case, .. }
        | Step::Forget { case }
        | Step::Bury { case }
        | Step::Requeue { case } => case,
        Step::Restart(_) => 0,
    }
}

/// All of them under way at once.
async fn all(work: impl Iterator<Item = impl Future<Output = ()>>) {
    let mut work: Vec<_> = work.map(Box::pin).collect();
    std::future::poll_fn(|context| {
        work.retain_mut(|one| one.as_mut().poll(context).is_pending());
        if work.is_empty() { std::task::Poll::Ready(()) } else { std::task::Poll::Pending }
    })
    .await;
}

/// Reads an image back and compares it with what had been said by then. Returns what it holds.
fn check(before: &Model, events: &[Event], (marks, contents): &Shot, place: &str) -> Model {
    let mut certain = before.clone();
    let mut under_way = Vec::new();
    for event in &events[..*marks] {
        match event {
            Event::Asked(steps) => under_way = steps.clone(),
            Event::Done => under_way.drain(..).for_each(|step| certain.take(&step)),
        }
    }
    let mut perhaps = certain.clone();
    under_way.iter().for_each(|step| perhaps.take(step));

    let held = read_back(contents, place);
    let mut left = certain.clone();
    let mut sequences: BTreeSet<u64> = certain.cases.keys().chain(perhaps.cases.keys()).copied().collect();
    sequences.extend(held.table.keys().map(|key| key.sequence));
    for sequence in sequences {
        let found = held.case(sequence);
        let expected = certain.cases.get(&sequence);
        if agrees(sequence, found.as_ref(), expected) {
            continue;
        }
        let expected = perhaps.cases.get(&sequence);
        assert!(
            agrees(sequence, found.as_ref(), expected),
            "{place}, case {sequence}: {found:?}, not {:?} nor {expected:?}",
            certain.cases.get(&sequence)
        );
        match expected {
            Some(expected) => drop(left.cases.insert(sequence, expected.clone())),
            None => drop(left.cases.remove(&sequence)),
        }
    }
    left
}

struct Held {
    disk: PaperDisk,
    table: Table,
}

fn read_back(contents: &std::collections::BTreeMap<u32, Vec<u8>>, place: &str) -> Held {
    let disk = PaperDisk::of(contents);
    let (mut table, mut report) = (Table::default(), OpenReport::default());
    let mut segments = recover::survey(&disk, &mut report).unwrap();
    recover::replay(&disk, &mut segments, Pointer::NOWHERE, &mut table, &mut report).unwrap();
    // A hole in what was being written, with whole records behind it, is counted as damage: it may have been promised.
    assert_eq!(report.damaged_segments, 0, "{place}");
    Held { disk, table }
}

impl Held {
    fn case(&self, sequence: u64) -> Option<(Entry, StoredCase)> {
        let line = self.table.get(key(sequence))?;
        Some((line.entry(key(sequence)), recall::read(&self.disk, key(sequence), &line).unwrap()))
    }
}

fn agrees(sequence: u64, found: Option<&(Entry, StoredCase)>, expected: Option<&Expected>) -> bool {
    let (Some((entry, stored)), Some(expected)) = (found, expected) else {
        return found.is_none() && expected.is_none();
    };
    let whole = case(sequence, 0.0, expected.payload_bytes);
    let payload = match expected.state {
        State::Answered { revision, .. } => {
            stored.verdict.as_deref() == Some(format!("verdict {revision}").as_bytes()) && stored.payload.is_empty()
        }
        _ => stored.payload == whole.payload && stored.verdict.is_none(),
    };
    let state = entry.state == expected.state || (entry.state.is_open() && expected.state.is_open());
    state && payload && stored.header == whole.header && entry.attempts == expected.attempts
}
