//! What only a detector's numbers say.

use anyhow::{Context, bail, ensure};
use hedge_inference::Tensors;

use super::{Detector, Nothing, Table};

/// Corners, score and class.
const CHOSEN_COLUMNS: usize = 6;

/// Coordinates that are shares of the picture reach a little beyond it at most.
const SHARE_MAX: f32 = 2.0;

/// A row that scores less is padding, or a box nobody will see.
const SEEN: f32 = 0.05;

impl Detector {
    /// What only the numbers say: `outputs` for made-up pictures, and for photos if there are any.
    pub(in super::super) fn tried(&mut self, outputs: &[Tensors], pixels: (u32, u32)) -> anyhow::Result<()> {
        let all = |table: &Table, at: usize| outputs.iter().flat_map(|one| table.column(one, at)).collect::<Vec<f32>>();
        // Six columns of two labels may be a score for each, or score and class: a class is a whole number.
        let last = Table { at: CHOSEN_COLUMNS - 1, ..self.boxes.clone() };
        let two_labels = self.boxes.name == self.scores.name && self.boxes.columns == CHOSEN_COLUMNS;
        if two_labels && self.classes.is_none() && all(&last, 0).iter().all(|number| number.fract() == 0.0) {
            (self.classes, self.iou_max) = (Some((last, 0)), None);
            self.form.get_or_insert_with(|| "corners".to_owned());
        }
        self.order_chosen(outputs)?;
        self.number_classes(outputs)?;
        let [a, b, c, d] = [0, 1, 2, 3].map(|side| all(&self.boxes, side * self.bins));
        let nothing = a.is_empty();
        if self.form.is_none() {
            ensure!(
                !nothing,
                "it finds nothing in made-up pictures, so nobody can tell what its boxes are: give a photo with --picture, or \
                 say --box-form"
            );
            let share =
                |test: &dyn Fn(usize) -> bool| (0..a.len()).filter(|at| test(*at)).count() as f32 / a.len() as f32;
            let corners = share(&|at| c[at] >= a[at] && d[at] >= b[at]) > 0.98;
            let sizes = share(&|at| c[at] >= 0.0 && d[at] >= 0.0) > 0.98;
            let cells = Self::strides_of((a.len() / outputs.len().max(1)) as u64, pixels);
            self.form = Some(match (self.yolo, corners, sizes, cells) {
                (true, _, true, _) => "centre_size".to_owned(),
                (true, _, false, Some(cells)) => {
                    self.strides = cells;
                    "grid".to_owned()
                }
                (false, true, _, _) => "corners".to_owned(),
                (false, false, true, _) => "centre_size".to_owned(),
                _ => bail!(
                    "the numbers of its boxes are no corners and no sizes: say --box-form, and --priors FILE.npy if it is an \
                     SSD that shifts prior boxes"
                ),
            });
        }
        if self.unit.is_none() && !self.counts_from_cells() && self.form.as_deref() != Some("deltas") {
            ensure!(
                !nothing,
                "it finds nothing in made-up pictures, so nobody can tell whether its boxes count pixels: give a photo with \
                 --picture, or say --box-unit"
            );
            let largest = [&a, &b, &c, &d]
                .into_iter()
                .flatten()
                .filter(|number| number.is_finite())
                .fold(0.0, |max: f32, number| max.max(number.abs()));
            self.unit = Some(if largest <= SHARE_MAX { "fraction" } else { "pixels" }.to_owned());
        }
        let classes = self.scores.columns.saturating_sub(self.scores.at).max(1);
        let columns = if self.classes.is_some() { 1 } else { classes };
        let probable = (0..columns).all(|at| all(&self.scores, at).iter().all(|score| (-0.01..=1.01).contains(score)));
        self.score_kind = Some(match (probable, self.background) {
            (true, _) => "probabilities",
            (false, Some(_)) => "softmax",
            (false, None) => "sigmoid",
        });
        if self.background.is_some() {
            // Nearly all of a picture is nothing.
            let sum = |at: usize| all(&self.scores, at).iter().sum::<f32>();
            let last = sum(self.scores.columns.saturating_sub(1)) > sum(0);
            self.background = Some(if last { Nothing::Last } else { Nothing::First });
        }
        Ok(())
    }

    /// A row of a box that the model has chosen is corners, score, class, or as Paddle writes it: class, score, corners.
    fn order_chosen(&mut self, outputs: &[Tensors]) -> anyhow::Result<()> {
        let Some((classes, _)) = &self.classes else { return Ok(()) };
        if self.boxes.columns != CHOSEN_COLUMNS || self.boxes.name != self.scores.name {
            let mut numbers = outputs.iter().flat_map(|one| classes.column(one, 0));
            ensure!(
                numbers.all(|number| number.fract() == 0.0),
                "`{}` has the shape of boxes with the number of a class, but gives other numbers; give --labels",
                classes.name
            );
            return Ok(());
        }
        let column = |at: usize| {
            let table = Table { at, ..self.boxes.clone() };
            outputs.iter().flat_map(|one| table.column(one, 0)).collect::<Vec<f32>>()
        };
        let is_class = |at: usize| column(at).iter().all(|number| number.fract() == 0.0);
        let is_score = |at: usize| column(at).iter().all(|number| (-0.01..=1.01).contains(number));
        if is_score(4) && is_class(5) {
            return Ok(());
        }
        ensure!(
            is_score(1) && is_class(0),
            "the six columns of `{}` are neither corners, score and class nor class, score and corners, by what it gives \
             for pictures",
            self.boxes.name
        );
        let at = |at: usize| Table { at, ..self.boxes.clone() };
        (self.classes, self.scores, self.boxes) = (Some((at(0), 0)), at(1), at(2));
        Ok(())
    }

    /// Whether classes count from 0 or 1, by those that were seen.
    fn number_classes(&mut self, outputs: &[Tensors]) -> anyhow::Result<()> {
        let Some((table, first)) = &mut self.classes else { return Ok(()) };
        let count = self.labels.len();
        if self.first_told || count == 0 {
            return Ok(());
        }
        let rows = outputs.iter().flat_map(|one| table.column(one, 0).into_iter().zip(self.scores.column(one, 0)));
        let seen: Vec<f32> = rows.filter(|(_, score)| *score > SEEN).map(|(class, _)| class).collect();
        let within = |first: usize| seen.iter().all(|class| (first as f32..(first + count) as f32).contains(class));
        let known = [*first, 0, 1].into_iter().find(|first| within(*first));
        let (least, most) =
            seen.iter().fold((f32::MAX, 0.0_f32), |(least, most), class| (class.min(least), class.max(most)));
        *first = known.with_context(|| {
            format!(
                "it gives classes from {least} to {most}, but there are {count} labels: the file needs a label for each, \
                 or say --first-class"
            )
        })?;
        Ok(())
    }
}
