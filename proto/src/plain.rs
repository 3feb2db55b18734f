//! What serde says of a wrong value, in the words of whoever wrote it.

use alloc::borrow::ToOwned;
use alloc::format;
use alloc::string::String;

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

#[cfg(test)]
mod tests {
    use super::*;

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
}
