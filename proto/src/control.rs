//! What an operator says to a device, and what it reports: documents that people type and read.
//!
//! Readers here refuse fields they do not know, by name: a misspelt command must not do half of what was meant.

use alloc::boxed::Box;
use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::document::read_typed;
use crate::{DecodeError, Digest, FieldError, Name, Settings, ThresholdSettings};

/// The highest version of a desired document: what every reader of JSON can hold exactly.
pub const VERSION_MAX: u64 = (1 << 53) - 1;

/// The highest version that may follow `newest`. A document takes up half of what is left at most, so that no single
/// one, mistyped, leaves nothing for those after it.
#[must_use]
pub const fn highest_after(newest: u64) -> u64 {
    newest + VERSION_MAX.saturating_sub(newest).div_ceil(2)
}

/// The longest id of a command, and name of who gave it, in bytes.
pub const COMMAND_ID_BYTES_MAX: usize = 128;

/// Who ends a trial of settings that could cut the link.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Confirm {
    /// The device, once a live cloud has answered it over the new settings.
    #[default]
    Auto,
    /// An operator, with the command `confirm`.
    Operator,
}

/// `down/desired`, retained: the whole wanted overlay over the local file, never a patch on the previous one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct Desired {
    /// From 1, growing. A version is decided on once.
    #[cfg_attr(test, schemars(range(min = 1, max = VERSION_MAX)))]
    pub version: u64,
    #[serde(default)]
    #[cfg_attr(test, schemars(with = "Settings"))]
    pub settings: Value,
    #[serde(default)]
    pub confirm: Confirm,
    /// Who wants it, for the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

impl Desired {
    /// Reads a document of at most [`crate::DOCUMENT_BYTES_MAX`]. Its settings are still to be read with [`Settings::read`].
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut desired: Self = read_typed(bytes)?;
        if !(1..=VERSION_MAX).contains(&desired.version) {
            return Err(wrong("version", format!("{} is not from 1 to {VERSION_MAX}", desired.version)));
        }
        check_text("by", desired.by.as_deref())?;
        if desired.settings.is_null() {
            desired.settings = Value::Object(serde_json::Map::new());
        }
        Ok(desired)
    }
}

/// What became of a desired document.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum SettingsOutcome {
    /// In force.
    Applied,
    /// In force, and given back unless it is confirmed in time.
    OnTrial,
    /// Never in force: `reason` and `errors` say why.
    Refused,
    /// Was on trial and is not in force any more; the last good settings are.
    Failed,
}

impl SettingsOutcome {
    /// For people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Applied => "applied",
            Self::OnTrial => "on trial",
            Self::Refused => "refused",
            Self::Failed => "failed",
        }
    }
}

/// The last document the device decided on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct LastDesired {
    /// Absent for a document whose version could not be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub version: Option<u64>,
    pub outcome: SettingsOutcome,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// `up/reported`, retained: the settings in force.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reported {
    /// The desired document in force; 0 for the local file alone.
    pub version: u64,
    /// SHA-256 of `settings` as written here: equal hashes are equal settings.
    pub hash: Digest,
    /// Every remotely settable field as it is in force, from the local file or the overlay.
    pub settings: Settings,
    /// By model, what its bundle suggests where no setting says anything; it is in force beside `settings`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub suggested: BTreeMap<Name, ThresholdSettings>,
    /// What of `settings` comes from the desired document.
    pub overlay: Settings,
    /// Sources that take no samples because of the command `pause`.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub paused: Vec<Name>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastDesired>,
}

/// `down/command`. MQTT 5's correlation data stands for an absent `id`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct CommandMessage {
    /// Names this command: it has one effect and one result however often it arrives. Without one, only commands
    /// that change nothing run.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    pub command: String,
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub args: Value,
    /// Milliseconds since 1970 UTC when it was given; it expires an hour later.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub issued_ms: Option<u64>,
    /// Who gave it, for the audit log.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub by: Option<String>,
}

/// What a command asks for.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(tag = "command", content = "args", rename_all = "snake_case", deny_unknown_fields)]
pub enum Order {
    /// Answers at once.
    Ping,
    /// The device's figures, as in telemetry.
    Status,
    /// The last decisions, newest first.
    Explain(ExplainArgs),
    /// What another threshold would have made of the answers of the last day.
    WhatIf(Box<WhatIfArgs>),
    /// Send what waits now, without the waits of earlier failures.
    Drain,
    /// Take no samples: from one source, or from all.
    Pause(SourceArgs),
    Resume(SourceArgs),
    QueueStats,
    DeadLetters,
    /// Give dead letters another chance: these, or all.
    Requeue(RequeueArgs),
    /// End cases for good, whether they were sent or not: these, or all.
    Forget(ForgetArgs),
    /// Read the local configuration file again.
    Reload,
    /// Log more, or less, for a time.
    LogLevel(LogLevelArgs),
    /// Answer a sample of this source now.
    Snapshot(SnapshotArgs),
    Restart,
    /// Run the bundle that looked on until now.
    Promote(ModelArgs),
    /// Run the bundle before the current one again.
    Back(ModelArgs),
    /// Keep the settings on trial.
    Confirm(VersionArgs),
    /// Give the settings on trial back.
    Revert(VersionArgs),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ExplainArgs {
    #[cfg_attr(test, schemars(range(min = 1, max = 100)))]
    pub last: u16,
}

impl Default for ExplainArgs {
    fn default() -> Self {
        Self { last: 10 }
    }
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct WhatIfArgs {
    pub model: Name,
    /// What is not given is as it is in force.
    #[serde(default)]
    pub threshold: ThresholdSettings,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct SourceArgs {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub source: Option<Name>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct RequeueArgs {
    /// Case ids; all dead letters if empty.
    pub ids: Vec<String>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields, default)]
pub struct ForgetArgs {
    /// Case ids. Those that are not stored are passed over.
    pub ids: Vec<String>,
    /// Everything that is stored.
    pub all: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct LogLevelArgs {
    pub level: String,
    /// At most a day.
    #[serde(default = "ten_minutes")]
    #[cfg_attr(test, schemars(range(min = 1, max = 86_400)))]
    pub for_s: u32,
}

fn ten_minutes() -> u32 {
    600
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct SnapshotArgs {
    pub source: Name,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct VersionArgs {
    pub version: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(deny_unknown_fields)]
pub struct ModelArgs {
    pub model: Name,
}

impl CommandMessage {
    /// Reads a message of at most [`crate::DOCUMENT_BYTES_MAX`]. What it orders is still to be read with [`Order::read`].
    pub fn read(bytes: &[u8]) -> Result<Self, DecodeError> {
        let message: Self = read_typed(bytes)?;
        check_text("id", message.id.as_deref())?;
        check_text("by", message.by.as_deref())?;
        Ok(message)
    }
}

fn wrong(field: &str, reason: impl AsRef<str>) -> DecodeError {
    DecodeError::Field(FieldError::new(field, reason))
}

/// Who and which end up on people's screens and in the audit log.
fn check_text(field: &str, text: Option<&str>) -> Result<(), DecodeError> {
    let Some(text) = text else { return Ok(()) };
    let bytes = text.len();
    if bytes == 0 || bytes > COMMAND_ID_BYTES_MAX {
        return Err(wrong(field, format!("it has {bytes} bytes and takes 1 to {COMMAND_ID_BYTES_MAX}")));
    }
    if text.contains(char::is_control) {
        return Err(wrong(field, "has a control character in it"));
    }
    Ok(())
}

impl Order {
    /// Reads a command's name and arguments, or says what is wrong with which.
    pub fn read(command: &str, args: &Value) -> Result<Self, String> {
        if args.is_array() {
            return Err("args: a list where an object, {…}, is expected".to_string());
        }
        let no_args = args.is_null() || args.as_object().is_some_and(serde_json::Map::is_empty);
        let tagged = |args: Option<&Value>| {
            let mut object = serde_json::Map::new();
            object.insert("command".to_string(), command.into());
            if let Some(args) = args {
                object.insert("args".to_string(), args.clone());
            }
            Value::Object(object)
        };
        let empty = Value::Object(serde_json::Map::new());
        let read = |args| serde_path_to_error::deserialize::<_, Self>(&tagged(args));
        if !no_args && read(None).is_ok() {
            return Err(format!("args: `{command}` takes none"));
        }
        // Commands that take nothing have no `args` at all; those whose arguments are optional have an empty one.
        let order = if no_args { read(None).or_else(|_| read(Some(&empty))) } else { read(Some(args)) };
        order.map_err(|error| error.to_string())
    }

    /// Whether running it twice is as good as once, so that it needs no id.
    #[must_use]
    pub fn changes_nothing(&self) -> bool {
        matches!(
            self,
            Self::Ping | Self::Status | Self::Explain(_) | Self::WhatIf(_) | Self::QueueStats | Self::DeadLetters
        )
    }
}

/// What became of a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum CommandOutcome {
    Done,
    /// It did not run, and its id is not used up: the same command may be given again.
    Refused,
    /// It ran and could not do what it is for.
    Failed,
    /// The device went down between its beginning and its end. It is not run again.
    Interrupted,
}

impl CommandOutcome {
    /// For people, and as it is written in JSON.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Done => "done",
            Self::Refused => "refused",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
        }
    }
}

/// `up/reply`, or the response topic of the command if that is below the device's own `up`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Reply {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub command: Option<String>,
    pub outcome: CommandOutcome,
    /// For people: why it was refused, failed or was interrupted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// What the command is for.
    #[serde(default, skip_serializing_if = "Value::is_null")]
    pub result: Value,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn orders_with_and_without_arguments_are_read() {
        let read = |command: &str, args: Value| Order::read(command, &args);
        assert_eq!(read("ping", Value::Null), Ok(Order::Ping));
        assert_eq!(read("ping", json!({})), Ok(Order::Ping));
        assert_eq!(read("explain", Value::Null), Ok(Order::Explain(ExplainArgs { last: 10 })));
        assert_eq!(read("explain", json!({"last": 3})), Ok(Order::Explain(ExplainArgs { last: 3 })));
        let porch = Name::new("porch").expect("valid");
        assert_eq!(read("pause", json!({"source": "porch"})), Ok(Order::Pause(SourceArgs { source: Some(porch) })));
    }

    #[test]
    fn a_wrong_order_says_what_is_wrong() {
        for (command, args, part) in [
            ("pingg", Value::Null, "pingg"),
            ("ping", json!({"x": 1}), "`ping` takes none"),
            ("explain", json!([3]), "args"),
            ("explain", json!({"lst": 3}), "lst"),
            ("snapshot", Value::Null, "source"),
            ("log_level", json!({"level": "debug", "for_s": -1}), "-1"),
        ] {
            let error = Order::read(command, &args).expect_err("refused");
            assert!(error.contains(part), "{command}: `{error}` does not say `{part}`");
        }
    }

    #[test]
    fn a_document_whose_version_cannot_grow_is_refused() {
        for (text, part) in [
            (r#"{"version": 0}"#, "from 1"),
            (r#"{"version": 9007199254740992}"#, "from 1"),
            (r#"{"version": 1, "setings": {}}"#, "setings"),
            (r#"{"settings": {}}"#, "version"),
            (r#"{"version": 1, "version": 2}"#, "version: is given twice"),
            (r#"{"version": 1, "settings": {"log": {"level": "info", "level": "warn"}}}"#, "log.level: is given twice"),
            (r#"{"version": 1, "by": ""}"#, "by: it has 0 bytes"),
            (r#"{"version": 1, "by": "\u001b[2J"}"#, "by: has a control"),
        ] {
            let error = Desired::read(text.as_bytes()).expect_err("refused").to_string();
            assert!(error.contains(part), "{text}: {error}");
        }
        let desired = Desired::read(br#"{"version": 3, "settings": null}"#).expect("valid");
        assert_eq!((desired.version, desired.settings, desired.confirm), (3, json!({}), Confirm::Auto));
    }
}
