//! The sources of the workspace's crates as the checks read them: without comments, tests and what only tests compile.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hedge_tests::places;

/// One file, and what it is called within its crate.
pub(crate) struct Source {
    pub(crate) path: PathBuf,
    /// Empty for `lib.rs` and `main.rs`.
    pub(crate) module: Vec<String>,
    /// Words and punctuation; `::` is one.
    pub(crate) tokens: Vec<String>,
}

/// A crate of the workspace.
pub(crate) struct Crate {
    /// Its folder, from the root.
    pub(crate) dir: String,
    /// The crates of the workspace that it depends on, as its manifest names them.
    pub(crate) needs: BTreeSet<String>,
    pub(crate) sources: Vec<Source>,
}

impl Crate {
    /// The modules at its root, by the name of the file or folder.
    pub(crate) fn rooms(&self) -> BTreeSet<&str> {
        self.sources.iter().filter_map(|source| source.module.first()).map(String::as_str).collect()
    }
}

/// Every member of the workspace, by the name of its package.
pub(crate) fn crates() -> Result<BTreeMap<String, Crate>> {
    let manifest = fs::read_to_string(places::root().join("Cargo.toml"))?;
    let members = between(&manifest, "members = [", "]").context("Cargo.toml lists its members")?;
    let mut crates = BTreeMap::new();
    for dir in members.split('"').skip(1).step_by(2) {
        let manifest = fs::read_to_string(places::root().join(dir).join("Cargo.toml"))?;
        let name = between(&manifest, "name = \"", "\"").context("a package has a name")?.to_owned();
        let needs = between(&manifest, "[dependencies]", "\n[").unwrap_or_default();
        let needs = needs.lines().filter_map(|line| line.split(['.', ' ']).next()).filter(|name| is_ours(name));
        let needs = needs.map(str::to_owned).collect();
        crates.insert(
            name,
            Crate { dir: dir.to_owned(), needs, sources: sources(&places::root().join(dir).join("src"))? },
        );
    }
    Ok(crates)
}

fn is_ours(name: &str) -> bool {
    name.starts_with("hedge-") || name == "xtask"
}

/// The text between two marks, or to the end.
pub(crate) fn between<'a>(text: &'a str, from: &str, to: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(from)?;
    Some(rest.split_once(to).map_or(rest, |(inside, _)| inside))
}

/// Every `.rs` file below `dir`.
pub(crate) fn files(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    for entry in fs::read_dir(dir).with_context(|| format!("cannot read {}", dir.display()))? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files(&path)?);
        } else if path.extension().is_some_and(|ending| ending == "rs") {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}

fn sources(src: &Path) -> Result<Vec<Source>> {
    let (mut found, mut only_tests) = (Vec::new(), BTreeSet::new());
    for path in files(src)? {
        let relative = path.strip_prefix(src)?.with_extension("");
        let mut module: Vec<String> = relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        module.pop_if(|last| ["mod", "lib", "main"].contains(&last.as_str()));
        let text = fs::read_to_string(&path)?;
        let (product, modules) = without_tests(&text);
        only_tests.extend(modules.into_iter().map(|name| [module.clone(), vec![name]].concat()));
        found.push(Source { path, module, tokens: tokens(&product) });
    }
    found.retain(|source| (0..=source.module.len()).all(|depth| !only_tests.contains(&source.module[..depth])));
    Ok(found)
}

/// The text without what only tests compile, and the modules that it declares for them. rustfmt has aligned where an
/// item ends with where it begins.
fn without_tests(text: &str) -> (String, Vec<String>) {
    let (mut product, mut modules) = (String::new(), Vec::new());
    let mut lines = text.lines();
    while let Some(line) = lines.next() {
        let attribute = line.trim_start();
        if !["#[cfg(test)]", "#[cfg(any(test", "#![cfg(test)]"].iter().any(|cfg| attribute.starts_with(cfg)) {
            product.push_str(line);
            product.push('\n');
            continue;
        }
        let Some(item) = lines.by_ref().find(|line| !line.trim_start().starts_with("#[")) else { break };
        let declared = item.trim().strip_suffix(';').and_then(|line| line.rsplit_once("mod "));
        modules.extend(declared.map(|(_, name)| name.to_owned()));
        // A line of its own, or everything to the brace that stands as far to the left.
        if !item.trim_end().ends_with([';', ',', '}']) {
            let end = format!("{}}}", &line[..line.len() - attribute.len()]);
            lines.by_ref().find(|line| line.starts_with(&end));
        }
    }
    (product, modules)
}

/// Words, `::`, and every other sign that stands for itself; no comments and no text in quotes.
pub(crate) fn tokens(text: &str) -> Vec<String> {
    let (mut found, mut rest) = (Vec::new(), text);
    while let Some(first) = rest.chars().next() {
        let length = if rest.starts_with("//") {
            rest.find('\n').unwrap_or(rest.len())
        } else if first == '"' {
            quoted(rest)
        } else if first.is_alphanumeric() || first == '_' {
            let length = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
            found.push(rest[..length].to_owned());
            length
        } else if rest.starts_with("'\"'") {
            3
        } else if rest.starts_with("::") {
            found.push("::".to_owned());
            2
        } else {
            if !first.is_whitespace() {
                found.push(first.to_string());
            }
            first.len_utf8()
        };
        rest = &rest[length..];
    }
    found
}

/// How long the text in quotes is that `rest` begins with.
fn quoted(rest: &str) -> usize {
    let mut escaped = false;
    for (at, one) in rest.char_indices().skip(1) {
        match one {
            '"' if !escaped => return at + 1,
            '\\' => escaped = !escaped,
            _ => escaped = false,
        }
    }
    rest.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_only_tests_compile_is_left_out() {
        let text = "mod a;\n#[cfg(test)]\nmod tests;\nfn f() {}\n#[cfg(test)]\nmod more {\n    use super::*;\n    fn g() {}\n}\nfn h() {}\n";
        assert_eq!(without_tests(text), ("mod a;\nfn f() {}\nfn h() {}\n".to_owned(), vec!["tests".to_owned()]));
    }

    #[test]
    fn comments_and_quotes_are_no_words() {
        assert_eq!(tokens("a::b(\"c \\\" d\") // e\nf").join(" "), "a :: b ( ) f");
    }
}
