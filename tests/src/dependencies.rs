//! Reads `cargo tree` and says where a dependency has gone where it must not be.

use std::collections::BTreeSet;
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

use crate::places;

/// Everything hedge-core may be built from. Nothing here opens a socket or a file, starts a thread or reads a clock
/// for it: it is data formats, hashes, and what derives them at compile time.
const CORE_MAY_USE: &[&str] = &[
    "block-buffer",
    "cfg-if",
    "ciborium",
    "ciborium-io",
    "ciborium-ll",
    "cpufeatures",
    "crypto-common",
    "digest",
    "half",
    "hedge-core",
    "hedge-proto",
    "hybrid-array",
    "itoa",
    "libc", // below cpufeatures, for which it names constants
    "libm",
    "memchr",
    "proc-macro2",
    "quote",
    "serde",
    "serde_bytes",
    "serde_core",
    "serde_derive",
    "serde_json",
    "serde_path_to_error",
    "sha2",
    "syn",
    "thiserror",
    "thiserror-impl",
    "typenum",
    "unicode-ident",
    "zerocopy",
    "zerocopy-derive",
    "zmij", // prints floats for serde_json
];

/// Painful to cross-compile, or a second way to do TLS.
const AGENT_MUST_NOT_USE: &[&str] = &[
    "aws-lc-rs",
    "aws-lc-sys",
    "native-tls",
    "openssl",
    "openssl-sys",
    "rmqtt",
    "rusqlite",
    "libsqlite3-sys",
    "tokio-postgres",
];

/// hedge-core can reach no crate that does IO.
pub fn core_is_pure() -> Result<()> {
    let found = tree("hedge-core")?;
    let strange: Vec<_> = names(&found).filter(|name| !CORE_MAY_USE.contains(name)).collect();
    if !strange.is_empty() {
        bail!(
            "hedge-core can reach {}; it decides and does no IO. A new crate without IO goes on the list in {}",
            strange.join(", "),
            file!()
        );
    }
    for source in ["agent/core/src/lib.rs", "proto/src/lib.rs"] {
        let text = std::fs::read_to_string(places::root().join(source))?;
        ensure!(text.contains("no_std"), "{source} is no longer no_std");
    }
    Ok(())
}

/// The agent holds one rustls, on ring, and none of the cloud's heavy parts.
pub fn agent_has_one_rustls_on_ring() -> Result<()> {
    let found = tree("hedge-tools")?;
    let rustls: Vec<_> = found.iter().filter(|(name, _)| name == "rustls").map(|(_, version)| version).collect();
    ensure!(rustls.len() == 1, "the agent must hold exactly one rustls, not {rustls:?}");
    ensure!(names(&found).any(|name| name == "ring"), "the agent's rustls must run on ring");
    let banned: Vec<_> = names(&found).filter(|name| AGENT_MUST_NOT_USE.contains(name)).collect();
    ensure!(banned.is_empty(), "the agent's dependency tree must not hold {}", banned.join(", "));
    Ok(())
}

fn names(found: &BTreeSet<(String, String)>) -> impl Iterator<Item = &str> {
    found.iter().map(|(name, _)| name.as_str())
}

/// Name and version of every crate that a build of `package` contains.
fn tree(package: &str) -> Result<BTreeSet<(String, String)>> {
    let output = Command::new(std::env::var_os("CARGO").unwrap_or("cargo".into()))
        .current_dir(places::root())
        .args(["tree", "--locked", "--edges", "normal", "--prefix", "none", "--format", "{p}", "--package", package])
        .output()
        .context("cannot run cargo tree")?;
    ensure!(output.status.success(), "cargo tree: {}", String::from_utf8_lossy(&output.stderr));
    let text = String::from_utf8(output.stdout)?;
    let crates = text.lines().filter_map(|line| {
        let mut words = line.split(' ');
        Some((words.next()?.to_owned(), words.next()?.to_owned()))
    });
    Ok(crates.filter(|(name, _)| !name.is_empty()).collect())
}
