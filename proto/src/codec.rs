//! Reading and writing messages: size first, then CBOR or JSON.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::FieldError;
use crate::plain::plain;

/// Why a message could not be read. None of these is a reason to stop: count it, say it, go on.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    #[error("the message has {bytes} bytes, more than the {bytes_max} that are read")]
    TooLarge { bytes: usize, bytes_max: usize },
    #[error("not a message of this version: {0}")]
    Malformed(String),
    /// It can be read, and holds more than it may or what nothing can follow from.
    #[error("{0}")]
    Bound(String),
    /// Of a document that people type.
    #[error("{0}")]
    Field(FieldError),
}

/// How deep a message may nest: ours go to five.
pub(crate) const DEPTH_MAX: usize = 16;

/// Writes one CBOR message.
///
/// # Panics
/// Never for the types of this crate: writing to memory cannot fail and all their keys are text.
#[must_use]
pub fn to_cbor<T: Serialize>(message: &T) -> Vec<u8> {
    // Most are smaller, and ciborium writes a few bytes at a time.
    let mut bytes = Vec::with_capacity(512);
    #[expect(clippy::expect_used, reason = "see # Panics")]
    ciborium::into_writer(message, &mut bytes).expect("messages serialise");
    bytes
}

/// Reads one CBOR message of at most `bytes_max` bytes.
pub fn from_cbor<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, DecodeError> {
    check_size(bytes, bytes_max)?;
    ciborium::de::from_reader_with_recursion_limit(bytes, DEPTH_MAX)
        .map_err(|error| DecodeError::Malformed(cbor_error_text(&error)))
}

fn cbor_error_text<E: core::fmt::Debug>(error: &ciborium::de::Error<E>) -> String {
    match error {
        ciborium::de::Error::Io(_) => "it ends too early".to_string(),
        ciborium::de::Error::Syntax(at) => format!("not CBOR at byte {at}"),
        ciborium::de::Error::Semantic(_, text) => text.clone(),
        ciborium::de::Error::RecursionLimitExceeded => format!("nested deeper than {DEPTH_MAX}"),
    }
}

/// Writes one JSON document.
///
/// # Panics
/// Never for the types of this crate: their keys are text and their numbers finite or written as null.
#[must_use]
pub fn to_json<T: Serialize>(document: &T) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "see # Panics")]
    serde_json::to_vec(document).expect("documents serialise")
}

/// A document as a JSON value with its numbers as they are typed: 0.7, not what the nearest `f32` is.
///
/// # Panics
/// As [`to_json`].
#[must_use]
pub fn to_value<T: Serialize>(document: &T) -> serde_json::Value {
    serde_json::from_slice(&to_json(document)).unwrap_or_default()
}

/// What an enum's value is called in JSON, for people.
///
/// # Panics
/// As [`to_json`].
#[must_use]
pub fn word<T: Serialize>(value: &T) -> String {
    match to_value(value) {
        serde_json::Value::String(word) => word,
        other => other.to_string(),
    }
}

/// Reads one JSON document of at most `bytes_max` bytes.
pub fn from_json<T: DeserializeOwned>(bytes: &[u8], bytes_max: usize) -> Result<T, DecodeError> {
    check_size(bytes, bytes_max)?;
    serde_json::from_slice(bytes).map_err(|error| DecodeError::Malformed(json_error_text(&error)))
}

fn json_error_text(error: &serde_json::Error) -> String {
    use serde_json::error::Category;
    match error.classify() {
        Category::Io | Category::Eof => "it ends too early".to_string(),
        Category::Syntax => format!("no JSON at line {}, column {}", error.line(), error.column()),
        Category::Data => plain(&error.to_string()),
    }
}

pub(crate) fn check_size(bytes: &[u8], bytes_max: usize) -> Result<(), DecodeError> {
    if bytes.len() > bytes_max {
        return Err(DecodeError::TooLarge { bytes: bytes.len(), bytes_max });
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::collections::BTreeMap;

    #[test]
    fn what_is_wrong_with_a_document_is_said_without_a_word_of_this_program() {
        let said = |bytes: &[u8]| match from_json::<BTreeMap<String, f32>>(bytes, 1000) {
            Err(error) => error.to_string(),
            Ok(read) => panic!("{read:?}"),
        };
        for (bytes, part) in [
            (&b"rubbish"[..], "no JSON at line 1, column 1"),
            (b"{\"a\": ", "it ends too early"),
            (b"{\"a\": \"90%\"}", "found the text \"90%\", expected a number"),
        ] {
            let text = said(bytes);
            assert!(text.contains(part), "{text}");
        }
        assert_eq!(to_value(&BTreeMap::from([("a", 0.9_f32)])).to_string(), "{\"a\":0.9}");
    }
}
