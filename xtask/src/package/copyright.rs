//! Whose work is in a program: each crate that is linked into it, under which licence, and the texts that must travel.
//!
//! Where a crate gives the choice, Apache-2.0 is taken: Debian has its text, and only a NOTICE travels with it. The
//! others' texts come from the crates themselves, each once.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};
use serde_json::Value;

use super::Arch;
use crate::command;

/// For a crate that brings no text of its own.
const EXPAT: &str = include_str!("../../../LICENSE-MIT");

/// A text whose words are the same is the same text, whoever it is about and however it is broken into lines.
type Words = String;

const PERMISSION: &str = "Permission is hereby granted, free of charge";

/// How texts are told apart by what only they say, and what they are called.
const KNOWN: [(&str, &str); 9] = [
    ("Version 2.0, January 2004", "Apache-2.0"),
    ("UNICODE LICENSE V3", "Unicode-3.0"),
    ("Permission to use, copy, modify, and", "ISC"),
    (PERMISSION, "Expat"),
    ("Neither the name of", "BSD-3-clause"),
    ("Redistribution and use in source and binary forms", "BSD-2-clause"),
    ("provided 'as-is'", "Zlib"),
    ("Statement of Purpose", "CC0-1.0"),
    ("free and unencumbered software released into the public domain", "Unlicense"),
];

/// What Debian itself has.
const COMMON: [(&str, &str); 2] = [
    ("Apache-2.0", " On Debian systems the text is in /usr/share/common-licenses/Apache-2.0.\n"),
    ("CC0-1.0", " On Debian systems the text is in /usr/share/common-licenses/CC0-1.0.\n"),
];

/// One crate, as its own manifest and files say.
struct Linked {
    name: String,
    /// None for what comes with the compiler.
    version: Option<String>,
    licence: String,
    holders: BTreeSet<String>,
    texts: Vec<String>,
    notices: Vec<String>,
}

/// The paragraphs about everything that is linked into `program`, in Debian's format, to stand after our own.
pub(super) fn of(program: &str, arch: Arch) -> Result<String> {
    let mut paragraphs = String::new();
    let mut texts = Texts::default();
    for linked in linked(program, arch)? {
        let named = if takes_apache(&linked.licence) { "Apache-2.0".to_owned() } else { texts.names(&linked)? };
        let Linked { name, version, licence, holders, notices, .. } = &linked;
        let holders = Vec::from_iter(holders.iter().map(String::as_str)).join("\n ");
        let version = version.as_ref().map_or(String::new(), |version| format!("-{version}"));
        write!(paragraphs, "\nFiles: {name}{version}/*\nCopyright: {holders}\nLicense: {named}\n")?;
        writeln!(paragraphs, "Comment: linked into {program}; its manifest says {licence}")?;
        for notice in notices {
            paragraphs.push_str(&indented(notice));
        }
    }
    texts.write(&mut paragraphs)?;
    Ok(paragraphs)
}

/// The standard library first, then every crate but those that only run while the program is built.
fn linked(program: &str, arch: Arch) -> Result<Vec<Linked>> {
    let target = format!("{}-unknown-linux-gnu", arch.processor());
    let package = crate::build::package_of(program);
    let tree = ["tree", "--package", package, "--edges", "normal,no-proc-macro", "--prefix", "none", "--locked"];
    let lines = command::output(command::cargo(&tree).args(["--target", &target, "--format", "{p}"]))?;
    // `name v1.2.3`, and more behind it.
    let named = lines.lines().filter_map(|line| line.split_once(" v"));
    let wanted = named.filter_map(|(name, rest)| Some((name, rest.split_whitespace().next()?)));
    let wanted: BTreeSet<(&str, &str)> = wanted.filter(|(name, _)| !name.starts_with("hedge-")).collect();
    let metadata = ["metadata", "--format-version", "1", "--locked", "--filter-platform", &target];
    let metadata = command::output(&mut command::cargo(&metadata))?;
    let metadata: Value = serde_json::from_str(&metadata)?;
    let known = metadata["packages"].as_array().context("cargo metadata lists packages")?;
    let said = |package: &Value, field: &str| package[field].as_str().unwrap_or_default().to_owned();
    let known: BTreeMap<_, _> =
        known.iter().map(|package| ((said(package, "name"), said(package, "version")), package)).collect();
    let std = Linked {
        name: "rust-standard-library".to_owned(),
        version: None,
        licence: "MIT OR Apache-2.0".to_owned(),
        holders: ["The Rust Project contributors".to_owned()].into(),
        texts: Vec::new(),
        notices: Vec::new(),
    };
    let mut all = vec![std];
    for (name, version) in wanted {
        let package = known.get(&(name.to_owned(), version.to_owned())).context(format!("no {name} {version}"))?;
        let manifest = PathBuf::from(said(package, "manifest_path"));
        let folder = manifest.parent().context("a manifest lies in a folder")?;
        let authors = package["authors"].as_array().into_iter().flatten().filter_map(Value::as_str);
        all.push(read(name, version, said(package, "license"), authors.map(without_address).collect(), folder)?);
    }
    Ok(all)
}

fn read(name: &str, version: &str, licence: String, authors: BTreeSet<String>, folder: &Path) -> Result<Linked> {
    let (mut texts, mut notices) = (Vec::new(), Vec::new());
    for path in files(folder)? {
        let text = String::from_utf8_lossy(&fs::read(&path)?).replace('\r', "");
        let file = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        if file.starts_with("NOTICE") { notices.push(text) } else { texts.push(text) }
    }
    let mut holders: BTreeSet<String> = texts.iter().flat_map(|text| text.lines()).filter_map(holder).collect();
    if holders.is_empty() {
        holders = authors;
    }
    if holders.is_empty() {
        holders.insert(format!("The authors of {name}"));
    }
    Ok(Linked { name: name.to_owned(), version: Some(version.to_owned()), licence, holders, texts, notices })
}

/// A crate's licence texts and notices, which lie beside its manifest.
fn files(folder: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().to_uppercase();
        let about = ["LICENSE", "LICENCE", "COPYING", "UNLICENSE", "NOTICE"].iter().any(|word| name.starts_with(word));
        if about && path.is_file() {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

/// What a text is called by what only it says.
fn kind(text: &str) -> Option<&'static str> {
    KNOWN.iter().find(|(words, _)| text.contains(words)).map(|(_, kind)| *kind)
}

fn takes_apache(licence: &str) -> bool {
    !licence.contains("AND") && licence.split(['/', ' ']).any(|word| word == "Apache-2.0")
}

/// Whom a line of a licence names.
fn holder(line: &str) -> Option<String> {
    let line = line.trim().trim_start_matches(['*', '/', '#', '-', ' ']);
    let rest =
        line.strip_prefix("Copyright ")?.trim_start_matches("(c)").trim_start_matches("(C)").trim_start_matches('©');
    let rest = rest.trim();
    let dated = rest.starts_with(|c: char| c.is_ascii_digit())
        || line.contains("(c)")
        || line.contains("(C)")
        || line.contains('©');
    let form = rest.contains(['[', '{', '<']) && rest.contains("yyyy");
    (dated && !form).then(|| without_address(rest))
}

fn without_address(name: &str) -> String {
    name.split(" <").next().unwrap_or(name).trim().trim_end_matches(" All rights reserved.").to_owned()
}

/// The texts that travel, each under a name of its own.
#[derive(Default)]
struct Texts {
    named: BTreeMap<Words, String>,
    bodies: BTreeMap<String, String>,
}

impl Texts {
    /// What holds for a crate: all its texts, or the one that leaves the most freedom if it gives the choice.
    fn names(&mut self, linked: &Linked) -> Result<String> {
        let chosen = linked.texts.iter().find(|text| kind(text) == Some("Expat"));
        let texts: Vec<&String> = match chosen {
            Some(text) if !linked.licence.contains("AND") => vec![text],
            _ => linked.texts.iter().collect(),
        };
        let names: BTreeSet<String> = texts.into_iter().map(|text| self.name(text, &linked.name)).collect();
        match linked.licence.as_str() {
            _ if !names.is_empty() => Ok(Vec::from_iter(names).join(" and ")),
            "CC0-1.0" => Ok("CC0-1.0".to_owned()),
            "MIT" => Ok(self.name(EXPAT, &linked.name)),
            other => bail!("{} is under {other} and brings no text of it", linked.name),
        }
    }

    /// What a text is called; a new one is kept.
    fn name(&mut self, text: &str, of: &str) -> String {
        let kind = kind(text);
        if let Some(common) = COMMON.iter().map(|(common, _)| *common).find(|common| kind == Some(*common)) {
            return common.to_owned();
        }
        let body: Vec<&str> = text.lines().filter(|line| holder(line).is_none()).collect();
        let body = body.join("\n");
        // Titles differ more than what they stand above.
        let from = if kind == Some("Expat") { body.find(PERMISSION) } else { None };
        let body = &body[from.unwrap_or(0)..];
        let words: Vec<&str> = body.split_whitespace().filter(|word| *word != "//").collect();
        let words = words.join(" ").to_lowercase();
        if let Some(name) = self.named.get(&words) {
            return name.clone();
        }
        let kind = kind.map_or_else(|| format!("{of}-terms"), str::to_owned);
        let same = self.named.values().filter(|name| name.split('_').next() == Some(&kind)).count();
        let name = if same == 0 { kind } else { format!("{kind}_{}", same + 1) };
        self.named.insert(words, name.clone());
        self.bodies.insert(name.clone(), body.to_owned());
        name
    }

    fn write(&self, paragraphs: &mut String) -> Result<()> {
        for (name, text) in COMMON {
            if paragraphs.lines().any(|line| line.strip_prefix("License: ").is_some_and(|said| said.contains(name))) {
                write!(paragraphs, "\nLicense: {name}\n{text}")?;
            }
        }
        for (name, body) in &self.bodies {
            write!(paragraphs, "\nLicense: {name}\n{}", indented(body))?;
        }
        Ok(())
    }
}

/// As a field that runs over many lines; an empty one is a dot.
fn indented(text: &str) -> String {
    let lines = text.trim_matches('\n').lines().map(str::trim_end);
    lines.map(|line| if line.is_empty() { " .\n".to_owned() } else { format!(" {line}\n") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_linked_crate_has_its_licence_and_every_licence_its_text_once() {
        let text = of("hedge-agent", Arch::HERE).expect("gathered");
        for part in
            ["Files: ring-", "Files: sled-", "Files: rust-standard-library/*", "Files: rumqttc-v5-next-", "Files: tar-"]
        {
            assert_eq!(text.matches(part).count(), 1, "{part}");
        }
        let (linked, texts): (Vec<&str>, Vec<&str>) =
            text.split("\n\n").map(str::trim_start).partition(|paragraph| paragraph.starts_with("Files: "));
        assert!(linked.len() > 100, "{}", linked.len());
        let field = |paragraph: &str| -> String {
            let line = paragraph.lines().find_map(|line| line.strip_prefix("License: "));
            line.expect("each names a licence").to_owned()
        };
        let told: Vec<String> = texts.iter().map(|paragraph| field(paragraph)).collect();
        let once: BTreeSet<&String> = told.iter().collect();
        assert_eq!(once.len(), told.len(), "{told:?}");
        let named = linked.iter().map(|paragraph| field(paragraph));
        let used: BTreeSet<String> =
            named.flat_map(|named| named.split(" and ").map(str::to_owned).collect::<Vec<_>>()).collect();
        assert_eq!(used.iter().collect::<BTreeSet<_>>(), once);
    }
}
