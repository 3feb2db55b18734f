//! A small ext4 file system on a loop device, that can lose its power and be full.
//!
//! A power cut copies the image as the device holds it: what the file system kept in memory only, because nobody had
//! it synced, is not in the copy. The copy then takes the image's place, as the disk does at the next boot.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail, ensure};

/// A copy during which the device was written to is no moment of its life. The writer is dead by then, so that all
/// that may still come is what the journal does every 5 s.
const COPIES_MAX: u32 = 20;

/// Mounted as long as it lives.
#[derive(Debug)]
pub struct Ext4 {
    dir: PathBuf,
    image: PathBuf,
    cuts: u32,
}

impl Ext4 {
    /// Why this machine cannot have one, if it cannot.
    #[must_use]
    pub fn unavailable() -> Option<String> {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting an image needs root".into());
        }
        if !Path::new("/dev/loop-control").exists() {
            return Some("there are no loop devices here (/dev/loop-control)".into());
        }
        let missing = run(&["mkfs.ext4", "-V"]).is_err();
        missing.then(|| "mkfs.ext4 is not installed; on Debian: apt-get install e2fsprogs".into())
    }

    /// Makes one of `mib` MiB in `dir` and mounts it.
    pub fn make(dir: &Path, mib: u64) -> Result<Self> {
        std::fs::create_dir_all(dir.join("mounted"))?;
        let disk = Self { dir: dir.to_owned(), image: dir.join("disk-0.img"), cuts: 0 };
        File::create(&disk.image)?.set_len(mib << 20)?;
        let image = disk.image.display().to_string();
        // Nothing is left for the kernel to write later, and nothing is kept back for root.
        run(&["mkfs.ext4", "-q", "-F", "-m", "0", "-E", "lazy_itable_init=0,lazy_journal_init=0", &image])?;
        disk.mount()?;
        Ok(disk)
    }

    /// Where its files are, before and after every cut.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        self.dir.join("mounted")
    }

    pub fn free_bytes(&self) -> Result<u64> {
        let stat = rustix::fs::statvfs(self.path())?;
        Ok(stat.f_bavail * stat.f_frsize)
    }

    /// Takes the power away and gives it back. Whoever writes to the disk has to be dead.
    pub fn cut_power(&mut self) -> Result<()> {
        let next = self.dir.join(format!("disk-{}.img", self.cuts + 1));
        self.copy_to(&next)?;
        self.unmount()?;
        std::fs::remove_file(&self.image)?;
        self.image = next;
        self.cuts += 1;
        self.mount()
    }

    fn copy_to(&self, copy: &Path) -> Result<()> {
        let written = self.device()?;
        let written = || std::fs::read_to_string(&written).context("no figures of the loop device");
        for _ in 0..COPIES_MAX {
            let before = written()?;
            std::fs::copy(&self.image, copy)?;
            if writes_of(&before)? == writes_of(&written()?)? {
                return Ok(());
            }
        }
        bail!("the disk was written to during each of {COPIES_MAX} copies: somebody still uses it")
    }

    /// The kernel's figures of the loop device.
    fn device(&self) -> Result<PathBuf> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let place = self.path().display().to_string();
        let line = mounts.lines().find(|line| line.split(' ').nth(1) == Some(&place)).context("it is not mounted")?;
        let name = line.split(' ').next().and_then(|device| device.strip_prefix("/dev/")).context("no device")?;
        Ok(Path::new("/sys/block").join(name).join("stat"))
    }

    fn mount(&self) -> Result<()> {
        run(&["mount", "-t", "ext4", "-o", "loop,noatime", &self.image.display().to_string(), &self.place()])
    }

    /// Mounts it anew with these options: `ro`, `rw`.
    pub fn remount(&self, options: &str) -> Result<()> {
        run(&["mount", "-o", &format!("remount,{options}"), &self.place()])
    }

    fn unmount(&self) -> Result<()> {
        run(&["umount", &self.place()])
    }

    fn place(&self) -> String {
        self.path().display().to_string()
    }
}

impl Drop for Ext4 {
    fn drop(&mut self) {
        // After a failed test its programs may still run: the mount then goes with them.
        if let Err(error) = run(&["umount", "--lazy", &self.place()]) {
            eprintln!("{error:#}");
        }
    }
}

/// Sectors written and requests under way, of `/sys/block/…/stat`.
fn writes_of(stat: &str) -> Result<(u64, u64)> {
    let field = |number: usize| stat.split_whitespace().nth(number)?.parse().ok();
    field(6).zip(field(8)).context("figures of a loop device that cannot be read")
}

fn run(words: &[&str]) -> Result<()> {
    let shown = words.join(" ");
    let output = Command::new(words[0]).args(&words[1..]).output().with_context(|| format!("cannot run `{shown}`"))?;
    ensure!(output.status.success(), "`{shown}`: {}", String::from_utf8_lossy(&output.stderr).trim_end());
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    #[test]
    fn a_cut_takes_what_was_not_synced_and_leaves_what_was() -> Result<()> {
        if !crate::skip::has_ext4() {
            return Ok(());
        }
        let dir = tempfile::tempdir()?;
        let mut disk = Ext4::make(dir.path(), 16)?;
        for (name, synced) in [("synced", true), ("loose", false)] {
            let mut file = File::create(disk.path().join(name))?;
            file.write_all(&[7; 100_000])?;
            if synced {
                file.sync_all()?;
                File::open(disk.path())?.sync_all()?;
            }
        }
        disk.cut_power()?;
        assert_eq!(std::fs::read(disk.path().join("synced"))?, [7; 100_000]);
        let left = std::fs::read(disk.path().join("loose")).unwrap_or_default();
        assert!(left.iter().filter(|byte| **byte == 7).count() < 100_000, "an unsynced file survived whole");
        Ok(())
    }
}
