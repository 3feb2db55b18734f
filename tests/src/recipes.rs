//! Takes the commands out of a page of documentation and does what a reader would do: types them, one block after
//! the other, and compares what comes with what the page says will come.
//!
//! - Every fenced `sh` block is run by bash. One that fails, or prints what the page does not say, is an error.
//! - The next `text` block in the same section is what it shows; without one it shows nothing. `…` stands for
//!   anything, spaces do not count, and an indented line goes on with the one before it. Lines may come in any order,
//!   as messages do; `…` alone stands for further lines, if there are any.
//! - `sh open` is a terminal that stays open until the section ends. What it shows from then on is part of what the
//!   next block shows.
//! - `<!-- test: NAME -->` before a block lets the test bring about what the page's words take for granted.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use crate::program::{Program, Recipe};
use crate::{Mosquitto, places, wait};

/// For a block that waits for a device, which may first have to come back: the longest wait between two dials is 40 s.
const BLOCK_WAIT_MAX: Duration = Duration::from_secs(90);

/// For a terminal's subscription.
const OPEN_WAIT_MAX: Duration = Duration::from_secs(60);

/// One `sh` block.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// Of its fence.
    pub line: usize,
    pub script: String,
    pub open: bool,
    pub shows: Option<String>,
    /// What is to be brought about before it.
    pub before: Option<String>,
    /// Counts the page's sections.
    pub section: usize,
}

/// All `sh` blocks of a page. A fence that is no such block and no `text` is for the reader only.
pub fn blocks(page: &str) -> Result<Vec<Block>> {
    let mut blocks: Vec<Block> = Vec::new();
    let (mut section, mut before) = (0, None);
    let mut lines = page.lines().zip(1..);
    while let Some((line, number)) = lines.next() {
        if line.starts_with('#') {
            section += 1;
        } else if let Some(name) = line.strip_prefix("<!-- test: ") {
            before = Some(name.strip_suffix(" -->").context("a comment ends in its line")?.to_owned());
        }
        let Some(kind) = line.strip_prefix("```") else { continue };
        let inside = lines.by_ref().map(|(line, _)| line).take_while(|line| *line != "```");
        let text = inside.collect::<Vec<_>>().join("\n");
        match kind {
            "sh" | "sh open" => {
                let (open, before) = (kind == "sh open", before.take());
                blocks.push(Block { line: number, script: text, open, shows: None, before, section });
            }
            "text" => {
                let block = blocks.last_mut().filter(|block| block.section == section && block.shows.is_none());
                block.with_context(|| format!("line {number}: no block shows this"))?.shows = Some(text);
            }
            _ => {}
        }
    }
    ensure!(before.is_none(), "nothing follows what was to be brought about: {before:?}");
    Ok(blocks)
}

fn page_blocks(page: &str) -> Result<Vec<Block>> {
    let path = places::root().join("docs").join(page);
    let text = std::fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let blocks = blocks(&text).with_context(|| page.to_owned())?;
    ensure!(!blocks.is_empty(), "{page} has no recipe");
    Ok(blocks)
}

/// Whether `shown` is what `expected` says, `…` being anything.
#[must_use]
pub fn fits(expected: &str, shown: &str) -> bool {
    let squeezed = |text: &str| text.split_whitespace().collect::<String>();
    let (expected, shown) = (squeezed(expected), squeezed(shown));
    let mut parts = expected.split('…');
    let Some(mut rest) = parts.next().and_then(|first| shown.strip_prefix(first)) else { return false };
    let mut parts = parts.peekable();
    if parts.peek().is_none() {
        return rest.is_empty();
    }
    while let Some(part) = parts.next() {
        if parts.peek().is_none() {
            return rest.ends_with(part);
        }
        match rest.split_once(part) {
            Some((_, after)) => rest = after,
            None => return false,
        }
    }
    true
}

/// Whether the lines of `shown` are those of `expected`, in any order.
#[must_use]
pub fn all_fit(expected: &str, shown: &str) -> bool {
    let mut wanted: Vec<String> = Vec::new();
    for line in expected.lines() {
        match wanted.last_mut().filter(|_| line.starts_with(' ')) {
            Some(last) => last.push_str(line),
            None => wanted.push(line.to_owned()),
        }
    }
    let before = wanted.len();
    wanted.retain(|line| line != "…");
    let others = wanted.len() < before;
    for line in shown.lines() {
        match wanted.iter().position(|wanted| fits(wanted, line)) {
            Some(found) => drop(wanted.remove(found)),
            None if others => {}
            None => return false,
        }
    }
    wanted.is_empty()
}

/// Where a reader sits.
pub struct Desk<'a> {
    /// Home and working folder.
    pub home: PathBuf,
    /// Where `mosquitto_sub` connects.
    pub broker: &'a Mosquitto,
    /// What names on the page mean here.
    pub means: Vec<(String, String)>,
    pub environment: Vec<(String, String)>,
}

struct Terminal {
    program: Program,
    seen: usize,
}

impl Terminal {
    /// Whole lines only: the rest of one belongs to it, and not to the next block.
    fn new_text(&self) -> Result<String> {
        let output = self.program.output()?;
        let whole = output.rfind('\n').map_or(0, |end| end + 1);
        Ok(output.get(self.seen..whole).unwrap_or_default().to_owned())
    }
}

impl Desk<'_> {
    /// Does everything on a page below `docs/`; `prepare` brings about what a comment names.
    pub fn work_through(&self, page: &str, mut prepare: impl FnMut(&str) -> Result<()>) -> Result<()> {
        let (mut terminals, mut section) = (Vec::new(), 0);
        for block in &page_blocks(page)? {
            if section != block.section {
                terminals.clear();
                section = block.section;
            }
            let at = || format!("docs/{page}:{}:\n{}", block.line, block.script);
            if let Some(name) = &block.before {
                prepare(name).with_context(at)?;
            }
            self.carry_out(block, &mut terminals).with_context(at)?;
        }
        Ok(())
    }

    /// Does only what a page begins with.
    pub fn begin_with(&self, page: &str) -> Result<()> {
        let blocks = page_blocks(page)?;
        self.carry_out(blocks.first().context("no block")?, &mut Vec::new())
    }

    fn carry_out(&self, block: &Block, terminals: &mut Vec<Terminal>) -> Result<()> {
        let expected = block.shows.as_deref().unwrap_or_default();
        // Counted in the broker's log, because a subscription says nothing itself.
        let before = self.subscriptions()?;
        let mut program = self.recipe(block).start()?;
        if block.open {
            let listens = |_: &Program| Ok((self.subscriptions()? > before).then_some(()));
            program.wait_for("the terminal listens", OPEN_WAIT_MAX, listens)?;
            terminals.push(Terminal { program, seen: 0 });
            return self.await_shown(expected, "", terminals);
        }
        let status = program.wait_for_end(BLOCK_WAIT_MAX)?;
        ensure!(status.success(), "it ended with {status}: {}{}", program.output()?, program.log_end());
        self.await_shown(expected, &program.output()?, terminals)
    }

    /// Waits until all that is new is as expected, and takes it for seen.
    fn await_shown(&self, expected: &str, printed: &str, terminals: &mut [Terminal]) -> Result<()> {
        let mut shown = Vec::new();
        let outcome = wait::until_true("it shows what the page says", BLOCK_WAIT_MAX, || {
            for terminal in terminals.iter_mut() {
                terminal.program.check_alive()?;
            }
            shown = terminals.iter().map(Terminal::new_text).collect::<Result<Vec<_>>>()?;
            Ok(all_fit(expected, &format!("{printed}{}", shown.concat())))
        });
        outcome.with_context(|| format!("expected:\n{expected}\nshown:\n{printed}{}", shown.concat()))?;
        // What has come since was not compared: the next block sees it.
        for (terminal, shown) in terminals.iter_mut().zip(shown) {
            terminal.seen += shown.len();
        }
        Ok(())
    }

    fn recipe(&self, block: &Block) -> Recipe {
        let mut script = block.script.clone();
        for (name, here) in &self.means {
            script = script.replace(name, here);
        }
        if block.open {
            script.insert_str(0, "exec ");
        }
        let mut recipe = Recipe::new(&format!("line-{}", block.line), "bash".into(), &self.home)
            .arguments(["-euo", "pipefail", "-c", &format!("cd; {script}")])
            .variable("HOME", &self.home);
        for (name, value) in &self.environment {
            recipe = recipe.variable(name, value);
        }
        recipe
    }

    fn subscriptions(&self) -> Result<usize> {
        // Clients without a name of their own are called so by mosquitto.
        Ok(self.broker.log()?.matches("Sending SUBACK to auto-").count())
    }
}

/// The search path of a shell in which the project's programs are installed.
pub fn path_with_programs() -> Result<String> {
    let programs = places::program("hedge-agent")?;
    let Some(dir) = programs.parent().and_then(Path::to_str) else { bail!("the programs lie nowhere") };
    Ok(format!("{dir}:{}", std::env::var("PATH").unwrap_or_default()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_its_reader_would() -> Result<()> {
        let page = "# A\n```sh open\nlisten\n```\ntext\n```toml\nx = 1\n```\n<!-- test: all is well -->\n```sh\nsay\n\
                    more\n```\nSays:\n\n```text\nhello\n```\n## B\n```sh\nend\n```\n";
        let found = blocks(page)?;
        let of = |line, script: &str, open, section| Block {
            line,
            script: script.into(),
            open,
            section,
            ..Block::default()
        };
        let second =
            Block { shows: Some("hello".into()), before: Some("all is well".into()), ..of(10, "say\nmore", false, 1) };
        assert_eq!(found, [of(2, "listen", true, 1), second, of(20, "end", false, 2)]);
        assert!(blocks("```text\nshown by nothing\n```\n").is_err());
        assert!(blocks("<!-- test: for nothing -->\n").is_err());
        Ok(())
    }

    #[test]
    fn anything_fits_where_the_page_says_so_and_nowhere_else() {
        for (expected, shown, does) in [
            ("", "", true),
            ("", "x", false),
            ("{\"a\": 1}", "{\"a\":1}\n", true),
            ("{\"a\":1}", "{\"a\":2}", false),
            ("{\"a\":…}", "{\"a\":17}", true),
            ("a…b…c", "a1b2c", true),
            ("a…b…c", "a1c", false),
            ("a…", "ab", true),
            ("a…b", "ab!", false),
            ("a…b", "ba", false),
        ] {
            assert_eq!(fits(expected, shown), does, "{expected} and {shown}");
        }
        assert!(all_fit("a…\n  z\nb\n", "b\na is z\n"));
        assert!(all_fit("…\nb\n", "a\nb\nc\n") && all_fit("…\nb\n", "b\n") && !all_fit("…\nb\n", "a\n"));
        assert!(!all_fit("a\nb\n", "a\n") && !all_fit("a\n", "a\na\n") && !all_fit("", "\n"));
    }
}
