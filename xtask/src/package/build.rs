//! Builds what goes into packages and is not there yet: programs for another processor, manual pages.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use hedge_tests::places;

use super::Arch;
use crate::command;

/// Debian's own compiler has a standard library for arm64; rustup's need not be here.
const DEBIAN_RUSTC: &str = "/usr/bin/rustc";

/// What apt brings for it.
const CROSS_PACKAGES: &str = "dpkg --add-architecture arm64 && apt-get update && apt-get install --no-install-recommends \
     rustc-web libstd-rust-web-dev:arm64 gcc-aarch64-linux-gnu libc6-dev-arm64-cross";

/// Both programs for `arch`, as they are delivered; returns their folder.
pub(crate) fn cross_compiled(arch: Arch) -> Result<PathBuf> {
    ensure!(arch == Arch::Arm64, "programs for {} are built on a machine of that kind", arch.debian());
    let there =
        Path::new(DEBIAN_RUSTC).is_file() && command::works(command::program("aarch64-linux-gnu-gcc").arg("-v"));
    ensure!(there, "the compiler for arm64 is missing; on Debian: {CROSS_PACKAGES}");
    let target = "aarch64-unknown-linux-gnu";
    let folder = places::root().join("target/cross");
    let mut build = command::cargo(&["build", "--release", "--target", target]);
    build.args(["--package", "hedge-tools", "--package", "hedge-cloud"]);
    build
        .env("RUSTC", DEBIAN_RUSTC)
        .env("CARGO_TARGET_AARCH64_UNKNOWN_LINUX_GNU_LINKER", "aarch64-linux-gnu-gcc")
        .env("CC_aarch64_unknown_linux_gnu", "aarch64-linux-gnu-gcc")
        .env("CARGO_TARGET_DIR", &folder);
    command::run_aside(&mut build)?;
    Ok(folder.join(target).join("release"))
}

/// Manual pages and completions of both programs, made from their command lines by what lies in `built`.
pub(crate) fn manual(built: &Path) -> Result<PathBuf> {
    let folder = places::root().join("target/manual");
    if folder.exists() {
        std::fs::remove_dir_all(&folder).context("cannot renew target/manual")?;
    }
    command::run_aside(command::program(built.join("examples/manual")).arg(&folder))?;
    Ok(folder)
}
