//! A detector's outputs as rows of numbers, and a row's four numbers as corners.

use super::columns::{BoxColumns, Form, Unit};
use crate::features::Tensor;
use crate::task::{Tensors, Unusable};

/// One or several tensors as one table.
pub(super) struct Tables<'a> {
    parts: Vec<Table<'a>>,
}

pub(super) struct Table<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    /// Whether a column's numbers lie beside each other, not a row's.
    turned: bool,
}

impl<'a> Tables<'a> {
    /// `columns`: how many there are; 0 if that is not known.
    pub(super) fn of(outputs: &'a Tensors, names: &[String], columns: usize) -> Result<Self, Unusable> {
        let parts = names.iter().map(|name| Table::of(name, outputs.get(name)?, columns)).collect::<Result<_, _>>()?;
        Ok(Self { parts })
    }

    pub(super) fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    pub(super) fn part(&self, mut row: usize) -> Option<(&Table<'a>, usize)> {
        for part in &self.parts {
            if row < part.rows {
                return Some((part, row));
            }
            row -= part.rows;
        }
        None
    }

    pub(super) fn get(&self, row: usize, column: usize) -> f32 {
        self.part(row).map_or(f32::NAN, |(part, row)| part.get(row, column))
    }

    /// The numbers of a row.
    pub(super) fn read(&self, row: usize, into: &mut Vec<f32>) {
        into.clear();
        let Some((part, row)) = self.part(row) else { return };
        if part.turned {
            into.extend((0..part.columns).map(|column| part.get(row, column)));
        } else {
            into.extend_from_slice(&part.data[row * part.columns..(row + 1) * part.columns]);
        }
    }
}

impl<'a> Table<'a> {
    pub(super) fn of(name: &str, tensor: &'a Tensor, columns: usize) -> Result<Self, Unusable> {
        let data = tensor.data.as_slice();
        let table = |rows, columns, turned| Ok(Self { data, rows, columns, turned });
        if data.is_empty() {
            return table(0, columns, false);
        }
        let sides: Vec<usize> = tensor.shape.iter().copied().filter(|side| *side != 1).collect();
        // The last side is the columns unless only the first can be: [1, 84, 8400] of 80 classes.
        match sides.as_slice() {
            [] => table(1, 1, false),
            [only] if columns == 1 => table(*only, 1, false),
            [only] => table(1, *only, false),
            [.., last] if *last == columns || (columns == 0 && data.len() / last >= *last) => {
                table(data.len() / last, *last, false)
            }
            [first, ..] if *first == columns || columns == 0 => table(data.len() / first, *first, true),
            // A model with more columns than the labels need: a box has four and what follows.
            [.., last] if *last > columns && data.len() / last > *last => table(data.len() / last, *last, false),
            _ => Err(Unusable::Shape {
                name: name.to_owned(),
                shape: tensor.shape.clone(),
                wanted: format!("rows of {columns} numbers"),
            }),
        }
    }

    pub(super) fn get(&self, row: usize, column: usize) -> f32 {
        let at = if self.turned { column * self.rows + row } else { row * self.columns + column };
        if column < self.columns { self.data.get(at).copied().unwrap_or(f32::NAN) } else { f32::NAN }
    }
}

/// Turns a row's numbers into fractions of the model's input.
pub(super) struct Cells {
    /// Of each row, where it counts from: x, y and stride in pixels. Empty where rows count from nowhere.
    centres: Vec<[f32; 3]>,
    width: f32,
    height: f32,
}

impl Cells {
    pub(super) fn new(boxes: &BoxColumns, (width, height): (u32, u32), rows: usize) -> Result<Self, Unusable> {
        let offset = if boxes.form == Form::Grid { 0.0 } else { 0.5 };
        let mut centres = Vec::new();
        for stride in &boxes.strides {
            let across = width.div_ceil(u32::from(*stride));
            for y in 0..height.div_ceil(u32::from(*stride)) {
                let stride = f32::from(*stride);
                let at = |cell: u32| (cell as f32 + offset) * stride;
                centres.extend((0..across).map(|x| [at(x), at(y), stride]));
            }
        }
        let wanted = boxes.priors.as_ref().map_or(centres.len(), |priors| priors.rows.len());
        if wanted > 0 && rows != wanted {
            let (what, names) = (if centres.is_empty() { "priors" } else { "cells" }, boxes.names.join(", "));
            return Err(Unusable::Shape {
                name: names,
                shape: vec![rows],
                wanted: format!("{wanted} rows, one for each of the {what}"),
            });
        }
        Ok(Self { centres, width: width as f32, height: height as f32 })
    }

    /// Left, top, right, bottom as shares of the input; none if they are no numbers.
    pub(super) fn corners(&self, row: usize, number: impl Fn(usize) -> f32, boxes: &BoxColumns) -> Option<[f32; 4]> {
        let bins = boxes.bins;
        let [a, b, c, d] = [0, 1, 2, 3].map(|side| match bins {
            1 => number(side),
            _ => mean_bin((side * bins..(side + 1) * bins).map(&number)),
        });
        let around = |x: f32, y: f32, width: f32, height: f32| {
            [x - width / 2.0, y - height / 2.0, x + width / 2.0, y + height / 2.0]
        };
        let (corners, unit) = match boxes.form {
            Form::Corners => ([a, b, c, d], boxes.unit),
            Form::CornersYx => ([b, a, d, c], boxes.unit),
            Form::CornerSize => ([a, b, a + c, b + d], boxes.unit),
            Form::CentreSize => (around(a, b, c, d), boxes.unit),
            Form::Distances => {
                let [x, y, stride] = *self.centres.get(row)?;
                ([x - a * stride, y - b * stride, x + c * stride, y + d * stride], Unit::Pixels)
            }
            Form::Grid => {
                let [x, y, stride] = *self.centres.get(row)?;
                (around(x + a * stride, y + b * stride, c.exp() * stride, d.exp() * stride), Unit::Pixels)
            }
            Form::Deltas => {
                let priors = boxes.priors.as_ref()?;
                let [x, y, width, height] = *priors.rows.get(row)?;
                let [near, far] = priors.variances;
                let centre = (x + a * near * width, y + b * near * height);
                (around(centre.0, centre.1, width * (c * far).exp(), height * (d * far).exp()), Unit::Fraction)
            }
        };
        let [left, top, right, bottom] = corners;
        let corners = match unit {
            Unit::Pixels => [left / self.width, top / self.height, right / self.width, bottom / self.height],
            Unit::Fraction => corners,
        };
        // An infinite side is cut to the picture's edge; what is no number has no place.
        corners.iter().all(|side| !side.is_nan()).then_some(corners)
    }
}

/// The mean of a distribution over 0, 1, 2 … that a softmax gives (Li et al. 2020).
fn mean_bin(logits: impl Iterator<Item = f32> + Clone) -> f32 {
    let greatest = logits.clone().fold(f32::NEG_INFINITY, f32::max);
    let (mut sum, mut weighed) = (0.0, 0.0);
    for (bin, logit) in logits.enumerate() {
        let weight = (logit - greatest).exp();
        sum += weight;
        weighed += weight * bin as f32;
    }
    weighed / sum
}
