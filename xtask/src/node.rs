//! Node-RED, for the test that runs the flow in `examples/node-red`.

use std::path::PathBuf;

use anyhow::Result;
use hedge_tests::places;

use crate::command;

const NODE_RED: &str = "node-red@4.1.15";

/// The program to give to `node`, installed on first use; `None` with a sentence on standard error where there is no npm.
pub(crate) fn node_red() -> Result<Option<PathBuf>> {
    let dir = places::root().join(".cache/node-red");
    let program = dir.join("node_modules/node-red/red.js");
    // Written last, and names what is inside: another version is installed anew.
    let complete = dir.join("complete");
    if std::fs::read_to_string(&complete).is_ok_and(|inside| inside == NODE_RED) {
        return Ok(Some(program));
    }
    if !command::works(command::program("npm").arg("--version")) {
        eprintln!("No Node-RED for its test; on Debian: apt-get install --no-install-recommends nodejs npm");
        return Ok(None);
    }
    std::fs::create_dir_all(&dir)?;
    command::run_aside(
        command::program("npm").args(["install", "--no-audit", "--no-fund", "--prefix"]).arg(&dir).arg(NODE_RED),
    )?;
    std::fs::write(complete, NODE_RED)?;
    Ok(Some(program))
}
