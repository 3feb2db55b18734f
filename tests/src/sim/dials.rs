//! Watches when the device dials: its waits grow until a connection has lasted, and there are only so many.

use std::collections::VecDeque;
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_core::engine::Event;
use hedge_core::link::{DIALS_AT_ONCE, Profile, STABLE_AFTER};

use super::oracle::{Checked, broken};

/// After so much trouble the wait is a quarter of it, and half of that by chance; a connection that does not last takes
/// eight times its length off.
const SHARE: u32 = 4;
const HELD_COUNTS: u32 = 8;

/// What a task may be late.
const LATE: Duration = Duration::from_millis(5);

#[derive(Debug, Default)]
pub(super) struct Dials {
    /// Within the last hour.
    at: VecDeque<Moment>,
    /// Since the last connection that lasted.
    trouble_since: Moment,
    /// How long those after it lasted together.
    held: Duration,
    connected_at: Option<Moment>,
    lost_at: Option<Moment>,
    /// Another network, or a connection that the device ended itself, is a reason to dial sooner.
    other_network: bool,
    left: bool,
}

impl Dials {
    pub(super) fn new(now: Moment) -> Self {
        Self { trouble_since: now, ..Self::default() }
    }

    pub(super) fn hears(&mut self, now: Moment, event: &Event) {
        match event {
            Event::Connected { .. } => self.connected_at = Some(now),
            Event::Disconnected(_) => {
                let held = self.connected_at.take().map_or(Duration::ZERO, |at| now.since(at));
                if held >= STABLE_AFTER {
                    (self.trouble_since, self.held) = (now, Duration::ZERO);
                } else {
                    self.held += held;
                }
                (self.lost_at, self.other_network) = (Some(now), std::mem::take(&mut self.left));
            }
            Event::NetworkChanged => self.other_network = true,
            _ => {}
        }
    }

    /// The device ends its connection, for another one.
    pub(super) fn leaves(&mut self) {
        self.left = true;
    }

    pub(super) fn dials(&mut self, now: Moment, profile: &Profile) -> Checked {
        self.at.push_back(now);
        for period in [Duration::from_secs(60), Duration::from_secs(3_600)] {
            self.are_few(now, period, profile)?;
        }
        while self.at.front().is_some_and(|at| now.since(*at) >= Duration::from_secs(3_600)) {
            self.at.pop_front();
        }
        self.waits_grow(now, profile)
    }

    /// Some at once, and in the long run one in a quarter of the longest wait: six a minute on a LAN.
    fn are_few(&self, now: Moment, period: Duration, profile: &Profile) -> Checked {
        let dials = self.at.iter().filter(|at| now.since(**at) < period).count();
        let in_the_long_run = period.div_duration_f64(profile.dial_wait_max / SHARE);
        #[expect(clippy::cast_precision_loss, reason = "a handful")]
        let few = dials as f64 <= f64::from(DIALS_AT_ONCE) + in_the_long_run + 1.0;
        if few {
            return Ok(());
        }
        broken("dials are bounded, whatever ends the connections", format!("{dials} in {} s", period.as_secs()))
    }

    fn waits_grow(&self, now: Moment, profile: &Profile) -> Checked {
        let Some(lost_at) = self.lost_at.filter(|_| !self.other_network && profile.windows.is_none()) else {
            return Ok(());
        };
        let trouble = lost_at.since(self.trouble_since).saturating_sub(self.held * HELD_COUNTS);
        let least = (trouble / SHARE).clamp(Duration::from_secs(1), profile.dial_wait_max) / 2;
        let waited = now.since(lost_at);
        if waited + LATE >= least {
            return Ok(());
        }
        let text = format!("{} ms after the last loss, in {} s of trouble", waited.as_millis(), trouble.as_secs());
        broken("waits between dials grow until a connection has lasted", text)
    }
}
