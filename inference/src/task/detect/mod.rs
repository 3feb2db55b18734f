//! Things in a picture: rows of a box and scores, as detectors give them in many forms, to boxes in the picture.
//!
//! In this order, because scores and golden answers depend on it: every score above [`FLOOR`] is a candidate, the
//! surest [`CANDIDATES_MAX`] are decoded, put into the picture and cut to it; of one label the surest hides those that
//! it covers; what reaches its label's `shown_min` is the answer, and all that is left tells the doubt.

mod columns;
mod tables;

use std::collections::BTreeMap;

use hedge_core::agree::iou;
use hedge_proto::{BOXES_MAX, Doubt, Found, Measure, Output, Rect, Share};

use self::columns::{Background, ScoreKind};
pub(super) use self::columns::{BoxColumns, ClassColumn, ScoreColumns};
use self::tables::{Cells, Tables};
use super::{Tensors, Unusable, label};

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
    pub(crate) boxes: BoxColumns,
    pub(crate) scores: ScoreColumns,
    /// Where the model itself has chosen one class a row.
    pub(crate) classes: Option<ClassColumn>,
    /// The output with the number of rows that count.
    pub(crate) count: Option<String>,
    /// The score from which a box is shown.
    pub shown_min: Share,
    /// The same for single labels.
    pub shown: BTreeMap<String, Share>,
    /// Of two boxes of a label that share more, the surer one stays. None if the model has done that.
    pub(crate) iou_max: Option<Share>,
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
        if classes.is_some() && (scores.background != Background::None || scores.kind == ScoreKind::Softmax) {
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
                found.push(Placed { class, score, place });
            }
        }
        found.sort_by(|a, b| b.score.total_cmp(&a.score));
        if let Some(iou_max) = self.iou_max {
            let same = |one: usize, other: usize| one == other || label(labels, one) == label(labels, other);
            found = surest(found, iou_max.value(), same);
        }
        found.truncate(BOXES_MAX);
        // Only what is shown needs a text of its own for its label.
        let shown_min = |class: usize| match self.shown.is_empty() {
            true => self.shown_min.value(),
            false => self.shown.get(&*label(labels, class)).unwrap_or(&self.shown_min).value(),
        };
        let (mut boxes, mut nearest) = (Vec::with_capacity(found.len()), 0.0_f32);
        let [mut shown, mut hidden] = [Vec::with_capacity(found.len()), Vec::with_capacity(found.len())];
        for Placed { class, score, place } in found {
            let least = shown_min(class);
            if score >= least {
                shown.push(score);
                boxes.push(Found { label: label(labels, class).into_owned(), score, place });
            } else {
                hidden.push(score);
                nearest = nearest.max(score / least);
            }
        }
        let doubt = doubt(&shown, &hidden, nearest);
        Ok((Output::Boxes(boxes), doubt))
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
        let of_scores =
            scores.at + if chosen { 1 } else { labels + usize::from(scores.background != Background::None) };
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

/// A box before its label is written out.
struct Placed {
    class: usize,
    score: f32,
    place: Rect,
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
        let (skip, end) = match self.background {
            Background::None => (0, numbers.len()),
            Background::First => (1, numbers.len()),
            Background::Last => (0, numbers.len().saturating_sub(1)),
        };
        match self.kind {
            ScoreKind::Softmax => {
                let greatest = numbers.iter().copied().fold(f32::NEG_INFINITY, f32::max);
                let sum: f32 = numbers.iter().map(|number| (number - greatest).exp()).sum();
                if !sum.is_finite() {
                    return Err(Unusable::NotFinite);
                }
                for (class, number) in numbers.iter().enumerate().take(end).skip(skip) {
                    let score = (number - greatest).exp() / sum * anything;
                    if score > FLOOR {
                        tell(class - skip, score);
                    }
                }
            }
            kind => {
                for (class, number) in numbers.iter().enumerate().take(end).skip(skip) {
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

/// Without those that a surer one of the same label covers. The surest comes first.
fn surest(found: Vec<Placed>, iou_max: f32, same: impl Fn(usize, usize) -> bool) -> Vec<Placed> {
    let mut kept: Vec<Placed> = Vec::new();
    for one in found {
        let covered = kept.iter().any(|other| same(other.class, one.class) && iou(&other.place, &one.place) > iou_max);
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
