//! Reads the clocks: the powered clock for decisions, the wall clock for people.
//!
//! The powered clock is a total carried over boots plus `CLOCK_BOOTTIME`. It never runs backwards: a total
//! that was not saved before a power cut only makes the clock lag by what was not saved.

use std::process::Stdio;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_identity::wall_ms;
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
        // No device has been switched on for so long: bits of the file have changed, and sums must not overflow.
        let damaged = mark.powered_ms > POWERED_MS_MAX;
        let mark = if damaged { &ClockMark::default() } else { mark };
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

/// A thousand years.
const POWERED_MS_MAX: u64 = 1000 * 365 * 24 * 3600 * 1000;

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

/// Whether the clock has been set from the network in this boot: by systemd-timesyncd, which leaves a file, or by any
/// other service, as the kernel told when it was last asked.
pub fn wall_is_synced() -> bool {
    std::path::Path::new("/run/systemd/timesync/synchronized").exists() || SYNCED.load(Ordering::Relaxed)
}

/// What the kernel told last.
static SYNCED: AtomicBool = AtomicBool::new(false);

/// When the kernel is asked next, on the clock of this boot.
static ASK_AT_MS: AtomicU64 = AtomicU64::new(0);

/// How often it is asked: often until it says yes, then rarely.
const ASK_AGAIN_MS: (u64, u64) = (60_000, 3_600_000);

/// Longer than systemd takes to start the service that knows.
const ASK_WAIT_MAX: Duration = Duration::from_secs(10);

/// Asks the kernel, if it is time, whether chrony, ntpd or another service keeps the clock.
///
/// Only `adjtimex` tells, and a unit with `ProtectClock` may not call it; systemd's time service may, and says so on
/// the system bus. Where there is neither, a clock that is right counts as unknown.
pub async fn synced_from_outside() {
    let now_ms = boottime_ms();
    if now_ms < ASK_AT_MS.load(Ordering::Relaxed) {
        return;
    }
    let synced = kernel_says_synced().await;
    SYNCED.store(synced, Ordering::Relaxed);
    let (unsynced_ms, synced_ms) = ASK_AGAIN_MS;
    ASK_AT_MS.store(now_ms + if synced { synced_ms } else { unsynced_ms }, Ordering::Relaxed);
}

async fn kernel_says_synced() -> bool {
    const PROPERTY: [&str; 6] = [
        "--system",
        "get-property",
        "org.freedesktop.timedate1",
        "/org/freedesktop/timedate1",
        "org.freedesktop.timedate1",
        "NTPSynchronized",
    ];
    if !std::path::Path::new("/run/systemd/system").exists() {
        return false;
    }
    let mut asking = tokio::process::Command::new("busctl");
    asking.args(PROPERTY).stdin(Stdio::null()).kill_on_drop(true);
    match tokio::time::timeout(ASK_WAIT_MAX, asking.output()).await {
        Ok(Ok(output)) => output.stdout.starts_with(b"b true"),
        Ok(Err(_)) | Err(_) => false,
    }
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

    #[test]
    fn a_mark_that_cannot_be_is_none() {
        check(&mark(u64::MAX, "b1", 1_000), 9_000, 300, 9_000);
        check(&mark(u64::MAX - 5, "b2", 0), 0, 300, 300);
    }
}
