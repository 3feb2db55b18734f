//! Torn, flipped and misleading bytes cost what they hit and nothing else.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::case::OpenReport;
use super::super::log::Pointer;
use super::super::log::segment::FILE_HEADER_BYTES;
use super::super::table::Table;
use super::super::{NewCase, recall, recover};
use super::paper::PaperDisk;
use super::{Bench, case, key};

pub(super) const CASES: u64 = 12;

/// The segment a record is in, and its bytes there.
pub(super) type Place = (u32, std::ops::Range<usize>);

/// A log of two segments, and where each case's record lies.
pub(super) fn small_log() -> (BTreeMap<u32, Vec<u8>>, Vec<Place>) {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    let mut places = Vec::new();
    for sequence in 0..CASES {
        bench.wait(outbox.store(case(sequence, 1.0, 200))).unwrap();
        let contents = bench.disk.contents();
        let (segment, bytes) = contents.last_key_value().unwrap();
        let record_bytes = 60 + format!("header of {sequence}").len() + 200 + 4;
        places.push((*segment, bytes.len() - record_bytes..bytes.len()));
    }
    drop(outbox);
    let contents = bench.disk.contents();
    assert_eq!(contents.len(), 2);
    (contents, places)
}

/// Replays a log; the report, and which cases can still be read whole.
fn read_back(contents: &BTreeMap<u32, Vec<u8>>) -> (OpenReport, Vec<u64>) {
    let disk = PaperDisk::of(contents);
    let mut report = OpenReport::default();
    let mut table = Table::default();
    let mut segments = recover::survey(&disk, &mut report).unwrap();
    recover::replay(&disk, &mut segments, Pointer::NOWHERE, &mut table, &mut report).unwrap();
    let mut whole = Vec::new();
    for sequence in 0..CASES {
        let Some(line) = table.get(key(sequence)) else { continue };
        match recall::read(&disk, key(sequence), &line) {
            Ok(stored) => {
                assert_eq!(stored.payload, case(sequence, 1.0, 200).payload);
                whole.push(sequence);
            }
            Err(_) => report.damaged_records += 1, // as a read through the outbox counts it
        }
    }
    (report, whole)
}

#[test]
fn a_log_torn_anywhere_keeps_every_whole_record() {
    let (contents, places) = small_log();
    let (last, bytes) = contents.last_key_value().unwrap();
    for end in 0..=bytes.len() {
        let mut torn = contents.clone();
        torn.insert(*last, bytes[..end].to_vec());
        let (report, whole) = read_back(&torn);
        let expected: Vec<_> = (0..CASES)
            .filter(|sequence| places[usize::try_from(*sequence).unwrap()].0 != *last)
            .chain((0..CASES).filter(|sequence| {
                let (segment, record) = &places[usize::try_from(*sequence).unwrap()];
                segment == last && record.end <= end
            }))
            .collect();
        assert_eq!(whole, expected, "torn at {end}");
        assert_eq!((report.damaged_records, report.damaged_segments), (0, 0), "torn at {end}");
        let clean_end = end == FILE_HEADER_BYTES || places.iter().any(|(segment, at)| segment == last && at.end == end);
        assert_eq!(report.torn_bytes == 0, clean_end || end == 0, "torn at {end}");
    }
}

#[test]
fn a_flipped_byte_costs_the_record_it_hits_and_is_counted() {
    let (contents, places) = small_log();
    for (segment, bytes) in &contents {
        for at in 0..bytes.len() {
            let mut flipped = contents.clone();
            flipped.get_mut(segment).unwrap()[at] ^= 0x55;
            let (report, whole) = read_back(&flipped);
            let hit = places.iter().position(|(number, record)| number == segment && record.contains(&at));
            let expected: Vec<_> = (0..CASES).filter(|case| hit != Some(usize::try_from(*case).unwrap())).collect();
            assert_eq!(whole, expected, "segment {segment}, byte {at}");
            let noticed = report.damaged_records > 0 || report.torn_bytes > 0;
            assert_eq!(noticed, hit.is_some(), "segment {segment}, byte {at}");
            assert!(report.damaged_records <= 1 && report.damaged_segments == 0);
        }
    }
}

#[test]
fn a_payload_that_holds_a_log_is_never_read_as_one() {
    let (contents, _) = small_log();
    let smuggled: Vec<u8> = contents.into_values().flatten().collect();
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    let payload = Bytes::from(smuggled);
    bench.wait(outbox.store(NewCase { payload, ..case(100, 1.0, 0) })).unwrap();
    bench.wait(outbox.store(case(101, 1.0, 10))).unwrap();
    drop(outbox);
    let mut contents = bench.disk.contents();
    let first = contents.values_mut().next().unwrap();
    first[FILE_HEADER_BYTES] ^= 1; // the case with the payload is no longer recognised
    let (report, whole) = read_back(&contents);
    assert_eq!(whole, Vec::<u64>::new());
    assert!(report.damaged_records > 0);
}

#[test]
fn a_damaged_case_is_set_aside_and_counted_when_it_is_read() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    for sequence in 0..2 {
        bench.wait(outbox.store(case(sequence, 1.0, 100))).unwrap();
    }
    bench.disk.flip(1, FILE_HEADER_BYTES + 100);
    assert!(outbox.read(key(0)).is_err());
    assert!(outbox.read(key(1)).unwrap().is_some());
    bench.wait(outbox.store(case(2, 1.0, 10))).unwrap(); // behind the tombstone that the read has asked for
    assert_eq!(outbox.lookup(key(0)), None);
    assert_eq!(outbox.figures().damaged_records, 1);
}
