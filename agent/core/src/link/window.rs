//! Decides when a radio that is to rest is used.
//!
//! ```text
//!  |<---------- every ---------->|
//!  opens ── first connection ── open later ── rests ── opens
//! ```
//!
//! A window without a connection is over `open` after it began; with one, `open` after the first connection, so that a
//! slow dial does not shorten the stay. Settings on trial hold it open to their end.

use core::time::Duration;

use crate::clock::Moment;

/// When a device that rests its radio uses it. In between it neither dials nor stays connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Windows {
    /// From the beginning of one to that of the next.
    pub every: Duration,
    /// How long a connection stays, and how long dialling is tried.
    pub open: Duration,
}

/// The present window, or the last one.
#[derive(Debug)]
pub(super) struct Window {
    opened_at: Moment,
    /// The first connection in it.
    met_at: Option<Moment>,
    held_until: Option<Moment>,
}

impl Window {
    pub(super) fn open(now: Moment) -> Self {
        Self { opened_at: now, met_at: None, held_until: None }
    }

    /// Begins anew; those that follow are counted from here.
    pub(super) fn reopen(&mut self, now: Moment) {
        (self.opened_at, self.met_at) = (now, None);
    }

    /// Stays open until then, or no longer than usual. Says whether it was held open before.
    pub(super) fn hold(&mut self, until: Option<Moment>) -> bool {
        core::mem::replace(&mut self.held_until, until).is_some()
    }

    pub(super) fn dialled(&mut self, now: Moment, windows: Windows) {
        let begun = self.begun(now, windows);
        if begun > self.opened_at {
            self.reopen(begun);
        }
    }

    pub(super) fn connected(&mut self, now: Moment) {
        self.met_at.get_or_insert(now);
    }

    /// There was a connection in it.
    pub(super) fn has_met(&self) -> bool {
        self.met_at.is_some()
    }

    pub(super) fn ends(&self, windows: Windows) -> Moment {
        (self.met_at.unwrap_or(self.opened_at) + windows.open).max(self.held_until.unwrap_or_default())
    }

    /// The beginning of the first one after `now`.
    pub(super) fn next(&self, now: Moment, windows: Windows) -> Moment {
        self.begun(now, windows) + windows.every
    }

    /// When the last one began before `now`, had none been missed.
    fn begun(&self, now: Moment, windows: Windows) -> Moment {
        let (passed, every) = (now.since(self.opened_at).as_millis(), windows.every.as_millis());
        let whole = passed.checked_div(every).map_or(0, |times| times * every);
        self.opened_at + Duration::from_millis(u64::try_from(whole).unwrap_or(0))
    }
}
