//! What a device has learned of one version of a model, and how it judges by that.
//!
//! [`Experience::judge`] decides on one answer; [`Experience::learn`] takes in what came of a case. All of it is counts:
//! no sample, and no score of any sample, is kept. A new version of the model begins with nothing.

use alloc::borrow::ToOwned;
use alloc::boxed::Box;
use alloc::vec::Vec;

use hedge_proto::{
    Authority, CaseKey, Doubt, JudgeFigures, Measure, ModelRef, OnShift, Output, Reason, SpotChecks, ThresholdMode,
    Verdict, Weight,
};
use serde::{Deserialize, Serialize};

use super::allowance::Account;
use super::bins::{Recent, bin, log_odds, share, upper};
use super::calibration::{Calibration, Fit, PERSON_COUNTS};
use super::checks::Checks;
use super::evidence::{Certificate, Evidence};
use super::head::Head;
use super::shift::{Change, Shift};
use super::{Asked, Bar, Judgement, Rule, by_limits, counted, own};
use crate::agree::{agree, pairs};
use crate::chance::Chance;
use crate::clock::Moment;

/// Cases whose end is waited for. Beyond them the oldest counts as lost.
const OPEN_MAX: usize = 4096;

/// Under a target one answer in so many is checked for ever, so that a certificate that becomes false is seen; four times
/// as many while there are few.
const CHECKS_MIN: f32 = 0.01;
const MORE_CHECKS: f32 = 4.0;
const FEW_CHECKS: f64 = 1000.0;

/// Of a budget at most this part goes into spot checks.
const CHECKS_OF_BUDGET: f32 = 0.2;

/// While the input looks unlike what the model was checked on, a fixed threshold allows this part of the doubt.
const DOUBT_IN_SHIFT: f32 = 0.5;

/// A case that was made and has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
struct Open {
    key: CaseKey,
    bin: u8,
    check: bool,
    sent: bool,
    bytes: u32,
    since_ms: u64,
}

/// What is known of one version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Experience {
    model: ModelRef,
    /// Whose word the labels are.
    cloud: Option<ModelRef>,
    recent: Recent,
    pub(super) account: Account,
    pub(super) certificate: Certificate,
    shift: Shift,
    calibration: Calibration,
    /// Of the calibration, as of the last labels.
    #[serde(skip)]
    fit: Option<Fit>,
    /// Of single boxes, by their scores.
    boxes: Calibration,
    /// A doubt of its own, if that is wanted.
    #[serde(default)]
    head: Option<Box<Head>>,
    checks: Checks,
    open: Vec<Open>,
    /// When it last judged an answer.
    judged_ms: u64,
}

/// What a verdict has changed beside the counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum News {
    /// More doubt than before may stay.
    Certified,
    /// Spot checks say that the certificate has become false.
    Revoked,
    /// Another model answers in the cloud: what the other one said is no evidence any more.
    OtherCloud,
    /// A learned doubt counts from now on, or no longer does: what is certified of the other is no evidence any more.
    OtherDoubt,
}

impl Experience {
    #[must_use]
    pub fn of(model: ModelRef) -> Self {
        Self {
            model,
            cloud: None,
            recent: Recent::default(),
            account: Account::default(),
            certificate: Certificate::default(),
            shift: Shift::default(),
            calibration: Calibration::default(),
            fit: None,
            boxes: Calibration::default(),
            head: None,
            checks: Checks::default(),
            open: Vec::new(),
            judged_ms: 0,
        }
    }

    /// What was kept, if it is about this model.
    #[must_use]
    pub fn resume(kept: Option<Self>, model: ModelRef) -> Self {
        let mut kept = kept.filter(|kept| kept.model == model).unwrap_or_else(|| Self::of(model));
        if kept.head.as_ref().is_some_and(|head| !head.is_whole()) {
            kept.forget_learned();
        }
        kept.fit = kept.calibration.fit();
        kept
    }

    /// Decides on one answer.
    pub fn judge(&mut self, doubt: &Doubt, asked: Asked<'_>, now: Moment, chance: &mut Chance) -> Judgement {
        let Asked { limits, weight, policy, contested, rule } = asked;
        let doubt = &self.measured(doubt, rule);
        let raw = counted(doubt).map_or(0.0, |(_, doubt)| doubt);
        let alarm = self.changes(raw);
        let asks_more = rule.on_shift == OnShift::AskMore && self.shift.raised().is_some();
        if alarm.is_some() && asks_more {
            self.certificate.revoke();
        }
        self.certificate.aim(rule.target.filter(|_| rule.mode == ThresholdMode::Target));
        let rank = self.recent.bins().rank(raw);
        let judgement = match rule.mode {
            ThresholdMode::Fixed if asks_more => by_limits(doubt, &limits.with_less_doubt(DOUBT_IN_SHIFT), weight),
            ThresholdMode::Fixed => by_limits(doubt, &limits, weight),
            ThresholdMode::Budget => self.within_budget(doubt, (raw, rank), asked, now),
            ThresholdMode::Target => self.under_target(doubt, (raw, rank), asked),
        };
        let mut judgement = judgement.under(policy);
        self.judged_ms = now.0;
        self.recent.saw(raw);
        self.checks.saw(rank);
        // An answer that a policy decides on is no example of those that are judged.
        judgement.check = self.draws_check(&judgement, rule, asks_more, chance) && policy.is_none();
        if judgement.check && judgement.reason.is_none() {
            // Any of them may give way to a case, and any to another: what stays is a random sample, too.
            #[expect(clippy::cast_possible_truncation, reason = "a share")]
            let worth = chance.share() as f32;
            (judgement.reason, judgement.worth) = (Some(Reason::SpotCheck), worth);
        }
        if contested && rule.scale.value() > 0.0 {
            judgement = judgement.settled_by_the_cloud();
        }
        if let Bar::Budget { room, .. } = judgement.bar {
            self.account.decided(room, judgement.reason.is_some());
        }
        if judgement.reason.is_some() {
            self.account.case(now);
        }
        Judgement { alarm, asked_more: asks_more, agreement: self.agreement(doubt), ..judgement }
    }

    /// With what was learned, if that is wanted and counts.
    fn measured(&mut self, doubt: &Doubt, rule: &Rule) -> Doubt {
        match &self.head {
            None if rule.learned => self.head = Some(Box::default()),
            Some(_) if !rule.learned => self.forget_learned(),
            _ => {}
        }
        self.seen(doubt)
    }

    pub(super) fn seen(&self, doubt: &Doubt) -> Doubt {
        self.head.as_ref().map_or_else(|| doubt.without(Measure::Learned), |head| head.seen(doubt))
    }

    fn forget_learned(&mut self) {
        match self.head.take() {
            Some(head) if head.is_used() => self.rank_anew(None),
            _ => {}
        }
    }

    /// Answers stand elsewhere among the others from now on: what is known by where they stood says nothing any more.
    fn rank_anew(&mut self, head: Option<Box<Head>>) {
        self.head = head;
        (self.recent, self.shift) = (Recent::default(), Shift::default());
        (self.certificate, self.calibration, self.fit) = (self.certificate.anew(), Calibration::default(), None);
    }

    /// The alarm that this answer raises. Frames that hardly differ are no new evidence: one in so many is looked at.
    fn changes(&mut self, doubt: f32) -> Option<Change> {
        self.checks.unlooked = self.checks.unlooked.saturating_add(1);
        if (self.checks.unlooked as f32) < self.checks.spacing() {
            return None;
        }
        self.checks.unlooked = 0;
        if self.shift.saw(doubt) { self.shift.raised() } else { None }
    }

    fn within_budget(&mut self, doubt: &Doubt, (raw, rank): (f32, f32), asked: Asked<'_>, now: Moment) -> Judgement {
        let mut room = self.account.sample(now, &asked.rule.allowance);
        room.share = (room.share * asked.rule.scale.value()).min(1.0);
        // Of the usual weight it is where the answer stands.
        let rank = if asked.weight == Weight::ONE { rank } else { self.recent.bins().rank(weighed(raw, asked.weight)) };
        let defers = rank >= room.bar && room.share > 0.0 && room.reached.is_none();
        let bar = Bar::Budget { room, score_min: 1.0 - self.recent.bins().ranked(room.bar) };
        let worth = (rank - room.bar) / (1.0 - room.bar).max(0.01);
        let own_defers = |own| self.recent.bins().rank(weighed(own, asked.weight)) >= room.bar;
        Judgement::new(defers.then(|| low_score(doubt, own_defers)), worth, doubt, asked.weight, bar)
    }

    fn under_target(&self, doubt: &Doubt, (raw, rank): (f32, f32), asked: Asked<'_>) -> Judgement {
        let scaled = |doubt: f32| bin((doubt * asked.rule.scale.value()).min(1.0));
        let keeps = asked.rule.scale.value() == 0.0 || self.certificate.keeps(scaled(raw));
        let score_min = self.certificate.certified().map(|certified| 1.0 - upper(certified));
        let bar = Bar::Target {
            score_min,
            checks: self.certificate.checks(),
            of_fleet: self.certificate.fleet().is_some(),
            missing: if keeps { None } else { self.certificate.missing(scaled(raw)) },
            target: asked.rule.target,
        };
        let own_defers = |own| !self.certificate.keeps(scaled(own));
        Judgement::new((!keeps).then(|| low_score(doubt, own_defers)), rank, doubt, asked.weight, bar)
    }

    /// The chance depends on what was before, never on this answer: only then do the checks speak for all answers.
    fn draws_check(&mut self, judgement: &Judgement, rule: &Rule, asks_more: bool, chance: &mut Chance) -> bool {
        let more = if asks_more { MORE_CHECKS } else { 1.0 };
        let rate = match (rule.mode, judgement.bar) {
            (ThresholdMode::Target, _) if self.certificate.certified().is_none() => 1.0,
            (ThresholdMode::Target, _) => {
                let few = if self.certificate.evidence().checks() < FEW_CHECKS { MORE_CHECKS } else { 1.0 };
                checks_in_the_long_run(rule) * few.max(more)
            }
            (_, Bar::Budget { room, .. }) => {
                let most = if room.reached.is_some() { 0.0 } else { CHECKS_OF_BUDGET * room.share };
                (rule.spot_checks.value() * more).min(most)
            }
            _ => checks_in_the_long_run(rule) * more,
        };
        let spacing = self.checks.spacing();
        // The draw is made in any case, so that the same seed goes on alike.
        let drawn = chance.share() < f64::from(rate);
        let spaced = self.checks.since as f32 >= spacing;
        if drawn && spaced && rule.scale.value() > 0.0 {
            (self.checks.since, self.checks.drawn) = (0, self.checks.drawn + 1);
            return true;
        }
        false
    }

    /// An output that cannot be read is deferred by no threshold, and costs as much.
    pub fn unusable(&mut self, now: Moment) {
        self.account.case(now);
    }

    /// A deferred answer became a case, and is so large.
    pub fn opened(&mut self, key: CaseKey, (doubt, check): (&Doubt, bool), bytes: u64, now: Moment) -> Option<News> {
        self.account.bytes(now, bytes);
        // Made too long ago to be waited for.
        let oldest = (self.open.len() >= OPEN_MAX).then(|| self.open[0].key);
        let news = oldest.and_then(|oldest| {
            // It may still be.
            self.sent(oldest);
            self.ended_unanswered(oldest)
        });
        self.open.push(Open {
            key,
            bin: u8::try_from(step(&self.seen(doubt))).unwrap_or(u8::MAX),
            check,
            sent: false,
            bytes: u32::try_from(bytes).unwrap_or(u32::MAX),
            since_ms: now.0,
        });
        news
    }

    /// A case that an earlier run has stored. Counted if that run did not come to keep what it knew of it: a crash spends
    /// no budget twice and loses no spot check.
    pub fn recalled(&mut self, key: CaseKey, doubt: (&Doubt, bool), bytes: u64, stored_at: Moment) {
        if stored_at.0 > self.judged_ms && !self.is_open(key) {
            self.account.case(stored_at);
            self.opened(key, doubt, bytes, stored_at);
        }
    }

    #[must_use]
    pub fn is_open(&self, key: CaseKey) -> bool {
        self.open.iter().any(|open| open.key == key)
    }

    /// Cases that were made before this and have not ended as far as is known here.
    pub fn open_since_before(&self, moment: Moment) -> impl Iterator<Item = CaseKey> + '_ {
        self.open.iter().filter(move |open| open.since_ms < moment.0).map(|open| open.key)
    }

    /// A case is on its way, or has been: what it cost is not given back.
    pub fn sent(&mut self, key: CaseKey) {
        if let Some(open) = self.open.iter_mut().find(|open| open.key == key) {
            open.sent = true;
        }
    }

    /// A case has ended without a verdict: refused, evicted, given up, lost. What it cost is given back unless it was
    /// sent, and a spot check counts as one that was contradicted.
    pub fn ended_unanswered(&mut self, key: CaseKey) -> Option<News> {
        let open = self.close(key)?;
        if !open.sent {
            self.account.given_back(Moment(open.since_ms), u64::from(open.bytes));
        }
        if !open.check {
            return None;
        }
        self.checks.lost += 1;
        self.checked(usize::from(open.bin), 1.0)
    }

    fn close(&mut self, key: CaseKey) -> Option<Open> {
        let at = self.open.iter().position(|open| open.key == key)?;
        Some(self.open.remove(at))
    }

    /// What the cloud, or a person, says of a case. `check` is whether it was a spot check; `local` and `doubt` are what
    /// the device had said.
    pub fn learn(&mut self, verdict: &Verdict, (local, doubt): (&Output, &Doubt), check: bool) -> Option<News> {
        self.close(verdict.id.key);
        let person = verdict.authority == Authority::Person;
        let other = !person && self.cloud.as_ref().is_some_and(|known| *known != verdict.model);
        if other {
            self.certificate = self.certificate.anew();
            (self.calibration, self.boxes) = (Calibration::default(), Calibration::default());
            // The next answer begins another, if it is wanted.
            self.forget_learned();
        }
        if !person && self.cloud.as_ref() != Some(&verdict.model) {
            self.cloud = Some(verdict.model.clone());
        }
        let step = step(&self.seen(doubt));
        let (loss, weight) = (1.0 - agree(local, &verdict.said), if person { PERSON_COUNTS } else { 1.0 });
        self.calibration.learn(step, loss, weight);
        if let (Output::Boxes(local), Output::Boxes(cloud)) = (local, &verdict.said) {
            for (found, pair) in local.iter().zip(pairs(local, cloud)) {
                self.boxes.learn(bin(1.0 - found.score), if pair.is_some() { 0.0 } else { 1.0 }, weight);
            }
        }
        self.fit = self.calibration.fit();
        // A later word on the same sample is no second sample.
        let news = if check && verdict.revision == 1 {
            self.checks.answered += 1;
            self.checks.contradicted += f64::from(loss);
            self.checked(step, loss)
        } else {
            None
        };
        let mut head = self.head.take();
        let is_other =
            head.as_mut().is_some_and(|head| head.learn(doubt, (loss, weight), check && verdict.revision == 1));
        match is_other {
            true => self.rank_anew(head),
            false => self.head = head,
        }
        match news {
            _ if other => Some(News::OtherCloud),
            _ if is_other => Some(News::OtherDoubt),
            news => news,
        }
    }

    fn checked(&mut self, step: usize, loss: f32) -> Option<News> {
        let before = self.certificate.certified();
        if self.certificate.checked(step, loss) {
            return Some(News::Revoked);
        }
        (self.certificate.certified() > before).then_some(News::Certified)
    }

    /// What all devices with this model have seen, if it is about this version and the same cloud.
    pub fn heard(&mut self, fleet: &SpotChecks) -> Option<News> {
        // A doubt that was learned here is no other device's.
        let is_ours = fleet.model == self.model && self.cloud.as_ref() == Some(&fleet.cloud) && !self.is_learned();
        let evidence = Evidence::heard(fleet).filter(|_| is_ours)?;
        let before = self.certificate.certified();
        self.certificate.heard(evidence);
        (self.certificate.certified() > before).then_some(News::Certified)
    }

    /// How probable it is that the cloud would say the same, by what it said before. `None` before it said enough.
    pub(super) fn agreement(&self, doubt: &Doubt) -> Option<f32> {
        Some(self.fit.as_ref()?.right(bin(counted(doubt)?.1)))
    }

    /// Whether a learned doubt counts.
    #[must_use]
    pub fn is_learned(&self) -> bool {
        self.head.as_ref().is_some_and(|head| head.is_used())
    }

    /// What the device tells about it.
    #[must_use]
    pub fn figures(&self, mode: ThresholdMode) -> JudgeFigures {
        let (cases_per_day, bytes_per_day) = self.account.of_the_last_day();
        let half = bin(self.recent.bins().ranked(0.5));
        let error = |calibration: &Calibration| (calibration.labels() > 0.0).then(|| calibration.error(None));
        JudgeFigures {
            mode,
            score_min: match mode {
                ThresholdMode::Fixed => None,
                ThresholdMode::Budget => self.account.bar().map(|bar| 1.0 - self.recent.bins().ranked(bar)),
                ThresholdMode::Target => self.certificate.certified().map(|certified| 1.0 - upper(certified)),
            },
            cases_per_day,
            bytes_per_day,
            checks: self.checks.answered,
            checks_lost: self.checks.lost,
            contradicted: self.checks.contradicted + self.checks.lost as f64,
            checks_missing: self.certificate.missing_to_half(half),
            spot_checks: self
                .cloud
                .clone()
                .filter(|_| mode == ThresholdMode::Target && !self.is_learned())
                .map(|cloud| self.certificate.own().told(self.model.clone(), cloud, 1)),
            fleet_checks: self.certificate.known_of_fleet().filter(|_| mode == ThresholdMode::Target).map(whole),
            shift: self.alarm().map(|change| change.name().to_owned()),
            shift_suspicion: self.shift.suspicion(),
            labels: self.calibration.labels(),
            calibration_error: error(&self.calibration),
            box_calibration_error: error(&self.boxes),
            auroc: self.calibration.ranking(),
            learned: self.head.as_ref().map(|head| head.figures()),
            doubt: self.recent.bins().in_ranges(),
        }
    }

    #[must_use]
    pub fn model(&self) -> &ModelRef {
        &self.model
    }

    /// The change in the input that is being seen.
    #[must_use]
    pub fn alarm(&self) -> Option<Change> {
        self.shift.raised()
    }
}

/// Which share of the answers that stay is checked, once enough is known and while nothing changes. Those under a budget
/// are in it.
pub(super) fn checks_in_the_long_run(rule: &Rule) -> f32 {
    match rule.mode {
        ThresholdMode::Fixed => rule.spot_checks.value(),
        ThresholdMode::Budget => 0.0,
        ThresholdMode::Target => rule.spot_checks.value().max(CHECKS_MIN),
    }
}

fn whole(count: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, which saturates")]
    let whole = count as u64;
    whole
}

/// Where an answer stands; one that nothing is known of is all doubt.
fn step(doubt: &Doubt) -> usize {
    bin(counted(doubt).map_or(1.0, |(_, doubt)| doubt))
}

/// Why an answer is deferred whose doubt is too much: if that of its score would not be, because of what counts beside it.
fn low_score(doubt: &Doubt, own_defers: impl FnOnce(f32) -> bool) -> Reason {
    if doubt.get(Measure::Learned).is_some() {
        return Reason::Learned;
    }
    let flickers = doubt.get(Measure::Flicker).is_some_and(|flicker| flicker > 0.0);
    if flickers && own(doubt).is_some_and(|(_, own)| !own_defers(own)) { Reason::Flicker } else { Reason::LowScore }
}

/// A class of weight w has w times the odds of being asked about.
fn weighed(doubt: f32, weight: Weight) -> f32 {
    if weight == Weight::ONE { doubt } else { share(log_odds(doubt) + libm::logf(weight.value())) }
}

#[cfg(test)]
mod tests;
