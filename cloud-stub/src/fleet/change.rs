//! What an operator wants changed, and the whole document that follows from it.
//!
//! A wanted document is never a patch on the previous one, so a change reads what is in force, edits it and takes the
//! next version. What was wanted and is not in force does not ride along: what the device has refused or what failed
//! never does, and what it has not taken yet only if the operator says so.

use std::str::FromStr;

use hedge_proto::{
    Confirm, DOCUMENT_BYTES_MAX, Desired, FieldError, LastDesired, Reported, Settings, SettingsOutcome, VERSION_MAX,
    highest_after, to_json, to_value,
};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::board::Device;
use super::differ::leaves;

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
        if value.is_empty() {
            return Self::new(key, Value::Null);
        }
        let text = Self::new(key, value.into())?;
        let Ok(value) = serde_json::from_str(value) else { return Ok(text) };
        let edit = Self::new(key, value)?;
        // The version 1.10 of a bundle, or a user called 17, reads as a number and is none.
        Ok(if edit.is_of_wrong_kind() && !text.is_of_wrong_kind() { text } else { edit })
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

/// What an edit builds on, where the device has not taken yet what is wanted of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Onto {
    InForce,
    Wanted,
}

/// Makes the document for one device, or names every wrong field. Nothing that a device must refuse gets through.
pub fn draft(
    device: &Device,
    change: &Change,
    onto: Option<Onto>,
    confirm: Confirm,
    by: &str,
) -> Result<Draft, Vec<FieldError>> {
    let version = next_version(device).map_err(|reason| vec![FieldError::new("version", reason)])?;
    let (settings, note) = match change {
        Change::Whole(settings) => (settings.clone(), None),
        Change::Edits(edits) => edited(device, edits, onto)?,
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

fn edited(device: &Device, edits: &[Edit], onto: Option<Onto>) -> Result<(Value, Option<String>), Vec<FieldError>> {
    let refused = |reason| vec![FieldError::new("version", reason)];
    for (at, edit) in edits.iter().enumerate() {
        if let Some(undone) = edits[..at].iter().find(|earlier| earlier.path.starts_with(&edit.path)) {
            let reason = format!("undoes `{}`, which is given before it: give one of them", undone.path.join("."));
            return Err(vec![FieldError::new(edit.path.join("."), reason)]);
        }
    }
    let on = |mut settings: Value| edits.iter().try_for_each(|edit| edit.apply(&mut settings)).map(|()| settings);
    let base = base(device).map_err(refused)?;
    let on_base = on(base.settings)?;
    let Some(pending) = base.pending else {
        if let (Some(Onto::Wanted), Some(note)) = (onto, &base.note) {
            return Err(refused(format!("what is wanted is nothing to build on: {note}")));
        }
        return Ok((on_base, base.note));
    };
    let named = named(pending);
    let on_wanted = on(pending.settings.clone())?;
    match onto {
        // Whichever it builds on, it is the same.
        _ if on_wanted == on_base => Ok((on_base, base.note)),
        Some(Onto::InForce) => Ok((on_base, Some(format!("{named}, which the device has not taken yet, is dropped")))),
        Some(Onto::Wanted) => Ok((on_wanted, Some(format!("the change includes {named}, which is not in force yet")))),
        None => {
            let fields: Vec<String> = leaves(&pending.settings).into_iter().map(|(field, _)| field).collect();
            let fields = if fields.is_empty() { "nothing".to_owned() } else { fields.join(", ") };
            Err(refused(format!(
                "{named} sets {fields}, and the device has not said yet what became of it; build on it with \
                 `--onto wanted`, or drop it with `--onto in-force`"
            )))
        }
    }
}

/// What an edit builds on.
#[derive(Debug, Clone, PartialEq)]
pub struct Base<'a> {
    pub settings: Value,
    /// What the operator should know about it.
    pub note: Option<String>,
    /// What is wanted besides, and the device has not taken yet.
    pub pending: Option<&'a Desired>,
}

/// What is in force, unless that is on trial: then nobody but the device knows what will be.
pub fn base(device: &Device) -> Result<Base<'_>, String> {
    let reported = device.reported.as_ref();
    let last = reported.and_then(|reported| reported.last.as_ref());
    if let Some(LastDesired { version: Some(version), outcome: SettingsOutcome::OnTrial, .. }) = last {
        return Err(format!(
            "version {version} is on trial; wait for its end, end it with the command `confirm` or `revert` and \
             version={version}, or replace all settings with `apply`"
        ));
    }
    let in_force = |note, pending| {
        let overlay = reported.map_or(Value::Null, |reported| to_value(&reported.overlay));
        let settings = if overlay.is_object() { overlay } else { Value::Object(Map::new()) };
        Ok(Base { settings, note, pending })
    };
    let Some(desired) = &device.desired else {
        let builds = builds_on(reported);
        let note = match &device.desired_unreadable {
            Some(why) => Some(format!("the wanted document at the broker cannot be read ({why}); {builds}")),
            None if reported.is_some_and(|reported| reported.version > 0) => {
                Some(format!("the broker has no wanted document any more; {builds}"))
            }
            None => None,
        };
        return in_force(note, None);
    };
    if reported.is_some_and(|reported| reported.version == desired.version) {
        // As it was written: numbers and fields that are not reported, too.
        return Ok(Base { settings: desired.settings.clone(), note: None, pending: None });
    }
    let became = last.filter(|last| last.version == Some(desired.version)).map(|last| match last.outcome {
        SettingsOutcome::Refused => "was refused",
        SettingsOutcome::Failed => "failed its trial",
        SettingsOutcome::Applied | SettingsOutcome::OnTrial => "is no longer in force",
    });
    match became {
        Some(became) => in_force(Some(format!("{} {became}; {}", named(desired), builds_on(reported))), None),
        None => in_force(None, Some(desired)),
    }
}

fn named(desired: &Desired) -> String {
    let by = desired.by.as_ref().map(|by| format!(" by {by}")).unwrap_or_default();
    format!("version {}{by}", desired.version)
}

fn builds_on(reported: Option<&Reported>) -> String {
    match reported.map(|reported| reported.version) {
        Some(version) if version > 0 => format!("the change builds on version {version} in force"),
        _ => "the change builds on the device's own file".to_owned(),
    }
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

    /// Whether no device would read this field so, whatever else is set.
    fn is_of_wrong_kind(&self) -> bool {
        let mut settings = Value::Null;
        let read = self.apply(&mut settings).and_then(|()| Settings::read(settings));
        read.is_err_and(|errors| {
            errors.iter().any(|error| self.path.last().is_some_and(|name| error.field.ends_with(name.as_str())))
        })
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

    fn draft(device: &Device, change: &Change) -> Result<Draft, Vec<FieldError>> {
        super::draft(device, change, None, Confirm::Auto, "me")
    }

    #[track_caller]
    fn check(before: Value, texts: &[&str], after: Value) {
        let device =
            Device { reported: reported(7, None, before.clone()), desired: desired(7, before), ..Device::default() };
        let draft = draft(&device, &edits(texts)).expect("valid");
        assert_eq!((draft.desired.version, draft.desired.settings, draft.note), (8, after, None));
    }

    #[test]
    fn edits_that_undo_each_other_are_refused() {
        let device = Device { reported: reported(7, None, json!({})), ..Device::default() };
        for (texts, field) in [
            (&["log.level=warn", "log.level=info"][..], "log.level"),
            (&["log.level=warn", "log="], "log"),
            (&["log.level=warn", "telemetry.interval_s=9", "log.level="], "log.level"),
        ] {
            let errors = draft(&device, &edits(texts)).expect_err("refused");
            assert_eq!(
                (errors[0].field.as_str(), errors[0].reason.contains("`log.level`")),
                (field, true),
                "{errors:?}"
            );
        }
        check(json!({"log": {"level": "info"}}), &["log=", "log.level=warn"], json!({"log": {"level": "warn"}}));
    }

    /// Version 1 is in force, and version 2 has come to this.
    fn after(outcome: Option<SettingsOutcome>) -> Device {
        let mut device = Device {
            desired: desired(2, json!({"broker": {"url": "mqtt://nowhere"}})),
            reported: reported(1, None, json!({"log": {"level": "info"}})),
            ..Device::default()
        };
        if let (Some(outcome), Some(reported)) = (outcome, &mut device.reported) {
            reported.last = Some(LastDesired { version: Some(2), outcome, reason: None, errors: Vec::new() });
        }
        device
    }

    #[test]
    fn what_was_refused_or_has_failed_never_rides_along_with_a_later_edit() {
        let edit = edits(&["telemetry.interval_s=9"]);
        for (outcome, word) in [(SettingsOutcome::Refused, "refused"), (SettingsOutcome::Failed, "failed")] {
            let device = after(Some(outcome));
            let draft = draft(&device, &edit).expect("valid");
            let built = json!({"log": {"level": "info"}, "telemetry": {"interval_s": 9}});
            assert_eq!((draft.desired.version, draft.desired.settings), (3, built));
            assert!(draft.note.is_some_and(|note| note.contains(word) && note.contains("version 1 in force")));
            assert!(super::draft(&device, &edit, Some(Onto::Wanted), Confirm::Auto, "me").is_err());
        }
        let mut on_trial = after(Some(SettingsOutcome::OnTrial));
        if let Some(reported) = &mut on_trial.reported {
            reported.version = 2;
        }
        let errors = draft(&on_trial, &edit).expect_err("refused");
        assert!(errors[0].reason.contains("version 2 is on trial"), "{errors:?}");
    }

    #[test]
    fn what_the_device_has_not_taken_yet_is_named_and_rides_along_only_if_that_is_said() {
        let (device, edit) = (after(None), edits(&["telemetry.interval_s=9"]));
        let errors = draft(&device, &edit).expect_err("refused");
        let reason = &errors[0].reason;
        assert!(reason.contains("version 2") && reason.contains("broker.url") && reason.contains("--onto"), "{reason}");
        for (onto, built) in [
            (Onto::InForce, json!({"log": {"level": "info"}, "telemetry": {"interval_s": 9}})),
            (Onto::Wanted, json!({"broker": {"url": "mqtt://nowhere"}, "telemetry": {"interval_s": 9}})),
        ] {
            let draft = super::draft(&device, &edit, Some(onto), Confirm::Auto, "me").expect("valid");
            assert_eq!((draft.desired.settings, draft.note.is_some()), (built, true));
        }
        // Where it makes no difference nobody is asked.
        let draft = draft(&device, &edits(&["broker=", "log.level="])).expect("valid");
        assert_eq!(draft.desired.settings, json!({}));
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
            ("model.a.wanted.version=1.10", json!("1.10")),
            ("model.a.wanted.version=2", json!("2")),
            ("model.a.threshold.score_min=1.2", json!(1.2)),
            ("link.windows.every_s=60", json!(60)),
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
            let errors = draft(&device, &edits(&[text])).expect_err("refused");
            assert_eq!(errors[0].field, field);
        }
        let errors = draft(&device, &edits(&["log.level=info", "log.level.x=1"])).expect_err("refused");
        assert_eq!(errors[0].field, "log.level");
        let large = edits(&[&format!("log.level=\"{}\"", "x".repeat(DOCUMENT_BYTES_MAX))]);
        assert!(draft(&device, &large).expect_err("refused")[0].reason.contains("bytes"));
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
            let draft = draft(&device, &edits(&["log.level=info"])).expect("valid");
            assert_eq!(draft.desired.version, 5);
            assert_eq!(draft.desired.settings["model"], in_force["model"]);
            assert!(draft.note.is_some());
        }
    }
}
