//! Names of devices, sources and cases.
//!
//! A case is named `device.epoch.sequence`: the epoch is drawn at random at every process start and the
//! sequence counts from 0, so nothing has to be remembered for an id never to be used twice.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::{String, ToString};
use core::fmt;
use core::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not {expected}")]
pub struct InvalidId {
    text: String,
    expected: &'static str,
}

impl InvalidId {
    pub(crate) fn pairing_code(text: &str) -> Self {
        let text = text.chars().take(NAME_CHARS_MAX + 1).collect();
        Self { text, expected: "a pairing code HOST:PORT/SECRET/FINGERPRINT, as `hedge-cloud` prints it" }
    }
}

/// The longest name: 64 characters.
const NAME_CHARS_MAX: usize = 64;

/// A name that is safe in a topic, a URL and a file name: `[A-Za-z0-9._-]{1,64}`, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(String);

impl Name {
    /// Accepts `[A-Za-z0-9._-]{1,64}` that does not start with a dot.
    pub fn new(text: &str) -> Result<Self, InvalidId> {
        let fits = (1..=NAME_CHARS_MAX).contains(&text.len())
            && !text.starts_with('.')
            && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-'));
        if fits {
            Ok(Self(text.to_owned()))
        } else {
            let text = text.chars().take(NAME_CHARS_MAX + 1).collect();
            Err(InvalidId { text, expected: "a name of 1 to 64 letters, digits, `.`, `_` or `-`" })
        }
    }

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// The name of a device, unique in its fleet.
pub type DeviceId = Name;

#[cfg(test)]
impl schemars::JsonSchema for CaseId {
    fn schema_name() -> alloc::borrow::Cow<'static, str> {
        "CaseId".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": r"^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}\.[0-9a-f]{16}\.[0-9]+$"})
    }
}

#[cfg(test)]
impl schemars::JsonSchema for Name {
    fn schema_name() -> alloc::borrow::Cow<'static, str> {
        "Name".into()
    }

    fn json_schema(_: &mut schemars::SchemaGenerator) -> schemars::Schema {
        schemars::json_schema!({"type": "string", "pattern": "^[A-Za-z0-9_-][A-Za-z0-9._-]{0,63}$"})
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Name {
    type Err = InvalidId;
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        Self::new(text)
    }
}

/// One run of the agent: 64 random bits, drawn at process start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Epoch(pub u64);

/// A case's name within its device: what the device's own store is keyed by. Only what a device keeps for itself has it
/// in this form; in messages it is part of a [`CaseId`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct CaseKey {
    pub epoch: Epoch,
    pub sequence: u64,
}

impl CaseKey {
    /// 16 bytes, big-endian, ordered like the key itself.
    #[must_use]
    pub fn to_bytes(self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&self.epoch.0.to_be_bytes());
        bytes[8..].copy_from_slice(&self.sequence.to_be_bytes());
        bytes
    }

    #[must_use]
    pub fn from_bytes(bytes: [u8; 16]) -> Self {
        let [e0, e1, e2, e3, e4, e5, e6, e7, s0, s1, s2, s3, s4, s5, s6, s7] = bytes;
        Self {
            epoch: Epoch(u64::from_be_bytes([e0, e1, e2, e3, e4, e5, e6, e7])),
            sequence: u64::from_be_bytes([s0, s1, s2, s3, s4, s5, s6, s7]),
        }
    }
}

/// A case's (and any answer's) name in the whole fleet.
///
/// Written `device.epoch.sequence`, the epoch as 16 hexadecimal digits.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CaseId {
    pub device: DeviceId,
    pub key: CaseKey,
}

impl fmt::Display for CaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:016x}.{}", self.device, self.key.epoch.0, self.key.sequence)
    }
}

impl FromStr for CaseId {
    type Err = InvalidId;

    /// Reads from the right, because a device id may itself contain dots.
    fn from_str(text: &str) -> Result<Self, InvalidId> {
        parse_case_id(text).ok_or_else(|| InvalidId {
            text: text.chars().take(NAME_CHARS_MAX * 2).collect(),
            expected: "a case id of the form device.epoch.sequence",
        })
    }
}

fn parse_case_id(text: &str) -> Option<CaseId> {
    let (rest, sequence) = text.rsplit_once('.')?;
    let (device, epoch) = rest.rsplit_once('.')?;
    let id = CaseId {
        device: DeviceId::new(device).ok()?,
        key: CaseKey { epoch: Epoch(u64::from_str_radix(epoch, 16).ok()?), sequence: sequence.parse().ok()? },
    };
    // One id has one spelling, so that it can be compared as text anywhere.
    (id.to_string() == text).then_some(id)
}

macro_rules! serde_as_text {
    ($type:ty) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                let text = String::deserialize(deserializer)?;
                text.parse().map_err(|error| serde::de::Error::custom(format!("{error}")))
            }
        }
    };
}

serde_as_text!(Name);
serde_as_text!(CaseId);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_case_id_reads_back_as_written_even_when_the_device_has_dots() {
        let id = CaseId {
            device: DeviceId::new("hall-3.camera.left").expect("valid"),
            key: CaseKey { epoch: Epoch(0x00ab_cdef), sequence: 42 },
        };
        assert_eq!(id.to_string(), "hall-3.camera.left.0000000000abcdef.42");
        assert_eq!(id.to_string().parse(), Ok(id));
    }

    #[test]
    fn an_id_has_one_spelling() {
        for other in ["d.ABCDEF0123456789.1", "d.abcdef0123456789.01", "d.abcdef.1", "d.abcdef0123456789.+1", "d", ""] {
            assert!(other.parse::<CaseId>().is_err(), "{other}");
        }
    }

    #[test]
    fn names_that_would_break_a_topic_or_a_path_are_refused() {
        for bad in ["", "a/b", "+", "#", "..", ".hidden", "a b", "ü", &"x".repeat(65)] {
            assert!(Name::new(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn a_key_survives_its_bytes() {
        let key = CaseKey { epoch: Epoch(u64::MAX - 1), sequence: 7 };
        assert_eq!(CaseKey::from_bytes(key.to_bytes()), key);
    }
}
