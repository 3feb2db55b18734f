//! Every message reads back as it was written, unknown fields are accepted, and sizes are checked first.

use hedge_proto::{
    Authority, BoardFigures, Captured, Case, CaseDecision, CaseId, CaseKey, CaseMessage, CloudStatus,
    DOCUMENT_BYTES_MAX, DecodeError, DeviceId, Digest, Doubt, DownMessage, Epoch, Found, LabelScore, Measure, Metadata,
    ModelRef, Output, PayloadForm, Reason, Rect, Telemetry, ThresholdMode, Verdict, from_cbor, from_json, to_cbor,
    to_json,
};
use serde_bytes::ByteBuf;

fn id() -> CaseId {
    CaseId { device: DeviceId::new("porch").expect("valid"), key: CaseKey { epoch: Epoch(0xfeed), sequence: 3 } }
}

fn model() -> ModelRef {
    ModelRef { name: "photo-small".into(), version: "1".into() }
}

fn case() -> Case {
    Case {
        v: 1,
        id: id(),
        reference: Some("frame-17".into()),
        source: "camera".into(),
        task: "photo".into(),
        labels_hash: Digest::of(b"labels"),
        model: model(),
        said: Some(Output::Classes(vec![LabelScore { label: "cat".into(), score: 0.5 }])),
        doubt: Doubt::NONE.with(Measure::Score, 0.5),
        view: None,
        decision: CaseDecision { reason: Reason::LowScore, check: false, threshold: 0.7, mode: ThresholdMode::Fixed },
        settings_version: 0,
        captured: Captured { powered_ms: 12, boot: "b".into(), wall_ms: None, synced: false },
        form: PayloadForm::Whole,
        content_type: "image/jpeg".into(),
        payload_sha256: Digest::of(b"payload"),
        payload: Some(ByteBuf::from(b"payload".to_vec())),
        offer: None,
        metadata: Metadata::from([("line".to_owned(), "3".to_owned())]),
    }
}

fn verdict() -> Verdict {
    let said = Output::label("dog");
    Verdict { v: 1, id: id(), revision: 1, authority: Authority::Model, task: "photo".into(), said, model: model() }
}

#[test]
fn every_case_message_reads_back() {
    let messages = [
        CaseMessage::Case(Box::new(case())),
        CaseMessage::Batch(vec![case(), case()]),
        CaseMessage::Ask { ids: vec![id()] },
    ];
    for message in messages {
        assert_eq!(from_cbor(&to_cbor(&message), 10_000), Ok(message));
    }
}

#[test]
fn a_case_with_boxes_a_view_or_no_usable_output_reads_back() {
    let place = Rect { left: 0.25, top: 0.0, width: 0.5, height: 0.75 };
    let boxes = Output::Boxes(vec![Found { label: "cat".into(), score: 0.5, place }]);
    for said in [None, Some(boxes), Some(Output::Boxes(Vec::new()))] {
        let case = Case { v: 2, said, view: Some(place), ..case() };
        assert_eq!(from_cbor(&to_cbor(&case), 10_000), Ok(case));
    }
}

/// A case and a verdict with boxes, as version 2 wrote them first. They are read for good.
const BOXES: [&str; 2] = [
    "a16463617365b26176026269647818706f7263682e303030303030303030303030666565642e3363726566686672616d652d3137\
     66736f757263656663616d657261647461736b6570686f746f6b6c6162656c735f686173685820d772ebb4590212c65cc31888ee\
     55c3a893d866d8479f84a4c0ca36918a3fa75f656d6f64656ca2646e616d656b70686f746f2d736d616c6c6776657273696f6e61\
     316673636f726573a166646574656374a165666f756e6481a3656c6162656c636361746573636f7265f9380065706c616365a464\
     6c656674f9340063746f70f90000657769647468f9380066686569676874f93a0065646f756274a16573636f7265f93800647669\
     6577a4646c656674f9340063746f70f90000657769647468f9380066686569676874f93a00686465636973696f6ea36672656173\
     6f6e696c6f775f73636f7265697468726573686f6c64fa3f333333646d6f64656566697865647073657474696e67735f76657273\
     696f6e00686361707475726564a36a706f77657265645f6d730c64626f6f7461626673796e636564f464666f726d6577686f6c65\
     6c636f6e74656e745f747970656a696d6167652f6a7065676e7061796c6f61645f7368613235365820239f59ed55e737c77147cf\
     55ad0c1b030b6d7ee748a7426952f9b852d5a935e5677061796c6f6164477061796c6f6164686d65746164617461a1646c696e65\
     6133",
    "a16776657264696374a76176026269647818706f7263682e303030303030303030303030666565642e33687265766973696f6e01\
     69617574686f72697479656d6f64656c647461736b6570686f746f66726573756c74a166646574656374a165666f756e6481a365\
     6c6162656c636361746573636f7265f9380065706c616365a4646c656674f9340063746f70f90000657769647468f93800666865\
     69676874f93a00656d6f64656ca2646e616d656b70686f746f2d736d616c6c6776657273696f6e6131",
];

#[test]
fn boxes_are_read_as_version_2_wrote_them() {
    let place = Rect { left: 0.25, top: 0.0, width: 0.5, height: 0.75 };
    let said = Output::Boxes(vec![Found { label: "cat".into(), score: 0.5, place }]);
    let case = Case { v: 2, said: Some(said.clone()), view: Some(place), ..case() };
    let verdict = Verdict { v: 2, said, ..verdict() };
    let written =
        [to_cbor(&CaseMessage::Case(Box::new(case.clone()))), to_cbor(&DownMessage::Verdict(verdict.clone()))];
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    assert_eq!(written.each_ref().map(|bytes| hex(bytes)), BOXES);
    assert_eq!(from_cbor(&written[0], 10_000), Ok(CaseMessage::Case(Box::new(case))));
    assert_eq!(from_cbor(&written[1], 10_000), Ok(DownMessage::Verdict(verdict)));
}

#[test]
fn every_down_message_reads_back() {
    let reason = || String::from("why");
    let messages = [
        DownMessage::Verdict(verdict()),
        DownMessage::Received { ids: vec![id()] },
        DownMessage::Busy { after_s: 9 },
        DownMessage::Failed { id: id(), reason: reason() },
        DownMessage::Dead { id: id(), reason: reason() },
        DownMessage::Unknown { ids: vec![id()] },
        DownMessage::Send { id: id(), form: PayloadForm::Whole },
    ];
    for message in messages {
        assert_eq!(from_cbor(&to_cbor(&message), 10_000), Ok(message));
    }
}

#[test]
fn a_payload_travels_as_bytes_not_as_numbers() {
    let mut large = case();
    large.payload = Some(ByteBuf::from(vec![0xAB; 20_000]));
    let bytes = to_cbor(&CaseMessage::Case(Box::new(large)));
    assert!(bytes.len() < 20_800, "{} bytes for a payload of 20,000", bytes.len());
}

#[test]
fn a_reader_accepts_fields_it_does_not_know() {
    let text = br#"{"state":"online","wire":[1,2],"since":"tomorrow","nested":{"a":[1]}}"#;
    let status: CloudStatus = from_json(text, 1000).expect("reads");
    assert_eq!(status.wire, [1, 2]);
}

#[test]
fn size_is_checked_before_anything_is_parsed() {
    let bytes = to_cbor(&CaseMessage::Case(Box::new(case())));
    let bytes_max = bytes.len() - 1;
    let error = from_cbor::<CaseMessage>(&bytes, bytes_max);
    assert_eq!(error, Err(DecodeError::TooLarge { bytes: bytes.len(), bytes_max }));
}

#[test]
fn no_bytes_make_a_reader_panic() {
    let whole = to_cbor(&CaseMessage::Case(Box::new(case())));
    for end in 0..whole.len() {
        assert!(from_cbor::<CaseMessage>(&whole[..end], 10_000).is_err(), "cut at {end}");
    }
    for at in 0..whole.len() {
        let mut flipped = whole.clone();
        flipped[at] ^= 0x5A;
        drop(from_cbor::<CaseMessage>(&flipped, 10_000)); // an error or another message, never a panic
    }
    let deep: Vec<u8> = std::iter::repeat_n(0x81, 5_000).collect();
    assert!(from_cbor::<CaseMessage>(&deep, 10_000).is_err());
    assert!(from_json::<CloudStatus>("[".repeat(5_000).as_bytes(), 10_000).is_err());
    // A length that claims 2^60 bytes must not be believed.
    assert!(from_cbor::<ByteBuf>(&[0x5b, 0x10, 0, 0, 0, 0, 0, 0, 0], 10_000).is_err());
}

#[test]
fn an_authority_outranks_the_ones_below_it() {
    assert!(Authority::Device < Authority::Model);
    assert!(Authority::Model < Authority::StrongerModel);
    assert!(Authority::StrongerModel < Authority::Person);
}

#[test]
fn documents_read_back() {
    let status = hedge_proto::DeviceStatus {
        state: hedge_proto::DeviceState::Offline,
        connection: 4,
        window_every_s: None,
        link: None,
        version: None,
        wire: Vec::new(),
        models: Vec::new(),
        faults: Default::default(),
    };
    assert_eq!(to_json(&status), br#"{"state":"offline","connection":4}"#);
    assert_eq!(from_json(&to_json(&status), 1000), Ok(status));
}

#[test]
fn telemetry_of_an_older_device_reads_with_nothing_made_up() {
    let old = br#"{"link":"online","uptime_s":5,"samples":{"kept":2},"queue":{"waiting":1}}"#;
    let read: Telemetry = from_json(old, DOCUMENT_BYTES_MAX).expect("reads");
    assert_eq!((read.uptime_s, read.samples.kept, read.queue.waiting), (5, 2, 1));
    assert!(read.latency.is_empty() && read.budget.is_empty() && read.board == BoardFigures::default());
    assert_eq!(from_json(&to_json(&read), DOCUMENT_BYTES_MAX), Ok(read));
}
