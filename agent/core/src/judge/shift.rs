//! Decides whether the input has changed, without anybody's word on any answer.
//!
//! The first thousand answers of a model are its reference. Each later one has a rank among them; as long as nothing has
//! changed the average rank is one half. A bet that it is higher wins when answers become more doubtful. One bet a
//! second cannot begin at every moment; a sum that never falls below nothing (Page 1954) begins again by itself.
//!
//! Darkness can make a model blind and sure: then doubt falls. The same bet runs the other way round.

use serde::{Deserialize, Serialize};

use super::bins::{Bins, bin};

/// The reference must be good enough that chance in it alone moves the average rank by no more than the allowance: the
/// average of 1,000 ranks has a standard deviation of 0.009.
const REFERENCE: u32 = 1000;

/// How far the average rank may move before that is bet on.
const ALLOWANCE: f32 = 0.04;

/// How much of its win a bet puts on each rank.
const STAKES: [f32; 3] = [0.3, 0.6, 1.0];

/// The sum at which a change is certain. `cargo xtask bench cascade` counts false alarms in 200 streams of 20,000.
const CERTAIN: f32 = 9.5;

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
pub struct Shift {
    reference: Bins,
    seen: u32,
    more: [f32; STAKES.len()],
    less: [f32; STAKES.len()],
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
        (most(&self.more) / CERTAIN).max(most(&self.less) / CERTAIN_LESS).min(1.0)
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
        let below: f32 = self.reference.iter().take(step).map(|(_, count)| count).sum();
        let rank = (below + self.reference.get(step) / 2.0) / REFERENCE as f32 - 0.5;
        let win = |sums: &mut [f32; STAKES.len()], gain: f32, certain: f32| {
            for (sum, stake) in sums.iter_mut().zip(STAKES) {
                *sum = (*sum + libm::log1pf(stake * (gain - ALLOWANCE))).max(0.0);
            }
            sums.iter().any(|sum| *sum >= certain)
        };
        let (more, less) = (win(&mut self.more, rank, CERTAIN), win(&mut self.less, -rank, CERTAIN_LESS));
        let change = if more { Some(Change::MoreDoubt) } else { less.then_some(Change::LessDoubt) };
        let Some(change) = change else {
            self.calm = self.calm.saturating_add(1);
            if self.calm >= CALM {
                self.raised = None;
            }
            return false;
        };
        (self.more, self.less, self.calm) = ([0.0; STAKES.len()], [0.0; STAKES.len()], 0);
        self.raised.replace(change) != Some(change)
    }
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
