//! Python environments: for the tests that speak to Hedge through other people's clients and to other people's servers,
//! and for making models smaller.

use std::path::PathBuf;

use anyhow::Result;
use hedge_tests::places;

use crate::command;

/// What is in it, pinned. tritonclient speaks the Open Inference Protocol; onnxruntime is the judge of its scores;
/// requests and paho-mqtt are what `examples/python` is written with; jsonschema and cbor2 hold messages against the
/// AsyncAPI document; Jinja2 fills in templates as Home Assistant does; model_signing signs bundles as we do; moto is an object
/// store that speaks S3.
const PACKAGES: &[&str] = &[
    "tritonclient[http]==2.60.0",
    "onnxruntime==1.24.4",
    "numpy==2.3.4",
    "requests==2.34.2",
    "paho-mqtt==2.2.0",
    "jsonschema==4.26.0",
    "cbor2==6.2.1",
    "Jinja2==3.1.6",
    "moto[server]==5.2.1",
    "model_signing==1.1.1",
    "pyOpenSSL==26.4.0", // which model_signing imports and does not ask for
];

/// Real servers of the Open Inference Protocol, for the cloud's answerers; they want other versions than the clients.
/// MLServer's workers crash with uvloop from 0.22 on.
const SERVERS: &[&str] =
    &["mlserver==1.7.1", "uvloop==0.21.0", "nvidia-pytriton==0.7.0", "onnxruntime==1.24.4", "numpy==1.26.4"];

/// The interpreter of the environment with clients, made on first use; `None` with a sentence on standard error where
/// Python cannot make one.
pub(crate) fn clients() -> Result<Option<PathBuf>> {
    interpreter("python", PACKAGES)
}

/// The same with servers.
pub(crate) fn servers() -> Result<Option<PathBuf>> {
    interpreter("python-servers", SERVERS)
}

/// The same with what makes models smaller.
pub(crate) fn trainers() -> Result<Option<PathBuf>> {
    let lines = include_str!("../../models/recipes/compress-requirements.txt").lines();
    let packages: Vec<&str> = lines.filter(|line| !line.is_empty() && !line.starts_with('#')).collect();
    interpreter("python-compress", &packages)
}

fn interpreter(name: &str, packages: &[&str]) -> Result<Option<PathBuf>> {
    let cache = places::root().join(".cache");
    let dir = cache.join(name);
    let python = dir.join("bin/python");
    // Written last, and names what is inside: other pins make another environment.
    let complete = dir.join("complete");
    let inside = packages.join("\n");
    if std::fs::read_to_string(&complete).is_ok_and(|known| known == inside) {
        return Ok(Some(python));
    }
    std::fs::create_dir_all(&cache)?;
    let clear = command::program("python3").args(["-m", "venv", "--clear"]).arg(&dir).status();
    if !clear.is_ok_and(|status| status.success()) {
        eprintln!("No Python environment for tests; on Debian: apt-get install python3-venv");
        return Ok(None);
    }
    command::run_aside(command::program(&python).args(["-m", "pip", "install", "--quiet"]).args(packages))?;
    std::fs::write(complete, inside)?;
    Ok(Some(python))
}
