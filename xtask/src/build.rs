//! Builds the programs that the demo and the tests start.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::command;

/// Builds hedge-agent and hedge-cloud; returns the folder they are in.
///
/// In debug: a first build takes minutes less than an optimised one, and the parts that work on pixels, checksums
/// and the store are optimised in it too.
pub(crate) fn programs() -> Result<PathBuf> {
    build(&["--package", "hedge-tools", "--package", "hedge-cloud"])
}

/// The agent's program alone.
pub(crate) fn agent() -> Result<PathBuf> {
    build(&["--package", "hedge-tools", "--bins"])
}

/// The same as they are delivered, for what is measured.
pub(crate) fn released_programs() -> Result<PathBuf> {
    let debug = build(&["--release", "--package", "hedge-tools", "--package", "hedge-cloud"])?;
    Ok(debug.with_file_name("release"))
}

/// Builds them together with the tests and what writes the manual pages: in one go, crates that both need are built once.
pub(crate) fn programs_and_tests() -> Result<PathBuf> {
    // Without this program itself: it runs, and its file must stay.
    build(&["--workspace", "--exclude", "xtask", "--lib", "--bins", "--tests", "--example", "manual"])
}

/// What writes the manual pages, alone.
pub(crate) fn manual_writer() -> Result<PathBuf> {
    build(&["--package", "hedge-tests", "--example", "manual"])
}

/// The package that makes a program: the daemon's library has the name of the one it is for.
pub(crate) fn package_of(program: &str) -> &str {
    if program == "hedge-agent" { "hedge-tools" } else { program }
}

fn build(what: &[&str]) -> Result<PathBuf> {
    command::run_aside(command::cargo(&["build"]).args(what))?;
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;
    Ok(exe.parent().context("this program lies nowhere")?.to_owned())
}
