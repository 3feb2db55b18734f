//! Any bytes as a document of `down/desired`.

use std::sync::LazyLock;

use hedge_core::control::settings::Book;
use hedge_proto::{Settings, to_json};

use super::Device;
use hedge_config::{ConfigError, ConfigFile};

/// A device on which every field has something to be about.
pub(in crate::settings) const LOCAL: &str = r#"
    [broker]
    url = "mqtt://home"
    [credentials.away]
    username = "them"
    [verdicts.jsonl]
    path = "/tmp/a"
    [verdicts.webhook]
    url = "http://127.0.0.1:1/"
    [verdicts.command]
    command = ["/bin/true"]
    [verdicts.mqtt]
    [verdicts.sinks.shed]
    kind = "webhook"
    url = "http://127.0.0.1:1/shed"
    [[model]]
    name = "m.1"
    bundle = "/b"
    [[source]]
    name = "porch"
    kind = "http"
"#;

/// Refused with what is wrong, or valid and the same when it is read back.
pub fn desired(bytes: &[u8]) {
    static FILE: LazyLock<Result<ConfigFile, ConfigError>> =
        LazyLock::new(|| ConfigFile::parse(LOCAL, "agent.toml", std::iter::empty()));
    let Ok(file) = &*FILE else { unreachable!("valid: {:?}", *FILE) };
    let book = &Book::default();
    match (Device { file, book, labels: |_: &_| None }).read(bytes) {
        Ok(wanted) => {
            let Some(wanted) = wanted else { unreachable!("nothing was in force") };
            let kept = serde_json::from_slice(&to_json(&wanted.overlay.settings)).unwrap_or_default();
            assert_eq!(Settings::read(kept), Ok(wanted.overlay.settings), "it does not read back");
        }
        Err(refusal) => {
            assert!(refusal.reason.is_some_and(|reason| !reason.is_empty()));
            assert!(refusal.errors.iter().all(|error| !error.field.is_empty() && !error.reason.is_empty()));
        }
    }
}
