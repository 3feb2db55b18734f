//! Where an enrolled device keeps key, certificate and authorities, and how they are written.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A folder only its owner may look into: `device.key`, `device.pem`, `ca.pem`.
#[derive(Debug, Clone)]
pub struct Folder(PathBuf);

impl Folder {
    /// `identity` in the state folder, where the running agent may write renewals.
    #[must_use]
    pub fn below(state_dir: &Path) -> Self {
        Self(state_dir.join("identity"))
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.0
    }

    #[must_use]
    pub fn key(&self) -> PathBuf {
        self.0.join("device.key")
    }

    /// The key of a setup that has not come to its end: the cloud may have signed for it already.
    #[must_use]
    pub fn unfinished_key(&self) -> PathBuf {
        self.0.join("unfinished.key")
    }

    #[must_use]
    pub fn certificate(&self) -> PathBuf {
        self.0.join("device.pem")
    }

    #[must_use]
    pub fn authorities(&self) -> PathBuf {
        self.0.join("ca.pem")
    }

    pub fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.0)
    }
}

/// Writes a file that only its owner may read, whole or not at all, and durably.
pub fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    write_whole(path, text.as_bytes(), 0o600)
}

/// Writes a file whole or not at all, and durably: who reads it meanwhile, and who starts after a power cut, gets the old
/// or the new one.
pub fn write_whole(path: &Path, bytes: &[u8], mode: u32) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    // One left behind by a crash may have other rights.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(mode).open(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty());
    File::open(dir.unwrap_or(Path::new(".")))?.sync_all()
}
