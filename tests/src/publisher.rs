//! Somebody with keys who publishes bundles through `hedge-cloud bundle`.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Result, ensure};

use crate::places;

/// One owner, one release key, and a folder of published bundles.
pub struct Publisher {
    dir: PathBuf,
}

impl Publisher {
    pub fn new(dir: &Path) -> Result<Self> {
        let publisher = Self { dir: dir.join("publisher") };
        std::fs::create_dir_all(&publisher.dir)?;
        publisher.run(&["key", "owner"])?;
        publisher.run(&["key", "release"])?;
        publisher.root(&["--root-key", "owner.pub", "--release-key", "release.pub"])?;
        Ok(publisher)
    }

    /// What `hedge-cloud bundle` prints.
    pub fn run(&self, words: &[&str]) -> Result<String> {
        let mut command = Command::new(places::program("hedge-cloud")?);
        let output = command.current_dir(&self.dir).arg("bundle").args(words).output()?;
        let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
        ensure!(output.status.success(), "bundle {words:?}: {out}{err}");
        Ok(out)
    }

    /// The next root, signed by the owner.
    pub fn root(&self, words: &[&str]) -> Result<String> {
        self.run(&[&["root", "--to", "published", "--key", "owner.key"], words].concat())
    }

    /// Where it works.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What devices fetch from.
    #[must_use]
    pub fn folder(&self) -> PathBuf {
        self.dir.join("published")
    }

    /// Publishes a model of this repository as this version, changed as `change` says before it is signed.
    pub fn publish(
        &self,
        model: &str,
        version: &str,
        change: impl FnOnce(&Path) -> Result<()>,
        words: &[&str],
    ) -> Result<()> {
        let name = format!("{model}-{version}");
        self.run(&["pack", &places::model(model).display().to_string(), &name])?;
        let packed = self.dir.join(&name);
        let manifest = packed.join("manifest.toml");
        let text =
            std::fs::read_to_string(&manifest)?.replacen("version = \"1\"", &format!("version = \"{version}\""), 1);
        std::fs::write(&manifest, text)?;
        change(&packed)?;
        self.run(&["sign", &name, "--key", "release.key"])?;
        self.run(&[&["publish", &name, "--to", "published", "--key", "release.key"], words].concat())?;
        Ok(())
    }
}

/// What a program that must have succeeded has printed.
#[track_caller]
pub fn done(output: &Output) -> String {
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text).into_owned());
    assert!(output.status.success(), "{out}{err}");
    out
}
