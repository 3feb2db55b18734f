//! What a Hedge device and its cloud say to each other.
//!
//! Every message of the wire is a type here, and every topic is built and read here, so that neither
//! side can disagree with itself. What people type is JSON, what carries samples is CBOR (RFC 8949).
//! Nothing here does IO, keeps time or decides anything.
//!
//! Readers of data accept fields they do not know; sizes are checked before anything is parsed.
#![no_std]

extern crate alloc;

mod address;
mod answer;
#[cfg(test)]
mod asyncapi;
mod bounds;
mod case;
mod codec;
mod control;
mod digest;
mod document;
mod doubt;
mod enrolment;
mod goal;
mod id;
mod newer;
mod output;
mod overlay;
mod plain;
mod settings;
mod share;
mod spot_checks;
mod status;
mod task;
mod text;
mod topic;
mod trace;
mod verdict;

pub use address::host_and_port;
pub use answer::{Answer, CaseFate, Crop, Explanation, Outcome, Refusal};
pub use bounds::{ASK_BYTES_MAX, CLOUD_STATUS_BYTES_MAX, DOWN_BYTES_MAX, Message, TEXT_BYTES_MAX, WIRE_VERSIONS_MAX};
pub use case::{Captured, Case, CaseDecision, CaseMessage, Metadata, Offer, PayloadForm, ThresholdMode};
pub use codec::{DecodeError, from_cbor, from_json, to_cbor, to_json, to_value, word};
pub use control::{
    COMMAND_ID_BYTES_MAX, CommandMessage, CommandOutcome, Confirm, Desired, ExplainArgs, ForgetArgs, LastDesired,
    LogLevelArgs, Order, Reply, Reported, RequeueArgs, SettingsOutcome, SnapshotArgs, SourceArgs, VERSION_MAX,
    VersionArgs, WhatIfArgs, highest_after,
};
pub use digest::{Digest, InvalidDigest, from_hex};
pub use document::readable;
pub use doubt::{Doubt, Measure};
pub use enrolment::{
    ENROL_PATH, EnrolRequest, Enrolled, FINGERPRINT_CHARS, NotEnrolled, PairingCode, RENEW_PATH, RenewRequest,
};
pub use goal::{Allowance, ClassPolicy, OnShift, RiskOf, Target};
pub use id::{CaseId, CaseKey, DeviceId, Epoch, InvalidId, Name};
pub use newer::newer;
pub use output::{BOXES_MAX, Found, LabelScore, Output, Rect, said};
pub use overlay::{FIELD_ERRORS_MAX, FieldError, LOCAL_ONLY};
pub use plain::plain;
pub use settings::{
    AddedKind, BrokerSettings, CeilingsSettings, LinkProfile, LinkSettings, LogSettings, ModelSettings, OutboxSettings,
    Payload, RegionSettings, Settings, SilentStateSettings, SinkSettings, SinkWants, SourceSettings, StateSettings,
    StatesSettings, TelemetrySettings, ThresholdSettings, VerdictsSettings, WantedSettings, WindowsSettings,
};
pub use share::{NotAShare, NotAWeight, Share, Weight};
pub use spot_checks::{LOSSES_MAX, SpotChecks};
pub use status::{
    BoardFigures, BudgetFigures, CloudState, CloudStatus, DeviceState, DeviceStatus, Faults, JudgeFigures,
    LatencyFigures, LearnedFigures, LinkState, ModelFigures, PrivacyFigures, QueueFigures, RivalFigures, RivalRole,
    SampleFigures, SinkFigures, SourceFigures, Telemetry, Throttling, WantedFigures,
};
pub use task::{ModelRef, Reason, labels_hash};
pub use text::{NotText, in_one_line, root_cause, text, without_mark};
pub use topic::{Topic, Topics};
pub use trace::{SENT_POWERED_MS, TRACEPARENT, TraceContext};
pub use verdict::{Authority, DownMessage, Verdict};

/// What [`Settings`] may hold, as JSON Schema; a test holds it against the types.
pub const SETTINGS_SCHEMA: &str = include_str!("../settings.schema.json");

/// The highest version of the messages in this crate. What an earlier one carries is written as that one, and a device
/// sends a version only to a cloud that reads it.
pub const WIRE_VERSION: u16 = 2;

/// The largest CBOR message either side parses. Larger payloads do not travel over MQTT at all.
pub const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// The largest JSON document either side parses (status, telemetry, settings, commands).
pub const DOCUMENT_BYTES_MAX: usize = 64 * 1024;

/// The most ids one `ask`, `received` or `unknown` names: about 8 KiB of ids.
pub const IDS_MAX: usize = 128;

/// The most cases one batch carries.
pub const BATCH_CASES_MAX: usize = 64;

/// The most an application may attach to a sample, as JSON.
pub const METADATA_BYTES_MAX: usize = 1024;

/// The most scores a case or answer carries, best first.
pub const SCORES_MAX: usize = 5;
