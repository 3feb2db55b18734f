//! The table of `bundle compare`.

use std::fmt::Write as _;

use serde::Serialize;

use super::front::front;

/// One bundle, measured.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Row {
    pub(super) name: String,
    pub(super) bytes: u64,
    /// With gzip.
    pub(super) packed: u64,
    /// Shares from 0 to 1; absent where the samples have no labels, or without a cloud.
    pub(super) accuracy: Option<f64>,
    pub(super) agreement: Option<f64>,
    pub(super) calibration_error: f64,
    pub(super) cpu_ms: f64,
    /// The share of samples that the cloud must answer; absent if no share is enough.
    pub(super) asks: Option<f64>,
    /// Millijoules of the processor's package for an inference, with whatever else it did meanwhile.
    pub(super) mj: Option<f64>,
    pub(super) left_out: usize,
    pub(super) on_front: bool,
}

#[derive(Debug, Serialize)]
pub(super) struct Table {
    samples: usize,
    /// The target is a share of right answers, and not of answers like the cloud's.
    by_labels: bool,
    target: Option<f64>,
    rows: Vec<Row>,
}

impl Table {
    pub(super) fn new(mut rows: Vec<Row>, samples: usize, by_labels: bool, target: Option<f64>) -> Self {
        let costs: Vec<Vec<f64>> = rows.iter().map(|row| row.costs(target.is_some())).collect();
        for (row, on_front) in rows.iter_mut().zip(front(&costs)) {
            row.on_front = on_front;
        }
        Self { samples, by_labels, target, rows }
    }

    pub(super) fn json(&self) -> serde_json::Value {
        serde_json::to_value(self).unwrap_or_default()
    }

    pub(super) fn text(&self) -> String {
        let mut text = String::new();
        let mut line = |line: String| text.write_fmt(format_args!("{}\n", line.trim_end())).unwrap_or_default();
        let percent = |share: Option<f64>| share.map_or("-".to_owned(), |share| format!("{:.1} %", share * 100.0));
        let width = self.rows.iter().map(|row| row.name.chars().count()).max().unwrap_or(0).max(6);
        line(format!(
            "  {:width$}  {:>10}  {:>10}  {:>8}  {:>8}  {:>9}  {:>8}  {:>7}  {:>7}",
            "bundle", "bytes", "gzipped", "accuracy", "as cloud", "cal.error", "CPU ms", "asks", "mJ"
        ));
        for row in &self.rows {
            let mark = if row.on_front { '*' } else { ' ' };
            line(format!(
                "{mark} {:width$}  {:>10}  {:>10}  {:>8}  {:>8}  {:>9.4}  {:>8.3}  {:>7}  {:>7}",
                row.name,
                row.bytes,
                row.packed,
                percent(row.accuracy),
                percent(row.agreement),
                row.calibration_error,
                row.cpu_ms,
                if row.asks.is_none() && self.target.is_some() { "never".to_owned() } else { percent(row.asks) },
                row.mj.map_or("-".to_owned(), |mj| format!("{mj:.2}")),
            ));
        }
        line(String::new());
        let samples = self.samples;
        match self.target {
            Some(target) if self.by_labels => line(format!(
                "asks: the least share of these {samples} samples that the cloud must answer so that both together are right in {}",
                percent(Some(target))
            )),
            Some(target) => line(format!(
                "asks: the least share of these {samples} samples that the cloud must answer so that both together say in {} what it says",
                percent(Some(target))
            )),
            None => line("asks: not told without --cloud".to_owned()),
        }
        let quality = if self.target.is_some() { "asks" } else { "accuracy" };
        line(format!("*: no other is at least as good in bytes, CPU ms and {quality}, and better in one of them"));
        if self.rows.iter().all(|row| row.mj.is_none()) {
            line("mJ: this machine does not tell what an inference takes".to_owned());
        }
        for row in self.rows.iter().filter(|row| row.left_out > 0) {
            line(format!("{}: {} of the samples could not be read and do not count", row.name, row.left_out));
        }
        text
    }
}

impl Row {
    /// As they are printed: a difference that nobody sees beats nobody.
    fn costs(&self, has_target: bool) -> Vec<f64> {
        let quality = if has_target { self.asks } else { self.accuracy.map(|share| 1.0 - share) };
        let rounded = |value: f64, parts: f64| (value * parts).round() / parts;
        vec![self.bytes as f64, rounded(self.cpu_ms, 1000.0), rounded(quality.unwrap_or(f64::INFINITY), 1000.0)]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(name: &str, bytes: u64, cpu_ms: f64, asks: Option<f64>) -> Row {
        let (accuracy, agreement) = (Some(0.9), Some(0.95));
        let (calibration_error, mj) = (0.01, None);
        let packed = bytes / 2;
        let name = name.to_owned();
        Row {
            name,
            bytes,
            packed,
            accuracy,
            agreement,
            calibration_error,
            cpu_ms,
            asks,
            mj,
            left_out: 0,
            on_front: false,
        }
    }

    #[test]
    fn the_table_marks_the_front_and_says_what_is_not_told() {
        let rows = vec![
            row("fp32", 400, 2.0, Some(0.10)),
            row("int8", 100, 1.0, Some(0.11)),
            row("fp16", 200, 2.000_1, Some(0.11)),
            row("tiny", 50, 0.5, None),
        ];
        let text = Table::new(rows, 1000, true, Some(0.907)).text();
        let marked: Vec<&str> = text.lines().filter_map(|line| line.strip_prefix("* ")?.split(' ').next()).collect();
        assert_eq!(marked, ["fp32", "int8"], "{text}");
        assert!(text.contains("never") && text.contains("right in 90.7 %") && text.contains("does not tell"), "{text}");
    }
}
