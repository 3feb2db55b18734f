//! The committed corpus of `fuzz/`, what fuzzing has found included, on every run of the tests.

use std::path::{Path, PathBuf};

/// One file is at most so large: a corpus is small, or nobody replays it.
const FILE_BYTES_MAX: usize = 64 * 1024;

fn fuzz() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz")
}

fn replay(name: &str, decoder: fn(&[u8])) {
    let folder = fuzz().join("corpus").join(name);
    let mut files = 0;
    for entry in std::fs::read_dir(&folder).expect("there is a corpus") {
        let path = entry.expect("reads").path();
        let bytes = std::fs::read(&path).expect("reads");
        assert!(bytes.len() <= FILE_BYTES_MAX, "{} is too large", path.display());
        decoder(&bytes);
        // And what is left of it after a cut, and with a byte changed, at a few places.
        for part in 1..8 {
            let at = bytes.len() * part / 8;
            decoder(&bytes[..at]);
            let mut changed = bytes.clone();
            if let Some(byte) = changed.get_mut(at) {
                *byte ^= 0x55;
                decoder(&changed);
            }
        }
        files += 1;
    }
    assert!(files >= 3, "{} holds {files} files", folder.display());
}

macro_rules! replays {
    ($($decoder:ident)*) => {
        $(
            #[test]
            fn $decoder() {
                replay(stringify!($decoder), super::$decoder);
            }
        )*

        #[test]
        fn every_fuzz_target_is_replayed() {
            let mut replayed: Vec<String> = [$(stringify!($decoder)),*].map(|name| format!("{name}.rs")).into();
            replayed.sort_unstable();
            let targets = std::fs::read_dir(fuzz().join("fuzz_targets")).expect("there are targets");
            let mut targets: Vec<String> =
                targets.map(|entry| entry.expect("reads").file_name().to_string_lossy().into_owned()).collect();
            targets.sort_unstable();
            assert_eq!(replayed, targets);
        }
    };
}

replays! {
    desired
    command
    verdict
    case
    documents
    log
    queue_index
    journal
    http_sample
    open_inference
    manifest
    mjpeg
    length_delimited
    pcm
    rows
    picture
    recording
    series
}
