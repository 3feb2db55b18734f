//! Settles what becomes of a file. Everything here may block.
//!
//! A writer may hold a file open while it is moved, and write on into the moved one; and another file may take its name
//! between the answer and the move. So what was moved is looked at again, at once and later, and comes back into the
//! folder if it is not what was read.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, RenameFlags, renameat_with};

use super::files::{Look, look};
use hedge_config::Fate;

pub(super) enum Ending {
    /// Answered, or passed over for a newer one.
    Done(Fate),
    Failed(String),
}

/// A file in `done/` or `failed/`, as it looked when it came there.
#[derive(Debug, Clone)]
pub(super) struct Moved {
    path: PathBuf,
    look: Look,
}

/// What has become of a file.
pub(super) enum Settled {
    Deleted,
    Done(Moved),
    Failed(Moved),
    /// Something else stands under its name by now, and stays there.
    Changed,
}

pub(super) const DONE: &str = "done";
pub(super) const FAILED: &str = "failed";

/// Ends the name of the file that says why another one failed.
const NOTE: &[u8] = b".error.txt";

/// The most files of one name kept in `done/` or `failed/`; the last of them is overwritten.
const SAME_NAME_MAX: usize = 1000;

/// Moves or deletes `name` in `folder`, if it still is what was `seen`.
pub(super) fn settle(folder: &Path, name: &OsStr, seen: &Look, ending: &Ending) -> io::Result<Settled> {
    match ending {
        Ending::Done(Fate::Delete) => {
            if !look(&folder.join(name))?.is_content_of(seen) {
                return Ok(Settled::Changed);
            }
            std::fs::remove_file(folder.join(name)).map(|()| Settled::Deleted)
        }
        Ending::Done(Fate::Move) => Ok(move_into(folder, DONE, name, seen)?.map_or(Settled::Changed, Settled::Done)),
        Ending::Failed(reason) => {
            let Some(moved) = move_into(folder, FAILED, name, seen)? else { return Ok(Settled::Changed) };
            std::fs::write(note_of(&moved.path), format!("{reason}\n"))?;
            Ok(Settled::Failed(moved))
        }
    }
}

/// The files in `failed/`: those that were written to after they had failed, and the others. At most `count_max`.
pub(super) fn failed_before(folder: &Path, count_max: usize) -> (Vec<Moved>, Vec<Moved>) {
    let notes = std::fs::read_dir(folder.join(FAILED)).into_iter().flatten().flatten();
    let found = notes.filter_map(|note| {
        let name = OsString::from_vec(note.file_name().as_bytes().strip_suffix(NOTE)?.to_owned());
        let path = folder.join(FAILED).join(name);
        let (now, noted) = (look(&path).ok()?, look(&note.path()).ok()?);
        Some((now.is_newer_than(&noted), Moved { path, look: now }))
    });
    let (changed, same): (Vec<_>, Vec<_>) = found.take(count_max).partition(|(changed, _)| *changed);
    let moved = |list: Vec<(bool, Moved)>| list.into_iter().map(|(_, moved)| moved).collect();
    (moved(changed), moved(same))
}

impl Moved {
    /// Whether it was written to since; `None` if it is gone.
    pub(super) fn has_changed(&self) -> Option<bool> {
        look(&self.path).ok().map(|now| !now.is_content_of(&self.look))
    }

    /// Moves it back to where it came from.
    pub(super) fn bring_back(&self, folder: &Path) -> io::Result<()> {
        rename_free(&self.path, folder, self.path.file_name().unwrap_or_default())?;
        match std::fs::remove_file(note_of(&self.path)) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn bytes(&self) -> u64 {
        look(&self.path).map_or(0, |look| look.bytes())
    }
}

fn note_of(path: &Path) -> PathBuf {
    let mut note = path.as_os_str().to_owned();
    note.push(OsStr::from_bytes(NOTE));
    note.into()
}

/// `None` if it was not what was `seen`, and is back.
fn move_into(folder: &Path, place: &str, name: &OsStr, seen: &Look) -> io::Result<Option<Moved>> {
    let target = folder.join(place);
    match std::fs::create_dir(&target) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let path = rename_free(&folder.join(name), &target, name)?;
    // One that somebody takes from there at once was what it was.
    let look = look(&path).unwrap_or_else(|_| seen.clone());
    let moved = Moved { path, look };
    if moved.look.is_content_of(seen) {
        return Ok(Some(moved));
    }
    rename_free(&moved.path, folder, name)?;
    Ok(None)
}

/// Moves without overwriting: a camera may write the same name again and again. Returns where it is then.
fn rename_free(from: &Path, folder: &Path, name: &OsStr) -> io::Result<PathBuf> {
    for number in 1..=SAME_NAME_MAX {
        let free = folder.join(numbered(name, number));
        match renameat_with(CWD, from, CWD, &free, RenameFlags::NOREPLACE) {
            Ok(()) => return Ok(free),
            Err(rustix::io::Errno::EXIST) => {}
            // Some file systems cannot do it without overwriting; there the check may come too late.
            Err(rustix::io::Errno::INVAL) if free.exists() => {}
            Err(rustix::io::Errno::INVAL) => return std::fs::rename(from, &free).map(|()| free),
            Err(error) => return Err(error.into()),
        }
    }
    let last = folder.join(numbered(name, SAME_NAME_MAX));
    std::fs::rename(from, &last)?;
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
