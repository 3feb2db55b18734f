//! Power cuts, failing syncs, full disks, caps and broken queues.

use std::fs;
use std::io::Write as _;
use std::sync::Arc;

use hedge_core::clock::Moment;
use hedge_proto::Refusal;

use super::super::{Limits, Outbox, ReadError, StoreError, Trouble};
use super::{Bench, LIMITS, case, key};

#[test]
fn a_failed_sync_moves_on_to_a_new_segment() {
    let mut bench = Bench::new();
    let (outbox, _) = bench.open();
    bench.wait(outbox.store(case(1, 1.0, 100))).unwrap();
    bench.disk.fail_syncs(1);
    bench.wait(outbox.store(case(2, 1.0, 100))).unwrap();
    bench.disk.fail_syncs(2);
    assert_eq!(bench.wait(outbox.store(case(3, 1.0, 100))), Err(Refusal::Disk));
    bench.wait(outbox.store(case(4, 1.0, 100))).unwrap();
    let survivor = bench.disk.after_power_cut(|| false);
    drop(outbox);
    fs::remove_dir_all(bench.queue()).unwrap();
    bench.disk = Arc::new(survivor);
    let (outbox, report) = bench.open();
    assert_eq!((report.cases, report.damaged_records), (3, 0));
    assert!([1, 2, 4].iter().all(|sequence| outbox.read(key(*sequence)).unwrap().is_some()));
}

#[test]
fn a_full_disk_refuses_takes_tombstones_and_recovers_by_itself() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    bench.disk.fill_up(Some(bench.disk.used_bytes() + 8000));
    let mut stored = Vec::new();
    for sequence in 0..40 {
        match bench.wait(outbox.store(case(sequence, 1.0, 700))) {
            Ok(()) => stored.push(sequence),
            Err(refusal) => assert_eq!(refusal, Refusal::Disk),
        }
    }
    assert!((1..40).contains(&stored.len()));
    assert!(stored.iter().all(|sequence| outbox.read(key(*sequence)).unwrap().is_some()));
    for sequence in &stored {
        bench.wait(outbox.forget(key(*sequence))).unwrap();
    }
    bench.wait(outbox.store(case(100, 1.0, 700))).unwrap();
    assert!(outbox.read(key(100)).unwrap().is_some());
    drop(outbox);
    let (_outbox, report) = bench.open();
    assert_eq!((report.cases, report.damaged_records), (1, 0));
}

#[test]
fn a_full_disk_whose_segments_are_half_dead_is_freed_by_copying() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    bench.disk.fill_up(Some(bench.disk.used_bytes() + 60_000));
    let mut stored = Vec::new();
    for sequence in 0..200 {
        if bench.wait(outbox.store(case(sequence, 1.0, 400))).is_ok() {
            stored.push(sequence);
        }
    }
    assert!((50..150).contains(&stored.len()), "{}", stored.len());
    for sequence in stored.iter().filter(|sequence| !sequence.is_multiple_of(4)) {
        bench.wait(outbox.forget(key(*sequence))).unwrap(); // no segment is ever without a live case
    }
    for sequence in 1000..1020 {
        bench.wait(outbox.store(case(sequence, 1.0, 400))).unwrap();
    }
    assert!(
        stored.iter().filter(|sequence| sequence.is_multiple_of(4)).all(|kept| outbox.lookup(key(*kept)).is_some())
    );
}

#[test]
fn caps_refuse_with_their_reason() {
    let bench = Bench::new();
    let limits = Limits { cases_max: 2, payload_bytes_max: 1000, ..LIMITS };
    let (outbox, _) = bench.open_with(limits);
    assert_eq!(bench.wait(outbox.store(case(0, 1.0, 1001))), Err(Refusal::TooLarge));
    bench.wait(outbox.store(case(1, 1.0, 10))).unwrap();
    bench.wait(outbox.store(case(2, 1.0, 10))).unwrap();
    assert_eq!(bench.wait(outbox.store(case(3, 1.0, 10))), Err(Refusal::Full));
    bench.wait(outbox.store(case(2, 1.0, 10))).unwrap(); // it is there already
    bench.wait(outbox.forget(key(1))).unwrap();
    bench.wait(outbox.store(case(4, 1.0, 10))).unwrap();
    drop(outbox);

    let (outbox, _) = bench.open_with(Limits { bytes_max: 500, ..LIMITS });
    assert_eq!(bench.wait(outbox.store(case(5, 1.0, 400))), Err(Refusal::Full));
    drop(outbox);

    let (outbox, _) = bench.open_with(Limits { free_bytes_min: u64::MAX, ..LIMITS });
    assert_eq!(bench.wait(outbox.store(case(6, 1.0, 10))), Err(Refusal::Disk));
    bench.wait(outbox.forget(key(2))).unwrap();
}

#[test]
fn a_damaged_queue_is_moved_aside_whole_and_made_anew() {
    let bench = Bench::new();
    for round in 0..4 {
        let (outbox, report) = bench.open();
        assert_eq!((report.rebuilt, report.queue_damaged), (round > 0, round > 0));
        assert_eq!(report.cases, round);
        bench.wait(outbox.store(case(round, 1.0, 50))).unwrap();
        assert_eq!(outbox.fetch(100, u32::MAX).len() as u64, round + 1);
        bench.wait(outbox.close());
        let database = bench.queue().join("db");
        let bytes = fs::metadata(&database).unwrap().len();
        fs::write(&database, vec![0xA5; usize::try_from(bytes).unwrap()]).unwrap();
    }
    let kept = fs::read_dir(bench.folder.path()).unwrap().count();
    assert_eq!(kept, 3, "the queue and two damaged ones");
}

#[test]
fn a_queue_that_lost_entries_is_noticed() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 0..10 {
        bench.wait(outbox.store(case(sequence, 1.0, 50))).unwrap();
    }
    bench.wait(outbox.close());
    let queue = super::super::index::open(&bench.queue()).unwrap();
    let (first, _) = queue.iter().next().unwrap().unwrap();
    queue.remove(first).unwrap();
    queue.flush().unwrap();
    drop(queue);
    let (_outbox, report) = bench.open();
    assert_eq!((report.cases, report.rebuilt), (10, true));
}

#[test]
fn a_clean_stop_needs_no_rebuilding() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 0..10 {
        bench.wait(outbox.store(case(sequence, 1.0, 50))).unwrap();
    }
    let clone = outbox.clone();
    bench.wait(outbox.close());
    assert_eq!(bench.wait(clone.store(case(11, 1.0, 50))), Err(Refusal::Stopping));
    assert_eq!(bench.wait(clone.forget(key(1))), Err(StoreError::Stopping));
    drop(clone);
    let (_outbox, report) = bench.open();
    assert_eq!((report.cases, report.rebuilt, report.torn_bytes), (10, false, 0));
}

#[test]
fn a_drained_log_gives_its_room_back_and_keeps_the_time() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 0..60 {
        bench.wait(outbox.store(case(sequence, 1.0, 500))).unwrap();
    }
    bench.wait(outbox.clock(Moment(77_000))).unwrap();
    for sequence in 0..60 {
        bench.wait(outbox.forget(key(sequence))).unwrap();
    }
    for _ in 0..20 {
        bench.wait(outbox.clock(Moment(5))).unwrap();
    }
    assert!(bench.disk.contents().len() <= 2, "{} segments are left", bench.disk.contents().len());
    drop(outbox);
    fs::remove_dir_all(bench.queue()).unwrap();
    let (_outbox, report) = bench.open();
    assert_eq!((report.cases, report.clock), (0, Some(Moment(77_000))));
}

#[test]
fn what_stays_is_copied_when_its_segment_goes() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 0..4 {
        bench.wait(outbox.store(case(sequence, 1.0, 300))).unwrap();
    }
    bench.wait(outbox.attempt(key(0))).unwrap();
    bench.wait(outbox.answered(key(1), 2, b"cat".to_vec())).unwrap();
    bench.wait(outbox.delivered(key(1), 2, 3)).unwrap();
    bench.wait(outbox.dead(key(2), "it failed")).unwrap();
    bench.wait(outbox.dead(key(3), "it failed once")).unwrap();
    bench.wait(outbox.requeue(key(3))).unwrap();
    let before: Vec<_> = (0..4).map(|sequence| outbox.lookup(key(sequence))).collect();
    for sequence in 10..200 {
        bench.wait(outbox.store(case(sequence, 1.0, 300))).unwrap();
        bench.wait(outbox.forget(key(sequence))).unwrap();
    }
    let contents = bench.disk.contents();
    assert!(contents.len() < 6 && contents.first_key_value().unwrap().0 > &10, "{:?}", contents.keys());
    let check = |outbox: &Outbox| {
        let after: Vec<_> = (0..4).map(|sequence| outbox.lookup(key(sequence))).collect();
        assert_eq!(after, before);
        assert_eq!(outbox.read(key(0)).unwrap().unwrap().payload.len(), 300);
        assert_eq!(outbox.read(key(1)).unwrap().unwrap().verdict, Some(b"cat".to_vec()));
        assert_eq!(outbox.read(key(2)).unwrap().unwrap().dead.as_deref(), Some("it failed"));
        assert_eq!(outbox.read(key(3)).unwrap().unwrap().payload.len(), 300);
    };
    check(&outbox);
    drop(outbox);
    fs::remove_dir_all(bench.queue()).unwrap();
    let (outbox, report) = bench.open();
    assert_eq!((report.cases, report.damaged_records), (4, 0));
    check(&outbox);
}

#[test]
fn two_processes_cannot_open_one_outbox() {
    let folder = tempfile::tempdir().unwrap();
    let (_outbox, _) = Outbox::open(folder.path(), LIMITS).unwrap();
    let Err(error) = Outbox::open(folder.path(), LIMITS) else { panic!("opened twice") };
    assert!(error.to_string().contains("in use"));
}

#[test]
fn a_real_folder_keeps_cases_over_restarts() {
    let bench = Bench::new();
    let (outbox, _) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
    bench.wait(outbox.store(case(1, 2.0, 5000))).unwrap();
    bench.wait(outbox.store(case(2, 3.0, 5000))).unwrap();
    bench.wait(outbox.answered(key(2), 1, b"cat".to_vec())).unwrap();
    drop(outbox);
    let (outbox, report) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
    assert_eq!((report.cases, report.damaged_records), (2, 0));
    assert_eq!(outbox.read(key(1)).unwrap().unwrap().payload.len(), 5000);
    assert_eq!(outbox.read(key(2)).unwrap().unwrap().verdict, Some(b"cat".to_vec()));
    assert_eq!(outbox.undelivered(0, 10).len(), 1);
}

#[test]
fn nothing_is_said_to_be_stored_in_a_folder_that_was_deleted_replaced_or_emptied() {
    type Harm = fn(&std::path::Path);
    let deleted: Harm = |log| fs::remove_dir_all(log).unwrap();
    let replaced: Harm = |log| {
        fs::rename(log, log.with_extension("old")).unwrap();
        fs::create_dir(log).unwrap();
    };
    let emptied: Harm = |log| {
        fs::read_dir(log).unwrap().for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    };
    for (harm, idle) in
        [(deleted, false), (deleted, true), (replaced, false), (replaced, true), (emptied, false), (emptied, true)]
    {
        let bench = Bench::new();
        let (outbox, _) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
        bench.wait(outbox.store(case(1, 1.0, 100))).unwrap();
        outbox.look_for_folder();
        assert_eq!(*outbox.trouble().borrow(), None);
        harm(&bench.folder.path().join("log"));
        if idle {
            // A segment may be missing for a moment between two.
            outbox.look_for_folder();
            outbox.look_for_folder();
        } else {
            assert_eq!(bench.wait(outbox.store(case(2, 1.0, 100))), Err(Refusal::Disk));
        }
        assert_eq!(*outbox.trouble().borrow(), Some(Trouble::Gone));
        drop(outbox);
        let (outbox, report) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
        assert_eq!(report.cases, 0, "a start finds what is there");
        bench.wait(outbox.store(case(3, 1.0, 100))).unwrap();
    }
}

#[test]
fn nothing_is_said_to_be_stored_in_a_file_that_was_cut_short_or_written_to() {
    type Harm = fn(&fs::File);
    let cut: Harm = |file| file.set_len(file.metadata().unwrap().len() / 2).unwrap();
    let emptied: Harm = |file| file.set_len(0).unwrap();
    let written: Harm = |mut file| file.write_all(b"somebody else's").unwrap();
    for (harm, idle) in [(cut, false), (cut, true), (emptied, false), (emptied, true), (written, false)] {
        let bench = Bench::new();
        let (outbox, _) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
        bench.wait(outbox.store(case(1, 1.0, 100))).unwrap();
        let path = bench.folder.path().join("log/00000001.log");
        outbox.look_for_folder();
        harm(&fs::File::options().append(true).open(path).unwrap());
        if idle {
            outbox.look_for_folder();
            assert_eq!(*outbox.trouble().borrow(), None, "a segment may be removed just then");
            outbox.look_for_folder();
        } else {
            assert_eq!(bench.wait(outbox.store(case(2, 1.0, 100))), Err(Refusal::Disk));
        }
        assert_eq!(*outbox.trouble().borrow(), Some(Trouble::Gone));
        drop(outbox);
        let (outbox, _) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
        assert!(outbox.lookup(key(2)).is_none(), "what was refused was not stored");
        bench.wait(outbox.store(case(3, 1.0, 100))).unwrap();
        drop(outbox);
        let (outbox, _) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
        assert!(outbox.read(key(3)).unwrap().is_some());
    }
}

#[test]
fn a_folder_that_was_moved_away_is_used_again_when_it_is_back() {
    let bench = Bench::new();
    let (outbox, _) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
    bench.wait(outbox.store(case(1, 1.0, 100))).unwrap();
    let (log, away) = (bench.folder.path().join("log"), bench.folder.path().join("away"));
    fs::rename(&log, &away).unwrap();
    assert_eq!(bench.wait(outbox.store(case(2, 1.0, 100))), Err(Refusal::Disk));
    assert_eq!(*outbox.trouble().borrow(), Some(Trouble::Elsewhere));
    assert!(matches!(outbox.read(key(1)), Err(ReadError::Io(_))), "it is not damaged, it is elsewhere");
    fs::rename(&away, &log).unwrap();
    bench.wait(outbox.store(case(3, 1.0, 100))).unwrap();
    assert_eq!(*outbox.trouble().borrow(), None);
    assert!(outbox.read(key(1)).unwrap().is_some());
    drop(outbox);
    let (outbox, report) = Outbox::open(bench.folder.path(), LIMITS).unwrap();
    assert_eq!((report.cases, report.damaged_records), (2, 0));
    assert!(outbox.lookup(key(2)).is_none(), "what was refused was not stored");
}

#[test]
fn a_disk_that_refuses_is_said_until_it_takes_something() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    bench.disk.fail_syncs(2);
    assert_eq!(bench.wait(outbox.store(case(1, 1.0, 100))), Err(Refusal::Disk));
    assert!(matches!(&*outbox.trouble().borrow(), Some(Trouble::Refused(_))));
    bench.wait(outbox.clock(Moment(5000))).unwrap();
    assert_eq!(*outbox.trouble().borrow(), None);
}
