//! Runs tests with the arm64 programs and ONNX Runtime's arm64 library, on this processor, under qemu.
//!
//! It shows that they start, find each other and calculate the same; it shows nothing of a board's speed, cameras or
//! kernel. Not in CI: it takes an optimised build for arm64.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use hedge_tests::places;

use crate::package::{Arch, cross_compiled};
use crate::{command, onnxruntime};

/// Older ones crash inside ONNX Runtime; Debian's next release has one that does not.
const QEMU_SUITE: (&str, &str) = ("bookworm", "trixie");

/// Test files that need nothing but the two programs and finish in time at a twentieth of the speed.
const TESTS: &str =
    "binary(golden_photos_read_the_same_everywhere) | binary(a_doubtful_sample_is_corrected_under_its_id)";

/// A hung emulator must not outlive its test.
const PROGRAM_S_MAX: u32 = 900;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// Which tests, as a filter expression of cargo-nextest
    #[arg(long, default_value = TESTS)]
    tests: String,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let programs = cross_compiled(Arch::Arm64)?;
    let library = onnxruntime::cached(Arch::Arm64.processor())?;
    let qemu = qemu()?;
    let wrappers = tempfile::tempdir()?;
    for name in ["hedge-agent", "hedge-cloud"] {
        let wrapper = wrappers.path().join(name);
        let program = programs.join(name);
        let text = format!("#!/bin/sh\nexec timeout {PROGRAM_S_MAX} {} {} \"$@\"\n", qemu.display(), program.display());
        fs::write(&wrapper, text)?;
        fs::set_permissions(&wrapper, fs::Permissions::from_mode(0o755))?;
    }
    let version = command::output(command::program(wrappers.path().join("hedge-agent")).arg("--version"))?;
    println!("{} for arm64 under {}", version.trim(), qemu.display());
    let mut tests = command::cargo(&["nextest", "run", "--workspace", "--exclude", "xtask", "--no-fail-fast"]);
    tests.args(["-E", &arguments.tests]);
    tests.env("HEDGETEST_PROGRAMS", wrappers.path()).env("ORT_DYLIB_PATH", library);
    command::run(&mut tests)
}

/// The emulator, unpacked from its package but not installed.
fn qemu() -> Result<PathBuf> {
    let cache = places::root().join(".cache/qemu");
    let qemu = cache.join("usr/bin/qemu-aarch64");
    if !qemu.is_file() {
        fetch(&cache).context("cannot fetch qemu")?;
        ensure!(qemu.is_file(), "the package qemu-user holds no {}", qemu.display());
    }
    Ok(qemu)
}

/// Asks the machine's own apt sources for the next release's package, with indices of our own.
fn fetch(cache: &Path) -> Result<()> {
    fs::create_dir_all(cache)?;
    let work = tempfile::tempdir_in(cache)?;
    // apt reads as a user of its own.
    fs::set_permissions(work.path(), fs::Permissions::from_mode(0o755))?;
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(work.path().join(folder))?;
    }
    let sources = fs::read_to_string("/etc/apt/sources.list.d/debian.sources");
    let sources = sources.context("this machine's apt has no debian.sources")?;
    let (here, next) = QEMU_SUITE;
    fs::write(work.path().join("next.sources"), sources.replace(here, next))?;
    let apt = |words: &[&str]| {
        let mut apt = command::program("apt-get");
        apt.current_dir(work.path());
        for (name, path) in [
            ("Dir::Etc::SourceList", "/dev/null".into()),
            ("Dir::Etc::SourceParts", work.path().to_owned()),
            ("Dir::State::Lists", work.path().join("lists")),
            ("Dir::Cache", work.path().join("cache")),
        ] {
            apt.arg("-o").arg(format!("{name}={}", path.display()));
        }
        apt.args(["-o", "APT::Sandbox::User=root", "-qq"]).args(words);
        command::run_aside(&mut apt)
    };
    apt(&["update"])?;
    apt(&["download", &format!("qemu-user:{}", Arch::HERE.debian())])?;
    let found = fs::read_dir(work.path())?.filter_map(|entry| Some(entry.ok()?.path()));
    let package = found.into_iter().find(|path| path.extension().is_some_and(|ending| ending == "deb"));
    command::run_aside(
        command::program("dpkg-deb").arg("-x").arg(package.context("apt brought no package")?).arg(cache),
    )
}
