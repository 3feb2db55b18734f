//! A Python environment for the tests that speak to Hedge through other people's clients.

use std::path::PathBuf;

use anyhow::Result;
use hedge_tests::places;

use crate::command;

/// What is in it, pinned. tritonclient speaks the Open Inference Protocol; onnxruntime is the judge of its scores;
/// requests and paho-mqtt are what `examples/python` is written with; jsonschema and cbor2 hold messages against the
/// AsyncAPI document; Jinja2 fills in templates as Home Assistant does.
const PACKAGES: &[&str] = &[
    "tritonclient[http]==2.60.0",
    "onnxruntime==1.24.4",
    "numpy==2.3.4",
    "requests==2.34.2",
    "paho-mqtt==2.2.0",
    "jsonschema==4.26.0",
    "cbor2==6.2.1",
    "Jinja2==3.1.6",
];

/// The interpreter of the environment, made on first use; `None` with a sentence on standard error where
/// Python cannot make one.
pub(crate) fn interpreter() -> Result<Option<PathBuf>> {
    let cache = places::root().join(".cache");
    let dir = cache.join("python");
    let python = dir.join("bin/python");
    // Written last, and names what is inside: other pins make another environment.
    let complete = dir.join("complete");
    let packages = PACKAGES.join("\n");
    if std::fs::read_to_string(&complete).is_ok_and(|inside| inside == packages) {
        return Ok(Some(python));
    }
    std::fs::create_dir_all(&cache)?;
    let clear = command::program("python3").args(["-m", "venv", "--clear"]).arg(&dir).status();
    if !clear.is_ok_and(|status| status.success()) {
        eprintln!("No Python environment for client tests; on Debian: apt-get install python3-venv");
        return Ok(None);
    }
    command::run_aside(command::program(&python).args(["-m", "pip", "install", "--quiet"]).args(PACKAGES))?;
    std::fs::write(complete, packages)?;
    Ok(Some(python))
}
