//! From outputs with known classes to a temperature and a threshold. No IO.

use hedge_core::judge::bins::bin;
use hedge_core::judge::calibration::Calibration;
use hedge_inference::bundle::{Ranked, Ranking};
use hedge_inference::task::{OutputKind, Scores, Temperature};

use crate::samples::Labelled;

/// Temperatures outside are a sign of wrong labels, not of a badly calibrated model.
const TEMPERATURE_MIN: f64 = 0.05;
const TEMPERATURE_MAX: f64 = 20.0;

/// Halvings of the search interval by the golden ratio: 40 leave less than a millionth of it.
const SEARCH_STEPS: usize = 40;

/// Bins of the calibration error, as in Guo et al. 2017.
const BINS: usize = 15;

/// What is right about a model's answers at one reading of its outputs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Quality {
    pub(super) accuracy: f64,
    /// Mean of minus the logarithm of the right class' score.
    pub(super) log_loss: f64,
    /// The mean distance between score and accuracy.
    pub(super) calibration_error: f64,
}

/// A best score and whether the answer was right.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Scored {
    pub(super) score: f32,
    pub(super) right: bool,
    /// What the right class scored.
    pub(super) of_right: f32,
    /// What the model itself doubts.
    pub(super) doubt: Option<f32>,
}

/// The temperature with the least log loss (Guo et al. 2017), rounded to three decimals: golden-section search
/// over its logarithm, in which the loss has one valley.
pub(super) fn fit_temperature(known: &[Labelled]) -> f64 {
    let ratio = (5_f64.sqrt() - 1.0) / 2.0;
    let (mut low, mut high) = (TEMPERATURE_MIN.ln(), TEMPERATURE_MAX.ln());
    let loss = |logarithm: f64| log_loss(known, logarithm.exp());
    let (mut left, mut right) = (high - ratio * (high - low), low + ratio * (high - low));
    let (mut left_loss, mut right_loss) = (loss(left), loss(right));
    for _ in 0..SEARCH_STEPS {
        if left_loss < right_loss {
            (high, right, right_loss) = (right, left, left_loss);
            left = high - ratio * (high - low);
            left_loss = loss(left);
        } else {
            (low, left, left_loss) = (left, right, right_loss);
            right = low + ratio * (high - low);
            right_loss = loss(right);
        }
    }
    (((low + high) / 2.0).exp() * 1000.0).round() / 1000.0
}

fn log_loss(known: &[Labelled], temperature: f64) -> f64 {
    let loss = |sample: &Labelled| {
        let scaled = |logit: f32| f64::from(logit) / temperature;
        let greatest = sample.output.iter().copied().map(scaled).fold(f64::NEG_INFINITY, f64::max);
        let sum: f64 = sample.output.iter().map(|logit| (scaled(*logit) - greatest).exp()).sum();
        let right: f64 = sample.classes.iter().map(|class| (scaled(sample.output[*class]) - greatest).exp()).sum();
        sum.ln() - right.max(f64::MIN_POSITIVE).ln()
    };
    known.iter().map(loss).sum::<f64>() / known.len() as f64
}

/// The best score of each sample, or why one cannot be read.
pub(super) fn score(known: &[Labelled], kind: OutputKind) -> anyhow::Result<Vec<Scored>> {
    let scored = |sample: &Labelled| {
        let scores = Scores::read(&sample.output, kind)?;
        let best = scores.top(1);
        let of_right = sample.classes.iter().map(|class| scores.as_slice()[*class]).sum();
        let right = sample.classes.contains(&best[0].class);
        Ok(Scored { score: best[0].score, right, of_right, doubt: sample.doubt })
    };
    known.iter().map(scored).collect()
}

pub(super) fn quality(known: &[Labelled], kind: OutputKind) -> anyhow::Result<Quality> {
    let scored = score(known, kind)?;
    let log_loss = match kind {
        OutputKind::Logits { temperature } => log_loss(known, f64::from(temperature.value())),
        _ => {
            let loss = |sample: &Scored| -f64::from(sample.of_right.max(f32::MIN_POSITIVE)).ln();
            scored.iter().map(loss).sum::<f64>() / scored.len() as f64
        }
    };
    Ok(Quality { accuracy: accuracy(&scored), log_loss, calibration_error: calibration_error(&scored) })
}

/// The share that is right; 1 of nothing.
pub(super) fn accuracy(scored: &[Scored]) -> f64 {
    if scored.is_empty() {
        return 1.0;
    }
    scored.iter().filter(|sample| sample.right).count() as f64 / scored.len() as f64
}

pub(super) fn calibration_error(scored: &[Scored]) -> f64 {
    let mut bins = [(0.0, 0.0); BINS];
    for sample in scored {
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a score is from 0 to 1")]
        let bin = ((sample.score * BINS as f32) as usize).min(BINS - 1);
        bins[bin].0 += f64::from(sample.score);
        bins[bin].1 += f64::from(u8::from(sample.right));
    }
    bins.iter().map(|(scores, right)| (scores - right).abs()).sum::<f64>() / scored.len() as f64
}

/// How well doubt tells wrong answers from right ones: that of the score, and the model's own if it has one. `None` if all are
/// right, or all wrong.
pub(super) fn ranking(scored: &[Scored]) -> Option<Ranking> {
    let ranked = |doubt: fn(&Scored) -> Option<f32>| {
        let mut ranked = Calibration::default();
        for sample in scored {
            ranked.learn(bin(doubt(sample)?), f32::from(u8::from(!sample.right)), 1.0);
        }
        Some(Ranked { auroc: ranked.ranking()?, within: ranked.ranking_within()? })
    };
    Some(Ranking {
        samples: u32::try_from(scored.len()).unwrap_or(u32::MAX),
        score: ranked(|sample| Some(1.0 - sample.score))?,
        confidence: ranked(|sample| sample.doubt),
    })
}

/// The highest threshold (four decimals) that defers at most `share` of the samples: those below it.
pub(super) fn score_min(mut scores: Vec<f32>, share: f64) -> f32 {
    scores.sort_unstable_by(f32::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of a length")]
    let deferred = (share * scores.len() as f64) as usize;
    let lowest_kept = scores.get(deferred).copied().unwrap_or(1.0);
    (lowest_kept * 10_000.0).floor() / 10_000.0
}

pub(super) fn logits(temperature: f64) -> anyhow::Result<OutputKind> {
    #[expect(clippy::cast_possible_truncation, reason = "three decimals between 0.05 and 20")]
    Ok(OutputKind::Logits { temperature: Temperature::new(temperature as f32)? })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Samples whose true temperature is known: of every hundred with the logits (d, 0), the share that softmax
    /// of d gives is in class 0, then all logits are multiplied.
    fn overconfident(factor: f32) -> Vec<Labelled> {
        let mut known = Vec::new();
        for (distance, of_hundred) in [(0.405_465_f32, 60), (1.386_294, 80), (2.944_439, 95)] {
            for at in 0..100 {
                let output = vec![distance * factor, 0.0];
                known.push(Labelled { number: at, output, doubt: None, classes: vec![usize::from(at >= of_hundred)] });
            }
        }
        known
    }

    #[test]
    fn the_temperature_undoes_overconfidence() {
        for factor in [0.5_f32, 1.0, 3.0] {
            let fitted = fit_temperature(&overconfident(factor));
            assert!((fitted - f64::from(factor)).abs() < 0.01, "{fitted} for {factor}");
        }
        let known = overconfident(3.0);
        let before = quality(&known, logits(1.0).expect("valid")).expect("usable");
        let after = quality(&known, logits(fit_temperature(&known)).expect("valid")).expect("usable");
        assert!(after.calibration_error < 0.01 && after.calibration_error < before.calibration_error);
        assert!(after.log_loss < before.log_loss);
    }

    #[test]
    fn a_sample_of_a_name_that_two_classes_have_is_right_with_either() {
        // r, crane, crane: the second crane is as right as the first.
        let known =
            |output: [f32; 3]| Labelled { number: 0, output: output.to_vec(), doubt: None, classes: vec![1, 2] };
        let known = [known([0.0, 9.0, 0.0]), known([0.0, 0.0, 9.0])];
        let quality = quality(&known, logits(1.0).expect("valid")).expect("usable");
        assert_eq!(quality.accuracy, 1.0);
        assert!(quality.log_loss < 0.001, "{}", quality.log_loss);
    }

    #[test]
    fn the_threshold_never_defers_more_than_the_wanted_share() {
        let scored: Vec<Scored> =
            (0..10).map(|at| Scored { score: 0.1 * at as f32, right: true, of_right: 0.0, doubt: None }).collect();
        let scores = |scored: &[Scored]| scored.iter().map(|sample| sample.score).collect();
        for share in [0.0, 0.2, 0.25, 0.99, 1.0] {
            let score_min = score_min(scores(&scored), share);
            let deferred = scored.iter().filter(|sample| sample.score < score_min).count();
            assert!(deferred as f64 / 10.0 <= share, "{deferred} at {share}");
        }
        assert_eq!(score_min(scores(&scored), 0.2), 0.2);
    }
}
