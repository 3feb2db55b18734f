//! PNG to pixels: gray, palette and colour, with or without alpha, 1 to 16 bits, all as 8 bits, turned upright by the
//! EXIF or XMP orientation that some writers put in.

use std::io::Cursor;

use ::png::{BitDepth, Decoder, DecodingError, Limits, Transformations};

use super::picture::{Orientation, Picture};
use super::{DECODE_BYTES_MAX, FeatureError, check_memory, check_pixels, exif};

pub(super) fn decode(bytes: &[u8]) -> Result<Picture, FeatureError> {
    let damaged = |error: DecodingError| {
        // The library names its own types.
        let reason = match error {
            DecodingError::Format(_) => "a part of it was changed, or is not as the format has it".to_owned(),
            other => other.to_string(),
        };
        FeatureError::Damaged { format: "PNG", reason }
    };
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
        let what = match info.bit_depth {
            BitDepth::Eight => "a frame of another size than the picture".to_owned(),
            depth => format!("{} bits a channel", depth as u8),
        };
        return Err(FeatureError::Unsupported { format: "PNG", what });
    }
    pixels.truncate(info.buffer_size());
    let orientation = orientation(bytes).unwrap_or(Orientation::UPRIGHT);
    Ok(Picture { width, height, channels: info.color_type.samples(), pixels, orientation })
}

/// How the camera was held. Read here, not by the decoder: the chunk may stand behind the pixels, where it stops.
fn orientation(bytes: &[u8]) -> Option<Orientation> {
    // Without language, translated keyword and compression.
    const XMP: &[u8] = b"XML:com.adobe.xmp\0\0\0\0\0";
    let of = |kind: &[u8], content: &[u8]| match kind {
        b"eXIf" => exif::from_tiff(content),
        b"iTXt" => exif::from_xmp(content.strip_prefix(XMP)?),
        _ => None,
    };
    // EXIF goes before XMP, wherever either stands.
    [b"eXIf", b"iTXt"].into_iter().find_map(|wanted| {
        chunks(bytes).filter(|(kind, _)| kind == wanted).find_map(|(kind, content)| of(kind, content))
    })
}

/// Kind and content of each chunk, up to the first that is cut.
fn chunks(bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut rest = bytes.get(8..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (length, after) = rest.split_first_chunk::<4>()?;
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (kind, after) = after.split_at_checked(4)?;
        let (content, after) = after.split_at_checked(length)?;
        rest = after.get(4..).unwrap_or_default(); // its checksum
        Some((kind, content))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_part_that_was_changed_is_said_in_plain_words() {
        let mut bytes = Vec::new();
        let mut writer = ::png::Encoder::new(&mut bytes, 2, 2).write_header().expect("a header");
        writer.write_image_data(&[0; 4]).expect("pixels");
        drop(writer);
        let data = bytes.windows(4).position(|kind| kind == b"IDAT").expect("pixels");
        for at in [data + 6, bytes.len() - 13] {
            let mut changed = bytes.clone();
            changed[at] ^= 0x55;
            let error = decode(&changed).expect_err("damaged").to_string();
            assert!(error.ends_with("a part of it was changed, or is not as the format has it"), "{error}");
        }
    }
}
