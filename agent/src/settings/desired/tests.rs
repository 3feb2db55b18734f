//! Whatever arrives is refused by the name of what is wrong, or is valid. The committed schema says which fields there
//! are and what each takes, so that a new field is in here without anybody remembering.

mod messages;
pub(in crate::settings) mod schema;

use std::sync::Arc;

use hedge_core::control::settings::{Book, Overlay};
use hedge_proto::{LastDesired, Name, Settings};
use serde_json::{Value, json};

use self::schema::{Place, allows, places};
use super::documents::LOCAL;
use super::{Device, Wanted};
use hedge_config::ConfigFile;

struct Stand {
    file: ConfigFile,
    book: Book,
}

impl Stand {
    fn new() -> Self {
        let file = ConfigFile::parse(LOCAL, "agent.toml", std::iter::empty()).expect("valid");
        let mut book = Book::default();
        book.accept(Overlay { version: 8, settings: Settings::default() });
        Self { file, book }
    }

    fn read(&self, document: &[u8]) -> Result<Option<Wanted>, LastDesired> {
        let labels = |_: &Name| Some(Arc::from(["cat".to_owned()]));
        Device { file: &self.file, book: &self.book, labels }.read(document)
    }

    /// Refused with the name of the place, or of something in it.
    #[track_caller]
    fn check_refused(&self, place: &Place, document: &[u8]) {
        let text = String::from_utf8_lossy(document);
        let refusal = self.read(document).map(|wanted| wanted.is_some()).expect_err(&text);
        let name = place.name();
        let whole = place.path.is_empty();
        let names =
            |field: &str| field.strip_prefix(&name).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']));
        let named = refusal.errors.iter().any(|error| (whole || names(&error.field)) && !error.reason.is_empty());
        assert!(named, "{text}: `{name}` is not named in {refusal:?}");
    }
}

/// What people and programs write where something else is meant.
fn wrong_values(place: &Place) -> Vec<Value> {
    let mut values = vec![
        Value::Null,
        json!(true),
        json!(-1),
        json!(0),
        json!(1.5),
        json!(-0.1),
        json!(1e39),
        json!(-1e308),
        json!(u64::MAX),
        json!(18_446_744_073_709_551_616_f64),
        json!("7"),
        json!(""),
        json!("a b"),
        json!("NaN"),
        json!("x".repeat(2000)),
        json!("é".repeat(300)),
        json!([]),
        json!([1]),
        json!({"surprise": 1}),
        json!({"a": {"b": {"c": [[["deep"]]]}}}),
    ];
    for (bound, step) in [("minimum", -1.0), ("maximum", 1.0)] {
        let numbers = place.alternatives().filter_map(|one| one.get(bound)?.as_f64());
        values.extend(numbers.map(|number| json!(number + step)));
    }
    values
}

#[test]
fn every_field_refuses_by_its_name_what_its_schema_does_not_allow() {
    let (stand, mut documents) = (Stand::new(), 0);
    for place in places() {
        for value in wrong_values(&place).into_iter().filter(|value| !allows(&place.schema, value)) {
            if place.path.is_empty() && value.is_null() {
                continue; // no settings at all: the local file alone
            }
            stand.check_refused(&place, place.document(&value.to_string()).as_bytes());
            documents += 1;
        }
    }
    eprintln!("{documents} documents about {} places", places().len());
    assert!(documents > 1000);
}

#[test]
fn every_field_refuses_by_its_name_what_is_not_json_of_a_document() {
    let stand = Stand::new();
    for place in places() {
        for raw in ["NaN", "-Infinity", "1e999", "nul", "'x'", "\"\n\"", "\"\\ud800\""] {
            stand.check_refused(&place, place.document(raw).as_bytes());
        }
        for deep in ["[".repeat(20), "{\"a\":".repeat(5000)] {
            stand.check_refused(&place, place.document(&deep).as_bytes());
        }
        let mut bytes = place.document("\"@\"").into_bytes();
        let at = bytes.iter().position(|byte| *byte == b'@').expect("there");
        bytes[at] = 0xff;
        stand.check_refused(&place, &bytes);
        if let Some(last) = place.path.last() {
            let twice = place.document(&format!("null, \"{last}\": null"));
            stand.check_refused(&place, twice.as_bytes());
        }
    }
}

#[test]
fn an_unknown_label_of_the_local_file_refuses_no_document_that_does_not_name_it() {
    let text = "[[model]]\nname = \"rgb\"\nbundle = \"/b\"\nthreshold = { classes = { cat = 0.9, cow = 0.9 }, weights = { cwo = 2 } }\n";
    let file = ConfigFile::parse(text, "agent.toml", std::iter::empty()).expect("valid");
    let stand = Stand { file, ..Stand::new() };
    let read = |settings: Value| stand.read(json!({"version": 9, "settings": settings}).to_string().as_bytes());
    let threshold = |threshold: Value| json!({"model": {"rgb": {"threshold": threshold}}});
    for fine in [
        json!({"telemetry": {"interval_s": 5}}),
        threshold(json!({"score_min": 0.7})),
        threshold(json!({"classes": {"cat": 0.5, "dog": null}})),
    ] {
        assert!(read(fine.clone()).is_ok_and(|wanted| wanted.is_some()), "{fine}");
    }
    for (wrong, field) in [
        (json!({"classes": {"cow": 0.9}}), "model.rgb.threshold.classes.cow"),
        (json!({"weights": {"dog": 2}}), "model.rgb.threshold.weights.dog"),
        (json!({"policies": {"dog": "never_ask"}}), "model.rgb.threshold.policies.dog"),
    ] {
        let refusal = read(threshold(wrong)).expect_err("refused");
        assert_eq!(refusal.errors.iter().map(|error| error.field.as_str()).collect::<Vec<_>>(), [field]);
    }
}

#[test]
fn what_leaves_the_device_is_tightened_from_afar_and_never_loosened() {
    let text = format!("{LOCAL}\n[privacy]\nceiling = {{ thumbnail = 320 }}\n");
    let file = ConfigFile::parse(&text, "agent.toml", std::iter::empty()).expect("valid");
    let stand = Stand { file, ..Stand::new() };
    let read = |settings: Value| stand.read(json!({"version": 9, "settings": settings}).to_string().as_bytes());
    let states = ["online", "degraded", "offline", "over_budget"];
    let ask = |payload: &Value| {
        let states: serde_json::Map<_, _> =
            states.map(|state| (state.to_owned(), json!({"payload": payload}))).into_iter().collect();
        read(json!({"link": {"states": states}}))
    };
    for allowed in [json!("nothing"), json!({"thumbnail": 64}), json!({"thumbnail": 320}), json!(null)] {
        assert!(ask(&allowed).is_ok_and(|wanted| wanted.is_some()), "{allowed}");
    }
    for (more, said) in [(json!("whole"), "`whole`"), (json!({"thumbnail": 321}), "`thumbnail 321`")] {
        let refusal = ask(&more).expect_err("refused");
        let fields: Vec<&str> = refusal.errors.iter().map(|error| error.field.as_str()).collect();
        assert_eq!(fields, states.map(|state| format!("link.states.{state}.payload")));
        for error in refusal.errors {
            assert!(error.reason.contains(said) && error.reason.contains("ceiling is `thumbnail 320`"), "{error}");
        }
    }
    let refusal = read(json!({"privacy": {"ceiling": "whole"}})).expect_err("refused");
    assert_eq!(refusal.errors[0].field, "privacy");
    assert!(refusal.errors[0].reason.contains("set on the device only"), "{}", refusal.errors[0]);
}

#[test]
fn every_text_refuses_control_characters() {
    let stand = Stand::new();
    for place in places().into_iter().filter(|place| allows(&place.schema, &json!("a\u{0}b"))) {
        if place.path.contains(&"metadata".to_owned()) {
            continue; // goes with every sample as it is, and decides nothing
        }
        for text in ["a\u{0}b", "\u{1b}[2J", "a\nb"] {
            stand.check_refused(&place, place.document(&json!(text).to_string()).as_bytes());
        }
    }
}

#[test]
fn what_the_schema_gives_as_bounds_is_taken() {
    let stand = Stand::new();
    for place in places() {
        let bounds = place.alternatives().flat_map(|one| [one.get("minimum").cloned(), one.get("maximum").cloned()]);
        for bound in bounds.flatten() {
            let settings: Value = serde_json::from_str(&place.document(&bound.to_string())).expect("JSON");
            let read = Settings::read(settings["settings"].clone());
            assert!(read.is_ok(), "{} = {bound}: {read:?}", place.name());
        }
        if allows(&place.schema, &Value::Null) {
            let document = place.document("null");
            assert!(stand.read(document.as_bytes()).is_ok_and(|wanted| wanted.is_some()), "{document}");
        }
    }
}
