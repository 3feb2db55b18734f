//! Tells a message of a later version from a damaged one: the one is held and said, the other set aside.

use alloc::format;
use alloc::string::String;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::{CaseMessage, DownMessage, MESSAGE_BYTES_MAX, WIRE_VERSION, from_cbor};

/// How much of an unknown kind is repeated.
const KIND_CHARS_MAX: usize = 32;

impl CaseMessage {
    /// The kinds of this version, as they are written.
    pub const KINDS: [&str; 3] = ["case", "batch", "ask"];
}

impl DownMessage {
    /// The kinds of this version, as they are written.
    pub const KINDS: [&str; 8] = ["verdict", "received", "busy", "failed", "dead", "unknown", "send", "checks"];
}

/// What makes a message one of a later version: a kind that is none of `kinds`, or a version above ours. `None` for one
/// of this version, and for one that is damaged.
#[must_use]
pub fn newer(bytes: &[u8], kinds: &[&str]) -> Option<String> {
    let Outline { kind, version } = from_cbor(bytes, MESSAGE_BYTES_MAX).ok()?;
    if !kinds.contains(&kind.as_str()) {
        let kind: String = kind.chars().filter(|c| c.is_ascii_graphic()).take(KIND_CHARS_MAX).collect();
        return Some(format!("messages of the kind `{kind}`"));
    }
    version.filter(|version| *version > u64::from(WIRE_VERSION)).map(|version| format!("wire version {version}"))
}

/// A message's kind and highest version. Nothing else of it is kept: a list of any length takes no memory.
struct Outline {
    kind: String,
    version: Option<u64>,
}

/// The versions in a message's body, which is an object or a list of them.
struct Body(Option<u64>);

/// A number, or anything else.
struct Number(Option<u64>);

impl<'de> Deserialize<'de> for Outline {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Kind;
        impl<'de> Visitor<'de> for Kind {
            type Value = Outline;

            fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                f.write_str("one kind of message")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Outline, A::Error> {
                let none = || serde::de::Error::custom("no kind of message");
                let (kind, Body(version)) = fields.next_entry()?.ok_or_else(none)?;
                match fields.next_entry::<IgnoredAny, IgnoredAny>()? {
                    None => Ok(Outline { kind, version }),
                    Some(_) => Err(serde::de::Error::custom("more than one kind of message")),
                }
            }
        }
        deserializer.deserialize_map(Kind)
    }
}

/// A visitor of whatever there may be. What tells nothing is passed over.
struct Anything;

impl<'de> Visitor<'de> for Anything {
    type Value = (Body, Number);

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("anything")
    }

    fn visit_u64<E>(self, number: u64) -> Result<Self::Value, E> {
        Ok((Body(None), Number(Some(number))))
    }

    fn visit_i64<E>(self, _: i64) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_bool<E>(self, _: bool) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_str<E>(self, _: &str) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_bytes<E>(self, _: &[u8]) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_unit<E>(self) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_none<E>(self) -> Result<Self::Value, E> {
        Ok(NOTHING)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Self::Value, A::Error> {
        let mut version = None;
        while let Some(name) = fields.next_key::<String>()? {
            if name == "v" {
                version = fields.next_value::<Number>()?.0;
            } else {
                fields.next_value::<IgnoredAny>()?;
            }
        }
        Ok((Body(version), Number(None)))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Self::Value, A::Error> {
        let mut version = None;
        while let Some(Body(one)) = list.next_element()? {
            version = version.max(one);
        }
        Ok((Body(version), Number(None)))
    }
}

const NOTHING: (Body, Number) = (Body(None), Number(None));

impl<'de> Deserialize<'de> for Body {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything).map(|(body, _)| body)
    }
}

impl<'de> Deserialize<'de> for Number {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(Anything).map(|(_, number)| number)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{CaseId, CaseKey, DeviceId, Epoch, to_cbor};
    use alloc::vec;
    use ciborium::Value;

    fn text(text: &str) -> Value {
        Value::Text(text.into())
    }

    #[test]
    fn a_later_version_is_told_from_this_one_and_from_damage() {
        let message = |kind: &str, body: Value| to_cbor(&Value::Map(vec![(text(kind), body)]));
        let version =
            |v: u64| Value::Map(vec![(text("new"), Value::Bool(true)), (text("v"), Value::Integer(v.into()))]);
        let newer = |bytes: &[u8]| newer(bytes, &DownMessage::KINDS);
        assert_eq!(newer(&message("verdict", version(3))).as_deref(), Some("wire version 3"));
        assert_eq!(newer(&message("verdict", version(2))), None);
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
