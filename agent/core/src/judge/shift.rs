//! Decides whether the input has changed, without anybody's word on any answer.
//!
//! The first thousand answers of a model are its reference. Each later one has a rank among them, and joins them as long as
//! nothing looks changed: the more there are, the less chance in them explains. Unchanged, the average rank is one half. A
//! bet that it is higher wins when answers become more doubtful. One bet a second cannot begin at every moment; a sum that
//! never falls below nothing (Page 1954) begins again by itself.
//!
//! Darkness can make a model blind and sure: then doubt falls. The same bet runs the other way round.
//!
//! A change may make only some answers worse, which hardly moves the average: so there is a bet as well that more answers
//! than before are among the most doubtful tenth.

use serde::{Deserialize, Serialize};

use super::bins::{BINS, Bins, bin};

/// The reference must be good enough that chance in it alone moves the average rank by no more than the allowance: the
/// average of 1,000 ranks has a standard deviation of 0.009. More than the most would hide a slow change.
const REFERENCE_MIN: u32 = 1000;
const REFERENCE_MAX: u32 = 4000;

/// An answer joins the reference if the suspicion was below this before it. Were it looked at after it, the sure ones would
/// join and the doubtful ones not, and the reference would drift away from its input.
const UNSUSPECTED: f32 = 0.15;

/// How far the average rank may move before that is bet on: so far in any case, and so far for chance in the least reference.
const ALLOWANCE: f32 = 0.03;
const ALLOWANCE_OF_CHANCE: f32 = 0.01;

/// How much of its win a bet puts on each rank.
const STAKES: [f32; 3] = [0.3, 0.6, 1.0];

/// Which part of the reference is its most doubtful.
const TAIL: f32 = 0.1;

/// So many times as many may be there before that is bet on, and so many times more for chance in the least reference, beside
/// its two standard deviations. Where nothing of the reference is there, so many may be.
const TAIL_ALLOWANCE: f32 = 1.05;
const TAIL_ALLOWANCE_OF_CHANCE: f32 = 0.2;
const TAIL_MIN: f32 = 0.02;

/// How many times as many as are allowed each bet expects there.
const TAIL_BETS: [f32; 2] = [1.4, 2.0];

/// The sum at which a change is certain. `cargo xtask bench cascade` counts false alarms in 1,200 streams of 20,000.
const CERTAIN: f32 = 10.0;

/// Less doubt is no cost to anyone at once, so it may take longer to be certain of.
const CERTAIN_LESS: f32 = 11.0;

/// After so many answers without a renewed alarm the input is as it was.
const CALM: u32 = 1000;

/// Which way the doubt has moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Change {
    MoreDoubt,
    LessDoubt,
}

impl Change {
    /// As figures have it.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::MoreDoubt => "more_doubt",
            Self::LessDoubt => "less_doubt",
        }
    }

    /// For people.
    #[must_use]
    pub fn sentence(self) -> &'static str {
        match self {
            Self::MoreDoubt => "the model is less sure of its answers than it was: the input has changed",
            Self::LessDoubt => "the model is surer of its answers than it was: the input has changed",
        }
    }
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shift {
    reference: Bins,
    /// How many are in the reference.
    seen: u32,
    more: [f32; STAKES.len()],
    less: [f32; STAKES.len()],
    tail: [f32; TAIL_BETS.len()],
    /// What [`tail`] says of the reference, once that is large enough.
    usual_tail: Option<f32>,
    raised: Option<Change>,
    /// Answers since it was last certain.
    calm: u32,
}

impl Shift {
    /// The change that is being seen, if any.
    #[must_use]
    pub fn raised(&self) -> Option<Change> {
        self.raised
    }

    /// How near an alarm is: 0 to 1.
    #[must_use]
    pub fn suspicion(&self) -> f32 {
        let most = |sums: &[f32]| sums.iter().copied().fold(0.0, f32::max);
        (most(&self.more).max(most(&self.tail)) / CERTAIN).max(most(&self.less) / CERTAIN_LESS).min(1.0)
    }

    /// True if the alarm is raised by this answer.
    #[must_use]
    pub fn saw(&mut self, doubt: f32) -> bool {
        let step = bin(doubt);
        let may_join = self.seen < REFERENCE_MAX && self.raised.is_none() && self.suspicion() < UNSUSPECTED;
        if self.seen < REFERENCE_MIN {
            self.join(step);
            return false;
        }
        // Ties rank in their middle: a model that is always sure must not look as if it had changed.
        let below = self.reference.below(step);
        let all = self.seen as f32;
        let in_tail = is_tail(below, all);
        let rank = (below + self.reference.get(step) / 2.0) / all - 0.5;
        let allowance = ALLOWANCE + ALLOWANCE_OF_CHANCE * chance(all);
        let win = |sums: &mut [f32; STAKES.len()], gain: f32, certain: f32| {
            for (sum, stake) in sums.iter_mut().zip(STAKES) {
                *sum = (*sum + libm::log1pf(stake * (gain - allowance))).max(0.0);
            }
            sums.iter().any(|sum| *sum >= certain)
        };
        let (more, less) = (win(&mut self.more, rank, CERTAIN), win(&mut self.less, -rank, CERTAIN_LESS));
        let more = self.bets_on_the_tail(in_tail) || more;
        let change = if more { Some(Change::MoreDoubt) } else { less.then_some(Change::LessDoubt) };
        let Some(change) = change else {
            self.calm = self.calm.saturating_add(1);
            if self.calm >= CALM {
                self.raised = None;
            }
            if may_join {
                self.join(step);
            }
            return false;
        };
        (self.more, self.less, self.tail, self.calm) = Default::default();
        self.raised.replace(change) != Some(change)
    }

    fn join(&mut self, step: usize) {
        self.reference.add(step, 1.0);
        self.seen += 1;
        // It takes as long as a whole decision, and one answer hardly changes it.
        if self.seen.is_multiple_of(REFERENCE_MIN / 10) {
            self.usual_tail = None;
        }
    }

    /// True if more answers than before are certainly among the most doubtful.
    fn bets_on_the_tail(&mut self, in_tail: bool) -> bool {
        let usual = self.usual_tail.get_or_insert_with(|| tail(&self.reference, self.seen as f32));
        for (sum, times) in self.tail.iter_mut().zip(TAIL_BETS) {
            let expected = (*usual * times).min(0.95);
            let ratio = if in_tail { expected / *usual } else { (1.0 - expected) / (1.0 - *usual) };
            *sum = (*sum + libm::logf(ratio)).max(0.0);
        }
        self.tail.iter().any(|sum| *sum >= CERTAIN)
    }
}

/// How much of what chance is in the least reference is in one of so many.
fn chance(all: f32) -> f32 {
    libm::sqrtf(REFERENCE_MIN as f32 / all)
}

/// Whether a step is in the tail that has so many of the reference below it.
fn is_tail(below: f32, all: f32) -> bool {
    all - below <= TAIL * all
}

/// Which share of the answers may be in the tail of the reference as long as nothing has changed.
fn tail(reference: &Bins, all: f32) -> f32 {
    // A step belongs to it as a whole or not at all.
    let below = (0..BINS).map(|step| reference.below(step)).find(|below| is_tail(*below, all));
    let share = below.map_or(0.0, |below| 1.0 - below / all);
    let allowance = TAIL_ALLOWANCE + TAIL_ALLOWANCE_OF_CHANCE * chance(all);
    (share * allowance + 2.0 * libm::sqrtf(share * (1.0 - share) / all)).max(TAIL_MIN)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::chance::Chance;

    fn alarms(shift: &mut Shift, chance: &mut Chance, answers: u32, doubt: impl Fn(f32) -> f32) -> Option<u32> {
        #[expect(clippy::cast_possible_truncation, reason = "a share")]
        (0..answers).find(|_| shift.saw(doubt(chance.share() as f32)))
    }

    #[test]
    fn input_that_becomes_more_or_less_doubtful_raises_the_alarm_once_and_calm_ends_it() {
        for (change, doubt) in [
            (Change::MoreDoubt, (|share| share.powf(0.5)) as fn(f32) -> f32),
            (Change::LessDoubt, |share| share * share),
        ] {
            let (mut shift, mut chance) = (Shift::default(), Chance::from_seed(7));
            assert_eq!(alarms(&mut shift, &mut chance, 5000, |share| share), None);
            let after = alarms(&mut shift, &mut chance, 500, doubt).expect("seen");
            assert!(after < 300, "after {after}");
            assert_eq!(shift.raised(), Some(change));
            assert_eq!(alarms(&mut shift, &mut chance, 2000, doubt), None, "said once");
            assert_eq!(shift.raised(), Some(change));
            assert_eq!(alarms(&mut shift, &mut chance, 1500, |share| share), None);
            assert_eq!(shift.raised(), None);
        }
    }

    #[test]
    fn a_change_that_makes_only_some_answers_worse_is_seen_too() {
        let (mut shift, mut chance) = (Shift::default(), Chance::from_seed(7));
        assert_eq!(alarms(&mut shift, &mut chance, 5000, |share| share), None);
        // One in nine becomes most doubtful, and others less so: the average rank moves by hardly more than is allowed.
        let worse = |share: f32| match share {
            ..0.11 => 0.91 + share / 3.0,
            0.2..0.8 => share - 0.08,
            _ => share,
        };
        let after = alarms(&mut shift, &mut chance, 2000, worse).expect("seen");
        assert!(after < 750, "after {after}");
        assert_eq!(shift.raised(), Some(Change::MoreDoubt));
    }

    #[test]
    fn a_small_change_is_seen_sooner_the_longer_all_was_as_it_is() {
        // Eight of a hundred become most doubtful, and the average rank stays.
        let worse = |share: f32| match share {
            ..0.08 => 0.9 + share,
            0.2..0.8 => share - 0.12,
            _ => share,
        };
        let seen_within = |answers: u32, after: u32| {
            let seen = |seed: &u64| {
                let (mut shift, mut chance) = (Shift::default(), Chance::from_seed(*seed));
                assert_eq!(alarms(&mut shift, &mut chance, after, |share| share), None);
                alarms(&mut shift, &mut chance, answers, worse).is_some()
            };
            (0..40).filter(seen).count()
        };
        let (soon, later) = (seen_within(1000, 1000), seen_within(1000, 5000));
        assert!(soon < later && later >= 28, "{soon} of 40 after 1,000 answers, {later} after 5,000");
    }

    #[test]
    fn a_reference_that_has_grown_is_as_its_input() {
        use crate::judge::bins::upper;
        let step = bin(0.5);
        let below = |seed| {
            let (mut shift, mut chance) = (Shift::default(), Chance::from_seed(seed));
            assert_eq!(alarms(&mut shift, &mut chance, 10_000, |share| share), None);
            shift.reference.below(step) / shift.seen as f32
        };
        // Its standard deviation is 0.0014.
        let average = (0..32).map(below).sum::<f32>() / 32.0;
        assert!((average - upper(step - 1)).abs() < 0.006, "{average} instead of {}", upper(step - 1));
    }

    #[test]
    fn a_model_that_is_always_sure_has_not_changed() {
        let mut shift = Shift::default();
        assert!((0..30_000).all(|_| !shift.saw(0.0)));
    }

    #[test]
    fn unchanged_input_raises_no_alarm() {
        let raised = (0..30).filter(|seed| {
            let (mut shift, mut chance) = (Shift::default(), Chance::from_seed(*seed));
            alarms(&mut shift, &mut chance, 20_000, |share| share * share * share).is_some()
        });
        assert_eq!(raised.count(), 0);
    }
}
