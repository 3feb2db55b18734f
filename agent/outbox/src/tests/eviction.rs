//! At a cap the least useful cases give way, counted; what has waited too long goes.

use std::collections::BTreeMap;
use std::fs;

use hedge_core::clock::Moment;
use hedge_core::outbox::{EVICTIONS_MAX, WhenFull};
use hedge_proto::Refusal;
use proptest::prelude::*;

use super::super::{Drops, Limits, Outbox};
use super::{Bench, LIMITS, case, key};

const EVICTING: Limits = Limits { when_full: WhenFull::EvictLowest, ..LIMITS };

fn evicted(outbox: &Outbox) -> u64 {
    outbox.dropped().evicted
}

#[test]
fn at_the_cap_the_lowest_gives_way_and_is_counted() {
    let bench = Bench::new();
    let (outbox, _) = bench.open_with(Limits { cases_max: 3, ..EVICTING });
    for (sequence, sort_key) in [(1, 5.0), (2, 1.0), (3, 3.0)] {
        bench.wait(outbox.store(case(sequence, sort_key, 100))).unwrap();
    }
    assert_eq!(bench.wait(outbox.store(case(4, 0.5, 100))), Err(Refusal::Full));
    assert_eq!(bench.wait(outbox.store(case(5, 1.0, 100))), Err(Refusal::Full), "of two alike the stored one stays");
    assert_eq!(evicted(&outbox), 0);
    bench.wait(outbox.store(case(6, 2.0, 100))).unwrap();
    assert_eq!((outbox.lookup(key(2)), evicted(&outbox)), (None, 1));
    bench.wait(outbox.store(case(7, 9.0, 100))).unwrap();
    assert_eq!((outbox.lookup(key(6)), evicted(&outbox)), (None, 2));
    drop(outbox);
    fs::remove_dir_all(bench.queue()).unwrap();
    let (outbox, _) = bench.open_with(EVICTING);
    let left: Vec<_> = outbox.fetch(10, u32::MAX).iter().map(|entry| entry.key).collect();
    assert_eq!(left, [key(7), key(1), key(3)]);
}

#[test]
fn refusing_keeps_what_is_stored() {
    let bench = Bench::new();
    let (outbox, _) = bench.open_with(Limits { cases_max: 1, when_full: WhenFull::RefuseNew, ..LIMITS });
    bench.wait(outbox.store(case(1, 1.0, 100))).unwrap();
    assert_eq!(bench.wait(outbox.store(case(2, 9.0, 100))), Err(Refusal::Full));
    assert!(outbox.lookup(key(1)).is_some());
    assert_eq!(outbox.dropped(), Drops::default());
}

#[test]
fn dead_letters_give_way_before_any_open_case_and_answered_ones_never() {
    let bench = Bench::new();
    let (outbox, _) = bench.open_with(Limits { cases_max: 3, ..EVICTING });
    for (sequence, sort_key) in [(1, 9.0), (2, 1.0), (3, 0.0)] {
        bench.wait(outbox.store(case(sequence, sort_key, 100))).unwrap();
    }
    bench.wait(outbox.dead(key(1), "unreadable")).unwrap();
    bench.wait(outbox.answered(key(3), 1, b"cat".to_vec())).unwrap();
    bench.wait(outbox.store(case(4, 0.5, 100))).unwrap(); // worth less than all others, and the dead letter goes
    assert_eq!((outbox.lookup(key(1)), evicted(&outbox)), (None, 1));
    bench.wait(outbox.store(case(5, 7.0, 100))).unwrap();
    bench.wait(outbox.store(case(6, 8.0, 100))).unwrap();
    assert!(outbox.lookup(key(2)).is_none() && outbox.lookup(key(4)).is_none());
    assert!(outbox.read(key(3)).unwrap().unwrap().verdict.is_some());
}

#[test]
fn a_large_case_does_not_cost_more_than_a_bounded_number_of_small_ones() {
    let bench = Bench::new();
    let (outbox, _) = bench.open_with(Limits { bytes_max: 40_000, ..EVICTING });
    let mut stored = 0;
    while outbox.figures().live_bytes < 39_000 {
        bench.wait(outbox.store(case(stored, 1.0, 100))).unwrap();
        stored += 1;
    }
    assert!(stored > 2 * EVICTIONS_MAX as u64);
    assert_eq!(bench.wait(outbox.store(case(1000, 2.0, 30_000))), Err(Refusal::Full));
    assert_eq!((outbox.figures().waiting, evicted(&outbox)), (stored, 0), "refused, so nothing has given way");
    bench.wait(outbox.store(case(1001, 2.0, 5_000))).unwrap();
    let gone = stored + 1 - outbox.figures().waiting;
    assert!(gone == evicted(&outbox) && (20..=40).contains(&gone), "{gone}");
    assert!(outbox.figures().live_bytes <= 40_000);
}

#[test]
fn what_a_full_disk_keeps_from_being_written_evicts_nothing() {
    let bench = Bench::new();
    let (outbox, _) = bench.open_with(Limits { cases_max: 2, ..EVICTING });
    for sequence in 0..2 {
        bench.wait(outbox.store(case(sequence, 1.0, 100))).unwrap();
    }
    bench.disk.fail_syncs(2);
    assert_eq!(bench.wait(outbox.store(case(2, 5.0, 100))), Err(Refusal::Disk));
    assert_eq!((outbox.figures().waiting, evicted(&outbox)), (2, 0));
    bench.wait(outbox.store(case(3, 5.0, 100))).unwrap();
    assert_eq!((outbox.figures().waiting, evicted(&outbox)), (2, 1));
}

#[test]
fn what_waits_too_long_goes_by_powered_time_and_is_counted() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 0..600 {
        bench.wait(outbox.store(case(sequence, 1.0, 20))).unwrap(); // stored at 1000 + sequence
    }
    bench.wait(outbox.dead(key(0), "unreadable")).unwrap();
    bench.wait(outbox.answered(key(1), 1, b"cat".to_vec())).unwrap();
    assert_eq!(bench.wait(outbox.expire(Moment(1000))), Ok(0));
    assert_eq!(bench.wait(outbox.expire(Moment(1550))), Ok(550));
    assert_eq!(outbox.dropped(), Drops { evicted: 0, expired: 549, undelivered: 1 });
    assert_eq!(outbox.lookup(key(549)), None);
    assert_eq!(outbox.figures().waiting, 50);
    drop(outbox);
    let (outbox, _) = bench.open();
    assert_eq!(outbox.figures().waiting, 50);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, max_shrink_iters: 200, ..ProptestConfig::default() })]

    /// Thousands of cases through a small outbox, marks and copies and restarts between them: what stays is what
    /// a sorted list would keep.
    #[test]
    fn what_stays_is_what_a_sorted_list_keeps(
        arrivals in prop::collection::vec((any::<i16>(), 0..100u8), 1..400),
        cases_max in 1..40u64,
    ) {
        let bench = Bench::new();
        let limits = Limits { cases_max, ..EVICTING };
        let (mut outbox, _) = bench.open_with(limits);
        let mut kept = BTreeMap::new();
        let mut dropped = 0;
        for (sequence, (sort_key, chance)) in (0..).zip(arrivals) {
            let sort_key = i64::from(sort_key) * 1000 + i64::try_from(sequence).unwrap(); // no two alike
            #[expect(clippy::cast_precision_loss, reason = "it is far below 2^52")]
            let stored = bench.wait(outbox.store(case(sequence, sort_key as f64, 60)));
            let full = kept.len() as u64 == cases_max;
            if full && kept.first_key_value().is_some_and(|(lowest, _)| *lowest > sort_key) {
                prop_assert_eq!(stored, Err(Refusal::Full));
            } else {
                prop_assert_eq!(stored, Ok(()));
                if full {
                    kept.pop_first();
                    dropped += 1;
                }
                kept.insert(sort_key, sequence);
            }
            if chance < 5 {
                let first = kept.pop_last().unwrap().1;
                bench.wait(outbox.forget(key(first))).unwrap();
            } else if chance < 10 {
                let lowest = *kept.first_key_value().unwrap().1;
                bench.wait(outbox.attempt(key(lowest))).unwrap();
            } else if chance < 11 {
                prop_assert_eq!(evicted(&outbox), std::mem::take(&mut dropped));
                bench.wait(outbox.close());
                outbox = bench.open_with(limits).0;
            }
        }
        let left: Vec<_> = outbox.fetch(1000, u32::MAX).iter().map(|entry| entry.key).collect();
        let expected: Vec<_> = kept.values().rev().map(|sequence| key(*sequence)).collect();
        prop_assert_eq!(left, expected);
        prop_assert_eq!(evicted(&outbox), dropped);
    }
}
