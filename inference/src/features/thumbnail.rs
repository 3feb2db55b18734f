//! A picture made small for a thin link: upright, at most so many pixels long, as JPEG, without anything but pixels.

use hedge_proto::Rect;
use jpeg_encoder::{ColorType, Encoder};

use super::content::ContentType;
use super::picture::Picture;
use super::{FeatureError, Region, decoded};

/// For models: at 75 a stored model lost 3 points of accuracy on re-encoded photos, at 90 none.
const QUALITY: u8 = 90;

/// For people who look at many at once.
const PREVIEW_QUALITY: u8 = 45;

/// A JPEG is decoded at a reduced scale only where that leaves so many times the pixels wanted.
const SPARE: u32 = 2;

/// The picture with its longer side at most `side_max`. `None` if it is no longer than that, or is no picture.
pub fn thumbnail(content_type: &ContentType, bytes: &[u8], side_max: u32) -> Result<Option<Vec<u8>>, FeatureError> {
    if !content_type.is_picture() {
        return Ok(None);
    }
    let picture = near(content_type, bytes, side_max)?;
    if picture.width.max(picture.height) <= side_max {
        return Ok(None);
    }
    encode(&picture, side_max, QUALITY).map(Some)
}

/// The pixels of the picture and nothing else that is in its file, with its longer side at most `side_max`. `None` if it
/// is no picture.
pub fn pixels_only(content_type: &ContentType, bytes: &[u8], side_max: u32) -> Result<Option<Vec<u8>>, FeatureError> {
    if !content_type.is_picture() {
        return Ok(None);
    }
    encode(&near(content_type, bytes, side_max)?, side_max, QUALITY).map(Some)
}

/// The upright picture with a frame around each place, as JPEG.
pub fn drawn(content_type: &ContentType, bytes: &[u8], places: &[Rect]) -> Result<Vec<u8>, FeatureError> {
    const FRAME: [u8; 3] = [255, 64, 0];
    let mut picture = decoded(content_type, bytes, |_, _| 8)?.upright_within(u32::MAX).in_colour();
    let (width, height) = (picture.width, picture.height);
    // Thick enough to be seen where a large photo is shown small.
    let thick = (width.max(height) / 300).max(2);
    for place in places {
        // Within the picture, so neither negative nor too large.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture")]
        let at = |share: f32, side: u32| (f64::from(share).clamp(0.0, 1.0) * f64::from(side)) as u32;
        let (left, right) = (at(place.left, width), at(place.left + place.width, width));
        let (top, bottom) = (at(place.top, height), at(place.top + place.height, height));
        for y in top..bottom {
            for x in left..right {
                let edge = x < left + thick || x + thick >= right || y < top + thick || y + thick >= bottom;
                if edge {
                    picture.paint(x, y, FRAME);
                }
            }
        }
    }
    encode(&picture, u32::MAX, QUALITY)
}

/// Width and height of the upright picture, of which boxes name parts. The picture is decoded: one that is damaged has none.
pub fn upright_size(content_type: &ContentType, bytes: &[u8]) -> Result<(u32, u32), FeatureError> {
    let Picture { width, height, orientation, .. } = decoded(content_type, bytes, |_, _| 8)?;
    Ok(orientation.upright(width, height))
}

/// The pixels of a part of the upright picture, its longer side at most `side_max`, as JPEG.
pub fn cropped(
    content_type: &ContentType,
    bytes: &[u8],
    region: &Region,
    side_max: u32,
) -> Result<Vec<u8>, FeatureError> {
    let picture = decoded(content_type, bytes, |_, _| 8)?.upright_within(u32::MAX).part(region);
    encode(&picture, side_max, QUALITY)
}

/// The picture for a list of many: a few kilobytes, whatever it was. `None` if it is no picture.
pub fn preview(content_type: &ContentType, bytes: &[u8], side_max: u32) -> Result<Option<Vec<u8>>, FeatureError> {
    if !content_type.is_picture() {
        return Ok(None);
    }
    encode(&near(content_type, bytes, side_max)?, side_max, PREVIEW_QUALITY).map(Some)
}

/// Decoded not much larger than wanted where that saves work.
fn near(content_type: &ContentType, bytes: &[u8], side_max: u32) -> Result<Picture, FeatureError> {
    let enough = |width: u32, height: u32| {
        let long = width.max(height);
        [1, 2, 4].into_iter().find(|eighths| long * eighths / 8 >= side_max.saturating_mul(SPARE)).unwrap_or(8)
    };
    decoded(content_type, bytes, enough)
}

fn encode(picture: &Picture, side_max: u32, quality: u8) -> Result<Vec<u8>, FeatureError> {
    let small = picture.upright_within(side_max);
    let side = |pixels: u32| u16::try_from(pixels).unwrap_or(u16::MAX);
    let color = if small.channels == 1 { ColorType::Luma } else { ColorType::Rgb };
    let mut jpeg = Vec::new();
    let encoded = Encoder::new(&mut jpeg, quality).encode(&small.pixels, side(small.width), side(small.height), color);
    encoded.map_err(|error| FeatureError::Unsupported { format: "picture", what: error.to_string() })?;
    Ok(jpeg)
}
