//! What comes from npm: Node-RED, for the test that runs the flow in `examples/node-red`, and axe-core, which looks for
//! what keeps people from using a page.

use std::path::PathBuf;

use anyhow::Result;
use hedge_tests::places;

use crate::command;

const NODE_RED: &str = "node-red@4.1.15";

const AXE: &str = "axe-core@4.14.1";

/// The program to give to `node`.
pub(crate) fn node_red() -> Result<Option<PathBuf>> {
    installed(NODE_RED, "node-red", "node_modules/node-red/red.js")
}

/// The script to run in a page.
pub(crate) fn axe() -> Result<Option<PathBuf>> {
    installed(AXE, "axe", "node_modules/axe-core/axe.min.js")
}

/// A file of a package, which is installed on first use; `None` with a sentence on standard error where there is no npm.
fn installed(package: &str, folder: &str, file: &str) -> Result<Option<PathBuf>> {
    let dir = places::root().join(".cache").join(folder);
    let program = dir.join(file);
    // Written last, and names what is inside: another version is installed anew.
    let complete = dir.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|inside| inside == package) {
        return Ok(Some(program));
    }
    if !command::works(command::program("npm").arg("--version")) {
        eprintln!("No {package} for its test; on Debian: apt-get install --no-install-recommends nodejs npm");
        return Ok(None);
    }
    std::fs::create_dir_all(&dir)?;
    command::run_aside(
        command::program("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&dir).arg(package),
    )?;
    std::fs::write(complete, package)?;
    Ok(Some(program))
}
