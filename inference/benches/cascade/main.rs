//! How well the judge works, replayed from traces: what a small model said of each sample, how sure it was, and what a
//! larger one said.
//!
//! `--traces DIR` replays a folder of such files (see `trace.rs`) instead of `models/traces` and the demo's bundles;
//! `--plots DIR` draws a curve for each. Everything that decides is `hedge_core::judge`, as the device runs it. Run it by
//! `cargo xtask bench cascade`; the last line is one JSON object.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

mod cost;
mod plot;
mod rank;
mod stream;
mod trace;

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use self::trace::Trace;

type Fallible<T> = Result<T, Box<dyn std::error::Error>>;

fn main() -> Fallible<()> {
    let arguments: Vec<String> = std::env::args().collect();
    let given = |name: &str| {
        arguments.iter().position(|word| word == name).and_then(|at| arguments.get(at + 1)).map(PathBuf::from)
    };
    let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
    let mut traces = trace::read(&given("--traces").unwrap_or_else(|| models.join("traces")))?;
    if given("--traces").is_none() {
        traces.push(trace::of_bundles(&models)?);
    }
    let plots = given("--plots");
    let (mut report, mut false_alarms) = (Map::new(), 0);
    for trace in &traces {
        let (measured, alarms) = measure(trace);
        false_alarms += alarms;
        report.insert(trace.name.clone(), measured);
        if let Some(dir) = &plots {
            std::fs::create_dir_all(dir)?;
            plot::draw(trace, &dir.join(format!("cascade-{}.svg", trace.name)))?;
        }
    }
    let cost = cost::measure()?;
    println!(
        "a decision: {:.2} µs at 1,000 classes, {:.2} µs for 100 boxes, of it the judge alone {:.2} µs and {} allocations",
        cost.classes_us, cost.boxes_us, cost.judge_us, cost.allocations
    );
    let report = json!({
        "traces": report,
        "false_alarms": false_alarms,
        "decision_us_1000_classes": rounded(cost.classes_us),
        "decision_us_100_boxes": rounded(cost.boxes_us),
        "judge_us": rounded(cost.judge_us),
        "judge_allocations": cost.allocations,
    });
    println!("{report}");
    Ok(())
}

fn measure(trace: &Trace) -> (Value, u32) {
    let rows = &trace.base;
    println!("\n{}: {} samples, {:.1} % agree with the cloud", trace.name, rows.len(), trace::agreement(rows) * 100.0);
    rank::print(rows, &trace.shifts);
    let ranking = rank::of(rows);
    let (budget, fixed) = stream::budget(trace);
    let certificate = stream::certificate(rows);
    let selective = stream::selective(rows);
    let (late, now) = stream::revocation(trace);
    let alarm = stream::alarm(trace);
    let learned = stream::learned(rows);
    let (ece_raw, ece) = stream::calibration_error(rows);
    println!(
        "  budget 20 %: worst 500 answers off by {budget:.1} points (a fixed threshold: {fixed:.1}); calibration error \
         {ece_raw:.3}, fitted {ece:.3}"
    );
    println!(
        "  risk of at most {:.0} %, 90 % sure: violated at any time in {:.1} % of {} streams; {:.1} points above the ideal \
         {:.1} % at 500 spot checks, {:.1} at 1,000",
        certificate.risk * 100.0,
        certificate.ever_violated * 100.0,
        stream::DRAWS,
        certificate.cost_500,
        certificate.ideal * 100.0,
        certificate.cost_1000,
    );
    println!(
        "  the same of kept answers alone: violated in {:.1} %; {:.1} % asked about at 1,000 spot checks, {:.1} % at 3,000, \
         {:.1} % if all were known",
        selective.ever_violated * 100.0,
        selective.deferral_1000 * 100.0,
        selective.deferral_3000 * 100.0,
        selective.ideal * 100.0,
    );
    println!(
        "  a learned doubt came to count in {} of {} streams of at most {} checks: AUROC {:.3} on other samples, by the score \
         {:.3}",
        learned.used,
        stream::LEARNED_DRAWS,
        stream::LEARNED_CHECKS,
        learned.counts,
        learned.plain,
    );
    for (shift, alarm) in trace.shifts.iter().zip(&alarm.delays) {
        println!("  {}: alarm after {:.0} answers, 95 % within {:.0}", shift.name, alarm.0, alarm.1);
    }
    for (shift, (late, now)) in trace.shifts.iter().zip(late.iter().zip(&now)) {
        println!(
            "  {}: revoked after {:.0} spot checks of a fresh certificate, {:.0} of one that had stood for 2,000",
            shift.name, now.0, late.0
        );
    }
    println!(
        "  false alarms: {} in {} streams of {}; false revocations: {:.1} % in 6,000 checks",
        alarm.false_ones,
        stream::ALARM_DRAWS,
        stream::ALARM_ANSWERS,
        certificate.revoked_falsely * 100.0
    );
    let worst = |values: &mut dyn Iterator<Item = f64>| values.reduce(f64::max).map(rounded);
    let measured = json!({
        "nauc_agree": rounded(ranking.area_agree),
        "nauc_accuracy": rounded(ranking.area_right),
        "auroc": rounded(ranking.auroc),
        "auroc_learned": rounded(learned.counts),
        "learned_used": f64::from(learned.used) / f64::from(stream::LEARNED_DRAWS),
        "gap_recovered_10": rounded(ranking.gap_10),
        "gap_recovered_20": rounded(ranking.gap_20),
        "budget_worst_window_pts": rounded(budget),
        "fixed_worst_window_pts": rounded(fixed),
        "risk": rounded(certificate.risk),
        "ever_violated": rounded(certificate.ever_violated),
        "cost_pts_500": rounded(certificate.cost_500),
        "cost_pts_1000": rounded(certificate.cost_1000),
        "revoked_falsely": rounded(certificate.revoked_falsely),
        "selective": {
            "ever_violated": rounded(selective.ever_violated),
            "deferral_1000": rounded(selective.deferral_1000),
            "deferral_3000": rounded(selective.deferral_3000),
            "deferral_ideal": rounded(selective.ideal),
        },
        "alarm_median": worst(&mut alarm.delays.iter().map(|delay| delay.0)),
        "alarm_p95": worst(&mut alarm.delays.iter().map(|delay| delay.1)),
        "false_alarms": alarm.false_ones,
        "revoke_median": worst(&mut now.iter().map(|delay| delay.0)),
        "revoke_median_late": worst(&mut late.iter().map(|delay| delay.0)),
        "ece_raw": rounded(ece_raw),
        "ece": rounded(ece),
    });
    (measured, alarm.false_ones)
}

fn rounded(value: f64) -> f64 {
    (value * 1e4).round() / 1e4
}
