//! Whom to ask first: how well the doubt ranks, beside rules in use.

use hedge_core::judge::Limits;
use hedge_core::judge::bins::bin;
use hedge_core::judge::calibration::Calibration;

use crate::trace::{Row, Shifted, agreement, asks};

pub(crate) struct Ranking {
    /// 0 is random, 1 is an oracle: the area between them.
    pub(crate) area_agree: f64,
    pub(crate) area_right: f64,
    /// How probable it is that a contradicted answer is more doubtful than another.
    pub(crate) auroc: f64,
    /// Of what the cloud is better than the device, the part that is won by asking about a tenth, a fifth of all.
    pub(crate) gap_10: f64,
    pub(crate) gap_20: f64,
}

pub(crate) fn of(rows: &[Row]) -> Ranking {
    let order = by(rows, |row| f64::from(row.unsure));
    let mut calibration = Calibration::default();
    rows.iter().for_each(|row| calibration.learn(bin(row.unsure), row.loss, 1.0));
    let (local, cloud) = (mean(rows, |row| row.local), mean(rows, |row| row.cloud));
    let gap = |share| (right(&order, share) - local) / (cloud - local);
    let gain = |row: &Row| f64::from(row.cloud - row.local);
    Ranking {
        area_agree: normalised(&order, rows, |row| f64::from(row.loss)),
        area_right: normalised(&order, rows, gain),
        auroc: calibration.ranking().map_or(0.5, f64::from),
        gap_10: gap(0.1),
        gap_20: gap(0.2),
    }
}

/// The most of `value` first.
pub(crate) fn by(rows: &[Row], value: impl Fn(&Row) -> f64) -> Vec<Row> {
    let mut order = rows.to_vec();
    order.sort_by(|a, b| value(b).total_cmp(&value(a)));
    order
}

fn mean(rows: &[Row], of: impl Fn(&Row) -> f32) -> f64 {
    rows.iter().map(|row| f64::from(of(row))).sum::<f64>() / rows.len() as f64
}

/// How many of all are right if this share of them, the first, is asked about.
pub(crate) fn right(order: &[Row], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the rows")]
    let asked = (order.len() as f64 * share).round() as usize;
    mean(&order[..asked], |row| row.cloud) * asked as f64 / order.len() as f64
        + order[asked..].iter().map(|row| f64::from(row.local)).sum::<f64>() / order.len() as f64
}

/// How many of all say what the cloud says.
pub(crate) fn agrees(order: &[Row], share: f64) -> f64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share of the rows")]
    let asked = (order.len() as f64 * share).round() as usize;
    1.0 - order[asked..].iter().map(|row| f64::from(row.loss)).sum::<f64>() / order.len() as f64
}

/// The area under what is won, between random (0) and an oracle (1).
fn normalised(order: &[Row], rows: &[Row], gain: impl Fn(&Row) -> f64) -> f64 {
    let area = |order: &[Row]| {
        let mut won = 0.0;
        order
            .iter()
            .map(|row| {
                won += gain(row);
                won
            })
            .sum::<f64>()
    };
    let (ours, oracle) = (area(order), area(&by(rows, &gain)));
    let random = rows.iter().map(&gain).sum::<f64>() * (rows.len() as f64 + 1.0) / 2.0;
    if oracle > random { (ours - random) / (oracle - random) } else { 0.0 }
}

/// Agreement by how many are asked about, for us, an oracle and chance; and what fixed rules make of the same rows.
pub(crate) fn print(rows: &[Row], shifts: &[Shifted]) {
    let (ours, oracle) = (by(rows, |row| f64::from(row.unsure)), by(rows, |row| f64::from(row.loss)));
    let base = agreement(rows);
    println!("  asked       agreement: ours  oracle  random   right: ours");
    for percent in [5, 10, 20, 30, 50] {
        let share = f64::from(percent) / 100.0;
        println!(
            "  {percent:>3} %                {:.3}   {:.3}   {:.3}          {:.3}",
            agrees(&ours, share),
            agrees(&oracle, share),
            base + (1.0 - base) * share,
            right(&ours, share),
        );
    }
    let boxes = rows.first().is_some_and(|row| row.doubt.get(hedge_proto::Measure::MeanShown).is_some());
    let rules = if boxes {
        vec![("mean box score 0.5", Limits::new(0.5, 0.0, 1.0))]
    } else {
        vec![("score 0.9", Limits::new(0.9, 0.0, 1.0)), ("normalised entropy 0.5", Limits::new(0.0, 0.0, 0.5))]
    };
    for (name, limits) in rules.into_iter().filter_map(|(name, limits)| Some((name, limits.ok()?))) {
        let asked = |rows: &[Row]| rows.iter().filter(|row| asks(row, &limits)).count() as f64 / rows.len() as f64;
        let kept = rows.iter().filter(|row| !asks(row, &limits)).map(|row| f64::from(row.loss)).sum::<f64>();
        print!(
            "  fixed rule, {name}: {:.1} % asked, agreement {:.3}",
            asked(rows) * 100.0,
            1.0 - kept / rows.len() as f64
        );
        for shift in shifts {
            print!("; {}: {:.1} % asked", shift.name, asked(&shift.rows) * 100.0);
        }
        println!();
    }
}
