//! Lays an apt repository out around the packages: indices, a Release file, its signature, `install.sh`.

use std::fs;
use std::path::Path;

use anyhow::{Result, ensure};
use hedge_tests::places;

use super::Arch;
use crate::command;

const SUITE: &str = "stable";
const COMPONENT: &str = "main";

/// `root/pool` holds the packages.
pub(super) fn lay_out(root: &Path, key: Option<&str>) -> Result<()> {
    let there = command::works(command::program("apt-ftparchive").arg("--version"));
    ensure!(there, "apt-ftparchive is missing; on Debian: apt-get install apt-utils");
    let suite = root.join("dists").join(SUITE);
    let architectures = [Arch::Amd64, Arch::Arm64].map(Arch::debian);
    for architecture in architectures {
        let index = suite.join(COMPONENT).join(format!("binary-{architecture}"));
        fs::create_dir_all(&index)?;
        let mut scan = command::program("apt-ftparchive");
        scan.current_dir(root).args(["--arch", architecture, "packages", "pool"]);
        fs::write(index.join("Packages"), command::output(&mut scan)?)?;
        command::run(command::program("gzip").args(["--no-name", "--keep", "--force"]).arg(index.join("Packages")))?;
    }
    for stale in ["Release", "InRelease"] {
        if suite.join(stale).exists() {
            fs::remove_file(suite.join(stale))?;
        }
    }
    let mut release = command::program("apt-ftparchive");
    for (name, value) in [
        ("Origin", "Hedge"),
        ("Suite", SUITE),
        ("Codename", SUITE),
        ("Components", COMPONENT),
        ("Architectures", &architectures.join(" ")),
    ] {
        release.arg("-o").arg(format!("APT::FTPArchive::Release::{name}={value}"));
    }
    let text = command::output(release.arg("release").arg(&suite))?;
    fs::write(suite.join("Release"), text)?;
    fs::copy(places::root().join("packaging/install.sh"), root.join("install.sh"))?;
    match key {
        Some(key) => sign(root, &suite, key),
        None => {
            println!("The repository is not signed: apt will only take single packages from it (--sign KEY)");
            Ok(())
        }
    }
}

fn sign(root: &Path, suite: &Path, key: &str) -> Result<()> {
    let mut gpg = command::program("gpg");
    gpg.args(["--batch", "--yes", "--local-user", key, "--clearsign", "--output"]);
    command::run(gpg.arg(suite.join("InRelease")).arg(suite.join("Release")))?;
    let export = command::program("gpg").args(["--batch", "--armor", "--export", key]).output()?;
    ensure!(export.status.success(), "gpg cannot export {key}");
    Ok(fs::write(root.join("hedge.asc"), export.stdout)?)
}
