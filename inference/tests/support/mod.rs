//! What the tests of this crate share.
#![allow(dead_code, reason = "each test file uses a part")]

use std::path::PathBuf;

use hedge_inference::bundle::Input;
use hedge_inference::{Runtime, RuntimeError};

pub(crate) fn models() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../models")
}

/// The library, or a word on stderr that the test did not run. Any other trouble fails the test.
pub(crate) fn runtime() -> Option<Runtime> {
    match Runtime::find(None) {
        Ok(runtime) => Some(runtime),
        Err(error @ RuntimeError::NotFound { .. }) => {
            eprintln!("skipped: {error}");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

/// Takes RGB of 32 x 32 and leaves the pixels as they are.
pub(crate) fn photo_input() -> Input {
    let text = r#"
        name = "input"
        shape = [1, 3, 32, 32]
        picture = { layout = "nchw", color = "rgb", mean = 0, std = 1 }
    "#;
    toml::from_str(text).expect("an input")
}
