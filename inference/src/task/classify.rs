//! One label for the whole sample: a number for each class, as probabilities.

use std::borrow::Cow;

use hedge_core::judge::InvalidSetting;
use hedge_proto::{Doubt, LabelScore, Measure, Output, SCORES_MAX};
use serde::Deserialize;

use super::{Tensors, Unusable, label};

/// Which output holds the classes' numbers, and what they are.
#[derive(Debug, Clone, PartialEq)]
pub struct Classify {
    pub name: String,
    pub kind: OutputKind,
}

impl Classify {
    /// A number for each class; `labels` is 0 if nobody knows how many there are.
    pub fn numbers(&self, outputs: &Tensors, labels: usize) -> Result<Vec<f32>, Unusable> {
        self.looked_at(outputs, labels).map(Cow::into_owned)
    }

    fn looked_at<'a>(&self, outputs: &'a Tensors, labels: usize) -> Result<Cow<'a, [f32]>, Unusable> {
        let values = &outputs.get(&self.name)?.data;
        match values.as_slice() {
            [second] if labels == 2 => Ok(self.kind.of_two(*second).to_vec().into()),
            _ if labels > 0 && values.len() != labels => Err(Unusable::Classes { values: values.len(), labels }),
            _ => Ok(values.into()),
        }
    }

    pub(super) fn read(&self, outputs: &Tensors, labels: &[String]) -> Result<(Output, Doubt), Unusable> {
        let scores = Scores::read(&self.looked_at(outputs, labels.len())?, self.kind)?;
        let named = |best: &ClassScore| LabelScore { label: label(labels, best.class).into_owned(), score: best.score };
        let top = scores.top(SCORES_MAX);
        Ok((Output::Classes(top.iter().map(named).collect()), scores.doubt_of(&top)))
    }
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum KindWord {
    Logits,
    Probabilities,
    Percent,
    Bytes,
}

impl KindWord {
    /// With the temperature that the manifest gives beside it.
    pub(super) fn with(self, temperature: Option<f32>) -> Result<OutputKind, String> {
        let kind = match (self, temperature) {
            (Self::Logits, temperature) => OutputKind::Logits {
                temperature: Temperature::new(temperature.unwrap_or(1.0)).map_err(|error| error.to_string())?,
            },
            (_, Some(_)) => return Err("`temperature` divides logits; remove it, or say kind = \"logits\"".into()),
            (Self::Probabilities, None) => OutputKind::Probabilities,
            (Self::Percent, None) => OutputKind::Percent,
            (Self::Bytes, None) => OutputKind::Bytes,
        };
        Ok(kind)
    }
}

/// How a model's raw output is to be read.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum OutputKind {
    /// Any real numbers; probabilities are `softmax(logits / temperature)`. What a log-softmax gives are logits, too:
    /// their softmax is the softmax they are logarithms of.
    Logits { temperature: Temperature },
    /// Already probabilities: in [0, 1], adding up to 1.
    Probabilities,
    /// Probabilities times 100.
    Percent,
    /// Probabilities times 255, as a model gives them whose outputs are bytes.
    Bytes,
}

impl OutputKind {
    /// What the numbers of all classes add up to; none of logits.
    fn whole(self) -> Option<f32> {
        match self {
            Self::Logits { .. } => None,
            Self::Probabilities => Some(1.0),
            Self::Percent => Some(100.0),
            Self::Bytes => Some(255.0),
        }
    }

    /// The one number of a model that tells two classes apart, as a number for each: it speaks of the second.
    #[must_use]
    pub fn of_two(self, second: f32) -> [f32; 2] {
        [self.whole().map_or(0.0, |whole| whole - second), second]
    }

    /// As a manifest says it.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Logits { .. } => "logits",
            Self::Probabilities => "probabilities",
            Self::Percent => "percent",
            Self::Bytes => "bytes",
        }
    }

    /// The same numbers, before any temperature.
    #[must_use]
    pub fn uncalibrated(self) -> Self {
        match self {
            Self::Logits { .. } => Self::Logits { temperature: Temperature::ONE },
            kind => kind,
        }
    }
}

/// Divides logits before softmax so that scores mean what they say (Guo et al. 2017). Greater than 0.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Temperature(f32);

impl Temperature {
    pub const ONE: Self = Self(1.0);

    pub fn new(value: f32) -> Result<Self, InvalidSetting> {
        if value.is_finite() && value > 0.0 {
            Ok(Self(value))
        } else {
            Err(InvalidSetting { field: "temperature", value, expected: "a number above 0" })
        }
    }

    #[must_use]
    pub fn value(self) -> f32 {
        self.0
    }
}

/// Probabilities over the classes of one model: at least one, each in [0, 1], adding up to 1.
#[derive(Debug, Clone, PartialEq)]
pub struct Scores {
    values: Vec<f32>,
    /// Their entropy.
    nats: f32,
}

/// One class and its probability.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct ClassScore {
    pub class: usize,
    pub score: f32,
}

/// How far a probability may be outside of 0 to 1, and their sum from 1: float16 outputs of 1000 classes stay within it.
const ROUNDING: f32 = 0.01;

/// Half a step of a softmax that a quantiser rounded to 8 bits. Each class may be off by it.
const HALF_STEP: f32 = 1.0 / 512.0;

/// The farthest a sum may be from 1 however many classes there are. Below 0.75 a score that is scaled up would claim a
/// third more than the model said; such a sample is better sent to the cloud.
const SUM_TOLERANCE_MAX: f32 = 0.25;

fn sum_tolerance(classes: usize) -> f32 {
    (classes as f32 * HALF_STEP).clamp(ROUNDING, SUM_TOLERANCE_MAX)
}

impl Scores {
    /// Reads raw model output, one number per class.
    ///
    /// A logit of minus infinity is a class ruled out and scores 0; NaN and plus infinity are unusable.
    pub fn read(output: &[f32], kind: OutputKind) -> Result<Self, Unusable> {
        match (kind, kind.whole()) {
            (OutputKind::Logits { temperature }, _) => softmax(output, temperature),
            (_, whole) => probabilities(output, whole.unwrap_or(1.0)),
        }
    }

    /// The best classes, best first; ties keep the lower class first.
    #[must_use]
    pub fn top(&self, count: usize) -> Vec<ClassScore> {
        let mut best: Vec<ClassScore> = Vec::with_capacity(count + 1);
        let (chunks, rest) = self.values.as_chunks::<LOOKED_AT>();
        for (chunk, scores) in chunks.iter().enumerate() {
            // Nearly all of a thousand classes end here.
            let least = best.get(count.wrapping_sub(1)).map_or(f32::NEG_INFINITY, |last| last.score);
            if scores.iter().fold(false, |any, score| any | (*score > least)) {
                better(&mut best, count, chunk * LOOKED_AT, scores);
            }
        }
        better(&mut best, count, chunks.len() * LOOKED_AT, rest);
        best
    }

    #[must_use]
    pub fn as_slice(&self) -> &[f32] {
        &self.values
    }

    /// How unsure they are. With a single class there is no rival, so its margin is the whole score.
    #[must_use]
    pub fn doubt(&self) -> Doubt {
        self.doubt_of(&self.top(2))
    }

    /// The same, knowing the best two.
    fn doubt_of(&self, top: &[ClassScore]) -> Doubt {
        let best = top.first().map_or(0.0, |best| best.score);
        let second = top.get(1).map_or(0.0, |second| second.score);
        let doubt = Doubt::NONE.with(Measure::Score, 1.0 - best).with(Measure::Margin, 1.0 - (best - second));
        doubt.with(Measure::Entropy, self.entropy())
    }

    /// Shannon entropy as a share of its maximum, so that it means the same for 10 and 1000 classes:
    /// 0 is certainty, 1 is no idea. One class is always certain.
    #[must_use]
    pub fn entropy(&self) -> f32 {
        if self.values.len() < 2 {
            return 0.0;
        }
        (self.nats / (self.values.len() as f32).ln()).clamp(0.0, 1.0)
    }
}

fn softmax(logits: &[f32], temperature: Temperature) -> Result<Scores, Unusable> {
    if logits.is_empty() {
        return Err(Unusable::Empty);
    }
    // Each is looked at, which takes less time than to stop at the first.
    if logits.iter().fold(false, |bad, logit| bad | logit.is_nan() | (*logit == f32::INFINITY)) {
        return Err(Unusable::NotFinite);
    }
    let greatest = by_lanes(logits, f32::NEG_INFINITY, |most, logit| if logit > most { logit } else { most });
    if greatest == f32::NEG_INFINITY {
        return Err(Unusable::NotFinite);
    }
    // The greatest logit becomes 0, so no exponential overflows and the sum is at least 1.
    let scale = temperature.0.recip();
    let mut values = vec![0.0; logits.len()];
    let sum = summed(&mut values, logits, |value, logit| {
        *value = exp((logit - greatest) * scale);
        *value
    });
    let part = sum.recip();
    // −Σ p ln p, where ln p = z − ln Σ: no logarithm for each class. What scores nothing adds nothing.
    let products = summed(&mut values, logits, |value, logit| {
        *value *= part;
        *value * ((logit - greatest) * scale).max(POWER_MIN)
    });
    Ok(Scores { values, nats: sum.ln() - products })
}

/// The sum of what `f` makes of each value and its logit, several at once.
fn summed(values: &mut [f32], logits: &[f32], f: impl Fn(&mut f32, f32) -> f32) -> f32 {
    let mut lanes = [0.0; 8];
    let ((chunks, rest), (of, of_rest)) = (values.as_chunks_mut::<8>(), logits.as_chunks::<8>());
    for (chunk, of) in chunks.iter_mut().zip(of) {
        let each = lanes.iter_mut().zip(chunk).zip(of);
        each.for_each(|((lane, value), logit)| *lane += f(value, *logit));
    }
    let sum = lanes.iter().fold(0.0, |sum, lane| sum + lane);
    rest.iter_mut().zip(of_rest).fold(sum, |sum, (value, logit)| sum + f(value, *logit))
}

/// A fold that takes several values at once. In their order each would wait for the one before.
fn by_lanes(values: &[f32], from: f32, f: impl Fn(f32, f32) -> f32) -> f32 {
    let mut lanes = [from; 8];
    let (chunks, rest) = values.as_chunks::<8>();
    for chunk in chunks {
        lanes.iter_mut().zip(chunk).for_each(|(lane, value)| *lane = f(*lane, *value));
    }
    lanes.iter().chain(rest).copied().fold(from, f)
}

/// Scores that are compared with the least of the best at once.
const LOOKED_AT: usize = 16;

/// Puts those of these scores in their places that are better than the least of the best.
fn better(best: &mut Vec<ClassScore>, count: usize, first: usize, scores: &[f32]) {
    for (at, &score) in scores.iter().enumerate() {
        if best.len() == count && best.last().is_none_or(|last| last.score >= score) {
            continue;
        }
        let place = best.iter().position(|other| other.score < score).unwrap_or(best.len());
        if place < count {
            best.insert(place, ClassScore { class: first + at, score });
            best.truncate(count);
        }
    }
}

/// e to the power of it has no digits left.
const POWER_MIN: f32 = -87.0;

/// e to the power of what is not above 0, to seven digits. The library's is called for each class; this one is computed
/// for several at once, which is most of the time of a decision about a thousand classes.
fn exp(power: f32) -> f32 {
    const LOG2_E: f32 = core::f32::consts::LOG2_E;
    /// ln 2 in two parts, of which a whole number times the first is exact (Cody and Waite 1980).
    const LN_2: (f32, f32) = (0.693_359_4, -2.121_944_4e-4);
    /// Added to a small number it leaves no room for a fraction, so the sum ends in the nearest whole number.
    const NO_FRACTION: f32 = 12_582_912.0;
    let kept = power.max(POWER_MIN);
    let shifted = kept * LOG2_E + NO_FRACTION;
    let whole = shifted - NO_FRACTION;
    let rest = (kept - whole * LN_2.0) - whole * LN_2.1;
    // Taylor: the rest is at most 0.35 from 0.
    let series = 1.0
        + rest
            * (1.0
                + rest
                    * (0.5 + rest * (1.0 / 6.0 + rest * (1.0 / 24.0 + rest * (1.0 / 120.0 + rest * (1.0 / 720.0))))));
    let exponent = shifted.to_bits().wrapping_sub(NO_FRACTION.to_bits()).wrapping_add(127) << 23;
    if power > POWER_MIN { series * f32::from_bits(exponent) } else { 0.0 }
}

/// Scores that add up to about `whole`.
fn probabilities(output: &[f32], whole: f32) -> Result<Scores, Unusable> {
    if output.is_empty() {
        return Err(Unusable::Empty);
    }
    if output.iter().any(|score| !score.is_finite()) {
        return Err(Unusable::NotFinite);
    }
    let sum: f32 = output.iter().sum();
    if (sum / whole - 1.0).abs() > sum_tolerance(output.len()) {
        return Err(Unusable::NotNormalised { sum, whole });
    }
    match output.iter().find(|score| !(-ROUNDING..=1.0 + ROUNDING).contains(&(**score / whole))) {
        Some(&score) => Err(Unusable::OutOfRange { score, whole }),
        None => {
            let values: Vec<f32> = output.iter().map(|score| (score / sum).clamp(0.0, 1.0)).collect();
            let nats = values.iter().filter(|&&value| value > 0.0).map(|&value| -value * value.ln()).sum();
            Ok(Scores { values, nats })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGITS: OutputKind = OutputKind::Logits { temperature: Temperature::ONE };

    #[test]
    fn unusable_output_is_named_and_never_a_score() {
        for (output, kind, expected) in [
            (&[][..], LOGITS, Unusable::Empty),
            (&[], OutputKind::Probabilities, Unusable::Empty),
            (&[f32::NAN, 1.0], LOGITS, Unusable::NotFinite),
            (&[f32::INFINITY, 1.0], LOGITS, Unusable::NotFinite),
            (&[f32::NEG_INFINITY; 2], LOGITS, Unusable::NotFinite),
            (&[f32::NAN], OutputKind::Probabilities, Unusable::NotFinite),
            (&[0.0, 0.0], OutputKind::Probabilities, Unusable::NotNormalised { sum: 0.0, whole: 1.0 }),
            (&[3.0, 4.0], OutputKind::Probabilities, Unusable::NotNormalised { sum: 7.0, whole: 1.0 }),
            (&[2.0, -1.0], OutputKind::Probabilities, Unusable::OutOfRange { score: 2.0, whole: 1.0 }),
        ] {
            assert_eq!(Scores::read(output, kind), Err(expected));
        }
    }

    #[test]
    fn the_best_are_those_of_a_stable_sort_of_all() {
        let mut random = 1_u32;
        for classes in 1..150 {
            let mut next = || {
                random = random.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
                ((random >> 16) % 40) as f32 / 40.0
            };
            let values: Vec<f32> = (0..classes).map(|_| next()).collect();
            let mut all: Vec<ClassScore> =
                values.iter().enumerate().map(|(class, &score)| ClassScore { class, score }).collect();
            all.sort_by(|one, other| other.score.total_cmp(&one.score));
            let scores = Scores { values, nats: 0.0 };
            for count in [0, 1, 2, 5] {
                assert_eq!(scores.top(count), all[..count.min(classes)], "{count} of {classes}");
            }
        }
    }

    #[test]
    fn a_softmax_rounded_to_eight_bits_is_read_and_one_that_lost_a_quarter_is_not() {
        let read = |output: &[f32]| Scores::read(output, OutputKind::Probabilities);
        let mut rounded = [0.0; 64];
        (rounded[0], rounded[1], rounded[2]) = (125.0 / 256.0, 125.0 / 256.0, 2.0 / 256.0);
        let scores = read(&rounded).expect("usable");
        assert_eq!(format!("{:.3}", scores.top(1)[0].score), "0.496");
        // Two numbers cannot be rounded that far off, and of a thousand no more than a quarter may be missing.
        assert!(read(&[0.49, 0.49]).is_err());
        let mut thousand = [0.0; 1000];
        thousand[0] = 0.8;
        assert!(read(&thousand).is_ok());
        thousand[0] = 0.7;
        assert!(read(&thousand).is_err());
    }

    #[test]
    fn percentages_are_read_and_named_as_such() {
        let scores = Scores::read(&[97.9, 2.1], OutputKind::Percent).expect("usable");
        assert_eq!(format!("{:.3}", scores.top(1)[0].score), "0.979");
        let error = Scores::read(&[0.5, 0.5], OutputKind::Percent).expect_err("not percentages");
        assert!(format!("{error}").starts_with("the output adds up to 1.000, not 100"));
    }

    #[test]
    fn one_number_for_two_classes_speaks_of_the_second() {
        for (kind, number) in [
            (LOGITS, 2.0),
            (OutputKind::Probabilities, 0.880_797),
            (OutputKind::Percent, 88.0797),
            (OutputKind::Bytes, 224.603),
        ] {
            let scores = Scores::read(&kind.of_two(number), kind).expect("usable");
            let best = scores.top(1)[0];
            assert_eq!((best.class, format!("{:.4}", best.score)), (1, "0.8808".into()));
        }
    }

    #[test]
    fn huge_logits_do_not_overflow_and_a_masked_class_scores_zero() {
        let scores = Scores::read(&[3e38, -3e38, f32::NEG_INFINITY], LOGITS).expect("usable");
        assert_eq!(scores.as_slice(), [1.0, 0.0, 0.0]);
    }

    #[test]
    fn the_exponential_is_that_of_the_library_to_seven_digits() {
        for step in 0..8800_u16 {
            let power = -f32::from(step) / 100.0;
            let (ours, theirs) = (exp(power), power.exp());
            assert!((ours - theirs).abs() <= theirs * 4e-7 + 2e-38, "{power}: {ours} {theirs}");
        }
        assert_eq!((exp(0.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0));
    }

    #[test]
    fn a_higher_temperature_is_less_sure() {
        let sharp = Scores::read(&[2.0, 1.0], LOGITS).expect("usable");
        let temperature = Temperature::new(2.0).expect("valid");
        let soft = Scores::read(&[2.0, 1.0], OutputKind::Logits { temperature }).expect("usable");
        assert!(soft.top(1)[0].score < sharp.top(1)[0].score);
    }

    #[test]
    fn ties_and_short_lists_have_a_defined_order() {
        let scores = Scores::read(&[0.25; 4], OutputKind::Probabilities).expect("usable");
        let classes: Vec<usize> = scores.top(9).iter().map(|entry| entry.class).collect();
        assert_eq!(classes, vec![0, 1, 2, 3]);
    }

    #[test]
    fn the_doubt_of_a_single_class_is_none() {
        let doubt = Scores::read(&[-7.0], LOGITS).expect("usable").doubt();
        assert!(doubt.iter().all(|(_, value)| value == 0.0), "{doubt:?}");
    }

    #[test]
    fn scores_always_add_up_to_one_whatever_the_logits() {
        let mut state = 7_u32;
        let mut next = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / 16_777_216.0
        };
        for round in 0..500 {
            let temperature = Temperature::new(0.05 + 20.0 * next()).expect("valid");
            let logits: Vec<f32> = (0..1 + round % 50).map(|_| 2e4 * next() - 1e4).collect();
            let scores = Scores::read(&logits, OutputKind::Logits { temperature }).expect("finite logits");
            assert!((scores.as_slice().iter().sum::<f32>() - 1.0).abs() < 1e-4);
            assert!((0.0..=1.0).contains(&scores.entropy()));
        }
    }
}
