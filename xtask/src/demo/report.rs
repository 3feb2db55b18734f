//! The totals of a run, for people and as JSON.

use std::time::Duration;

use hedge_tests::Tally;
use hedge_tests::tally::{Accuracy, Agreement, Totals};
use serde_json::{Value, json};

use super::poster::Halves;

/// What arrived, counted outside the programs.
pub(super) struct Report {
    totals: Totals,
    /// Missing corrections whose cases still waited on a device when the run ended.
    pending: u64,
    /// Missing corrections that nothing accounts for.
    lost: u64,
    offline: Duration,
    accuracy: Option<Accuracy>,
    cloud: Option<f64>,
    /// Of the camera that finds things, with the cloud's detector.
    detection: Option<Agreement>,
    judge: JudgeReport,
}

/// How the sorter's threshold was set, and what came of it.
pub(super) struct JudgeReport {
    pub(super) mode: &'static str,
    pub(super) halves: Halves,
    pub(super) shift: Option<String>,
}

impl JudgeReport {
    /// Of the answers before the pictures became noisy, and after.
    fn shares(&self) -> (f64, Option<f64>) {
        let share = |(answers, deferred): (u64, u64)| deferred as f64 / answers.max(1) as f64;
        let Halves { before, after } = self.halves;
        (share(before), (after.0 > 0).then(|| share(after)))
    }
}

impl Report {
    /// `waiting` is how many cases the devices still held; 0 once they had drained.
    pub(super) fn new(
        tally: &Tally,
        waiting: u64,
        offline: Duration,
        cloud: Option<f64>,
        detection: Option<Agreement>,
        judge: JudgeReport,
    ) -> Self {
        let totals = tally.totals();
        let (pending, lost) = split(totals.missing, waiting);
        Self { totals, pending, lost, offline, accuracy: tally.accuracy(), cloud, detection, judge }
    }

    /// Every promise was kept, once.
    pub(super) fn is_clean(&self) -> bool {
        self.lost == 0 && self.pending == 0 && self.totals.duplicates == 0 && self.totals.strangers == 0
    }

    pub(super) fn json(&self) -> Value {
        let totals = &self.totals;
        json!({
            "samples": totals.samples,
            "kept": totals.kept,
            "deferred": totals.deferred,
            "verdicts": totals.verdicts,
            "corrected": totals.corrected,
            "pending": self.pending,
            "lost": self.lost,
            "duplicates": totals.duplicates,
            "offline_s": self.offline.as_secs(),
            "accuracy": self.accuracy.map(|accuracy| json!({
                "local": rounded(accuracy.local),
                "hybrid": rounded(accuracy.hybrid),
                "cloud": self.cloud.map(rounded),
                "deferred_share": rounded(accuracy.deferred_share),
            })),
            "detection": self.detection.map(|detection| json!({
                "agreement": { "local": rounded(detection.local), "hybrid": rounded(detection.hybrid) },
                "deferred_share": rounded(detection.deferred_share),
            })),
            "judge": {
                "mode": self.judge.mode,
                "deferred_share": rounded(self.judge.shares().0),
                "deferred_share_after_shift": self.judge.shares().1.map(rounded),
                "shift": self.judge.shift,
            },
        })
    }

    pub(super) fn text(&self) -> String {
        let totals = &self.totals;
        let mut text = format!(
            "\n{} samples: {} kept on the device, {} deferred\n\
             {} verdicts came back, {} of them corrected the device\n\
             lost {}, pending {}, duplicates {}; {} s offline",
            totals.samples,
            totals.kept,
            totals.deferred,
            totals.verdicts,
            totals.corrected,
            self.lost,
            self.pending,
            totals.duplicates,
            self.offline.as_secs(),
        );
        if totals.refused > 0 {
            text +=
                &format!("\n{} deferred samples were refused by the queue, and their answers said so", totals.refused);
        }
        if totals.strangers > 0 {
            text += &format!("\n{} corrections came for ids that nobody was given", totals.strangers);
        }
        if let Some(accuracy) = &self.accuracy {
            text += &format!(
                "\nright on {} Fashion-MNIST test pictures: {:.1} % local, {:.1} % hybrid",
                accuracy.samples,
                100.0 * accuracy.local,
                100.0 * accuracy.hybrid
            );
            if let Some(cloud) = self.cloud {
                text += &format!(", {:.1} % cloud alone", 100.0 * cloud);
            }
            text += &format!("; {:.1} % deferred", 100.0 * accuracy.deferred_share);
        }
        if let Some(detection) = &self.detection {
            text += &format!(
                "\nfinds what the cloud's detector finds in {} frames: F1 {:.3} local, {:.3} hybrid; {:.1} % deferred",
                detection.samples,
                detection.local,
                detection.hybrid,
                100.0 * detection.deferred_share
            );
        }
        if let (before, Some(after)) = self.judge.shares() {
            text += &format!(
                "\n{}: {:.1} % of the sorter's answers were deferred, {:.1} % after its pictures became noisy; {}",
                self.judge.mode,
                100.0 * before,
                100.0 * after,
                if self.judge.shift.is_some() { "it reported the change" } else { "it did not report the change" },
            );
        }
        text
    }
}

/// A missing correction is pending if a device still holds a case for it, and lost otherwise.
fn split(missing: u64, waiting: u64) -> (u64, u64) {
    let pending = missing.min(waiting);
    (pending, missing - pending)
}

/// Four places: a hundredth of a percent.
fn rounded(share: f64) -> f64 {
    (share * 10_000.0).round() / 10_000.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(value: &Value) -> Vec<&str> {
        value.as_object().map(|object| object.keys().map(String::as_str).collect()).unwrap_or_default()
    }

    #[test]
    fn the_json_has_the_keys_that_scripts_read() {
        let judge = JudgeReport { mode: "budget", halves: Halves::default(), shift: None };
        let agreement = Some(Agreement::default());
        let mut report = Report::new(&Tally::default(), 0, Duration::from_secs(7), Some(0.9), agreement, judge);
        report.accuracy = Some(Accuracy::default());
        let json = report.json();
        let mut wanted = vec!["samples", "kept", "deferred", "verdicts", "corrected"];
        wanted.extend(["pending", "lost", "duplicates", "offline_s", "accuracy", "detection", "judge"]);
        wanted.sort_unstable();
        assert_eq!(keys(&json), wanted);
        assert_eq!(keys(&json["accuracy"]), ["cloud", "deferred_share", "hybrid", "local"]);
        assert_eq!(keys(&json["detection"]), ["agreement", "deferred_share"]);
        assert_eq!(keys(&json["judge"]), ["deferred_share", "deferred_share_after_shift", "mode", "shift"]);
        assert_eq!(keys(&json["detection"]["agreement"]), ["hybrid", "local"]);
        assert_eq!(json["offline_s"], 7);
    }

    #[test]
    fn what_still_waits_is_pending_and_the_rest_of_what_is_missing_is_lost() {
        assert_eq!(split(5, 3), (3, 2));
        assert_eq!(split(5, 0), (0, 5));
        // What was never promised to this program may wait.
        assert_eq!(split(0, 9), (0, 0));
    }
}
