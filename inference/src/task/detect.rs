//! Things in a picture: rows of a box and scores, as detectors give them in many forms, to boxes in the picture.
//!
//! In this order, because scores and golden answers depend on it: every score above [`FLOOR`] is a candidate, the
//! surest [`CANDIDATES_MAX`] are decoded, put into the picture and cut to it; of one label the surest hides those that
//! it covers; what reaches its label's `shown_min` is the answer, and all that is left tells the doubt.

use std::collections::BTreeMap;

use hedge_core::agree::iou;
use hedge_proto::{BOXES_MAX, Doubt, Found, Measure, Output, Rect, Share};
use serde::Deserialize;

use super::{Tensors, Unusable, label};
use crate::bundle::BundleFile;
use crate::features::Tensor;

/// What scores less is not looked at.
const FLOOR: f32 = 0.05;

/// The most boxes that are decoded: enough for the most crowded photos, and it bounds the time of the rest.
const CANDIDATES_MAX: usize = 1000;

/// Hidden boxes below it say nothing about the number of mistakes.
const ERRORS_FROM: f32 = 0.2;

/// How far a probability may be outside of 0 to 1: float16 and bytes round.
const ROUNDING: f32 = 0.01;

/// How a detector's outputs are read.
#[derive(Debug, Clone, PartialEq)]
pub struct Detect {
    pub boxes: BoxColumns,
    pub scores: ScoreColumns,
    /// Where the model itself has chosen one class a row.
    pub classes: Option<ClassColumn>,
    /// The output with the number of rows that count.
    pub count: Option<String>,
    /// The score from which a box is shown.
    pub shown_min: Share,
    /// The same for single labels.
    pub shown: BTreeMap<String, Share>,
    /// Of two boxes of a label that share more, the surer one stays. None if the model has done that.
    pub iou_max: Option<Share>,
}

/// Where the boxes are and what their numbers mean.
#[derive(Debug, Clone, PartialEq)]
pub struct BoxColumns {
    /// Several if each scale has an output of its own; their rows follow each other.
    pub names: Vec<String>,
    /// The first of their columns.
    pub at: usize,
    pub form: Form,
    pub unit: Unit,
    /// Pixels from cell to cell of each scale, in the order of the rows; for the forms that count from cells.
    pub strides: Vec<u16>,
    /// Numbers of a distance that is a mean over bins; 1 if it is one number.
    pub bins: usize,
    /// For the form `deltas`.
    pub priors: Option<Priors>,
}

/// The boxes that a model of the form `deltas` shifts and stretches.
#[derive(Debug, Clone, PartialEq)]
pub struct Priors {
    /// `.npy`, rows of centre x, centre y, width, height as fractions.
    pub file: BundleFile,
    pub variances: [f32; 2],
    /// Filled when the bundle is opened.
    pub rows: Vec<[f32; 4]>,
}

/// What the four numbers of a box are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Form {
    /// Left, top, right, bottom.
    Corners,
    /// Top, left, bottom, right.
    CornersYx,
    /// Left, top, width, height.
    CornerSize,
    /// Centre x, centre y, width, height.
    CentreSize,
    /// From a cell's centre to the left, top, right, bottom, in strides.
    Distances,
    /// Centre from a cell's corner in strides, logarithms of width and height in strides.
    Grid,
    /// Shifts and logarithms of stretches of prior boxes.
    Deltas,
}

/// What the numbers of a box count.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Unit {
    /// Pixels of the model's input.
    #[default]
    Pixels,
    /// Shares of the model's input.
    Fraction,
}

/// Where the scores are.
#[derive(Debug, Clone, PartialEq)]
pub struct ScoreColumns {
    pub names: Vec<String>,
    /// The first of their columns.
    pub at: usize,
    pub kind: ScoreKind,
    /// The column with the score that there is anything at all.
    pub objectness: Option<usize>,
    /// Whether the first class is "nothing".
    pub background: bool,
}

/// What the scores are.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ScoreKind {
    #[default]
    Probabilities,
    /// To be squashed one by one.
    Sigmoid,
    /// To be squashed together.
    Softmax,
}

/// Where the model says which class a row is of.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ClassColumn {
    pub name: String,
    #[serde(default)]
    pub at: usize,
    /// The number of the first label.
    #[serde(default)]
    pub first: usize,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Names {
    One(String),
    Several(Vec<String>),
}

impl From<Names> for Vec<String> {
    fn from(names: Names) -> Self {
        match names {
            Names::One(name) => vec![name],
            Names::Several(names) => names,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct BoxFields {
    name: Names,
    #[serde(default)]
    at: usize,
    form: Form,
    #[serde(default)]
    unit: Unit,
    #[serde(default)]
    strides: Vec<u16>,
    #[serde(default = "one")]
    bins: usize,
    priors: Option<BundleFile>,
    #[serde(default = "usual_variances")]
    variances: [f32; 2],
}

fn one() -> usize {
    1
}

/// Of SSD's authors, and nearly everybody since.
fn usual_variances() -> [f32; 2] {
    [0.1, 0.2]
}

impl TryFrom<BoxFields> for BoxColumns {
    type Error = String;

    fn try_from(fields: BoxFields) -> Result<Self, String> {
        let BoxFields { name, at, form, unit, strides, bins, priors, variances } = fields;
        let counts_from_cells = matches!(form, Form::Distances | Form::Grid);
        if counts_from_cells == strides.is_empty() || strides.contains(&0) {
            return Err("`boxes.strides` belongs to the forms `distances` and `grid`, such as [8, 16, 32]".into());
        }
        if (form == Form::Deltas) != priors.is_some() {
            return Err(
                "`boxes.priors` belongs to the form `deltas`: an .npy file of centre x, centre y, width, height".into(),
            );
        }
        if bins == 0 || bins > 1 && form != Form::Distances {
            return Err("`boxes.bins` is the count of numbers of one distance, for the form `distances`".into());
        }
        let priors = priors.map(|file| Priors { file, variances, rows: Vec::new() });
        Ok(Self { names: name.into(), at, form, unit, strides, bins, priors })
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ScoreFields {
    name: Names,
    #[serde(default)]
    at: usize,
    #[serde(default)]
    kind: ScoreKind,
    objectness: Option<usize>,
    #[serde(default)]
    background: bool,
}

impl From<ScoreFields> for ScoreColumns {
    fn from(fields: ScoreFields) -> Self {
        let ScoreFields { name, at, kind, objectness, background } = fields;
        Self { names: name.into(), at, kind, objectness, background }
    }
}

impl Detect {
    pub(super) fn new(
        (boxes, scores, classes): (BoxColumns, ScoreColumns, Option<ClassColumn>),
        count: Option<String>,
        shown_min: Share,
        shown: BTreeMap<String, Share>,
        iou_max: Option<Share>,
    ) -> Result<Self, String> {
        for (field, names) in [("boxes.name", &boxes.names), ("scores.name", &scores.names)] {
            if names.is_empty() {
                return Err(format!("`{field}` names no output"));
            }
        }
        if classes.is_some() && (scores.background || scores.kind == ScoreKind::Softmax) {
            return Err(
                "`classes` are chosen by the model, so `scores` are one number a row, without a background".into()
            );
        }
        if let Some(low) = std::iter::once(&shown_min).chain(shown.values()).find(|share| share.value() < FLOOR) {
            return Err(format!("`shown_min` {} is below {FLOOR}, and what scores less is not looked at", low.value()));
        }
        Ok(Self { boxes, scores, classes, count, shown_min, shown, iou_max })
    }

    pub(super) fn names(&self) -> Vec<&str> {
        let Self { boxes, scores, classes, count, .. } = self;
        let mut names: Vec<&str> = Vec::new();
        let all = boxes.names.iter().chain(&scores.names).chain(classes.iter().map(|column| &column.name)).chain(count);
        for name in all {
            if !names.contains(&name.as_str()) {
                names.push(name);
            }
        }
        names
    }

    /// `pixels`: width and height of the model's input.
    pub(super) fn read(
        &self,
        outputs: &Tensors,
        labels: &[String],
        pixels: (u32, u32),
        frame: &Rect,
    ) -> Result<(Output, Doubt), Unusable> {
        let candidates = self.candidates(outputs, labels.len())?;
        let tables = self.tables(outputs, &self.boxes.names, labels.len())?;
        let cells = Cells::new(&self.boxes, pixels, tables.rows())?;
        let mut found = Vec::with_capacity(candidates.len());
        for Candidate { row, class, score } in candidates {
            let place = self.place(&tables, &cells, row, frame)?;
            // What lies beside the picture, in the padding, or covers nothing is nowhere.
            if place.width > 0.0 && place.height > 0.0 {
                found.push(Found { label: label(labels, class), score, place });
            }
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        if let Some(iou_max) = self.iou_max {
            found = surest(found, iou_max.value());
        }
        found.truncate(BOXES_MAX);
        let shown_min = |one: &Found| self.shown.get(&one.label).unwrap_or(&self.shown_min).value();
        let (shown, hidden): (Vec<Found>, Vec<Found>) = found.into_iter().partition(|one| one.score >= shown_min(one));
        let nearest = hidden.iter().map(|one| one.score / shown_min(one)).fold(0.0, f32::max);
        let scores = |list: &[Found]| list.iter().map(|one| one.score).collect::<Vec<f32>>();
        let doubt = doubt(&scores(&shown), &scores(&hidden), nearest);
        Ok((Output::Boxes(shown), doubt))
    }

    /// The rows and classes that score enough to be looked at.
    fn candidates(&self, outputs: &Tensors, labels: usize) -> Result<Vec<Candidate>, Unusable> {
        let tables = self.tables(outputs, &self.scores.names, labels)?;
        let mut rows = tables.rows();
        if let Some(count) = &self.count {
            let counted = outputs.get(count)?.data.first().copied().unwrap_or(0.0);
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count, clamped to the rows")]
            let counted = counted.clamp(0.0, rows as f32) as usize;
            rows = counted;
        }
        let classes = match &self.classes {
            Some(column) => Some((self.tables(outputs, std::slice::from_ref(&column.name), labels)?, column)),
            None => None,
        };
        let mut candidates = Vec::new();
        let mut numbers = Vec::new();
        for row in 0..rows {
            tables.read(row, &mut numbers);
            let scores = numbers.get(self.scores.at..).unwrap_or_default();
            let anything = match self.scores.objectness.and_then(|at| numbers.get(at)) {
                Some(number) => self.scores.kind.one(*number)?,
                None => 1.0,
            };
            match &classes {
                Some((table, column)) => {
                    let score = scores.first().ok_or(Unusable::Empty)?;
                    let score = self.scores.kind.one(*score)? * anything;
                    let class = table.get(row, column.at);
                    if score > FLOOR && class >= column.first as f32 {
                        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "not negative")]
                        let class = class as usize - column.first;
                        candidates.push(Candidate { row, class, score });
                    }
                }
                None => self
                    .scores
                    .each(scores, anything, |class, score| candidates.push(Candidate { row, class, score }))?,
            }
        }
        if candidates.len() > CANDIDATES_MAX {
            candidates.select_nth_unstable_by(CANDIDATES_MAX, |a, b| b.score.total_cmp(&a.score));
            candidates.truncate(CANDIDATES_MAX);
        }
        Ok(candidates)
    }

    /// The outputs of these names, with as many columns as anything that is read from them needs.
    fn tables<'a>(&self, outputs: &'a Tensors, names: &[String], labels: usize) -> Result<Tables<'a>, Unusable> {
        let Self { boxes, scores, classes, .. } = self;
        let chosen = classes.is_some();
        let of_scores = scores.at + if chosen { 1 } else { labels + usize::from(scores.background) };
        let uses = |own: &[String]| names.iter().any(|name| own.contains(name));
        let mut columns = if uses(&boxes.names) { boxes.at + 4 * boxes.bins } else { 0 };
        if uses(&scores.names) {
            // Without labels nobody knows how many classes there are.
            columns = if labels == 0 && !chosen { 0 } else { columns.max(of_scores) };
        }
        if let Some(column) = classes.as_ref().filter(|column| names.contains(&column.name)) {
            columns = columns.max(column.at + 1);
        }
        Tables::of(outputs, names, columns)
    }

    /// Where in the picture a row's box is.
    fn place(&self, tables: &Tables, cells: &Cells, row: usize, frame: &Rect) -> Result<Rect, Unusable> {
        let Some((part, row_of_part)) = tables.part(row) else {
            return Err(Unusable::Shape {
                name: self.boxes.names.join(", "),
                shape: vec![tables.rows()],
                wanted: format!("as many rows as `{}` has", self.scores.names.join(", ")),
            });
        };
        let number = |column: usize| part.get(row_of_part, self.boxes.at + column);
        let [left, top, right, bottom] = cells.corners(row, number, &self.boxes).ok_or(Unusable::NotFinite)?;
        let cut = |from: f32, to: f32, start: f32, size: f32| {
            let [from, to] = [from, to].map(|at| (start + at * size).clamp(0.0, 1.0));
            (from, to - from)
        };
        let (left, width) = cut(left, right, frame.left, frame.width);
        let (top, height) = cut(top, bottom, frame.top, frame.height);
        Ok(Rect { left, top, width, height })
    }
}

struct Candidate {
    row: usize,
    class: usize,
    score: f32,
}

impl ScoreKind {
    fn one(self, number: f32) -> Result<f32, Unusable> {
        if number.is_nan() {
            return Err(Unusable::NotFinite);
        }
        match self {
            Self::Probabilities if (-ROUNDING..=1.0 + ROUNDING).contains(&number) => Ok(number.clamp(0.0, 1.0)),
            Self::Probabilities => Err(Unusable::OutOfRange { score: number, whole: 1.0 }),
            Self::Sigmoid | Self::Softmax => Ok(1.0 / (1.0 + (-number).exp())),
        }
    }
}

impl ScoreColumns {
    /// Tells each class that scores enough.
    fn each(&self, numbers: &[f32], anything: f32, mut tell: impl FnMut(usize, f32)) -> Result<(), Unusable> {
        let skip = usize::from(self.background);
        match self.kind {
            ScoreKind::Softmax => {
                let greatest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = numbers.iter().map(|number| (number - greatest).exp()).sum();
                if !sum.is_finite() {
                    return Err(Unusable::NotFinite);
                }
                for (class, number) in numbers.iter().enumerate().skip(skip) {
                    let score = (number - greatest).exp() / sum * anything;
                    if score > FLOOR {
                        tell(class - skip, score);
                    }
                }
            }
            kind => {
                for (class, number) in numbers.iter().enumerate().skip(skip) {
                    let score = kind.one(*number)? * anything;
                    if score > FLOOR {
                        tell(class - skip, score);
                    }
                }
            }
        }
        Ok(())
    }
}

/// One or several tensors as one table.
struct Tables<'a> {
    parts: Vec<Table<'a>>,
}

struct Table<'a> {
    data: &'a [f32],
    rows: usize,
    columns: usize,
    /// Whether a column's numbers lie beside each other, not a row's.
    turned: bool,
}

impl<'a> Tables<'a> {
    /// `columns`: how many there are; 0 if that is not known.
    fn of(outputs: &'a Tensors, names: &[String], columns: usize) -> Result<Self, Unusable> {
        let parts = names.iter().map(|name| Table::of(name, outputs.get(name)?, columns)).collect::<Result<_, _>>()?;
        Ok(Self { parts })
    }

    fn rows(&self) -> usize {
        self.parts.iter().map(|part| part.rows).sum()
    }

    fn part(&self, mut row: usize) -> Option<(&Table<'a>, usize)> {
        for part in &self.parts {
            if row < part.rows {
                return Some((part, row));
            }
            row -= part.rows;
        }
        None
    }

    fn get(&self, row: usize, column: usize) -> f32 {
        self.part(row).map_or(f32::NAN, |(part, row)| part.get(row, column))
    }

    /// The numbers of a row.
    fn read(&self, row: usize, into: &mut Vec<f32>) {
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
    fn of(name: &str, tensor: &'a Tensor, columns: usize) -> Result<Self, Unusable> {
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

    fn get(&self, row: usize, column: usize) -> f32 {
        let at = if self.turned { column * self.rows + row } else { row * self.columns + column };
        if column < self.columns { self.data.get(at).copied().unwrap_or(f32::NAN) } else { f32::NAN }
    }
}

/// Turns a row's numbers into fractions of the model's input.
struct Cells {
    /// Of each row, where it counts from: x, y and stride in pixels. Empty where rows count from nowhere.
    centres: Vec<[f32; 3]>,
    width: f32,
    height: f32,
}

impl Cells {
    fn new(boxes: &BoxColumns, (width, height): (u32, u32), rows: usize) -> Result<Self, Unusable> {
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
    fn corners(&self, row: usize, number: impl Fn(usize) -> f32, boxes: &BoxColumns) -> Option<[f32; 4]> {
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

/// Without those that a surer one of the same label covers. The surest comes first.
fn surest(found: Vec<Found>, iou_max: f32) -> Vec<Found> {
    let mut kept: Vec<Found> = Vec::new();
    for one in found {
        let covered = kept.iter().any(|other| other.label == one.label && iou(&other.place, &one.place) > iou_max);
        if !covered {
            kept.push(one);
        }
        if kept.len() == BOXES_MAX {
            break;
        }
    }
    kept
}

/// How unsure a detector is, from the scores of what it shows and of what it nearly showed. `nearest` is the share of
/// its bar that the best hidden one reached.
fn doubt(shown: &[f32], hidden: &[f32], nearest: f32) -> Doubt {
    let sum = |scores: &[f32]| scores.iter().sum::<f32>();
    let part = |count: f32| count / (1.0 + count);
    let mean_shown = if shown.is_empty() { nearest } else { 1.0 - sum(shown) / shown.len() as f32 };
    // What is there, if every score is the probability of one thing more.
    let expected = shown.len() as f32 + sum(shown) + sum(hidden);
    let nothing_hidden: f32 = hidden.iter().map(|score| 1.0 - score).product();
    let expected_loss = if shown.is_empty() { 1.0 - nothing_hidden } else { 1.0 - 2.0 * sum(shown) / expected };
    let unsure = shown.iter().chain(hidden).filter(|score| **score > ERRORS_FROM);
    let errors: f32 = unsure.map(|score| score.min(1.0 - score)).sum();
    let all_right = shown.iter().product::<f32>() * nothing_hidden;
    let gap = hidden.iter().filter(|score| **score > ERRORS_FROM).count() as f32;
    Doubt::NONE
        .with(Measure::MeanShown, mean_shown)
        .with(Measure::ExpectedLoss, expected_loss)
        .with(Measure::Errors, part(errors))
        .with(Measure::AnyError, 1.0 - all_right)
        .with(Measure::CountGap, part(gap))
}
