//! Doubt that is learned from verdicts: how probable it is that the cloud contradicts an answer, by all its measures together.
//!
//! A logistic regression on the log-odds of the measures, taken one verdict at a time: its covariance is kept up by Sherman
//! and Morrison's formula, which is Newton's method one label at a time. No sample is kept.
//!
//! It counts for nothing until it ranks answers better than the measure that `score_min` speaks of. Only spot checks are asked
//! whether it does, because they are drawn whatever the answer, and each ranks before it teaches: the areas under the two
//! ROC curves are compared, with the variance of their difference (DeLong, DeLong and Clarke-Pearson 1988). Once it counts,
//! it stays as it is: a certificate is about one way to rank. It is given up when it no longer ranks better.

use alloc::vec;
use alloc::vec::Vec;

use hedge_proto::{Doubt, LearnedFigures, Measure};
use serde::{Deserialize, Serialize};

use super::bins::{bin, log_odds, share};
use super::calibration::Calibration;
use super::flicker::counted;

/// A weight for each measure. That of the learned one is every answer's, whatever its measures.
const WEIGHTS: usize = Measure::ALL.len();

/// Log-odds are from −16 to 16; in these units weights are about one.
const UNIT: f64 = 4.0;

/// Weights before the first verdict are 0, give or take this, squared.
const PRIOR: f64 = 4.0;

/// It is decided when so many answers were contradicted, and each time that there are twice as many, up to the last. What was
/// seen before that is forgotten then, and at each look while the learned doubt counts: the input may have changed.
const FIRST_LOOK: f64 = 50.0;
const LAST_LOOK: f64 = 800.0;

/// With so many standard errors it is no chance: one in a hundred, at each look.
const SURE: f64 = 2.33;

/// Of either kind, before ranks among them mean anything.
const RANKED_MIN: f32 = 20.0;

/// The fit, and how it has stood up so far.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Head {
    learning: Weights,
    /// Row by row.
    covariance: Vec<f64>,
    /// What counts, if anything learned does.
    used: Option<Weights>,
    contest: Contest,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(transparent)]
struct Weights(Vec<f64>);

impl Default for Head {
    fn default() -> Self {
        let mut covariance = vec![0.0; WEIGHTS * WEIGHTS];
        (0..WEIGHTS).for_each(|at| covariance[at * WEIGHTS + at] = PRIOR);
        Self { learning: Weights(vec![0.0; WEIGHTS]), covariance, used: None, contest: Contest::new() }
    }
}

impl Head {
    /// What was kept by a version with other measures is of no use.
    pub(super) fn is_whole(&self) -> bool {
        let weights = [Some(&self.learning), self.used.as_ref()];
        let numbers = weights.into_iter().flatten().map(|weights| &weights.0);
        numbers.clone().all(|numbers| numbers.len() == WEIGHTS)
            && self.covariance.len() == WEIGHTS * WEIGHTS
            && numbers.chain([&self.covariance]).flatten().all(|number| number.is_finite())
    }

    pub(super) fn is_used(&self) -> bool {
        self.used.is_some()
    }

    /// The answer's doubt with what was learned, if that counts. What an earlier fit said is left out.
    pub(super) fn seen(&self, doubt: &Doubt) -> Doubt {
        let plain = doubt.without(Measure::Learned);
        self.used.as_ref().map_or(plain, |used| plain.with(Measure::Learned, used.doubt(&plain)))
    }

    /// Takes in what became of an answer. True if another doubt counts from now on.
    pub(super) fn learn(&mut self, doubt: &Doubt, (loss, weight): (f32, f32), check: bool) -> bool {
        let plain = doubt.without(Measure::Learned);
        let Some((_, own)) = counted(&plain) else { return false };
        let loss = if loss.is_nan() { 1.0 } else { loss.clamp(0.0, 1.0) };
        let looks = check && {
            let learned = self.used.as_ref().unwrap_or(&self.learning).doubt(&plain);
            self.contest.saw([bin(own), bin(learned)], loss)
        };
        self.fit(&plain, f64::from(loss), f64::from(weight));
        if !looks {
            return false;
        }
        let (better, error) = self.contest.better_by();
        match self.used {
            None if better > SURE * error => self.used = Some(self.learning.clone()),
            // What is not shown to be worse stays: a change costs what is certified.
            Some(_) if better < -SURE * error => *self = Self::default(),
            None if self.contest.next_look <= LAST_LOOK => return false,
            _ => {
                self.contest = Contest::new();
                return false;
            }
        }
        self.contest = Contest::new();
        true
    }

    fn fit(&mut self, doubt: &Doubt, loss: f64, weight: f64) {
        let by = inputs(doubt);
        let expected = probability(self.learning.sum(&by));
        let curvature = weight * expected * (1.0 - expected);
        let along: Vec<f64> = self.covariance.chunks(WEIGHTS).map(|row| dot(row, &by)).collect();
        let shrink = curvature / (1.0 + curvature * dot(&along, &by));
        for (row, one) in self.covariance.chunks_mut(WEIGHTS).zip(&along) {
            row.iter_mut().zip(&along).for_each(|(cell, other)| *cell -= shrink * one * other);
        }
        for (own, row) in self.learning.0.iter_mut().zip(self.covariance.chunks(WEIGHTS)) {
            *own += weight * (loss - expected) * dot(row, &by);
        }
    }

    pub(super) fn figures(&self) -> LearnedFigures {
        let (better_by, error) = self.contest.better_by();
        let [plain, learned] = &self.contest.ranked;
        LearnedFigures {
            used: self.is_used(),
            checks: plain.labels(),
            auroc: learned.ranking(),
            plain_auroc: plain.ranking(),
            #[expect(clippy::cast_possible_truncation, reason = "two small numbers")]
            better_by: (self.contest.contradicted.count > 0.0).then_some((better_by as f32, error as f32)),
        }
    }
}

impl Weights {
    fn sum(&self, by: &[f64; WEIGHTS]) -> f64 {
        dot(&self.0, by)
    }

    fn doubt(&self, doubt: &Doubt) -> f32 {
        #[expect(clippy::cast_possible_truncation, reason = "a probability")]
        let doubt = probability(self.sum(&inputs(doubt))) as f32;
        doubt
    }
}

fn inputs(doubt: &Doubt) -> [f64; WEIGHTS] {
    let mut inputs = [0.0; WEIGHTS];
    doubt.iter().for_each(|(measure, doubt)| inputs[measure as usize] = f64::from(log_odds(doubt)) / UNIT);
    inputs[Measure::Learned as usize] = 1.0;
    inputs
}

fn dot(one: &[f64], other: &[f64]) -> f64 {
    one.iter().zip(other).map(|(one, other)| one * other).sum()
}

fn probability(log_odds: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, reason = "clamped")]
    let log_odds = log_odds.clamp(-30.0, 30.0) as f32;
    f64::from(share(log_odds))
}

/// Two ways to rank the same answers.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Contest {
    /// By the plain doubt, and by the learned one.
    ranked: [Calibration; 2],
    /// By how much more of the others the learned doubt sets an answer apart from than the plain one: of answers that were
    /// contradicted, and of those that were not.
    contradicted: Differences,
    confirmed: Differences,
    next_look: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Differences {
    count: f64,
    sum: f64,
    squares: f64,
}

impl Differences {
    fn add(&mut self, difference: f64, count: f64) {
        self.count += count;
        self.sum += count * difference;
        self.squares += count * difference * difference;
    }

    fn mean(&self) -> f64 {
        self.sum / self.count.max(1.0)
    }

    /// Of the mean, squared.
    fn error(&self) -> f64 {
        let mean = self.mean();
        (self.squares / self.count.max(1.0) - mean * mean).max(0.0) / self.count.max(1.0)
    }
}

impl Contest {
    fn new() -> Self {
        Self { next_look: FIRST_LOOK, ..Self::default() }
    }

    /// True if it is time to decide.
    fn saw(&mut self, bins: [usize; 2], loss: f32) -> bool {
        let [plain, learned] = [0, 1].map(|way| self.ranked[way].below(bins[way], RANKED_MIN));
        if let (Some(plain), Some(learned)) = (plain, learned) {
            let [of_right, of_wrong] = [learned.0 - plain.0, learned.1 - plain.1].map(f64::from);
            self.contradicted.add(of_right, f64::from(loss));
            self.confirmed.add(-of_wrong, f64::from(1.0 - loss));
        }
        self.ranked.iter_mut().zip(bins).for_each(|(ranked, bin)| ranked.learn(bin, loss, 1.0));
        if self.contradicted.count < self.next_look {
            return false;
        }
        self.next_look *= 2.0;
        true
    }

    /// The area under the learned doubt's curve less that under the plain one's, and its standard error.
    fn better_by(&self) -> (f64, f64) {
        let [plain, learned] = [0, 1].map(|way| f64::from(self.ranked[way].ranking().unwrap_or(0.5)));
        (learned - plain, libm::sqrt(self.contradicted.error() + self.confirmed.error()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    /// Answers whose score says how probably they are wrong only in part; the rest is what the model says itself.
    fn answer(chance: &mut Chance, of_score: f32) -> (Doubt, f32) {
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        let [own, hidden] = [(); 2].map(|()| log_odds(chance.share() as f32 * 0.98 + 0.01));
        let own = own - 1.0;
        let wrong = chance.share() < f64::from(share(of_score * own + (1.0 - of_score) * hidden - 1.0));
        let doubt = Doubt::NONE.with(Measure::Score, share(own)).with(Measure::Confidence, share(hidden));
        (doubt, if wrong { 1.0 } else { 0.0 })
    }

    /// After how many spot checks the learned doubt counts.
    fn used_after(seed: u64, checks: u32, of_score: f32) -> Option<u32> {
        let (mut head, mut chance) = (Head::default(), Chance::from_seed(seed));
        (0..checks).find(|_| {
            let (doubt, loss) = answer(&mut chance, of_score);
            head.learn(&doubt, (loss, 1.0), true)
        })
    }

    #[test]
    fn what_the_score_does_not_know_is_learned_and_counts_from_then_on() {
        for seed in 0..10 {
            let after = used_after(seed, 3000, 0.5).expect("it ranks better");
            assert!((50..1500).contains(&after), "{seed}: {after}");
        }
    }

    #[test]
    fn where_the_score_knows_all_nothing_else_counts() {
        let used = (0..200).filter(|seed| used_after(*seed, 3000, 1.0).is_some()).count();
        assert!(used <= 6, "{used} of 200 by chance");
    }

    #[test]
    fn verdicts_on_what_was_sent_for_its_doubt_teach_and_decide_nothing() {
        let (mut head, mut chance) = (Head::default(), Chance::from_seed(1));
        for _ in 0..5000 {
            let (doubt, loss) = answer(&mut chance, 0.5);
            assert!(!head.learn(&doubt, (loss, 1.0), false));
        }
        let weights = [Measure::Score, Measure::Confidence].map(|measure| head.learning.0[measure as usize] / UNIT);
        assert!(weights.iter().all(|weight| (0.4..0.6).contains(weight)), "{weights:?}");
        assert_eq!((head.is_used(), head.figures().checks), (false, 0.0));
    }

    #[test]
    fn one_that_has_become_worse_is_given_up_and_one_that_only_may_be_is_not() {
        let (mut head, mut chance) = (Head::default(), Chance::from_seed(2));
        let mut changes = Vec::new();
        for check in 0..12_000 {
            let (doubt, mut loss) = answer(&mut chance, 0.5);
            let counted = head.seen(&doubt).get(Measure::Learned);
            if check >= 6000 {
                // What the model says of itself has come to mean the opposite.
                let hidden = doubt.get(Measure::Confidence).map_or(0.0, log_odds);
                loss = if chance.share() < f64::from(share(-hidden - 1.0)) { 1.0 } else { 0.0 };
            }
            if head.learn(&doubt, (loss, 1.0), true) {
                changes.push((check, head.is_used(), counted.is_some()));
            }
        }
        assert!(matches!(changes[..], [(..6000, true, false), (6000.., false, true), ..]), "{changes:?}");
    }

    #[test]
    fn no_word_of_a_cloud_makes_it_say_what_is_no_probability() {
        let (mut head, mut chance) = (Head::default(), Chance::from_seed(3));
        let odd = [0.0, 1.0, 1e-30, 0.5];
        for at in 0..20_000_usize {
            let mut doubt = Doubt::NONE;
            for (place, measure) in Measure::ALL.iter().enumerate().filter(|(place, _)| (at >> place) & 1 == 0) {
                doubt = doubt.with(*measure, odd[(at + place) % 4]);
            }
            let loss = [0.0, 1.0, f32::NAN, 0.3][at / 5 % 4];
            head.learn(&doubt, (loss, [1.0, 4.0][at % 2]), chance.share() < 0.5);
            let learned = head.seen(&doubt).get(Measure::Learned);
            assert!(learned.is_none_or(|learned| (0.0..=1.0).contains(&learned)), "{at}: {learned:?}");
        }
        assert!(head.is_whole());
    }

    #[test]
    fn what_a_version_with_other_measures_has_kept_is_of_no_use() {
        let kept = Head::default();
        assert!(kept.is_whole());
        for spoil in [
            (|head: &mut Head| head.learning.0.truncate(4)) as fn(&mut Head),
            |head| head.covariance.truncate(WEIGHTS),
            |head| head.used = Some(Weights(vec![0.0; WEIGHTS + 1])),
            |head| head.covariance[3] = f64::NAN,
        ] {
            let mut other = kept.clone();
            spoil(&mut other);
            assert!(!other.is_whole());
        }
    }
}
