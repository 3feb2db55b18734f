//! Fashion-MNIST pictures with their labels: the test images from `models/fashion-test`, or those of another folder.

use std::fs::File;
use std::io::Read as _;
use std::path::Path;

use anyhow::{Context, Result, bail, ensure};
use flate2::read::GzDecoder;
use hedge_core::chance::Chance;

use crate::places;

/// Pixels on each side of a picture.
const SIDE: usize = 28;

/// A file larger than this is not of the data set, whose training images have 60,000 × 784 bytes.
const FILE_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// Pictures with the name of what they show.
#[derive(Debug)]
pub struct Fashion {
    pixels: Vec<u8>,
    classes: Vec<u8>,
    labels: Vec<String>,
}

impl Fashion {
    pub fn load() -> Result<Self> {
        Self::read(&places::model("fashion-test").join("t10k-images-idx3-ubyte.gz"))
    }

    /// `…images-idx3-ubyte.gz`, with `…labels-idx1-ubyte.gz` beside it.
    pub fn read(images: &Path) -> Result<Self> {
        let name = images.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        let pixels = idx(images, 3)?;
        let classes = idx(&images.with_file_name(name.replace("images-idx3", "labels-idx1")), 1)?;
        ensure!(pixels.len() == classes.len() * SIDE * SIDE, "{}: pictures and labels differ", images.display());
        let labels = places::model("fashion-small").join("labels.txt");
        let labels = std::fs::read_to_string(&labels).with_context(|| format!("cannot read {}", labels.display()))?;
        let labels: Vec<_> = labels.lines().map(str::to_owned).collect();
        ensure!(classes.iter().all(|class| usize::from(*class) < labels.len()), "a picture's class has no label");
        Ok(Self { pixels, classes, labels })
    }

    /// How many pictures there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.classes.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.classes.is_empty()
    }

    /// What picture `index` shows.
    #[must_use]
    pub fn label(&self, index: usize) -> &str {
        &self.labels[usize::from(self.classes[index])]
    }

    /// Picture `index` as a grey PNG.
    pub fn png(&self, index: usize) -> Result<Vec<u8>> {
        grey_png(SIDE, &self.pixels[index * SIDE * SIDE..(index + 1) * SIDE * SIDE])
    }

    /// The same as a camera takes it in the dark. Each `seed` makes other noise.
    pub fn noisy_png(&self, index: usize, seed: u64) -> Result<Vec<u8>> {
        let mut chance = Chance::from_seed(seed);
        // The sum of four dice is as good as a normal distribution here; it deviates by about 25 levels.
        let noise = |chance: &mut Chance| (0..4).map(|_| chance.share() - 0.5).sum::<f64>() * 43.0;
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to a byte")]
        let noisy = |pixel: &u8| (f64::from(*pixel) + noise(&mut chance)).clamp(0.0, 255.0) as u8;
        let pixels: Vec<u8> = self.pixels[index * SIDE * SIDE..(index + 1) * SIDE * SIDE].iter().map(noisy).collect();
        grey_png(SIDE, &pixels)
    }
}

/// A picture that shows nothing, in about `bytes` bytes: noise cannot be packed. Each `seed` makes another one.
pub fn noise_png(bytes: usize, seed: u64) -> Result<Vec<u8>> {
    let side = bytes.isqrt();
    let mut state = seed | 1;
    let pixels: Vec<u8> = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_be_bytes()[3]
    })
    .take(side * side)
    .collect();
    grey_png(side, &pixels)
}

fn grey_png(side: usize, pixels: &[u8]) -> Result<Vec<u8>> {
    let mut file = Vec::new();
    let side = u32::try_from(side)?;
    let mut encoder = png::Encoder::new(&mut file, side, side);
    encoder.set_color(png::ColorType::Grayscale);
    encoder.set_depth(png::BitDepth::Eight);
    let mut writer = encoder.write_header()?;
    writer.write_image_data(pixels)?;
    writer.finish()?;
    Ok(file)
}

/// The bytes of a gzipped IDX file after its header of `dimensions` sizes.
fn idx(path: &Path, dimensions: usize) -> Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut bytes = Vec::new();
    GzDecoder::new(file).take(FILE_BYTES_MAX).read_to_end(&mut bytes)?;
    let header = 4 + 4 * dimensions;
    if bytes.len() < header || usize::from(bytes[3]) != dimensions {
        bail!("{} is not an IDX file of {dimensions} dimensions", path.display());
    }
    bytes.drain(..header);
    Ok(bytes)
}
