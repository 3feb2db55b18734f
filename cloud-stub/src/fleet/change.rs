//! What an operator wants changed, and the whole document that follows from it.
//!
//! A wanted document is never a patch on the previous one, so a change reads what is wanted now, edits it and
//! takes the next version.

use std::str::FromStr;

use hedge_proto::{Confirm, DOCUMENT_BYTES_MAX, Desired, FieldError, Settings, VERSION_MAX, highest_after, to_json};
use serde_json::{Map, Value};

use super::board::Device;
use super::differ::as_typed;

/// `key=value`: sets one field, or restores the device's local value.
#[derive(Debug, Clone, PartialEq)]
pub struct Edit {
    path: Vec<String>,
    /// `None` restores the local value.
    value: Option<Value>,
}

impl FromStr for Edit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (key, value) = split_at_equals(text).ok_or_else(|| format!("`{text}` sets nothing; write KEY=VALUE"))?;
        let value = match value {
            "" => Value::Null,
            text => serde_json::from_str(text).unwrap_or_else(|_| text.into()),
        };
        Self::new(key, value)
    }
}

impl Edit {
    /// Sets the field `key`; `null` restores the local value.
    pub fn new(key: &str, value: Value) -> Result<Self, String> {
        Ok(Self { path: path(key)?, value: Some(value).filter(|value| !value.is_null()) })
    }
}

/// The first `=` that is not in quotes: a class may have one in its name.
fn split_at_equals(text: &str) -> Option<(&str, &str)> {
    let mut quoted = false;
    let at = text.find(|c| {
        quoted ^= c == '"';
        c == '=' && !quoted
    })?;
    Some((&text[..at], &text[at + 1..]))
}

/// The parts of a field's name; a part with a dot in it is quoted, as in the local file.
pub fn path(key: &str) -> Result<Vec<String>, String> {
    let keys = toml_edit::Key::parse(key)
        .map_err(|_| format!("`{key}` is no field's name; write it with dots, like model.photo.threshold.score_min"))?;
    Ok(keys.iter().map(|key| key.get().to_owned()).collect())
}

/// What to do with the settings wanted now.
#[derive(Debug, Clone, PartialEq)]
pub enum Change {
    Edits(Vec<Edit>),
    Whole(Value),
}

/// A document that is ready to be published.
#[derive(Debug, Clone, PartialEq)]
pub struct Draft {
    pub desired: Desired,
    /// What the operator should know about what it was made from.
    pub note: Option<String>,
}

/// Makes the document for one device, or names every wrong field. Nothing that a device must refuse gets through.
pub fn draft(device: &Device, change: &Change, confirm: Confirm, by: &str) -> Result<Draft, Vec<FieldError>> {
    let version = next_version(device).map_err(|reason| vec![FieldError::new("version", reason)])?;
    let (settings, note) = match change {
        Change::Whole(settings) => (settings.clone(), None),
        Change::Edits(edits) => {
            let (mut settings, note) = base(device);
            for edit in edits {
                edit.apply(&mut settings)?;
            }
            (settings, note)
        }
    };
    Settings::read(settings.clone())?;
    let desired = Desired { version, settings, confirm, by: Some(by.to_owned()) };
    let bytes = to_json(&desired).len();
    if bytes > DOCUMENT_BYTES_MAX {
        let reason = format!("the document has {bytes} bytes, more than the {DOCUMENT_BYTES_MAX} a device reads");
        return Err(vec![FieldError::new("settings", reason)]);
    }
    Ok(Draft { desired, note })
}

/// What is wanted now. Where that is gone or unreadable, what the device took of it.
fn base(device: &Device) -> (Value, Option<String>) {
    if let Some(desired) = &device.desired {
        return (desired.settings.clone(), None);
    }
    let empty = Value::Object(Map::new());
    let (overlay, version) = match &device.reported {
        Some(reported) if reported.version > 0 => (as_typed(&reported.overlay), reported.version),
        _ => (empty, 0),
    };
    let note = match &device.desired_unreadable {
        Some(why) => Some(format!(
            "the wanted document at the broker cannot be read ({why}); the change builds on what is in force"
        )),
        None if version > 0 => {
            Some(format!("the broker has no wanted document any more; the change builds on version {version} in force"))
        }
        None => None,
    };
    (overlay, note)
}

/// Higher than everything the device may have seen.
fn next_version(device: &Device) -> Result<u64, String> {
    let wanted = device.desired.as_ref().map(|desired| desired.version);
    let (in_force, last) = match &device.reported {
        Some(reported) => (Some(reported.version), reported.last.as_ref().and_then(|last| last.version)),
        None => (None, None),
    };
    if in_force.is_some_and(|version| version >= VERSION_MAX) {
        return Err(format!(
            "{VERSION_MAX} is in force and there is no higher version; `hedge-agent settings reset` on the device \
             begins anew"
        ));
    }
    // A document that was refused because its version is too high is nothing to be above of.
    let highest = highest_after(in_force.unwrap_or(0));
    let seen = [wanted, in_force, last].into_iter().flatten().filter(|version| *version < highest).max();
    Ok(seen.unwrap_or(0) + 1)
}

impl Edit {
    fn apply(&self, settings: &mut Value) -> Result<(), Vec<FieldError>> {
        match &self.value {
            Some(value) => self.set(settings, value),
            None => {
                remove(settings, &self.path);
                Ok(())
            }
        }
    }

    fn set(&self, settings: &mut Value, value: &Value) -> Result<(), Vec<FieldError>> {
        let mut place = settings;
        for (depth, part) in self.path.iter().enumerate() {
            if place.is_null() {
                *place = Value::Object(Map::new());
            }
            let Value::Object(object) = place else {
                let field = self.path[..depth].join(".");
                return Err(vec![FieldError::new(field, "is set to a value that has no fields")]);
            };
            place = object.entry(part.as_str()).or_insert(Value::Null);
        }
        *place = value.clone();
        Ok(())
    }
}

/// Takes a field out, and what is empty without it.
fn remove(value: &mut Value, path: &[String]) {
    let (Some(object), Some((part, rest))) = (value.as_object_mut(), path.split_first()) else { return };
    if let Some(inner) = object.get_mut(part).filter(|_| !rest.is_empty()) {
        remove(inner, rest);
        if inner.as_object().is_some_and(|inner| !inner.is_empty()) {
            return;
        }
    }
    object.remove(part);
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{Digest, LastDesired, Reported, SettingsOutcome};
    use serde_json::json;

    fn desired(version: u64, settings: Value) -> Option<Desired> {
        Some(Desired { version, settings, confirm: Confirm::Auto, by: None })
    }

    fn reported(version: u64, last: Option<u64>, overlay: Value) -> Option<Reported> {
        let overlay = Settings::read(overlay).expect("valid");
        let last = last.map(|version| LastDesired {
            version: Some(version),
            outcome: SettingsOutcome::Refused,
            reason: None,
            errors: Vec::new(),
        });
        Some(Reported {
            version,
            hash: Digest::of(b""),
            settings: overlay.clone(),
            overlay,
            suggested: Default::default(),
            paused: Vec::new(),
            last,
        })
    }

    fn edits(texts: &[&str]) -> Change {
        Change::Edits(texts.iter().map(|text| text.parse().expect("an edit")).collect())
    }

    #[track_caller]
    fn check(before: Value, texts: &[&str], after: Value) {
        let device = Device { desired: desired(7, before), ..Device::default() };
        let draft = draft(&device, &edits(texts), Confirm::Auto, "me").expect("valid");
        assert_eq!((draft.desired.version, draft.desired.settings), (8, after));
    }

    #[test]
    fn an_edit_changes_its_field_and_nothing_else() {
        let log = json!({"log": {"level": "debug"}});
        check(log.clone(), &["log.level=info"], json!({"log": {"level": "info"}}));
        check(log.clone(), &["log.level="], json!({}));
        check(log.clone(), &["log=null", "link.profile=metered"], json!({"link": {"profile": "metered"}}));
        check(log.clone(), &["link.profile="], log.clone());
        check(
            json!({"model": {"a": {"threshold": {"score_min": 0.5, "margin_min": 0.1}}}}),
            &["model.a.threshold.score_min=", r#"model."b.c".threshold.classes."x=y"=0.9"#],
            json!({"model": {"a": {"threshold": {"margin_min": 0.1}}, "b.c": {"threshold": {"classes": {"x=y": 0.9}}}}}),
        );
    }

    #[test]
    fn values_are_json_where_they_read_as_json_and_text_else() {
        for (text, value) in [
            ("a=1", json!(1)),
            ("a=true", json!(true)),
            ("a=yes", json!("yes")),
            ("a={\"b\":1}", json!({"b": 1})),
            ("a=\"1\"", json!("1")),
        ] {
            assert_eq!(text.parse::<Edit>().expect("an edit").value, Some(value));
        }
        for bad in ["a", "=1", "a..b=1", "a b=1", ".=1"] {
            assert!(bad.parse::<Edit>().is_err(), "{bad}");
        }
    }

    #[test]
    fn a_wrong_field_is_refused_by_name_before_anything_is_published() {
        let device = Device { desired: desired(1, json!({})), ..Device::default() };
        for (text, field) in [
            ("log.levle=info", "log.levle"),
            ("model.a.threshold.score_min=1.2", "model.a.threshold.score_min"),
            ("broker.password_file=/etc/shadow", "broker.password_file"),
        ] {
            let errors = draft(&device, &edits(&[text]), Confirm::Auto, "me").expect_err("refused");
            assert_eq!(errors[0].field, field);
        }
        let errors =
            draft(&device, &edits(&["log.level=info", "log.level.x=1"]), Confirm::Auto, "me").expect_err("refused");
        assert_eq!(errors[0].field, "log.level");
        let large = edits(&[&format!("log.level=\"{}\"", "x".repeat(DOCUMENT_BYTES_MAX))]);
        assert!(draft(&device, &large, Confirm::Auto, "me").expect_err("refused")[0].reason.contains("bytes"));
    }

    #[test]
    fn the_next_version_is_above_everything_the_device_has_seen() {
        for (wanted, in_force, last, next) in [
            (None, None, None, 1),
            (Some(3), None, None, 4),
            (Some(3), Some(9), None, 10),
            (Some(3), Some(2), Some(5), 6),
            (Some(VERSION_MAX), Some(2), Some(VERSION_MAX), 3),
        ] {
            let device = Device {
                desired: wanted.and_then(|version| desired(version, json!({}))),
                reported: in_force.and_then(|version| reported(version, last, json!({}))),
                ..Device::default()
            };
            assert_eq!(next_version(&device), Ok(next));
        }
        let last = Device { reported: reported(VERSION_MAX, None, json!({})), ..Device::default() };
        assert!(next_version(&last).is_err());
    }

    #[test]
    fn a_lost_or_damaged_wanted_document_does_not_take_its_settings_with_it() {
        let in_force = json!({"model": {"a": {"threshold": {"score_min": 0.7}}}});
        for desired_unreadable in [None, Some("not JSON".to_owned())] {
            let device =
                Device { reported: reported(4, None, in_force.clone()), desired_unreadable, ..Device::default() };
            let draft = draft(&device, &edits(&["log.level=info"]), Confirm::Auto, "me").expect("valid");
            assert_eq!(draft.desired.version, 5);
            assert_eq!(draft.desired.settings["model"], in_force["model"]);
            assert!(draft.note.is_some());
        }
    }
}
