//! Which part of a picture is judged.

use serde::Deserialize;

use super::{Fit, PictureInput};

/// A rectangle in fractions of the upright picture's width and height.
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
#[serde(try_from = "Fields")]
pub struct Region {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

/// A region that is not inside the picture.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error(
    "a region lies inside the picture: left and top from 0, width and height above 0, left + width and top + height at most 1"
)]
pub struct InvalidRegion;

/// What rounding may add to 1: 0.7 + 0.3 must be accepted however it was computed.
const ROUNDING: f64 = 1e-6;

/// The largest JPEG that is always decoded at full scale: a full-HD frame. On golden photos of this size the
/// decoder's scaling moves a score by up to 0.035.
const WHOLE_PIXELS_MAX: u64 = 1920 * 1088;

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    left: f64,
    top: f64,
    width: f64,
    height: f64,
}

impl TryFrom<Fields> for Region {
    type Error = InvalidRegion;

    fn try_from(Fields { left, top, width, height }: Fields) -> Result<Self, InvalidRegion> {
        Self::new(left, top, width, height)
    }
}

impl TryFrom<hedge_proto::Rect> for Region {
    type Error = InvalidRegion;

    fn try_from(place: hedge_proto::Rect) -> Result<Self, InvalidRegion> {
        let [left, top, width, height] = [place.left, place.top, place.width, place.height].map(f64::from);
        Self::new(left, top, width, height)
    }
}

/// A rectangle in pixels.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Rect {
    pub(super) left: f64,
    pub(super) top: f64,
    pub(super) width: f64,
    pub(super) height: f64,
}

/// A part of the model's input, in pixels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Inside {
    pub(super) left: u32,
    pub(super) top: u32,
    pub(super) width: u32,
    pub(super) height: u32,
}

impl Region {
    pub const WHOLE: Self = Self { left: 0.0, top: 0.0, width: 1.0, height: 1.0 };

    pub fn new(left: f64, top: f64, width: f64, height: f64) -> Result<Self, InvalidRegion> {
        let inside = |start: f64, size: f64| start >= 0.0 && size > 0.0 && start + size <= 1.0 + ROUNDING;
        if inside(left, width) && inside(top, height) {
            Ok(Self { left, top, width, height })
        } else {
            Err(InvalidRegion)
        }
    }

    /// Left, top, width and height.
    #[must_use]
    pub fn fractions(&self) -> [f64; 4] {
        [self.left, self.top, self.width, self.height]
    }

    /// As it travels with a case; none of the whole picture.
    #[must_use]
    #[expect(clippy::cast_possible_truncation, reason = "fractions; a pixel of 10,000 stays in its place")]
    pub fn view(&self) -> Option<hedge_proto::Rect> {
        let [left, top, width, height] = self.fractions().map(|side| side as f32);
        (*self != Self::WHOLE).then_some(hedge_proto::Rect { left, top, width, height })
    }

    /// The part of an upright picture that the model sees: the region, cut to the model's proportions if it
    /// wants that, and of this the middle share that it was trained to look at. Always at least one pixel, always inside the picture.
    pub(super) fn rect(&self, wanted: &PictureInput, width: u32, height: u32) -> Rect {
        let (full_width, full_height) = (f64::from(width), f64::from(height));
        let region_width = (self.width * full_width).clamp(1.0, full_width);
        let region_height = (self.height * full_height).clamp(1.0, full_height);
        let left = (self.left * full_width).min(full_width - region_width);
        let top = (self.top * full_height).min(full_height - region_height);
        let region = Rect { left, top, width: region_width, height: region_height };
        let fitted = match wanted.fit {
            Fit::Stretch | Fit::Letterbox | Fit::LetterboxTopLeft => region,
            Fit::CentreCrop => region.cut_to(f64::from(wanted.width) / f64::from(wanted.height)),
        };
        fitted.middle(wanted.crop)
    }

    /// How many eighths of its full size a JPEG is decoded at. The decoder's own scaling is coarser than ours,
    /// so it is used on large pictures only and leaves at least three times the size that the model wants.
    pub(super) fn enough_eighths(&self, wanted: &PictureInput, width: u32, height: u32) -> u32 {
        if u64::from(width) * u64::from(height) <= WHOLE_PIXELS_MAX {
            return 8;
        }
        let seen = self.rect(wanted, width, height);
        let enough = |eighths: &u32| {
            let spare = f64::from(*eighths) / 8.0 / 3.0;
            seen.width * spare >= f64::from(wanted.width) && seen.height * spare >= f64::from(wanted.height)
        };
        [1, 2, 4].into_iter().find(enough).unwrap_or(8)
    }
}

impl Rect {
    /// Where this part of a picture comes to lie in the model's input, in pixels of that: all of it, unless it keeps
    /// its proportions and is padded.
    pub(super) fn inside(self, wanted: &PictureInput) -> Inside {
        let (full_width, full_height) = (f64::from(wanted.width), f64::from(wanted.height));
        let scale = (full_width / self.width).min(full_height / self.height);
        // At least one pixel of even the thinnest picture.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a side of the input")]
        let side = |own: f64, full: f64| (own * scale).round().clamp(1.0, full) as u32;
        let (width, height) = match wanted.fit {
            Fit::Stretch | Fit::CentreCrop => (wanted.width, wanted.height),
            Fit::Letterbox | Fit::LetterboxTopLeft => (side(self.width, full_width), side(self.height, full_height)),
        };
        let (left, top) = match wanted.fit {
            Fit::Letterbox => ((wanted.width - width) / 2, (wanted.height - height) / 2),
            _ => (0, 0),
        };
        Inside { left, top, width, height }
    }

    /// The largest centred part with these proportions, on whole pixels as other tools crop.
    fn cut_to(self, width_by_height: f64) -> Self {
        let width = self.width.min((self.height * width_by_height).max(1.0));
        let height = self.height.min((self.width / width_by_height).max(1.0));
        let left = self.left + ((self.width - width) / 2.0).floor();
        let top = self.top + ((self.height - height) / 2.0).floor();
        Self { left, top, width, height }
    }

    /// The centred part with this share of both sides.
    fn middle(self, share: f64) -> Self {
        let width = (self.width * share).max(1.0);
        let height = (self.height * share).max(1.0);
        let left = self.left + (self.width - width) / 2.0;
        let top = self.top + (self.height - height) / 2.0;
        Self { left, top, width, height }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_region_outside_the_picture_is_refused() {
        for (left, top, width, height) in
            [(-0.1, 0.0, 0.5, 0.5), (0.6, 0.0, 0.5, 0.5), (0.0, 0.0, 0.0, 1.0), (f64::NAN, 0.0, 1.0, 1.0)]
        {
            assert_eq!(Region::new(left, top, width, height), Err(InvalidRegion));
        }
        assert!(Region::new(0.7, 0.1, 0.3, 0.9).is_ok());
    }
}
