//! What becomes of files and folders under a running agent.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Whether `path` still leads to this file: nobody has deleted, renamed or replaced it.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Whether nothing leads to this file or folder any more: what is written there is gone when it is closed.
pub fn is_deleted(file: &File) -> bool {
    file.metadata().is_ok_and(|open| open.nlink() == 0)
}

/// Writes a file whole or not at all, and durably: a new one beside it, named with `.new` at the end, takes its place.
pub fn replace(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = path.as_os_str().to_owned();
    new.push(".new");
    let mut file = File::create(&new)?;
    file.write_all(bytes)?;
    file.sync_all()?;
    fs::rename(&new, path)?;
    // The name is on the disk when its folder is.
    File::open(path.parent().unwrap_or(Path::new(".")))?.sync_all()
}

/// Writes, syncs and removes a file in `dir`.
pub fn writable(dir: &Path) -> io::Result<()> {
    let probe = dir.join(".hedge-check");
    fs::create_dir_all(dir)?;
    let mut file = File::create(&probe)?;
    let written = file.write_all(b"x").and_then(|()| file.sync_all());
    let removed = fs::remove_file(&probe);
    written.and(removed)
}
