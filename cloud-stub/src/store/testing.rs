//! A case for unit tests.

use hedge_proto::{
    Captured, Case, CaseDecision, CaseId, CaseKey, DeviceId, Digest, Doubt, Epoch, ModelRef, PayloadForm, Reason,
    ThresholdMode, WIRE_VERSION, labels_hash,
};

/// Of the device `d`, with the payload `p`.
pub(crate) fn case(sequence: u64) -> Case {
    Case {
        v: WIRE_VERSION,
        id: CaseId { device: DeviceId::new("d").expect("valid"), key: CaseKey { epoch: Epoch(1), sequence } },
        reference: None,
        source: "s".to_owned(),
        task: "t".to_owned(),
        labels_hash: labels_hash(&["a"]),
        model: ModelRef { name: "m".to_owned(), version: "1".to_owned() },
        said: None,
        doubt: Doubt::NONE,
        view: None,
        decision: CaseDecision { reason: Reason::Unusable, check: false, threshold: 0.5, mode: ThresholdMode::Fixed },
        settings_version: 0,
        captured: Captured { powered_ms: 0, boot: String::new(), wall_ms: None, synced: false },
        form: PayloadForm::Whole,
        content_type: "image/png".to_owned(),
        payload_sha256: Digest::of(b"p"),
        payload: None,
        metadata: Default::default(),
    }
}
