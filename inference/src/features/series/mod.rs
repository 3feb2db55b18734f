//! Vectors and time series: rows of numbers to the numbers that a model takes.
//!
//! ```text
//! rows ──by time, if they have one──▶ one row a step (the mean of those within it) ──gaps filled──▶ window ──▶ (v - mean) / std
//! ```
//!
//! It is what pandas does with `df.resample("100ms", origin="start").mean().interpolate()`, but a gap longer than the
//! manifest allows makes the sample unusable.

mod rows;

use serde::Deserialize;

use self::rows::{Columns, Row};
pub use self::rows::{is_heading, is_heading_again};
pub(super) use self::rows::{separator, words};
use super::span::Span;
use super::{ContentType, FeatureError, PerChannel, TENSOR_VALUES_MAX, Tensor};

/// `[input.series]`, checked. A vector is a series of one row.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct SeriesInput {
    columns: Columns,
    /// Rows that the model sees.
    rows: usize,
    layout: SeriesLayout,
    fit: Span,
    time: Option<Time>,
    fill: Fill,
    missing_rows_max: usize,
    mean: Vec<f32>,
    std: Vec<f32>,
}

/// Which of the two comes first in the model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum SeriesLayout {
    ChannelsTime,
    TimeChannels,
}

/// What is put where a value is missing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Fill {
    /// The value before.
    Hold,
    /// What lies on the line between the values before and after.
    #[default]
    Linear,
}

/// Rows that carry their time are brought to even steps.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
struct Time {
    column: String,
    #[serde(default)]
    unit: Unit,
    /// Steps per second.
    rate: f64,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum Unit {
    #[default]
    S,
    Ms,
    Us,
    Ns,
}

impl Unit {
    fn per_second(self) -> f64 {
        match self {
            Self::S => 1.0,
            Self::Ms => 1e3,
            Self::Us => 1e6,
            Self::Ns => 1e9,
        }
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SeriesFields {
    channels: ChannelFields,
    layout: Option<SeriesLayout>,
    #[serde(default = "exact")]
    fit: Span,
    time: Option<Time>,
    #[serde(default)]
    fill: Fill,
    #[serde(default)]
    missing_rows_max: usize,
    #[serde(default = "zero")]
    mean: PerChannel,
    #[serde(default = "one")]
    std: PerChannel,
}

/// By name, or how many.
#[derive(Deserialize)]
#[serde(untagged)]
enum ChannelFields {
    Count(usize),
    Names(Vec<String>),
}

fn exact() -> Span {
    Span::Exact
}

fn zero() -> PerChannel {
    PerChannel::All(0.0)
}

fn one() -> PerChannel {
    PerChannel::All(1.0)
}

/// A time that is this share of a step before its step belongs to it: times in seconds since 1970 are no rounder.
const ROUNDING: f64 = 1e-3;

impl SeriesInput {
    pub(super) fn new(fields: SeriesFields, shape: &[usize]) -> Result<Self, String> {
        let SeriesFields { channels, layout, fit, time, fill, missing_rows_max, mean, std } = fields;
        let (names, count) = match channels {
            ChannelFields::Count(count) => (Vec::new(), count),
            ChannelFields::Names(names) => {
                let count = names.len();
                (names, count)
            }
        };
        if let Some(twice) = names.iter().enumerate().find(|(at, name)| names[..*at].contains(name)) {
            return Err(format!("`channels` names `{}` twice", twice.1));
        }
        let values: usize = shape.iter().product();
        let sides: Vec<usize> = shape.iter().copied().filter(|side| *side != 1).collect();
        if count == 0 || !values.is_multiple_of(count) || sides.len() > 2 {
            return Err(format!("`shape` = {shape:?} does not hold rows of {count} `channels`"));
        }
        let rows = values / count;
        let layout = match (layout, count, rows) {
            (Some(layout), _, _) => layout,
            // There is only one order.
            (None, 1, _) | (None, _, 1) => SeriesLayout::TimeChannels,
            (None, _, _) => return Err("`layout` is missing: \"channels_time\" or \"time_channels\"".to_owned()),
        };
        let wanted = match layout {
            SeriesLayout::ChannelsTime => [count, rows],
            SeriesLayout::TimeChannels => [rows, count],
        };
        if sides != wanted.into_iter().filter(|side| *side != 1).collect::<Vec<_>>() {
            return Err(format!("`shape` = {shape:?} is not of {count} `channels` in this `layout`"));
        }
        if let Some(time) = &time {
            if !(time.rate > 0.0 && time.rate.is_finite()) {
                return Err(format!("`time.rate` = {} must be above 0 rows per second", time.rate));
            }
            if names.contains(&time.column) {
                return Err(format!("`{}` is the time of a row and one of its `channels`", time.column));
            }
        }
        if missing_rows_max > TENSOR_VALUES_MAX {
            return Err(format!("`missing_rows_max` = {missing_rows_max} must be at most {TENSOR_VALUES_MAX}"));
        }
        let (mean, std) = (mean.spread("mean", count)?, std.spread("std", count)?);
        if std.contains(&0.0) {
            return Err("`std` is divided by and must not be 0".into());
        }
        let columns = Columns { names, count, time: time.as_ref().map(|time| time.column.clone()) };
        Ok(Self { columns, rows, layout, fit, time, fill, missing_rows_max, mean, std })
    }

    /// The numbers that the model takes of one sample, in its order.
    pub(super) fn values(&self, content_type: &ContentType, bytes: &[u8]) -> Result<Vec<f32>, FeatureError> {
        let rows = self.columns.read(content_type, bytes)?;
        self.of(&rows)
    }

    /// The samples of a file: each row of a model that takes one at a time, else all of them together.
    pub(super) fn samples(
        &self,
        content_type: &ContentType,
        bytes: &[u8],
        shape: &[usize],
    ) -> Result<Vec<Tensor>, FeatureError> {
        let rows = self.columns.read(content_type, bytes)?;
        let together = if self.rows == 1 && self.fit == Span::Exact && self.time.is_none() { 1 } else { rows.len() };
        rows.chunks(together).map(|rows| Ok(Tensor::new(shape.to_vec(), self.of(rows)?))).collect()
    }

    fn of(&self, rows: &[Row]) -> Result<Vec<f32>, FeatureError> {
        let refused = |reason: String| FeatureError::NoSample { reason };
        let steps = match &self.time {
            Some(time) => self.in_steps(time, rows).map_err(refused)?,
            None => rows.iter().map(|row| row.cells.clone()).collect(),
        };
        let Some((seen, at)) = self.fit.fit(steps.len(), self.rows) else {
            return Err(refused(format!("it has {} rows, and the model takes exactly {}", steps.len(), self.rows)));
        };
        // Zeros are put where nothing was, after the mean has been taken off.
        let mut values = vec![0.0; self.rows * self.columns.count];
        for channel in 0..self.columns.count {
            let known: Vec<Option<f64>> = steps.iter().map(|cells| cells.get(channel).copied().flatten()).collect();
            let filled = self.filled(&known).map_err(|gap| {
                let name = self.columns.names.get(channel).cloned().unwrap_or_else(|| format!("{}", channel + 1));
                let allowed = self.missing_rows_max;
                refused(format!("channel `{name}` has no value for {gap} rows; `missing_rows_max` is {allowed}"))
            })?;
            for (row, value) in filled[seen.clone()].iter().enumerate() {
                let (mean, std) = (f64::from(self.mean[channel]), f64::from(self.std[channel]));
                let place = match self.layout {
                    SeriesLayout::ChannelsTime => channel * self.rows + at + row,
                    SeriesLayout::TimeChannels => (at + row) * self.columns.count + channel,
                };
                #[expect(clippy::cast_possible_truncation, reason = "the model takes f32")]
                let value = ((value - mean) / std) as f32;
                values[place] = value;
            }
        }
        match values.iter().position(|value| !value.is_finite()) {
            Some(index) => Err(FeatureError::NotFinite { index }),
            None => Ok(values),
        }
    }

    /// The mean of what is known in each step from the first row's time on.
    fn in_steps(&self, time: &Time, rows: &[Row]) -> Result<Vec<Vec<Option<f64>>>, String> {
        let count = self.columns.count;
        let mut steps: Vec<Vec<(f64, u32)>> = Vec::new();
        let mut times = rows.iter().filter_map(|row| row.time);
        let begin = times.next().unwrap_or(0.0);
        let mut last = begin;
        for (at, row) in rows.iter().enumerate() {
            let now = row.time.unwrap_or(last);
            if now < last {
                return Err(format!("row {} has the time {now}, which is before that of the row above it", at + 1));
            }
            last = now;
            let step = ((now - begin) / time.unit.per_second() * time.rate + ROUNDING).floor();
            let missing = step - steps.len() as f64;
            if missing > self.missing_rows_max as f64 {
                let allowed = self.missing_rows_max;
                return Err(format!(
                    "there are no rows for {missing} steps before row {}; `missing_rows_max` is {allowed}",
                    at + 1
                ));
            }
            // Within bounds: the step before it is there, and no more than allowed lie between.
            #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "see above")]
            let step = step as usize;
            if (step + 1).saturating_mul(count) > TENSOR_VALUES_MAX {
                return Err(format!("it takes more than {TENSOR_VALUES_MAX} numbers in even steps"));
            }
            steps.resize(steps.len().max(step + 1), vec![(0.0, 0); count]);
            for ((sum, count), cell) in steps[step].iter_mut().zip(&row.cells) {
                *sum += cell.unwrap_or(0.0);
                *count += u32::from(cell.is_some());
            }
        }
        let mean = |(sum, count): (f64, u32)| (count > 0).then(|| sum / f64::from(count));
        Ok(steps.into_iter().map(|step| step.into_iter().map(mean).collect()).collect())
    }

    /// What is missing filled in, or the length of a gap that is too long. At the ends the nearest value is held.
    fn filled(&self, known: &[Option<f64>]) -> Result<Vec<f64>, usize> {
        let mut filled = Vec::with_capacity(known.len());
        let mut before: Option<f64> = None;
        for (at, value) in known.iter().enumerate() {
            if let Some(value) = value {
                let gap = at - filled.len();
                if gap > self.missing_rows_max {
                    return Err(gap);
                }
                let step = |number: usize| match (before, self.fill) {
                    (None, _) => *value,
                    (Some(before), Fill::Hold) => before,
                    (Some(before), Fill::Linear) => before + (value - before) * number as f64 / (gap + 1) as f64,
                };
                filled.extend((1..=gap).map(step));
                filled.push(*value);
                before = Some(*value);
            }
        }
        let rest = known.len() - filled.len();
        match before {
            Some(last) if rest <= self.missing_rows_max => {
                filled.resize(known.len(), last);
                Ok(filled)
            }
            _ => Err(rest),
        }
    }
}

#[cfg(test)]
mod tests;
