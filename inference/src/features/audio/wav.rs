//! WAV files: read in place, whoever wrote them, and written for a window of a stream.
//!
//! Nothing is allocated by what a header claims: the samples stay where they are and are read one by one. A program that
//! writes to a pipe does not know how long its recording will be, and claims the largest length there is.

use super::super::FeatureError;

/// What a header says that was written before anyone knew the length, at least: arecord says 2 GiB, ffmpeg and sox 4 GiB.
const UNKNOWN_BYTES_MIN: u32 = 0x7FFF_F000;

/// The most channels of a recording: what microphone arrays have.
const CHANNELS_MAX: u16 = 64;

/// Samples per second that are believed.
pub(super) const RATE_MIN: u32 = 1000;
pub(super) const RATE_MAX: u32 = 384_000;

/// The size of the header that [`wav`] writes.
const HEADER_BYTES: u32 = 44;

/// How one sample is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Coding {
    U8,
    I16,
    I24,
    I32,
    F32,
    F64,
}

impl Coding {
    fn bytes(self) -> usize {
        match self {
            Self::U8 => 1,
            Self::I16 => 2,
            Self::I24 => 3,
            Self::I32 | Self::F32 => 4,
            Self::F64 => 8,
        }
    }

    /// From -1 to 1. What has another length than one sample is silence.
    fn read(self, bytes: &[u8]) -> f64 {
        let whole = |shift: u32| {
            let mut word = [0; 4];
            word[4 - bytes.len().min(4)..].copy_from_slice(&bytes[..bytes.len().min(4)]);
            f64::from(i32::from_le_bytes(word) >> shift) / (f64::from(i32::MAX >> shift) + 1.0)
        };
        match self {
            Self::U8 => f64::from(i16::from(bytes.first().copied().unwrap_or(128)) - 128) / 128.0,
            Self::I16 => whole(16),
            Self::I24 => whole(8),
            Self::I32 => whole(0),
            Self::F32 => f64::from(f32::from_le_bytes(bytes.try_into().unwrap_or_default())),
            Self::F64 => f64::from_le_bytes(bytes.try_into().unwrap_or_default()),
        }
    }
}

/// A recording whose samples are still in the file.
#[derive(Debug, Clone, Copy)]
pub(super) struct Recording<'a> {
    pub(super) rate: u32,
    pub(super) channels: usize,
    coding: Coding,
    data: &'a [u8],
}

impl<'a> Recording<'a> {
    pub(super) fn read(bytes: &'a [u8]) -> Result<Self, FeatureError> {
        let damaged = |reason: String| FeatureError::Damaged { format: "WAV", reason };
        let mut rest = bytes.get(12..).unwrap_or_default();
        let mut format: Option<(u32, usize, Coding)> = None;
        while let Some((head, after)) = rest.split_first_chunk::<8>() {
            let (name, claimed) = head.split_at(4);
            let claimed = u32::from_le_bytes(claimed.try_into().unwrap_or_default());
            let length = usize::try_from(claimed).unwrap_or(usize::MAX);
            if name == b"data" {
                let (rate, channels, coding) =
                    format.ok_or_else(|| damaged("its samples come before their format".to_owned()))?;
                let open = claimed >= UNKNOWN_BYTES_MIN || (claimed == 0 && !after.is_empty());
                let data = match after.get(..length) {
                    _ if open => after,
                    Some(data) => data,
                    None => {
                        let found = after.len();
                        return Err(damaged(format!(
                            "its header says {length} bytes of samples, and {found} are there"
                        )));
                    }
                };
                let data = &data[..data.len() - data.len() % (channels * coding.bytes())];
                if data.is_empty() {
                    return Err(damaged("it holds no samples".to_owned()));
                }
                return Ok(Self { rate, channels, coding, data });
            }
            // Chunks begin at even places.
            let next = length.saturating_add(length % 2);
            let chunk = after.get(..length).ok_or_else(|| damaged("it ends before its samples".to_owned()))?;
            if name == b"fmt " {
                format = Some(read_format(chunk)?);
            }
            rest = after.get(next..).unwrap_or_default();
        }
        Err(damaged("it ends before its samples".to_owned()))
    }

    /// How many samples each channel has.
    pub(super) fn frames(&self) -> usize {
        self.data.len() / (self.channels * self.coding.bytes())
    }

    /// The first channel of a frame, or the mean of all. Silence beyond both ends.
    pub(super) fn sample(&self, frame: usize, mean: bool) -> f64 {
        let size = self.coding.bytes();
        let begin = frame.saturating_mul(self.channels * size);
        let Some(bytes) = self.data.get(begin..begin.saturating_add(self.channels * size)) else { return 0.0 };
        let mut channels = bytes.chunks_exact(size).map(|bytes| self.coding.read(bytes));
        if mean { channels.sum::<f64>() / self.channels as f64 } else { channels.next().unwrap_or(0.0) }
    }
}

fn read_format(chunk: &[u8]) -> Result<(u32, usize, Coding), FeatureError> {
    let unsupported = |what: String| FeatureError::Unsupported { format: "WAV", what };
    let short = |at: usize| Some(u16::from_le_bytes([*chunk.get(at)?, *chunk.get(at + 1)?]));
    let (Some(mut tag), Some(channels), Some(low), Some(high), Some(frame), Some(bits)) =
        (short(0), short(2), short(4), short(6), short(12), short(14))
    else {
        return Err(FeatureError::Damaged { format: "WAV", reason: "its format is cut off".to_owned() });
    };
    // The extended form names the coding in the first bytes of a longer name.
    if tag == 0xFFFE {
        tag = short(24).unwrap_or(tag);
    }
    let rate = u32::from(high) << 16 | u32::from(low);
    let coding = match (tag, bits) {
        (1, 8) => Coding::U8,
        (1, 16) => Coding::I16,
        (1, 24) => Coding::I24,
        (1, 32) => Coding::I32,
        (3, 32) => Coding::F32,
        (3, 64) => Coding::F64,
        _ => {
            let name = match tag {
                1 | 3 => format!("{bits}-bit samples"),
                2 | 0x11 => "ADPCM".to_owned(),
                6 => "A-law".to_owned(),
                7 => "µ-law".to_owned(),
                0x55 => "MP3".to_owned(),
                _ => format!("the coding {tag:#06x}"),
            };
            return Err(unsupported(format!("{name}; convert it with `ffmpeg -i IN -c:a pcm_s16le OUT.wav`")));
        }
    };
    if !(1..=CHANNELS_MAX).contains(&channels) {
        return Err(unsupported(format!("{channels} channels; 1 to {CHANNELS_MAX} are read")));
    }
    // 24 bits in four bytes: some writers put them into the upper three, some (arecord's S24_LE) into the lower.
    let taken = usize::from(channels) * coding.bytes();
    if usize::from(frame) != taken {
        return Err(unsupported(format!(
            "{bits}-bit samples of which {channels} take {frame} bytes, not {taken}; record or convert it as 16 or 32 bits: \
             `arecord -f S32_LE`, `ffmpeg -i IN -c:a pcm_s16le OUT.wav`"
        )));
    }
    if !(RATE_MIN..=RATE_MAX).contains(&rate) {
        return Err(unsupported(format!("{rate} samples per second; {RATE_MIN} to {RATE_MAX} are read")));
    }
    Ok((rate, usize::from(channels), coding))
}

/// A WAV file of 16-bit little-endian samples.
#[must_use]
pub fn wav(rate: u32, channels: u16, samples: &[u8]) -> Vec<u8> {
    let length = u32::try_from(samples.len()).unwrap_or(u32::MAX - HEADER_BYTES);
    let frame = channels.saturating_mul(2);
    let header: [&[u8]; 12] = [
        b"RIFF",
        &length.saturating_add(HEADER_BYTES - 8).to_le_bytes(),
        b"WAVEfmt ",
        &16_u32.to_le_bytes(),
        &1_u16.to_le_bytes(),
        &channels.to_le_bytes(),
        &rate.to_le_bytes(),
        &rate.saturating_mul(frame.into()).to_le_bytes(),
        &frame.to_le_bytes(),
        &16_u16.to_le_bytes(),
        b"data",
        &length.to_le_bytes(),
    ];
    header.into_iter().chain([samples]).collect::<Vec<_>>().concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file with this format and these bytes of samples, of which it claims `claimed`.
    fn file(tag: u16, channels: u16, bits: u16, claimed: u32, data: &[u8]) -> Vec<u8> {
        let mut bytes = wav(8000, channels, data);
        bytes[20..22].copy_from_slice(&tag.to_le_bytes());
        bytes[32..34].copy_from_slice(&(channels * bits.div_ceil(8)).to_le_bytes());
        bytes[34..36].copy_from_slice(&bits.to_le_bytes());
        bytes[40..44].copy_from_slice(&claimed.to_le_bytes());
        bytes
    }

    #[track_caller]
    fn check(file: &[u8], expected: &[f64]) {
        let recording = Recording::read(file).expect("a recording");
        let samples: Vec<f64> = (0..recording.frames()).map(|frame| recording.sample(frame, false)).collect();
        assert_eq!(samples, expected);
        assert_eq!(recording.sample(recording.frames(), true).to_bits(), 0, "silence follows");
    }

    #[test]
    fn samples_of_every_usual_size_are_read_from_minus_one_to_one() {
        check(&file(1, 1, 8, 3, &[0, 128, 192]), &[-1.0, 0.0, 0.5]);
        check(&file(1, 1, 16, 4, &[0, 0x80, 0, 0x40]), &[-1.0, 0.5]);
        check(&file(1, 1, 24, 6, &[0, 0, 0x80, 0, 0, 0x40]), &[-1.0, 0.5]);
        check(&file(1, 1, 32, 8, &[0, 0, 0, 0x80, 0, 0, 0, 0x40]), &[-1.0, 0.5]);
        check(&file(3, 1, 32, 4, &0.25_f32.to_le_bytes()), &[0.25]);
        check(&file(3, 1, 64, 8, &(-0.25_f64).to_le_bytes()), &[-0.25]);
        // The first of two channels, and their mean.
        let stereo = file(1, 2, 16, 4, &[0, 0x40, 0, 0]);
        check(&stereo, &[0.5]);
        assert_eq!(Recording::read(&stereo).expect("a recording").sample(0, true), 0.25);
    }

    #[test]
    fn a_length_that_nobody_knew_yet_means_all_that_came_and_a_frame_in_pieces_is_left_out() {
        for claimed in [0, 0x7FFF_FFFF, 0x8000_0000, u32::MAX] {
            check(&file(1, 1, 16, claimed, &[0, 0x40, 0]), &[0.5]);
        }
        // Other chunks may come first, of odd length too, and anything may follow.
        let plain = file(1, 1, 16, 2, &[0, 0x40]);
        let list = [&plain[..12], b"LIST\x03\0\0\0abc\0", &plain[12..], b"junk"].concat();
        check(&list, &[0.5]);
    }

    #[test]
    fn samples_that_lie_in_more_bytes_than_they_have_are_refused_and_not_read_askew() {
        for (bits, frame) in [(24_u16, 4_u16), (16, 4), (8, 2), (16, 0)] {
            let mut bytes = file(1, 1, bits, 8, &[1, 2, 3, 0, 4, 5, 6, 0]);
            bytes[32..34].copy_from_slice(&frame.to_le_bytes());
            let error = Recording::read(&bytes).expect_err("refused").to_string();
            assert!(error.contains(&format!("{bits}-bit samples of which 1 take {frame} bytes")), "{error}");
        }
    }

    #[test]
    fn a_file_that_is_no_recording_says_why() {
        let whole = file(1, 1, 16, 4, &[0; 4]);
        let slow = {
            let mut slow = whole.clone();
            slow[24..28].copy_from_slice(&50_u32.to_le_bytes());
            slow
        };
        for (bytes, words) in [
            (whole[..46].to_vec(), "4 bytes of samples, and 2 are there"),
            (file(1, 1, 16, 1 << 30, &[0; 4]), "1073741824 bytes of samples, and 4 are there"),
            (whole[..40].to_vec(), "ends before its samples"),
            (whole[..20].to_vec(), "ends before its samples"),
            (file(1, 1, 16, 0, &[]), "holds no samples"),
            (file(7, 1, 8, 4, &[0; 4]), "µ-law; convert it with `ffmpeg"),
            (file(1, 1, 12, 4, &[0; 4]), "12-bit samples"),
            (file(1, 0, 16, 4, &[0; 4]), "0 channels"),
            (slow, "50 samples per second"),
            ([&whole[..12], &whole[36..]].concat(), "before their format"),
        ] {
            let error = Recording::read(&bytes).expect_err(words).to_string();
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
    }
}
