//! What a model takes, as the manifest's `[input]` says it; every field that cannot be meant is refused in its words.

use serde::Deserialize;

use super::audio::{AudioFields, AudioInput};
use super::series::{SeriesFields, SeriesInput};
use super::{ContentType, FeatureError, Picture, Region, StageTimes, Tensor};

/// The most values one input tensor holds: 64 MiB of f32, an RGB picture of 2300 × 2300.
pub const TENSOR_VALUES_MAX: usize = 16 * 1024 * 1024;

/// The most dimensions of an input tensor.
const DIMENSIONS_MAX: usize = 6;

/// What the model takes.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(try_from = "InputFields")]
pub struct Input {
    pub name: String,
    /// The whole shape, with a leading 1 for one sample at a time.
    pub shape: Vec<usize>,
    /// How a sample becomes numbers; at most one of the three. Tensors are always taken.
    pub picture: Option<PictureInput>,
    pub(super) audio: Option<AudioInput>,
    pub(super) series: Option<SeriesInput>,
}

impl Input {
    /// Its samples are numbers already.
    #[must_use]
    pub fn is_numbers(&self) -> bool {
        self.picture.is_none() && self.audio.is_none() && self.series.is_none()
    }
}

/// How a picture becomes the model's input: `value = (pixel - mean) / std`, pixels from 0 to 255.
#[derive(Debug, Clone, PartialEq)]
pub struct PictureInput {
    pub width: u32,
    pub height: u32,
    pub layout: Layout,
    pub color: Color,
    pub resize: Resize,
    pub fit: Fit,
    /// The share of both sides that the model sees of what `fit` leaves: its middle. 1 is all.
    pub crop: f64,
    /// The pixels of a letterbox that are none of the picture's.
    pub pad: u8,
    /// One number per channel.
    pub mean: Vec<f32>,
    pub std: Vec<f32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Layout {
    Nchw,
    Nhwc,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Color {
    Rgb,
    Bgr,
    Gray,
}

impl Layout {
    /// As the manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Nchw => "nchw",
            Self::Nhwc => "nhwc",
        }
    }
}

impl Resize {
    /// As the manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Bicubic => "bicubic",
            Self::Bilinear => "bilinear",
        }
    }
}

impl Fit {
    /// As the manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::CentreCrop => "centre_crop",
            Self::Stretch => "stretch",
            Self::Letterbox => "letterbox",
            Self::LetterboxTopLeft => "letterbox_top_left",
        }
    }
}

impl Color {
    /// As the manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
            Self::Gray => "gray",
        }
    }

    #[must_use]
    pub fn channels(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Gray => 1,
        }
    }
}

/// Both are antialiased: every source pixel counts when a picture shrinks.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Resize {
    #[default]
    Bicubic,
    Bilinear,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Fit {
    /// Cuts the longer sides off, keeping proportions.
    #[default]
    CentreCrop,
    /// Shows the whole picture, out of proportion.
    Stretch,
    /// Shows the whole picture in proportion, in the middle of padding.
    Letterbox,
    /// The same with the picture in the corner that all counting begins at.
    LetterboxTopLeft,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct InputFields {
    name: String,
    shape: Vec<usize>,
    picture: Option<PictureFields>,
    audio: Option<AudioFields>,
    series: Option<SeriesFields>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct PictureFields {
    layout: Layout,
    color: Color,
    #[serde(default)]
    resize: Resize,
    #[serde(default)]
    fit: Fit,
    #[serde(default = "whole")]
    crop: f64,
    #[serde(default)]
    pad: u8,
    mean: PerChannel,
    std: PerChannel,
}

fn whole() -> f64 {
    1.0
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum PerChannel {
    All(f32),
    Each(Vec<f32>),
}

impl PerChannel {
    pub(super) fn spread(self, field: &str, channels: usize) -> Result<Vec<f32>, String> {
        let values = match self {
            Self::All(value) => vec![value; channels],
            Self::Each(values) if values.len() == channels => values,
            Self::Each(values) => {
                let count = values.len();
                return Err(format!(
                    "`{field}` has {count} numbers for {channels} channels; give one for all or one for each"
                ));
            }
        };
        match values.iter().find(|value| !value.is_finite()) {
            Some(value) => Err(format!("`{field}` holds {value}, which is not a number to calculate with")),
            None => Ok(values),
        }
    }
}

impl TryFrom<InputFields> for Input {
    type Error = String;

    fn try_from(fields: InputFields) -> Result<Self, String> {
        let InputFields { name, shape, picture, audio, series } = fields;
        if !(2..=DIMENSIONS_MAX).contains(&shape.len()) || shape[0] != 1 {
            return Err(format!(
                "`shape` = {shape:?} must start with 1 (one sample at a time) and have 2 to {DIMENSIONS_MAX} dimensions"
            ));
        }
        match shape.iter().try_fold(1_usize, |product, &size| product.checked_mul(size)) {
            Some(1..=TENSOR_VALUES_MAX) => {}
            _ => return Err(format!("`shape` = {shape:?} must hold 1 to {TENSOR_VALUES_MAX} values")),
        }
        if [picture.is_some(), audio.is_some(), series.is_some()].iter().filter(|is_there| **is_there).count() > 1 {
            return Err("a model takes pictures, sound or series: give one of the three tables".into());
        }
        let picture = picture.map(|fields| PictureInput::new(fields, &shape)).transpose()?;
        let audio = audio.map(|fields| AudioInput::new(fields, &shape)).transpose()?;
        let series = series.map(|fields| SeriesInput::new(fields, &shape)).transpose()?;
        Ok(Self { name, shape, picture, audio, series })
    }
}

impl Input {
    /// The input tensor for a sample. Needs no ONNX Runtime.
    pub fn tensor(
        &self,
        content_type: &ContentType,
        bytes: &[u8],
        region: Option<&Region>,
    ) -> Result<Tensor, FeatureError> {
        super::tensor(self, content_type, bytes, region, &mut StageTimes::default())
    }

    /// What the model takes, in words.
    #[must_use]
    pub fn wanted(&self) -> String {
        let shape = &self.shape;
        match (&self.picture, &self.audio, &self.series) {
            (Some(_), _, _) => "pictures (image/jpeg or image/png)".to_owned(),
            (_, Some(_), _) => "sound (audio/wav)".to_owned(),
            (_, _, Some(_)) => "rows of numbers (text/csv, application/json or application/x-ndjson)".to_owned(),
            _ => format!("only tensors of shape {shape:?}"),
        }
    }

    /// The input tensor for a picture that is already decoded.
    pub fn tensor_of(&self, picture: &Picture) -> Result<Tensor, FeatureError> {
        super::tensor_of(self, picture)
    }

    /// The input tensors of a file: one of a picture, one or more of numbers.
    pub fn samples(&self, bytes: &[u8]) -> Result<Vec<Tensor>, FeatureError> {
        super::samples(self, bytes)
    }
}

impl PictureInput {
    fn new(fields: PictureFields, shape: &[usize]) -> Result<Self, String> {
        let PictureFields { layout, color, resize, fit, crop, pad, mean, std } = fields;
        let (channels, height, width) = match (layout, shape) {
            (Layout::Nchw, &[_, channels, height, width]) | (Layout::Nhwc, &[_, height, width, channels]) => {
                (channels, height, width)
            }
            _ => return Err(format!("a picture needs a `shape` of 4 dimensions, not {shape:?}")),
        };
        if channels != color.channels() {
            return Err(format!(
                "`shape` = {shape:?} as {} has {channels} channels, but `color` = \"{}\" has {}",
                layout.word(),
                color.word(),
                color.channels()
            ));
        }
        let mean = mean.spread("mean", channels)?;
        let std = std.spread("std", channels)?;
        if std.contains(&0.0) {
            return Err("`std` is divided by and must not be 0".into());
        }
        if !(crop > 0.0 && crop <= 1.0) {
            return Err(format!(
                "`crop` = {crop} is not a share of the picture: above 0 and at most 1; 0.875 is \"resize to 256, crop 224\""
            ));
        }
        // Within TENSOR_VALUES_MAX, so neither can exceed u32.
        let side = |pixels: usize| u32::try_from(pixels).map_err(|error| error.to_string());
        Ok(Self { width: side(width)?, height: side(height)?, layout, color, resize, fit, crop, pad, mean, std })
    }
}
