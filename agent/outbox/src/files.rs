//! What becomes of files and folders under a running agent.

use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Whether `path` still leads to this file: nobody has deleted, renamed or replaced it.
pub fn is_at(file: &File, path: &Path) -> bool {
    match (file.metadata(), std::fs::metadata(path)) {
        (Ok(open), Ok(there)) => (open.dev(), open.ino()) == (there.dev(), there.ino()),
        _ => false,
    }
}

/// Whether nothing leads to this file or folder any more: what is written there is gone when it is closed.
pub fn is_deleted(file: &File) -> bool {
    file.metadata().is_ok_and(|open| open.nlink() == 0)
}

/// Writes, syncs and removes a file in `dir`.
pub fn writable(dir: &Path) -> io::Result<()> {
    let probe = dir.join(".hedge-check");
    std::fs::create_dir_all(dir)?;
    let mut file = File::create(&probe)?;
    let written = io::Write::write_all(&mut file, b"x").and_then(|()| file.sync_all());
    let removed = std::fs::remove_file(&probe);
    written.and(removed)
}
