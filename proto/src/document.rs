//! Reads JSON that people type: whatever is wrong with it is named by its field.
//!
//! A field that is given twice is refused, because whoever typed it meant only one of them.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;

use serde::de::{DeserializeOwned, DeserializeSeed, Deserializer, Error, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};
use serde_path_to_error::{Path, Segment, Track};

use crate::codec::{DEPTH_MAX, check_size};
use crate::overlay::field_name;
use crate::plain::plain;
use crate::{DOCUMENT_BYTES_MAX, DecodeError, FieldError};

/// Text of others as it may be shown: no longer than that, and without what moves a terminal's cursor.
#[must_use]
pub fn readable(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|one| if one.is_control() { char::REPLACEMENT_CHARACTER } else { one }).collect()
}

/// Reads one document of at most [`DOCUMENT_BYTES_MAX`].
pub(crate) fn read_typed<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, DecodeError> {
    check_size(bytes, DOCUMENT_BYTES_MAX)?;
    let mut track = Track::new();
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let read = Node { depth: 0 }.deserialize(serde_path_to_error::Deserializer::new(&mut json, &mut track));
    let value = read.map_err(|error| at(&track.path(), &error))?;
    json.end().map_err(|error| DecodeError::Malformed(format!("{error}")))?;
    if !value.is_object() {
        return Err(DecodeError::Malformed("it is not a JSON object, {…}".to_owned()));
    }
    serde_path_to_error::deserialize(value).map_err(|error| at(error.path(), error.inner()))
}

fn at(path: &Path, error: &serde_json::Error) -> DecodeError {
    if !path.iter().any(|segment| matches!(segment, Segment::Map { .. })) {
        return DecodeError::Malformed(plain(&format!("{error}")));
    }
    let field = field_name(path);
    // Settings go by the names that they have in the local file.
    DecodeError::Field(FieldError::new(field.strip_prefix("settings.").unwrap_or(&field), plain(&format!("{error}"))))
}

/// Any JSON value in which no field is given twice.
#[derive(Clone, Copy)]
struct Node {
    depth: usize,
}

impl Node {
    fn deeper(self) -> Self {
        Self { depth: self.depth + 1 }
    }
}

impl<'de> DeserializeSeed<'de> for Node {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if self.depth > DEPTH_MAX {
            return Err(D::Error::custom(format!("nested deeper than {DEPTH_MAX}")));
        }
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Node {
    type Value = Value;

    fn expecting(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Value, A::Error> {
        let mut values = Vec::new();
        while let Some(value) = list.next_element_seed(self.deeper())? {
            values.push(value);
        }
        Ok(Value::Array(values))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut fields: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(name) = fields.next_key::<String>()? {
            if object.contains_key(&name) {
                fields.next_value_seed(Twice)?;
            }
            let value = fields.next_value_seed(self.deeper())?;
            object.insert(name, value);
        }
        Ok(Value::Object(object))
    }
}

/// A second value of a field; read as one, so that the error is at its place.
struct Twice;

impl<'de> DeserializeSeed<'de> for Twice {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, _: D) -> Result<(), D::Error> {
        Err(D::Error::custom("is given twice"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString;

    #[track_caller]
    fn check_refused(text: impl AsRef<[u8]>, expected: &str) {
        let error = read_typed::<Value>(text.as_ref()).expect_err("refused").to_string();
        assert!(error.contains(expected), "`{error}` does not say `{expected}`");
    }

    #[test]
    fn what_is_wrong_is_named_by_its_field() {
        check_refused(r#"{"a": {"b": 1, "c": 2, "b": 1}}"#, "a.b: is given twice");
        check_refused(r#"{"a": {"b": [1, NaN]}}"#, "a.b[1]: expected value");
        check_refused(r#"{"a": {"b": 1e999}}"#, "a.b: number out of range");
        check_refused(b"{\"a\": {\"b\": \"\xff\"}}", "a.b: invalid unicode");
        check_refused(r#"{"settings": {"b": tru}}"#, "b: expected");
        check_refused(r#"{"a": "#, "a: EOF");
        check_refused(r#"{"a": 1} x"#, "trailing");
        check_refused("not JSON", "expected ident");
        check_refused("[1, {}]", "not a JSON object");
        check_refused(["{\"a\": ".to_string(), "[".repeat(10_000)].concat(), "nested deeper than 16");
        check_refused(" ".repeat(DOCUMENT_BYTES_MAX + 1), "more than the 65536");
    }

    #[test]
    fn what_is_right_reads_as_it_would_anywhere() {
        let text = r#"{"a": [1, -2, 0.5, null, true, "\u00e9", {}], "b": {"c": 18446744073709551615}}"#;
        assert_eq!(read_typed::<Value>(text.as_bytes()), Ok(serde_json::from_str(text).expect("JSON")));
    }

    #[test]
    fn what_is_shown_moves_no_cursor() {
        assert_eq!(readable("a\u{1b}[2J\nb", 100), "a\u{fffd}[2J\u{fffd}b");
        assert_eq!(readable("abc", 2), "ab");
    }
}
