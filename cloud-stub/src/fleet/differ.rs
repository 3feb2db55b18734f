//! Compares settings field by field, under the names people type.

use std::collections::{BTreeMap, BTreeSet};

use hedge_proto::{Settings, to_value};
use serde::Serialize;
use serde_json::Value;

use super::board::Device;

/// One field that is not as it is wanted.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Difference {
    pub field: String,
    /// Absent: wanted as in the device's local file.
    pub wanted: Option<Value>,
    pub in_force: Option<Value>,
}

/// The innermost values of a document by their dotted names, in order.
#[must_use]
pub fn leaves(document: &Value) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    walk(document, &mut Vec::new(), &mut found);
    found
}

fn walk<'a>(value: &'a Value, path: &mut Vec<&'a str>, found: &mut Vec<(String, Value)>) {
    match value {
        Value::Object(object) if !object.is_empty() => {
            for (key, inner) in object {
                path.push(key);
                walk(inner, path, found);
                path.pop();
            }
        }
        Value::Null => {}
        other if path.is_empty() && other.as_object().is_some_and(serde_json::Map::is_empty) => {}
        other => found.push((name(path), other.clone())),
    }
}

/// A field's name as it is typed: what has a dot in it is quoted.
fn name(path: &[&str]) -> String {
    let parts: Vec<String> = path.iter().map(|part| toml_edit::Key::new(*part).display_repr().into_owned()).collect();
    parts.join(".")
}

/// The value of a field by its path, if the document has it.
#[must_use]
pub fn field<'a>(document: &'a Value, path: &[String]) -> Option<&'a Value> {
    path.iter().try_fold(document, |value, part| value.get(part)).filter(|value| !value.is_null())
}

/// Where what is wanted and what is in force are not the same. Wanted settings that no device would take are
/// compared as they were written.
#[must_use]
pub fn differences(device: &Device) -> Vec<Difference> {
    let wanted = device.desired.as_ref().map_or(Value::Null, |desired| typed(&desired.settings));
    let (overlay, in_force) = match &device.reported {
        Some(reported) => (to_value(&reported.overlay), to_value(&reported.settings)),
        None => (Value::Null, Value::Null),
    };
    let (wanted, overlay, in_force) = (leaves(&wanted), leaves(&overlay), leaves(&in_force));
    let value_of = |list: &[(String, Value)], field: &str| {
        list.iter().find(|(name, _)| name == field).map(|(_, value)| value.clone())
    };
    let not_so = wanted.iter().filter_map(|(field, value)| {
        // Not every field that can be wanted has a value that is reported, so what was taken counts, too.
        let now = value_of(&in_force, field).or_else(|| value_of(&overlay, field));
        (now.as_ref() != Some(value)).then(|| Difference {
            field: field.clone(),
            wanted: Some(value.clone()),
            in_force: now,
        })
    });
    let no_more = overlay.iter().filter(|(field, _)| value_of(&wanted, field).is_none());
    let no_more =
        no_more.map(|(field, value)| Difference { field: field.clone(), wanted: None, in_force: Some(value.clone()) });
    not_so.chain(no_more).collect()
}

/// One field that a wanted document has changed.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Changed {
    pub field: String,
    /// Absent: as in the device's local file.
    pub before: Option<Value>,
    pub after: Option<Value>,
}

/// What the settings of one wanted document change against those of another.
#[must_use]
pub fn changes(before: &Value, after: &Value) -> Vec<Changed> {
    let before: BTreeMap<String, Value> = leaves(before).into_iter().collect();
    let after: BTreeMap<String, Value> = leaves(after).into_iter().collect();
    let fields: BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let changed = fields.into_iter().filter(|field| before.get(*field) != after.get(*field));
    changed
        .map(|field| Changed {
            field: field.clone(),
            before: before.get(field).cloned(),
            after: after.get(field).cloned(),
        })
        .collect()
}

fn typed(settings: &Value) -> Value {
    Settings::read(settings.clone()).map_or_else(|_| settings.clone(), |read| to_value(&read))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{Confirm, Desired, Digest, Reported};
    use serde_json::json;

    fn device(wanted: Value, in_force: Value, overlay: Value) -> Device {
        let desired = Desired { version: 2, settings: wanted, confirm: Confirm::Auto, by: None };
        let reported = Reported {
            version: 1,
            hash: Digest::of(b""),
            settings: Settings::read(in_force).expect("valid"),
            overlay: Settings::read(overlay).expect("valid"),
            suggested: Default::default(),
            paused: Vec::new(),
            last: None,
        };
        Device { desired: Some(desired), reported: Some(reported), ..Device::default() }
    }

    #[test]
    fn only_what_differs_is_listed_and_numbers_are_compared_as_the_device_holds_them() {
        let threshold = |score: f64| json!({"model": {"photo.v2": {"threshold": {"score_min": score}}}});
        assert_eq!(differences(&device(threshold(0.7), threshold(0.7), threshold(0.7))), []);
        let found = differences(&device(threshold(0.8), threshold(0.7), threshold(0.7)));
        let expected = Difference {
            field: "model.\"photo.v2\".threshold.score_min".to_owned(),
            wanted: Some(json!(0.8)),
            in_force: Some(json!(0.7)),
        };
        assert_eq!(found, [expected]);
    }

    #[test]
    fn a_change_is_told_with_what_was_before() {
        let changed = changes(&json!({"log": {"level": "info"}, "a": 1}), &json!({"a": 1, "b": {"c": [2]}}));
        let told = |field: &str, before: Value, after: Value| Changed {
            field: field.to_owned(),
            before: Some(before).filter(|value| !value.is_null()),
            after: Some(after).filter(|value| !value.is_null()),
        };
        assert_eq!(changed, [told("b.c", Value::Null, json!([2])), told("log.level", json!("info"), Value::Null)]);
    }

    #[test]
    fn what_is_no_longer_wanted_and_what_is_wrong_is_listed() {
        let level = json!({"log": {"level": "debug"}});
        let found = differences(&device(json!({"logg": 1}), level.clone(), level));
        let fields: Vec<_> = found.iter().map(|difference| difference.field.as_str()).collect();
        assert_eq!(fields, ["logg", "log.level"]);
        assert_eq!(found[1].wanted, None);
    }
}
