//! Tells a message of a later version from a damaged one: the one is held and said, the other set aside.

use alloc::format;
use alloc::string::String;

use ciborium::Value;

use crate::{CaseMessage, DownMessage, MESSAGE_BYTES_MAX, WIRE_VERSION, from_cbor};

/// How much of an unknown kind is repeated.
const KIND_CHARS_MAX: usize = 32;

impl CaseMessage {
    /// The kinds of this version, as they are written.
    pub const KINDS: [&str; 3] = ["case", "batch", "ask"];
}

impl DownMessage {
    /// The kinds of this version, as they are written.
    pub const KINDS: [&str; 7] = ["verdict", "received", "busy", "failed", "dead", "unknown", "send"];
}

/// What makes a message one of a later version: a kind that is none of `kinds`, or a version above ours. `None` for one
/// of this version, and for one that is damaged.
#[must_use]
pub fn newer(bytes: &[u8], kinds: &[&str]) -> Option<String> {
    let Ok(Value::Map(message)) = from_cbor::<Value>(bytes, MESSAGE_BYTES_MAX) else { return None };
    let [(Value::Text(kind), body)] = &message[..] else { return None };
    if !kinds.contains(&kind.as_str()) {
        let kind: String = kind.chars().filter(|c| c.is_ascii_graphic()).take(KIND_CHARS_MAX).collect();
        return Some(format!("messages of the kind `{kind}`"));
    }
    let version = match body {
        Value::Array(all) => all.iter().filter_map(version).max(),
        one => version(one),
    };
    version.filter(|version| *version > i128::from(WIRE_VERSION)).map(|version| format!("wire version {version}"))
}

fn version(body: &Value) -> Option<i128> {
    let fields = body.as_map()?;
    let (_, version) = fields.iter().find(|(name, _)| name.as_text() == Some("v"))?;
    version.as_integer().map(i128::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CaseId, CaseKey, DeviceId, Epoch, to_cbor};
    use alloc::vec;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn a_later_version_is_told_from_this_one_and_from_damage() {
        let message = |kind: &str, body: Value| to_cbor(&Value::Map(vec![(text(kind), body)]));
        let version =
            |v: u64| Value::Map(vec![(text("new"), Value::Bool(true)), (text("v"), Value::Integer(v.into()))]);
        let newer = |bytes: &[u8]| newer(bytes, &DownMessage::KINDS);
        assert_eq!(newer(&message("verdict", version(2))).as_deref(), Some("wire version 2"));
        assert_eq!(newer(&message("verdict", version(1))), None);
        assert_eq!(newer(&message("explain\n", version(1))).as_deref(), Some("messages of the kind `explain`"));
        assert_eq!(
            super::newer(&message("batch", Value::Array(vec![version(1), version(3)])), &CaseMessage::KINDS).as_deref(),
            Some("wire version 3")
        );
        for damaged in [&b""[..], b"\xa1", b"verdict", &to_cbor(&vec![1, 2])] {
            assert_eq!(newer(damaged), None);
        }
    }

    #[test]
    fn the_kinds_are_those_that_are_written() {
        let id =
            || CaseId { device: DeviceId::new("d").expect("valid"), key: CaseKey { epoch: Epoch(1), sequence: 0 } };
        let down = [
            DownMessage::Received { ids: vec![id()] },
            DownMessage::Busy { after_s: 1 },
            DownMessage::Failed { id: id(), reason: String::new() },
            DownMessage::Dead { id: id(), reason: String::new() },
            DownMessage::Unknown { ids: vec![] },
        ];
        for message in down {
            assert_eq!(newer(&to_cbor(&message), &DownMessage::KINDS), None, "{message:?}");
        }
        assert_eq!(newer(&to_cbor(&CaseMessage::Ask { ids: vec![id()] }), &CaseMessage::KINDS), None);
    }
}
