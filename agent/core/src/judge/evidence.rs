//! Decides up to which doubt answers may stay on the device, from spot checks alone.
//!
//! Of all samples, checked at random, so many were kept under a threshold and contradicted by the cloud. A threshold is
//! certified once a bet against "more than α of all samples are kept and contradicted" has won 1/δ times its stake:
//! by Ville's inequality that happens with probability δ at most, however often one looks (Waudby-Smith and Ramdas
//! 2024). Stricter thresholds come first, and what was certified stays so until it is revoked. An answer may be wrong
//! in part: of boxes the loss is 1 − F1.
//!
//! The reverse bet, against "at most α", runs on what the device keeps. When it wins, the certificate is gone.
//!
//! Counts of devices add up. What a whole fleet has seen certifies sooner, and is true of its average; a device whose own
//! bet has won goes by its own evidence from then on.

use alloc::vec::Vec;

use hedge_proto::{ModelRef, SpotChecks, Target};
use serde::{Deserialize, Serialize};

use super::bins::{BINS, Bins};

/// A loss is kept as parts of these, which errs to the careful side: the logarithm of a bet's win is concave in it.
const LEVELS: usize = 4;

/// What is bet on: the true risk is so many times the target, and with which part of the stake. The last grows slowly, and
/// is what finds the loosest threshold in the long run.
const BELOW: [(f64, f64); 4] = [(0.3, 0.3), (0.5, 0.3), (0.7, 0.3), (0.9, 0.1)];

/// What the reverse bet is on: no bet wins much more than this one for risks from one and a half times the target on.
const ABOVE: f64 = 2.0;

/// A certificate is revoked falsely in at most this share of devices' lives.
const REVOKED_FALSELY: f64 = 0.1;

/// A shift may come late. This part of the stake is on now; the rest is bet in parts that begin after so many checks each.
const ON_NOW: f64 = 0.9;
const CHECKS_PER_START: u32 = 100;

/// More was won than any goal asks for, and a double holds it.
const LOG_MAX: f64 = 600.0;

/// No risk is bet on that is nearer to certainty.
const RISK_MAX: f64 = 0.98;

/// Spot checks by doubt, and what came of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    checks: f64,
    /// How many lost a quarter, half, three quarters, all.
    lost: [Bins; LEVELS],
}

impl Evidence {
    fn add(&mut self, bin: usize, loss: f32) {
        self.checks += 1.0;
        let loss = loss.clamp(0.0, 1.0) * LEVELS as f32;
        for (level, bins) in self.lost.iter_mut().enumerate() {
            // How near the loss is to this level: a loss between two is shared by both.
            let part = 1.0 - (loss - (level + 1) as f32).abs();
            if part > 0.0 {
                bins.add(bin, part);
            }
        }
    }

    #[must_use]
    pub fn checks(&self) -> f64 {
        self.checks
    }

    /// As it is told to others.
    #[must_use]
    pub fn told(&self, model: ModelRef, cloud: ModelRef, devices: u32) -> SpotChecks {
        let of_level = |(level, bins): (usize, &Bins)| {
            let lost = bins.iter().filter(|(_, count)| *count > 0.0);
            lost.map(|(bin, count)| (small(bin), small(level), count)).collect::<Vec<_>>()
        };
        let lost = self.lost.iter().enumerate().flat_map(of_level).collect();
        SpotChecks { model, cloud, devices, checks: self.checks, lost }
    }

    /// What others tell. `None` where it is no count of this kind.
    #[must_use]
    pub fn heard(told: &SpotChecks) -> Option<Self> {
        let mut heard = Self { checks: told.checks, ..Self::default() };
        for (bin, level, count) in &told.lost {
            let is_count = count.is_finite() && *count >= 0.0 && usize::from(*bin) < BINS;
            heard.lost.get_mut(usize::from(*level)).filter(|_| is_count)?.add(usize::from(*bin), *count);
        }
        let lost: f32 = heard.lost.iter().map(Bins::sum).sum();
        // A sum of many single-precision numbers is not exact.
        let is_count = told.checks.is_finite() && told.checks >= 0.0 && f64::from(lost) <= told.checks * 1.001 + 1.0;
        is_count.then_some(heard)
    }

    /// How many of the checks lost nothing: these are answers, and no lost cases.
    #[must_use]
    pub fn unlost(&self) -> f64 {
        self.checks - f64::from(self.lost.iter().map(Bins::sum).sum::<f32>())
    }

    /// Counts what another device has seen, too.
    pub fn merge(&mut self, other: &Self) {
        self.checks += other.checks;
        for (bins, others) in self.lost.iter_mut().zip(&other.lost) {
            others.iter().for_each(|(bin, count)| bins.add(bin, count));
        }
    }

    /// The loosest threshold that is certified; those up to `from` already are.
    fn certified(&self, from: Option<usize>, target: Target) -> Option<usize> {
        let bets = Bets::on(target);
        let mut won = bets.unlost(self.checks);
        let mut certified = from;
        for bin in 0..BINS {
            bets.lose(&mut won, self.lost_in(bin));
            if certified.is_some_and(|sure| bin <= sure) {
                continue;
            }
            if bets.won(&won) < bets.goal {
                break;
            }
            certified = Some(bin);
        }
        certified
    }

    /// How many more checks without any loss would certify this step.
    fn missing(&self, bin: usize, target: Target) -> Option<u32> {
        let bets = Bets::on(target);
        let mut lost = [0.0; BELOW.len()];
        (0..=bin).for_each(|bin| bets.lose(&mut lost, self.lost_in(bin)));
        let enough = |more: u32| {
            let unlost = bets.unlost(self.checks + f64::from(more));
            bets.won(&core::array::from_fn(|bet| unlost[bet] + lost[bet])) >= bets.goal
        };
        let (mut too_few, mut most) = (0, (0..=30).map(|power| 1_u32 << power).find(|most| enough(*most))?);
        while most - too_few > 1 {
            let half = too_few + (most - too_few) / 2;
            *(if enough(half) { &mut most } else { &mut too_few }) = half;
        }
        Some(most)
    }

    fn lost_in(&self, bin: usize) -> [f32; LEVELS] {
        core::array::from_fn(|level| self.lost[level].get(bin))
    }
}

/// Bets that the risk is above the target, in logarithms of what each wins.
struct Bets {
    /// For no loss, and for each level of it.
    wins: [[f64; LEVELS + 1]; BELOW.len()],
    goal: f64,
}

impl Bets {
    fn on(target: Target) -> Self {
        let risk = risk(target);
        let win = |stake: f64, level: usize| libm::log(1.0 + stake * (risk - level as f64 / LEVELS as f64));
        let wins = BELOW.map(|(times, _)| core::array::from_fn(|level| win((1.0 - times) / (1.0 - risk), level)));
        Self { wins, goal: 1.0 / (1.0 - f64::from(target.confidence.value())).max(1e-6) }
    }

    /// All bets together, of their logarithms.
    fn won(&self, logs: &[f64; BELOW.len()]) -> f64 {
        logs.iter().zip(BELOW).map(|(log, (_, part))| part * libm::exp(log.min(LOG_MAX))).sum()
    }

    fn unlost(&self, checks: f64) -> [f64; BELOW.len()] {
        self.wins.map(|wins| checks * wins[0])
    }

    fn lose(&self, won: &mut [f64; BELOW.len()], lost: [f32; LEVELS]) {
        for (level, count) in lost.into_iter().enumerate().filter(|(_, count)| *count > 0.0) {
            won.iter_mut()
                .zip(&self.wins)
                .for_each(|(won, wins)| *won += f64::from(count) * (wins[level + 1] - wins[0]));
        }
    }
}

/// Steps and levels are few.
fn small(number: usize) -> u8 {
    u8::try_from(number).unwrap_or(u8::MAX)
}

fn risk(target: Target) -> f64 {
    f64::from(target.risk.value()).clamp(1e-6, RISK_MAX)
}

/// The bet that a certificate has become false.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Reverse {
    checks: u32,
    /// The logarithm of what the bet has won since the certificate was given.
    since_given: f64,
    /// The same of all later starts together.
    since_later: Option<f64>,
    /// What no bet has been made with yet.
    rest: f64,
}

impl Default for Reverse {
    fn default() -> Self {
        Self { checks: 0, since_given: 0.0, since_later: None, rest: 1.0 }
    }
}

impl Reverse {
    /// True when it has won.
    fn saw(&mut self, loss: f64, risk: f64) -> bool {
        if self.checks.is_multiple_of(CHECKS_PER_START) {
            let start = f64::from(self.checks / CHECKS_PER_START);
            let part = 1.0 / ((start + 1.0) * (start + 2.0));
            self.rest -= part;
            self.since_later = Some(libm::log(self.later() + part));
        }
        self.checks = self.checks.saturating_add(1);
        let bet_on = (ABOVE * risk).min(RISK_MAX.max(risk));
        let won = libm::log((bet_on * loss / risk) + (1.0 - bet_on) * (1.0 - loss) / (1.0 - risk));
        self.since_given += won;
        self.since_later = self.since_later.map(|before| before + won);
        let now = libm::exp(self.since_given.min(LOG_MAX));
        ON_NOW * now + (1.0 - ON_NOW) * (self.later() + self.rest) >= 1.0 / REVOKED_FALSELY
    }

    fn later(&self) -> f64 {
        self.since_later.map_or(0.0, |won| libm::exp(won.min(LOG_MAX)))
    }
}

/// How far the device may trust itself, and why.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Certificate {
    target: Option<Target>,
    evidence: Evidence,
    /// Up to this step of doubt answers stay.
    certified: Option<usize>,
    reverse: Reverse,
    /// Of all devices, this one included.
    #[serde(default)]
    fleet: Option<Evidence>,
    /// This device has been found to be unlike the others, until another model is in use here or in the cloud.
    #[serde(default)]
    alone: bool,
}

impl Certificate {
    /// Whether an answer of this step of doubt may stay.
    #[must_use]
    pub fn keeps(&self, bin: usize) -> bool {
        self.certified.is_some_and(|certified| bin <= certified)
    }

    #[must_use]
    pub fn certified(&self) -> Option<usize> {
        self.certified
    }

    /// This device's own.
    #[must_use]
    pub fn own(&self) -> &Evidence {
        &self.evidence
    }

    /// How many checks of all devices are known; `None` if they say nothing of this one.
    #[must_use]
    pub fn known_of_fleet(&self) -> Option<f64> {
        let is_one_of_it = !self.alone && self.target.is_some_and(|target| target.fleet);
        is_one_of_it.then(|| self.fleet.as_ref().map_or(0.0, Evidence::checks))
    }

    /// The fleet's, if that is what the device goes by.
    #[must_use]
    pub fn fleet(&self) -> Option<&Evidence> {
        // Which of the two has more checks says nothing of what came of them.
        self.fleet.as_ref().filter(|_| self.known_of_fleet() > Some(self.evidence.checks))
    }

    /// What the device goes by.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        self.fleet().unwrap_or(&self.evidence)
    }

    /// What all devices have seen by now.
    pub fn heard(&mut self, fleet: Evidence) {
        self.fleet = Some(fleet);
        self.certify();
    }

    fn certify(&mut self) {
        self.certified = self.target.and_then(|target| self.evidence().certified(self.certified, target));
    }

    /// One spot check has come back: `loss` is how much of the answer was contradicted, all of one that was lost.
    /// Without a target it is only counted. True if the certificate is revoked by it; what was known is forgotten then,
    /// because it is about other input.
    pub fn checked(&mut self, bin: usize, loss: f32) -> bool {
        let loss = if loss.is_nan() { 1.0 } else { loss.clamp(0.0, 1.0) };
        if let (Some(target), Some(_)) = (self.target, self.certified) {
            let kept = if self.keeps(bin) { f64::from(loss) } else { 0.0 };
            if self.reverse.saw(kept, risk(target)) {
                self.revoke();
                return true;
            }
        }
        self.evidence.add(bin, loss);
        self.certify();
        false
    }

    /// Evidence counts for any target; what it certifies is for one.
    pub fn aim(&mut self, target: Option<Target>) {
        if self.target != target {
            (self.target, self.certified, self.reverse) = (target, None, Reverse::default());
            self.certify();
        }
    }

    pub fn revoke(&mut self) {
        *self = Self { alone: true, ..self.anew() };
    }

    /// With the same target, and nothing known.
    #[must_use]
    pub fn anew(&self) -> Self {
        Self { target: self.target, ..Self::default() }
    }

    /// How many more spot checks without a contradiction would certify thresholds up to this step of doubt. `None` if
    /// they are, or nothing is aimed at.
    #[must_use]
    pub fn missing(&self, bin: usize) -> Option<u32> {
        let target = self.target.filter(|_| !self.keeps(bin))?;
        self.evidence().missing(bin, target)
    }
}

#[cfg(test)]
mod tests {
    use alloc::vec;

    use hedge_proto::Share;

    use super::*;
    use crate::chance::Chance;

    fn target(risk: f32, confidence: f32) -> Target {
        let share = |value| Share::new(value).expect("a share");
        Target { risk: share(risk), confidence: share(confidence), fleet: true }
    }

    /// Doubt falls evenly into the steps from 100 on; those above `wrong_from` lose `loss`.
    fn run(certificate: &mut Certificate, chance: &mut Chance, checks: usize, wrong: impl Fn(usize) -> f32) -> bool {
        certificate.aim(Some(target(0.1, 0.9)));
        (0..checks).any(|_| {
            let bin = 100 + usize::try_from(chance.next_u64() % 50).expect("small");
            certificate.checked(bin, wrong(bin))
        })
    }

    #[test]
    fn nothing_stays_before_the_evidence_says_so_and_it_says_how_much_is_missing() {
        let mut certificate = Certificate::default();
        let strict = Some(target(0.02, 0.95));
        certificate.aim(strict);
        assert!(!certificate.keeps(0));
        let missing = certificate.missing(0).expect("some");
        for _ in 1..missing {
            assert!(!certificate.checked(BINS - 1, 1.0) && !certificate.keeps(0));
        }
        assert!(!certificate.checked(BINS - 1, 1.0));
        assert!(certificate.keeps(0), "an answer with the least doubt, after {missing}");
        assert!(!certificate.keeps(BINS - 1) && certificate.missing(0).is_none());
    }

    #[test]
    fn a_threshold_grows_looser_and_never_so_loose_that_the_risk_is_passed() {
        let mut violated = 0;
        for seed in 0..100 {
            let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
            // From step 140 on all are wrong: a fifth. Up to 144 a tenth of all is kept and wrong.
            assert!(!run(&mut certificate, &mut chance, 1500, |bin| if bin >= 140 { 1.0 } else { 0.0 }));
            let certified = certificate.certified().expect("certified");
            assert!(certified >= 139, "{certified}");
            violated += u32::from(certified > 144);
        }
        assert!(violated <= 17, "{violated} of 100 at a confidence of .9");
    }

    #[test]
    fn a_certificate_is_revoked_when_the_input_becomes_worse_and_seldom_otherwise() {
        let (mut false_ones, mut late) = (0, 0);
        for seed in 0..60 {
            let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
            false_ones += u32::from(run(&mut certificate, &mut chance, 3000, |bin| if bin >= 144 { 1.0 } else { 0.0 }));
            late += u32::from(!run(&mut certificate, &mut chance, 400, |bin| if bin >= 125 { 1.0 } else { 0.0 }));
        }
        assert!(false_ones <= 6 && late <= 3, "{false_ones} false, {late} not seen within 400, of 60");
    }

    #[test]
    fn what_is_contradicted_in_part_counts_in_part() {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(1));
        run(&mut certificate, &mut chance, 2000, |_| 0.05);
        assert_eq!(certificate.certified(), Some(BINS - 1), "a twentieth of each is half of the target");
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(1));
        run(&mut certificate, &mut chance, 2000, |_| 0.5);
        let certified = certificate.certified().expect("certified");
        assert!((105..=110).contains(&certified), "a fifth of all may lose half: {certified}");
    }

    fn model(name: &str) -> ModelRef {
        ModelRef { name: name.into(), version: "1".into() }
    }

    /// What so many devices have seen together, as it is told.
    fn fleet(devices: u64, checks: usize, wrong: impl Fn(usize) -> f32) -> Evidence {
        let mut fleet = Evidence::default();
        for seed in 0..devices {
            let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(seed));
            run(&mut certificate, &mut chance, checks, &wrong);
            fleet.merge(&Evidence::heard(&certificate.own().told(model("small"), model("large"), 1)).expect("a count"));
        }
        fleet
    }

    #[test]
    fn what_a_fleet_has_seen_certifies_a_device_that_has_seen_nothing() {
        let wrong = |bin: usize| if bin >= 140 { 1.0 } else { 0.0 };
        let fleet = fleet(20, 50, wrong);
        assert_eq!(fleet.checks(), 1000.0);
        let mut alone = Certificate::default();
        run(&mut alone, &mut Chance::from_seed(0), 10, wrong);
        assert_eq!(alone.certified(), None, "ten checks of its own");
        let (mut new, strict) = (Certificate::default(), target(0.1, 0.9));
        new.heard(fleet.clone());
        assert_eq!(new.certified(), None, "nothing is aimed at");
        new.aim(Some(strict));
        let certified = new.certified().expect("certified");
        assert!((139..=144).contains(&certified), "{certified}");
        new.aim(Some(Target { fleet: false, ..strict }));
        assert_eq!(new.certified(), None, "only its own evidence is wanted");
    }

    #[test]
    fn a_device_that_is_worse_than_its_fleet_is_revoked_by_its_own_checks_and_stays_alone() {
        let fleet = fleet(20, 200, |bin| if bin >= 140 { 1.0 } else { 0.0 });
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(7));
        certificate.heard(fleet.clone());
        let dark = |bin: usize| if bin >= 115 { 1.0 } else { 0.0 };
        assert!(run(&mut certificate, &mut chance, 300, dark), "not revoked by 300 checks");
        certificate.heard(fleet.clone());
        assert_eq!(certificate.certified(), None, "the others say nothing of it any more");
        assert!(certificate.missing(100).is_some());
        // Its own evidence counts.
        assert!(!run(&mut certificate, &mut chance, 300, dark));
        let certified = certificate.certified().expect("by its own checks");
        assert!(certified <= 120, "{certified}");
    }

    #[test]
    fn what_is_no_count_is_not_heard() {
        let (small, large) = (model("small"), model("large"));
        let told = |checks, lost| SpotChecks { model: small.clone(), cloud: large.clone(), devices: 1, checks, lost };
        assert!(Evidence::heard(&told(10.0, vec![(120, 3, 10.0)])).is_some());
        let wrong = [
            told(f64::NAN, vec![]),
            told(-0.5, vec![]),
            told(10.0, vec![(192, 3, 1.0)]),
            told(10.0, vec![(120, 4, 1.0)]),
            told(10.0, vec![(120, 3, f32::INFINITY)]),
            told(10.0, vec![(120, 3, -1.0)]),
            told(10.0, vec![(120, 3, 20.0)]),
        ];
        for told in wrong {
            assert!(Evidence::heard(&told).is_none(), "{told:?}");
        }
    }

    #[test]
    fn what_was_known_survives_a_restart() {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(1));
        run(&mut certificate, &mut chance, 500, |bin| if bin >= 140 { 1.0 } else { 0.0 });
        let kept = hedge_proto::to_cbor(&certificate);
        assert!(hedge_proto::from_cbor::<Certificate>(&kept, 1 << 16).expect("reads back") == certificate);
    }
}
