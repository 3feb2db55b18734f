//! JPEG to pixels, at reduced scale where that is enough, turned upright by its EXIF orientation.
//!
//! The frame header is read here before the decoder sees the file: the decoder allocates by what the header
//! claims, and panics on some claims.

use jpeg_decoder::{Decoder, PixelFormat};

use super::picture::{Orientation, Picture};
use super::{DECODE_BYTES_MAX, FeatureError, check_memory, check_pixels};

/// What the frame header claims.
#[derive(Debug, Clone, Copy)]
struct Header {
    width: u16,
    height: u16,
    components: u8,
    progressive: bool,
    orientation: Orientation,
}

/// Decodes at the number of eighths that `enough_eighths` asks for, given the upright width and height.
pub(super) fn decode(bytes: &[u8], enough_eighths: impl Fn(u32, u32) -> u32) -> Result<Picture, FeatureError> {
    let header = Header::read(bytes)?;
    let (full_width, full_height) = (u32::from(header.width), u32::from(header.height));
    check_pixels(full_width, full_height)?;
    let (upright_width, upright_height) = header.orientation.upright(full_width, full_height);
    let eighths = enough_eighths(upright_width, upright_height);
    check_memory(memory(&header, eighths))?;

    let damaged = |error: jpeg_decoder::Error| FeatureError::Damaged { format: "JPEG", reason: error.to_string() };
    let mut decoder = Decoder::new(bytes);
    decoder.set_max_decoding_buffer_size(DECODE_BYTES_MAX);
    let scaled = |side: u16| u16::try_from((u32::from(side) * eighths).div_ceil(8)).unwrap_or(side);
    let (width, height) = decoder.scale(scaled(header.width), scaled(header.height)).map_err(damaged)?;
    let pixels = decoder.decode().map_err(damaged)?;
    let channels = match decoder.info().map(|info| info.pixel_format) {
        Some(PixelFormat::L8) => 1,
        Some(PixelFormat::RGB24) => 3,
        other => return Err(FeatureError::Unsupported { format: "JPEG", what: format!("pixels as {other:?}") }),
    };
    Ok(Picture { width: width.into(), height: height.into(), channels, pixels, orientation: header.orientation })
}

/// What the decoder holds at once: the planes and the picture, and for a progressive file every coefficient.
fn memory(header: &Header, eighths: u32) -> u64 {
    let samples = u64::from(header.width) * u64::from(header.height) * u64::from(header.components);
    let scaled = samples * u64::from(eighths * eighths) / 64;
    let coefficients = if header.progressive { samples * size_of::<i16>() as u64 } else { 0 };
    2 * scaled + coefficients
}

impl Header {
    /// Walks the segments up to the frame header.
    fn read(bytes: &[u8]) -> Result<Self, FeatureError> {
        let damaged = |reason: &str| FeatureError::Damaged { format: "JPEG", reason: reason.to_owned() };
        let cut = || damaged("it ends before the frame header");
        let mut orientation = Orientation::UPRIGHT;
        let mut rest = bytes.get(2..).ok_or_else(cut)?;
        loop {
            let start = rest.iter().position(|byte| *byte != 0xFF).ok_or_else(cut)?;
            let marker = rest[start];
            if start == 0 || marker == 0 {
                return Err(damaged("no segment where one should start"));
            }
            rest = &rest[start + 1..];
            if matches!(marker, 0x01 | 0xD0..=0xD7) {
                continue; // these stand alone
            }
            if matches!(marker, 0xD8..=0xDA) {
                return Err(damaged("no frame header before the picture data"));
            }
            let length = rest.first_chunk().map(|length| usize::from(u16::from_be_bytes(*length))).ok_or_else(cut)?;
            let segment = rest.get(2..length).ok_or_else(cut)?;
            match marker {
                0xE1 => orientation = exif_orientation(segment).unwrap_or(orientation),
                0xC4 | 0xC8 | 0xCC => {} // tables, not frames
                0xC0..=0xCF => return Self::frame(marker, segment, orientation),
                _ => {}
            }
            rest = &rest[length..];
        }
    }

    fn frame(marker: u8, segment: &[u8], orientation: Orientation) -> Result<Self, FeatureError> {
        let unsupported = |what: String| FeatureError::Unsupported { format: "JPEG", what };
        let &[bits, height_high, height_low, width_high, width_low, components, ..] = segment else {
            return Err(FeatureError::Damaged { format: "JPEG", reason: "its frame header is cut".into() });
        };
        if !(0xC0..=0xC2).contains(&marker) {
            return Err(unsupported("neither baseline nor progressive".into()));
        }
        if bits != 8 {
            return Err(unsupported(format!("{bits} bits per sample, not 8")));
        }
        if !matches!(components, 1 | 3) {
            return Err(unsupported(format!("{components} colour components (print or lossless); save it as RGB")));
        }
        let width = u16::from_be_bytes([width_high, width_low]);
        let height = u16::from_be_bytes([height_high, height_low]);
        if width == 0 || height == 0 {
            return Err(unsupported(format!("{width}x{height} pixels in the frame header")));
        }
        Ok(Self { width, height, components, progressive: marker == 0xC2, orientation })
    }
}

/// The orientation tag (0x0112) of an EXIF segment; none if the segment is another one or unreadable.
fn exif_orientation(segment: &[u8]) -> Option<Orientation> {
    let tiff = segment.strip_prefix(b"Exif\0\0")?;
    let little = match tiff.get(..4)? {
        b"II*\0" => true,
        b"MM\0*" => false,
        _ => return None,
    };
    let short = |at: usize| {
        let bytes = *tiff.get(at..)?.first_chunk::<2>()?;
        Some(if little { u16::from_le_bytes(bytes) } else { u16::from_be_bytes(bytes) })
    };
    let bytes = *tiff.get(4..)?.first_chunk::<4>()?;
    let directory = if little { u32::from_le_bytes(bytes) } else { u32::from_be_bytes(bytes) };
    let directory = usize::try_from(directory).ok()?;
    let entries = usize::from(short(directory)?);
    let entry = |at: usize| directory.checked_add(2 + 12 * at);
    let found = (0..entries).filter_map(entry).find(|at| short(*at) == Some(0x0112))?;
    Orientation::from_exif(short(found + 8)?)
}
