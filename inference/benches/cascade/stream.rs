//! What holds over time: budgets, promises, alarms. Rows are drawn at random with a seed, so a run repeats itself.

use hedge_core::chance::Chance;
use hedge_core::clock::Moment;
use hedge_core::judge::bins::{BINS, bin};
use hedge_core::judge::calibration::Calibration;
use hedge_core::judge::evidence::Certificate;
use hedge_core::judge::shift::Shift;
use hedge_core::judge::{Asked, Experience, Limits, Rule};
use hedge_proto::{
    Allowance, Authority, CaseId, CaseKey, DeviceId, Epoch, Measure, ModelRef, Output, RiskOf, Share, Target,
    ThresholdMode, Verdict,
};

use crate::rank::by;
use crate::trace::{Row, Trace, agreement};

/// How often a stream is drawn.
pub(crate) const DRAWS: u32 = 400;
pub(crate) const ALARM_DRAWS: u32 = 200;
pub(crate) const ALARM_ANSWERS: usize = 20_000;

/// Labels of one stream, at most.
const LABELS_MAX: usize = 10_000;
const LABELS_MIN: usize = 2000;

const BUDGET: f32 = 0.2;
const WINDOW: usize = 500;
const CONFIDENCE: f32 = 0.9;
const FLEET_CHECKS: u32 = 100_000;

fn share(value: f32) -> Share {
    Share::new(value).unwrap_or(Share::ZERO)
}

fn draw<'a>(rows: &'a [Row], chance: &mut Chance) -> &'a Row {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the rows")]
    let at = (chance.share() * rows.len() as f64) as usize;
    &rows[at.min(rows.len() - 1)]
}

fn median(values: &mut [f64], part: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the values")]
    values.get((values.len() as f64 * part) as usize).copied().unwrap_or(f64::INFINITY)
}

/// By how many points of a budget of 20 % the worst 500 answers are off, on average over streams that go from the usual to
/// a shift: steered, and by a threshold that was right before.
pub(crate) fn budget(trace: &Trace) -> (f64, f64) {
    let unshifted: &[Row] = &trace.base;
    let shifts: Vec<&[Row]> = trace.shifts.iter().map(|shift| shift.rows.as_slice()).collect();
    let shifts = if shifts.is_empty() { vec![unshifted] } else { shifts };
    let order = by(unshifted, |row| f64::from(row.unsure));
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the rows")]
    let limits =
        Limits::new(1.0 - order[(order.len() as f32 * BUDGET) as usize].unsure, 0.0, 1.0).unwrap_or(Limits::NONE);
    let allowance = Allowance { share: Some(share(BUDGET)), ..Allowance::default() };
    let steered = Rule { mode: ThresholdMode::Budget, allowance, ..Rule::FIXED };
    let worst = |rule: &Rule, shifted: &[Row], seed: u64| {
        let (mut experience, mut chance) = (experience(), Chance::from_seed(seed));
        let mut asked = Vec::new();
        for at in 0_u64..6500 {
            let row = draw(if at < 3500 { unshifted } else { shifted }, &mut chance);
            let asked_of = Asked { rule, ..Asked::of(limits) };
            let judgement = experience.judge(&row.doubt, asked_of, Moment(at * 1000), &mut chance);
            asked.push(f64::from(u8::from(judgement.reason.is_some())));
        }
        // The first answers are what a threshold is found from.
        let windows = asked[WINDOW..].windows(WINDOW).map(|window| window.iter().sum::<f64>() / WINDOW as f64);
        windows.map(|share| (share - f64::from(BUDGET)).abs() * 100.0).fold(0.0, f64::max)
    };
    let mean = |rule: &Rule| {
        let of = |shifted: &&[Row]| (0..20).map(|seed| worst(rule, shifted, seed)).sum::<f64>() / 20.0;
        shifts.iter().map(of).fold(0.0, f64::max)
    };
    (mean(&steered), mean(&Rule::FIXED))
}

fn experience() -> Experience {
    Experience::of(ModelRef { name: "bench".into(), version: "1".into() })
}

pub(crate) struct Learned {
    /// In how many of so many streams a learned doubt came to count within [`LEARNED_CHECKS`] checks.
    pub(crate) used: u32,
    /// The areas under the ROC curves of the score's doubt and of what counts, on rows that were not learned from.
    pub(crate) plain: f64,
    pub(crate) counts: f64,
}

pub(crate) const LEARNED_DRAWS: u32 = 40;
pub(crate) const LEARNED_CHECKS: usize = 3000;

/// Half of the rows teach, as spot checks in random order, and the other half is ranked.
pub(crate) fn learned(rows: &[Row]) -> Learned {
    let mut sum = Learned { used: 0, plain: 0.0, counts: 0.0 };
    for seed in 0..LEARNED_DRAWS {
        let (mut experience, mut chance) = (experience(), Chance::from_seed(u64::from(seed)));
        let mut drawn: Vec<(f64, &Row)> = rows.iter().map(|row| (chance.share(), row)).collect();
        drawn.sort_by(|a, b| a.0.total_cmp(&b.0));
        let (taught, ranked) = drawn.split_at(rows.len() / 2);
        // So strict that nothing is ever certified, and everything checked.
        let target = Some(Target { risk: share(1e-4), confidence: share(CONFIDENCE), of: RiskOf::All, fleet: false });
        let rule = Rule { mode: ThresholdMode::Target, target, learned: true, ..Rule::FIXED };
        let asked = Asked { rule: &rule, ..Asked::of(Limits::NONE) };
        for (at, (_, row)) in (0_u64..).zip(taught.iter().take(LEARNED_CHECKS)) {
            let doubt = experience.judge(&row.doubt, asked, Moment(at * 1000), &mut chance).doubt;
            // Of boxes an answer may be wrong in part: as often as that.
            let said = if chance.share() < f64::from(row.loss) { "another" } else { "the same" };
            let verdict = Verdict {
                v: 1,
                id: CaseId { device: device(), key: CaseKey { epoch: Epoch(1), sequence: at } },
                revision: 1,
                authority: Authority::Model,
                task: "bench".into(),
                said: Output::label(said),
                model: ModelRef { name: "cloud".into(), version: "1".into() },
            };
            experience.learn(&verdict, (&Output::label("the same"), &doubt), true);
        }
        let [mut plain, mut counts] = [Calibration::default(), Calibration::default()];
        for (_, row) in ranked {
            let doubt = experience.judge(&row.doubt, asked, Moment(1 << 40), &mut chance).doubt;
            plain.learn(bin(row.unsure), row.loss, 1.0);
            counts.learn(bin(doubt.get(Measure::Learned).unwrap_or(row.unsure)), row.loss, 1.0);
        }
        sum.used += u32::from(experience.is_learned());
        let area =
            |calibration: &Calibration| f64::from(calibration.ranking().unwrap_or(0.5)) / f64::from(LEARNED_DRAWS);
        (sum.plain, sum.counts) = (sum.plain + area(&plain), sum.counts + area(&counts));
    }
    sum
}

fn device() -> DeviceId {
    DeviceId::new("bench").expect("a name")
}

pub(crate) struct Certified {
    pub(crate) risk: f64,
    pub(crate) ideal: f64,
    pub(crate) ever_violated: f64,
    pub(crate) cost_500: f64,
    pub(crate) cost_1000: f64,
    pub(crate) revoked_falsely: f64,
}

/// The greatest of some round risks that is at most a third of what is contradicted if nothing is asked.
fn target(rows: &[Row]) -> Target {
    let third = (1.0 - agreement(rows)) / 3.0;
    let risk = [0.2, 0.1, 0.05, 0.02, 0.01].into_iter().find(|risk| f64::from(*risk) <= third).unwrap_or(0.005);
    Target { risk: share(risk), confidence: share(CONFIDENCE), of: RiskOf::All, fleet: false }
}

/// What is kept, and kept and contradicted, of all rows up to each step of doubt.
fn of_steps(rows: &[Row]) -> Vec<(f64, f64)> {
    let mut steps = vec![(0.0, 0.0); BINS];
    for row in rows {
        let step = &mut steps[bin(row.unsure)];
        (step.0, step.1) = (step.0 + 1.0 / rows.len() as f64, step.1 + f64::from(row.loss) / rows.len() as f64);
    }
    for at in 1..BINS {
        steps[at] = (steps[at].0 + steps[at - 1].0, steps[at].1 + steps[at - 1].1);
    }
    steps
}

/// The share that must be asked about if everything were known.
fn ideal(rows: &[Row], risk: f64) -> f64 {
    let (mut lost, mut kept) = (0.0, 0_usize);
    for row in by(rows, |row| -f64::from(row.unsure)) {
        lost += f64::from(row.loss) / rows.len() as f64;
        if lost > risk {
            break;
        }
        kept += 1;
    }
    1.0 - kept as f64 / rows.len() as f64
}

pub(crate) fn certificate(rows: &[Row]) -> Certified {
    let target = target(rows);
    let (risk, steps) = (f64::from(target.risk.value()), of_steps(rows));
    let ideal = ideal(rows, risk);
    let labels = rows.len().clamp(LABELS_MIN, LABELS_MAX);
    let (mut violated, mut costs, mut revoked) = (0, [0.0, 0.0], 0);
    for seed in 0..DRAWS {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(u64::from(seed)));
        certificate.aim(Some(target));
        let (mut ever, mut lost) = (false, false);
        for label in 1..=labels {
            let row = draw(rows, &mut chance);
            lost |= certificate.checked(bin(row.unsure), row.loss) && label <= 6000;
            let at = certificate.certified();
            ever |= at.is_some_and(|at| steps[at].1 > risk);
            let asked = 1.0 - at.map_or(0.0, |at| steps[at].0);
            match label {
                500 => costs[0] += (asked - ideal) * 100.0 / f64::from(DRAWS),
                1000 => costs[1] += (asked - ideal) * 100.0 / f64::from(DRAWS),
                _ => {}
            }
        }
        (violated, revoked) = (violated + u32::from(ever), revoked + u32::from(lost));
    }
    let part = |count: u32| f64::from(count) / f64::from(DRAWS);
    let [cost_500, cost_1000] = costs;
    Certified { risk, ideal, ever_violated: part(violated), cost_500, cost_1000, revoked_falsely: part(revoked) }
}

pub(crate) struct Selective {
    pub(crate) ideal: f64,
    pub(crate) ever_violated: f64,
    /// After so many checks.
    pub(crate) deferral_1000: f64,
    pub(crate) deferral_3000: f64,
}

/// The same risk, of the kept answers alone.
pub(crate) fn selective(rows: &[Row]) -> Selective {
    let target = Target { of: RiskOf::Kept, ..target(rows) };
    let (risk, steps) = (f64::from(target.risk.value()), of_steps(rows));
    let allowed = |(kept, lost): &(f64, f64)| *lost <= risk * kept;
    let ideal = 1.0 - steps.iter().filter(|step| allowed(step)).map(|(kept, _)| *kept).fold(0.0, f64::max);
    let (mut violated, mut deferral) = (0, [0.0, 0.0]);
    for seed in 0..DRAWS {
        let (mut certificate, mut chance) = (Certificate::default(), Chance::from_seed(u64::from(seed)));
        certificate.aim(Some(target));
        let mut ever = false;
        for label in 1..=3000 {
            let row = draw(rows, &mut chance);
            certificate.checked(bin(row.unsure), row.loss);
            let at = certificate.certified();
            ever |= at.is_some_and(|at| !allowed(&steps[at]));
            let asked = 1.0 - at.map_or(0.0, |at| steps[at].0);
            match label {
                1000 => deferral[0] += asked / f64::from(DRAWS),
                3000 => deferral[1] += asked / f64::from(DRAWS),
                _ => {}
            }
        }
        violated += u32::from(ever);
    }
    let [deferral_1000, deferral_3000] = deferral;
    Selective { ideal, ever_violated: f64::from(violated) / f64::from(DRAWS), deferral_1000, deferral_3000 }
}

/// Median and 95th percentile, in answers or checks.
pub(crate) type Delay = (f64, f64);

/// For each shift: how many checks a certificate is believed. First of one that has stood for 2,000 checks, then of one
/// that was just given, as loose as it may be.
pub(crate) fn revocation(trace: &Trace) -> (Vec<Delay>, Vec<Delay>) {
    let target = target(&trace.base);
    // As loose as it may be: the evidence of a fleet, on a device that has shown nothing itself yet.
    let (mut fleet, mut chance) = (Certificate::default(), Chance::from_seed(1));
    (0..FLEET_CHECKS).for_each(|_| {
        let row = draw(&trace.base, &mut chance);
        fleet.checked(bin(row.unsure), row.loss);
    });
    fleet.aim(Some(target));
    let until = |shifted: &[Row], stood: usize| {
        let mut delays: Vec<f64> = (0..DRAWS)
            .map(|seed| {
                let (mut certificate, mut chance) = (fleet.clone(), Chance::from_seed(u64::from(seed)));
                for _ in 0..stood {
                    let row = draw(&trace.base, &mut chance);
                    // One that is revoked by chance begins again.
                    certificate.checked(bin(row.unsure), row.loss);
                }
                let until = (1_u32..=20_000).find(|_| {
                    let row = draw(shifted, &mut chance);
                    certificate.checked(bin(row.unsure), row.loss)
                });
                until.map_or(f64::INFINITY, f64::from)
            })
            .collect();
        (median(&mut delays, 0.5), median(&mut delays, 0.95))
    };
    let of = |stood| trace.shifts.iter().map(|shift| until(&shift.rows, stood)).collect();
    (of(2000), of(0))
}

pub(crate) struct Alarms {
    /// For each shift.
    pub(crate) delays: Vec<Delay>,
    pub(crate) false_ones: u32,
}

pub(crate) fn alarm(trace: &Trace) -> Alarms {
    let unchanged = |answers: usize, seed: u32| {
        let (mut shift, mut chance) = (Shift::default(), Chance::from_seed(u64::from(seed)));
        let alarms = (0..answers).filter(|_| shift.saw(draw(&trace.base, &mut chance).unsure)).count();
        (shift, chance, alarms)
    };
    let delay = |shifted: &[Row], seed: u32| {
        let (mut shift, mut chance, _) = unchanged(3000, seed);
        let until = (1_u32..=20_000).find(|_| shift.saw(draw(shifted, &mut chance).unsure));
        until.map_or(f64::INFINITY, f64::from)
    };
    let delays = trace.shifts.iter().map(|shift| {
        let mut delays: Vec<f64> = (0..ALARM_DRAWS).map(|seed| delay(&shift.rows, seed)).collect();
        (median(&mut delays, 0.5), median(&mut delays, 0.95))
    });
    let false_ones = (0..ALARM_DRAWS).filter(|seed| unchanged(ALARM_ANSWERS, *seed).2 > 0).count();
    Alarms { delays: delays.collect(), false_ones: u32::try_from(false_ones).unwrap_or(u32::MAX) }
}

/// Expected calibration error of the scores as they are, and after a fit on the other half of the rows, against the truth.
pub(crate) fn calibration_error(rows: &[Row]) -> (f64, f64) {
    let mut halves = [Calibration::default(), Calibration::default()];
    for (at, row) in rows.iter().enumerate() {
        halves[at % 2].learn(bin(row.unsure), 1.0 - row.local, 1.0);
    }
    let fit = halves[0].fit();
    (f64::from(halves[1].error(None)), f64::from(halves[1].error(fit.as_ref())))
}
