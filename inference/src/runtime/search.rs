//! Where the ONNX Runtime library lies, and whether the file can be one.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use super::RuntimeError;

/// Names the library for programs whose configuration does not.
pub const LIBRARY_VARIABLE: &str = "ORT_DYLIB_PATH";

/// What the files of all versions start with. The execution providers beside it are named otherwise.
const FILE_NAME: &str = "libonnxruntime.so";

/// Our package's own folder, then the system's.
const FOLDERS: [&str; 4] = ["/usr/lib/hedge", "/usr/local/lib", "/usr/lib64", "/usr/lib"];

/// The library to use, as a full path without links.
pub(super) fn find(library: Option<&Path>) -> Result<PathBuf, RuntimeError> {
    if let Some(path) = library {
        return named(path, "the configuration");
    }
    if let Some(path) = std::env::var_os(LIBRARY_VARIABLE).filter(|path| !path.is_empty()) {
        return named(Path::new(&path), LIBRARY_VARIABLE);
    }
    let folders = folders();
    match folders.iter().find_map(|folder| newest_in(folder)) {
        Some(path) => named(&path, "the search"),
        None => {
            let searched: Vec<String> = folders.iter().map(|folder| folder.display().to_string()).collect();
            Err(RuntimeError::NotFound { searched: searched.join(", ") })
        }
    }
}

/// A file, or the newest library in a folder.
fn named(path: &Path, from: &'static str) -> Result<PathBuf, RuntimeError> {
    let inside = if path.is_dir() { newest_in(path) } else { None };
    let path = inside.unwrap_or_else(|| path.to_owned());
    path.canonicalize().map_err(|source| RuntimeError::Unreadable { path, from, source })
}

fn folders() -> Vec<PathBuf> {
    let beside = std::env::current_exe().ok().and_then(|program| program.parent().map(Path::to_owned));
    let multiarch = match std::env::consts::ARCH {
        "arm" => "arm-linux-gnueabihf".to_owned(),
        arch => format!("{arch}-linux-gnu"),
    };
    let mut folders: Vec<PathBuf> = beside.into_iter().chain(FOLDERS.map(PathBuf::from)).collect();
    folders.push(Path::new("/usr/lib").join(multiarch));
    folders
}

/// The library with the highest version in its name. A folder that cannot be read has none.
fn newest_in(folder: &Path) -> Option<PathBuf> {
    let names = std::fs::read_dir(folder).ok()?.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    let newest = names.filter(|name| is_library(name)).max_by_key(|name| numbers(name))?;
    Some(folder.join(newest))
}

fn is_library(name: &str) -> bool {
    name.strip_prefix(FILE_NAME).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
}

fn numbers(name: &str) -> Vec<u32> {
    let version = name.strip_prefix(FILE_NAME).unwrap_or_default();
    version.split('.').filter_map(|part| part.parse().ok()).collect()
}

/// `1.24.4` of `libonnxruntime.so.1.24.4`.
pub(super) fn version_in_name(path: &Path) -> Option<String> {
    let version = path.file_name()?.to_str()?.strip_prefix(FILE_NAME)?.strip_prefix('.')?;
    version.contains('.').then(|| version.to_owned())
}

/// Refuses what the system's loader would refuse in words nobody understands.
pub(super) fn check_file(path: &Path) -> Result<(), RuntimeError> {
    let unreadable = |source| RuntimeError::Unreadable { path: path.to_owned(), from: "the search", source };
    let mut header = Vec::with_capacity(20);
    File::open(path).map_err(unreadable)?.take(20).read_to_end(&mut header).map_err(unreadable)?;
    let &[0x7F, b'E', b'L', b'F', .., machine_low, machine_high] = header.as_slice() else {
        return Err(RuntimeError::NotALibrary { path: path.to_owned() });
    };
    match elf_machine() {
        Some(machine) if machine != u16::from_le_bytes([machine_low, machine_high]) => {
            Err(RuntimeError::OtherProcessor { path: path.to_owned() })
        }
        _ => Ok(()),
    }
}

/// This machine's number in an ELF header (System V ABI, `e_machine`).
fn elf_machine() -> Option<u16> {
    match std::env::consts::ARCH {
        "x86_64" => Some(62),
        "aarch64" => Some(183),
        "arm" => Some(40),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_library_of_a_folder_is_taken() {
        let folder = tempfile::tempdir().expect("a folder");
        for name in [
            "libonnxruntime.so",
            "libonnxruntime.so.1.9.0",
            "libonnxruntime.so.1.24.4",
            "libonnxruntime_providers_shared.so",
            "libonnxruntime.sorry",
        ] {
            std::fs::write(folder.path().join(name), "").expect("a file");
        }
        let newest = newest_in(folder.path()).expect("a library");
        assert_eq!(version_in_name(&newest).as_deref(), Some("1.24.4"));
        assert_eq!(newest_in(&folder.path().join("none")), None);
    }

    #[test]
    fn a_file_that_is_no_library_for_this_machine_is_named() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = |name: &str, bytes: &[u8]| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).expect("a file");
            check_file(&path).expect_err("not usable")
        };
        assert!(matches!(file("text.so", b"hello"), RuntimeError::NotALibrary { .. }));
        assert!(matches!(file("empty.so", b""), RuntimeError::NotALibrary { .. }));
        let mut other = *b"\x7fELF................";
        other[18..].copy_from_slice(&8_u16.to_le_bytes()); // MIPS
        assert!(matches!(file("mips.so", &other), RuntimeError::OtherProcessor { .. }));
        let missing = find(Some(&folder.path().join("none.so"))).expect_err("missing").to_string();
        assert!(missing.contains("none.so") && missing.contains("the configuration"), "{missing}");
    }
}
