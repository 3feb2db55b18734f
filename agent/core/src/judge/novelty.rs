//! Decides how much a case adds to those before it, by which it is sent earlier and evicted later.
//!
//! One that is like another of the last cases adds little: what the cloud says of the one, it says of the other. A class
//! that is hardly ever seen adds much. Alike are answers whose scores or boxes are, whatever their pictures.

use alloc::borrow::ToOwned;
use alloc::collections::{BTreeMap, VecDeque};
use alloc::string::String;

use hedge_proto::{LabelScore, Output};

use crate::agree::agree;

/// So many of the last cases are compared with.
const CASES_MAX: usize = 32;

/// What a case is worth that is just like one before it.
const ALIKE: f32 = 0.2;

/// How much rarity may count, down and up.
const RARITY: (f32, f32) = (0.5, 2.0);

/// Each answer counts so much more than the one before it: about the last thousand say how rare a label is.
const GROWTH: f32 = 1.001;

/// Labels whose frequency is known. A model of more has hardly seen most of them.
const LABELS_MAX: usize = 4096;

/// What a model has answered lately.
#[derive(Debug, Clone)]
pub struct Familiar {
    cases: VecDeque<Output>,
    /// How often each label was seen; the last answer counts `weight`.
    seen: BTreeMap<String, f32>,
    weight: f32,
}

impl Default for Familiar {
    fn default() -> Self {
        Self { cases: VecDeque::new(), seen: BTreeMap::new(), weight: 1.0 }
    }
}

impl Familiar {
    /// Takes note of an answer, whether it stays or not.
    pub fn saw(&mut self, said: &Output) {
        self.weight *= GROWTH;
        if self.weight > 1e6 {
            self.seen.values_mut().for_each(|count| *count /= self.weight);
            self.seen.retain(|_, count| *count > 1e-6);
            self.weight = 1.0;
        }
        for label in said.labels() {
            if let Some(count) = self.seen.get_mut(label) {
                *count += self.weight;
            } else if self.seen.len() < LABELS_MAX {
                self.seen.insert(label.to_owned(), self.weight);
            }
        }
    }

    /// By how much the priority of a case about this answer is multiplied. Later cases are compared with it.
    pub fn worth(&mut self, said: &Output) -> f32 {
        let alike = self.cases.iter().map(|case| likeness(case, said)).fold(0.0, f32::max);
        let (least, most) = RARITY;
        let usual = self.seen.values().sum::<f32>() / self.seen.len().max(1) as f32;
        let rarity =
            said.labels().map(|label| self.rarity(label, usual)).reduce(f32::max).unwrap_or(1.0).clamp(least, most);
        if self.cases.len() == CASES_MAX {
            self.cases.pop_front();
        }
        self.cases.push_back(said.clone());
        (1.0 - alike * (1.0 - ALIKE)) * rarity
    }

    /// 1 for a label that is seen as often as is usual.
    fn rarity(&self, label: &str, usual: f32) -> f32 {
        match self.seen.get(label) {
            Some(count) if *count > 0.0 => libm::sqrtf(usual / count),
            _ => RARITY.1,
        }
    }
}

/// How much of two answers is the same: 0 to 1.
fn likeness(one: &Output, other: &Output) -> f32 {
    match (one, other) {
        (Output::Classes(one), Output::Classes(other)) => {
            let sum = |scores: &[LabelScore]| scores.iter().map(|scored| scored.score).sum::<f32>();
            let of = |label: &str| other.iter().find(|scored| scored.label == label).map_or(0.0, |scored| scored.score);
            let shared: f32 = one.iter().map(|scored| scored.score.min(of(&scored.label))).sum();
            let all = sum(one).max(sum(other));
            if all > 0.0 { (shared / all).clamp(0.0, 1.0) } else { 1.0 }
        }
        _ => agree(one, other),
    }
}

#[cfg(test)]
mod tests {
    use alloc::format;
    use alloc::vec;
    use alloc::vec::Vec;

    use hedge_proto::{Found, Rect};
    use proptest::prelude::*;

    use super::*;

    fn scores(scores: &[(&str, f32)]) -> Output {
        Output::Classes(
            scores.iter().map(|(label, score)| LabelScore { label: (*label).to_owned(), score: *score }).collect(),
        )
    }

    #[test]
    fn a_case_like_one_before_it_is_worth_less_and_a_rare_class_more() {
        let mut familiar = Familiar::default();
        let (cat, dog) = (scores(&[("cat", 0.6), ("dog", 0.4)]), scores(&[("dog", 0.7), ("cow", 0.3)]));
        for _ in 0..99 {
            familiar.saw(&cat);
        }
        familiar.saw(&dog);
        let first = familiar.worth(&cat);
        let again = familiar.worth(&cat);
        assert!(again < first * 0.25, "{again} after {first}");
        let rare = familiar.worth(&dog);
        assert!(rare > first * 1.5, "{rare}, and {first} of what is seen every day");
        // After enough others it is news again.
        for at in 0..CASES_MAX {
            familiar.worth(&scores(&[(&format!("other {at}"), 1.0)]));
        }
        assert!(familiar.worth(&cat) > again * 3.0);
    }

    #[test]
    fn a_scene_that_does_not_change_is_worth_less_than_one_that_does() {
        let cars = |lefts: &[f32]| {
            let car = |left: &f32| Found {
                label: "car".to_owned(),
                score: 0.5,
                place: Rect { left: *left, top: 0.0, width: 0.2, height: 0.2 },
            };
            Output::Boxes(lefts.iter().map(car).collect::<Vec<_>>())
        };
        let mut familiar = Familiar::default();
        let parked = cars(&[0.1, 0.5]);
        familiar.saw(&parked);
        let first = familiar.worth(&parked);
        assert!(familiar.worth(&parked) < first * 0.25);
        assert!(familiar.worth(&cars(&[0.75])) > first * 0.9);
    }

    proptest! {
        #[test]
        fn whatever_is_said_a_case_is_worth_something(
            said in proptest::collection::vec((0_u8..4, proptest::num::f32::ANY), 0..6), count in 1_u32..50,
        ) {
            let mut familiar = Familiar::default();
            let said: Vec<LabelScore> =
                said.iter().map(|(label, score)| LabelScore { label: format!("{label}"), score: *score }).collect();
            for said in vec![Output::Classes(said); count as usize] {
                familiar.saw(&said);
                let worth = familiar.worth(&said);
                prop_assert!(worth >= ALIKE * RARITY.0 - 1e-6 && worth <= RARITY.1, "{worth}");
            }
        }
    }
}
