//! PNG to pixels: gray, palette and colour, with or without alpha, 1 to 16 bits, all as 8 bits.

use std::io::Cursor;

use ::png::{BitDepth, Decoder, DecodingError, Limits, Transformations};

use super::picture::{Orientation, Picture};
use super::{DECODE_BYTES_MAX, FeatureError, check_memory, check_pixels};

pub(super) fn decode(bytes: &[u8]) -> Result<Picture, FeatureError> {
    let damaged = |error: DecodingError| FeatureError::Damaged { format: "PNG", reason: error.to_string() };
    let mut decoder = Decoder::new_with_limits(Cursor::new(bytes), Limits { bytes: DECODE_BYTES_MAX });
    decoder.set_transformations(Transformations::EXPAND | Transformations::STRIP_16);
    decoder.set_ignore_text_chunk(true);
    decoder.set_ignore_iccp_chunk(true);
    let header = decoder.read_header_info().map_err(damaged)?;
    let (width, height) = (header.width, header.height);
    check_pixels(width, height)?;

    let mut reader = decoder.read_info().map_err(damaged)?;
    let size = reader.output_buffer_size().unwrap_or(usize::MAX);
    check_memory(size as u64)?;
    let mut pixels = vec![0; size];
    let info = reader.next_frame(&mut pixels).map_err(damaged)?;
    if info.bit_depth != BitDepth::Eight || (info.width, info.height) != (width, height) {
        let what = format!("{:?} at {:?}", info.color_type, info.bit_depth);
        return Err(FeatureError::Unsupported { format: "PNG", what });
    }
    pixels.truncate(info.buffer_size());
    Ok(Picture { width, height, channels: info.color_type.samples(), pixels, orientation: Orientation::UPRIGHT })
}
