//! Reads an overlay of settings whole, or names everything that is wrong with it.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::ops::RangeInclusive;

use serde::{Deserialize, Serialize};
use serde_json::Value;
use serde_path_to_error::{Path, Segment};

use crate::{
    CeilingsSettings, MESSAGE_BYTES_MAX, Payload, Settings, SilentStateSettings, StateSettings, StatesSettings,
    VERSION_MAX, plain, readable,
};

/// What is wrong with one field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FieldError {
    /// As in the local file, with dots: `model.photo.threshold.score_min`.
    pub field: String,
    pub reason: String,
}

/// What is decided on the device alone, by the beginning of its name, and why. `*` is any one name.
pub const LOCAL_ONLY: &[(&str, &str)] = &[
    ("device", "the device's name is its identity"),
    ("home_assistant", "topics besides its own are decided on the device"),
    ("state_dir", "it holds what must not be lost"),
    ("http", "who may reach the device's own interface is decided on the device"),
    ("runtime", "a library is code"),
    ("credentials", "secrets never travel; name them with broker.credentials"),
    ("settings", "how long settings are on trial is decided on the device"),
    ("payloads", "where payloads go is decided on the device"),
    ("bundles", "where bundles come from, and whose count, is decided on the device"),
    ("enrolment", "who vouches for the device is decided on the device"),
    ("broker.identity", "the device's name is its identity"),
    ("privacy", "what may leave the device is decided on the device"),
    ("broker.recovery", "it is the way back when everything else was set wrong"),
    ("broker.recovery_after_s", "it is the way back when everything else was set wrong"),
    ("broker.prefix", "it belongs to the device's identity"),
    ("broker.username", "secrets never travel; name them with broker.credentials"),
    ("broker.password_file", "secrets never travel; name them with broker.credentials"),
    ("broker.ca_file", "secrets never travel; name them with broker.credentials"),
    ("broker.certificate_file", "secrets never travel; name them with broker.credentials"),
    ("broker.key_file", "secrets never travel; name them with broker.credentials"),
    ("link.probe", "an address the device asks is decided on the device"),
    ("outbox.cases_max", "the disk is the device's"),
    ("outbox.bytes_max", "the disk is the device's"),
    ("outbox.free_bytes_min", "the disk is the device's"),
    ("outbox.when_full", "the disk is the device's"),
    ("outbox.age_max_s", "the disk is the device's"),
    ("outbox.payload_bytes_max", "the disk is the device's"),
    ("log.format", "the journal's readers are on the device"),
    ("model.*.bundle", "a model is code; bundles are delivered on the device"),
    ("model.*.variant", "a model is code; bundles are delivered on the device"),
    ("model.*.promote_by_evidence", "which model answers is up to whoever owns the device"),
    ("model.*.hung_after_s", "the board's cores are the device's"),
    ("model.*.threads", "the board's cores are the device's"),
    ("model.*.provider", "what the board can calculate with is known where it stands"),
    ("model.*.provider_options", "what the board can calculate with is known where it stands"),
    ("source.*.path", "folders are the device's"),
    ("source.*.after", "folders are the device's"),
    ("source.*.command", "a command is code"),
    ("source.*.format", "a command is code"),
    ("source.*.quiet_after_s", "how often a camera speaks is known where it stands"),
    ("verdicts.jsonl.path", "folders are the device's"),
    ("verdicts.jsonl.bytes_max", "the disk is the device's"),
    ("verdicts.webhook.url", "who gets answers is decided on the device"),
    ("verdicts.webhook.ca_file", "secrets never travel"),
    ("verdicts.webhook.token_file", "secrets never travel"),
    ("verdicts.command.command", "a command is code"),
    ("verdicts.mqtt.broker", "who gets answers is decided on the device"),
];

/// The most wrong fields one answer lists; a document with more is wrong altogether.
pub const FIELD_ERRORS_MAX: usize = 32;

/// The most of a reason, and of a field's name, that goes into an answer: both may quote what was sent.
const REASON_CHARS_MAX: usize = 300;

impl FieldError {
    #[must_use]
    pub fn new(field: impl AsRef<str>, reason: impl AsRef<str>) -> Self {
        let (field, reason) = (field.as_ref(), reason.as_ref());
        // JSON allows a name without a letter.
        let field = if field.is_empty() { "\"\"" } else { field };
        Self { field: readable(field, REASON_CHARS_MAX), reason: readable(reason, REASON_CHARS_MAX) }
    }
}

impl core::fmt::Display for FieldError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        write!(f, "{}: {}", self.field, self.reason)
    }
}

impl Settings {
    /// Reads an overlay whole, or names every wrong field (at most [`FIELD_ERRORS_MAX`]).
    pub fn read(mut overlay: Value) -> Result<Self, Vec<FieldError>> {
        let mut errors = Vec::new();
        take_local_only(&mut overlay, &mut errors);
        take_lists(&mut overlay, "", &mut errors);
        if overlay.is_array() {
            return Err(Vec::from([FieldError::new("settings", "found a list, expected a table of fields")]));
        }
        loop {
            match serde_path_to_error::deserialize::<_, Self>(&overlay) {
                Ok(settings) => {
                    settings.check_ranges(&mut errors);
                    return if errors.is_empty() { Ok(settings) } else { Err(errors) };
                }
                Err(error) => {
                    let path = error.path().clone();
                    errors.push(FieldError::new(field_name(&path), plain(&error.into_inner().to_string())));
                    if errors.len() >= FIELD_ERRORS_MAX || !take_out(&mut overlay, &path) {
                        return Err(errors);
                    }
                }
            }
        }
    }
}

/// The longest text of one setting, in bytes.
const TEXT_BYTES_MAX: usize = 512;

/// A protocol's name in TLS has its length in one byte.
const ALPN_BYTES_MAX: usize = 255;

impl Settings {
    /// What a type alone does not refuse.
    fn check_ranges(&self, errors: &mut Vec<FieldError>) {
        let mut number = |field: &str, value: Option<u64>, range: RangeInclusive<u64>| {
            if let Some(value) = value.filter(|value| !range.contains(value)) {
                let (least, most) = (range.start(), range.end());
                errors.push(FieldError::new(field, format!("{value} is not a number from {least} to {most}")));
            }
        };
        let link = self.link.clone().unwrap_or_default();
        number("link.batch_bytes_max", link.batch_bytes_max.map(u64::from), 0..=MESSAGE_BYTES_MAX as u64);
        for (field, value) in link.ceilings.as_ref().map(CeilingsSettings::all).into_iter().flatten() {
            number(&format!("link.ceilings.{field}"), value, 0..=VERSION_MAX);
        }
        for State { name, wait_ms_max, payload, .. } in link.states.iter().flat_map(StatesSettings::all) {
            number(&format!("link.states.{name}.wait_ms_max"), wait_ms_max, 0..=60_000);
            if let Some((form, side)) = payload.and_then(Payload::side) {
                number(&format!("link.states.{name}.payload.{form}"), Some(u64::from(side)), 16..=4096);
            }
        }
        let windows = link.windows.clone().unwrap_or_default();
        number("link.windows.every_s", windows.every_s.filter(|every| *every != 0).map(u64::from), 60..=43_200);
        number("link.windows.open_s", windows.open_s.map(u64::from), 30..=43_200);
        number("outbox.store_wait_ms", self.outbox.as_ref().and_then(|outbox| outbox.store_wait_ms), 0..=10_000);
        number("telemetry.interval_s", self.telemetry.as_ref().and_then(|one| one.interval_s), 1..=7 * 86_400);
        let keep_alive = self.broker.as_ref().and_then(|broker| broker.keep_alive_s).map(u64::from);
        number("broker.keep_alive_s", keep_alive, 5..=u64::from(u16::MAX));
        for (name, source) in self.source.iter().flatten() {
            let interval = source.as_ref().and_then(|source| source.interval_ms);
            number(&format!("source.{name}.interval_ms"), interval, 0..=86_400_000);
        }
        let mut fraction = |field: String, value: Option<f32>, most: f32| {
            // Also what is no number: JSON's 1e39 is infinite here, and would be written down as null.
            if let Some(value) = value.filter(|value| !(0.0..=most).contains(value)) {
                errors.push(FieldError::new(field, format!("{value} is not a number from 0 to {most}")));
            }
        };
        for State { name, threshold_scale, .. } in link.states.iter().flat_map(StatesSettings::all) {
            fraction(format!("link.states.{name}.threshold_scale"), threshold_scale, 10.0);
        }
        let states = link.states.unwrap_or_default();
        for (state, settings) in [("online", states.online), ("degraded", states.degraded)] {
            fraction(format!("link.states.{state}.drain_per_s"), settings.and_then(|one| one.drain_per_s), 1e6);
        }
        self.check_texts(errors);
    }

    fn check_texts(&self, errors: &mut Vec<FieldError>) {
        let broker = self.broker.clone().unwrap_or_default();
        let texts = [
            ("log.level", self.log.as_ref().and_then(|log| log.level.clone()), TEXT_BYTES_MAX),
            ("broker.url", broker.url, TEXT_BYTES_MAX),
            ("broker.client_id", broker.client_id, TEXT_BYTES_MAX),
            ("broker.alpn", broker.alpn, ALPN_BYTES_MAX),
            ("broker.proxy", broker.proxy, TEXT_BYTES_MAX),
        ];
        for (field, text, most) in texts {
            let Some(text) = text else { continue };
            let bytes = text.len();
            if !(1..=most).contains(&bytes) {
                errors.push(FieldError::new(field, format!("{bytes} bytes are not from 1 to {most}")));
            } else if text.contains(char::is_control) {
                errors.push(FieldError::new(field, "has a control character in it"));
            }
        }
    }
}

/// What each state of the link has.
struct State<'a> {
    name: &'static str,
    threshold_scale: Option<f32>,
    wait_ms_max: Option<u64>,
    payload: &'a Option<Payload>,
}

impl StatesSettings {
    fn all(&self) -> impl Iterator<Item = State<'_>> {
        let spoken =
            [("online", &self.online), ("degraded", &self.degraded)].into_iter().filter_map(|(name, state)| {
                let StateSettings { threshold_scale, wait_ms_max, payload, .. } = state.as_ref()?;
                Some(State { name, threshold_scale: *threshold_scale, wait_ms_max: *wait_ms_max, payload })
            });
        let silent = [("offline", &self.offline), ("over_budget", &self.over_budget)];
        spoken.chain(silent.into_iter().filter_map(|(name, state)| {
            let SilentStateSettings { threshold_scale, wait_ms_max, payload } = state.as_ref()?;
            Some(State { name, threshold_scale: *threshold_scale, wait_ms_max: *wait_ms_max, payload })
        }))
    }
}

impl CeilingsSettings {
    fn all(&self) -> [(&'static str, Option<u64>); 6] {
        [
            ("cases_per_hour", self.cases_per_hour),
            ("cases_per_day", self.cases_per_day),
            ("cases_per_month", self.cases_per_month),
            ("bytes_per_hour", self.bytes_per_hour),
            ("bytes_per_day", self.bytes_per_day),
            ("bytes_per_month", self.bytes_per_month),
        ]
    }
}

/// Refuses what only the device decides, by name, and takes it out of the document.
fn take_local_only(overlay: &mut Value, errors: &mut Vec<FieldError>) {
    for (pattern, reason) in LOCAL_ONLY {
        let levels: Vec<&str> = pattern.split('.').collect();
        for field in take_pattern(overlay, &levels) {
            if errors.len() < FIELD_ERRORS_MAX {
                errors.push(FieldError::new(field, format!("is set on the device only: {reason}")));
            }
        }
    }
}

/// Refuses lists, by name, and takes them out: no setting is one, and where fields belong a list would be read by its
/// order.
fn take_lists(value: &mut Value, name: &str, errors: &mut Vec<FieldError>) {
    let Value::Object(object) = value else { return };
    object.retain(|key, inner| {
        let field = if name.is_empty() { key.clone() } else { format!("{name}.{key}") };
        if inner.is_array() && errors.len() < FIELD_ERRORS_MAX {
            errors.push(FieldError::new(&field, "found a list: no setting is one"));
        }
        take_lists(inner, &field, errors);
        !inner.is_array()
    });
}

/// Removes what matches and returns the names it had.
fn take_pattern(value: &mut Value, levels: &[&str]) -> Vec<String> {
    let (Value::Object(object), Some((level, rest))) = (value, levels.split_first()) else { return Vec::new() };
    let names: Vec<String> = match *level {
        "*" => object.keys().cloned().collect(),
        name => [name.to_string()].into(),
    };
    let mut taken = Vec::new();
    for name in names {
        if rest.is_empty() {
            taken.extend(object.remove(&name).filter(|value| !value.is_null()).map(|_| name));
        } else if let Some(inner) = object.get_mut(&name) {
            taken.extend(take_pattern(inner, rest).into_iter().map(|field| format!("{name}.{field}")));
        }
    }
    taken
}

pub(crate) fn field_name(path: &Path) -> String {
    let text = path.to_string();
    if text == "." { "settings".to_string() } else { text }
}

/// Removes the deepest named thing on the path. False if there is none: the document itself is wrong.
fn take_out(value: &mut Value, path: &Path) -> bool {
    let keys: Vec<&str> = path
        .iter()
        .filter_map(|segment| match segment {
            Segment::Map { key } => Some(key.as_str()),
            _ => None,
        })
        .collect();
    let Some((last, parents)) = keys.split_last() else { return false };
    let mut place = value;
    for parent in parents {
        let Some(inner) = place.get_mut(*parent) else { return false };
        place = inner;
    }
    place.as_object_mut().is_some_and(|object| object.remove(*last).is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[track_caller]
    fn check_refused(overlay: Value, expected: &[(&str, &str)]) {
        let errors = Settings::read(overlay).expect_err("refused");
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (field, part) in expected {
            let found = errors.iter().any(|error| error.field == *field && error.reason.contains(part));
            assert!(found, "no `{field}` with `{part}` in {errors:?}");
        }
    }

    #[test]
    fn an_overlay_reads_back_and_null_is_nothing() {
        let overlay = json!({
            "link": {"profile": "metered", "ceilings": {"bytes_per_day": 5}},
            "model": {"photo": {"threshold": {"score_min": 0.7, "classes": {"cat": 0.9, "dog": null}}}},
            "source": {"porch": {"interval_ms": 500, "region": null}, "hall": null},
            "broker": null,
        });
        let settings = Settings::read(overlay).expect("valid");
        assert_eq!(settings.broker, None);
        let again = serde_json::to_value(&settings).expect("serialises");
        assert_eq!(again["model"]["photo"]["threshold"]["classes"]["cat"], json!(0.9_f32));
        assert_eq!(Settings::read(again), Ok(settings));
    }

    #[test]
    fn every_wrong_field_is_named() {
        check_refused(
            json!({
                "linkk": 1,
                "link": {"profile": "wifi", "batch_bytes_max": -1, "ceilings": {"cases_per_hour": "many"}},
                "model": {"photo": {"threshold": {"score_min": 1.2}}},
                "source": {"porch": {"interval": 5, "kind": "command"}},
            }),
            &[
                ("linkk", "unknown field"),
                ("link.profile", "wifi"),
                ("link.batch_bytes_max", "-1"),
                ("link.ceilings.cases_per_hour", "many"),
                ("model.photo.threshold.score_min", "from 0 to 1"),
                ("source.porch.interval", "unknown field"),
                ("source.porch.kind", "command"),
            ],
        );
        check_refused(json!(7), &[("settings", "found the number 7, expected a table of fields")]);
    }

    #[test]
    fn what_is_local_only_is_refused_with_the_reason() {
        check_refused(
            json!({
                "device": "other",
                "broker": {"url": "mqtt://b", "password_file": "/etc/shadow", "recovery": {"url": "mqtt://c"}},
                "source": {"porch": {"command": ["sh"]}, "hall": {"path": "/"}},
            }),
            &[
                ("device", "identity"),
                ("broker.password_file", "broker.credentials"),
                ("broker.recovery", "way back"),
                ("source.porch.command", "code"),
                ("source.hall.path", "folders"),
            ],
        );
    }

    #[test]
    fn numbers_and_texts_out_of_range_are_named() {
        check_refused(
            json!({
                "broker": {"keep_alive_s": 0, "client_id": "", "url": "x".repeat(600)},
                "telemetry": {"interval_s": 0},
                "source": {"porch": {"interval_ms": 999_999_999}},
                "link": {"ceilings": {"bytes_per_day": u64::MAX}},
            }),
            &[
                ("link.ceilings.bytes_per_day", "not a number from 0"),
                ("telemetry.interval_s", "from 1"),
                ("broker.keep_alive_s", "from 5"),
                ("source.porch.interval_ms", "from 0"),
                ("broker.client_id", "0 bytes"),
                ("broker.url", "600 bytes"),
            ],
        );
    }

    #[test]
    fn errors_are_bounded_however_wrong_a_document_is() {
        let overlay: Value =
            (0..1000).map(|n| (format!("field{n}"), json!(n))).collect::<serde_json::Map<_, _>>().into();
        assert_eq!(Settings::read(overlay).expect_err("refused").len(), FIELD_ERRORS_MAX);
    }
}
