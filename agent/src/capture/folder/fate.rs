//! Settles what becomes of a file. Everything here may block.

use std::ffi::{OsStr, OsString};
use std::io;
use std::path::Path;

use rustix::fs::{CWD, RenameFlags, renameat_with};

use crate::daemon::config::Fate;

pub(super) enum Ending {
    /// Answered, or passed over for a newer one.
    Done(Fate),
    Failed(String),
}

/// The most files of one name kept in `done/` or `failed/`; the last of them is overwritten.
const SAME_NAME_MAX: usize = 1000;

/// Moves or deletes `name` in `folder`.
pub(super) fn settle(folder: &Path, name: &OsStr, ending: &Ending) -> io::Result<()> {
    match ending {
        Ending::Done(Fate::Delete) => std::fs::remove_file(folder.join(name)),
        Ending::Done(Fate::Move) => move_into(folder, "done", name).map(drop),
        Ending::Failed(reason) => {
            let mut note = move_into(folder, "failed", name)?;
            note.push(".error.txt");
            std::fs::write(folder.join("failed").join(note), format!("{reason}\n"))
        }
    }
}

/// Moves without overwriting: a camera may write the same name again and again. Returns the name it has there.
fn move_into(folder: &Path, place: &str, name: &OsStr) -> io::Result<OsString> {
    let target = folder.join(place);
    match std::fs::create_dir(&target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    for number in 1..=SAME_NAME_MAX {
        let free = numbered(name, number);
        match renameat_with(CWD, folder.join(name), CWD, target.join(&free), RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(free),
            Err(rustix::io::Errno::EXIST) => {}
            // Some file systems cannot do it without overwriting.
            Err(rustix::io::Errno::INVAL) => break,
            Err(error) => return Err(error.into()),
        }
    }
    let last = numbered(name, SAME_NAME_MAX);
    std::fs::rename(folder.join(name), target.join(&last))?;
    Ok(last)
}

/// `a.jpg`, `a.2.jpg`, `a.3.jpg`
fn numbered(name: &OsStr, number: usize) -> OsString {
    if number == 1 {
        return name.to_owned();
    }
    let path = Path::new(name);
    let mut numbered = path.file_stem().unwrap_or(name).to_owned();
    numbered.push(format!(".{number}"));
    if let Some(extension) = path.extension() {
        numbered.push(".");
        numbered.push(extension);
    }
    numbered
}
