//! What a score is worth: how often answers of this doubt were found right, learned from verdicts.
//!
//! With few labels two numbers are fitted, slope and offset of the log-odds (Platt 1999; the slope alone is a temperature);
//! with many, steps that only ever fall with doubt (isotonic regression, pool adjacent violators). No sample is kept:
//! counts by doubt are all that either needs.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use super::bins::{BINS, Bins, log_odds, middle, share};

/// Below it a fit says nothing yet.
const LABELS_MIN: f32 = 50.0;

/// From here on steps are better than two numbers. With fewer they follow chance.
const LABELS_FOR_STEPS: f32 = 2000.0;

/// What a person says counts as much as so many words of a model.
pub const PERSON_COUNTS: f32 = 4.0;

const SLOPES: (f64, f64) = (0.05, 20.0);
const OFFSET_MAX: f64 = 10.0;
const PRIOR: f64 = 2.0;
/// Newton's method needs about six, and one for each unit that the offset is away.
const STEPS_MAX: u32 = 40;

/// Answers by doubt, and how many of them were wrong.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Calibration {
    labels: Bins,
    wrong: Bins,
}

/// The error is an average over scores in so many ranges of the same width.
const RANGES: usize = 15;

impl Calibration {
    /// `loss`: how much of the answer was wrong.
    pub fn learn(&mut self, bin: usize, loss: f32, weight: f32) {
        self.labels.add(bin, weight);
        self.wrong.add(bin, weight * if loss.is_nan() { 1.0 } else { loss.clamp(0.0, 1.0) });
    }

    #[must_use]
    pub fn labels(&self) -> f32 {
        self.labels.sum()
    }

    /// How probable it is that an answer of each step of doubt is right. `None` before there are enough labels.
    #[must_use]
    pub fn fit(&self) -> Option<Fit> {
        let labels = self.labels();
        if labels < LABELS_MIN {
            return None;
        }
        Some(if labels < LABELS_FOR_STEPS { self.curve() } else { Fit::Steps(self.steps()) })
    }

    /// The curve under which the verdicts were most probable: Newton's method on two numbers.
    fn curve(&self) -> Fit {
        let (mut slope, mut offset) = (1.0_f64, 0.0_f64);
        for _ in 0..STEPS_MAX {
            // A prior as strong as a few labels holds both near what the scores say themselves.
            let (mut down, mut off) = (-PRIOR * (slope - 1.0), -PRIOR * offset);
            let (mut aa, mut ab, mut bb) = (PRIOR, 0.0, PRIOR);
            for (bin, labels) in self.labels.iter().filter(|(_, labels)| *labels > 0.0) {
                let (score, labels) = (f64::from(-log_odds(middle(bin))), f64::from(labels));
                let right = 1.0 / (1.0 + libm::exp(-(slope * score + offset)));
                let (miss, spread) =
                    (labels - f64::from(self.wrong.get(bin)) - labels * right, labels * right * (1.0 - right));
                (down, off) = (down + miss * score, off + miss);
                (aa, ab, bb) = (aa + spread * score * score, ab + spread * score, bb + spread);
            }
            let det = aa * bb - ab * ab;
            // Far from the best numbers a whole step would overshoot.
            let step = |by: f64| by.clamp(-1.0, 1.0);
            let (by, and) = (step((bb * down - ab * off) / det), step((aa * off - ab * down) / det));
            (slope, offset) = ((slope + by).clamp(SLOPES.0, SLOPES.1), (offset + and).clamp(-OFFSET_MAX, OFFSET_MAX));
            if by * by + and * and < 1e-8 {
                break;
            }
        }
        #[expect(clippy::cast_possible_truncation, reason = "two small numbers")]
        Fit::Curve { slope: slope as f32, offset: offset as f32 }
    }

    fn steps(&self) -> Vec<f32> {
        // Blocks of labels, how many of them were right, and how many steps they cover; falling shares of right ones.
        let mut blocks: Vec<(f32, f32, usize)> = Vec::new();
        for (bin, labels) in self.labels.iter() {
            let mut block = (labels, labels - self.wrong.get(bin), 1);
            while let Some(&(before, right, covers)) = blocks.last()
                && (before == 0.0 || block.0 == 0.0 || right * block.0 <= block.1 * before)
            {
                block = (block.0 + before, block.1 + right, block.2 + covers);
                blocks.pop();
            }
            blocks.push(block);
        }
        let share = |(labels, right, covers): (f32, f32, usize)| core::iter::repeat_n(right / labels.max(1.0), covers);
        blocks.into_iter().flat_map(share).collect()
    }

    /// How far what is said is from what is found, on average: the expected calibration error. Without a fit that of the
    /// scores as they are.
    #[must_use]
    pub fn error(&self, fit: Option<&Fit>) -> f32 {
        // What was said too much, of all labels in a range.
        let mut off = [0.0_f32; RANGES];
        for (bin, labels) in self.labels.iter().filter(|(_, labels)| *labels > 0.0) {
            let said = fit.map_or(1.0 - middle(bin), |fit| fit.right(bin));
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the ranges")]
            let range = ((said * RANGES as f32) as usize).min(RANGES - 1);
            off[range] += labels * said - (labels - self.wrong.get(bin));
        }
        off.iter().map(|off| off.abs()).sum::<f32>() / self.labels().max(f32::MIN_POSITIVE)
    }

    /// Of the right answers and of the wrong ones, which part is less doubtful than this step, half of the step's own counted.
    /// `None` before there are so many of each.
    pub(super) fn below(&self, step: usize, least: f32) -> Option<(f32, f32)> {
        let (labels, wrong) = (self.labels.sum(), self.wrong.sum());
        if wrong < least || labels - wrong < least {
            return None;
        }
        let below = |bins: &Bins| bins.below(step) + bins.get(step) / 2.0;
        let wrong_below = below(&self.wrong);
        Some(((below(&self.labels) - wrong_below) / (labels - wrong), wrong_below / wrong))
    }

    /// How probable it is that a wrong answer is more doubtful than a right one (the area under the ROC curve): 1/2 is
    /// chance. `None` while all were right, or all wrong.
    #[must_use]
    pub fn ranking(&self) -> Option<f32> {
        let (mut right_below, mut pairs) = (0.0_f64, 0.0_f64);
        for (bin, labels) in self.labels.iter() {
            let wrong = f64::from(self.wrong.get(bin));
            let right = f64::from(labels) - wrong;
            pairs += wrong * (right_below + right / 2.0);
            right_below += right;
        }
        let all = right_below * f64::from(self.wrong.sum());
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        (all > 0.0).then_some((pairs / all) as f32)
    }

    /// Where the ranking lies with 95 % confidence (Hanley and McNeil 1982).
    #[must_use]
    pub fn ranking_within(&self) -> Option<(f32, f32)> {
        let area = self.ranking()?;
        let wrong = self.wrong.sum();
        let right = self.labels() - wrong;
        let of = |many: f32, both: f32| (many - 1.0).max(0.0) * (both - area * area);
        let spread = area * (1.0 - area) + of(wrong, area / (2.0 - area)) + of(right, 2.0 * area * area / (1.0 + area));
        let error = 1.96 * libm::sqrtf(spread / (wrong * right));
        Some(((area - error).max(0.0), (area + error).min(1.0)))
    }
}

/// A calibration that was fitted.
#[derive(Debug, Clone, PartialEq)]
pub enum Fit {
    Curve {
        slope: f32,
        offset: f32,
    },
    /// For each step of doubt how probable it is that the answer is right.
    Steps(Vec<f32>),
}

impl Fit {
    /// How probable it is that an answer of this step of doubt is right.
    #[must_use]
    pub fn right(&self, bin: usize) -> f32 {
        match self {
            Self::Curve { slope, offset } => share(-log_odds(middle(bin)) * slope + offset),
            Self::Steps(steps) => steps[bin.min(BINS - 1)],
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    /// A model that says its scores at a third of the temperature they should have.
    fn overconfident(labels: u32) -> Calibration {
        let (mut calibration, mut chance) = (Calibration::default(), Chance::from_seed(3));
        for _ in 0..labels {
            let bin = 40 + usize::try_from(chance.next_u64() % 100).expect("small");
            let right = share(-log_odds(middle(bin)) / 3.0);
            calibration.learn(bin, if chance.share() < f64::from(right) { 0.0 } else { 1.0 }, 1.0);
        }
        calibration
    }

    #[test]
    fn few_labels_fit_a_curve_and_many_fit_steps() {
        assert_eq!(overconfident(49).fit(), None);
        let few = overconfident(500);
        let fit = few.fit().expect("enough");
        assert!(matches!(fit, Fit::Curve { slope, .. } if (0.22..0.5).contains(&slope)), "{fit:?}");
        let many = overconfident(5000);
        let fit = many.fit().expect("enough");
        assert!(matches!(fit, Fit::Steps(_)));
        assert!((1..BINS).all(|bin| fit.right(bin) <= fit.right(bin - 1)), "more doubt is never more probably right");
        let (raw, fitted) = (many.error(None), many.error(Some(&fit)));
        assert!(raw > 0.1 && fitted < 0.03, "{raw} {fitted}");
    }

    #[test]
    fn ranking_is_a_half_by_chance_and_one_where_all_wrong_answers_are_more_doubtful() {
        let mut calibration = Calibration::default();
        assert_eq!(calibration.ranking(), None);
        calibration.learn(10, 0.0, 1.0);
        calibration.learn(20, 1.0, 1.0);
        assert_eq!(calibration.ranking(), Some(1.0));
        calibration.learn(20, 0.0, 1.0);
        calibration.learn(10, 1.0, 1.0);
        assert_eq!(calibration.ranking(), Some(0.5));
    }

    #[test]
    fn a_ranking_has_an_interval_that_holds_as_often_as_it_says() {
        let (mut held, mut chance) = (0, Chance::from_seed(1));
        for _ in 0..400 {
            let mut calibration = Calibration::default();
            for _ in 0..300 {
                let bin = usize::try_from(chance.next_u64() % 100).expect("small");
                // Twice as probably wrong as the least doubtful, at the most: the area is known.
                let wrong = chance.share() < 0.2 + 0.4 * bin as f64 / 99.0;
                calibration.learn(bin, if wrong { 1.0 } else { 0.0 }, 1.0);
            }
            let (low, high) = calibration.ranking_within().expect("both kinds");
            held += u32::from((low..=high).contains(&AREA));
        }
        assert!((368..=396).contains(&held), "{held} of 400 at 95 %");
    }

    /// E over pairs: wrong answers lie at x with the density (1 + 2x) / 2, right ones with (4 - 2x) / 3.
    const AREA: f32 = 0.639;

    #[test]
    fn nothing_but_right_or_wrong_answers_is_no_trouble() {
        for loss in [0.0, 1.0, f32::NAN] {
            let mut calibration = Calibration::default();
            (0..3000).for_each(|_| calibration.learn(50, loss, 1.0));
            let fit = calibration.fit().expect("enough");
            assert!((0..BINS).all(|bin| (0.0..=1.0).contains(&fit.right(bin))));
        }
    }
}
