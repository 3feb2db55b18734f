//! Antialiased resizing of one colour of a picture, to the bit as the tools that models are trained with do it.
//!
//! An INT8 model turns on single pixels: the fast library we had before was off by one in 4 of 100,000 values
//! and a golden photo got another answer. So this is plain arithmetic in their order: cut first, so that
//! nothing outside shines in; then across, then down, each rounded to 8 bits, with weights of 22 bits.

use super::Resize;
use super::region::Rect;

/// Bits of a weight behind the point: of 32 bits, 8 are the pixel's and 2 are for sign and overshoot.
const FRACTION_BITS: u32 = 32 - 8 - 2;

/// Half a unit, so that cutting the fraction off rounds.
const HALF: i32 = 1 << (FRACTION_BITS - 1);

/// The part `from` of a picture at a new size. `pixel` gives a value by row and column and is asked for those
/// inside `from` only.
pub(super) fn resize(
    pixel: impl Fn(usize, usize) -> u8,
    from: Rect,
    width: u32,
    height: u32,
    filter: Resize,
) -> Vec<u8> {
    let across = Axis::new(from.left, from.width, width, filter);
    let down = Axis::new(from.top, from.height, height, filter);

    let mut narrow = Vec::with_capacity(down.seen * across.spans.len());
    let mut row_pixels = Vec::with_capacity(across.seen);
    for row in down.first..down.first + down.seen {
        row_pixels.clear();
        row_pixels.extend((across.first..across.first + across.seen).map(|column| pixel(row, column)));
        narrow.extend(across.spans.iter().map(|span| {
            let seen = row_pixels[span.start..].iter().zip(&span.weights);
            rounded(HALF + seen.map(|(pixel, weight)| i32::from(*pixel) * weight).sum::<i32>())
        }));
    }

    let columns = across.spans.len();
    let mut small = Vec::with_capacity(columns * down.spans.len());
    let mut sums = vec![0; columns];
    for span in &down.spans {
        sums.fill(HALF);
        for (row, weight) in narrow[span.start * columns..].chunks_exact(columns).zip(&span.weights) {
            sums.iter_mut().zip(row).for_each(|(sum, pixel)| *sum += i32::from(*pixel) * weight);
        }
        small.extend(sums.iter().copied().map(rounded));
    }
    small
}

fn rounded(sum: i32) -> u8 {
    u8::try_from((sum >> FRACTION_BITS).clamp(0, 255)).unwrap_or(u8::MAX)
}

/// One direction: which source pixels each target pixel is made of.
struct Axis {
    /// The first source pixel and how many there are.
    first: usize,
    seen: usize,
    spans: Vec<Span>,
}

/// Source pixels from `start` (counted from the axis' first), one weight each; weights add up to 1.
struct Span {
    start: usize,
    weights: Vec<i32>,
}

impl Axis {
    fn new(start: f64, length: f64, target: u32, filter: Resize) -> Self {
        let first = whole(start);
        let seen = whole((start + length).ceil()) - first;
        let scale = length / f64::from(target);
        // A target pixel smaller than a source pixel still looks at its neighbours.
        let stretch = scale.max(1.0);
        let reach = filter_reach(filter) * stretch;
        let span = |at: u32| {
            let centre = start.fract() + (f64::from(at) + 0.5) * scale;
            let from = whole((centre - reach + 0.5).max(0.0));
            let to = whole(centre + reach + 0.5).min(seen);
            let shares: Vec<f64> =
                (from..to).map(|pixel| filter_value(filter, (pixel as f64 + 0.5 - centre) / stretch)).collect();
            let sum: f64 = shares.iter().sum();
            Span { start: from, weights: shares.iter().map(|share| fixed(share / sum)).collect() }
        };
        Self { first, seen, spans: (0..target).map(span).collect() }
    }
}

fn filter_reach(filter: Resize) -> f64 {
    match filter {
        Resize::Bicubic => 2.0,
        Resize::Bilinear => 1.0,
    }
}

/// The bicubic one is Keys' (1981) with a = -0.5, also known as Catmull-Rom.
fn filter_value(filter: Resize, distance: f64) -> f64 {
    let x = distance.abs();
    match filter {
        Resize::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
        Resize::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
        Resize::Bilinear if x < 1.0 => 1.0 - x,
        _ => 0.0,
    }
}

#[expect(clippy::cast_possible_truncation, reason = "a share is at most 1.2, so this is below 2^23")]
fn fixed(share: f64) -> i32 {
    (share * f64::from(1 << FRACTION_BITS)).round() as i32
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "inside a picture, so from 0 to a u32")]
fn whole(pixels: f64) -> usize {
    pixels as usize
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(pixels: &[u8], from: (f64, f64), target: u32, filter: Resize) -> Vec<u8> {
        let rect = Rect { left: from.0, top: 0.0, width: from.1, height: 1.0 };
        resize(|_, column| pixels[column], rect, target, 1, filter)
    }

    #[test]
    fn every_source_pixel_counts_when_a_picture_shrinks() {
        // The third pixel is 1.5 of 8 from the middle: weight 0.8125 of 6.
        assert_eq!(line(&[0, 0, 255, 0, 0, 0, 0, 0], (0.0, 8.0), 1, Resize::Bilinear), [35]);
    }

    #[test]
    fn what_is_cut_away_does_not_shine_in() {
        let bright_outside = line(&[255, 10, 10, 10, 10, 255], (1.0, 4.0), 2, Resize::Bicubic);
        assert_eq!(bright_outside, [10, 10]);
    }

    #[test]
    fn the_same_size_gives_the_same_pixels() {
        let pixels = [7, 0, 255, 3, 90];
        assert_eq!(line(&pixels, (0.0, 5.0), 5, Resize::Bicubic), pixels);
    }
}
