//! Rooms: the modules at a crate's root. None imports from one that stands higher, and there is no circle of them.
//!
//! ARCHITECTURE.md draws the map: its table of folders names every crate, its section `Rooms` the floors of the crates
//! and of the larger crates' rooms. Read are the `crate::`, `self::` and `super::` paths of the product's sources, as
//! text: what a macro makes is not seen. Between crates cargo forbids circles itself.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use anyhow::{Context, Result, ensure};
use hedge_tests::places;

use crate::sources::{Crate, Source, between, crates};

/// Fails on a circle of rooms, an import from above, and a map that is not the territory.
pub(crate) fn check() -> Result<()> {
    let map = fs::read_to_string(places::root().join("ARCHITECTURE.md"))?;
    let crates = crates()?;
    let mut wrong = Vec::new();
    for package in crates.values() {
        let row = format!("| `{}/` |", package.dir);
        if !map.contains(&row) {
            wrong.push(format!("ARCHITECTURE.md, Folders: no line begins with {row}"));
        }
    }
    for row in map.lines().filter_map(|line| between(line, "| `", "/` |").filter(|_| line.starts_with("| `"))) {
        if !places::root().join(row).is_dir() {
            wrong.push(format!("ARCHITECTURE.md, Folders: there is no folder {row}/"));
        }
    }
    let drawn = floors(&map)?;
    wrong.extend(crates_from_above(&crates, drawn.get("crates").context("Rooms of ARCHITECTURE.md draws `crates`")?));
    for package in crates.values() {
        let arrows = arrows(package);
        wrong.extend(circles(package, &arrows));
        if let Some(floors) = drawn.get(&format!("{}/src", package.dir)) {
            wrong.extend(from_above(package, &arrows, floors));
        }
    }
    ensure!(wrong.is_empty(), "{}", wrong.join("\n"));
    Ok(())
}

/// What stands on which floor, by name; the lowest is 0.
type Floors = BTreeMap<String, usize>;

/// `- name: a b < c` for every line of the section.
fn floors(map: &str) -> Result<BTreeMap<String, Floors>> {
    let section = between(map, "\n## Rooms\n", "\n## ").context("ARCHITECTURE.md has a section `Rooms`")?;
    let items = section.split("\n- `").skip(1);
    let drawn = items.filter_map(|item| {
        let (name, rooms) = item.split("\n\n").next()?.split_once("`: ")?;
        let floors = rooms.split('<').enumerate();
        let floors =
            floors.flat_map(|(floor, rooms)| rooms.split_whitespace().map(move |room| (room.to_owned(), floor)));
        Some((name.to_owned(), floors.collect()))
    });
    Ok(drawn.collect())
}

fn crates_from_above(crates: &BTreeMap<String, Crate>, floors: &Floors) -> Vec<String> {
    let mut wrong = Vec::new();
    for (name, package) in crates {
        let Some(floor) = floors.get(name) else {
            wrong.push(format!("ARCHITECTURE.md, Rooms: `crates` does not draw {name}"));
            continue;
        };
        let above = package.needs.iter().filter(|needed| floors.get(*needed).is_some_and(|other| other >= floor));
        wrong.extend(above.map(|needed| format!("{name} depends on {needed}, which does not stand lower")));
    }
    wrong
}

fn from_above(package: &Crate, arrows: &Arrows, floors: &Floors) -> Vec<String> {
    let (rooms, dir) = (package.rooms(), &package.dir);
    let mut wrong = Vec::new();
    for room in &rooms {
        if !floors.contains_key(*room) {
            wrong.push(format!("ARCHITECTURE.md, Rooms: `{dir}/src` does not draw `{room}`"));
        }
    }
    for drawn in floors.keys().filter(|drawn| !rooms.contains(drawn.as_str())) {
        wrong.push(format!("ARCHITECTURE.md, Rooms: there is no `{drawn}` in {dir}/src"));
    }
    for ((from, to), file) in arrows {
        if let (Some(low), Some(high)) = (floors.get(from), floors.get(to))
            && high >= low
        {
            wrong.push(format!("{file}: `{from}` imports from `{to}`, which does not stand lower"));
        }
    }
    wrong
}

/// Which room imports from which, and one file that shows it.
type Arrows = BTreeMap<(String, String), String>;

fn arrows(package: &Crate) -> Arrows {
    let rooms = package.rooms();
    let mut exported = BTreeMap::new();
    for root in package.sources.iter().filter(|source| source.module.is_empty()) {
        for path in paths(root) {
            if let [room, .., name] = &path[..] {
                exported.insert(name.clone(), room.clone());
            }
        }
    }
    let mut arrows = Arrows::new();
    for source in &package.sources {
        let Some(from) = source.module.first() else { continue };
        for path in paths(source) {
            let Some(first) = path.first() else { continue };
            let to = if rooms.contains(first.as_str()) { Some(first) } else { exported.get(first) };
            if let Some(to) = to.filter(|to| *to != from) {
                let file = source.path.strip_prefix(places::root()).unwrap_or(&source.path).display().to_string();
                arrows.entry((from.clone(), to.clone())).or_insert(file);
            }
        }
    }
    arrows
}

/// The paths into its own crate that a file names, from the crate's root.
fn paths(source: &Source) -> Vec<Vec<String>> {
    let (mut found, tokens) = (Vec::new(), &source.tokens);
    let mut at = 0;
    while at < tokens.len() {
        let begins = ["crate", "self", "super"].contains(&tokens[at].as_str());
        if begins && (at == 0 || tokens[at - 1] != "::") && tokens.get(at + 1).is_some_and(|next| next == "::") {
            let base = if tokens[at] == "crate" { Vec::new() } else { source.module.clone() };
            at = tree(tokens, at, base, &mut found);
        } else {
            at += 1;
        }
    }
    found
}

/// Reads one path, with all that it holds in braces, and says where it ends.
fn tree(tokens: &[String], mut at: usize, mut path: Vec<String>, found: &mut Vec<Vec<String>>) -> usize {
    while let Some(token) = tokens.get(at) {
        match token.as_str() {
            "{" => {
                at += 1;
                while tokens.get(at).is_some_and(|token| token != "}") {
                    let before = at;
                    at = tree(tokens, at, path.clone(), found);
                    at += usize::from(at == before || tokens.get(at).is_some_and(|token| token == ","));
                }
                return at + 1;
            }
            "super" => drop(path.pop()),
            "crate" | "self" => {}
            word if word.starts_with(|c: char| c.is_alphabetic() || c == '_') => path.push(word.to_owned()),
            _ => break,
        }
        at += 1;
        match tokens.get(at).map(String::as_str) {
            Some("::") => at += 1,
            Some("as") => {
                at += 2;
                break;
            }
            _ => break,
        }
    }
    found.push(path);
    at
}

fn circles(package: &Crate, arrows: &Arrows) -> Vec<String> {
    let in_circle: Vec<&str> =
        package.rooms().into_iter().filter(|room| reached(arrows, room).contains(room)).collect();
    if in_circle.is_empty() {
        return Vec::new();
    }
    vec![format!("{}/src: a circle of rooms among {}", package.dir, in_circle.join(", "))]
}

fn reached<'a>(arrows: &'a Arrows, from: &'a str) -> BTreeSet<&'a str> {
    let (mut seen, mut next) = (BTreeSet::new(), vec![from]);
    while let Some(room) = next.pop() {
        let further = arrows.keys().filter(|(from, _)| from == room).map(|(_, to)| to.as_str());
        next.extend(further.filter(|to| seen.insert(*to)));
    }
    seen
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sources::tokens;

    fn file(module: &[&str], text: &str) -> Source {
        let module = module.iter().map(|part| (*part).to_owned()).collect();
        Source { path: "a file".into(), module, tokens: tokens(text) }
    }

    fn house(files: Vec<Source>) -> Crate {
        Crate { dir: "house".into(), needs: BTreeSet::new(), sources: files }
    }

    #[test]
    fn this_house_is_as_it_is_drawn() {
        check().expect("no circle, no import from above, and a map of it");
    }

    #[test]
    fn a_circle_of_rooms_is_found_through_a_third_and_through_the_root() {
        let files = || vec![file(&[], "pub use self::c::C;"), file(&["a"], "use crate::{b::{B, D}, z};")];
        let mut open = files();
        open.extend([file(&["b", "inner"], "use super::super::C;"), file(&["c"], "")]);
        assert!(circles(&house(open), &arrows(&house(files()))).is_empty());
        let mut closed = files();
        closed.extend([file(&["b", "inner"], "use super::super::C;"), file(&["c"], "fn f() { crate::a::g(); }")]);
        let house = house(closed);
        assert_eq!(circles(&house, &arrows(&house)), ["house/src: a circle of rooms among a, b, c"]);
    }

    #[test]
    fn an_import_from_above_and_a_room_that_is_not_drawn_are_named() {
        let house = house(vec![file(&["a"], "use crate::b::B;"), file(&["b"], ""), file(&["c"], "")]);
        let map = "\n## Rooms\n\n- `house/src`: a\n  < b d\n\n## More\n";
        let drawn = floors(map).expect("drawn").remove("house/src").expect("drawn");
        assert_eq!(
            from_above(&house, &arrows(&house), &drawn),
            [
                "ARCHITECTURE.md, Rooms: `house/src` does not draw `c`",
                "ARCHITECTURE.md, Rooms: there is no `d` in house/src",
                "a file: `a` imports from `b`, which does not stand lower",
            ]
        );
    }
}
