//! Reads the clocks: the powered clock for decisions, the wall clock for people.
//!
//! The powered clock is a total carried over boots plus `CLOCK_BOOTTIME`. It never runs backwards: a total
//! that was not saved before a power cut only makes the clock lag by what was not saved.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use hedge_core::clock::Moment;
use hedge_proto::Captured;
use rustix::time::{ClockId, clock_gettime};
use serde::{Deserialize, Serialize};

/// A point of the powered clock, tied to the boot it was read in. What the state file keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClockMark {
    pub powered_ms: u64,
    pub boot: String,
    pub boottime_ms: u64,
}

/// The device's clocks. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Clock {
    boot: String,
    /// The powered clock's value when `CLOCK_BOOTTIME` was 0 in this boot.
    powered_at_boot_ms: u64,
}

impl Clock {
    /// Goes on from the last saved mark, and never behind `latest`, the newest moment found on disk.
    #[must_use]
    pub fn resume(mark: &ClockMark, latest: Moment) -> Self {
        Self::resume_at(mark, latest, boot_id(), boottime_ms())
    }

    fn resume_at(mark: &ClockMark, latest: Moment, boot: String, boottime_ms: u64) -> Self {
        let off_since_mark = if mark.boot == boot { mark.boottime_ms } else { 0 };
        let from_mark = mark.powered_ms + boottime_ms.saturating_sub(off_since_mark);
        let now_ms = from_mark.max(latest.0);
        Self { boot, powered_at_boot_ms: now_ms.saturating_sub(boottime_ms) }
    }

    #[must_use]
    pub fn now(&self) -> Moment {
        Moment(self.powered_at_boot_ms + boottime_ms())
    }

    #[must_use]
    pub fn mark(&self) -> ClockMark {
        let boottime_ms = boottime_ms();
        ClockMark { powered_ms: self.powered_at_boot_ms + boottime_ms, boot: self.boot.clone(), boottime_ms }
    }

    /// When a sample is taken: now.
    #[must_use]
    pub fn captured(&self) -> Captured {
        Captured { powered_ms: self.now().0, boot: self.boot.clone(), wall_ms: wall_ms(), synced: wall_is_synced() }
    }
}

fn boottime_ms() -> u64 {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let millis = u64::try_from(now.tv_nsec / 1_000_000).unwrap_or(0);
    seconds * 1000 + millis
}

/// Names this boot; the same for every process until the next one.
fn boot_id() -> String {
    // Without /proc a process is its own boot: the powered clock then lags, it never jumps.
    std::fs::read_to_string("/proc/sys/kernel/random/boot_id")
        .map_or_else(|_| format!("process-{}", std::process::id()), |id| id.trim().to_owned())
}

/// Milliseconds since 1970 by the wall clock, for people and for the dates of certificates.
pub(crate) fn wall_ms() -> Option<u64> {
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the wall clock; for people only")]
    let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH).ok()?;
    u64::try_from(since_1970.as_millis()).ok()
}

/// systemd-timesyncd leaves this file once the clock has been set from the network in this boot.
fn wall_is_synced() -> bool {
    std::path::Path::new("/run/systemd/timesync/synchronized").exists()
}

/// How often the mark is saved while cases wait: a cut loses at most so much ageing.
pub const MARK_INTERVAL: Duration = Duration::from_secs(600);

#[cfg(test)]
mod tests {
    use super::*;

    fn mark(powered_ms: u64, boot: &str, boottime_ms: u64) -> ClockMark {
        ClockMark { powered_ms, boot: boot.into(), boottime_ms }
    }

    #[track_caller]
    fn check(mark: &ClockMark, latest: u64, boottime_ms: u64, expected_ms: u64) {
        let clock = Clock::resume_at(mark, Moment(latest), "b2".into(), boottime_ms);
        assert_eq!(clock.powered_at_boot_ms + boottime_ms, expected_ms);
    }

    #[test]
    fn a_restart_in_the_same_boot_loses_no_time() {
        check(&mark(5_000, "b2", 1_000), 0, 1_700, 5_700);
    }

    #[test]
    fn time_switched_off_does_not_pass_but_time_since_power_on_does() {
        check(&mark(5_000, "b1", 900_000), 0, 300, 5_300);
    }

    #[test]
    fn it_never_runs_behind_what_the_disk_has_seen() {
        check(&mark(5_000, "b1", 1_000), 9_000, 300, 9_000);
        check(&ClockMark::default(), 9_000, 300, 9_000);
    }
}
