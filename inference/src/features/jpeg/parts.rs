//! What a JPEG file is made of (ITU-T T.81, annex B), found without decoding anything.
//!
//! The decoder allocates by what the frame header claims, and fills silently what the file does not hold. So both are
//! looked at here first: what is claimed, and where the data of each scan really ends.

use super::damaged;
use crate::features::picture::Orientation;
use crate::features::{FeatureError, exif};

/// The colour components of a picture: gray, or three.
const COMPONENTS_MAX: usize = 3;

/// So many zero bytes at the end of the data are a camera's padding. They would stand for 85 or more coefficients of
/// the same value, each next to the other.
const PADDING_BYTES_MIN: usize = 32;

const SOI: u8 = 0xD8;
const EOI: u8 = 0xD9;
const SOS: u8 = 0xDA;

/// A file up to the end of its first picture.
pub(super) struct Parts<'a> {
    pub(super) frame: Frame<'a>,
    pub(super) orientation: Orientation,
    pub(super) scans: Vec<Scan<'a>>,
    /// Restart markers stand behind each so many units; never if 0.
    pub(super) restart_interval: u32,
    /// The file leaves Huffman tables out, as USB cameras do; the standard's are meant.
    pub(super) tables_left_out: bool,
    /// By component, the coefficients that no scan has brought to their last bit.
    missing: [u64; COMPONENTS_MAX],
}

/// What the frame header claims.
pub(super) struct Frame<'a> {
    pub(super) width: u16,
    pub(super) height: u16,
    pub(super) progressive: bool,
    /// Where its height stands in the head of the first scan.
    pub(super) height_at: usize,
    /// For each component its identifier, its sampling factors and its quantisation table.
    pub(super) components: &'a [[u8; 3]],
}

/// One scan: everything in front of its data, tables and headers; and the data, restart markers included.
pub(super) struct Scan<'a> {
    pub(super) head: &'a [u8],
    pub(super) data: &'a [u8],
}

/// The Huffman tables that a file has defined, as bits by their number.
#[derive(Default)]
struct Tables {
    dc: u16,
    ac: u16,
    /// The tables for coefficients whose shortest code, all zeros, ends a block. A flat area is all zeros in these.
    ac_zeros_end: u16,
}

impl<'a> Parts<'a> {
    /// Walks the file as the decoder does, so that both see the same headers.
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, FeatureError> {
        let mut orientation = None;
        let mut tables = Tables::default();
        let mut restart_interval = 0;
        let mut parts: Option<Self> = None;
        let (mut head, mut at) = (2, 2);
        while let Some((marker, after)) = next_marker(bytes, at) {
            at = after;
            match marker {
                0x01 | 0xD0..=0xD7 => continue, // these stand alone
                EOI => break,
                // The next picture of a stream without end markers.
                SOI if parts.as_ref().is_some_and(|parts| !parts.scans.is_empty()) => break,
                SOI => return Err(no_frame()),
                _ => {}
            }
            let Some(segment) = segment(bytes, at) else { break };
            at += 2 + segment.len();
            match marker {
                0xE1 => orientation = orientation.or_else(|| exif::from_app1(segment)),
                0xC4 => tables.define(segment),
                0xDD => restart_interval = segment.first_chunk().map_or(0, |units| u16::from_be_bytes(*units).into()),
                0xC8 | 0xCC => {} // no frames
                0xC0..=0xCF if parts.is_none() => {
                    parts = Some(Self::new(Frame::read(marker, segment, at - segment.len() - head)?))
                }
                SOS => {
                    let parts = parts.as_mut().ok_or_else(no_frame)?;
                    let end = at + data_bytes(&bytes[at..]);
                    let mut data = &bytes[at..end];
                    if parts.scan(segment, &tables) {
                        data = without_padding(data);
                    }
                    parts.scans.push(Scan { head: &bytes[head..at], data });
                    parts.restart_interval = restart_interval;
                    (head, at) = (end, end);
                }
                _ => {}
            }
        }
        let mut parts = parts.ok_or_else(|| damaged("it ends before the frame header"))?;
        if parts.scans.is_empty() {
            return Err(damaged("it ends before the picture data"));
        }
        parts.orientation = orientation.unwrap_or(Orientation::UPRIGHT);
        Ok(parts)
    }

    fn new(frame: Frame<'a>) -> Self {
        let mut missing = [0; COMPONENTS_MAX];
        missing.iter_mut().zip(frame.components).for_each(|(missing, _)| *missing = u64::MAX);
        let orientation = Orientation::UPRIGHT;
        Self { frame, orientation, scans: Vec::new(), restart_interval: 0, tables_left_out: false, missing }
    }

    /// Notes what the scan with this header brings. Whether a run of zeros at the end of its data can only be padding.
    fn scan(&mut self, header: &[u8], tables: &Tables) -> bool {
        let Some((&count, rest)) = header.split_first() else { return false };
        let Some((selectors, rest)) = rest.split_at_checked(2 * usize::from(count)) else { return false };
        let &[first, last, bits, ..] = rest else { return false };
        let brought = match (self.frame.progressive, bits & 0x0F) {
            (false, _) => u64::MAX,
            (true, 0) if first <= last && last < 64 => (u64::MAX >> (63 - (last - first))) << first,
            (true, _) => 0,
        };
        let mut zeros_are_padding = !self.frame.progressive;
        for &[id, numbers] in selectors.as_chunks::<2>().0 {
            let component = self.frame.components.iter().position(|component| component[0] == id);
            if let Some(missing) = component.and_then(|at| self.missing.get_mut(at)) {
                *missing &= !brought;
            }
            let (dc, ac) = (1 << (numbers >> 4), 1 << (numbers & 0x0F));
            self.tables_left_out |= !self.frame.progressive && (tables.dc & dc == 0 || tables.ac & ac == 0);
            // Of the standard's tables, that for colour has an end of block of all zeros, that for light has not.
            zeros_are_padding &= component != Some(0) || tables.ac_zeros_end & ac == 0;
        }
        zeros_are_padding
    }

    /// Whether some of the picture is in no scan at all.
    pub(super) fn lacks_scans(&self) -> bool {
        self.missing.iter().any(|missing| *missing != 0)
    }
}

impl<'a> Frame<'a> {
    fn read(marker: u8, segment: &'a [u8], segment_at: usize) -> Result<Self, FeatureError> {
        let unsupported = |what: String| FeatureError::Unsupported { format: "JPEG", what };
        let &[bits, height_high, height_low, width_high, width_low, count, ref rest @ ..] = segment else {
            return Err(damaged("its frame header is cut"));
        };
        if !(0xC0..=0xC2).contains(&marker) {
            return Err(unsupported("neither baseline nor progressive".into()));
        }
        if bits != 8 {
            return Err(unsupported(format!("{bits} bits per sample, not 8")));
        }
        if !matches!(count, 1 | 3) {
            return Err(unsupported(format!("{count} colour components (print or lossless); save it as RGB")));
        }
        let width = u16::from_be_bytes([width_high, width_low]);
        let height = u16::from_be_bytes([height_high, height_low]);
        if width == 0 || height == 0 {
            return Err(unsupported(format!("{width}x{height} pixels in the frame header")));
        }
        let components =
            rest.as_chunks().0.get(..usize::from(count)).ok_or_else(|| damaged("its frame header is cut"))?;
        Ok(Self { width, height, progressive: marker == 0xC2, height_at: segment_at + 1, components })
    }

    /// How many units so many rows of pixels take, in a scan of all components. Restart markers count these: blocks of a
    /// gray picture, groups of blocks of a coloured one.
    pub(super) fn units(&self, rows: u32) -> u32 {
        let side = |shift: u32| match self.components {
            [_] => 8,
            several => 8 * several.iter().map(|component| (u32::from(component[1]) >> shift) & 0x0F).fold(1, u32::max),
        };
        u32::from(self.width).div_ceil(side(4)) * rows.div_ceil(side(0))
    }
}

impl Tables {
    fn define(&mut self, mut segment: &[u8]) {
        while let Some((&[class_and_number, ref counts @ ..], values)) = segment.split_first_chunk::<17>() {
            let values_count = counts.iter().map(|count| usize::from(*count)).sum();
            let bit = 1 << (class_and_number & 0x0F);
            if class_and_number >> 4 == 0 {
                self.dc |= bit;
            } else {
                self.ac |= bit;
                self.ac_zeros_end &= !bit;
                self.ac_zeros_end |= if values.first() == Some(&0) { bit } else { 0 };
            }
            segment = values.get(values_count..).unwrap_or_default();
        }
    }
}

fn no_frame() -> FeatureError {
    damaged("no frame header before the picture data")
}

/// The next marker and where it ends. Other bytes in front of it are passed over, as the decoder does.
fn next_marker(bytes: &[u8], mut at: usize) -> Option<(u8, usize)> {
    loop {
        at += bytes.get(at..)?.iter().position(|byte| *byte == 0xFF)?;
        at += bytes[at..].iter().position(|byte| *byte != 0xFF)?;
        at += 1;
        if bytes[at - 1] != 0 {
            return Some((bytes[at - 1], at));
        }
    }
}

/// What the segment at a place holds, without its length.
fn segment(bytes: &[u8], at: usize) -> Option<&[u8]> {
    let rest = bytes.get(at..)?;
    let length = u16::from_be_bytes(*rest.first_chunk()?);
    rest.get(2..usize::from(length))
}

/// How many bytes belong to a scan: up to the first marker that is no restart, or to the end.
fn data_bytes(bytes: &[u8]) -> usize {
    let mut at = 0;
    while let Some(found) = next_ff(&bytes[at..]) {
        at += found;
        let fill = bytes[at..].iter().take_while(|byte| **byte == 0xFF).count();
        match bytes.get(at + fill) {
            Some(0xD0..=0xD7) => at += fill + 1,
            Some(0) if fill == 1 => at += 2,
            _ => return at,
        }
    }
    bytes.len()
}

/// The first byte of all ones. A block at a time, which the compiler compares at once: a photo has one in 200 bytes,
/// and looking for them must not take longer than decoding saves.
fn next_ff(bytes: &[u8]) -> Option<usize> {
    const BLOCK: usize = 32;
    let without = |block: &&[u8]| !block.iter().fold(false, |any, byte| any | (*byte == 0xFF));
    let passed = bytes.chunks(BLOCK).take_while(without).count() * BLOCK;
    let found = bytes.get(passed..)?.iter().position(|byte| *byte == 0xFF)?;
    Some(passed + found)
}

fn without_padding(data: &[u8]) -> &[u8] {
    let kept = match data.iter().rposition(|byte| *byte != 0) {
        Some(last) if data[last] == 0xFF => last + 2, // the zero behind it says that it is no marker
        Some(last) => last + 1,
        None => 0,
    };
    if data.len() >= kept + PADDING_BYTES_MIN { &data[..kept] } else { data }
}
