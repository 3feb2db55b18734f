//! What a case costs on the disk. Alone in its file: what is written is counted for the whole process.
#![allow(clippy::print_stdout, reason = "the figure is worth having")]

use hedge_cloud::store::{FILE_NAME, RecordsAt, Writer};
use hedge_proto::{
    Authority, Captured, Case, CaseDecision, CaseId, CaseKey, DeviceId, Digest, Doubt, Epoch, ModelRef, Name, Output,
    PayloadForm, Reason, ThresholdMode, Verdict, labels_hash,
};

const DEVICES: u64 = 500;
const CASES: u64 = 10_000;

/// As many as share a commit at a good rate.
const TOGETHER: u64 = 20;

/// What a busy device's telemetry comes to.
const DOCUMENT_BYTES: usize = 3_000;

fn case(n: u64) -> Case {
    let device = DeviceId::new(&format!("device-{}", n * 7919 % DEVICES)).expect("valid");
    Case {
        v: 1,
        id: CaseId { device, key: CaseKey { epoch: Epoch(n % DEVICES), sequence: n } },
        reference: None,
        source: "door".to_owned(),
        task: "shoes".to_owned(),
        labels_hash: labels_hash(&["boot", "sandal"]),
        model: ModelRef { name: "small".to_owned(), version: "1".to_owned() },
        said: Some(Output::label("sandal")),
        doubt: Doubt::NONE,
        view: None,
        decision: CaseDecision { reason: Reason::LowScore, check: false, threshold: 0.8, mode: ThresholdMode::Fixed },
        settings_version: 0,
        captured: Captured { powered_ms: 1, boot: "b".to_owned(), wall_ms: None, synced: false },
        form: PayloadForm::Whole,
        offer: None,
        content_type: "image/png".to_owned(),
        payload_sha256: Digest::of(&n.to_be_bytes()),
        payload: None,
        metadata: Default::default(),
    }
}

/// By `write` and its kin, whatever the kernel makes of it.
fn written() -> u64 {
    let io = std::fs::read_to_string("/proc/self/io").expect("Linux");
    let line = io.lines().find_map(|line| line.strip_prefix("wchar: ")).expect("counted");
    line.parse().expect("a number")
}

#[test]
fn a_case_writes_a_bounded_multiple_of_its_payload() {
    let dir = tempfile::tempdir().expect("a directory");
    let mut writer = Writer::open(&RecordsAt::file(dir.path().join(FILE_NAME)), &Name::new("cloud-1").expect("valid"))
        .expect("records");
    let batch = writer.batch().expect("a batch");
    for n in 0..DEVICES {
        let reported = format!("{{\"text\": \"{}\"}}", "x".repeat(DOCUMENT_BYTES));
        batch.set_reported(&case(n).id.device, Some(&reported), 1).expect("written");
    }
    batch.commit().expect("committed");
    let (before, payload) = (written(), [7; 1024]);
    for first in (0..CASES).step_by(usize::try_from(TOGETHER).expect("small")) {
        let batch = writer.batch().expect("a batch");
        (first..first + TOGETHER).for_each(|n| batch.record(&case(n), &payload, n).expect("recorded"));
        batch.commit().expect("committed");
        let batch = writer.batch().expect("a batch");
        for n in first..first + TOGETHER {
            let Case { id, task, model, .. } = case(n);
            let said = Output::label("boot");
            let verdict = Verdict { v: 1, id, revision: 1, authority: Authority::Model, task, said, model };
            batch.answer(&verdict, Some(false), n).expect("answered");
        }
        batch.commit().expect("committed");
    }
    let each = (written() - before) / CASES;
    println!("{each} bytes written for a case of {} bytes", payload.len());
    assert!(each < LIMIT, "{each}");
}

/// One case wrote 27,000 bytes while each thousand pages of the log were moved into the database by the writer, and each
/// case wrote its device's documents anew.
const LIMIT: u64 = 20_000;
