//! Tells systemd that the agent is ready, alive, and how it is.
//!
//! Alive means: the driver turns, and no model has worked on one sample for longer than its limit. A slow disk is none
//! of it: the log says so, and a restart would not make it faster. Without systemd all of it does nothing.

use std::cell::Cell;
use std::time::Duration;

use sd_notify::NotifyState;
use tokio::time::Instant;

use crate::inference::Judge;

/// Fed by the driver: systemd restarts the agent if the driver stops turning, or a model hangs.
pub(super) struct Watchdog {
    /// Half of what systemd allows; none if it does not watch.
    interval: Option<Duration>,
    fed: Cell<Instant>,
    judges: Vec<Judge>,
    /// Whether it was said that a model hangs.
    starving: Cell<bool>,
}

impl Watchdog {
    #[must_use]
    pub(super) fn from_environment(judges: Vec<Judge>) -> Self {
        let interval = sd_notify::watchdog_enabled().map(|allowed| allowed / 2);
        Self { interval, fed: Cell::new(Instant::now()), judges, starving: Cell::new(false) }
    }

    /// The driver must turn at least so often; no limit if systemd does not watch.
    #[must_use]
    pub(super) fn turn_within(&self) -> Duration {
        self.interval.unwrap_or(Duration::MAX)
    }

    /// The driver has turned once more.
    pub(super) fn turned(&self) {
        // Fed at most once a second, however busy the driver.
        if self.interval.is_some_and(|interval| self.fed.get().elapsed() >= interval.min(Duration::from_secs(1))) {
            self.fed.set(Instant::now());
            if self.judges.iter().any(Judge::hangs) {
                if !self.starving.replace(true) {
                    tracing::error!("a model hangs; systemd is no longer told that the agent is alive");
                }
            } else {
                self.starving.set(false);
                tell(&[NotifyState::Watchdog]);
            }
        }
    }
}

/// One line for `systemctl status`.
pub fn say(status: &str) {
    tell(&[NotifyState::Status(status)]);
}

/// Answers are being given.
pub fn ready() {
    tell(&[NotifyState::Ready]);
}

/// The process stays, so this is no stop to systemd; it has until the next start's first turn.
pub(super) fn restarting() {
    tell(&[NotifyState::Status("restarting"), NotifyState::Watchdog]);
}

pub fn stopping() {
    tell(&[NotifyState::Stopping]);
}

fn tell(state: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::debug!(%error, "systemd was not told");
    }
}
