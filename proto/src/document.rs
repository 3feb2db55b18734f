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
use crate::{DOCUMENT_BYTES_MAX, DecodeError, FieldError};

/// Text of others as it may be shown: no longer than that, and without what moves a terminal's cursor.
#[must_use]
pub fn readable(text: &str, chars_max: usize) -> String {
    text.chars().take(chars_max).map(|one| if one.is_control() { char::REPLACEMENT_CHARACTER } else { one }).collect()
}

/// What serde says of a value that does not fit, in the words of whoever wrote it; anything else as it is.
#[must_use]
pub fn plain(message: &str) -> String {
    let wrong = message.strip_prefix("invalid type: ").or_else(|| message.strip_prefix("invalid value: "));
    match wrong.and_then(|rest| rest.rsplit_once(", expected ")) {
        Some((found, expected)) => format!("found {}, expected {}", plainly_found(found), plainly_expected(expected)),
        None => message.to_owned(),
    }
}

fn plainly_found(found: &str) -> String {
    match found.split_once(' ').map_or((found, ""), |(kind, rest)| (kind, rest.trim_matches('`'))) {
        ("string", text) => format!("the text {text}"),
        ("integer", number) => format!("the number {number}"),
        ("floating", number) => {
            let number = number.trim_start_matches("point `");
            // What was a 32-bit number once has digits behind it that nobody wrote.
            match number.parse::<f32>() {
                Ok(short) if number.parse() == Ok(f64::from(short)) => format!("the number {short}"),
                _ => format!("the number {number}"),
            }
        }
        ("boolean", value) => value.to_owned(),
        ("map", _) => "a table".to_owned(),
        ("sequence", _) => "a list".to_owned(),
        ("null" | "unit" | "Option", _) => "nothing".to_owned(),
        _ => found.to_owned(),
    }
}

fn plainly_expected(expected: &str) -> &str {
    // JSON that is read from text says where it ends.
    match expected.split(" at line ").next().unwrap_or(expected) {
        "f32" | "f64" => "a number",
        "u8" => "a whole number from 0 to 255",
        "u16" => "a whole number from 0 to 65535",
        "u32" | "u64" | "usize" => "a whole number, 0 or more",
        "i8" | "i16" | "i32" | "i64" | "isize" => "a whole number",
        "a boolean" => "true or false",
        "a sequence" => "a list",
        "path string" => "a path",
        "a map" => "a table of fields",
        nonzero if nonzero.starts_with("a nonzero ") => "a whole number, 1 or more",
        table if table.starts_with("struct ") => "a table of fields",
        names if names.starts_with("enum ") => "one of its names",
        other => other,
    }
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
    fn a_value_that_does_not_fit_is_said_without_names_of_types() {
        for (serde, said) in [
            ("invalid type: string \"90%\", expected f32", "found the text \"90%\", expected a number"),
            (
                "invalid type: string \"a, expected b\", expected u8",
                "found the text \"a, expected b\", expected a whole number from 0 to 255",
            ),
            (
                "invalid type: floating point `0.8999999761581421`, expected u64",
                "found the number 0.9, expected a whole number, 0 or more",
            ),
            (
                "invalid type: floating point `0.123456789012`, expected u64",
                "found the number 0.123456789012, expected a whole number, 0 or more",
            ),
            (
                "invalid value: integer `-1`, expected u32 at line 1 column 2",
                "found the number -1, expected a whole number, 0 or more",
            ),
            (
                "invalid value: integer `0`, expected a nonzero u32",
                "found the number 0, expected a whole number, 1 or more",
            ),
            (
                "invalid type: boolean `true`, expected struct ThresholdSettings",
                "found true, expected a table of fields",
            ),
            ("invalid type: map, expected a string", "found a table, expected a string"),
            ("1.2 is not a number from 0 to 1", "1.2 is not a number from 0 to 1"),
        ] {
            assert_eq!(plain(serde), said);
        }
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
