//! Runs the tests, with everything they need fetched and built first, and lists what could not run.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

use crate::{build, command, node, onnxruntime, package, python, tree};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Only tests whose name contains this.
    filter: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let library = onnxruntime::library()?;
    let programs = build::programs_and_tests()?;
    let python = python::clients()?;
    let servers = python::servers()?;
    let node_red = node::node_red()?;
    let axe = node::axe()?;
    let machine = machine(&programs)?;
    let skipped = tempfile::NamedTempFile::new().context("cannot note skipped tests")?;

    let filter = arguments.filter.as_deref();
    let mut tests = if command::works(&mut command::cargo(&["nextest", "--version"])) {
        let mut tests = command::cargo(&["nextest", "run", "--workspace", "--no-fail-fast"]);
        tests.args(["--test-threads", &threads().to_string()]);
        tests.args(filter);
        vec![tests, command::cargo(&["test", "--quiet", "--workspace", "--doc"])]
    } else {
        let mut tests = command::cargo(&["test", "--workspace", "--no-fail-fast"]);
        tests.args(filter);
        vec![tests]
    };
    if filter.is_some() {
        tests.truncate(1);
    }
    let mut outcome = Ok(());
    for command in &mut tests {
        command
            .env("ORT_DYLIB_PATH", &library)
            .env("HEDGETEST_PROGRAMS", &programs)
            .env("HEDGETEST_SKIPPED", skipped.path());
        if let Some(python) = &python {
            command.env("HEDGETEST_PYTHON", python);
        }
        if let Some(servers) = &servers {
            command.env("HEDGETEST_SERVERS_PYTHON", servers);
        }
        if let Some(node_red) = &node_red {
            command.env("HEDGETEST_NODE_RED", node_red);
        }
        if let Some(axe) = &axe {
            command.env("HEDGETEST_AXE", axe);
        }
        if let Some((tree, packages)) = &machine {
            command.env("HEDGETEST_TREE", tree).env("HEDGETEST_PACKAGES", packages);
        }
        outcome = outcome.and(command::run(command));
    }
    report(skipped.path())?;
    outcome
}

/// A Debian to boot and the packages to install in it, where this machine can boot one.
fn machine(programs: &Path) -> Result<Option<(PathBuf, PathBuf)>> {
    if let Some(reason) = tree::unavailable() {
        println!("no packages are made for the tests: {reason}");
        return Ok(None);
    }
    Ok(Some((tree::archive()?, package::for_tests(programs)?)))
}

/// Six a processor, for tests that mostly wait; `.config/nextest.toml` says how many of them each test takes.
fn threads() -> usize {
    6 * std::thread::available_parallelism().map_or(1, std::num::NonZero::get)
}

/// Prints the tests that did not run, and why.
fn report(list: &Path) -> Result<()> {
    let text = std::fs::read_to_string(list)?;
    if text.is_empty() {
        return Ok(());
    }
    println!("\nSkipped, so nothing is known about these:");
    for line in text.lines() {
        println!("  {line}");
    }
    if std::env::var_os("CI").is_some() {
        bail!("in CI nothing is skipped");
    }
    Ok(())
}
