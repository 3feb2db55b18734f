//! Reads what is said about a device's settings and commands, for the records: the document itself, and the shorter
//! event that goes into the device's history.

use hedge_proto::{DecodeError, Desired, Message as _, Reply, Reported};
use serde::Serialize;
use serde_json::{Map, Value, json};

/// The most of a document that goes into a history. Settings of a few models have about 1 KiB.
const EVENT_BYTES_MAX: usize = 4096;

/// A document as it is kept.
pub(super) struct Document {
    /// `None`: the topic was emptied.
    pub(super) json: Option<String>,
    pub(super) event: String,
}

impl Document {
    fn emptied() -> Self {
        Self { json: None, event: json!({"emptied": true}).to_string() }
    }

    /// `leave_out`: what goes from the event if it is too long, in this order.
    fn new<T: Serialize>(document: &T, event: Value, leave_out: &[&str]) -> Result<Self, DecodeError> {
        let json = serde_json::to_string(document).map_err(|error| DecodeError::Malformed(error.to_string()))?;
        Ok(Self { json: Some(json), event: bounded(event, leave_out) })
    }
}

pub(super) fn reported(payload: &[u8]) -> Result<Document, DecodeError> {
    if payload.is_empty() {
        return Ok(Document::emptied());
    }
    let reported = Reported::read(payload)?;
    // What is in force is in the document; the history tells what became of whom.
    let event = json!({
        "version": reported.version, "last": reported.last, "paused": reported.paused, "hash": reported.hash,
    });
    Document::new(&reported, event, &["last", "paused"])
}

pub(super) fn desired(payload: &[u8]) -> Result<Document, DecodeError> {
    if payload.is_empty() {
        return Ok(Document::emptied());
    }
    let desired = Desired::read(payload)?;
    Document::new(&desired, json!(desired), &["settings", "by"])
}

pub(super) fn reply(payload: &[u8]) -> Result<String, DecodeError> {
    let reply = Reply::read(payload)?;
    Ok(bounded(json!(reply), &["result", "reason", "id", "command"]))
}

fn bounded(mut event: Value, leave_out: &[&str]) -> String {
    let mut left_out = Map::new();
    for name in leave_out {
        let text = event.to_string();
        if text.len() <= EVENT_BYTES_MAX {
            return text;
        }
        let bytes = event[*name].to_string().len();
        event[*name] = Value::Null;
        left_out.insert((*name).to_owned(), bytes.into());
        event["left_out_bytes"] = left_out.clone().into();
    }
    event.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_document_is_an_event_without_its_longest_part() {
        let reply = json!({"id": "a", "command": "explain", "outcome": "done", "result": ["x".repeat(10_000)]});
        let event: Value =
            serde_json::from_str(&super::reply(reply.to_string().as_bytes()).expect("read")).expect("JSON");
        assert_eq!((&event["id"], &event["result"]), (&json!("a"), &Value::Null));
        assert!(event["left_out_bytes"]["result"].as_u64().is_some_and(|bytes| bytes > 10_000));
        let short = json!({"id": "b", "outcome": "done", "result": 1});
        assert_eq!(
            serde_json::from_str::<Value>(&super::reply(short.to_string().as_bytes()).expect("read")).expect("JSON"),
            short
        );
    }

    #[test]
    fn an_emptied_topic_is_an_event() {
        assert!(desired(b"").expect("read").json.is_none());
        assert!(reported(b"{").is_err());
    }
}
