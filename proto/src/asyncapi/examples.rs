//! Messages as they travel, for the AsyncAPI document.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::string::ToString;
use alloc::vec;
use alloc::vec::Vec;

use serde::Serialize;
use serde_json::{Value, json};

use crate::{
    Answer, Authority, Captured, Case, CaseDecision, CaseFate, CaseId, CaseMessage, CloudState, CloudStatus,
    DeviceState, DeviceStatus, Digest, Doubt, DownMessage, Explanation, LabelScore, LinkState, Measure, Metadata,
    ModelRef, Offer, Outcome, Output, PayloadForm, PrivacyFigures, Reason, SampleFigures, SpotChecks, Telemetry,
    ThresholdMode, Verdict, WIRE_VERSION,
};

type Examples = Vec<(&'static str, Value)>;

fn value(message: &impl Serialize) -> Value {
    // By way of text, so that 0.7 stays 0.7.
    serde_json::from_slice(&crate::to_json(message)).expect("JSON")
}

fn id() -> CaseId {
    "porch.5f0c3a9be1d24867.7".parse().expect("an id")
}

fn model(name: &str) -> ModelRef {
    ModelRef { name: name.to_string(), version: "1".to_string() }
}

fn captured() -> Captured {
    Captured { powered_ms: 86_400_000, boot: "b-41".to_string(), wall_ms: Some(1_795_600_000_000), synced: true }
}

fn result(label: &str) -> Output {
    Output::Classes(vec![
        LabelScore { label: label.to_string(), score: 0.5 },
        LabelScore { label: "Shirt".to_string(), score: 0.25 },
    ])
}

pub(super) fn device_status() -> Examples {
    let online = DeviceStatus {
        state: DeviceState::Online,
        connection: 12,
        window_every_s: None,
        link: None,
        version: Some("0.1.0".to_string()),
        wire: vec![WIRE_VERSION],
        models: vec![model("photo-small")],
        faults: Default::default(),
    };
    let offline =
        DeviceStatus { state: DeviceState::Offline, version: None, wire: vec![], models: vec![], ..online.clone() };
    vec![("online", value(&online)), ("offline", value(&offline))]
}

pub(super) fn cloud_status() -> Examples {
    let online = CloudStatus {
        state: CloudState::Online,
        wire: vec![WIRE_VERSION],
        accept: Some(5.0),
        retry_after_s: None,
        payload_bytes_max: Some(16_711_680),
    };
    vec![("online", value(&online))]
}

pub(crate) fn case() -> Case {
    Case {
        v: 1,
        id: id(),
        reference: None,
        source: "camera".to_string(),
        task: "fashion".to_string(),
        labels_hash: Digest::of(b"labels"),
        model: model("photo-small"),
        said: Some(result("Coat")),
        doubt: Doubt::NONE.with(Measure::Score, 0.4).with(Measure::Margin, 0.7),
        view: None,
        decision: CaseDecision { reason: Reason::LowScore, check: false, threshold: 0.75, mode: ThresholdMode::Fixed },
        settings_version: 7,
        captured: captured(),
        form: PayloadForm::Whole,
        content_type: "image/jpeg".to_string(),
        payload_sha256: Digest::of(b"\xff\xd8\xff"),
        payload: None,
        offer: None,
        metadata: Metadata::new(),
    }
}

pub(super) fn case_message() -> Examples {
    let mut sent = value(&CaseMessage::Case(Box::new(case())));
    // As schema and examples show byte strings.
    sent["case"]["payload"] = "ffd8ff".into();
    let offer = Offer { form: PayloadForm::Whole, payload_sha256: Digest::of(b"whole"), payload_bytes: 2_400_000 };
    let thumbnail = Case { form: PayloadForm::Thumbnail, offer: Some(offer), ..case() };
    let mut thumbnail = value(&CaseMessage::Case(Box::new(thumbnail)));
    thumbnail["case"]["payload"] = "ffd8ff".into();
    vec![("case", sent), ("thumbnail", thumbnail), ("ask", value(&CaseMessage::Ask { ids: vec![id()] }))]
}

pub(super) fn down_message() -> Examples {
    let verdict = Verdict {
        v: 1,
        id: id(),
        revision: 1,
        authority: Authority::Model,
        task: "fashion".to_string(),
        said: result("Coat"),
        model: model("photo-large"),
    };
    let reason = "the picture cannot be decoded".to_string();
    vec![
        ("verdict", value(&DownMessage::Verdict(verdict))),
        ("received", value(&DownMessage::Received { ids: vec![id()] })),
        ("busy", value(&DownMessage::Busy { after_s: 30 })),
        ("failed", value(&DownMessage::Failed { id: id(), reason: reason.clone() })),
        ("dead", value(&DownMessage::Dead { id: id(), reason })),
        ("unknown", value(&DownMessage::Unknown { ids: vec![id()] })),
        ("send", value(&DownMessage::Send { id: id(), form: PayloadForm::Whole })),
        ("checks", value(&DownMessage::Checks(fleet_checks()))),
    ]
}

fn fleet_checks() -> SpotChecks {
    let lost = vec![(120, 3, 2.0), (131, 3, 1.0)];
    let held = vec![(98, 400.0), (120, 80.0), (131, 29.0)];
    SpotChecks { model: model("photo-small"), cloud: model("photo-large"), devices: 9, checks: 512.0, lost, held }
}

pub(super) fn answer() -> Examples {
    let local = Answer {
        id: id(),
        reference: None,
        source: "camera".to_string(),
        task: "fashion".to_string(),
        revision: 0,
        authority: Authority::Device,
        model: model("photo-small"),
        said: Some(result("Pullover")),
        provisional: true,
        changed: false,
        decision: Explanation {
            outcome: Outcome::Defer,
            reason: Some(Reason::LowScore),
            check: false,
            agreement: None,
            score: Some(0.5),
            doubt: Doubt::NONE.with(Measure::Score, 0.5).with(Measure::Margin, 0.75).with(Measure::Entropy, 0.5),
            threshold: 0.75,
            mode: ThresholdMode::Fixed,
            because: "its best score 0.50 is below 0.75".to_string(),
        },
        case: Some(CaseFate::Stored),
        link: LinkState::Online,
        captured: captured(),
        metadata: Metadata::from([("line".to_string(), "3".to_string())]),
        crops: Vec::new(),
    };
    let correction = Answer {
        revision: 1,
        authority: Authority::Model,
        model: model("photo-large"),
        said: Some(result("Coat")),
        provisional: false,
        changed: true,
        case: None,
        ..local.clone()
    };
    vec![("the device's own", value(&local)), ("a correction", value(&correction))]
}

pub(super) fn telemetry() -> Examples {
    let samples = SampleFigures { answered: 9, kept: 8, deferred: 1, verdicts: 1, ..SampleFigures::default() };
    let telemetry = Telemetry {
        link_reason: "connected, and a cloud answers".to_string(),
        uptime_s: 60,
        samples,
        link_s: BTreeMap::from([("online".to_string(), 58)]),
        connections: 1,
        privacy: Some(PrivacyFigures { ceiling: "whole".to_string(), payload: "thumbnail 320".to_string() }),
        ..Telemetry::new(LinkState::Online)
    };
    vec![("online", value(&telemetry))]
}

pub(super) fn desired() -> Examples {
    let threshold = json!({"model": {"photo": {"threshold": {"score_min": 0.8, "classes": {"cat": 0.9}}}}});
    vec![
        ("a threshold", json!({"version": 7, "settings": threshold, "by": "ana"})),
        (
            "another broker, on trial",
            json!({"version": 8, "settings": {"broker": {"url": "mqtts://new.example"}}, "confirm": "operator"}),
        ),
        ("all as in the local file", json!({"version": 9, "settings": {}})),
    ]
}

pub(super) fn reported() -> Examples {
    let overlay = json!({"model": {"photo": {"threshold": {"score_min": 0.8}}}});
    let refused = json!({
        "version": 8, "outcome": "refused", "reason": "fields are wrong; nothing of the document is in force",
        "errors": [{"field": "log.lvl", "reason": "unknown field"}],
    });
    let hash = Digest::of(b"settings");
    vec![
        (
            "applied",
            json!({"version": 7, "hash": hash, "settings": overlay, "overlay": overlay,
                   "last": {"version": 7, "outcome": "applied"}}),
        ),
        (
            "refused",
            json!({"version": 7, "hash": hash, "settings": overlay, "overlay": overlay, "paused": ["camera"],
                   "last": refused}),
        ),
    ]
}

pub(super) fn command() -> Examples {
    vec![
        ("ping", json!({"command": "ping"})),
        ("status", json!({"command": "status"})),
        ("explain", json!({"command": "explain", "args": {"last": 3}})),
        ("queue_stats", json!({"command": "queue_stats"})),
        ("what_if", json!({"command": "what_if", "args": {"model": "animals", "threshold": {"score_min": 0.8}}})),
        ("dead_letters", json!({"command": "dead_letters"})),
        ("requeue", json!({"id": "1", "command": "requeue", "args": {"ids": [id()]}})),
        ("forget", json!({"id": "13", "command": "forget", "args": {"ids": [id()]}})),
        ("drain", json!({"id": "2", "command": "drain", "by": "ana", "issued_ms": 1_795_600_000_000_u64})),
        ("pause", json!({"id": "3", "command": "pause", "args": {"source": "camera"}})),
        ("resume", json!({"id": "4", "command": "resume"})),
        ("snapshot", json!({"id": "5", "command": "snapshot", "args": {"source": "camera"}})),
        ("reload", json!({"id": "6", "command": "reload"})),
        ("log_level", json!({"id": "7", "command": "log_level", "args": {"level": "debug", "for_s": 300}})),
        ("restart", json!({"id": "8", "command": "restart"})),
        ("promote", json!({"id": "11", "command": "promote", "args": {"model": "animals"}})),
        ("back", json!({"id": "12", "command": "back", "args": {"model": "animals"}})),
        ("confirm", json!({"id": "9", "command": "confirm", "args": {"version": 8}})),
        ("revert", json!({"id": "10", "command": "revert", "args": {"version": 8}})),
    ]
}

pub(super) fn reply() -> Examples {
    vec![
        ("done", json!({"id": "2", "command": "drain", "outcome": "done", "result": {"waiting": 12}})),
        ("refused", json!({"id": "2", "command": "drian", "outcome": "refused", "reason": "unknown variant `drian`"})),
    ]
}
