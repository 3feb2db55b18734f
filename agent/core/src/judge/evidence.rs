//! Decides up to which doubt answers may stay on the device, from spot checks alone.
//!
//! Of all samples, checked at random, so many were kept under a threshold and contradicted by the cloud. A threshold is
//! certified once a bet against "more than α of all samples are kept and contradicted" has won 1/δ times its stake:
//! by Ville's inequality that happens with probability δ at most, however often one looks (Waudby-Smith and Ramdas
//! 2024). Stricter thresholds come first, and what was certified stays so until it is revoked. An answer may be wrong
//! in part: of boxes the loss is 1 − F1.
//!
//! Of the kept answers alone the same is said by a bet that only checks under the threshold take part in. That risk does not
//! grow with the threshold: the strictest ones have hardly any checks, and a model may be wrong where it is surest. So
//! there is not one way from strict to loose, but one from each of several steps that were chosen in advance, as in the
//! fixed-sequence tests with several starts of Angelopoulos and others ("Learn then Test", 2021). A start has an equal part
//! of δ. A step is certified when its bet has won 1 over the part that has come to it; it passes that on to the next step, where
//! the part of a start that it reaches is added (the fallback procedure of Wiens 2003). Of the steps that must not be certified
//! the first to be so can only have had parts from behind the one before it, so these parts add up to δ at most, and by
//! Ville's inequality so does the probability that any of them ever is. Each certificate is about all answers up to its
//! step, and the loosest counts: that one before it is not certified does not matter.
//!
//! The reverse bet, against "at most α", runs on what the device keeps. When it wins, the certificate is gone.
//!
//! Counts of devices add up. What a whole fleet has seen certifies sooner, and is true of its average; a device whose own
//! bet has won goes by its own evidence from then on.

use alloc::vec::Vec;

use hedge_proto::{ModelRef, RiskOf, SpotChecks, Target};
use serde::{Deserialize, Serialize};

use super::bins::{BINS, Bins};

/// A loss is kept as parts of these, which errs to the careful side: the logarithm of a bet's win is concave in it.
const LEVELS: usize = 4;

/// What is bet on: the true risk is so many times the target, and with which part of the stake. The last grows slowly, and
/// is what finds the loosest threshold in the long run.
const BELOW: [(f64, f64); 4] = [(0.3, 0.3), (0.5, 0.3), (0.7, 0.3), (0.9, 0.1)];

/// Of kept answers: after so many steps of doubt, one and a half of log-odds, begins another way to looser ones. With twice
/// as many, recorded answers of our models were certified later, and with half as many no sooner.
const STEPS_PER_START: usize = 16;

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
    /// How many lost nothing. What an earlier version has counted is in no step: it wins no bet on kept answers.
    #[serde(default)]
    held: Bins,
}

impl Evidence {
    fn add(&mut self, bin: usize, loss: f32) {
        self.checks += 1.0;
        let loss = loss.clamp(0.0, 1.0) * LEVELS as f32;
        self.held.add(bin, (1.0 - loss).max(0.0));
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
        let held = self.held.iter().filter(|(_, count)| *count > 0.0).map(|(bin, count)| (small(bin), count)).collect();
        SpotChecks { model, cloud, devices, checks: self.checks, lost, held }
    }

    /// What others tell. `None` where it is no count of this kind.
    #[must_use]
    pub fn heard(told: &SpotChecks) -> Option<Self> {
        let mut heard = Self { checks: told.checks, ..Self::default() };
        let is_count = |bin: u8, count: f32| count.is_finite() && count >= 0.0 && usize::from(bin) < BINS;
        for (bin, level, count) in &told.lost {
            let level = heard.lost.get_mut(usize::from(*level)).filter(|_| is_count(*bin, *count))?;
            level.add(usize::from(*bin), *count);
        }
        for (bin, count) in &told.held {
            Some(&mut heard.held).filter(|_| is_count(*bin, *count))?.add(usize::from(*bin), *count);
        }
        let known = f64::from(heard.lost.iter().chain([&heard.held]).map(Bins::sum).sum::<f32>());
        // A sum of many single-precision numbers is not exact.
        let is_count = told.checks.is_finite() && told.checks >= 0.0 && known <= told.checks * 1.001 + 1.0;
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
        for (bins, others) in self.lost.iter_mut().chain([&mut self.held]).zip(other.lost.iter().chain([&other.held])) {
            others.iter().for_each(|(bin, count)| bins.add(bin, count));
        }
    }

    /// How many say something of what is aimed at: of kept answers only those whose step is known.
    fn counted(&self, of: RiskOf) -> f64 {
        match of {
            RiskOf::All => self.checks,
            RiskOf::Kept => f64::from(self.held.sum()),
        }
    }

    /// How many were kept by a threshold, as far as steps are known.
    fn kept(&self, bin: usize) -> f64 {
        let bins = self.lost.iter().chain([&self.held]);
        bins.map(|bins| f64::from(bins.below(bin + 1))).sum()
    }

    /// What the bets of all steps before this one have won becomes what this one's have. False if nothing is new.
    fn step(&self, bin: usize, bets: &Bets, of: RiskOf, won: &mut [f64; BELOW.len()]) -> bool {
        let lost = self.lost_in(bin);
        let checks = self.held.get(bin) + lost.iter().sum::<f32>();
        if of == RiskOf::Kept && checks > 0.0 {
            won.iter_mut().zip(bets.unlost(f64::from(checks))).for_each(|(won, unlost)| *won += unlost);
        }
        bets.lose(won, lost);
        checks > 0.0
    }

    /// Before the first step: of all samples every check takes part in each bet.
    fn before(&self, bets: &Bets, of: RiskOf) -> [f64; BELOW.len()] {
        bets.unlost(if of == RiskOf::All { self.checks } else { 0.0 })
    }

    /// The loosest threshold that is certified. `from` already is, and of all samples so is every stricter one.
    fn certified(&self, from: Option<usize>, target: Target) -> Option<usize> {
        let (bets, of_all) = (Bets::on(target), target.of == RiskOf::All);
        let mut won = self.before(&bets, target.of);
        // Which part of what may go wrong has come to the step.
        let (mut part, mut certified) = (0.0, from);
        // What came of the bets of the step before, while nothing is new.
        let mut has_won = None;
        for bin in 0..BINS {
            if self.step(bin, &bets, target.of, &mut won) {
                has_won = None;
            }
            part += match target.of {
                RiskOf::All if bin == 0 => 1.0,
                RiskOf::Kept if bin % STEPS_PER_START == STEPS_PER_START - 1 => STEPS_PER_START as f64 / BINS as f64,
                _ => 0.0,
            };
            let is_sure = if of_all { from.is_some_and(|from| bin <= from) } else { from == Some(bin) };
            if is_sure || part > 0.0 && *has_won.get_or_insert_with(|| bets.won(&won)) * part >= bets.goal {
                certified = certified.max(Some(bin));
            } else if of_all {
                break;
            } else {
                part = 0.0;
            }
        }
        certified
    }

    /// How many more checks without any loss would certify this step. Of kept answers at least as many of those: as if no
    /// other start were to have a part, because to know which will takes too long for every answer.
    fn missing(&self, bin: usize, target: Target) -> Option<u32> {
        let bets = Bets::on(target);
        let mut won = self.before(&bets, target.of);
        (0..=bin).for_each(|bin| _ = self.step(bin, &bets, target.of, &mut won));
        let mut best = won;
        if target.of == RiskOf::Kept {
            // A looser one would do.
            for bin in bin + 1..BINS {
                self.step(bin, &bets, target.of, &mut won);
                best.iter_mut().zip(won).for_each(|(best, won)| *best = best.max(won));
            }
        }
        let enough = |more: u32| {
            let unlost = bets.unlost(f64::from(more));
            bets.won(&core::array::from_fn(|bet| unlost[bet] + best[bet])) >= bets.goal
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

    fn of(&self) -> RiskOf {
        self.target.map_or(RiskOf::All, |target| target.of)
    }

    /// The fleet's, if that is what the device goes by.
    #[must_use]
    pub fn fleet(&self) -> Option<&Evidence> {
        // Which of the two has more checks says nothing of what came of them.
        let is_more = |fleet: &&Evidence| fleet.counted(self.of()) > self.evidence.counted(self.of());
        self.fleet.as_ref().filter(|_| self.known_of_fleet().is_some()).filter(is_more)
    }

    /// What the device goes by.
    #[must_use]
    pub fn evidence(&self) -> &Evidence {
        self.fleet().unwrap_or(&self.evidence)
    }

    /// How many spot checks speak for what is certified, or may come to.
    #[must_use]
    pub fn checks(&self) -> f64 {
        match self.of() {
            RiskOf::All => self.evidence().checks,
            RiskOf::Kept => self.evidence().kept(self.certified.unwrap_or(BINS - 1)),
        }
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
            let counts = target.of == RiskOf::All || self.keeps(bin);
            if counts && self.reverse.saw(kept, risk(target)) {
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

    /// How many more spot checks without a contradiction would certify thresholds up to this step of doubt at least; of kept
    /// answers, checks of those. `None` if they are, or nothing is aimed at.
    #[must_use]
    pub fn missing(&self, bin: usize) -> Option<u32> {
        let target = self.target.filter(|_| !self.keeps(bin))?;
        self.evidence().missing(bin, target)
    }

    /// The same for a step that half of the answers are not above, in checks of any answers: each second one is of those.
    #[must_use]
    pub fn missing_to_half(&self, half: usize) -> Option<u32> {
        let of_each = if self.of() == RiskOf::Kept { 2 } else { 1 };
        self.missing(half).map(|missing| missing.saturating_mul(of_each))
    }
}

#[cfg(test)]
mod tests;
