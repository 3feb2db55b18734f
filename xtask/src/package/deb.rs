//! Lays out a package's files and lets dpkg-deb pack them.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use hedge_tests::places;

use super::{Arch, copyright, onnxruntime_folder};
use crate::{command, onnxruntime};

/// Debian wants an address; nothing of `.example` can ever be anybody's.
const MAINTAINER: &str = "Hedge developers <developers@hedge.example>";

const SCRIPTS: [&str; 4] = ["preinst", "postinst", "prerm", "postrm"];

/// What packages are made of.
pub(crate) struct Recipe {
    pub(crate) arch: Arch,
    pub(crate) revision: u32,
    /// The folder with the programs.
    pub(crate) programs: PathBuf,
    /// The folder with manual pages and completions.
    pub(crate) manual: PathBuf,
    /// Barely packed, and programs without what only a debugger reads: for tests.
    pub(crate) quick: bool,
}

impl Recipe {
    /// Makes the named packages in `into`, instead of what was there of them.
    pub(crate) fn build(&self, names: &[&str], into: &Path) -> Result<Vec<PathBuf>> {
        fs::create_dir_all(into)?;
        names.iter().map(|name| self.package(name, into).with_context(|| format!("package {name}"))).collect()
    }

    fn package(&self, name: &str, into: &Path) -> Result<PathBuf> {
        let recipe = places::root().join("packaging").join(name);
        let tree = tempfile::tempdir_in(into)?;
        let root = tree.path();
        // A folder of tempfile's is for its owner only; this one becomes `/`.
        fs::set_permissions(root, fs::Permissions::from_mode(0o755))?;
        for line in fs::read_to_string(recipe.join("files"))?.lines().filter(|line| !line.is_empty()) {
            self.lay(root, line).with_context(|| format!("line `{line}`"))?;
        }
        self.documents(name, &recipe, root)?;
        let control = root.join("DEBIAN");
        fs::create_dir(&control)?;
        let conffiles = conffiles(root)?;
        if !conffiles.is_empty() {
            fs::write(control.join("conffiles"), conffiles)?;
        }
        fs::write(control.join("md5sums"), md5sums(root)?)?;
        let size = format!("\nInstalled-Size: {}\n", bytes_below(root)?.div_ceil(1024));
        let text = self.filled(&fs::read_to_string(recipe.join("control"))?)?;
        // The description comes last, and may run over many lines.
        fs::write(control.join("control"), text.replacen("\nSection:", &format!("{size}Section:"), 1))?;
        for script in SCRIPTS.iter().filter(|script| recipe.join(script).is_file()) {
            let path = control.join(script);
            fs::write(&path, self.filled(&fs::read_to_string(recipe.join(script))?)?)?;
            fs::set_permissions(&path, fs::Permissions::from_mode(0o755))?;
        }
        for old in fs::read_dir(into)?.collect::<Result<Vec<_>, _>>()? {
            let old_name = old.file_name().to_string_lossy().into_owned();
            let same = old_name.starts_with(&format!("{name}_")) && old_name.ends_with(&self.ending(&text));
            // Tests keep both revisions.
            if same && !self.quick {
                fs::remove_file(old.path())?;
            }
        }
        self.pack(root, into, &text)
    }

    fn ending(&self, control: &str) -> String {
        format!("_{}.deb", field(control, "Architecture"))
    }

    fn pack(&self, root: &Path, into: &Path, control: &str) -> Result<PathBuf> {
        let name = format!("{}_{}{}", field(control, "Package"), field(control, "Version"), self.ending(control));
        let package = into.join(name);
        let mut pack = command::program("dpkg-deb");
        let packed: &[_] = if self.quick { &["-Zgzip", "-z1"] } else { &["-Zxz", "-z9", "-Sextreme"] };
        pack.arg("--root-owner-group").args(packed).arg("--build").arg(root).arg(&package);
        // The same commit gives the same bytes.
        pack.env("SOURCE_DATE_EPOCH", commit_date("%ct")?);
        command::run_aside(&mut pack)?;
        Ok(package)
    }

    /// `source destination`, or `-> target destination` for a symbolic link.
    fn lay(&self, root: &Path, line: &str) -> Result<()> {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            ["->", target, destination] => {
                let link = root.join(self.path(destination)?);
                fs::create_dir_all(link.parent().context("a file lies in a folder")?)?;
                Ok(symlink(self.path(target)?, link)?)
            }
            [source, destination] => {
                let destination = root.join(self.path(destination)?);
                copy(&places::root().join(self.path(source)?), &destination)?;
                if source.starts_with("{programs}") {
                    fs::set_permissions(&destination, fs::Permissions::from_mode(0o755))?;
                    if self.quick {
                        command::run(command::program("strip").arg("--strip-debug").arg(&destination))?;
                    }
                }
                Ok(())
            }
            _ => bail!("it is neither `source destination` nor `-> target destination`"),
        }
    }

    fn path(&self, text: &str) -> Result<String> {
        let mut path = text.replace("{version}", onnxruntime::VERSION);
        path = path.replace("{programs}", &self.programs.to_string_lossy());
        path = path.replace("{manual}", &self.manual.to_string_lossy());
        if path.contains("{onnxruntime}") {
            path = path.replace("{onnxruntime}", &onnxruntime_folder(self.arch)?.to_string_lossy());
        }
        Ok(path)
    }

    fn filled(&self, text: &str) -> Result<String> {
        Ok(text
            .replace("@VERSION@", &format!("{}-{}", env!("CARGO_PKG_VERSION"), self.revision))
            .replace("@MAINTAINER@", MAINTAINER)
            .replace("@ONNXRUNTIME@", onnxruntime::VERSION)
            .replace("@ARCH@", self.arch.debian()))
    }

    /// Copyright and changelogs, which every package has.
    fn documents(&self, name: &str, recipe: &Path, root: &Path) -> Result<()> {
        let doc = root.join("usr/share/doc").join(name);
        fs::create_dir_all(&doc)?;
        let mut copyright = fs::read_to_string(places::root().join("packaging/copyright"))?;
        if name == "hedge-onnxruntime" {
            copyright = format!(
                "ONNX Runtime, from https://github.com/microsoft/onnxruntime, under this licence:\n\n{}",
                fs::read_to_string(onnxruntime_folder(self.arch)?.join("LICENSE"))?
            );
        } else if name.starts_with("hedge-model-") {
            copyright.push_str(&fs::read_to_string(places::root().join("NOTICE"))?);
        } else if super::PROGRAMS.contains(&name) {
            copyright.push_str(&copyright::of(name, self.arch)?);
        }
        fs::write(doc.join("copyright"), copyright)?;
        let control = self.filled(&fs::read_to_string(recipe.join("control"))?)?;
        let entry = format!(
            "{name} ({}) unstable; urgency=medium\n\n  * Made from the project's own sources; CHANGELOG.md says what changed.\n\n -- {}  {}\n",
            field(&control, "Version"),
            field(&control, "Maintainer"),
            commit_date("%cD")?.trim(),
        );
        compress(&doc.join("changelog.Debian"), &entry)?;
        compress(&doc.join("changelog"), &fs::read_to_string(places::root().join("CHANGELOG.md"))?)
    }
}

/// Writes `path.gz` without its time and name.
fn compress(path: &Path, text: &str) -> Result<()> {
    fs::write(path, text)?;
    command::run(command::program("gzip").args(["-9", "--no-name", "--force"]).arg(path))
}

fn commit_date(format: &str) -> Result<String> {
    let date = command::output(command::program("git").args(["log", "-1", &format!("--format={format}")]))?;
    Ok(date.trim().to_owned())
}

fn field<'a>(control: &'a str, name: &str) -> &'a str {
    let line = control.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
    line.unwrap_or_default()
}

/// Copies a file or a folder, readable for all, writable for root.
fn copy(source: &Path, destination: &Path) -> Result<()> {
    if source.is_dir() {
        for entry in fs::read_dir(source)? {
            let entry = entry?;
            copy(&entry.path(), &destination.join(entry.file_name()))?;
        }
        return Ok(());
    }
    fs::create_dir_all(destination.parent().context("a file lies in a folder")?)?;
    fs::copy(source, destination).with_context(|| format!("cannot copy {}", source.display()))?;
    Ok(fs::set_permissions(destination, fs::Permissions::from_mode(0o644))?)
}

/// Every file below `root`, as paths relative to it, in order.
fn files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut found = Vec::new();
    let mut folders = vec![root.to_owned()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder)? {
            let path = entry?.path();
            if path.symlink_metadata()?.is_dir() {
                folders.push(path);
            } else {
                found.push(path.strip_prefix(root)?.to_owned());
            }
        }
    }
    found.retain(|path| !path.starts_with("DEBIAN"));
    found.sort();
    Ok(found)
}

/// What lies in /etc is the operator's.
fn conffiles(root: &Path) -> Result<String> {
    let mut lines = String::new();
    for path in files(root)?.iter().filter(|path| path.starts_with("etc")) {
        lines.push_str(&format!("/{}\n", path.display()));
    }
    Ok(lines)
}

fn md5sums(root: &Path) -> Result<String> {
    let mut sums = command::program("md5sum");
    sums.current_dir(root);
    sums.args(files(root)?.iter().filter(|path| !path.starts_with("etc") && !root.join(path).is_symlink()));
    command::output(&mut sums)
}

fn bytes_below(root: &Path) -> Result<u64> {
    files(root)?.iter().map(|path| Ok(root.join(path).symlink_metadata()?.len())).sum()
}

/// Lets lintian look at a package; what it calls an error fails.
pub(super) fn lint(package: &Path) -> Result<()> {
    if !command::works(command::program("lintian").arg("--version")) {
        println!("            not checked by lintian, which is not installed");
        return Ok(());
    }
    // As root lintian only warns about being root.
    let output =
        command::program("lintian").args(["--fail-on", "error", "--tag-display-limit", "0"]).arg(package).output()?;
    let said = String::from_utf8_lossy(&output.stdout);
    for line in said.lines() {
        println!("            {line}");
    }
    ensure!(output.status.success(), "lintian found errors: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
