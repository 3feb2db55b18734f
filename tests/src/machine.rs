//! A Debian of its own that boots its own systemd in a container and shares this machine's network.
//!
//! What is promised of packages and units is proven in it: installed, started, killed and rebooted as on a device.
//! Its disk is a folder that goes with it. `cargo xtask test` makes the tree it starts from, and the packages.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use tempfile::TempDir;

use crate::wait;

/// A boot takes about a second; this is that on a busy machine.
const BOOT_WAIT_MAX: Duration = Duration::from_secs(120);

/// The journal is seconds behind at most.
const WORDS_WAIT_MAX: Duration = Duration::from_secs(60);

/// systemd's control groups need a hierarchy of their own, which only this container sees.
const BOOT: &str = "umount -R /sys/fs/cgroup 2>/dev/null; mount -t cgroup2 cgroup2 /sys/fs/cgroup && \
     exec systemd-nspawn --quiet --register=no --keep-unit --link-journal=no --resolv-conf=off --console=pipe --boot -D \"$0\"";

/// A running machine. Dropping it is a power cut, and its disk is gone.
pub struct Machine {
    disk: TempDir,
    container: Option<Child>,
}

impl Machine {
    /// The archive of the tree and the folder of packages, if this run has them.
    #[must_use]
    pub fn parts() -> Option<(PathBuf, PathBuf)> {
        let given = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.exists());
        Some((given("HEDGETEST_TREE")?, given("HEDGETEST_PACKAGES")?))
    }

    /// A fresh machine, switched on.
    pub fn new() -> Result<Self> {
        let (tree, packages) = Self::parts().context("there is no tree to boot; run `cargo xtask test`")?;
        let disk = tempfile::Builder::new().prefix("hedge-machine-").tempdir()?;
        let unpack = Command::new("tar").arg("-xf").arg(tree).arg("-C").arg(disk.path()).output()?;
        succeeded("tar", &unpack)?;
        let mut machine = Self { disk, container: None };
        for package in fs::read_dir(packages)? {
            let package = package?;
            machine.put(&package.path(), &Path::new("/root").join(package.file_name()))?;
        }
        machine.switch_on()?;
        Ok(machine)
    }

    /// Boots it and waits until all that starts at boot has started, or failed.
    pub fn switch_on(&mut self) -> Result<()> {
        let log = fs::File::create(self.disk.path().join("console"))?;
        let mut boot = Command::new("unshare");
        boot.args(["--mount", "--propagation", "private", "sh", "-c", BOOT]).arg(self.disk.path());
        self.container = Some(boot.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).spawn()?);
        let booted = wait::until_true("the machine has booted", BOOT_WAIT_MAX, || {
            let ended = self.container.as_mut().map(Child::try_wait).transpose()?.flatten();
            ensure!(ended.is_none(), "the container ended: {ended:?}");
            let state = self.init().ok().and_then(|_| self.output(&["systemctl", "is-system-running"]).ok());
            let state = state.map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
            Ok(state.is_some_and(|state| state == "running" || state == "degraded"))
        });
        booted.with_context(|| fs::read_to_string(self.disk.path().join("console")).unwrap_or_default())
    }

    /// Nothing in it gets another moment.
    pub fn cut_power(&mut self) -> Result<()> {
        let Some(mut container) = self.container.take() else { return Ok(()) };
        if let Ok(init) = first_child(container.id()) {
            let kill = Command::new("kill").args(["-KILL", &init.to_string()]).output()?;
            succeeded("kill", &kill)?;
        } else {
            container.kill()?;
        }
        container.wait()?;
        Ok(())
    }

    /// What a command prints in it; an error if it fails.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        succeeded(&words.join(" "), &output)?;
        Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    }

    /// What it says of a command that fails; an error if it succeeds.
    pub fn run_to_fail(&self, words: &[&str]) -> Result<String> {
        let output = self.output(words)?;
        ensure!(!output.status.success(), "`{}` was to fail", words.join(" "));
        Ok(String::from_utf8_lossy(&output.stderr).into_owned())
    }

    fn output(&self, words: &[&str]) -> Result<Output> {
        let init = self.init()?.to_string();
        let mut command = Command::new("nsenter");
        command.args(["--target", &init, "--mount", "--uts", "--ipc", "--net", "--pid", "--", "env", "-i"]);
        command.arg("PATH=/usr/sbin:/usr/bin:/sbin:/bin").arg("DEBIAN_FRONTEND=noninteractive").args(words);
        command
            .stdin(Stdio::null())
            .output()
            .with_context(|| format!("cannot run `{}` in the machine", words.join(" ")))
    }

    fn init(&self) -> Result<u32> {
        first_child(self.container.as_ref().context("the machine is switched off")?.id())
    }

    /// A file of its disk, from outside.
    #[must_use]
    pub fn path(&self, path: &str) -> PathBuf {
        self.disk.path().join(path.trim_start_matches('/'))
    }

    pub fn write(&self, path: &str, text: &str) -> Result<()> {
        let path = self.path(path);
        fs::create_dir_all(path.parent().context("a file lies in a folder")?)?;
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(fs::set_permissions(path, fs::Permissions::from_mode(0o644))?)
    }

    /// Copies a file or a folder into it.
    pub fn put(&self, source: &Path, destination: &Path) -> Result<()> {
        let destination = self.path(&destination.to_string_lossy());
        fs::create_dir_all(destination.parent().context("a file lies in a folder")?)?;
        let copy =
            Command::new("cp").args(["--recursive", "--no-target-directory"]).arg(source).arg(destination).output()?;
        succeeded("cp", &copy)
    }

    /// Installs packages by the beginning of their file names.
    pub fn install(&self, packages: &[&str]) -> Result<()> {
        let files = self.packages(packages)?;
        let words: Vec<_> = ["dpkg", "--install"].into_iter().chain(files.iter().map(String::as_str)).collect();
        self.run(&words).map(drop)
    }

    /// Where packages lie in it.
    pub fn packages(&self, beginnings: &[&str]) -> Result<Vec<String>> {
        let mut files = Vec::new();
        for beginning in beginnings {
            let found =
                fs::read_dir(self.path("/root"))?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
            let found = found.into_iter().find(|name| name.starts_with(beginning));
            files.push(format!("/root/{}", found.with_context(|| format!("no package {beginning}"))?));
        }
        Ok(files)
    }

    /// One property of a unit, as systemd shows it.
    pub fn property(&self, unit: &str, name: &str) -> Result<String> {
        self.run(&["systemctl", "show", "--value", "--property", name, unit])
    }

    /// The end of a unit's journal, for an error.
    #[must_use]
    pub fn journal(&self, unit: &str) -> String {
        let words = ["journalctl", "--no-pager", "--output=cat", "--lines=30", "--unit", unit];
        self.run(&words).unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Waits until a unit's journal of this boot says this, however long ago; it comes by a way of its own.
    pub fn wait_for_words(&self, unit: &str, words: &str) -> Result<()> {
        let journal = ["journalctl", "--no-pager", "--output=cat", "--boot", "--unit", unit];
        self.wait_for(&format!("the journal says `{words}`"), WORDS_WAIT_MAX, unit, || {
            Ok(self.run(&journal)?.contains(words))
        })
    }

    /// Waits for a condition; an error shows the unit's journal.
    pub fn wait_for(
        &self,
        what: &str,
        bound: Duration,
        unit: &str,
        mut holds: impl FnMut() -> Result<bool>,
    ) -> Result<()> {
        wait::until_true(what, bound, &mut holds)
            .with_context(|| format!("the end of the journal of {unit}:\n{}", self.journal(unit)))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        if let Err(error) = self.cut_power() {
            eprintln!("the machine cannot be switched off: {error:#}");
        }
    }
}

/// Its init, which is the container program's only child.
fn first_child(parent: u32) -> Result<u32> {
    let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    match children.split_whitespace().next() {
        Some(child) => Ok(child.parse()?),
        None => bail!("the container has no process yet"),
    }
}

fn succeeded(what: &str, output: &Output) -> Result<()> {
    let said = [&output.stdout[..], &output.stderr[..]].map(String::from_utf8_lossy).concat();
    ensure!(output.status.success(), "`{what}` failed ({}): {said}", output.status);
    Ok(())
}
