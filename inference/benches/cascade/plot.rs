//! Agreement with the cloud by how many answers are asked about.

use std::path::Path;

use plotters::prelude::*;

use crate::Fallible;
use crate::rank::{agrees, by};
use crate::trace::{Trace, agreement};

const SIZE: (u32, u32) = (560, 360);

pub(crate) fn draw(trace: &Trace, file: &Path) -> Fallible<()> {
    let rows = &trace.base;
    let base = agreement(rows);
    let root = SVGBackend::new(file, SIZE).into_drawing_area();
    root.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&root)
        .caption(format!("{}: agreement with the cloud", trace.name), ("sans-serif", 16))
        .margin(12)
        .x_label_area_size(34)
        .y_label_area_size(44)
        .build_cartesian_2d(0.0..100.0, base.min(0.99)..1.0)?;
    chart.configure_mesh().x_desc("% of the answers sent to the cloud").draw()?;
    let (ours, oracle) = (by(rows, |row| f64::from(row.unsure)), by(rows, |row| f64::from(row.loss)));
    let shares = || (0..=100).map(|percent| f64::from(percent) / 100.0);
    let curve =
        |order: &[crate::trace::Row]| shares().map(|share| (share * 100.0, agrees(order, share))).collect::<Vec<_>>();
    let random = shares().map(|share| (share * 100.0, base + (1.0 - base) * share)).collect::<Vec<_>>();
    for (name, points, colour) in
        [("oracle", curve(&oracle), &GREEN), ("Hedge", curve(&ours), &BLUE), ("random", random, &RED)]
    {
        let series = chart.draw_series(LineSeries::new(points, colour))?;
        series.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 16, y)], colour));
    }
    chart.configure_series_labels().position(SeriesLabelPosition::LowerRight).border_style(BLACK).draw()?;
    root.present()?;
    Ok(())
}
