//! Whatever is done to an outbox, it says what a map would say, also after being opened again.

use std::collections::{BTreeMap, BTreeSet};

use hedge_proto::CaseKey;
use proptest::prelude::*;

use super::super::{Applied, Entry, Outbox, Progress, State, StoredCase};
use super::{Bench, case, key};

#[derive(Debug, Clone)]
pub(super) enum Step {
    Store { case: u64, sort_key: i8, bytes: usize },
    Mark { case: u64, progress: u8 },
    Attempt { case: u64 },
    Answer { case: u64, revision: u32 },
    Deliver { case: u64, revision: u32, sink: u8 },
    Forget { case: u64 },
    Bury { case: u64 },
    Requeue { case: u64 },
    Restart(Restart),
}

#[derive(Debug, Clone, Copy)]
pub(super) enum Restart {
    Clean,
    /// The queue on disk is gone.
    WithoutQueue,
    /// Everything that was not synced is lost, and the queue is as old as its last checkpoint.
    PowerCut,
}

/// What a case must look like.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Expected {
    pub(super) sort_key: f64,
    pub(super) payload_bytes: usize,
    pub(super) state: State,
    pub(super) attempts: u32,
    order: u32,
}

fn step() -> impl Strategy<Value = Step> {
    let case = 0..12u64;
    let restart = prop_oneof![Just(Restart::Clean), Just(Restart::WithoutQueue), Just(Restart::PowerCut)];
    prop_oneof![
        6 => (case.clone(), any::<i8>(), 0..900usize)
            .prop_map(|(case, sort_key, bytes)| Step::Store { case, sort_key, bytes }),
        2 => (case.clone(), 0..3u8).prop_map(|(case, progress)| Step::Mark { case, progress }),
        2 => case.clone().prop_map(|case| Step::Attempt { case }),
        3 => (case.clone(), 1..4u32).prop_map(|(case, revision)| Step::Answer { case, revision }),
        3 => (case.clone(), 1..4u32, 0..3u8)
            .prop_map(|(case, revision, sink)| Step::Deliver { case, revision, sink }),
        3 => case.clone().prop_map(|case| Step::Forget { case }),
        2 => case.clone().prop_map(|case| Step::Bury { case }),
        2 => case.prop_map(|case| Step::Requeue { case }),
        1 => restart.prop_map(Step::Restart),
    ]
}

#[derive(Default, Clone)]
pub(super) struct Model {
    pub(super) cases: BTreeMap<u64, Expected>,
    /// Ids are never used again, so these are not stored again.
    forgotten: BTreeSet<u64>,
    answers: u32,
}

impl Model {
    pub(super) fn take(&mut self, step: &Step) {
        match *step {
            Step::Store { case, sort_key, bytes } => {
                let new = Expected {
                    sort_key: f64::from(sort_key),
                    payload_bytes: bytes,
                    state: State::Waiting,
                    attempts: 0,
                    order: 0,
                };
                self.cases.entry(case).or_insert(new);
            }
            Step::Mark { case, progress } => self.open(case, |open| {
                open.state = [State::Waiting, State::Sent, State::Received][usize::from(progress)];
            }),
            Step::Attempt { case } => self.change(case, |case| case.attempts += 1),
            Step::Answer { case, revision } => self.answer(case, revision),
            Step::Deliver { case, revision, sink } => self.change(case, |case| match &mut case.state {
                State::Answered { revision: known, delivered } if *known == revision => *delivered |= 1 << sink,
                _ => {}
            }),
            Step::Forget { case } => {
                self.cases.remove(&case);
                self.forgotten.insert(case);
            }
            Step::Bury { case } => self.open(case, |case| case.state = State::Dead),
            Step::Requeue { case } => self.change(case, |case| {
                if case.state == State::Dead {
                    case.state = State::Waiting;
                    case.attempts = 0;
                }
            }),
            Step::Restart(_) => {}
        }
    }

    fn answer(&mut self, case: u64, revision: u32) {
        self.answers += 1;
        let order = self.answers;
        self.change(case, |case| {
            let better = match case.state {
                State::Answered { revision: known, .. } => revision > known,
                _ => true,
            };
            if better {
                case.state = State::Answered { revision, delivered: 0 };
                case.order = order;
            }
        });
    }

    fn change(&mut self, case: u64, change: impl FnOnce(&mut Expected)) {
        if let Some(case) = self.cases.get_mut(&case) {
            change(case);
        }
    }

    fn open(&mut self, case: u64, change: impl FnOnce(&mut Expected)) {
        self.change(case, |case| {
            if case.state.is_open() {
                change(case);
            }
        });
    }
}

pub(super) async fn take(outbox: &Outbox, step: &Step) {
    let late_or_gone = |applied: Applied| assert!(matches!(applied, Applied::New | Applied::Late | Applied::Unknown));
    match *step {
        Step::Store { case: sequence, sort_key, bytes } => {
            outbox.store(case(sequence, f64::from(sort_key), bytes)).await.unwrap();
        }
        Step::Mark { case, progress } => {
            let progress = [Progress::Waiting, Progress::Sent, Progress::Received][usize::from(progress)];
            outbox.mark(vec![(key(case), progress)]).await;
        }
        Step::Attempt { case } => drop(outbox.attempt(key(case)).await),
        Step::Answer { case, revision } => {
            let verdict = format!("verdict {revision}").into_bytes();
            late_or_gone(outbox.answered(key(case), revision, verdict).await.unwrap());
        }
        Step::Deliver { case, revision, sink } => drop(outbox.delivered(key(case), revision, sink).await),
        Step::Forget { case } => outbox.forget(key(case)).await.unwrap(),
        Step::Bury { case } => drop(outbox.dead(key(case), "it failed").await),
        Step::Requeue { case } => drop(outbox.requeue(key(case)).await),
        Step::Restart(_) => {}
    }
}

fn agree(outbox: &Outbox, model: &mut Model, restarted: bool) {
    for sequence in 0..12 {
        let entry = outbox.lookup(key(sequence));
        assert_eq!(entry.is_some(), model.cases.contains_key(&sequence), "case {sequence}");
        let (Some(entry), Some(expected)) = (entry, model.cases.get_mut(&sequence)) else { continue };
        if restarted && expected.state.is_open() {
            assert!(entry.state.is_open(), "case {sequence}: {:?}", entry.state);
            expected.state = entry.state; // how far sending has come may be forgotten
        }
        assert_eq!((entry.state, entry.attempts), (expected.state, expected.attempts), "case {sequence}");
        assert_eq!(entry.sort_key.to_bits(), expected.sort_key.to_bits());
    }
    let walked = |entries: Vec<Entry>| -> Vec<CaseKey> { entries.iter().map(|entry| entry.key).collect() };
    let open = outbox.fetch(100, u32::MAX);
    assert!(open.is_sorted_by(|a, b| a.sort_key >= b.sort_key));
    let dead = walked(outbox.dead_letters(100));
    let undelivered = walked(outbox.undelivered(1, 100));
    let mut open = walked(open);
    open.sort();
    assert_eq!(open, model.keys(|state| state.is_open()));
    assert_eq!(dead.len(), model.keys(|state| state == State::Dead).len());
    assert_eq!(
        sorted(undelivered),
        model.keys(|state| matches!(state, State::Answered { delivered, .. } if delivered & 2 == 0))
    );
    let figures = outbox.figures();
    assert_eq!((figures.waiting, figures.dead), (open.len() as u64, dead.len() as u64));
    assert_eq!(figures.damaged_records, 0);
}

fn sorted(mut keys: Vec<CaseKey>) -> Vec<CaseKey> {
    keys.sort();
    keys
}

impl Model {
    fn keys(&self, wanted: impl Fn(State) -> bool) -> Vec<CaseKey> {
        self.cases.iter().filter(|(_, case)| wanted(case.state)).map(|(sequence, _)| key(*sequence)).collect()
    }
}

fn reads_agree(outbox: &Outbox, model: &Model) {
    for (sequence, expected) in &model.cases {
        let StoredCase { header, payload, attempts, verdict, dead } = outbox.read(key(*sequence)).unwrap().unwrap();
        let stored = case(*sequence, 0.0, expected.payload_bytes);
        assert_eq!((header, attempts), (stored.header, expected.attempts));
        match expected.state {
            State::Answered { revision, .. } => {
                assert_eq!(verdict.unwrap(), format!("verdict {revision}").into_bytes());
                assert!(payload.is_empty());
            }
            _ => assert_eq!((payload, verdict), (stored.payload, None)),
        }
        assert_eq!(dead.as_deref(), (expected.state == State::Dead).then_some("it failed"));
    }
}

fn restart(bench: &mut Bench, outbox: Outbox, how: Restart) -> Outbox {
    match how {
        Restart::Clean => bench.wait(outbox.close()),
        Restart::WithoutQueue => {
            drop(outbox);
            std::fs::remove_dir_all(bench.queue()).unwrap();
        }
        Restart::PowerCut => {
            let kept = bench.folder.path().join("kept");
            copy_folder(&bench.queue(), &kept);
            bench.disk = bench.disk.after_power_cut(|| true).into();
            drop(outbox);
            std::fs::remove_dir_all(bench.queue()).unwrap();
            std::fs::rename(&kept, bench.queue()).unwrap();
        }
    }
    let (outbox, report) = bench.open();
    assert_eq!((report.damaged_records, report.damaged_segments), (0, 0));
    outbox
}

fn copy_folder(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        if entry.file_type().unwrap().is_dir() {
            copy_folder(&entry.path(), &to.join(entry.file_name()));
        } else {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, max_shrink_iters: 200, ..ProptestConfig::default() })]

    #[test]
    fn it_says_what_a_map_would_say(steps in prop::collection::vec(step(), 1..60)) {
        let mut bench = Bench::new();
        let (mut outbox, _) = bench.open();
        let mut model = Model::default();
        for step in &steps {
            if matches!(step, Step::Store { case, .. } if model.forgotten.contains(case)) {
                continue;
            }
            bench.wait(take(&outbox, step));
            model.take(step);
            let restarted = matches!(step, Step::Restart(_));
            if let Step::Restart(how) = step {
                outbox = restart(&mut bench, outbox, *how);
            }
            agree(&outbox, &mut model, restarted);
        }
        reads_agree(&outbox, &model);
        let outbox = restart(&mut bench, outbox, Restart::WithoutQueue);
        agree(&outbox, &mut model, true);
        reads_agree(&outbox, &model);
    }
}
