//! Reads an agent's file of answers as it grows.

use std::fs::File;
use std::io::{ErrorKind, Read as _, Seek as _, SeekFrom};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use hedge_proto::Answer;

/// How much is read at a time; what is left comes with the next call.
const READ_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// A JSON-lines file and how far it has been read.
#[derive(Debug)]
pub struct Sink {
    path: PathBuf,
    offset: u64,
}

impl Sink {
    #[must_use]
    pub fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), offset: 0 }
    }

    /// The answers written since the last call. A line still being written comes with the next one.
    pub fn read_on(&mut self) -> Result<Vec<Answer>> {
        let mut file = match File::open(&self.path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
            file => file.with_context(|| format!("cannot read {}", self.path.display()))?,
        };
        file.seek(SeekFrom::Start(self.offset))?;
        let mut bytes = Vec::new();
        file.take(READ_BYTES_MAX).read_to_end(&mut bytes)?;
        let whole = bytes.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1);
        self.offset += whole as u64;
        let lines = bytes[..whole].split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
        let parse = |line| {
            serde_json::from_slice(line).with_context(|| format!("not an answer: {}", String::from_utf8_lossy(line)))
        };
        lines.map(parse).collect()
    }
}
