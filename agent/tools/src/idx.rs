//! The IDX format of MNIST and its relatives, gzipped: 8-bit gray pictures and their classes.

use std::fs::File;
use std::path::Path;

use anyhow::{Context, bail, ensure};
use flate2::read::GzDecoder;

use crate::read_bounded;

/// The most bytes a file may unpack to: 60,000 pictures of 28 x 28 are 47 MB.
const UNPACKED_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// `unsigned byte`, then the number of dimensions.
const PICTURES: [u8; 4] = [0, 0, 8, 3];
const CLASSES: [u8; 4] = [0, 0, 8, 1];

/// Pictures of one size, one byte per pixel.
#[derive(Debug)]
pub(super) struct GrayPictures {
    pub(super) width: u32,
    pub(super) height: u32,
    pub(super) pixels: Vec<u8>,
}

impl GrayPictures {
    pub(super) fn read(path: &Path) -> anyhow::Result<Self> {
        let bytes = unpack(path, PICTURES)?;
        let [count, height, width] = sizes(&bytes).with_context(|| format!("{} is cut", path.display()))?;
        let pixels = bytes.get(16..).unwrap_or_default().to_vec();
        let expected = [count, height, width].iter().try_fold(1_u64, |all, size| all.checked_mul(u64::from(*size)));
        ensure!(
            expected == Some(pixels.len() as u64) && width > 0 && height > 0,
            "{} claims {count} pictures of {width}x{height}, but holds {} bytes",
            path.display(),
            pixels.len()
        );
        Ok(Self { width, height, pixels })
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &[u8]> {
        self.pixels.chunks_exact(self.width as usize * self.height as usize)
    }
}

/// One class per picture.
pub(super) fn read_classes(path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = unpack(path, CLASSES)?;
    let [count] = sizes(&bytes).with_context(|| format!("{} is cut", path.display()))?;
    let classes = bytes.get(8..).unwrap_or_default().to_vec();
    ensure!(
        classes.len() as u64 == u64::from(count),
        "{} claims {count} classes, but holds {}",
        path.display(),
        classes.len()
    );
    Ok(classes)
}

fn unpack(path: &Path, magic: [u8; 4]) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    let bytes = read_bounded(GzDecoder::new(file), UNPACKED_BYTES_MAX)
        .with_context(|| format!("cannot unpack {} as .gz", path.display()))?;
    if !bytes.starts_with(&magic) {
        bail!("{} is not an IDX file of the expected kind (it must start with {magic:?})", path.display());
    }
    Ok(bytes)
}

/// The sizes that follow the magic number.
fn sizes<const N: usize>(bytes: &[u8]) -> Option<[u32; N]> {
    let mut sizes = [0; N];
    for (size, four) in sizes.iter_mut().zip(bytes.get(4..4 + 4 * N)?.as_chunks::<4>().0) {
        *size = u32::from_be_bytes(*four);
    }
    Some(sizes)
}
