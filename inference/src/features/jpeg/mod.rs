//! JPEG to pixels, at reduced scale where that is enough, turned upright by its EXIF orientation.
//!
//! What the file does not hold is no picture. The decoder would paint on with the last colour, so it is stopped where
//! the data ends, and the picture is refused unless nearly all of its rows are there.

mod feed;
mod parts;

use jpeg_decoder::{Decoder, PixelFormat};

use self::feed::Feed;
use self::parts::{Frame, Parts, Scan};
use super::picture::Picture;
use super::{DECODE_BYTES_MAX, FeatureError, check_memory, check_pixels};

/// The share of a picture's rows, in percent, that must be there. Some cameras always lose the last few bytes of a
/// frame, and none should be blind for that. Only pictures in one scan have rows that are there: one in several scans,
/// as progressive ones are, must be whole.
const ROWS_PERCENT_MIN: u32 = 95;

/// Decodes at the number of eighths that `enough_eighths` asks for, given the upright width and height.
pub(super) fn decode(bytes: &[u8], enough_eighths: impl Fn(u32, u32) -> u32) -> Result<Picture, FeatureError> {
    let parts = Parts::read(bytes)?;
    let (full_width, full_height) = (u32::from(parts.frame.width), u32::from(parts.frame.height));
    check_pixels(full_width, full_height)?;
    let (upright_width, upright_height) = parts.orientation.upright(full_width, full_height);
    let eighths = enough_eighths(upright_width, upright_height);
    check_memory(memory(&parts.frame, eighths))?;
    if parts.lacks_scans() {
        return Err(damaged("the picture data ends before its last scan"));
    }

    let scaled = |side: u16| u16::try_from((u32::from(side) * eighths).div_ceil(8)).unwrap_or(side);
    let size = (scaled(parts.frame.width), scaled(parts.frame.height));
    let mut feed = Feed::whole(&parts);
    let decoded = match run(&mut feed, size) {
        Err(_) if feed.is_out_of_data() => match parts.scans.as_slice() {
            [scan] if has_most_rows(&parts, scan) => {
                run(&mut Feed::filled(&parts, scan, &restarts_left_out(&parts, scan)), size)
            }
            _ => {
                let reason =
                    format!("the picture data ends early; at least {ROWS_PERCENT_MIN} % of the rows must be there");
                return Err(damaged(&reason));
            }
        },
        other => other,
    };
    let Decoded { width, height, format, pixels } = decoded.map_err(|error| damaged(&error.to_string()))?;
    let channels = match format {
        Some(PixelFormat::L8) => 1,
        Some(PixelFormat::RGB24) => 3,
        other => {
            let what = match other {
                Some(PixelFormat::CMYK32) => "pixels in CMYK",
                Some(PixelFormat::L16) => "gray of 16 bits",
                _ => "pixels of an unknown kind",
            };
            return Err(FeatureError::Unsupported { format: "JPEG", what: what.to_owned() });
        }
    };
    Ok(Picture { width: width.into(), height: height.into(), channels, pixels, orientation: parts.orientation })
}

struct Decoded {
    width: u16,
    height: u16,
    format: Option<PixelFormat>,
    pixels: Vec<u8>,
}

/// Decodes at the smallest scale of eighths that gives at least this width and height.
fn run(feed: &mut Feed, (width, height): (u16, u16)) -> Result<Decoded, jpeg_decoder::Error> {
    let mut decoder = Decoder::new(feed);
    decoder.set_max_decoding_buffer_size(DECODE_BYTES_MAX);
    let (width, height) = decoder.scale(width, height)?;
    let pixels = decoder.decode()?;
    Ok(Decoded { width, height, format: decoder.info().map(|info| info.pixel_format), pixels })
}

/// Whether the data of the only scan are enough for [`ROWS_PERCENT_MIN`]: they are if a picture of the first rows only
/// decodes from them.
fn has_most_rows(parts: &Parts, scan: &Scan) -> bool {
    let rows = (u32::from(parts.frame.height) * ROWS_PERCENT_MIN).div_ceil(100);
    let mut data = scan.data;
    if parts.restart_interval > 0 {
        // What follows the last interval needed would stand in the decoder's way.
        let intervals = parts.frame.units(rows).div_ceil(parts.restart_interval);
        let last = usize::try_from(intervals).ok().and_then(|intervals| restarts(data).nth(intervals.checked_sub(1)?));
        data = &data[..last.unwrap_or(data.len())];
    }
    let height = u16::try_from(rows).unwrap_or(parts.frame.height).to_be_bytes();
    run(&mut Feed::rows(parts, scan, &height, data), (1, 1)).is_ok()
}

/// The restart markers that are missing behind the last one in the data. The decoder insists on them.
fn restarts_left_out(parts: &Parts, scan: &Scan) -> Vec<u8> {
    if parts.restart_interval == 0 {
        return Vec::new();
    }
    let intervals = parts.frame.units(parts.frame.height.into()).div_ceil(parts.restart_interval);
    let there = restarts(scan.data).count();
    let numbers = (0..8).cycle().skip(there % 8).map(|number| [0xFF, 0xD0 + number]);
    numbers.take((intervals as usize).saturating_sub(there + 1)).flatten().collect()
}

/// Where the restart markers stand in a scan's data.
fn restarts(data: &[u8]) -> impl Iterator<Item = usize> {
    data.windows(2).enumerate().filter(|(_, pair)| matches!(pair, [0xFF, 0xD0..=0xD7])).map(|(at, _)| at)
}

/// What the decoder holds at once: the planes and the picture, and for a progressive file every coefficient.
fn memory(frame: &Frame, eighths: u32) -> u64 {
    let samples = u64::from(frame.width) * u64::from(frame.height) * frame.components.len() as u64;
    let scaled = samples * u64::from(eighths * eighths) / 64;
    let coefficients = if frame.progressive { samples * size_of::<i16>() as u64 } else { 0 };
    2 * scaled + coefficients
}

fn damaged(reason: &str) -> FeatureError {
    FeatureError::Damaged { format: "JPEG", reason: reason.to_owned() }
}
