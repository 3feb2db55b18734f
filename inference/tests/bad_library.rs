//! A wrong, missing or foreign ONNX Runtime library is one plain sentence, also when a child tries it first.
//!
//! This test has a `main` of its own because `probe_if_asked` must be the first call of the process: the child
//! is this program again.

use std::path::Path;

use hedge_inference::{Runtime, RuntimeError, probe_if_asked};

const NAME: &str = "a_bad_library_is_one_sentence_and_a_good_one_survives_its_trial";

fn main() {
    probe_if_asked();
    if std::env::args().any(|argument| argument == "--list") {
        // What test runners that list first expect.
        if std::env::args().all(|argument| argument != "--ignored") {
            print_line(&format!("{NAME}: test"));
        }
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let text = folder.path().join("libonnxruntime.so");
    std::fs::write(&text, "not a library").expect("a file");
    check(&text, |error| matches!(error, RuntimeError::NotALibrary { .. }));
    check(&folder.path().join("missing.so"), |error| matches!(error, RuntimeError::Unreadable { .. }));

    let broken = folder.path().join("broken.so");
    let mut bytes = std::fs::read("/proc/self/exe").expect("this program");
    bytes.truncate(4096);
    std::fs::write(&broken, bytes).expect("a file");
    // The loader itself may die of it: then only the child did.
    check(&broken, |error| matches!(error, RuntimeError::Failed { .. } | RuntimeError::Crashes { .. }));

    if let Some(other) = some_other_library() {
        check(&other, |error| matches!(error, RuntimeError::NotOnnxRuntime { .. }));
    }
    match Runtime::find(None) {
        Ok(runtime) => {
            check(&text, |error| matches!(error, RuntimeError::OtherLoaded { loaded, .. } if loaded == runtime.path()))
        }
        Err(error @ RuntimeError::NotFound { .. }) => eprintln!("skipped the good library: {error}"),
        Err(error) => panic!("{error}"),
    }
    print_line(&format!("test {NAME} ... ok"));
}

#[track_caller]
fn check(library: &Path, expected: impl Fn(&RuntimeError) -> bool) {
    let error = Runtime::find(Some(library)).expect_err("unusable");
    let found = if let RuntimeError::Known(error) = &error { error } else { &error };
    assert!(expected(found), "{error:?}");
    assert!(error.to_string().contains(&library.display().to_string()), "`{error}` does not name the file");
}

/// A library that this very process has loaded, and so one that can be loaded.
fn some_other_library() -> Option<std::path::PathBuf> {
    let maps = std::fs::read_to_string("/proc/self/maps").ok()?;
    let path = maps.lines().filter_map(|line| line.split_whitespace().nth(5)).find(|path| path.contains("libgcc_s"))?;
    Path::new(path).canonicalize().ok()
}

#[expect(clippy::print_stdout, reason = "this is a program")]
fn print_line(line: &str) {
    println!("{line}");
}
