//! How a camera was held, as the metadata of a picture file says it.

use super::picture::Orientation;

/// The tag of the orientation in the first directory.
const ORIENTATION: u16 = 0x0112;

/// What stands before the TIFF structure in a JPEG, and in the PNGs of some writers.
const PREFIX: &[u8] = b"Exif\0\0";

/// The orientation that a JPEG's APP1 segment holds, as EXIF or as XMP.
pub(super) fn from_app1(segment: &[u8]) -> Option<Orientation> {
    match segment.strip_prefix(PREFIX) {
        Some(tiff) => from_tiff(tiff),
        None => from_xmp(segment.strip_prefix(b"http://ns.adobe.com/xap/1.0/\0")?),
    }
}

/// The orientation of a TIFF structure, with or without the prefix that JPEG gives it. `None` if there is none, or it is
/// not one of the eight.
pub(super) fn from_tiff(bytes: &[u8]) -> Option<Orientation> {
    let tiff = Tiff::new(bytes.strip_prefix(PREFIX).unwrap_or(bytes))?;
    let directory = usize::try_from(tiff.number(4, 4)?).ok()?;
    let entries = usize::try_from(tiff.number(directory, 2)?).ok()?;
    let entry = |at: usize| directory.checked_add(2 + 12 * at);
    let tag = Some(u32::from(ORIENTATION));
    let found = (0..entries).map_while(entry).find(|at| tiff.number(*at, 2) == tag)?;
    // BYTE, SHORT, LONG and their signed kin. Writers use each of them, and other readers take what is there.
    let width = match tiff.number(found + 2, 2)? {
        1 | 6 => 1,
        3 | 8 => 2,
        4 | 9 => 4,
        _ => return None,
    };
    Orientation::from_exif(tiff.number(found + 8, width)?)
}

/// The orientation of an XMP packet, as an attribute or an element.
pub(super) fn from_xmp(packet: &[u8]) -> Option<Orientation> {
    const NAME: &[u8] = b"tiff:Orientation";
    let at = packet.windows(NAME.len()).position(|window| window == NAME)? + NAME.len();
    let mut value = packet[at..].iter().filter(|byte| !byte.is_ascii_whitespace()).skip_while(|byte| **byte == b'=');
    let opening = matches!(value.next()?, b'"' | b'\'' | b'>');
    let (digit, closing) = (value.next()?, value.next()?);
    let alone = opening && matches!(closing, b'"' | b'\'' | b'<');
    alone.then(|| Orientation::from_exif(u32::from(digit.wrapping_sub(b'0'))))?
}

/// Bytes with an order.
struct Tiff<'a> {
    bytes: &'a [u8],
    little: bool,
}

impl<'a> Tiff<'a> {
    fn new(bytes: &'a [u8]) -> Option<Self> {
        let little = match bytes.get(..4)? {
            b"II*\0" => true,
            b"MM\0*" => false,
            _ => return None,
        };
        Some(Self { bytes, little })
    }

    /// The unsigned number of 1, 2 or 4 bytes at a place.
    fn number(&self, at: usize, width: usize) -> Option<u32> {
        let bytes = self.bytes.get(at..at.checked_add(width)?)?;
        let shift = |number: u32, byte: &u8| (number << 8) | u32::from(*byte);
        Some(if self.little { bytes.iter().rev().fold(0, shift) } else { bytes.iter().fold(0, shift) })
    }
}
