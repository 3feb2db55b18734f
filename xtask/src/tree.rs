//! A small Debian that can be booted in a container, made once from this machine's own apt sources.

use std::fs;
use std::path::PathBuf;

use anyhow::{Context as _, Result, ensure};
use hedge_tests::places;

use crate::command;

/// Of the same release as this machine, so that programs built here run there.
const SUITE: &str = "bookworm";

/// What a Raspberry Pi without a desktop has and the tests need. Raised when the list changes.
const PACKAGES: &str = "systemd,systemd-sysv,dbus,libpam-systemd,ca-certificates,libstdc++6";
const VERSION: u32 = 1;

/// Why it cannot be booted here, if it cannot.
pub(crate) fn unavailable() -> Option<String> {
    if !is_root() {
        return Some("booting a container needs root".into());
    }
    let missing = ["mmdebstrap", "systemd-nspawn", "nsenter", "dpkg-deb"]
        .into_iter()
        .find(|tool| !command::works(command::program(tool).arg("--version")))?;
    Some(format!("`{missing}` is not installed; on Debian: apt-get install mmdebstrap systemd-container"))
}

fn is_root() -> bool {
    command::output(command::program("id").arg("-u")).is_ok_and(|id| id.trim() == "0")
}

/// The tree as a tar archive, made if it is not there.
pub(crate) fn archive() -> Result<PathBuf> {
    let cache = places::root().join(".cache/debian");
    let archive = cache.join(format!("{SUITE}-{VERSION}.tar"));
    if archive.is_file() {
        return Ok(archive);
    }
    fs::create_dir_all(&cache)?;
    let sources = ["/etc/apt/sources.list.d/debian.sources", "/etc/apt/sources.list"]
        .into_iter()
        .find(|path| fs::read_to_string(path).is_ok_and(|text| text.contains(SUITE)));
    let sources = sources.with_context(|| format!("this machine's apt knows no source of Debian {SUITE}"))?;
    eprintln!("Making a Debian {SUITE} to boot, in {} (once)", cache.display());
    let unfinished = cache.join("unfinished.tar");
    let mut make = command::program("mmdebstrap");
    make.args(["--quiet", "--variant=minbase", &format!("--include={PACKAGES}")]);
    // Nothing here reads manuals or other languages.
    make.args(["--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=path-exclude=/usr/share/doc/*"]);
    command::run_aside(make.arg(SUITE).arg(&unfinished).arg(sources))?;
    ensure!(unfinished.is_file(), "mmdebstrap made nothing");
    fs::rename(&unfinished, &archive)?;
    Ok(archive)
}
