//! The name of a file inside a bundle's folder.

use std::path::{Component, Path, PathBuf};

use serde::Deserialize;

/// A file inside the bundle's folder: a bundle stays whole when it is copied, and reads nothing else.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct BundleFile(PathBuf);

impl BundleFile {
    #[must_use]
    pub fn as_path(&self) -> &Path {
        &self.0
    }
}

impl TryFrom<String> for BundleFile {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        let path = PathBuf::from(&text);
        if !text.is_empty() && path.components().all(|part| matches!(part, Component::Normal(_))) {
            Ok(Self(path))
        } else {
            Err(format!("`{text}` is not the name of a file inside the bundle's folder"))
        }
    }
}
