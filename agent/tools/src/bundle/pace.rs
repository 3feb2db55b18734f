//! How fast a bundle may come, and how much of it has.

use std::io::Write as _;
use std::num::NonZeroU64;
use std::time::Duration;

use tokio::time::Instant;

/// How many bytes come before it is said that they have.
const SAID_EVERY: u64 = 16 * 1024;

/// Keeps what comes to a rate, and says how much has come: whoever started this process counts it.
pub(super) struct Pace {
    bytes_per_s: NonZeroU64,
    came: u64,
    said: u64,
    /// Of the whole bundle, once that is known.
    pub(super) expected: u64,
    /// When the next byte is due.
    pub(super) due: Instant,
}

impl Pace {
    pub(super) fn new(bytes_per_s: NonZeroU64) -> Self {
        Self { bytes_per_s, came: 0, said: 0, expected: 0, due: Instant::now() }
    }

    pub(super) fn count(&mut self, bytes: u64) -> std::io::Result<()> {
        self.came += bytes;
        let takes = Duration::from_secs_f64(bytes as f64 / self.bytes_per_s.get() as f64);
        // What was not used of the rate is not made up for.
        self.due = self.due.max(Instant::now()) + takes;
        if self.came - self.said < SAID_EVERY { Ok(()) } else { self.say() }
    }

    fn say(&mut self) -> std::io::Result<()> {
        self.said = self.came;
        // Also tells that whoever counts has gone.
        let mut out = std::io::stdout();
        writeln!(out, "came       {} of {} bytes", self.came, self.expected)?;
        out.flush()
    }
}

impl Drop for Pace {
    fn drop(&mut self) {
        // Little comes of a server that has nothing, however often it is asked: it counts all the same.
        drop(self.say());
    }
}
