//! Reading the whole log finds every changed byte, and changes none.

use super::super::inspect;
use super::damage::{CASES, small_log};
use super::paper::PaperDisk;
use super::{Bench, case};

#[test]
fn every_flipped_byte_of_a_record_is_found_and_left_as_it_is() {
    let (contents, places) = small_log();
    let (segment, record) = places[0].clone();
    for at in record {
        let mut flipped = contents.clone();
        flipped.get_mut(&segment).unwrap()[at] ^= 0x04;
        let disk = PaperDisk::of(&flipped);
        let found = inspect::log(&disk, None).unwrap();
        assert_eq!((found.damaged, found.torn_bytes, found.segments), (1, 0, 2), "byte {at}: {found:?}");
        assert_eq!(found.records.get("case"), Some(&(CASES - 1)));
        assert_eq!(disk.contents(), flipped);
    }
}

#[test]
fn a_torn_end_is_no_damage() {
    let (contents, places) = small_log();
    let (segment, record) = places.last().unwrap().clone();
    for end in record.start + 1..record.end {
        let mut torn = contents.clone();
        torn.get_mut(&segment).unwrap().truncate(end);
        let found = inspect::log(&PaperDisk::of(&torn), None).unwrap();
        assert_eq!((found.damaged, found.torn_bytes), (0, (end - record.start) as u64));
        assert_eq!(found.records.get("case"), Some(&(CASES - 1)));
    }
}

#[test]
fn an_outbox_at_work_can_be_read_through() {
    let bench = Bench::new();
    let (outbox, _) = bench.open();
    assert_eq!(outbox.inspect().unwrap().records.len(), 0);
    for sequence in 0..CASES {
        bench.wait(outbox.store(case(sequence, 1.0, 200))).unwrap();
        let found = outbox.inspect().unwrap();
        assert_eq!((found.damaged, found.torn_bytes), (0, 0));
        assert_eq!(found.records.get("case"), Some(&(sequence + 1)));
    }
}
