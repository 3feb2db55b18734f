//! Brings the pinned ONNX Runtime into the project's cache, once, from its wheel on PyPI.
//!
//! Only the library, its licence and its notices are taken from the wheel. A library already named by
//! `ORT_DYLIB_PATH` is used as it is.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hedge_tests::places;
use sha2::{Digest as _, Sha256};

use crate::command;

pub(crate) const VERSION: &str = "1.24.4";

/// The wheel's SHA-256.
fn wheel(processor: &str) -> Result<&'static str> {
    match processor {
        "x86_64" => Ok("0d640eb9f3782689b55cfa715094474cd5662f2f137be6a6f847a594b6e9705c"),
        "aarch64" => Ok("1a5c5a544b22f90859c88617ecb30e161ee3349fcc73878854f43d77f00558b5"),
        other => {
            bail!("there is no pinned ONNX Runtime for {other}; install one and name its library in ORT_DYLIB_PATH")
        }
    }
}

/// The library to give to the programs as `ORT_DYLIB_PATH`; downloaded if it is not there yet.
pub(crate) fn library() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("ORT_DYLIB_PATH").filter(|path| !path.is_empty()) {
        let path = PathBuf::from(path);
        ensure!(path.is_file(), "ORT_DYLIB_PATH names {}, which does not exist; correct or unset it", path.display());
        return Ok(path);
    }
    cached(std::env::consts::ARCH)
}

/// The pinned library for any processor it is there for, with its licence and notices beside it.
pub(crate) fn cached(processor: &str) -> Result<PathBuf> {
    let mut cache = places::root().join(".cache/onnxruntime");
    if processor != std::env::consts::ARCH {
        cache.push(processor);
    }
    let library = cache.join(format!("libonnxruntime.so.{VERSION}"));
    if !library.is_file() {
        fetch(&cache, processor).context("cannot fetch ONNX Runtime")?;
    }
    Ok(library)
}

fn fetch(cache: &Path, processor: &str) -> Result<()> {
    let sha256 = wheel(processor)?;
    if !command::works(command::program("python3").args(["-m", "pip", "--version"])) {
        bail!("python3 or its pip is missing; on Debian: apt-get install python3-pip");
    }
    std::fs::create_dir_all(cache)?;
    // Beside its final place, so that it can be moved there in one step; gone again whatever happens.
    let work = tempfile::tempdir_in(cache)?;
    eprintln!("Fetching ONNX Runtime {VERSION} for {processor} from PyPI into {} (once)", cache.display());
    download(work.path(), processor)?;
    let wheel = only_wheel(work.path())?;
    let found = sha256_of(&wheel)?;
    ensure!(found == sha256, "the wheel's SHA-256 is {found}, not the pinned {sha256}; nothing of it is used");
    let unpacked = work.path().join("unpacked");
    let unpack = &mut command::program("python3");
    command::run_aside(unpack.args(["-m", "zipfile", "-e"]).arg(&wheel).arg(&unpacked))?;
    let library = format!("libonnxruntime.so.{VERSION}");
    // The library last: it is what says that the cache is complete.
    for (inside, name) in [
        ("onnxruntime/LICENSE", "LICENSE"),
        ("onnxruntime/ThirdPartyNotices.txt", "ThirdPartyNotices.txt"),
        (&format!("onnxruntime/capi/{library}"), &library),
    ] {
        std::fs::rename(unpacked.join(inside), cache.join(name))
            .with_context(|| format!("the wheel holds no {inside}"))?;
    }
    eprintln!("ONNX Runtime {VERSION} is ready");
    Ok(())
}

fn download(into: &Path, processor: &str) -> Result<()> {
    let mut pip = command::program("python3");
    pip.args(["-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--progress-bar", "on"]);
    for glibc in ["manylinux_2_28", "manylinux_2_27"] {
        pip.args(["--platform", &format!("{glibc}_{processor}")]);
    }
    pip.args(["--python-version", "3.12", "--implementation", "cp", "--dest"]).arg(into);
    pip.arg(format!("onnxruntime=={VERSION}"));
    command::run_aside(&mut pip)
}

fn only_wheel(dir: &Path) -> Result<PathBuf> {
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_some_and(|ending| ending == "whl") {
            return Ok(path);
        }
    }
    bail!("pip brought no wheel")
}

fn sha256_of(path: &Path) -> Result<String> {
    let mut file = File::open(path)?;
    let mut sum = Sha256::new();
    let mut piece = vec![0; 1024 * 1024];
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok(hex::encode(sum.finalize()));
        }
        sum.update(&piece[..length]);
    }
}
