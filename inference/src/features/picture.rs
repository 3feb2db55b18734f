//! Pixels to the model's values: cut, resize, turn, normalise, lay out.

use std::time::Instant;

use super::region::{Inside, Rect, Region};
use super::resize::resize;
use super::{Color, Layout, PictureInput, Resize};
use super::{FeatureError, StageTimes, Tensor, check_pixels};

/// A decoded picture as it lies in its file: 8 bits per sample, row by row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Picture {
    pub(super) width: u32,
    pub(super) height: u32,
    /// 1 gray, 2 gray and alpha, 3 RGB, 4 RGB and alpha. Alpha is dropped.
    pub(super) channels: usize,
    pub(super) pixels: Vec<u8>,
    pub(super) orientation: Orientation,
}

/// How a stored picture is turned upright: a point of the upright picture lies in the stored one at the same
/// place after swapping its coordinates, then counting each from the far side, as these three say.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Orientation {
    swap: bool,
    flip_x: bool,
    flip_y: bool,
}

impl Orientation {
    pub(super) const UPRIGHT: Self = Self::new(false, false, false);

    const fn new(swap: bool, flip_x: bool, flip_y: bool) -> Self {
        Self { swap, flip_x, flip_y }
    }

    /// The eight values of EXIF 2.32, 4.6.4 A.
    pub(super) fn from_exif(value: u32) -> Option<Self> {
        let (swap, flip_x, flip_y) = match value {
            1 => (false, false, false),
            2 => (false, true, false),
            3 => (false, true, true),
            4 => (false, false, true),
            5 => (true, false, false),
            6 => (true, false, true),
            7 => (true, true, true),
            8 => (true, true, false),
            _ => return None,
        };
        Some(Self::new(swap, flip_x, flip_y))
    }

    /// Width and height as seen upright, or back again: the same swap does both.
    pub(super) fn upright(self, width: u32, height: u32) -> (u32, u32) {
        if self.swap { (height, width) } else { (width, height) }
    }

    fn stored_rect(self, upright: Rect, stored_width: u32, stored_height: u32) -> Rect {
        let Rect { left, top, width, height } = upright;
        let (left, top, width, height) =
            if self.swap { (top, left, height, width) } else { (left, top, width, height) };
        Rect {
            left: if self.flip_x { f64::from(stored_width) - left - width } else { left },
            top: if self.flip_y { f64::from(stored_height) - top - height } else { top },
            width,
            height,
        }
    }

    /// The index of the stored pixel for an upright one.
    fn stored_index(self, x: usize, y: usize, stored_width: usize, stored_height: usize) -> usize {
        let (x, y) = if self.swap { (y, x) } else { (x, y) };
        let x = if self.flip_x { stored_width - 1 - x } else { x };
        let y = if self.flip_y { stored_height - 1 - y } else { y };
        y * stored_width + x
    }
}

impl Picture {
    /// A gray picture from its bytes, one per pixel.
    pub fn gray(width: u32, height: u32, pixels: Vec<u8>) -> Result<Self, FeatureError> {
        check_pixels(width, height)?;
        let expected = u64::from(width) * u64::from(height);
        if width == 0 || height == 0 || pixels.len() as u64 != expected {
            let reason = format!("{} bytes for {width}x{height} pixels", pixels.len());
            return Err(FeatureError::Damaged { format: "picture", reason });
        }
        Ok(Self { width, height, channels: 1, pixels, orientation: Orientation::UPRIGHT })
    }

    /// The model's input for the region of the picture, in the model's layout.
    pub(crate) fn to_tensor(
        &self,
        shape: Vec<usize>,
        wanted: &PictureInput,
        region: &Region,
        times: &mut StageTimes,
    ) -> Tensor {
        let (width, height) = self.orientation.upright(self.width, self.height);
        let seen = region.rect(wanted, width, height);
        let inside = seen.inside(wanted);
        let stored = self.orientation.stored_rect(seen, self.width, self.height);
        let (stored_width, stored_height) = self.orientation.upright(inside.width, inside.height);
        let channels = wanted.color.channels();
        let [columns, rows, left, top] =
            [inside.width, inside.height, inside.left, inside.top].map(|side| side as usize);
        let (full_columns, full_rows) = (wanted.width as usize, wanted.height as usize);
        let normalise = |pixel: u8, channel: usize| (f32::from(pixel) - wanted.mean[channel]) / wanted.std[channel];
        let place = |x: usize, y: usize, channel: usize| match wanted.layout {
            Layout::Nchw => (channel * full_rows + y) * full_columns + x,
            Layout::Nhwc => (y * full_columns + x) * channels + channel,
        };
        let mut data = vec![0.0; full_columns * full_rows * channels];
        for channel in 0..channels {
            let pixel = |row, column| self.value(row, column, wanted.color, channel);
            let begun = Instant::now();
            let small = resize(pixel, stored, stored_width, stored_height, wanted.resize);
            let resized = Instant::now();
            if (columns, rows) != (full_columns, full_rows) {
                let padding = normalise(wanted.pad, channel);
                let all = (0..full_rows).flat_map(|y| (0..full_columns).map(move |x| (x, y)));
                all.for_each(|(x, y)| data[place(x, y, channel)] = padding);
            }
            for (y, x) in (0..rows).flat_map(|y| (0..columns).map(move |x| (y, x))) {
                let from = self.orientation.stored_index(x, y, stored_width as usize, stored_height as usize);
                data[place(left + x, top + y, channel)] = normalise(small[from], channel);
            }
            times.resize += resized - begun;
            times.normalise += resized.elapsed();
        }
        Tensor { shape, data, frame: frame(seen, inside, wanted, (width, height)) }
    }

    /// The whole picture upright, gray or RGB, its longer side at most `side_max`.
    pub(super) fn upright_within(&self, side_max: u32) -> Self {
        let (width, height) = self.orientation.upright(self.width, self.height);
        let scale = (f64::from(side_max.max(1)) / f64::from(width.max(height))).min(1.0);
        // Positive, and at most what it was.
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "from 1 to a u32's own value")]
        let side = |full: u32| (f64::from(full) * scale).round().max(1.0) as u32;
        let (width, height) = (side(width), side(height));
        let (stored_width, stored_height) = self.orientation.upright(width, height);
        let whole = Rect { left: 0.0, top: 0.0, width: f64::from(self.width), height: f64::from(self.height) };
        let (color, channels) = if self.channels < 3 { (Color::Gray, 1) } else { (Color::Rgb, 3) };
        let mut pixels = vec![0; width as usize * height as usize * channels];
        for channel in 0..channels {
            let pixel = |row, column| self.value(row, column, color, channel);
            let small = resize(pixel, whole, stored_width, stored_height, Resize::Bicubic);
            let places = (0..height as usize).flat_map(|y| (0..width as usize).map(move |x| (x, y)));
            for (at, (x, y)) in places.enumerate() {
                let from = self.orientation.stored_index(x, y, stored_width as usize, stored_height as usize);
                pixels[at * channels + channel] = small[from];
            }
        }
        Self { width, height, channels, pixels, orientation: Orientation::UPRIGHT }
    }

    /// The same in red, green and blue.
    pub(super) fn in_colour(mut self) -> Self {
        if self.channels == 1 {
            self.pixels = self.pixels.iter().flat_map(|gray| [*gray; 3]).collect();
            self.channels = 3;
        }
        self
    }

    /// Colours one pixel of an upright picture of three channels.
    pub(super) fn paint(&mut self, x: u32, y: u32, colour: [u8; 3]) {
        let at = (y as usize * self.width as usize + x as usize) * self.channels;
        if let Some(pixel) = self.pixels.get_mut(at..at + self.channels) {
            pixel.copy_from_slice(&colour[..self.channels]);
        }
    }

    /// A part of an upright picture, on whole pixels; at least one.
    pub(super) fn part(&self, region: &Region) -> Self {
        let [left, top, width, height] = region.fractions();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture")]
        let span = |start: f64, size: f64, side: u32| {
            let from = (start * f64::from(side)).round().clamp(0.0, f64::from(side - 1)) as u32;
            let to = ((start + size) * f64::from(side)).round().clamp(f64::from(from + 1), f64::from(side)) as u32;
            (from as usize, to as usize)
        };
        let ((left, right), (top, bottom)) = (span(left, width, self.width), span(top, height, self.height));
        let row = |y: usize| {
            let start = y * self.width as usize;
            &self.pixels[(start + left) * self.channels..(start + right) * self.channels]
        };
        let pixels = (top..bottom).flat_map(row).copied().collect();
        let side = |from: usize, to: usize| u32::try_from(to - from).unwrap_or(u32::MAX);
        let (width, height) = (side(left, right), side(top, bottom));
        Self { width, height, channels: self.channels, pixels, orientation: Orientation::UPRIGHT }
    }

    /// A stored pixel in one of the model's colours. Alpha is dropped.
    fn value(&self, row: usize, column: usize, color: Color, channel: usize) -> u8 {
        let at = (row * self.width as usize + column) * self.channels;
        let pixel = &self.pixels[at..at + self.channels];
        match (pixel, color) {
            ([gray] | [gray, _], _) => *gray,
            (_, Color::Rgb) => pixel[channel],
            (_, Color::Bgr) => pixel[2 - channel],
            (_, Color::Gray) => luma(pixel[0], pixel[1], pixel[2]),
        }
    }
}

/// Where the edges of the model's input lie in the upright picture: `seen` is that part of it that comes to lie inside.
#[expect(clippy::cast_possible_truncation, reason = "fractions; a pixel of 10,000 stays in its place")]
fn frame(seen: Rect, inside: Inside, wanted: &PictureInput, (width, height): (u32, u32)) -> hedge_proto::Rect {
    let along = |start: f64, size: f64, pixels: u32, offset: u32, full: u32, of: u32| {
        let pixel = size / f64::from(pixels);
        let (start, size) = (start - f64::from(offset) * pixel, f64::from(full) * pixel);
        ((start / f64::from(of)) as f32, (size / f64::from(of)) as f32)
    };
    let (left, across) = along(seen.left, seen.width, inside.width, inside.left, wanted.width, width);
    let (top, down) = along(seen.top, seen.height, inside.height, inside.top, wanted.height, height);
    hedge_proto::Rect { left, top, width: across, height: down }
}

/// ITU-R BT.601 luma in 16-bit fixed point. The weights add up to 65536, so gray stays gray.
fn luma(red: u8, green: u8, blue: u8) -> u8 {
    let sum = 19_595 * u32::from(red) + 38_470 * u32::from(green) + 7_471 * u32::from(blue) + 0x8000;
    u8::try_from(sum >> 16).unwrap_or(u8::MAX)
}

#[cfg(test)]
mod tests {
    use super::super::{Fit, Resize};
    use super::*;

    fn wanted(width: u32, height: u32, color: Color, layout: Layout) -> PictureInput {
        let channels = color.channels();
        PictureInput {
            width,
            height,
            layout,
            color,
            resize: Resize::Bicubic,
            fit: Fit::CentreCrop,
            crop: 1.0,
            pad: 0,
            mean: vec![0.0; channels],
            std: vec![1.0; channels],
        }
    }

    fn values(picture: &Picture, wanted: &PictureInput) -> Vec<f32> {
        picture.to_tensor(Vec::new(), wanted, &Region::WHOLE, &mut StageTimes::default()).data
    }

    #[test]
    fn a_picture_of_the_models_own_size_is_taken_as_it_is() {
        let picture = Picture::gray(3, 2, vec![1, 2, 3, 4, 5, 6]).expect("a picture");
        assert_eq!(values(&picture, &wanted(3, 2, Color::Gray, Layout::Nchw)), [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    }

    #[test]
    fn layouts_and_colours_end_up_where_the_model_looks_for_them() {
        let pixels = vec![10, 20, 30, 255, 11, 21, 31, 0];
        let picture = Picture { width: 2, height: 1, channels: 4, pixels, orientation: Orientation::UPRIGHT };
        let rgb = |layout| values(&picture, &wanted(2, 1, Color::Rgb, layout));
        assert_eq!(rgb(Layout::Nchw), [10.0, 11.0, 20.0, 21.0, 30.0, 31.0]);
        assert_eq!(rgb(Layout::Nhwc), [10.0, 20.0, 30.0, 11.0, 21.0, 31.0]);
        assert_eq!(values(&picture, &wanted(2, 1, Color::Bgr, Layout::Nhwc)), [30.0, 20.0, 10.0, 31.0, 21.0, 11.0]);
        assert_eq!(values(&picture, &wanted(2, 1, Color::Gray, Layout::Nchw)), [18.0, 19.0]);
    }

    #[test]
    fn each_exif_orientation_shows_the_same_upright_picture() {
        // Upright is 1 2 3 / 4 5 6; each row is how a camera held that way would have stored it.
        for (value, width, stored) in [
            (1, 3, [1, 2, 3, 4, 5, 6]),
            (2, 3, [3, 2, 1, 6, 5, 4]),
            (3, 3, [6, 5, 4, 3, 2, 1]),
            (4, 3, [4, 5, 6, 1, 2, 3]),
            (5, 2, [1, 4, 2, 5, 3, 6]),
            (6, 2, [3, 6, 2, 5, 1, 4]),
            (7, 2, [6, 3, 5, 2, 4, 1]),
            (8, 2, [4, 1, 5, 2, 6, 3]),
        ] {
            let orientation = Orientation::from_exif(value).expect("a known orientation");
            let picture = Picture { width, height: 6 / width, channels: 1, pixels: stored.to_vec(), orientation };
            let upright = values(&picture, &wanted(3, 2, Color::Gray, Layout::Nchw));
            assert_eq!(upright, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0], "orientation {value}");
        }
    }

    #[test]
    fn a_smaller_picture_is_upright_and_keeps_its_proportions() {
        let orientation = Orientation::from_exif(6).expect("a known orientation");
        let pixels = (0..8 * 4 * 3).map(|at| if at % (8 * 3) < 4 * 3 { 200 } else { 10 }).collect();
        let picture = Picture { width: 8, height: 4, channels: 3, pixels, orientation };
        let small = picture.upright_within(4);
        assert_eq!((small.width, small.height, small.channels), (2, 4, 3));
        assert!(small.pixels[0] > 190 && small.pixels[small.pixels.len() - 1] < 20, "{:?}", small.pixels);
        let same = picture.upright_within(100);
        assert_eq!((same.width, same.height), (4, 8));
    }

    #[test]
    fn the_middle_of_a_wide_picture_is_seen_and_a_region_moves_it() {
        let picture = Picture::gray(4, 2, vec![1, 2, 3, 4, 1, 2, 3, 4]).expect("a picture");
        let square = wanted(2, 2, Color::Gray, Layout::Nchw);
        assert_eq!(values(&picture, &square), [2.0, 3.0, 2.0, 3.0]);
        let right = Region::new(0.5, 0.0, 0.5, 1.0).expect("a region");
        let seen = picture.to_tensor(Vec::new(), &square, &right, &mut StageTimes::default());
        assert_eq!(seen.data, [3.0, 4.0, 3.0, 4.0]);
        assert_eq!(seen.frame, hedge_proto::Rect { left: 0.5, top: 0.0, width: 0.5, height: 1.0 });
    }

    #[test]
    fn a_letterbox_shows_all_in_proportion_and_its_frame_reaches_beyond_the_picture() {
        let picture = Picture::gray(4, 2, vec![1, 2, 3, 4, 1, 2, 3, 4]).expect("a picture");
        let padded = |fit| {
            let wanted = PictureInput { fit, pad: 9, ..wanted(4, 4, Color::Gray, Layout::Nchw) };
            picture.to_tensor(Vec::new(), &wanted, &Region::WHOLE, &mut StageTimes::default())
        };
        let middle = padded(Fit::Letterbox);
        assert_eq!(middle.data, [9.0, 9.0, 9.0, 9.0, 1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0, 9.0, 9.0, 9.0, 9.0]);
        assert_eq!(middle.frame, hedge_proto::Rect { left: 0.0, top: -0.5, width: 1.0, height: 2.0 });
        let corner = padded(Fit::LetterboxTopLeft);
        assert_eq!(corner.data[..8], [1.0, 2.0, 3.0, 4.0, 1.0, 2.0, 3.0, 4.0]);
        assert_eq!(corner.frame, hedge_proto::Rect { left: 0.0, top: 0.0, width: 1.0, height: 2.0 });
    }
}
