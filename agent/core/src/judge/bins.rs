//! Doubt in steps, so that a device can count what it has seen without keeping any of it.
//!
//! Steps are even in log-odds: a model that is right 999 times in 1,000 has as many between 0.001 and 0.01 as another
//! between 0.1 and 0.5. They are the same for every model and never change, so counts of devices can be added up and a
//! threshold among them is chosen in advance, as a guarantee needs it.

use alloc::vec;
use alloc::vec::Vec;

use serde::{Deserialize, Deserializer, Serialize};

/// From log-odds of −14, below which a float32 score has no more digits, to 4 in steps of 3/32.
pub const BINS: usize = 192;
const FIRST: f32 = -14.0;

/// In how many ranges people are told of it.
const RANGES: usize = 20;

const STEPS_PER_UNIT: f32 = 32.0 / 3.0;

/// Which step a doubt falls into: greater is more doubtful. What is no number is the most.
#[must_use]
pub fn bin(doubt: f32) -> usize {
    place(doubt).0
}

/// The step, and how far into it: 0 to 1.
fn place(doubt: f32) -> (usize, f32) {
    if doubt.is_nan() {
        return (BINS - 1, 1.0);
    }
    let steps = (log_odds(doubt) - FIRST) * STEPS_PER_UNIT;
    let step = steps.clamp(0.0, BINS as f32 - 1.0);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the steps there are")]
    let whole = step as usize;
    (whole, (steps - whole as f32).clamp(0.0, 1.0))
}

/// The greatest doubt of a step.
#[must_use]
pub fn upper(bin: usize) -> f32 {
    at((bin + 1) as f32)
}

/// A doubt in the middle of a step.
#[must_use]
pub fn middle(bin: usize) -> f32 {
    at(bin as f32 + 0.5)
}

fn at(steps: f32) -> f32 {
    share(FIRST + steps / STEPS_PER_UNIT)
}

/// ln(p / (1 − p)), as far as steps tell apart.
pub(super) fn log_odds(share: f32) -> f32 {
    let share = share.clamp(1e-7, 1.0 - 1e-7);
    libm::logf(share / (1.0 - share))
}

/// The share that has these log-odds.
pub(super) fn share(log_odds: f32) -> f32 {
    1.0 / (1.0 + libm::expf(-log_odds))
}

/// A count for each step. It may be a part of one: some counts fade.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(transparent)]
pub struct Bins(Vec<f32>);

impl Default for Bins {
    fn default() -> Self {
        Self(vec![0.0; BINS])
    }
}

/// What was kept under other steps, or is no count, is none of ours.
impl<'de> Deserialize<'de> for Bins {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let counts = Vec::<f32>::deserialize(deserializer)?;
        if counts.len() == BINS && counts.iter().all(|count| count.is_finite() && *count >= 0.0) {
            Ok(Self(counts))
        } else {
            Err(serde::de::Error::custom("not a count for each step of doubt"))
        }
    }
}

impl Bins {
    pub fn add(&mut self, bin: usize, count: f32) {
        self.0[bin.min(BINS - 1)] += count;
    }

    #[must_use]
    pub fn get(&self, bin: usize) -> f32 {
        self.0[bin]
    }

    #[must_use]
    pub fn sum(&self) -> f32 {
        // Several at once: one after the other each would wait for the one before.
        let mut lanes = [0.0_f32; 8];
        let (chunks, rest) = self.0.as_chunks::<8>();
        chunks.iter().for_each(|chunk| lanes.iter_mut().zip(chunk).for_each(|(lane, count)| *lane += count));
        lanes.iter().chain(rest).sum()
    }

    /// Of the steps before this one.
    pub(super) fn below(&self, bin: usize) -> f32 {
        self.0[..bin].iter().sum()
    }

    /// With the number of the step.
    pub fn iter(&self) -> impl DoubleEndedIterator<Item = (usize, f32)> + '_ {
        self.0.iter().copied().enumerate()
    }

    /// Which part of what was counted is less doubtful than this: 0 to 1. Between the ends of a step by how far into it
    /// this is, so that more doubt never ranks lower.
    #[must_use]
    pub fn rank(&self, doubt: f32) -> f32 {
        let (bin, into) = place(doubt);
        let (below, all) = (self.below(bin), self.sum());
        if all > 0.0 { ((below + into * self.0[bin]) / all).clamp(0.0, 1.0) } else { doubt.clamp(0.0, 1.0) }
    }

    /// The doubt that has this rank, or nearly.
    #[must_use]
    pub fn ranked(&self, rank: f32) -> f32 {
        let (all, mut below) = (self.sum(), 0.0);
        if all <= 0.0 {
            return rank.clamp(0.0, 1.0);
        }
        for (bin, count) in self.iter() {
            if below + count >= rank * all && count > 0.0 {
                return at(bin as f32 + ((rank * all - below) / count).clamp(0.0, 1.0));
            }
            below += count;
        }
        1.0
    }

    /// How many in ten thousand are in each of [`RANGES`] ranges of the same width, for people: a step that reaches over
    /// the end of a range is divided between both. Empty while nothing was counted.
    pub(super) fn in_ranges(&self) -> Vec<u16> {
        let all = self.sum();
        if all <= 0.0 {
            return Vec::new();
        }
        let mut counts = vec![0.0_f32; RANGES];
        for (bin, count) in self.iter().filter(|(_, count)| *count > 0.0) {
            // What is beyond the steps is in the outermost.
            let from = if bin == 0 { 0.0 } else { at(bin as f32) * RANGES as f32 };
            let to = if bin == BINS - 1 { RANGES as f32 } else { upper(bin) * RANGES as f32 };
            for (range, sum) in counts.iter_mut().enumerate() {
                let within = to.min(range as f32 + 1.0) - from.max(range as f32);
                *sum += count * (within / (to - from)).max(0.0);
            }
        }
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "parts of ten thousand")]
        let parts = |count: f32| libm::roundf(10_000.0 * count / all) as u16;
        counts.into_iter().map(parts).collect()
    }

    pub(super) fn scale(&mut self, factor: f32) {
        self.0.iter_mut().for_each(|count| *count *= factor);
    }
}

/// What was seen lately: each answer counts a little less with every one that follows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Recent {
    bins: Bins,
    /// What the next answer counts. It grows instead of all others fading, which is the same for ranks.
    next: f32,
}

/// An answer counts 1/e after so many more.
const MEMORY: f32 = 500.0;

/// Well before a float loses the small counts beside the great ones.
const NEXT_MAX: f32 = 1e4;

impl Default for Recent {
    fn default() -> Self {
        Self { bins: Bins::default(), next: 1.0 }
    }
}

impl Recent {
    pub fn saw(&mut self, doubt: f32) {
        self.bins.add(bin(doubt), self.next);
        self.next *= 1.0 + 1.0 / MEMORY;
        if self.next >= NEXT_MAX {
            self.bins.scale(1.0 / NEXT_MAX);
            self.next = 1.0;
        }
    }

    #[must_use]
    pub fn bins(&self) -> &Bins {
        &self.bins
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn steps_cover_every_doubt() {
        for odd in [0.0, -1.0, f32::NEG_INFINITY, 1e-30] {
            assert_eq!(bin(odd), 0);
        }
        for odd in [1.0, 2.0, f32::INFINITY, f32::NAN] {
            assert_eq!(bin(odd), BINS - 1);
        }
        for at in 0..BINS {
            assert_eq!(bin(middle(at)), at);
        }
    }

    #[test]
    fn people_are_told_of_all_that_was_counted_in_ranges_of_the_same_width() {
        assert!(Bins::default().in_ranges().is_empty(), "nothing was counted");
        let mut bins = Bins::default();
        for doubt in [0.001, 0.02, 0.52, 1.0] {
            bins.add(bin(doubt), 2.0);
        }
        let told = bins.in_ranges();
        assert_eq!((told.len(), told[0], told[19]), (RANGES, 5000, 2500));
        assert_eq!(told[9..=11].iter().sum::<u16>(), 2500, "{told:?}");

        // As many in each part of the doubt look like as many, wherever the steps end.
        let mut even = Bins::default();
        (0..20_000).for_each(|n| even.add(bin((n as f32 + 0.5) / 20_000.0), 1.0));
        let told = even.in_ranges();
        assert!(told[1..19].iter().all(|part| (450..=550).contains(part)), "{told:?}");
    }

    #[test]
    fn what_was_kept_under_other_steps_is_refused() {
        let read = |text: &str| serde_json::from_str::<Bins>(text);
        assert!(read("[1.0,2.0]").is_err());
        let kept = serde_json::to_string(&Bins::default()).expect("written");
        assert_eq!(read(&kept).expect("reads back"), Bins::default());
        assert!(read(&kept.replacen("0.0", "-1.0", 1)).is_err());
    }

    proptest! {
        #[test]
        fn more_doubt_never_ranks_lower(
            seen in prop::collection::vec(0.0_f32..1.0, 0..300),
            (one, other) in (0.0_f32..1.0, 0.0_f32..1.0),
        ) {
            let mut recent = Recent::default();
            seen.iter().for_each(|doubt| recent.saw(*doubt));
            let rank = |doubt| recent.bins().rank(doubt);
            prop_assert!(rank(one.min(other)) <= rank(one.max(other)));
            prop_assert!((rank(recent.bins().ranked(0.8)) - 0.8).abs() < 0.02 || seen.is_empty());
        }
    }
}
