//! The configuration file as it was read, so that remote settings can be laid over it.
//!
//! An overlay is merged into the file's tables and the whole is read anew: one set of types says what can be meant,
//! whoever says it.

use std::path::{Path, PathBuf};

use hedge_proto::{FIELD_ERRORS_MAX, FieldError, Settings, plain, to_json};
use serde_json::Value;

use super::overrides::{NoSetting, Override};
use super::place::place_of;
use super::{Config, ConfigError, PrivacyConfig, Problem};

/// Tables that the file holds as lists and an overlay by name.
const NAMED: [&str; 2] = ["model", "source"];

/// The file with the environment's overrides in it.
#[derive(Debug, Clone)]
pub struct ConfigFile {
    pub(super) path: PathBuf,
    pub(super) text: String,
    table: toml::Table,
    /// Variables of the environment that no setting has the name of, and why.
    pub not_settings: Vec<NoSetting>,
    /// What it says by itself.
    pub config: Config,
}

impl ConfigFile {
    /// Reads, overrides and checks. Nothing else is touched: no model, no network, no state.
    pub fn load(path: &Path, environment: impl Iterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let unreadable = |source| ConfigError::Unreadable { path: path.to_owned(), source };
        let text = hedge_inference::read_text(path).map_err(unreadable)?;
        // What a power cut or a full disk leaves of a file that was being written; /dev/null is meant.
        if text.trim().is_empty() && path.is_file() {
            let reason =
                "it is empty, as after a power cut; write it anew (a comment is enough where nothing is to be set)";
            return Err(unreadable(std::io::Error::other(reason)));
        }
        Self::parse(&text, &path.display().to_string(), environment)
    }

    /// Like [`Self::load`], from text; `file` is what errors call it.
    pub fn parse(
        text: &str,
        file: &str,
        environment: impl Iterator<Item = (String, String)>,
    ) -> Result<Self, ConfigError> {
        let mut config: Config = read_toml(text, file)?;
        config.resolve().map_err(|Problem { span, message, .. }| ConfigError::at(text, file, span, message))?;
        let mut table: toml::Table = read_toml(text, file)?;
        let mut not_settings = Vec::new();
        for change in environment.filter_map(|(name, value)| ours(&name, &value)) {
            let mut changed = table.clone();
            change.apply(&mut changed);
            match read(&changed) {
                Ok(read) => (table, config) = (changed, read),
                Err(problem) => match change.no_setting(&problem.message) {
                    Some(none) => not_settings.push(none),
                    None => {
                        let place = format!("environment variable {}", change.variable);
                        return Err(ConfigError::Invalid { place, message: problem.message });
                    }
                },
            }
        }
        Ok(Self { path: file.into(), text: text.to_owned(), table, not_settings, config })
    }

    /// What it says with the environment's overrides, written anew: comments are not in it.
    #[must_use]
    pub fn effective_text(&self) -> String {
        toml::to_string(&self.table).unwrap_or_else(|error| format!("# {error}\n"))
    }

    /// What it says, byte for byte.
    #[must_use]
    pub fn text(&self) -> &str {
        &self.text
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The same file as it is now, with the environment as it is now.
    pub fn again(&self) -> Result<Self, ConfigError> {
        Self::load(&self.path, std::env::vars())
    }

    /// The lower of two ceilings holds from now on.
    pub(super) fn hold_to(&mut self, privacy: PrivacyConfig) {
        if privacy.ceiling() < self.config.privacy.ceiling() {
            self.table.insert("privacy".to_owned(), toml::Value::Table(privacy.table()));
            self.config.privacy = privacy;
        }
    }

    /// The file with `settings` laid over it, or every field of theirs that does not fit.
    pub fn overlaid(&self, settings: &Settings) -> Result<Config, Vec<FieldError>> {
        // By way of text, so that 0.9 stays 0.9.
        let mut overlay = serde_json::from_slice(&to_json(settings)).unwrap_or_default();
        let mut errors = Vec::new();
        loop {
            match self.read_overlaid(&overlay) {
                Ok(config) if errors.is_empty() => {
                    errors.extend(self.let_leave(&config));
                    return if errors.is_empty() { Ok(config) } else { Err(errors) };
                }
                Ok(_) => return Err(errors),
                Err(Problem { field, message, .. }) => {
                    errors.push(FieldError::new(field.join("."), message));
                    if errors.len() >= FIELD_ERRORS_MAX || !take_out(&mut overlay, &field) {
                        return Err(errors);
                    }
                }
            }
        }
    }

    /// What never leaves the device by this file, and would with `config`. A stay is decided on the device alone.
    fn let_leave(&self, config: &Config) -> Vec<FieldError> {
        let Ok(own) = read(&self.table) else { return Vec::new() };
        let with = |name| config.models.iter().find(|model| model.name == name);
        let freed = own.models.iter().flat_map(|model| {
            let kept: Vec<&str> =
                with(model.name.clone()).map(|model| model.threshold.never_leaving().collect()).unwrap_or_default();
            let freed = model.threshold.never_leaving().filter(move |label| !kept.contains(label));
            freed.map(|label| (&model.name, label))
        });
        freed
            .map(|(model, label)| {
                let reason = "the device's own file says never_leave, which only that file can take back";
                FieldError::new(format!("model.{model}.threshold.policies.{label}"), reason)
            })
            .collect()
    }

    fn read_overlaid(&self, overlay: &Value) -> Result<Config, Problem> {
        let mut table = self.table.clone();
        let Value::Object(sections) = overlay else { return read(&table) };
        for (section, value) in sections {
            if NAMED.contains(&section.as_str()) {
                merge_named(&mut table, section, value)?;
            } else {
                merge(table.entry(section.clone()).or_insert(empty()), value);
            }
        }
        let named = table.get("verdicts").and_then(|verdicts| verdicts.get("sinks")?.as_table());
        if let Some((sink, _)) = named.into_iter().flatten().find(|(_, sink)| sink.get("kind").is_none()) {
            let message = format!("the device has no [verdicts.sinks.{sink}]; sinks are made on the device");
            let field = ["verdicts", "sinks", sink].map(str::to_owned).into();
            return Err(Problem { field, span: None, message });
        }
        for (sink, needs) in [("jsonl", "path"), ("webhook", "url"), ("command", "command")] {
            let given = |root: Option<&toml::Value>| root?.get(sink).cloned();
            let here = given(table.get("verdicts")).is_some_and(|sink| sink.get(needs).is_none());
            if here {
                let message = format!("the device has no [verdicts.{sink}]; its `{needs}` is set on the device");
                return Err(Problem { field: vec!["verdicts".into(), sink.into()], span: None, message });
            }
        }
        read(&table)
    }
}

/// `HEDGE_CONFIG` is the program's own and not a value of the file; `HEDGE_CLOUD_…` are those of `hedge-cloud`, which
/// an operator's shell may have on the same machine.
fn ours(variable: &str, value: &str) -> Option<Override> {
    let rest = variable.strip_prefix("HEDGE_")?;
    (rest != "CONFIG" && !rest.starts_with("CLOUD_")).then(|| Override::new("HEDGE_", variable, value))?
}

/// Reads a merged table. It is written out and read as a file is, because only so errors say where.
fn read(table: &toml::Table) -> Result<Config, Problem> {
    let whole = |message: String| Problem { field: Vec::new(), span: None, message };
    let text = toml::to_string(table).map_err(|error| whole(error.to_string()))?;
    let mut config: Config = toml::from_str(&text).map_err(|error| {
        let (field, _) = place_of(&text, &error);
        Problem { field, span: None, message: plain(error.message()) }
    })?;
    config.resolve()?;
    Ok(config)
}

fn empty() -> toml::Value {
    toml::Value::Table(toml::Table::new())
}

/// Lays tables over tables; anything else takes the place of what was there. `null` leaves it.
pub(crate) fn merge(place: &mut toml::Value, overlay: &Value) {
    match overlay {
        Value::Null => {}
        Value::Object(fields) => {
            if !place.is_table() {
                *place = empty();
            }
            let toml::Value::Table(table) = place else { return };
            for (name, value) in fields.iter().filter(|(_, value)| !value.is_null()) {
                merge(table.entry(name.clone()).or_insert(empty()), value);
            }
        }
        // What is out of TOML's range is refused where settings are read.
        other => *place = toml::Value::try_from(other).unwrap_or_else(|_| empty()),
    }
}

/// Lays entries over those of the same name in a list of tables.
fn merge_named(table: &mut toml::Table, section: &str, overlay: &Value) -> Result<(), Problem> {
    let Value::Object(entries) = overlay else { return Ok(()) };
    let list = table.entry(section.to_owned()).or_insert(toml::Value::Array(Vec::new()));
    let toml::Value::Array(list) = list else { return Ok(()) };
    for (name, value) in entries.iter().filter(|(_, value)| !value.is_null()) {
        let known = list.iter_mut().find(|entry| entry.get("name").and_then(toml::Value::as_str) == Some(name));
        let kind = value.get("kind").filter(|kind| !kind.is_null());
        let problem = |field: &[&str], message: String| {
            let field = [section, name].iter().chain(field).map(|name| (*name).to_owned()).collect();
            Err(Problem { field, span: None, message })
        };
        match (known, kind) {
            (Some(entry), Some(kind)) if entry.get("kind").and_then(toml::Value::as_str) != kind.as_str() => {
                return problem(&["kind"], "the kind of a source in the local file cannot be changed".to_owned());
            }
            (Some(entry), _) => merge(entry, value),
            (None, Some(_)) => {
                let mut entry = toml::Value::Table([("name".to_owned(), name.as_str().into())].into_iter().collect());
                merge(&mut entry, value);
                list.push(entry);
            }
            (None, None) => {
                let known: Vec<&str> = list.iter().filter_map(|entry| entry.get("name")?.as_str()).collect();
                return problem(&[], format!("there is no {section} `{name}`; the device has: {}", known.join(", ")));
            }
        }
    }
    Ok(())
}

/// Removes the field, or the part of its path that is there. False if none of it is.
fn take_out(overlay: &mut Value, field: &[String]) -> bool {
    let Some((name, rest)) = field.split_first() else { return false };
    let Some(object) = overlay.as_object_mut() else { return false };
    if object.get_mut(name).is_some_and(|inner| take_out(inner, rest)) {
        return true;
    }
    object.remove(name).is_some()
}

/// Reads a document into what it means; what is wrong is said with the file's name, the line and the field.
pub fn read_toml<T: serde::de::DeserializeOwned>(text: &str, file: &str) -> Result<T, ConfigError> {
    toml::from_str(text).map_err(|error| {
        let (field, span) = place_of(text, &error);
        let colon = if field.is_empty() { "" } else { ": " };
        ConfigError::at(text, file, span, format!("{}{colon}{}", field.join("."), plain(error.message())))
    })
}

impl ConfigError {
    /// What is wrong at a place of the file `text`.
    #[must_use]
    pub fn at(text: &str, file: &str, span: Option<std::ops::Range<usize>>, message: String) -> Self {
        let place = span.map_or_else(|| file.to_owned(), |span| format!("{file}:{}", line_of(text, span.start)));
        Self::Invalid { place, message }
    }
}

fn line_of(text: &str, offset: usize) -> usize {
    1 + text.as_bytes().iter().take(offset).filter(|byte| **byte == b'\n').count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    const LOCAL: &str = r#"
        [broker]
        url = "mqtt://home"
        username = "me"
        [credentials.away]
        username = "them"
        [verdicts.jsonl]
        path = "/tmp/a"
        [[model]]
        name = "m.1"
        bundle = "/b"
        threshold = { score_min = 0.5, margin_min = 0.1 }
        [[source]]
        name = "porch"
        kind = "folder"
        path = "/pictures"
        model = "m.1"
    "#;

    fn overlaid(overlay: Value) -> Result<Config, Vec<FieldError>> {
        let file = ConfigFile::parse(LOCAL, "agent.toml", std::iter::empty()).expect("valid");
        file.overlaid(&Settings::read(overlay)?)
    }

    #[track_caller]
    fn check_refused(overlay: Value, expected: &[(&str, &str)]) {
        let errors = overlaid(overlay).expect_err("refused");
        assert_eq!(errors.len(), expected.len(), "{errors:?}");
        for (field, part) in expected {
            let found = errors.iter().any(|error| error.field == *field && error.reason.contains(part));
            assert!(found, "no `{field}` with `{part}` in {errors:?}");
        }
    }

    #[test]
    fn a_class_that_never_leaves_by_the_file_leaves_by_no_overlay_and_one_may_be_added() {
        let text = LOCAL.replace("margin_min = 0.1", "margin_min = 0.1, policies = { person = \"never_leave\" }");
        let file = ConfigFile::parse(&text, "agent.toml", std::iter::empty()).expect("valid");
        let name = file.overlaid(&Settings::default()).expect("valid").models.last().expect("one").name.clone();
        let overlaid = |policies: Value| {
            let settings = json!({"model": {name.as_str(): {"threshold": {"policies": policies}}}});
            file.overlaid(&Settings::read(settings).expect("settings"))
        };
        for freed in ["always_ask", "never_ask"] {
            let errors = overlaid(json!({"person": freed})).expect_err("refused");
            assert_eq!(errors[0].field, format!("model.{name}.threshold.policies.person"));
            assert!(errors[0].reason.contains("never_leave"), "{errors:?}");
        }
        for kept in [json!({"person": null}), json!({"person": "never_leave", "dog": "never_leave"})] {
            let config = overlaid(kept).expect("valid");
            let model = config.models.iter().find(|model| model.name == name).expect("there");
            assert!(model.threshold.never_leaving().any(|label| label == "person"));
        }
    }

    #[test]
    fn an_overlay_changes_what_it_names_and_nothing_else() {
        let config = overlaid(json!({
            "link": {"profile": "metered"},
            "broker": {"url": "mqtts://away", "credentials": "away"},
            "model": {"m.1": {"threshold": {"score_min": 0.9}}},
            "source": {"porch": {"interval_ms": 500, "enabled": false}, "app": {"kind": "http"}},
            "verdicts": {"jsonl": {"wanted": "all"}, "mqtt": {"wanted": "changed"}},
        }))
        .expect("valid");
        let broker = config.broker.expect("given");
        assert_eq!((broker.url.host.as_str(), broker.username.as_deref()), ("away", Some("them")));
        let thresholds = config.models[0].threshold.resolve(None, &[], |label| label).expect("complete");
        assert_eq!((thresholds.all.score_min(), thresholds.all.margin_min()), (0.9, 0.1));
        assert_eq!((config.sources[0].interval_ms, config.sources[0].enabled), (Some(500), false));
        assert_eq!(config.sources[1].name.as_str(), "app");
        let names: Vec<&str> = config.verdicts.sinks.keys().map(hedge_proto::Name::as_str).collect();
        assert_eq!(names, ["jsonl", "mqtt"]);
        let unchanged = overlaid(json!({"source": {"porch": null}, "link": null})).expect("valid");
        assert_eq!(unchanged.sources[0].interval_ms, None);
    }

    #[test]
    fn every_field_that_does_not_fit_the_device_is_named() {
        check_refused(
            json!({
                "broker": {"url": "http://x", "credentials": "nobody", "proxy": "socks://y"},
                "model": {"other": {"threshold": {"score_min": 0.5}}},
                "source": {"porch": {"model": "n", "kind": "http"}, "new": {"interval_ms": 5}},
                "verdicts": {"webhook": {"wanted": "all"}, "sinks": {"other": {"wanted": "all"}}},
            }),
            &[
                ("broker.url", "mqtts://"),
                ("broker.credentials", "no [credentials.nobody]"),
                ("broker.proxy", "http://host:port"),
                ("model.other", "the device has: m.1"),
                ("source.porch.kind", "cannot be changed"),
                ("source.porch.model", "the models are: m.1"),
                ("source.new", "there is no source `new`"),
                ("verdicts.sinks.other", "no [verdicts.sinks.other]"),
                ("verdicts.webhook", "no [verdicts.webhook]"),
            ],
        );
    }
}
