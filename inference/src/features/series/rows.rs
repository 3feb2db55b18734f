//! Rows of numbers from text: CSV, one JSON document, or one a line. Columns are found by name where they have names.

use serde_json::Value;

use super::super::{ContentType, FeatureError};

/// The longest text. As JSON it takes about 16 times as much memory while it is read.
pub(super) const TEXT_BYTES_MAX: usize = 4 * 1024 * 1024;

/// What a manifest says of the columns.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Columns {
    /// Empty if they have none: then they are taken in their order.
    pub(super) names: Vec<String>,
    pub(super) count: usize,
    /// The column that holds the time of each row.
    pub(super) time: Option<String>,
}

/// One row: its time, and what is known of each channel then.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub(super) time: Option<f64>,
    pub(super) cells: Vec<Option<f64>>,
}

/// A cell as it was written: a number, nothing, or what is neither.
type Cell = Result<Option<f64>, String>;

fn refused(reason: String) -> FeatureError {
    FeatureError::NoSample { reason }
}

/// Where a text stops being JSON.
fn from_where(error: &serde_json::Error) -> String {
    format!(" from line {}, character {} on", error.line(), error.column())
}

/// A few words of somebody's text.
fn quoted(text: &str) -> String {
    text.trim().chars().take(40).collect()
}

impl Columns {
    pub(super) fn read(&self, content_type: &ContentType, bytes: &[u8]) -> Result<Vec<Row>, FeatureError> {
        if bytes.len() > TEXT_BYTES_MAX {
            return Err(refused(format!(
                "{} bytes are more than the {TEXT_BYTES_MAX} that rows may have",
                bytes.len()
            )));
        }
        let text = hedge_proto::text(bytes.to_vec()).map_err(|error| refused(error.to_string()))?;
        let rows = match content_type {
            ContentType::Json => self.json(&text),
            ContentType::NdJson => self.lines(&text),
            _ => self.csv(&text),
        }?;
        if rows.is_empty() { Err(refused("it holds no rows of numbers".to_owned())) } else { Ok(rows) }
    }

    fn csv(&self, text: &str) -> Result<Vec<Row>, FeatureError> {
        let mut lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty()).peekable();
        let Some((_, first)) = lines.peek() else { return Ok(Vec::new()) };
        let separator = separator(first);
        let headings = words(first, separator);
        let is_header = are_names(&headings);
        let places = if is_header {
            lines.next();
            self.places(&headings)?
        } else {
            self.in_order()
        };
        let width = if is_header { headings.len() } else { self.width() };
        lines
            .map(|(at, line)| {
                let at = at + 1;
                let words = words(line, separator);
                if words.len() != width {
                    return Err(self.wrong_width(&format!("line {at}"), words.len(), width));
                }
                self.row(&format!("line {at}"), places.iter().map(|place| cell(&words[*place])))
            })
            .collect()
    }

    fn lines(&self, text: &str) -> Result<Vec<Row>, FeatureError> {
        let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
        lines
            .map(|(at, line)| {
                let place = format!("line {}", at + 1);
                let value: Value = serde_json::from_str(line)
                    .map_err(|error| refused(format!("{place} is no JSON{}", from_where(&error))))?;
                self.one(&place, &value)
            })
            .collect()
    }

    fn json(&self, text: &str) -> Result<Vec<Row>, FeatureError> {
        let value: Value =
            serde_json::from_str(text).map_err(|error| refused(format!("it is no JSON{}", from_where(&error))))?;
        match &value {
            Value::Array(rows) if rows.iter().any(|row| row.is_array() || row.is_object()) => {
                rows.iter().enumerate().map(|(at, row)| self.one(&format!("row {}", at + 1), row)).collect()
            }
            // Of one channel each number is a row; else they are the channels of one.
            Value::Array(rows) if self.width() == 1 => {
                rows.iter().enumerate().map(|(at, row)| self.one(&format!("row {}", at + 1), row)).collect()
            }
            Value::Object(columns) if columns.values().any(Value::is_array) => self.by_column(columns),
            _ => Ok(vec![self.one("it", &value)?]),
        }
    }

    /// `{"x": [1, 2], "y": [3, 4]}`
    fn by_column(&self, columns: &serde_json::Map<String, Value>) -> Result<Vec<Row>, FeatureError> {
        let headings: Vec<String> = columns.keys().cloned().collect();
        let places = self.places(&headings)?;
        let lists: Vec<(&str, &[Value])> = places
            .iter()
            .map(|place| {
                let name = headings[*place].as_str();
                let list = columns.get(name).and_then(Value::as_array);
                list.map(|list| (name, list.as_slice()))
                    .ok_or_else(|| refused(format!("`{name}` is no list of numbers")))
            })
            .collect::<Result<_, _>>()?;
        let length = lists.first().map_or(0, |(_, list)| list.len());
        if let Some((name, list)) = lists.iter().find(|(_, list)| list.len() != length) {
            return Err(refused(format!("`{name}` has {} numbers, and `{}` {length}", list.len(), lists[0].0)));
        }
        (0..length)
            .map(|at| self.row(&format!("row {}", at + 1), lists.iter().map(|(_, list)| number(&list[at]))))
            .collect()
    }

    /// One row as JSON says it: a list in order, an object by name, or the only number.
    fn one(&self, place: &str, value: &Value) -> Result<Row, FeatureError> {
        match value {
            Value::Array(cells) if cells.len() == self.width() => self.row(place, cells.iter().map(number)),
            Value::Array(cells) => Err(self.wrong_width(place, cells.len(), self.width())),
            Value::Object(named) => {
                let headings: Vec<String> = named.keys().cloned().collect();
                let places = self.places(&headings)?;
                self.row(place, places.iter().map(|at| number(&named[&headings[*at]])))
            }
            one if self.width() == 1 => self.row(place, std::iter::once(number(one))),
            _ => Err(refused(format!("{place} is no row of {} numbers", self.width()))),
        }
    }

    /// Where the time, if there is one, and the channels stand among these headings.
    fn places(&self, headings: &[String]) -> Result<Vec<usize>, FeatureError> {
        let named = self.time.iter().chain(&self.names);
        // Which of them is meant nobody knows.
        let is_twice = |name: &&String| headings.iter().filter(|heading| heading == name).count() > 1;
        if let Some(name) = named.clone().find(is_twice) {
            return Err(refused(format!("there are several columns `{name}`; give each a name of its own")));
        }
        let mut places: Vec<usize> = named
            .map(|name| {
                headings.iter().position(|heading| heading == name).ok_or_else(|| {
                    let known: Vec<String> = headings.iter().map(|heading| format!("`{}`", quoted(heading))).collect();
                    refused(format!("there is no column `{name}`; there are: {}", known.join(", ")))
                })
            })
            .collect::<Result<_, _>>()?;
        if self.names.is_empty() {
            let rest: Vec<usize> = (0..headings.len()).filter(|at| !places.contains(at)).collect();
            if rest.len() != self.count {
                return Err(self.wrong_width("it", headings.len(), self.width()));
            }
            places.extend(rest);
        }
        Ok(places)
    }

    fn in_order(&self) -> Vec<usize> {
        (0..self.width()).collect()
    }

    /// Columns of a row without names: the time goes first.
    fn width(&self) -> usize {
        self.count + usize::from(self.time.is_some())
    }

    fn wrong_width(&self, place: &str, found: usize, wanted: usize) -> FeatureError {
        let time = self.time.as_ref().map_or(String::new(), |name| format!(" with `{name}` first"));
        refused(format!("{place} has {found} columns, not {wanted}{time}"))
    }

    fn row(&self, place: &str, cells: impl Iterator<Item = Cell>) -> Result<Row, FeatureError> {
        let mut cells: Vec<Option<f64>> = cells
            .collect::<Result<_, _>>()
            .map_err(|word| refused(format!("{place} holds `{word}`, which is not a number")))?;
        let time = match &self.time {
            None => None,
            Some(name) => {
                let time = cells.remove(0).ok_or_else(|| refused(format!("{place} has no time in `{name}`")))?;
                Some(time)
            }
        };
        Ok(Row { time, cells })
    }
}

/// Whether a line names columns: it is no JSON, and none of it is a number.
#[must_use]
pub fn is_heading(line: &[u8]) -> bool {
    let Ok(line) = std::str::from_utf8(line) else { return false };
    let line = line.trim_start_matches('\u{feff}').trim();
    !line.starts_with(['{', '[']) && are_names(&words(line, separator(line)))
}

/// Whether a line names columns anew that `before` named already, in whatever order and number: of a program that was
/// started again, say. A line of other words is no row, and no heading either.
#[must_use]
pub fn is_heading_again(line: &[u8], before: &[u8]) -> bool {
    let names = |line| {
        let line = std::str::from_utf8(line).unwrap_or_default().trim_start_matches('\u{feff}');
        words(line, separator(line))
    };
    let known = names(before);
    is_heading(line) && names(line).iter().any(|name| !name.is_empty() && known.contains(name))
}

/// Whether cells name columns. Where one is a number, another that is none is a mistake in a row, not a name.
pub(in crate::features) fn are_names(cells: &[String]) -> bool {
    cells.iter().any(|word| cell(word).is_err()) && !cells.iter().any(|word| matches!(cell(word), Ok(Some(_))))
}

pub(in crate::features) fn separator(line: &str) -> Option<char> {
    [';', '\t', ','].into_iter().find(|separator| line.contains(*separator))
}

/// The cells of a line.
pub(in crate::features) fn words(line: &str, separator: Option<char>) -> Vec<String> {
    let word = |word: &str| word.trim().trim_matches('"').to_owned();
    match separator {
        Some(separator) => line.trim_end_matches(['\r', '\n']).split(separator).map(word).collect(),
        None => line.split_whitespace().map(word).collect(),
    }
}

/// A number, or nothing, as tables are written.
fn cell(word: &str) -> Cell {
    const NOTHING: [&str; 6] = ["", "nan", "na", "n/a", "null", "none"];
    if NOTHING.iter().any(|nothing| word.eq_ignore_ascii_case(nothing)) {
        return Ok(None);
    }
    match word.parse::<f64>() {
        Ok(number) if number.is_finite() => Ok(Some(number)),
        _ => Err(quoted(word)),
    }
}

fn number(value: &Value) -> Cell {
    match value {
        Value::Null => Ok(None),
        Value::Number(number) => {
            number.as_f64().filter(|number| number.is_finite()).map(Some).ok_or(number.to_string())
        }
        Value::Bool(is_so) => Ok(Some(f64::from(u8::from(*is_so)))),
        Value::String(text) => cell(text.trim()),
        other => Err(quoted(&other.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str], count: usize, time: Option<&str>) -> Columns {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Columns { names, count, time: time.map(str::to_owned) }
    }

    #[track_caller]
    fn check(columns: &Columns, kind: &ContentType, text: &str, expected: &[(Option<f64>, &[Option<f64>])]) {
        let rows = columns.read(kind, text.as_bytes()).expect(text);
        let rows: Vec<(Option<f64>, &[Option<f64>])> = rows.iter().map(|row| (row.time, &*row.cells)).collect();
        assert_eq!(rows, expected, "{text}");
    }

    #[test]
    fn a_first_row_with_a_mistake_is_not_left_out_as_headings() {
        let error = columns(&[], 2, None).read(&ContentType::Csv, b"1,x2\n3,4\n").expect_err("a mistake").to_string();
        assert!(error.contains("line 1 holds `x2`"), "{error}");
        assert!(is_heading(b"x,y\n") && is_heading(b"t,\n") && !is_heading(b"1,x2\n"));
    }

    #[test]
    fn rows_are_read_as_tables_and_programs_write_them() {
        use ContentType::{Csv, Json, NdJson};
        let (named, plain) = (columns(&["x", "y"], 2, None), columns(&[], 2, None));
        let both: [(Option<f64>, &[Option<f64>]); 2] = [(None, &[Some(1.0), Some(2.0)]), (None, &[Some(3.0), None])];
        for columns in [&named, &plain] {
            check(columns, &Csv, "\u{feff}x,y\r\n1,2\r\n\r\n3,NaN\r\n", &both);
            check(columns, &Csv, "1;2\n3;", &both);
            check(columns, &Json, "[[1, 2], [3, null]]", &both);
            check(columns, &Json, r#"[{"x": 1, "y": 2}, {"x": 3, "y": null}]"#, &both);
            check(columns, &Json, r#"{"x": [1, 3], "y": [2, null]}"#, &both);
            check(columns, &NdJson, "{\"x\": 1, \"y\": 2}\n[3, null]\n", &both);
            check(columns, &Json, "[1, 2]", &both[..1]);
            check(columns, &Json, r#"{"x": 1, "y": 2}"#, &both[..1]);
        }
        // By name in any order, among others.
        check(&named, &Csv, "\"y\",room,x\n2,kitchen,1\n", &both[..1]);
        let one = columns(&[], 1, None);
        check(&one, &Json, "[1, 2]", &[(None, &[Some(1.0)]), (None, &[Some(2.0)])]);
        check(&one, &Csv, "1\n2\n", &[(None, &[Some(1.0)]), (None, &[Some(2.0)])]);
        let timed = columns(&["x"], 1, Some("t"));
        check(&timed, &Csv, "x,t\n5,0.5\n", &[(Some(0.5), &[Some(5.0)])]);
        check(&timed, &Csv, "0.5 5\n", &[(Some(0.5), &[Some(5.0)])]);
        check(&timed, &NdJson, "[0.5, true]\n", &[(Some(0.5), &[Some(1.0)])]);
    }

    #[test]
    fn text_that_holds_no_such_rows_says_where_and_why() {
        use ContentType::{Csv, Json, NdJson};
        let (named, timed) = (columns(&["x", "y"], 2, None), columns(&["x"], 1, Some("t")));
        for (columns, kind, text, words) in [
            (&named, &Csv, "x,z\n1,2\n", "no column `y`; there are: `x`, `z`"),
            (&named, &Csv, "x,y,x\n1,2,3\n", "several columns `x`"),
            (&named, &Csv, "x,y\n1,2\n3,four\n", "line 3 holds `four`"),
            (&named, &Csv, "x,y\n1,inf\n", "line 2 holds `inf`"),
            (&named, &Csv, "x,y\n1\n", "line 2 has 1 columns, not 2"),
            (&named, &Csv, "1,2,3\n", "line 1 has 3 columns, not 2"),
            (&named, &Csv, "x,y\n", "no rows"),
            (&named, &Csv, "", "no rows"),
            (&named, &Json, "[[1, 2], [3]]", "row 2 has 1 columns"),
            (&named, &Json, "{\"x\": [1, 2], \"y\": [3]}", "`y` has 1 numbers, and `x` 2"),
            (&named, &Json, "{\"x\": [1], \"y\": 3}", "`y` is no list"),
            (&named, &Json, "[[1, [2]]]", "row 1 holds `[2]`"),
            (&named, &Json, "7", "it is no row of 2 numbers"),
            (&named, &Json, "[1, 2", "it is no JSON"),
            (&named, &NdJson, "[1, 2]\nhello\n", "line 2 is no JSON"),
            (&timed, &Csv, "t,x\n,5\n", "line 2 has no time in `t`"),
            (&timed, &Csv, "5\n", "line 1 has 1 columns, not 2 with `t` first"),
        ] {
            let error = columns.read(kind, text.as_bytes()).expect_err(words).to_string();
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
        let long = vec![b'1'; TEXT_BYTES_MAX + 1];
        assert!(named.read(&Csv, &long).expect_err("refused").to_string().contains("more than the"));
        assert!(named.read(&Csv, b"\xff\xfe1").is_err());
    }
}
