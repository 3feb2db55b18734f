//! What became of a device over time, at a resolution that falls with age: buckets of a minute for an hour, of twelve
//! hours for a season.
//!
//! All of it is pure: what two reports say of the time between them ([`Stretch::between`]), where it falls ([`Stretch::spread`]), and how
//! buckets merge when they grow old ([`Page::folded`]). Reading and writing them is the store's.
//!
//! Invariant: what is counted once is in one bucket, whatever was spread or merged.

mod ladder;
mod report;
mod saved;

pub use ladder::{AGE_MAX_S, Page, Place, STEPS, Shown, Step, series};
pub use report::Stretch;
pub use saved::{Assumptions, Given, Saved, saved};

use hedge_proto::LinkState;
use serde::Serialize;

/// The device's paths and stages that latencies are kept of, in the order of [`Bucket::stages`].
pub const STAGES: [&str; 5] = ["kept", "deferred", "tensor", "inference", "store"];

/// What holds a board back, by the bit of [`Bucket::throttling`].
pub const THROTTLING: [&str; 4] = ["under_voltage", "frequency_capped", "throttled", "soft_temperature_limit"];

/// Confidences are told apart in so many ranges of the same width.
pub const CONFIDENCES: usize = 10;

/// Of a device's sentence on its link, so much is kept.
const WHY_BYTES_MAX: usize = 80;

const STATES: usize = LinkState::ALL.len();

/// What happened in one stretch of time. Sums and maxima, so that any two make one.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Bucket {
    /// Reports of the device that came in it.
    #[serde(skip_serializing_if = "is_nothing")]
    pub reports: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub answered: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub kept: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub deferred: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub corrected: u64,
    /// Over its connection, in both directions.
    #[serde(skip_serializing_if = "is_nothing")]
    pub link_bytes: u64,
    /// Seconds in each state of the link, in the order of [`LinkState::ALL`].
    #[serde(skip_serializing_if = "is_nothing")]
    pub link_s: [u64; STATES],
    #[serde(skip_serializing_if = "is_nothing")]
    pub queue_max: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub oldest_max_s: u64,
    /// How often, and tenths of milliseconds in all, for each of [`STAGES`].
    #[serde(skip_serializing_if = "is_nothing")]
    pub stages: [[u64; 2]; STAGES.len()],
    /// Reports with a temperature, their sum and the highest, in tenths of a kelvin: never below zero.
    #[serde(skip_serializing_if = "is_nothing")]
    pub temperatures: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub temperature_sum: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub temperature_max: u64,
    /// Reports of a board that was held back, and by what: bits of [`THROTTLING`].
    #[serde(skip_serializing_if = "is_nothing")]
    pub throttled: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub throttling: u64,
    /// Reports with the shift alarm raised, and how near it was at most, in thousandths.
    #[serde(skip_serializing_if = "is_nothing")]
    pub shifted: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub suspicion_max: u64,
    /// Cases that came to the cloud, and the bytes of their samples.
    #[serde(skip_serializing_if = "is_nothing")]
    pub cases: u64,
    #[serde(skip_serializing_if = "is_nothing")]
    pub case_bytes: u64,
    /// By the confidence of the device's answer, in [`CONFIDENCES`] ranges: cases that were answered, and those in which
    /// the answer said the same.
    #[serde(skip_serializing_if = "is_nothing")]
    pub agreement: [[u64; 2]; CONFIDENCES],
    /// The device's own word on its link while that was not online.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub why: String,
}

fn is_nothing<T: Default + PartialEq>(value: &T) -> bool {
    *value == T::default()
}

impl Bucket {
    /// A case that came, with so many bytes of its sample.
    #[must_use]
    pub fn case(bytes: u64) -> Self {
        Self { cases: 1, case_bytes: bytes, ..Self::default() }
    }

    /// An answer to a case whose device was so sure of its own: 0 to 1.
    #[must_use]
    pub fn answer(confidence: f32, agrees: bool) -> Self {
        let mut bucket = Self::default();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "one of a few ranges")]
        let range = (confidence.clamp(0.0, 1.0) * CONFIDENCES as f32) as usize;
        bucket.agreement[range.min(CONFIDENCES - 1)] = [1, u64::from(agrees)];
        bucket
    }

    /// Takes in another. In which order does not matter, but for `why`, where the longer trouble has the word.
    pub fn merge(&mut self, other: &Self) {
        if !other.why.is_empty() && (self.why.is_empty() || other.trouble_s() > self.trouble_s()) {
            self.why.clone_from(&other.why);
        }
        for (mine, theirs) in self.sums().into_iter().zip(other.clone().sums()) {
            *mine = mine.saturating_add(*theirs);
        }
        for (mine, theirs) in self.maxima().into_iter().zip(other.clone().maxima()) {
            *mine = (*mine).max(*theirs);
        }
        self.throttling |= other.throttling;
    }

    /// The part from `begin` to `end` of something that lasted `whole`: parts side by side add up to all of it.
    fn part(&self, begin: u64, end: u64, whole: u64) -> Self {
        let mut part = self.clone();
        for sum in part.sums() {
            let until = |at: u64| u128::from(*sum) * u128::from(at) / u128::from(whole.max(1));
            *sum = u64::try_from(until(end) - until(begin)).unwrap_or(u64::MAX);
        }
        part
    }

    /// Seconds in which the link was not as it should be.
    fn trouble_s(&self) -> u64 {
        let states = LinkState::ALL.into_iter().zip(self.link_s);
        states.filter(|(state, _)| *state != LinkState::Online).map(|(_, seconds)| seconds).sum()
    }

    fn sums(&mut self) -> Vec<&mut u64> {
        let Self { reports, answered, kept, deferred, corrected, link_bytes, .. } = self;
        let mut sums = vec![reports, answered, kept, deferred, corrected, link_bytes];
        sums.extend(&mut self.link_s);
        sums.extend(self.stages.as_flattened_mut());
        sums.extend([&mut self.temperatures, &mut self.temperature_sum, &mut self.throttled, &mut self.shifted]);
        sums.extend([&mut self.cases, &mut self.case_bytes]);
        sums.extend(self.agreement.as_flattened_mut());
        sums
    }

    fn maxima(&mut self) -> [&mut u64; 4] {
        [&mut self.queue_max, &mut self.oldest_max_s, &mut self.temperature_max, &mut self.suspicion_max]
    }

    /// As it is kept. A number that is new goes to the end; one that is missing is 0.
    fn numbers(&mut self) -> Vec<&mut u64> {
        let Self { reports, answered, kept, deferred, corrected, link_bytes, .. } = self;
        let mut numbers = vec![reports, answered, kept, deferred, corrected, link_bytes];
        numbers.extend(&mut self.link_s);
        numbers.extend([&mut self.queue_max, &mut self.oldest_max_s]);
        numbers.extend(self.stages.as_flattened_mut());
        numbers.extend([&mut self.temperatures, &mut self.temperature_sum, &mut self.temperature_max]);
        numbers.extend([&mut self.throttled, &mut self.throttling, &mut self.shifted, &mut self.suspicion_max]);
        numbers.extend([&mut self.cases, &mut self.case_bytes]);
        numbers.extend(self.agreement.as_flattened_mut());
        numbers
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every number that is kept is a sum, a maximum or the bits: nothing is forgotten when buckets merge.
    #[test]
    fn every_number_is_merged() {
        let mut ones = Bucket::default();
        let count = ones.numbers().len();
        ones.numbers().into_iter().for_each(|number| *number = 1);
        let mut merged = ones.clone();
        merged.merge(&ones);
        let sums = merged.numbers().into_iter().filter(|number| **number == 2).count();
        let others = merged.numbers().into_iter().filter(|number| **number == 1).count();
        assert_eq!((sums, sums + others), (count - 5, count));
        assert_eq!((ones.sums().len(), ones.maxima().len()), (count - 5, 4));
    }

    #[test]
    fn of_two_reasons_that_of_the_longer_trouble_stays() {
        let bucket =
            |seconds, why: &str| Bucket { link_s: [seconds, 0, 0, 0, 0, 0], why: why.to_owned(), ..Bucket::default() };
        let mut merged = bucket(5, "short");
        merged.merge(&bucket(50, "long"));
        merged.merge(&bucket(10, "in between"));
        assert_eq!((merged.why.as_str(), merged.link_s[0]), ("long", 65));
    }

    #[test]
    fn a_confidence_is_counted_in_its_range_and_certainty_in_the_last() {
        for (confidence, range) in [(0.0, 0), (0.05, 0), (0.5, 5), (0.999, 9), (1.0, 9), (f32::NAN, 0)] {
            assert_eq!(Bucket::answer(confidence, true).agreement[range], [1, 1], "{confidence}");
        }
    }
}
