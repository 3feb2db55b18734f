//! How many cases lie before the cloud without a word of it, learnt from how soon the word comes.
//!
//! When an outage ends, every device of a fleet has a backlog, and none knows of the others. If all sent what the window
//! allows, the broker would hold minutes of work, drop what is too much, and each device would ask about what lies in that
//! queue. So each begins with one case and has twice as many under way each time while the cloud keeps up, and half as many
//! when it falls behind: congestion avoidance by delay, as in TCP Vegas (Brakmo and Peterson, 1995). The delay is measured
//! from PUBACK on, so that the device's own slow link does not count.

use core::time::Duration;

use super::limits::OWED_MAX;
use crate::clock::Moment;

/// While the cloud's word takes no longer than this beyond the quickest one, it keeps up.
const KEEPS_UP: Duration = Duration::from_secs(1);

/// Beyond this it falls behind. Well below [`super::RECEIVED_WAIT`], after which it is asked.
const FALLS_BEHIND: Duration = Duration::from_secs(3);

#[derive(Debug, Clone)]
pub(super) struct Congestion {
    cases_max: usize,
    /// The shortest time from PUBACK to `received` on this connection: what broker and cloud take unhurried.
    quickest: Duration,
    /// Since when less may be under way than before: words on what was sent until then say nothing of how that does.
    since: Moment,
}

impl Congestion {
    /// Of a connection or a cloud of which nothing is known.
    pub(super) fn unknown(now: Moment) -> Self {
        Self { cases_max: 1, quickest: Duration::MAX, since: now }
    }

    /// How many cases may be before the cloud without a word of it.
    pub(super) fn cases_max(&self) -> usize {
        self.cases_max
    }

    /// The cloud has a case that was sent at `sent_at`, so long after the broker had it. Where not all were under way that
    /// may be, nobody knows how the cloud would do with more.
    pub(super) fn confirmed(&mut self, now: Moment, sent_at: Moment, took: Duration, used_up: bool) {
        if sent_at < self.since {
            return;
        }
        self.quickest = self.quickest.min(took);
        let behind = took - self.quickest;
        if behind > FALLS_BEHIND {
            self.halve(now, sent_at);
        } else if behind <= KEEPS_UP && used_up {
            self.cases_max = (self.cases_max + 1).min(OWED_MAX);
        }
    }

    /// Once for all that was under way together.
    pub(super) fn halve(&mut self, now: Moment, sent_at: Moment) {
        if sent_at >= self.since {
            self.cases_max = (self.cases_max / 2).max(1);
            self.since = now;
        }
    }
}

#[cfg(test)]
impl super::Uplink {
    /// As after a while with a cloud that keeps up.
    pub(crate) fn trusting(mut self) -> Self {
        self.trust();
        self
    }

    pub(crate) fn trust(&mut self) {
        self.congestion.cases_max = OWED_MAX;
    }
}
