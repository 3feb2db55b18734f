//! Text files that people write: bounded, without a byte order mark.

use std::fs::File;
use std::io::{Error, ErrorKind, Read, Result};
use std::path::Path;

/// The largest text file: 65,536 labels of 64 characters.
const TEXT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Reads a UTF-8 file whole. The error says how a file in another encoding was saved.
pub fn read_text(path: &Path) -> Result<String> {
    hedge_proto::text(read(path)?).map_err(invalid)
}

/// Like [`read_text`] for a token or a password: without the white space around it.
pub fn read_secret(path: &Path) -> Result<String> {
    Ok(read_text(path)?.trim().to_owned())
}

/// Like [`read_text`] for PEM, which may have remarks in any encoding beside it.
pub fn read_pem(path: &Path) -> Result<Vec<u8>> {
    hedge_proto::without_mark(read(path)?).map_err(invalid)
}

fn invalid(error: hedge_proto::NotText) -> Error {
    Error::new(ErrorKind::InvalidData, error)
}

fn read(path: &Path) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.take(TEXT_BYTES_MAX + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > TEXT_BYTES_MAX {
        return Err(Error::new(ErrorKind::InvalidData, format!("it has more than {TEXT_BYTES_MAX} bytes")));
    }
    Ok(bytes)
}
