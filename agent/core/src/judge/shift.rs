//! Decides whether the input has changed, without anybody's word on any answer.
//!
//! The first thousand answers of a model are its reference. Each later one has a rank among them; as long as nothing has
//! changed the average rank is one half. A bet that it is higher wins when answers become more doubtful. One bet a
//! second cannot begin at every moment; a sum that never falls below nothing (Page 1954) begins again by itself.
//!
//! Darkness can make a model blind and sure: then doubt falls. The same bet runs the other way round.
//!
//! A change may make only some answers worse, which hardly moves the average: so there is a bet as well that more answers
//! than before are among the most doubtful tenth.

use serde::{Deserialize, Serialize};

use super::bins::{BINS, Bins, bin};

/// The reference must be good enough that chance in it alone moves the average rank by no more than the allowance: the
/// average of 1,000 ranks has a standard deviation of 0.009.
const REFERENCE: u32 = 1000;

/// How far the average rank may move before that is bet on.
const ALLOWANCE: f32 = 0.04;

/// How much of its win a bet puts on each rank.
const STAKES: [f32; 3] = [0.3, 0.6, 1.0];

/// Which part of the reference is its most doubtful.
const TAIL: f32 = 0.1;

/// So many times as many may be there before that is bet on, beside what chance in the reference explains: two standard
/// deviations. Where nothing of the reference is there, so many may be.
const TAIL_ALLOWANCE: f32 = 1.25;
const TAIL_MIN: f32 = 0.02;

/// How many times as many as are allowed each bet expects there.
const TAIL_BETS: [f32; 2] = [1.4, 2.0];

/// The sum at which a change is certain. `cargo xtask bench cascade` counts false alarms: none in 1,200 streams of 20,000.
const CERTAIN: f32 = 9.0;

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
    seen: u32,
    more: [f32; STAKES.len()],
    less: [f32; STAKES.len()],
    tail: [f32; TAIL_BETS.len()],
    /// What [`tail`] says of the reference, once that is whole.
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
        if self.seen < REFERENCE {
            self.reference.add(bin(doubt), 1.0);
            self.seen += 1;
            return false;
        }
        // Ties rank in their middle: a model that is always sure must not look as if it had changed.
        let step = bin(doubt);
        let below = self.reference.below(step);
        let in_tail = is_tail(below);
        let rank = (below + self.reference.get(step) / 2.0) / REFERENCE as f32 - 0.5;
        let win = |sums: &mut [f32; STAKES.len()], gain: f32, certain: f32| {
            for (sum, stake) in sums.iter_mut().zip(STAKES) {
                *sum = (*sum + libm::log1pf(stake * (gain - ALLOWANCE))).max(0.0);
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
            return false;
        };
        (self.more, self.less, self.tail, self.calm) = Default::default();
        self.raised.replace(change) != Some(change)
    }

    /// True if more answers than before are certainly among the most doubtful.
    fn bets_on_the_tail(&mut self, in_tail: bool) -> bool {
        let usual = self.usual_tail.get_or_insert_with(|| tail(&self.reference));
        for (sum, times) in self.tail.iter_mut().zip(TAIL_BETS) {
            let expected = (*usual * times).min(0.95);
            let ratio = if in_tail { expected / *usual } else { (1.0 - expected) / (1.0 - *usual) };
            *sum = (*sum + libm::logf(ratio)).max(0.0);
        }
        self.tail.iter().any(|sum| *sum >= CERTAIN)
    }
}

/// Whether a step is in the tail that has so many of the reference below it.
fn is_tail(below: f32) -> bool {
    REFERENCE as f32 - below <= TAIL * REFERENCE as f32
}

/// Which share of the answers may be in the tail of the reference as long as nothing has changed.
fn tail(reference: &Bins) -> f32 {
    let all = REFERENCE as f32;
    // A step belongs to it as a whole or not at all.
    let below = (0..BINS).map(|step| reference.below(step)).find(|below| is_tail(*below));
    let share = below.map_or(0.0, |below| 1.0 - below / all);
    (share * TAIL_ALLOWANCE + 2.0 * libm::sqrtf(share * (1.0 - share) / all)).max(TAIL_MIN)
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
