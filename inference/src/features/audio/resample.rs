//! Another sample rate, by band-limited interpolation (Smith, "Digital Audio Resampling", 1984).
//!
//! Each value is a sum of its neighbours weighted by a sinc that a Kaiser window ends. Going down, the sinc is as much
//! wider as the rate is lower, so that what the lower rate cannot hold is gone and does not come back as other tones.

use std::ops::Range;
use std::sync::LazyLock;

/// Zero crossings of the sinc on each side. With the window below, what is above the new limit is 70 dB down.
const CROSSINGS: usize = 32;

/// Values of the sinc between two crossings; linear between them, the error is 106 dB down.
const STEPS: usize = 512;

/// The share of the band that passes: the rest is where the filter falls.
const PASSED: f64 = 0.95;

/// The shape of the Kaiser window.
const BETA: f64 = 7.0;

static SINC: LazyLock<Vec<f64>> = LazyLock::new(|| {
    let value = |at: usize| {
        let x = at as f64 / STEPS as f64;
        let angle = std::f64::consts::PI * x;
        let sinc = if at == 0 { 1.0 } else { angle.sin() / angle };
        let inside = (1.0 - (x / CROSSINGS as f64).powi(2)).max(0.0);
        sinc * bessel(BETA * inside.sqrt()) / bessel(BETA)
    };
    // One more, so that there always is a next one.
    (0..=CROSSINGS * STEPS).map(value).chain([0.0]).collect()
});

/// The modified Bessel function of the first kind, order 0.
fn bessel(x: f64) -> f64 {
    let mut term = 1.0;
    let terms = (1..=40).map(|k| {
        term *= (x / 2.0 / f64::from(k)).powi(2);
        term
    });
    1.0 + terms.sum::<f64>()
}

/// How many samples at `to` a recording of `frames` at `from` has.
pub(super) fn resampled_length(frames: usize, from: u32, to: u32) -> usize {
    let length = (frames as u64).saturating_mul(to.into()).div_ceil(from.max(1).into());
    usize::try_from(length).unwrap_or(usize::MAX)
}

/// The samples of this range at the rate `to`, of a recording at `from` whose samples are 0 beyond its ends.
pub(super) fn resample(range: Range<usize>, from: u32, to: u32, sample: impl Fn(usize) -> f64) -> Vec<f64> {
    if from == to {
        return range.map(sample).collect();
    }
    let step = f64::from(from) / f64::from(to);
    let scale = PASSED * (1.0 / step).min(1.0);
    let reach = CROSSINGS as f64 / scale;
    // The places of `up` values among their neighbours repeat with the next `up`, which are `down` neighbours further on.
    let common = common(from.into(), to.into());
    let (up, down) = (u64::from(to) / common, u64::from(from) / common);
    let (up, down) = (usize::try_from(up).unwrap_or(usize::MAX), usize::try_from(down).unwrap_or(usize::MAX));
    let mut kept: Vec<Option<Weights>> = vec![None; if up <= PHASES_MAX { up } else { 1 }];
    // From the first neighbour of the first value to the last of the last, each read once.
    let first = place(range.start as f64 * step - reach);
    let last = place(range.end as f64 * step + reach);
    let near: Vec<f64> = (first.max(0)..=last.max(0)).map(|at| sample(usize::try_from(at).unwrap_or(0))).collect();
    let value = |at: usize| {
        let (turn, phase) = (at / up * down, at % up);
        let slot = if up <= PHASES_MAX { phase } else { 0 };
        if up > PHASES_MAX {
            kept[slot] = None;
        }
        let weights = kept[slot].get_or_insert_with(|| Weights::of(phase as f64 * step, scale, reach));
        let begin = turn as i64 + weights.first - first.max(0);
        // Before the beginning is silence.
        let silent = usize::try_from(-begin).unwrap_or(0);
        let heard = near.get(usize::try_from(begin).unwrap_or(0)..).unwrap_or_default();
        weights.values.iter().skip(silent).zip(heard).map(|(weight, sample)| weight * sample).sum()
    };
    range.map(value).collect()
}

/// The most places whose weights are kept: 44.1 kHz to 8 kHz has 80.
const PHASES_MAX: usize = 512;

/// How much each neighbour of a place counts.
#[derive(Debug, Clone)]
struct Weights {
    /// The first neighbour, by the same count as the place.
    first: i64,
    values: Vec<f64>,
}

impl Weights {
    fn of(centre: f64, scale: f64, reach: f64) -> Self {
        let (first, last) = (place((centre - reach).ceil()), place((centre + reach).floor()));
        let weight = |at: i64| {
            let x = ((at as f64 - centre) * scale).abs() * STEPS as f64;
            let whole = usize::try_from(place(x)).unwrap_or(0).min(SINC.len() - 2);
            let share = x - whole as f64;
            scale * (SINC[whole] * (1.0 - share) + SINC[whole + 1] * share)
        };
        Self { first, values: (first..=last).map(weight).collect() }
    }
}

/// The whole number below.
#[expect(clippy::cast_possible_truncation, reason = "places within a recording, or a little before it")]
fn place(at: f64) -> i64 {
    at.floor() as i64
}

/// The greatest common divisor.
fn common(one: u64, other: u64) -> u64 {
    if other == 0 { one } else { common(other, one % other) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECONDS: usize = 1;

    fn tone(hertz: f64, rate: u32) -> impl Fn(usize) -> f64 {
        move |at| {
            let inside = at < rate as usize * SECONDS;
            let angle = std::f64::consts::TAU * hertz * at as f64 / f64::from(rate);
            if inside { angle.sin() } else { 0.0 }
        }
    }

    /// The largest difference between a tone at another rate and what is made of it, away from the ends.
    fn error(hertz: f64, from: u32, to: u32, expected: impl Fn(usize) -> f64) -> f64 {
        let (begin, end) = (to as usize / 4, to as usize * 3 / 4);
        let made = resample(begin..end, from, to, tone(hertz, from));
        made.iter().zip(begin..).map(|(value, at)| (value - expected(at)).abs()).fold(0.0, f64::max)
    }

    #[test]
    fn a_tone_is_the_same_tone_at_every_rate_of_a_microphone() {
        for from in [8000, 11_025, 16_000, 22_050, 32_000, 44_100, 48_000, 96_000] {
            for hertz in [50.0, 440.0, 3000.0] {
                let error = error(hertz, from, 8000, tone(hertz, 8000));
                assert!(error < 1e-3, "{hertz} Hz from {from}: {error}");
            }
            assert_eq!(resampled_length(from as usize, from, 8000), 8000);
        }
        let error = error(440.0, 8000, 16_000, tone(440.0, 16_000));
        assert!(error < 1e-3, "up: {error}");
    }

    #[test]
    fn a_tone_too_high_for_the_lower_rate_does_not_come_back_as_another() {
        for hertz in [4200.0, 5000.0, 7000.0, 12_000.0, 20_000.0] {
            let left = error(hertz, 48_000, 8000, |_| 0.0);
            assert!(left < 1e-3, "{hertz} Hz leaves {left}");
        }
    }

    #[test]
    fn a_part_is_the_part_of_the_whole_and_the_same_rate_changes_nothing() {
        let whole = resample(0..8000, 44_100, 8000, tone(440.0, 44_100));
        assert_eq!(resample(100..200, 44_100, 8000, tone(440.0, 44_100)), whole[100..200]);
        let plain: Vec<f64> = (0..8000).map(tone(440.0, 8000)).collect();
        assert_eq!(resample(0..8000, 8000, 8000, tone(440.0, 8000)), plain);
    }
}
