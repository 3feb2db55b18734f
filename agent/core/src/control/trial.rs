//! Decides whether settings that could cut the link are kept.
//!
//! ```text
//!            begun ──▶ subscribed ──▶ reported ──▶ cloud spoke ──▶ confirmed
//!              │            (in any order, over the new settings only)
//!              └── its time is over (powered time), or a third start of the agent ──▶ failed
//! ```
//! With `confirm = operator` only an operator's word confirms, in the same time. What is connected with other
//! settings than those on trial proves nothing, and a retained message proves no live cloud.

use core::time::Duration;

use hedge_proto::Confirm;
use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// How long settings may be on trial unless the local file says otherwise. Long enough for a dial wait of 40 s, a slow handshake and a cloud that says
/// that it is there every two minutes.
pub const TRIAL: Duration = Duration::from_secs(180);

/// How often the agent may start during a trial. Settings that make it crash are given back at the third start.
pub const STARTS_MAX: u32 = 2;

/// Something seen over the settings on trial.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Evidence {
    /// Connected, and every subscription granted.
    Subscribed,
    /// The broker has acknowledged the device's report.
    Reported,
    /// A live message of a cloud has come in.
    CloudSpoke,
}

/// One trial, as it is kept over a restart.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trial {
    pub version: u64,
    pub confirm: Confirm,
    /// Powered milliseconds when it began.
    began_ms: u64,
    /// What the local file said when it began; a later word of it does not stretch a trial.
    #[serde(default = "usual_ms")]
    length_ms: u64,
    /// Starts of the agent since then.
    starts: u32,
    /// Evidence belongs to a connection of this process, so it is not kept.
    #[serde(skip)]
    seen: [bool; 3],
}

fn usual_ms() -> u64 {
    millis(TRIAL)
}

fn millis(length: Duration) -> u64 {
    u64::try_from(length.as_millis()).unwrap_or(u64::MAX)
}

/// How a trial ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    Confirmed,
    /// Why, in one sentence for people.
    Failed(&'static str),
}

impl Trial {
    #[must_use]
    pub fn begin(now: Moment, length: Duration, version: u64, confirm: Confirm) -> Self {
        Self { version, confirm, began_ms: now.0, length_ms: millis(length), starts: 0, seen: [false; 3] }
    }

    /// The agent has started during the trial. A powered clock that lags after a power cut lengthens nothing.
    pub fn started_again(&mut self, now: Moment) {
        self.starts += 1;
        self.began_ms = self.began_ms.min(now.0);
        self.seen = [false; 3];
    }

    pub fn saw(&mut self, evidence: Evidence) {
        self.seen[evidence as usize] = true;
    }

    /// The connection has ended; what was seen over it counts no more.
    pub fn lost(&mut self) {
        self.seen = [false; 3];
    }

    /// Whether it ends now, and how.
    #[must_use]
    pub fn end(&self, now: Moment) -> Option<End> {
        if self.starts > STARTS_MAX {
            return Some(End::Failed("the agent started too often while these settings were on trial"));
        }
        if self.confirm == Confirm::Auto && self.seen == [true; 3] {
            return Some(End::Confirmed);
        }
        (now >= self.ends_at()).then(|| End::Failed(self.missing()))
    }

    /// When it ends at the latest.
    #[must_use]
    pub fn ends_at(&self) -> Moment {
        Moment(self.began_ms) + Duration::from_millis(self.length_ms)
    }

    /// What was missing when time ran out.
    fn missing(&self) -> &'static str {
        let [subscribed, reported, cloud_spoke] = self.seen;
        match (self.confirm, subscribed, reported, cloud_spoke) {
            (_, false, ..) => "no connection to the broker came about in time",
            (_, _, false, _) => "the broker did not acknowledge the device's report in time",
            (Confirm::Auto, _, _, false) => "no cloud answered over the new settings in time",
            (Confirm::Auto, _, _, true) => "not everything was seen in time",
            (Confirm::Operator, ..) => "no operator confirmed the settings in time",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: [Evidence; 3] = [Evidence::Subscribed, Evidence::Reported, Evidence::CloudSpoke];

    #[test]
    fn settings_are_kept_once_everything_was_seen_and_not_before() {
        let mut trial = Trial::begin(Moment(0), TRIAL, 7, Confirm::Auto);
        for evidence in ALL {
            assert_eq!(trial.end(Moment(1000)), None, "{evidence:?}");
            trial.saw(evidence);
        }
        assert_eq!(trial.end(Moment(1000)), Some(End::Confirmed));
    }

    #[test]
    fn time_ends_a_trial_whatever_was_seen_but_all() {
        for seen in [&[][..], &ALL[..1], &ALL[..2], &ALL[1..]] {
            let mut trial = Trial::begin(Moment(5), TRIAL, 7, Confirm::Auto);
            seen.iter().for_each(|evidence| trial.saw(*evidence));
            assert_eq!(trial.end(trial.ends_at() - Duration::from_millis(1)), None);
            assert!(matches!(trial.end(trial.ends_at()), Some(End::Failed(_))), "{seen:?}");
        }
    }

    #[test]
    fn an_operators_trial_needs_the_operator() {
        let mut trial = Trial::begin(Moment(0), TRIAL, 7, Confirm::Operator);
        ALL.into_iter().for_each(|evidence| trial.saw(evidence));
        assert_eq!(trial.end(Moment(0)), None);
        assert!(matches!(trial.end(trial.ends_at()), Some(End::Failed(reason)) if reason.contains("operator")));
    }

    #[test]
    fn what_a_lost_connection_showed_counts_no_more() {
        let mut trial = Trial::begin(Moment(0), TRIAL, 7, Confirm::Auto);
        trial.saw(Evidence::CloudSpoke);
        trial.lost();
        trial.saw(Evidence::Subscribed);
        trial.saw(Evidence::Reported);
        assert_eq!(trial.end(Moment(0)), None);
    }

    #[test]
    fn the_third_start_fails_it_even_when_the_clock_stands_still() {
        let mut trial = Trial::begin(Moment(1000), TRIAL, 7, Confirm::Auto);
        for start in 1..=STARTS_MAX + 1 {
            trial.started_again(Moment(0));
            assert_eq!(trial.end(Moment(0)).is_some(), start > STARTS_MAX, "start {start}");
        }
    }
}
