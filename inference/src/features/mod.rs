//! Makes the model's input tensor from the bytes of a sample.
//!
//! A header's claims are checked before anything is allocated by them, and a decoder's bug costs one sample,
//! not the agent. Whether a sample is small enough to be read at all is up to whoever receives it.

mod audio;
mod content;
mod exif;
mod file;
mod input;
mod jpeg;
mod npy;
mod picture;
mod png;
mod region;
mod resize;
mod series;
mod span;
mod tensor;
mod thumbnail;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant};

pub use audio::wav;
pub use content::{ContentType, DIMENSIONS_MAX, what_else};
pub(crate) use file::samples;
use input::PerChannel;
pub use input::{Color, Fit, Input, Layout, PictureInput, Resize, TENSOR_VALUES_MAX};
pub(crate) use npy::read as read_npy;
pub use picture::Picture;
pub use region::{InvalidRegion, Region};
pub use series::{is_heading, is_heading_again};
pub use tensor::Tensor;
pub use thumbnail::{cropped, drawn, pixels_only, preview, thumbnail, upright_size};

/// The most pixels a picture may claim: what the largest camera modules for small boards deliver.
pub const PIXELS_MAX: u64 = 64 * 1_000_000;

/// The most memory one decode may need. A 24-megapixel progressive JPEG stays below it.
pub const DECODE_BYTES_MAX: usize = 256 * 1024 * 1024;

/// Why a sample is no input for the model. The text is for its sender: what was wrong and what to do.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FeatureError {
    #[error("the sample is said to be {said}, but its bytes are {found}")]
    NotWhatItSays { said: &'static str, found: &'static str },
    #[error("the picture claims {width}x{height} pixels, more than the {PIXELS_MAX} taken; send a smaller one")]
    TooManyPixels { width: u32, height: u32 },
    #[error(
        "decoding the picture takes {bytes} bytes of memory, more than the {DECODE_BYTES_MAX} allowed; send a smaller one"
    )]
    TooMuchMemory { bytes: u64 },
    #[error("the {format} is damaged or incomplete: {reason}")]
    Damaged { format: &'static str, reason: String },
    #[error("this kind of {format} is not read: {what}")]
    Unsupported { format: &'static str, what: String },
    #[error("this is {said}, but the model takes {wanted}")]
    OtherWanted { said: &'static str, wanted: String },
    #[error("the tensor has the shape {shape:?}, but the model takes {expected:?}")]
    WrongShape { shape: Vec<usize>, expected: Vec<usize> },
    #[error("the tensor has {bytes} bytes, but its shape takes {expected} (4 per value, little-endian f32)")]
    WrongLength { bytes: usize, expected: usize },
    #[error("value {index} of the tensor is NaN or infinite")]
    NotFinite { index: usize },
    #[error("{reason}")]
    NoSample { reason: String },
    #[error("the source has a `region`, which only a picture can be cut to; send pictures, or remove the region")]
    RegionOfOther,
}

/// How long the steps from a sample's bytes to its tensor took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct StageTimes {
    pub decode: Duration,
    pub resize: Duration,
    pub normalise: Duration,
}

/// The input tensor for one sample.
pub(crate) fn tensor(
    input: &Input,
    content_type: &ContentType,
    bytes: &[u8],
    region: Option<&Region>,
    times: &mut StageTimes,
) -> Result<Tensor, FeatureError> {
    let begun = Instant::now();
    if !content_type.is_picture() {
        if region.is_some() {
            return Err(FeatureError::RegionOfOther);
        }
        let tensor = numbers(input, content_type, bytes);
        times.decode = begun.elapsed();
        return tensor;
    }
    let wanted = input.picture.as_ref().ok_or_else(|| other_wanted(input, content_type))?;
    let region = region.copied().unwrap_or(Region::WHOLE);
    let picture = decoded(content_type, bytes, |width, height| region.enough_eighths(wanted, width, height))?;
    times.decode = begun.elapsed();
    Ok(picture.to_tensor(input.shape.clone(), wanted, &region, times))
}

/// The input tensor for what is no picture.
fn numbers(input: &Input, content_type: &ContentType, bytes: &[u8]) -> Result<Tensor, FeatureError> {
    let data = match (content_type, &input.audio, &input.series) {
        (ContentType::Tensor { shape }, _, _) => return Tensor::read(shape, bytes, &input.shape),
        (ContentType::Wav, Some(audio), _) => {
            check_kind(content_type, bytes)?;
            audio.values(bytes)?
        }
        (ContentType::Csv | ContentType::Json | ContentType::NdJson, _, Some(series)) => {
            series.values(content_type, bytes)?
        }
        _ => return Err(other_wanted(input, content_type)),
    };
    Ok(Tensor::new(input.shape.clone(), data))
}

fn other_wanted(input: &Input, content_type: &ContentType) -> FeatureError {
    FeatureError::OtherWanted { said: content_type.word(), wanted: input.wanted() }
}

/// The input tensor for a picture that is already decoded.
pub(crate) fn tensor_of(input: &Input, picture: &Picture) -> Result<Tensor, FeatureError> {
    let wanted = input.picture.as_ref().ok_or_else(|| other_wanted(input, &ContentType::Png))?;
    Ok(picture.to_tensor(input.shape.clone(), wanted, &Region::WHOLE, &mut StageTimes::default()))
}

/// The pixels of a picture, at the number of eighths that are enough for its upright size.
fn decoded(
    content_type: &ContentType,
    bytes: &[u8],
    enough_eighths: impl Fn(u32, u32) -> u32,
) -> Result<Picture, FeatureError> {
    check_kind(content_type, bytes)?;
    let decode = || match content_type {
        ContentType::Jpeg => jpeg::decode(bytes, enough_eighths),
        _ => png::decode(bytes),
    };
    catch_unwind(AssertUnwindSafe(decode)).unwrap_or_else(|_| {
        Err(FeatureError::Damaged { format: content_type.word(), reason: "the decoder gave up on it".into() })
    })
}

fn check_kind(content_type: &ContentType, bytes: &[u8]) -> Result<(), FeatureError> {
    let found = match ContentType::sniff(bytes) {
        Some(found) if found == *content_type => return Ok(()),
        Some(other) => other.word(),
        None if bytes.is_empty() => "none at all",
        None => {
            what_else(bytes).unwrap_or(if content_type.is_picture() { "neither JPEG nor PNG" } else { "no WAV file" })
        }
    };
    Err(FeatureError::NotWhatItSays { said: content_type.word(), found })
}

fn check_pixels(width: u32, height: u32) -> Result<(), FeatureError> {
    if u64::from(width) * u64::from(height) > PIXELS_MAX {
        return Err(FeatureError::TooManyPixels { width, height });
    }
    Ok(())
}

fn check_memory(bytes: u64) -> Result<(), FeatureError> {
    if bytes > DECODE_BYTES_MAX as u64 {
        return Err(FeatureError::TooMuchMemory { bytes });
    }
    Ok(())
}
