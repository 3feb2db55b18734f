//! Public items that nobody uses.
//!
//! rustc says what of a crate its own code does not use, but never of what is public; `unreachable_pub` says what cannot
//! be reached from outside. Here the rest is looked for as text: a public name of a library that stands in no other
//! place of the product, of another crate's tests or of `fuzz/` than where it is defined or passed on by `pub use`. Not
//! seen are names that mean something else elsewhere, fields, variants, and what only implements a trait.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Result, ensure};
use hedge_tests::places;

use crate::sources::{crates, files, tokens};

/// What a definition begins with, behind `pub`.
const ITEMS: [&str; 8] = ["fn", "struct", "enum", "trait", "type", "const", "static", "union"];

/// Fails with the names of all that nobody uses.
pub(crate) fn check() -> Result<()> {
    let crates = crates()?;
    let mut used: BTreeMap<String, usize> = BTreeMap::new();
    let mut defined: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for package in crates.values() {
        for source in &package.sources {
            let passed_on = passed_on(&source.tokens);
            for (at, token) in source.tokens.iter().enumerate() {
                let defines = at > 0 && ITEMS.contains(&source.tokens[at - 1].as_str());
                if defines && is_public(&source.tokens[..at - 1]) {
                    let file = source.path.strip_prefix(places::root()).unwrap_or(&source.path).display().to_string();
                    defined.entry(token.clone()).or_default().insert(file);
                } else if !passed_on.contains(&at) {
                    *used.entry(token.clone()).or_default() += 1;
                }
            }
        }
        for folder in ["tests", "benches", "examples"] {
            let folder = places::root().join(&package.dir).join(folder);
            if folder.is_dir() {
                count(&folder, &mut used)?;
            }
        }
    }
    count(&places::root().join("fuzz/fuzz_targets"), &mut used)?;
    let unused = defined.iter().filter(|(name, _)| !used.contains_key(*name));
    let unused: Vec<_> =
        unused.map(|(name, files)| format!("{}: `{name}`", Vec::from_iter(files.clone()).join(", "))).collect();
    ensure!(unused.is_empty(), "nobody uses these public items:\n{}", unused.join("\n"));
    Ok(())
}

fn count(folder: &std::path::Path, used: &mut BTreeMap<String, usize>) -> Result<()> {
    for file in files(folder)? {
        for token in tokens(&std::fs::read_to_string(file)?) {
            *used.entry(token).or_default() += 1;
        }
    }
    Ok(())
}

/// Whether what follows is public to other crates, `const fn` and `async fn` included.
fn is_public(before: &[String]) -> bool {
    let last = before.iter().rev().find(|token| !["async", "const", "unsafe"].contains(&token.as_str()));
    last.is_some_and(|token| token == "pub")
}

/// Where the names stand that `pub use` passes on.
fn passed_on(tokens: &[String]) -> BTreeSet<usize> {
    let begin = |at: &usize| tokens[*at] == "use" && *at > 0 && (tokens[*at - 1] == "pub" || tokens[*at - 1] == ")");
    (0..tokens.len()).filter(begin).flat_map(|at| (at..tokens.len()).take_while(|at| tokens[*at] != ";")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_public_item_is_used() {
        check().expect("used");
    }

    #[test]
    fn a_name_that_is_only_passed_on_is_not_used() {
        let tokens = tokens("pub use a::{B, C}; pub const fn d() { B }");
        let passed: Vec<_> = passed_on(&tokens).into_iter().map(|at| tokens[at].as_str()).collect();
        assert_eq!(passed.join(" "), "use a :: { B , C }");
        let at = tokens.iter().position(|token| token == "d").expect("there");
        assert!(is_public(&tokens[..at - 1]));
    }
}
