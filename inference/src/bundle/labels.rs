//! Label files: one label per line, as bundles have them, and the forms that other tools write.
//!
//! A form is only believed if the whole file keeps to it; every other file is one label per line. No IO.

use serde_json::Value;

/// The most classes a model may tell apart.
pub const LABELS_MAX: usize = 65_536;

/// The longest label: a few hundred of them fit into an answer.
const LABEL_BYTES_MAX: usize = 256;

/// The labels of a file, in the order of the model's outputs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labels {
    pub names: Vec<String>,
    /// What the file was taken for.
    pub form: &'static str,
}

const LINES: &str = "one label per line";
const JSON: &str = "JSON";
const PYTHON: &str = "a Python map";
const PBTXT: &str = "a label map (pbtxt)";

/// A column of a table that holds the labels, the best first.
const NAME_COLUMNS: [&str; 6] = ["display_name", "class_name", "name", "label", "class", "labels"];

/// Reads the labels of a bundle: one per line. Empty lines at the end are no labels.
pub fn lines(text: &str) -> Result<Vec<String>, String> {
    let lines: Vec<String> = text.trim_end().lines().map(|line| line.trim().to_owned()).collect();
    if let Some(at) = lines.iter().position(String::is_empty) {
        return Err(format!("line {} is empty; each output of the model needs a label of its own", at + 1));
    }
    match lines.len() {
        0 => Err("it holds no labels".into()),
        1..=LABELS_MAX => Ok(lines),
        more => Err(format!("a model has at most {LABELS_MAX} labels, not {more}")),
    }
}

/// Refuses what tells nothing apart. A detector may know one thing only.
pub fn several(names: &[String]) -> Result<(), String> {
    match names {
        [only] => Err(format!(
            "it holds one label, `{only}`, of which a model is always sure; a model that answers yes or no needs two: \
             what no means, then what yes means"
        )),
        _ => Ok(()),
    }
}

/// The form of a file that is anything but lines of labels.
#[must_use]
pub fn structured(text: &str) -> Option<&'static str> {
    let text = text.trim();
    let begins = |what: &str| text.strip_prefix(what).is_some_and(|rest| rest.trim_start().starts_with('{'));
    if text.starts_with(['{', '[']) && serde_json::from_str::<Value>(text).is_ok() {
        Some(JSON)
    } else if text.starts_with('{') && python(text).is_some() {
        Some(PYTHON)
    } else if begins("item") {
        Some(PBTXT)
    } else {
        None
    }
}

/// Reads labels in any form that is known, or says which form was seen and what is wrong with it.
pub fn read(text: &str) -> Result<Labels, String> {
    let text = &text.replace("\r\n", "\n").replace('\r', "\n");
    let (names, form) = match structured(text) {
        Some(form @ JSON) => (json(&serde_json::from_str(text.trim()).unwrap_or_default()), form),
        Some(form @ PYTHON) => (python(text.trim()).map_or_else(|| Err("it cannot be read".into()), in_order), form),
        Some(form) => (pbtxt(text), form),
        None => plain(text)?,
    };
    let names = names.map_err(|reason| if form == LINES { reason } else { format!("it is {form}: {reason}") })?;
    // The rules for the count and for empty labels are those of lines.
    let names = lines(&names.join("\n"))?;
    let is_label = |name: &String| name.len() <= LABEL_BYTES_MAX && !name.chars().any(char::is_control);
    match names.iter().position(|name| !is_label(name)) {
        Some(at) => Err(format!(
            "label {} is longer than {LABEL_BYTES_MAX} bytes or holds a control character; it goes into every answer, so \
             shorten it",
            at + 1
        )),
        None => Ok(Labels { names, form }),
    }
}

type Named = (Result<Vec<String>, String>, &'static str);

fn plain(text: &str) -> Result<Named, String> {
    if let Some(names) = yaml(text) {
        return Ok((names, "YAML"));
    }
    if let Some(names) = list(text) {
        return Ok((Ok(names), "a list in brackets"));
    }
    let rows: Vec<&str> = text.trim_end().lines().map(str::trim).collect();
    if let Some(names) = marked(&rows) {
        return Ok((Ok(names), "one label per line, between marks"));
    }
    match rows.as_slice() {
        [] => return Ok((lines(text), LINES)),
        [row] if row.contains(',') => {
            return Ok((Ok(row.split(',').map(unquoted).collect()), "labels with commas between them"));
        }
        _ => {}
    }
    if let Some(names) = table(&rows) {
        return Ok((names, "a table (CSV)"));
    }
    if let Some(names) = numbered(&rows) {
        return Ok((names, "numbered lines"));
    }
    let with_number = |row: &&str| {
        let (name, number) = row.rsplit_once([':', '='])?;
        Some((number.trim().parse().ok()?, unquoted(name)))
    };
    if let Some(Ok(names)) = rows.iter().map(with_number).collect::<Option<_>>().map(in_order) {
        return Ok((Ok(names), "labels with their numbers"));
    }
    if let Some(names) = rows.iter().map(|row| synset(row)).collect::<Option<Vec<String>>>() {
        return Ok((Ok(names), "synset lines, of which the first word is the label"));
    }
    Ok((lines(text), LINES))
}

/// `- tench`, `* tench`, `"tench",`: every line has the same marks.
fn marked(rows: &[&str]) -> Option<Vec<String>> {
    let all = |name: &dyn Fn(&str) -> Option<String>| rows.iter().map(|row| name(row)).collect::<Option<Vec<String>>>();
    let after = |mark: &str| all(&|row| row.strip_prefix(mark).map(unquoted));
    let between = |quote: char| {
        all(&|row| {
            let inner = row.trim_end_matches(',').strip_prefix(quote)?.strip_suffix(quote)?;
            (!inner.contains(quote)).then(|| inner.trim().to_owned())
        })
    };
    let found = after("- ").or_else(|| after("* ")).or_else(|| between('"')).or_else(|| between('\''));
    found.filter(|_| !rows.is_empty())
}

/// `['tench', "goldfish"]` or `(…)`, perhaps after `CLASSES =`.
fn list(text: &str) -> Option<Vec<String>> {
    let text = text.trim();
    let text =
        text.split_once('=').filter(|(name, _)| !name.contains(['[', '('])).map_or(text, |(_, list)| list.trim());
    let pair = |open: char, close: char| text.strip_prefix(open)?.strip_suffix(close);
    let tokens = tokens(pair('[', ']').or_else(|| pair('(', ')'))?)?;
    let entries = tokens.split(|token| *token == Token::Sign(',')).filter(|entry| !entry.is_empty());
    let name = |entry: &[Token]| match entry {
        [Token::Text(name)] => Some(name.clone()),
        _ => None,
    };
    entries.map(name).collect()
}

/// The `names:` of a `data.yaml`, as YOLO's trainers write it: a list or a map, in brackets or a line each.
fn yaml(text: &str) -> Option<Result<Vec<String>, String>> {
    let mut lines = text.lines().skip_while(|line| !line.starts_with("names:"));
    let first = lines.next()?.strip_prefix("names:")?;
    let is_more = |line: &&str| line.starts_with([' ', '\t', '-', ']', '}']) || line.trim().is_empty();
    let body: Vec<&str> = std::iter::once(first).chain(lines.take_while(is_more)).map(str::trim).collect();
    let body: Vec<&str> = body.into_iter().filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    let joined = body.join(" ");
    let within = |open: char, close: char| joined.strip_prefix(open)?.strip_suffix(close);
    let numbered = |entry: &str| {
        let (number, name) = entry.split_once(':')?;
        Some((number.trim().parse().ok()?, unquoted(name)))
    };
    let entries = |inner: &str| cells(inner.trim_end_matches([',', ' ']), ',');
    let read = if let Some(inner) = within('[', ']') {
        Some(Ok(entries(inner)))
    } else if let Some(inner) = within('{', '}') {
        entries(inner).iter().map(|entry| numbered(entry)).collect::<Option<_>>().map(in_order)
    } else {
        let list = body.iter().map(|line| line.strip_prefix('-').map(unquoted)).collect::<Option<Vec<String>>>();
        list.map(Ok).or_else(|| body.iter().map(|line| numbered(line)).collect::<Option<_>>().map(in_order))
    };
    Some(read.unwrap_or_else(|| Err("write its names into a file of their own, one per line".into())))
}

/// `n01440764 tench, Tinca tinca`.
fn synset(row: &str) -> Option<String> {
    let (id, words) = row.split_once(char::is_whitespace)?;
    let number = id.strip_prefix('n')?;
    let is_number = number.len() >= 2 && number.bytes().all(|byte| byte.is_ascii_digit());
    is_number.then(|| words.split(',').next().unwrap_or_default().trim().to_owned())
}

/// `0: tench`, `0 tench`, `0,tench`, `0) tench`, `0 - tench`.
fn numbered(rows: &[&str]) -> Option<Result<Vec<String>, String>> {
    let mut spaces = true;
    let number = |row: &&str| {
        let digits = row.find(|letter: char| !letter.is_ascii_digit())?;
        let rest = &row[digits..];
        let marked = [". ", ") ", " - "].into_iter().find_map(|mark| rest.strip_prefix(mark));
        spaces &= marked.is_none() && rest.starts_with(' ');
        let name = marked.or_else(|| rest.strip_prefix([':', ',', ';', '\t', ' ', '=']))?;
        let name = name.trim_start_matches([' ', '\t', ':']);
        Some((row[..digits].parse().ok()?, unquoted(name)))
    };
    let numbered: Vec<(usize, String)> = rows.iter().map(number).collect::<Option<_>>()?;
    let ordered = in_order(numbered);
    match ordered {
        // `10 euro` and `0 cars, 1 cars, 2 cars` are names.
        Err(_) if spaces => None,
        Ok(names) if spaces && names.windows(2).all(|two| two[0] == two[1]) => None,
        ordered => Some(ordered),
    }
}

/// Rows of at least two columns, one of which numbers them or is headed as the name.
fn table(rows: &[&str]) -> Option<Result<Vec<String>, String>> {
    let split = |separator| {
        let cells: Vec<Vec<String>> = rows.iter().map(|row| cells(row, separator)).collect();
        (cells[0].len() >= 2 && cells.iter().all(|row| row.len() == cells[0].len())).then_some(cells)
    };
    let cells = [',', ';', '\t'].into_iter().find_map(split)?;
    let (head, body) = cells.split_first()?;
    let index = |rows: &[Vec<String>], column: usize| -> Option<Vec<usize>> {
        rows.iter().map(|row| row[column].parse().ok()).collect()
    };
    let column =
        |rows: &[Vec<String>], column: usize| -> Vec<String> { rows.iter().map(|row| row[column].clone()).collect() };
    let headed = |name: &&str| head.iter().position(|cell| cell.eq_ignore_ascii_case(name));
    if let Some(named) = NAME_COLUMNS.iter().filter_map(headed).find(|at| index(body, *at).is_none()) {
        let numbers = (0..head.len()).filter(|at| *at != named).find_map(|at| index(body, at));
        let names = column(body, named);
        return Some(match numbers {
            Some(numbers) => in_order(numbers.into_iter().zip(names).collect()),
            None => Ok(names),
        });
    }
    // `tench,0`: the other order is that of numbered lines.
    let [_, _] = head.as_slice() else { return None };
    in_order(index(&cells, 1)?.into_iter().zip(column(&cells, 0)).collect()).ok().map(Ok)
}

/// The cells of a row; a separator between quotes is none.
fn cells(row: &str, separator: char) -> Vec<String> {
    let mut quoted = false;
    let split = row.split(|letter| {
        quoted ^= letter == '"';
        letter == separator && !quoted
    });
    split.map(unquoted).collect()
}

fn unquoted(text: &str) -> String {
    let text = text.trim();
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    match inner('"') {
        Some(inner) => inner.replace("\"\"", "\"").trim().to_owned(),
        None => inner('\'').unwrap_or(text).trim().to_owned(),
    }
}

fn json(value: &Value) -> Result<Vec<String>, String> {
    const KEYS: [&str; 7] = ["id2label", "label2id", "labels", "classes", "class_names", "names", "categories"];
    match value {
        Value::Array(list) => {
            let name = |one: &Value| one.as_str().or_else(|| one.get("name")?.as_str()).map(str::to_owned);
            let names: Option<Vec<String>> = list.iter().map(name).collect();
            let mut names = names.ok_or("not every entry of its list is a name")?;
            // Categories of COCO: their numbers are their order, and may leave some out.
            let id = |one: &Value| one.get("id")?.as_u64();
            if let Some(ids) = list.iter().map(id).collect::<Option<Vec<u64>>>() {
                let mut numbered: Vec<(u64, String)> = ids.into_iter().zip(names).collect();
                numbered.sort_by_key(|(id, _)| *id);
                if let Some(two) = numbered.windows(2).find(|two| two[0].0 == two[1].0) {
                    return Err(format!("the number {} is there twice, again for `{}`", two[1].0, two[1].1));
                }
                names = numbered.into_iter().map(|(_, name)| name).collect();
            }
            Ok(names)
        }
        Value::Object(map) => {
            if let Some(inner) = KEYS.iter().find_map(|key| map.get(*key)) {
                return json(inner);
            }
            let by_number = |(number, name): (&String, &Value)| {
                // ImageNet's map has a synset and a name for each number.
                let name = name.as_str().or_else(|| name.as_array()?.last()?.as_str())?;
                Some((number.parse().ok()?, name.to_owned()))
            };
            let by_name =
                |(name, number): (&String, &Value)| Some((usize::try_from(number.as_u64()?).ok()?, name.clone()));
            let numbered: Option<Vec<(usize, String)>> = map.iter().map(by_number).collect();
            match numbered.or_else(|| map.iter().map(by_name).collect()) {
                Some(numbered) => in_order(numbered),
                None => Err("a list of names, or a map from numbers to names or back, is read".into()),
            }
        }
        _ => Err("a list of names, or a map from numbers to names or back, is read".into()),
    }
}

/// Names by their numbers, which begin at 0 or 1 and leave none out.
fn in_order(mut numbered: Vec<(usize, String)>) -> Result<Vec<String>, String> {
    numbered.sort_by_key(|(number, _)| *number);
    let first = numbered.first().map_or(0, |(number, _)| *number).min(1);
    for (expected, (number, name)) in (first..).zip(&numbered) {
        match number.cmp(&expected) {
            std::cmp::Ordering::Equal => {}
            std::cmp::Ordering::Less => return Err(format!("the number {number} is there twice, again for `{name}`")),
            std::cmp::Ordering::Greater => {
                return Err(format!(
                    "the number {expected} is left out; each output needs a label, so write them one per line"
                ));
            }
        }
    }
    Ok(numbered.into_iter().map(|(_, name)| name).collect())
}

/// A piece of Python or of a protobuf's text.
#[derive(Debug, PartialEq)]
enum Token {
    Word(String),
    Text(String),
    Sign(char),
}

/// `None` if a quote is not closed.
fn tokens(text: &str) -> Option<Vec<Token>> {
    let mut tokens = Vec::new();
    let mut letters = text.chars().peekable();
    while let Some(letter) = letters.next() {
        match letter {
            '"' | '\'' => {
                let mut inside = String::new();
                loop {
                    match letters.next()? {
                        '\\' => inside.push(letters.next()?),
                        end if end == letter => break,
                        other => inside.push(other),
                    }
                }
                tokens.push(Token::Text(inside));
            }
            _ if letter.is_alphanumeric() || letter == '_' => {
                let mut word = String::from(letter);
                while let Some(next) = letters.next_if(|next| next.is_alphanumeric() || *next == '_') {
                    word.push(next);
                }
                tokens.push(Token::Word(word));
            }
            _ if letter.is_whitespace() => {}
            sign => tokens.push(Token::Sign(sign)),
        }
    }
    Some(tokens)
}

/// `{0: 'tench', 1: "goldfish"}`.
fn python(text: &str) -> Option<Vec<(usize, String)>> {
    let tokens = tokens(text.strip_prefix('{')?.trim_end().strip_suffix('}')?)?;
    let entries = tokens.split(|token| *token == Token::Sign(','));
    let entry = |entry: &[Token]| match entry {
        [Token::Word(number), Token::Sign(':'), Token::Text(words)]
        | [Token::Text(words), Token::Sign(':'), Token::Word(number)] => Some((number.parse().ok()?, words.clone())),
        _ => None,
    };
    entries.filter(|tokens| !tokens.is_empty()).map(entry).collect()
}

/// `item { id: 1 name: "cat" display_name: "Cat" }`.
fn pbtxt(text: &str) -> Result<Vec<String>, String> {
    let tokens = tokens(text).ok_or("a quote is not closed")?;
    let mut named = Vec::new();
    for item in tokens.split(|token| *token == Token::Sign('}')).filter(|item| !item.is_empty()) {
        let (mut number, mut name, mut display) = (None, None, None);
        for field in item.windows(3) {
            match field {
                [Token::Word(key), Token::Sign(':'), Token::Word(value)] if key == "id" => number = value.parse().ok(),
                [Token::Word(key), Token::Sign(':'), Token::Text(value)] if key == "name" => name = Some(value),
                [Token::Word(key), Token::Sign(':'), Token::Text(value)] if key == "display_name" => {
                    display = Some(value);
                }
                _ => {}
            }
        }
        match (number, display.or(name)) {
            (Some(number), Some(name)) => named.push((number, name.clone())),
            _ => return Err(format!("its item {} has no `id` or no `name`", named.len() + 1)),
        }
    }
    in_order(named)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &[&str], form: &str) {
        let labels = read(text).expect(text);
        assert_eq!(labels.names, expected, "{text}");
        assert!(labels.form.contains(form), "{text} is {}", labels.form);
    }

    #[test]
    fn label_files_of_every_usual_form_give_the_same_labels() {
        let rgb = ["r", "g", "b"];
        for (text, form) in [
            ("r\ng\nb", "one label per line"),
            ("r\r\ng \r\nb\r\n\r\n\n", "one label per line"),
            ("0: r\n1: g\n2: b\n", "numbered"),
            ("0 r\n1 g\n2 b\n", "numbered"),
            ("1\tr\n2\tg\n3\tb\n", "numbered"),
            ("0,r\n1,g\n2,b\n", "numbered"),
            ("2: b\n0: r\n1: g\n", "numbered"),
            ("n01440764 r, red\nn01443537 g, green\nn02 b\n", "synset"),
            ("{0: 'r',\n 1: \"g\",\n 2: 'b',\n}", "Python"),
            ("[\"r\", \"g\", \"b\"]", "JSON"),
            (r#"{"0": "r", "2": "b", "1": "g"}"#, "JSON"),
            (r#"{"b": 2, "r": 0, "g": 1}"#, "JSON"),
            (r#"{"0": ["n01", "r"], "1": ["n02", "g"], "2": ["n03", "b"]}"#, "JSON"),
            (r#"{"model_type": "vit", "id2label": {"0": "r", "1": "g", "2": "b"}, "label2id": {"r": 0}}"#, "JSON"),
            (r#"[{"id": 0, "name": "r"}, {"id": 1, "name": "g"}, {"id": 2, "name": "b"}]"#, "JSON"),
            ("item {\n  id: 1\n  name: 'r'\n}\nitem {\n  id: 2\n  name: 'g'\n}\nitem { name: \"b\" id: 3 }", "pbtxt"),
            (
                "item { name: '/m/1' id: 0 display_name: 'r' } item { name: '/m/2' id: 1 display_name: 'g' }\nitem{name: 'b' id: 2}",
                "pbtxt",
            ),
            ("index,mid,display_name\n0,/m/1,r\n1,/m/2,\"g\"\n2,/m/3,b\n", "CSV"),
            ("label;colour\nr;red\ng;green\nb;blue\n", "CSV"),
            ("r,0\ng,1\nb,2\n", "CSV"),
            ("r,g, b\n", "commas"),
            ("r\rg\rb\r", "one label per line"),
            (r#"[{"id": 7, "name": "b"}, {"id": 1, "name": "r"}, {"id": 3, "name": "g"}]"#, "JSON"),
            ("{'r': 0, 'g': 1, 'b': 2}", "Python"),
            ("CLASSES = ['r', \"g\",\n  'b',]\n", "brackets"),
            ("('r', 'g', 'b')", "brackets"),
            ("labels = [\"r\", \"g\", \"b\"]\n", "brackets"),
            ("- r\n- \"g\"\n- b\n", "marks"),
            ("'r',\n'g',\n'b'\n", "marks"),
            ("0. r\n1. g\n2. b\n", "numbered"),
            ("1) r\n2) g\n3) b\n", "numbered"),
            ("0 - r\n1 - g\n2 - b\n", "numbered"),
            ("r: 0\ng: 1\nb: 2\n", "with their numbers"),
            ("r=0\ng=1\nb=2\n", "with their numbers"),
            ("train: images\n\nnc: 3\nnames: ['r', 'g', 'b']\n", "YAML"),
            ("names:\n  0: r\n  1: g\n  2: b\ndownload: x\n", "YAML"),
            ("nc: 3\nnames:\n- r\n- g\n- b\n", "YAML"),
            ("names: [r,\n  g,\n  b]\nroboflow:\n  version: 1\n", "YAML"),
            ("names: {0: r, 1: g, 2: b}\n", "YAML"),
        ] {
            check(text, &rgb, form);
        }
    }

    #[test]
    fn names_that_only_look_like_a_form_stay_names() {
        check("0\n1\n2\n", &["0", "1", "2"], "one label per line");
        check("10 euro\n20 euro\n50 euro", &["10 euro", "20 euro", "50 euro"], "one label per line");
        check("0 cars\n1 cars\n2 cars", &["0 cars", "1 cars", "2 cars"], "one label per line");
        check("cat, tabby\ndog, hound", &["cat, tabby", "dog, hound"], "one label per line");
        check("[unknown]\nyes", &["[unknown]", "yes"], "one label per line");
        check("[unknown]\n[cat]", &["[unknown]", "[cat]"], "one label per line");
        check("1.5 mm\n2.5 mm", &["1.5 mm", "2.5 mm"], "one label per line");
        check("ratio: 4\nratio: 16", &["ratio: 4", "ratio: 16"], "one label per line");
        check("rock 'n' roll\nmen's", &["rock 'n' roll", "men's"], "one label per line");
        check("crane\ncrane", &["crane", "crane"], "one label per line");
    }

    #[test]
    fn a_label_file_that_cannot_be_read_says_what_was_seen() {
        for (text, words) in [
            ("", "no labels"),
            ("r\n\nb", "line 2 is empty"),
            ("0: r\n2: g\n", "numbered lines: the number 1 is left out"),
            ("{\"a\": true}", "it is JSON: a list of names"),
            ("[1, 2]", "it is JSON: not every entry"),
            ("item {\n name: 'r'\n}", "pbtxt): its item 1 has no `id`"),
            ("path: data\nnames:\n  0: r\n  2: g\n", "it is YAML: the number 1 is left out"),
            ("names: *others\n", "it is YAML: write its names"),
            ("[{\"id\": 1, \"name\": \"r\"}, {\"id\": 1, \"name\": \"g\"}]", "the number 1 is there twice"),
            ("r\ng\u{1b}[31m\n", "label 2 is longer than 256 bytes or holds a control character"),
        ] {
            let error = read(text).expect_err(text);
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
        let only = read("cat\n").expect("a detector may know one thing").names;
        assert!(several(&only).expect_err("but no classifier").contains("one label, `cat`"));
    }
}
