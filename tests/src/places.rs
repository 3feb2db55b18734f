//! Knows where things are: the repository, its models, the programs and ONNX Runtime.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail};

/// Checks alert rules; Debian's package `prometheus` has it.
pub const PROMTOOL: &str = "/usr/bin/promtool";

/// The repository's root.
#[must_use]
pub fn root() -> &'static Path {
    // tests/ lies directly below it.
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// A folder or file below `models/`.
#[must_use]
pub fn model(name: &str) -> PathBuf {
    root().join("models").join(name)
}

/// One of the project's programs, as built last.
///
/// `HEDGETEST_PROGRAMS` says where; otherwise it lies beside the running test or command.
pub fn program(name: &str) -> Result<PathBuf> {
    let dir = match std::env::var_os("HEDGETEST_PROGRAMS") {
        Some(dir) => PathBuf::from(dir),
        None => beside_this_program()?,
    };
    let path = dir.join(name);
    if !path.is_file() {
        bail!("{} does not exist; run the tests with `cargo xtask test`, or `cargo build` first", path.display());
    }
    Ok(path)
}

fn beside_this_program() -> Result<PathBuf> {
    let exe = std::env::current_exe().context("cannot tell where this program lies")?;
    // Tests lie in `target/debug/deps`, programs one level up.
    let dir = exe.ancestors().skip(1).find(|dir| !dir.ends_with("deps")).context("this program lies nowhere")?;
    Ok(dir.to_owned())
}

/// The script of axe-core named by `HEDGETEST_AXE`, if it is there.
#[must_use]
pub fn axe() -> Option<PathBuf> {
    std::env::var_os("HEDGETEST_AXE").map(PathBuf::from).filter(|path| path.is_file())
}

/// The ONNX Runtime library named by `ORT_DYLIB_PATH`, if it is there.
#[must_use]
pub fn onnxruntime() -> Option<PathBuf> {
    std::env::var_os("ORT_DYLIB_PATH").map(PathBuf::from).filter(|path| path.is_file())
}
