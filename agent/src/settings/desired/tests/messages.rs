//! Thousands of messages, valid ones bent out of shape and garbage, through the decoder of each `down` topic.

use hedge_core::clock::Moment;
use hedge_core::control::commands::{Admission, Arrived, Book};
use hedge_proto::{
    Authority, CaseId, CaseKey, CommandMessage, DeviceId, DownMessage, Epoch, MESSAGE_BYTES_MAX, ModelRef, Order,
    Output, PayloadForm, Settings, Topics, Verdict, from_cbor, to_cbor, to_json,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use serde_json::{Value, json};

use super::Stand;
use super::schema::{Place, allows, places};

/// A device id, and messages that are right.
const DEVICE: &str = "device-1";

/// The same messages every time: what is found is found again.
fn two_thousand() -> ProptestConfig {
    ProptestConfig {
        cases: 2000,
        rng_seed: RngSeed::Fixed(0x6865_6467),
        failure_persistence: None,
        ..Default::default()
    }
}

/// One way to bend a message out of shape, at a place that depends on its length.
#[derive(Debug, Clone)]
enum Bend {
    Nothing,
    Flip { at: prop::sample::Index, with: u8 },
    CutOff { at: prop::sample::Index },
    Insert { at: prop::sample::Index, bytes: Vec<u8> },
    Repeat { from: prop::sample::Index, to: prop::sample::Index },
    Replace { with: Vec<u8> },
}

fn bend() -> impl Strategy<Value = Bend> {
    let at = any::<prop::sample::Index>;
    prop_oneof![
        1 => Just(Bend::Nothing),
        4 => (at(), 1..=255_u8).prop_map(|(at, with)| Bend::Flip { at, with }),
        2 => at().prop_map(|at| Bend::CutOff { at }),
        2 => (at(), prop::collection::vec(any::<u8>(), 1..9)).prop_map(|(at, bytes)| Bend::Insert { at, bytes }),
        2 => (at(), at()).prop_map(|(from, to)| Bend::Repeat { from, to }),
        1 => prop::collection::vec(any::<u8>(), 0..200).prop_map(|with| Bend::Replace { with }),
    ]
}

impl Bend {
    fn apply(&self, mut message: Vec<u8>) -> Vec<u8> {
        let length = message.len();
        match self {
            Self::Nothing => {}
            Self::Flip { at, with } => message[at.index(length)] ^= with,
            Self::CutOff { at } => message.truncate(at.index(length)),
            Self::Insert { at, bytes } => {
                let at = at.index(length);
                message.splice(at..at, bytes.iter().copied());
            }
            Self::Repeat { from, to } => {
                let (from, to) = (from.index(length), to.index(length));
                let part = message[from.min(to)..from.max(to)].to_vec();
                message.splice(to..to, part);
            }
            Self::Replace { with } => message.clone_from(with),
        }
        message
    }
}

fn bent(message: Vec<u8>, bends: &[Bend]) -> Vec<u8> {
    bends.iter().fold(message, |message, bend| if message.is_empty() { message } else { bend.apply(message) })
}

/// Right or wrong values, each about half of the time.
fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        (-5..100_i64).prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (0.0..=1.0_f64).prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        prop::sample::select(vec!["debug", "metered", "corrections", "whole", "mqtt://b", "away", "m.1", "http", ""])
            .prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 16, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map("[a-z_]{1,8}", inner, 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn document() -> impl Strategy<Value = Vec<u8>> {
    let place = prop::sample::select(places());
    (place, value()).prop_map(|(place, value): (Place, Value)| place.document(&value.to_string()).into_bytes())
}

fn command() -> impl Strategy<Value = Vec<u8>> {
    let orders = vec![
        ("ping", json!({})),
        ("explain", json!({"last": 3})),
        ("pause", json!({"source": "porch"})),
        ("requeue", json!({"ids": ["7.0"]})),
        ("log_level", json!({"level": "debug", "for_s": 60})),
        ("confirm", json!({"version": 3})),
        ("no_such", json!(null)),
    ];
    let right = (prop::sample::select(orders), prop::option::of("[a-z0-9]{1,8}"), any::<Option<u64>>()).prop_map(
        |((command, args), id, issued_ms)| {
            let by = Some("ana".to_owned());
            to_json(&CommandMessage { id, command: command.to_owned(), args, issued_ms, by })
        },
    );
    let strange = value().prop_map(|args| to_json(&json!({"id": "1", "command": "explain", "args": args})));
    prop_oneof![3 => right, 1 => strange]
}

fn down() -> impl Strategy<Value = Vec<u8>> {
    let id = || CaseId { device: DeviceId::new(DEVICE).expect("valid"), key: CaseKey { epoch: Epoch(7), sequence: 3 } };
    let verdict = Verdict {
        v: 1,
        id: id(),
        revision: 1,
        authority: Authority::Model,
        task: "classify".to_owned(),
        said: Output::label("cat"),
        model: ModelRef { name: "large".to_owned(), version: "1".to_owned() },
    };
    let messages = vec![
        DownMessage::Verdict(verdict),
        DownMessage::Received { ids: vec![id(), id()] },
        DownMessage::Unknown { ids: vec![id()] },
        DownMessage::Busy { after_s: 9 },
        DownMessage::Failed { id: id(), reason: "tired".to_owned() },
        DownMessage::Dead { id: id(), reason: "no picture".to_owned() },
        DownMessage::Send { id: id(), form: PayloadForm::Whole },
    ];
    prop::sample::select(messages).prop_map(|message| to_cbor(&message))
}

proptest! {
    #![proptest_config(two_thousand())]

    #[test]
    fn a_document_is_valid_or_refused_with_what_is_wrong(message in document(), bends in prop::collection::vec(bend(), 1..3)) {
        let message = bent(message, &bends);
        match Stand::new().read(&message) {
            Ok(wanted) => {
                let whole: Value = serde_json::from_slice(&message).expect("JSON");
                let schema: Value = serde_json::from_str(hedge_proto::SETTINGS_SCHEMA).expect("JSON");
                let settings = whole.get("settings").cloned().unwrap_or_default();
                prop_assert!(settings.is_null() || allows(&schema, &settings), "taken against the schema: {settings}");
                let wanted = wanted.expect("its version is a new one");
                let as_kept = serde_json::from_slice(&to_json(&wanted.overlay.settings)).expect("JSON");
                prop_assert_eq!(Settings::read(as_kept), Ok(wanted.overlay.settings));
            }
            Err(refusal) => {
                prop_assert!(refusal.reason.is_some_and(|reason| !reason.is_empty()));
                for error in refusal.errors {
                    prop_assert!(!error.field.is_empty() && !error.reason.is_empty(), "{error:?}");
                }
            }
        }
    }

    #[test]
    fn a_command_runs_or_is_refused_with_a_reason(message in command(), bends in prop::collection::vec(bend(), 1..3)) {
        let message = bent(message, &bends);
        let topics = Topics::new("").expect("valid");
        let mut book = Book::new(DeviceId::new(DEVICE).expect("valid"), topics);
        let arrived = Arrived { payload: &message, ..Arrived::default() };
        match book.admit(Moment(0), None, &arrived) {
            Admission::Begin { intent, order } => {
                let read = CommandMessage::read(&message).expect("valid");
                prop_assert_eq!(read.id, Some(intent.id));
                prop_assert_eq!(Order::read(&read.command, &read.args), Ok(order));
            }
            Admission::Look { order, .. } => prop_assert!(order.changes_nothing()),
            Admission::Again { id } => prop_assert!(false, "{id} was never given"),
            Admission::Refuse(refusal) => {
                prop_assert!(!refusal.reason.is_empty() && !refusal.reason.contains(char::is_control));
            }
            Admission::Ignore(_) => prop_assert!(message.is_empty()),
        }
    }

    #[test]
    fn a_message_of_the_cloud_is_read_or_refused_with_a_reason(message in down(), bends in prop::collection::vec(bend(), 1..3)) {
        let message = bent(message, &bends);
        match from_cbor::<DownMessage>(&message, MESSAGE_BYTES_MAX) {
            // What was read is what would be written.
            Ok(read) => {
                let again = from_cbor::<DownMessage>(&to_cbor(&read), MESSAGE_BYTES_MAX).expect("reads back");
                prop_assert_eq!(to_cbor(&again), to_cbor(&read));
            }
            Err(error) => prop_assert!(!error.to_string().is_empty()),
        }
    }
}
