//! The log-mel spectrogram of a window: how much sound there is at each pitch, over time.

use serde::Deserialize;

use super::fft::{FACTOR_MAX, Fft, factor};

/// The longest frame: four seconds at 16 kHz.
const FRAME_MAX: usize = 65_536;

const BANDS_MAX: usize = 1024;

/// `[input.audio.mel]`, checked.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Mel {
    pub(super) fields: MelFields,
    pub(super) frames: usize,
}

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct MelFields {
    /// Samples of a frame, and from the beginning of one to that of the next.
    frame: usize,
    hop: usize,
    /// The length of the transform; zeros follow the frame. The frame's if absent.
    fft: Option<usize>,
    #[serde(default)]
    window: Shape,
    /// What is put before and after the window, half a transform each, so that frames are centred.
    #[serde(default)]
    pad: Pad,
    #[serde(default)]
    spectrum: Spectrum,
    pub(super) bands: usize,
    low_hz: f64,
    high_hz: f64,
    scale: Scale,
    filter: Filter,
    log: Log,
    /// Added before the logarithm.
    log_offset: f64,
    #[serde(default)]
    pub(super) layout: MelLayout,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Shape {
    /// Periodic, as `scipy.signal.get_window` gives them.
    #[default]
    Hann,
    Hamming,
    None,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Pad {
    #[default]
    None,
    Zeros,
    Reflect,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Spectrum {
    #[default]
    Power,
    Magnitude,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Scale {
    /// 2595·log10(1 + f/700).
    Htk,
    /// Linear to 1 kHz, logarithmic above.
    Slaney,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Filter {
    /// Each triangle is 1 at its highest.
    Peak,
    /// Each triangle has the same area, 2/width.
    Area,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Log {
    Ln,
    Log10,
    /// 10·log10.
    Decibel,
}

/// Which of the two comes first in the model's input.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum MelLayout {
    #[default]
    BandsTime,
    TimeBands,
}

impl Mel {
    /// Of windows of `length` samples at `rate`.
    pub(super) fn new(fields: MelFields, rate: u32, length: usize) -> Result<Self, String> {
        let fft = fields.fft.unwrap_or(fields.frame);
        if !(2..=FRAME_MAX).contains(&fields.frame) || !(1..=length).contains(&fields.hop) {
            return Err(format!(
                "`frame` = {} must be 2 to {FRAME_MAX} and `hop` = {} 1 to `length`",
                fields.frame, fields.hop
            ));
        }
        if !(fields.frame..=FRAME_MAX).contains(&fft) {
            return Err(format!("`fft` = {fft} must be `frame` = {} to {FRAME_MAX}", fields.frame));
        }
        let mut rest = fft;
        while rest > 1 {
            let factor = factor(rest);
            if factor > FACTOR_MAX {
                return Err(format!("`fft` = {fft} has the prime factor {factor}; powers of two are usual"));
            }
            rest /= factor;
        }
        let MelFields { bands, low_hz, high_hz, log_offset, .. } = fields;
        if !(1..=BANDS_MAX).contains(&bands) {
            return Err(format!("`bands` = {bands} must be 1 to {BANDS_MAX}"));
        }
        let nyquist = f64::from(rate) / 2.0;
        if !(0.0 <= low_hz && low_hz < high_hz && high_hz <= nyquist) {
            return Err(format!(
                "`low_hz` = {low_hz} must be 0 or more and below `high_hz` = {high_hz}, which is at most half of `rate`: \
                 {nyquist}"
            ));
        }
        if !(log_offset > 0.0 && log_offset.is_finite()) {
            return Err(format!("`log_offset` = {log_offset} must be above 0: silence has no logarithm"));
        }
        if fields.pad == Pad::Reflect && fft / 2 >= length {
            return Err(format!("`length` = {length} is too short to be reflected by half of `fft` = {fft}"));
        }
        let padded = if fields.pad == Pad::None { length } else { length + fft / 2 * 2 };
        let taken = if fields.pad == Pad::None { fields.frame } else { fft };
        let frames = padded
            .checked_sub(taken)
            .map(|rest| 1 + rest / fields.hop)
            .ok_or_else(|| format!("`length` = {length} is shorter than one frame of {taken}"))?;
        Ok(Self { fields, frames })
    }

    /// Bands by time, or the other way round.
    pub(super) fn spectrogram(&self, window: &[f64], rate: u32) -> Vec<f64> {
        let MelFields { frame, hop, bands, log_offset, .. } = self.fields;
        let fft = self.fields.fft.unwrap_or(frame);
        let shape: Vec<f64> = (0..frame).map(|at| self.fields.window.value(at, frame)).collect();
        let filters = self.filters(rate, fft);
        let padded = self.fields.pad.around(window, fft / 2);
        // As others do it, a frame shorter than the transform is in its middle where frames are centred.
        let lead = if self.fields.pad == Pad::None { 0 } else { (fft - frame) / 2 };
        let mut transform = Fft::new(fft);
        let mut input = vec![0.0; fft];
        let mut values = vec![0.0; bands * self.frames];
        for at in 0..self.frames {
            let samples = padded.iter().skip(at * hop + lead).zip(&shape);
            input[lead..lead + frame]
                .iter_mut()
                .zip(samples)
                .for_each(|(place, (value, shape))| *place = value * shape);
            let power = transform.power(&input);
            let spectrum: Vec<f64> = match self.fields.spectrum {
                Spectrum::Power => power.collect(),
                Spectrum::Magnitude => power.map(f64::sqrt).collect(),
            };
            for (band, (first, weights)) in filters.iter().enumerate() {
                let sum: f64 = weights.iter().zip(&spectrum[*first..]).map(|(weight, value)| weight * value).sum();
                let place = match self.fields.layout {
                    MelLayout::BandsTime => band * self.frames + at,
                    MelLayout::TimeBands => at * bands + band,
                };
                values[place] = self.fields.log.of(sum + log_offset);
            }
        }
        values
    }

    /// For each band the first frequency that counts, and the weights from there on.
    fn filters(&self, rate: u32, fft: usize) -> Vec<(usize, Vec<f64>)> {
        let MelFields { bands, low_hz, high_hz, scale, filter, .. } = self.fields;
        let (low, high) = (scale.mel(low_hz), scale.mel(high_hz));
        let corner = |at: usize| scale.hertz(low + (high - low) * at as f64 / (bands + 1) as f64);
        let bins = fft / 2 + 1;
        let hertz = |bin: usize| bin as f64 * f64::from(rate) / fft as f64;
        let one = |band: usize| {
            let (left, peak, right) = (corner(band), corner(band + 1), corner(band + 2));
            let height = if filter == Filter::Area { 2.0 / (right - left) } else { 1.0 };
            let weight = |bin: usize| {
                let rising = (hertz(bin) - left) / (peak - left);
                let falling = (right - hertz(bin)) / (right - peak);
                rising.min(falling).max(0.0) * height
            };
            let first = (0..bins).find(|bin| weight(*bin) > 0.0).unwrap_or(0);
            (first, (first..bins).map(weight).take_while(|weight| *weight > 0.0).collect())
        };
        (0..bands).map(one).collect()
    }
}

impl Shape {
    fn value(self, at: usize, length: usize) -> f64 {
        let cos = (std::f64::consts::TAU * at as f64 / length as f64).cos();
        match self {
            Self::Hann => 0.5 - 0.5 * cos,
            Self::Hamming => 0.54 - 0.46 * cos,
            Self::None => 1.0,
        }
    }
}

impl Pad {
    fn around(self, window: &[f64], half: usize) -> Vec<f64> {
        let zeros = || std::iter::repeat_n(0.0, half);
        match self {
            Self::None => window.to_vec(),
            Self::Zeros => zeros().chain(window.iter().copied()).chain(zeros()).collect(),
            Self::Reflect => {
                let before = window.iter().skip(1).take(half).rev();
                let after = window.iter().rev().skip(1).take(half);
                before.chain(window).chain(after).copied().collect()
            }
        }
    }
}

impl Scale {
    fn mel(self, hertz: f64) -> f64 {
        match self {
            Self::Htk => 2595.0 * (1.0 + hertz / 700.0).log10(),
            Self::Slaney if hertz < 1000.0 => hertz * 3.0 / 200.0,
            Self::Slaney => 15.0 + (hertz / 1000.0).ln() * 27.0 / 6.4_f64.ln(),
        }
    }

    fn hertz(self, mel: f64) -> f64 {
        match self {
            Self::Htk => 700.0 * (10_f64.powf(mel / 2595.0) - 1.0),
            Self::Slaney if mel < 15.0 => mel * 200.0 / 3.0,
            Self::Slaney => 1000.0 * ((mel - 15.0) * 6.4_f64.ln() / 27.0).exp(),
        }
    }
}

impl Log {
    fn of(self, value: f64) -> f64 {
        match self {
            Self::Ln => value.ln(),
            Self::Log10 => value.log10(),
            Self::Decibel => 10.0 * value.log10(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mel(text: &str) -> Result<Mel, String> {
        let usual = "frame = 256\nhop = 160\nbands = 40\nlow_hz = 60\nhigh_hz = 3800\nscale = \"htk\"\nfilter = \"peak\"\n\
            log = \"ln\"\nlog_offset = 1e-6\n";
        let mut table: toml::Table = usual.parse().expect("valid");
        table.extend(text.parse::<toml::Table>().expect("valid"));
        let fields = table.try_into().map_err(|error: toml::de::Error| error.message().to_owned())?;
        Mel::new(fields, 8000, 8000)
    }

    #[test]
    fn frames_are_counted_as_python_counts_them() {
        for (text, frames) in [
            ("", 49),
            ("pad = \"reflect\"", 51),
            ("frame = 8000", 1),
            ("frame = 200\nhop = 80\nfft = 256", 98),
            ("frame = 200\nhop = 80\nfft = 256\npad = \"zeros\"", 101),
        ] {
            let mel = mel(text).expect(text);
            assert_eq!(mel.frames, frames, "{text}");
            assert_eq!(mel.spectrogram(&vec![0.5; 8000], 8000).len(), 40 * frames, "{text}");
        }
    }

    #[test]
    fn both_scales_lead_back_and_a_tone_is_loudest_in_its_band() {
        for scale in [Scale::Htk, Scale::Slaney] {
            for hertz in [0.0, 100.0, 999.0, 1000.0, 3999.0] {
                assert!((scale.hertz(scale.mel(hertz)) - hertz).abs() < 1e-9, "{hertz} Hz in {scale:?}");
            }
        }
        let tone: Vec<f64> = (0..8000).map(|at| (std::f64::consts::TAU * at as f64 / 8.0).sin()).collect();
        for text in ["", "pad = \"reflect\"", "scale = \"slaney\"\nfilter = \"area\"", "layout = \"time_bands\""] {
            let mel = mel(text).expect(text);
            let values = mel.spectrogram(&tone, 8000);
            let frame: Vec<f64> = (0..40)
                .map(|band| match mel.fields.layout {
                    MelLayout::BandsTime => values[band * mel.frames + 20],
                    MelLayout::TimeBands => values[20 * 40 + band],
                })
                .collect();
            let loudest = (0..40).max_by(|one, other| frame[*one].total_cmp(&frame[*other])).expect("bands");
            let scale = mel.fields.scale;
            let (low, high) = (scale.mel(60.0), scale.mel(3800.0));
            let expected = (scale.mel(1000.0) - low) / (high - low) * 41.0 - 1.0;
            assert!((loudest as f64 - expected).abs() <= 1.0, "{text}: {loudest}, not {expected}");
        }
    }

    #[test]
    fn numbers_that_cannot_be_meant_are_refused_by_name() {
        for (text, words) in [
            ("hop = 0", "`hop` = 0"),
            ("frame = 1", "`frame` = 1"),
            ("fft = 128", "`fft` = 128 must be `frame` = 256"),
            ("fft = 257", "prime factor 257"),
            ("bands = 0", "`bands` = 0"),
            ("high_hz = 4001", "at most half of `rate`: 4000"),
            ("low_hz = 3800", "below `high_hz`"),
            ("log_offset = 0", "`log_offset` = 0"),
            ("frame = 8001\nfft = 8192", "shorter than one frame"),
            ("scale = \"bark\"", "bark"),
            ("hops = 3", "hops"),
        ] {
            let error = mel(text).expect_err(text);
            assert!(error.contains(words), "`{error}` does not say `{words}`");
        }
    }
}
