//! A file of which a beginning has come.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use hedge_proto::Digest;
use sha2::{Digest as _, Sha256};

/// A file's beginning, and the sum of it.
pub(super) struct Part {
    pub(super) file: File,
    pub(super) length: u64,
    /// How many bytes have come, counted again when they come again.
    pub(super) came: u64,
    sum: Sha256,
}

impl Part {
    pub(super) fn open(path: &Path, bytes_max: u64) -> anyhow::Result<Self> {
        let at = || path.display().to_string();
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path).with_context(at)?;
        let mut part = Self { length: 0, came: 0, sum: Sha256::new(), file: file.try_clone().with_context(at)? };
        let mut piece = vec![0; 64 * 1024];
        loop {
            match file.read(&mut piece).with_context(at)? {
                0 => break,
                read => part.sum.update(piece.get(..read).unwrap_or_default()),
            }
            part.length = file.metadata().with_context(at)?.len();
        }
        if part.length > bytes_max {
            part.begin_again()?;
        }
        Ok(part)
    }

    pub(super) fn add(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.file.write_all(bytes)?;
        self.sum.update(bytes);
        self.length += bytes.len() as u64;
        self.came += bytes.len() as u64;
        Ok(())
    }

    pub(super) fn begin_again(&mut self) -> anyhow::Result<()> {
        self.file.set_len(0)?;
        (self.length, self.sum) = (0, Sha256::new());
        Ok(())
    }

    pub(super) fn has(&self, sum: Digest) -> bool {
        Digest(self.sum.clone().finalize().into()) == sum
    }
}
