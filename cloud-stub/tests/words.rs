//! Nobody who is not a programmer reads `Debug` text: it is full of this program's own names.

use std::fs;
use std::path::{Path, PathBuf};

/// Numbers and lists of them read the same to everybody.
const NUMBERS: [&str; 11] = [
    "given:?",
    "shape:?",
    "expected:?",
    "dimensions:?",
    "magic:?",
    "values:?",
    "strides:?",
    "mean:?",
    "std:?",
    "first:?",
    "each:?",
];

/// Who reads these reads the program, too.
const FOR_PROGRAMMERS: [&str; 10] = [
    "debug!(",
    "trace!(",
    "assert",
    "panic!(",
    "unreachable!(",
    "in_words",
    "fmt::Debug",
    "expect(",
    // What a library says is looked at by the program.
    "error:?}\").contains(",
    "match format!(\"{error:?}\")",
];

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder").flatten() {
        let path = entry.path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "tests" {
            sources(&path, found);
        } else if name.ends_with(".rs") && !name.starts_with("test") {
            found.push(path);
        }
    }
}

/// Lines of the program itself that write `Debug` text, with where they are.
fn offences(folder: &str, is_debug: impl Fn(&str) -> bool) -> Vec<String> {
    let mut files = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut files);
    assert!(!files.is_empty(), "{folder} has moved");
    let mut found = Vec::new();
    for file in files {
        let text = fs::read_to_string(&file).expect("text");
        let program = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        let lines: Vec<&str> = program.lines().collect();
        for (n, line) in lines.iter().enumerate() {
            let around = lines[n.saturating_sub(2)..=n].join("\n");
            let is_comment = line.trim_start().starts_with("//");
            if is_debug(line) && !is_comment && !FOR_PROGRAMMERS.iter().any(|mark| around.contains(mark)) {
                found.push(format!("{}:{}: {}", file.display(), n + 1, line.trim()));
            }
        }
    }
    found
}

#[test]
fn no_message_for_people_holds_debug_text() {
    let formatted = |line: &str| line.contains(":?}") && !NUMBERS.iter().any(|list| line.contains(list));
    let logged = |line: &str| {
        let is_log = ["info!(", "warn!(", "error!("].iter().any(|log| line.contains(log));
        is_log && line.split(['(', ',', '=']).any(|field| field.trim_start().starts_with('?'))
    };
    let mut found = Vec::new();
    for folder in [
        "src",
        "../proto/src",
        "../agent/core/src",
        "../agent/src",
        "../agent/config/src",
        "../agent/identity/src",
        "../agent/listen/src",
        "../agent/outbox/src",
        "../agent/tools/src",
        "../inference/src",
    ] {
        found.extend(offences(folder, formatted));
        found.extend(offences(folder, logged));
    }
    assert!(found.is_empty(), "say it in words:\n{}", found.join("\n"));
}
