//! Sound: a recording to the numbers that a model takes, raw or as a log-mel spectrogram.

mod fft;
mod mel;
mod resample;
mod wav;

use serde::Deserialize;

use self::mel::{Mel, MelFields, MelLayout};
use self::resample::{resample, resampled_length};
use self::wav::{RATE_MAX, RATE_MIN, Recording};
use super::span::Span;
use super::{FeatureError, TENSOR_VALUES_MAX};

pub use self::wav::wav;

/// How a recording becomes the model's input: `value = (v - mean) / std`, where v is a sample from -1 to 1, or with
/// `mel` the logarithm of how much sound there is in a band.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct AudioInput {
    /// Samples per second; a recording at another rate is resampled.
    rate: u32,
    /// Samples that the model hears.
    length: usize,
    fit: Span,
    channels: Channels,
    mel: Option<Mel>,
    mean: f64,
    std: f64,
}

/// Which of several channels are heard.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Channels {
    #[default]
    First,
    Mean,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AudioFields {
    rate: u32,
    length: usize,
    #[serde(default = "middle")]
    fit: Span,
    #[serde(default)]
    channels: Channels,
    mel: Option<MelFields>,
    #[serde(default)]
    mean: f64,
    #[serde(default = "one")]
    std: f64,
}

fn middle() -> Span {
    Span::Middle
}

fn one() -> f64 {
    1.0
}

impl AudioInput {
    pub(super) fn new(fields: AudioFields, shape: &[usize]) -> Result<Self, String> {
        let AudioFields { rate, length, fit, channels, mel, mean, std } = fields;
        if !(RATE_MIN..=RATE_MAX).contains(&rate) {
            return Err(format!("`rate` = {rate} must be {RATE_MIN} to {RATE_MAX} samples per second"));
        }
        if !(1..=TENSOR_VALUES_MAX).contains(&length) {
            return Err(format!("`length` = {length} must be 1 to {TENSOR_VALUES_MAX} samples"));
        }
        if !mean.is_finite() || !std.is_finite() || std == 0.0 {
            return Err(format!("`mean` = {mean} and `std` = {std} must be numbers, and `std` is divided by"));
        }
        let mel = mel.map(|fields| Mel::new(fields, rate, length)).transpose()?;
        let made = match &mel {
            None => vec![length],
            Some(Mel { fields, frames }) => match fields.layout {
                MelLayout::BandsTime => vec![fields.bands, *frames],
                MelLayout::TimeBands => vec![*frames, fields.bands],
            },
        };
        // A channel of its own for one channel is how many write it.
        let sides = |shape: &[usize]| shape.iter().copied().filter(|side| *side != 1).collect::<Vec<_>>();
        if sides(shape) != sides(&made) {
            let what = if mel.is_some() { "this spectrogram" } else { "`length`" };
            return Err(format!("`shape` = {shape:?} does not hold {what}: {made:?}"));
        }
        Ok(Self { rate, length, fit, channels, mel, mean, std })
    }

    /// The numbers that the model takes of a WAV file, in its order.
    pub(super) fn values(&self, bytes: &[u8]) -> Result<Vec<f32>, FeatureError> {
        let recording = Recording::read(bytes)?;
        let found = resampled_length(recording.frames(), recording.rate, self.rate);
        let Some((seen, at)) = self.fit.fit(found, self.length) else {
            let seconds = |samples: usize| samples as f64 / f64::from(self.rate);
            let (found, wanted) = (seconds(found), seconds(self.length));
            return Err(FeatureError::NoSample {
                reason: format!("the recording takes {found:.3} s, and the model hears exactly {wanted:.3} s"),
            });
        };
        let mean = self.channels == Channels::Mean;
        let heard = resample(seen, recording.rate, self.rate, |frame| recording.sample(frame, mean));
        if let Some(index) = heard.iter().position(|value| !value.is_finite()) {
            return Err(FeatureError::Damaged { format: "WAV", reason: format!("sample {index} is no number") });
        }
        let mut window = vec![0.0; self.length];
        window[at..at + heard.len()].copy_from_slice(&heard);
        let values = match &self.mel {
            Some(mel) => mel.spectrogram(&window, self.rate),
            None => window,
        };
        #[expect(clippy::cast_possible_truncation, reason = "the model takes f32")]
        let values: Vec<f32> = values.iter().map(|value| ((value - self.mean) / self.std) as f32).collect();
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(FeatureError::NotFinite { index }),
            None => Ok(values),
        }
    }
}
