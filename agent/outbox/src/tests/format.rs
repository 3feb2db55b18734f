//! What an earlier version has written is read by this one; what a later one has written is refused in words.
//!
//! `format-N.log` is the one segment that [`fill`] left with the first version that wrote format N. A new format gets
//! a new file beside it, and the old one stays.

use std::fs;
use std::path::Path;

use super::super::log::segment::FORMAT;
use super::super::{OpenError, Outbox, State};
use super::{Bench, LIMITS, case, key};

const FORMATS: [u16; 1] = [1];

fn store_of(format: u16) -> Vec<u8> {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/tests");
    fs::read(dir.join(format!("format-{format}.log"))).unwrap()
}

/// A case in every stage, and one that is gone.
fn fill(bench: &Bench, outbox: &Outbox) {
    for sequence in 1..=6 {
        bench.wait(outbox.store(case(sequence, 2.0, 40))).unwrap();
    }
    bench.wait(outbox.attempt(key(2))).unwrap();
    bench.wait(outbox.answered(key(3), 7, b"cat".to_vec())).unwrap();
    bench.wait(outbox.delivered(key(3), 7, 1)).unwrap();
    bench.wait(outbox.dead(key(4), "unreadable")).unwrap();
    bench.wait(outbox.dead(key(5), "unreadable")).unwrap();
    bench.wait(outbox.requeue(key(5))).unwrap();
    bench.wait(outbox.forget(key(6))).unwrap();
}

#[track_caller]
fn check(outbox: &Outbox) {
    let state = |sequence| outbox.lookup(key(sequence)).map(|entry| (entry.state, entry.attempts));
    let stages = [1, 2, 3, 4, 5, 6].map(state);
    let answered = State::Answered { revision: 7, delivered: 1 << 1 };
    let waiting = State::Waiting;
    let expected = [Some((waiting, 0)), Some((waiting, 1)), Some((answered, 0)), Some((State::Dead, 0))];
    assert_eq!(stages, [&expected[..], &[Some((waiting, 0)), None]].concat()[..]);
    let read = |sequence| outbox.read(key(sequence)).unwrap().unwrap();
    assert_eq!(read(1).payload, case(1, 2.0, 40).payload);
    assert_eq!(read(3).verdict.as_deref(), Some(&b"cat"[..]));
    assert_eq!(read(4).dead.as_deref(), Some("unreadable"));
}

fn open(dir: &Path, segment: &[u8]) -> Result<Outbox, OpenError> {
    fs::create_dir_all(dir.join("log")).unwrap();
    fs::write(dir.join("log/00000001.log"), segment).unwrap();
    let (outbox, report) = Outbox::open(dir, LIMITS)?;
    assert_eq!((report.damaged_records, report.torn_bytes, report.rebuilt), (0, 0, true));
    Ok(outbox)
}

#[test]
fn a_store_of_every_format_ever_written_opens() {
    let bench = Bench::new();
    let (outbox, _) = Outbox::open(&bench.folder.path().join("new"), LIMITS).unwrap();
    fill(&bench, &outbox);
    check(&outbox);
    bench.wait(outbox.close());
    for format in FORMATS {
        let outbox = open(&bench.folder.path().join(format.to_string()), &store_of(format)).unwrap();
        check(&outbox);
        bench.wait(outbox.store(case(10, 1.0, 10))).unwrap();
        check(&outbox);
    }
    assert_eq!(FORMATS.last(), Some(&FORMAT), "a store of the new format has to be kept here, too");
}

#[test]
fn a_store_of_a_later_version_is_refused_in_words_and_left_alone() {
    let folder = tempfile::tempdir().unwrap();
    let mut segment = store_of(FORMAT);
    for copy in segment[..64].chunks_exact_mut(32) {
        copy[8..10].copy_from_slice(&(FORMAT + 1).to_le_bytes());
        let sum = crc32c::crc32c(&copy[..28]);
        copy[28..].copy_from_slice(&sum.to_le_bytes());
    }
    let Err(error) = open(folder.path(), &segment) else { panic!("opened") };
    assert!(matches!(error, OpenError::Newer { segment: 1, .. }));
    assert!(error.to_string().contains("install the newer version"), "{error}");
    assert_eq!(fs::read(folder.path().join("log/00000001.log")).unwrap(), segment);
}
