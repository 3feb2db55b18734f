//! What ends is told to whoever waits, and what was stored last is known again.

use std::time::Duration;

use hedge_core::clock::Moment;

use super::super::{Outbox, Recent};
use super::{Bench, case, key};

/// Whether somebody who waits for this case hears of its end through `end`.
fn hears(bench: &Bench, outbox: &Outbox, sequence: u64, end: impl Future<Output = ()>) -> bool {
    let waiting = outbox.ended(key(sequence), true);
    bench.wait(async {
        let both = async { tokio::join!(waiting, end) };
        tokio::time::timeout(Duration::from_secs(20), both).await.is_ok()
    })
}

#[test]
fn who_waits_for_a_case_hears_of_its_end_without_a_verdict() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 1..=3 {
        bench.wait(outbox.store(case(sequence, 1.0, 100))).unwrap();
    }
    assert!(hears(&bench, &outbox, 1, async { outbox.dead(key(1), "unreadable").await.unwrap() }));
    assert!(hears(&bench, &outbox, 1, async {}), "it is dead already");
    assert!(hears(&bench, &outbox, 2, async { outbox.forget(key(2)).await.unwrap() }));
    assert!(hears(&bench, &outbox, 2, async {}), "it is gone already");
    // One that is on its way to the disk is not gone.
    let early = outbox.ended(key(4), false);
    let (ended, ()) = bench.wait(async {
        tokio::join!(tokio::time::timeout(Duration::from_secs(20), early), async {
            outbox.store(case(4, 1.0, 100)).await.unwrap();
            outbox.dead(key(4), "unreadable").await.unwrap();
        })
    });
    assert!(ended.is_ok());
}

#[test]
fn the_newest_cases_are_known_again_with_their_verdicts_also_when_they_have_ended() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 1..=4 {
        bench.wait(outbox.store(case(sequence, 1.0, 100))).unwrap();
    }
    bench.wait(outbox.answered(key(2), 1, b"cat".to_vec())).unwrap();
    bench.wait(outbox.answered(key(2), 2, b"dog".to_vec())).unwrap();
    bench.wait(outbox.forget(key(2))).unwrap();
    drop(outbox);
    let (outbox, _) = bench.open();
    let recent = |sequence: u64, verdict: Option<&[u8]>| Recent {
        header: format!("header of {sequence}").into_bytes(),
        payload_bytes: 100,
        verdict: verdict.map(<[u8]>::to_vec),
    };
    let wanted = [recent(4, None), recent(3, None), recent(2, Some(b"dog")), recent(1, None)];
    assert_eq!(outbox.recent(10, Moment(0)).unwrap(), wanted);
    assert_eq!(outbox.recent(2, Moment(0)).unwrap(), wanted[..2], "no more than asked for");
    assert_eq!(outbox.recent(10, Moment(1003)).unwrap(), wanted[..2], "none stored before");
}
