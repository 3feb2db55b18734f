//! Everything that must hold before a change is taken, but for the tests.
//!
//! Stops at the first check that fails. What cannot be checked on this machine is named with its reason; in CI
//! that is an error, except for the advisories, whose database CI cannot reach.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};
use hedge_tests::{dependencies, places};

use crate::{command, rooms, unused};

type Check = (&'static str, fn() -> Result<Outcome>);

enum Outcome {
    Passed,
    Skipped(String),
}

use Outcome::{Passed, Skipped};

const CHECKS: &[Check] = &[
    ("format", format),
    ("lints", lints),
    ("documentation", documentation),
    ("rooms", rooms),
    ("public items are used", public_items),
    ("hedge-core is pure", pure_core),
    ("one rustls, on ring, in the agent", one_rustls),
    ("dependency policy", policy),
    ("security advisories", advisories),
    ("systemd units", units),
    ("clean tree", clean_tree),
];

pub(crate) fn run() -> Result<()> {
    let mut skipped = Vec::new();
    for (name, check) in CHECKS {
        println!("── {name}");
        match check().with_context(|| format!("check failed: {name}"))? {
            Passed => {}
            Skipped(reason) => {
                println!("   skipped: {reason}");
                skipped.push((*name, reason));
            }
        }
    }
    println!("── all {} checks passed, {} skipped", CHECKS.len() - skipped.len(), skipped.len());
    for (name, reason) in &skipped {
        println!("   {name}: {reason}");
    }
    let may_be_skipped = |name: &str| name == "security advisories";
    if in_ci() && skipped.iter().any(|(name, _)| !may_be_skipped(name)) {
        bail!("in CI only the security advisories may be skipped");
    }
    Ok(())
}

fn in_ci() -> bool {
    std::env::var_os("CI").is_some()
}

fn format() -> Result<Outcome> {
    command::run(&mut command::cargo(&["fmt", "--all", "--check"]))?;
    Ok(Passed)
}

fn lints() -> Result<Outcome> {
    command::run(&mut command::cargo(&["clippy", "--quiet", "--workspace", "--all-targets", "--", "-D", "warnings"]))?;
    Ok(Passed)
}

fn documentation() -> Result<Outcome> {
    let mut doc = command::cargo(&["doc", "--quiet", "--workspace", "--no-deps", "--document-private-items"]);
    command::run(doc.env("RUSTDOCFLAGS", "-D warnings"))?;
    Ok(Passed)
}

fn rooms() -> Result<Outcome> {
    rooms::check()?;
    Ok(Passed)
}

fn public_items() -> Result<Outcome> {
    unused::check()?;
    Ok(Passed)
}

fn pure_core() -> Result<Outcome> {
    dependencies::core_is_pure()?;
    Ok(Passed)
}

fn one_rustls() -> Result<Outcome> {
    dependencies::agent_has_one_rustls_on_ring()?;
    Ok(Passed)
}

/// `cargo deny`, from the path or from the project's cache where `.ci/run` installs it.
fn deny(arguments: &[&str]) -> Option<Command> {
    let cached = places::root().join(".cache/tools/bin/cargo-deny");
    let name = if cached.is_file() { cached } else { PathBuf::from("cargo-deny") };
    command::works(Command::new(&name).arg("--version")).then(|| {
        let mut deny = command::program(name);
        deny.args(arguments);
        deny
    })
}

const NO_DENY: &str = "cargo-deny is not installed; `cargo install --locked cargo-deny` brings it";

fn policy() -> Result<Outcome> {
    let Some(mut deny) = deny(&["--log-level", "error", "check", "bans", "licenses", "sources"]) else {
        return Ok(Skipped(NO_DENY.into()));
    };
    command::run(&mut deny)?;
    Ok(Passed)
}

/// How `cargo deny` begins when it could not read its database at all.
const NO_DATABASE: &str = "failed to fetch advisory database";

fn advisories() -> Result<Outcome> {
    let Some(mut deny) = deny(&["--log-level", "error", "check", "advisories"]) else {
        return Ok(Skipped(NO_DENY.into()));
    };
    let output = deny.output().context("cannot run cargo deny")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if output.status.success() {
        Ok(Passed)
    } else if said.contains(NO_DATABASE) {
        Ok(Skipped("the database cannot be reached from here".into()))
    } else {
        bail!("cargo deny check advisories:\n{said}")
    }
}

/// The most that `systemd-analyze security` may find, in tenths of its points.
const EXPOSURE_TENTHS_MAX: u32 = 15;

/// The programs the units start are not installed here, so copies of the units name one that is.
fn units() -> Result<Outcome> {
    if !command::works(Command::new("systemd-analyze").arg("--version")) {
        return Ok(Skipped("systemd-analyze is not installed".into()));
    }
    let copies = tempfile::tempdir()?;
    let mut verify = command::program("systemd-analyze");
    verify.args(["verify", "--man=no"]);
    let mut found = false;
    for unit in units_in(&places::root().join("systemd"))? {
        let text = fs::read_to_string(&unit)?;
        let copy = copies.path().join(unit.file_name().context("a unit has a name")?);
        fs::write(&copy, text.replace("ExecStart=/usr/bin/hedge-", "ExecStart=/bin/true hedge-"))?;
        verify.arg(copy);
        found = true;
    }
    ensure!(found, "systemd/ holds no unit");
    let output = verify.output().context("cannot run systemd-analyze")?;
    let said = String::from_utf8_lossy(&output.stderr);
    // It succeeds even where it warns.
    let complaints: Vec<_> = said.lines().filter(|line| line.contains("hedge-")).collect();
    ensure!(output.status.success() && complaints.is_empty(), "systemd-analyze verify:\n{said}");
    for unit in units_in(&places::root().join("systemd"))? {
        // A camera needs its devices.
        let tenths = if unit.to_string_lossy().contains("camera") { 20 } else { EXPOSURE_TENTHS_MAX };
        let mut security = command::program("systemd-analyze");
        security.args(["security", "--offline=true", "--no-pager", &format!("--threshold={tenths}")]).arg(&unit);
        let output = security.output().context("cannot run systemd-analyze")?;
        ensure!(
            output.status.success(),
            "more exposed than {tenths} tenths:\n{}",
            String::from_utf8_lossy(&output.stdout)
        );
    }
    Ok(Passed)
}

fn units_in(dir: &Path) -> Result<Vec<PathBuf>> {
    let mut paths = fs::read_dir(dir)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
    paths.retain(|path| path.extension().is_some_and(|ending| ending == "service" || ending == "socket"));
    paths.sort();
    Ok(paths)
}

/// In CI only: at a desk the tree is being worked on.
fn clean_tree() -> Result<Outcome> {
    if in_ci() {
        let changed = command::output(command::program("git").args(["status", "--porcelain"]))?;
        ensure!(changed.is_empty(), "the checks left changes behind:\n{changed}");
    }
    Ok(Passed)
}
