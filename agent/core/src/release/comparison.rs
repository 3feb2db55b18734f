//! Decides whether a newer bundle of a model is better than the older one, on a device's own input.
//!
//! One of them answers; the other, its rival, looks at the same samples and nobody hears it. Where both say the same
//! there is nothing to learn. Where they differ the cloud is asked, however sure the one that answers is, and what it
//! says speaks for one of them. Asking only there leaves nothing out: elsewhere neither can win.
//!
//! Two bets go on all the time, one that the newer is better and one that it is worse. A bet is won when it has
//! brought `GOAL` times its stake, which happens by chance to one in as many pairs that are equally good, however often
//! one looks (Ville's inequality, as in `judge::evidence`).

use alloc::collections::VecDeque;
use alloc::format;
use alloc::string::String;
use core::time::Duration;

use hedge_proto::{CaseKey, Output, RivalFigures, RivalRole};

use crate::agree::{AGREES_MIN, agree};

/// What a bet must bring.
const GOAL: f64 = 100.0;

/// How much of its win is put on each sample. Large stakes find large differences soon, small ones find small ones at all.
const STAKES: [f64; 4] = [0.1, 0.3, 0.5, 0.7];

/// After so many samples without a finding the two are alike.
const COMPARED_MAX: u32 = 5000;

/// Cases of one comparison, at most: it must not spend a budget for ever.
const CASES_MAX: u32 = 500;

/// A newer bundle that takes more than so many times as long is worse, whatever it says; seen over so many samples.
const SLOWER_MAX: f64 = 3.0;
const TIMED_MIN: u32 = 100;

/// What part of the time the rival may work.
const BUSY_MAX: f64 = 0.25;

/// Cases whose verdict is waited for.
const OPEN_MAX: usize = 512;

/// How a comparison ends.
#[derive(Debug, Clone, PartialEq)]
pub enum Finding {
    NewerBetter(String),
    NewerWorse(String),
    Alike,
}

impl Finding {
    /// For people.
    #[must_use]
    pub fn text(&self) -> &str {
        match self {
            Self::NewerBetter(why) | Self::NewerWorse(why) => why,
            Self::Alike => "it is neither better nor worse than the other",
        }
    }
}

/// Two bundles of one model.
#[derive(Debug, Clone)]
pub struct Comparison {
    role: RivalRole,
    /// What the rival said of cases whose verdict is waited for.
    open: VecDeque<(CaseKey, Output)>,
    compared: u32,
    differed: u32,
    cases: u32,
    /// Samples that spoke for the newer one, and for the older one; in parts for boxes.
    newer: f64,
    older: f64,
    /// What the bets have brought, as logarithms: that the newer is better, and that it is worse.
    better: [f64; STAKES.len()],
    worse: [f64; STAKES.len()],
    /// How long the one that answers has worked, and its rival, on the same samples.
    own_time: Duration,
    rival_time: Duration,
}

impl Comparison {
    #[must_use]
    pub fn new(role: RivalRole) -> Self {
        Self {
            role,
            open: VecDeque::new(),
            compared: 0,
            differed: 0,
            cases: 0,
            newer: 0.0,
            older: 0.0,
            better: [0.0; STAKES.len()],
            worse: [0.0; STAKES.len()],
            own_time: Duration::ZERO,
            rival_time: Duration::ZERO,
        }
    }

    /// Whether the rival looks at the next sample: it has a part of the processor's time.
    #[must_use]
    pub fn is_due(&self, since_begun: Duration) -> bool {
        self.finding().is_none() && self.rival_time.as_secs_f64() <= BUSY_MAX * since_begun.as_secs_f64()
    }

    /// Both have looked at a sample; none is what could not be read. Returns whether the cloud is to be asked.
    #[must_use]
    pub fn saw(&mut self, (own, own_time): (Option<&Output>, Duration), rival: (Option<&Output>, Duration)) -> bool {
        self.compared = self.compared.saturating_add(1);
        self.own_time += own_time;
        self.rival_time += rival.1;
        match (own, rival.0) {
            (Some(own), Some(rival)) if agree(own, rival) < AGREES_MIN => {
                self.differed += 1;
                self.cases < CASES_MAX
            }
            (Some(_), None) => {
                self.counts(1.0);
                false
            }
            (None, Some(_)) => {
                self.counts(-1.0);
                false
            }
            _ => false,
        }
    }

    /// A case was made of a sample about which they differ.
    pub fn opened(&mut self, key: CaseKey, rival: Output) {
        self.cases += 1;
        if self.open.len() == OPEN_MAX {
            self.open.pop_front();
        }
        self.open.push_back((key, rival));
    }

    /// What came of a case, of which the one that answers had said `own`.
    pub fn answered(&mut self, key: CaseKey, own: &Output, verdict: &Output) {
        let Some(at) = self.open.iter().position(|(open, _)| *open == key) else { return };
        let Some((_, rival)) = self.open.remove(at) else { return };
        self.counts(f64::from(agree(own, verdict) - agree(&rival, verdict)));
    }

    /// One sample spoke for the one that answers, by so much; below 0 for its rival.
    fn counts(&mut self, for_own: f64) {
        let for_newer = match self.role {
            RivalRole::Candidate => -for_own,
            RivalRole::Previous => for_own,
        };
        let for_newer = if for_newer.is_nan() { 0.0 } else { for_newer.clamp(-1.0, 1.0) };
        (self.newer, self.older) = (self.newer + for_newer.max(0.0), self.older + (-for_newer).max(0.0));
        for (at, stake) in STAKES.into_iter().enumerate() {
            self.better[at] += libm::log1p(stake * for_newer);
            self.worse[at] += libm::log1p(-stake * for_newer);
        }
    }

    /// What is known by now.
    #[must_use]
    pub fn finding(&self) -> Option<Finding> {
        let won = |bets: &[f64; STAKES.len()]| {
            bets.iter().map(|log| libm::exp(log.min(600.0))).sum::<f64>() / STAKES.len() as f64 >= GOAL
        };
        let score = || {
            format!(
                "of the samples about which they differ {:.0} spoke for the newer one and {:.0} for the older",
                self.newer, self.older
            )
        };
        let slower = self.slower();
        if won(&self.worse) {
            Some(Finding::NewerWorse(score()))
        } else if self.compared >= TIMED_MIN && slower > SLOWER_MAX {
            Some(Finding::NewerWorse(format!("it takes {slower:.1} times as long as the older one")))
        } else if won(&self.better) {
            Some(Finding::NewerBetter(score()))
        } else {
            (self.compared >= COMPARED_MAX).then_some(Finding::Alike)
        }
    }

    /// How many times as long as the older one the newer one takes.
    fn slower(&self) -> f64 {
        let (own, rival) = (self.own_time.as_secs_f64(), self.rival_time.as_secs_f64());
        let (newer, older) = match self.role {
            RivalRole::Candidate => (rival, own),
            RivalRole::Previous => (own, rival),
        };
        if older > 0.0 { newer / older } else { 1.0 }
    }

    /// What the device tells about it.
    #[must_use]
    pub fn figures(&self, version: String) -> RivalFigures {
        RivalFigures {
            version,
            role: self.role,
            compared: self.compared,
            differed: self.differed,
            newer: self.newer,
            older: self.older,
            slower: self.slower(),
            finding: self.finding().map(|finding| {
                match finding {
                    Finding::NewerBetter(_) => "better",
                    Finding::NewerWorse(_) => "worse",
                    Finding::Alike => "alike",
                }
                .into()
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use hedge_proto::{Epoch, LabelScore};
    use proptest::prelude::*;

    use super::*;
    use crate::chance::Chance;

    const MS: Duration = Duration::from_millis(1);

    fn label(label: &str) -> Output {
        Output::Classes(vec![LabelScore { label: label.into(), score: 0.9 }])
    }

    /// Samples on which the newer is right so often where they differ, which is one in five.
    fn run(role: RivalRole, newer_right: f64, samples: u32, seed: u64) -> (Comparison, u32) {
        let (mut comparison, mut chance) = (Comparison::new(role), Chance::from_seed(seed));
        let (cat, dog) = (label("cat"), label("dog"));
        for sample in 0..samples {
            let newer = if chance.share() < 0.2 { &dog } else { &cat };
            let truth = if *newer == cat || chance.share() < newer_right { newer } else { &cat };
            let (own, rival) = if role == RivalRole::Candidate { (&cat, newer) } else { (newer, &cat) };
            let key = CaseKey { epoch: Epoch(1), sequence: sample.into() };
            if comparison.saw((Some(own), MS), (Some(rival), MS)) {
                comparison.opened(key, rival.clone());
                comparison.answered(key, own, truth);
            }
            if comparison.finding().is_some() {
                return (comparison, sample);
            }
        }
        (comparison, samples)
    }

    #[test]
    fn a_better_and_a_worse_one_are_told_within_500_samples_in_either_role() {
        for role in [RivalRole::Candidate, RivalRole::Previous] {
            for seed in 0..100 {
                let (better, after) = run(role, 0.8, 500, seed);
                assert!(matches!(better.finding(), Some(Finding::NewerBetter(_))), "{seed}: {after}");
                let (worse, after) = run(role, 0.2, 500, seed);
                assert!(matches!(worse.finding(), Some(Finding::NewerWorse(_))), "{seed}: {after}");
            }
        }
    }

    #[test]
    fn two_that_are_equally_good_are_rarely_told_apart() {
        let told = (0..400).filter(|seed| {
            let (comparison, _) = run(RivalRole::Candidate, 0.5, 6000, *seed);
            comparison.finding() != Some(Finding::Alike)
        });
        // One in a hundred each way.
        assert!(told.count() <= 8);
    }

    #[test]
    fn one_that_fails_where_the_other_answers_loses_without_the_cloud() {
        let mut comparison = Comparison::new(RivalRole::Candidate);
        for _ in 0..20 {
            assert!(!comparison.saw((Some(&label("cat")), MS), (None, MS)));
        }
        assert!(matches!(comparison.finding(), Some(Finding::NewerWorse(_))));
    }

    #[test]
    fn one_that_takes_far_longer_is_worse_and_the_rival_keeps_to_its_part_of_the_processor() {
        let mut comparison = Comparison::new(RivalRole::Candidate);
        let (cat, mut now, mut ran) = (label("cat"), Duration::ZERO, 0);
        while comparison.finding().is_none() {
            now += 2 * MS;
            if comparison.is_due(now) {
                ran += 1;
                now += 4 * MS;
                assert!(!comparison.saw((Some(&cat), MS), (Some(&cat), 4 * MS)));
                assert!(f64::from(ran) * 4.0 <= 0.25 * now.as_secs_f64() * 1e3 + 4.0);
            }
        }
        let Some(Finding::NewerWorse(why)) = comparison.finding() else { panic!("{comparison:?}") };
        assert!(why.contains("4.0 times as long"), "{why}");
        assert!(!comparison.is_due(now * 2), "it is over");
    }

    proptest! {
        #[test]
        fn whatever_is_said_it_ends_and_asks_for_no_more_than_its_cases(
            said in proptest::collection::vec((0_u8..4, 0_u8..4, 0_u8..4), 1..400), role in 0..2,
        ) {
            let role = if role == 0 { RivalRole::Candidate } else { RivalRole::Previous };
            let mut comparison = Comparison::new(role);
            let of = |at: u8| (at > 0).then(|| label(&format!("{at}")));
            let mut cases = 0;
            for sequence in 0..6000_u64 {
                #[expect(clippy::cast_possible_truncation, reason = "below 400")]
                let (own, rival, truth) = said[sequence as usize % said.len()];
                let (own, rival) = (of(own), of(rival));
                let key = CaseKey { epoch: Epoch(1), sequence };
                if comparison.saw((own.as_ref(), MS), (rival.as_ref(), MS)) {
                    cases += 1;
                    comparison.opened(key, rival.expect("it differs"));
                    if let (Some(own), Some(truth)) = (own, of(truth)) {
                        comparison.answered(key, &own, &truth);
                    }
                }
                prop_assert!(comparison.open.len() <= OPEN_MAX);
            }
            prop_assert!(cases <= CASES_MAX);
            prop_assert!(comparison.finding().is_some());
        }
    }
}
