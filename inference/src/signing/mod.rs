//! Signatures over model bundles and over the documents that say whose signatures count.
//!
//! A bundle is signed as OpenSSF Model Signing says (`key` method): `model.sig` is a Sigstore bundle with a DSSE
//! envelope over an in-toto statement that names the SHA-256 sum of every file. Which keys count, and which bundle is
//! acceptable, is up to `hedge_core::release`. Only ECDSA over P-256 is read.

mod envelope;
mod folder;
mod key;
mod onnx;

use std::path::{Path, PathBuf};

use crate::BundleError;

pub use envelope::{Envelope, Payload};
pub use folder::{Verified, is_signed, self_contained, sign_folder, verify_folder};
pub use key::{PrivateKey, public_pem, read_public_key};

/// The signature's name in every signed bundle, which `model_signing` of PyPI uses, too.
pub const SIGNATURE: &str = "model.sig";

/// The largest `model.sig`: thousands of files of 100 bytes each.
pub const SIGNATURE_BYTES_MAX: u64 = 1024 * 1024;

/// The most files of a signed bundle.
pub const FILES_MAX: usize = 1024;

/// Why something is not signed, or its signature is not believed. The text names the file and what to do.
#[derive(Debug, thiserror::Error)]
pub enum SigningError {
    #[error("{}: {source}", path.display())]
    Io { path: PathBuf, source: std::io::Error },
    #[error("{0}")]
    Key(String),
    #[error("{what}: {reason}")]
    Malformed { what: String, reason: String },
    #[error("{}: no key that counts has signed it", .0.display())]
    NotByThese(PathBuf),
    #[error("{}: {reason}", path.display())]
    Differs { path: PathBuf, reason: String },
    #[error(transparent)]
    Bundle(#[from] BundleError),
}

impl SigningError {
    fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io { path, source }
    }
}
