//! Notices that the broker has fallen silent while it owes acknowledgements.
//!
//! On a busy link nothing else shows it: every packet sent puts the keep-alive off, and a middlebox that still
//! acknowledges keeps TCP content.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Silence for so long, with an acknowledgement owed, is a broken link: an outage is seen within 45 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// What is on its way takes time by itself: the slowest link that is served has 16 kbit/s.
const BYTES_PER_S_MIN: u32 = 2_000;

/// Less than this tells the time of a round trip, not what the link carries.
const CARRIED_BYTES_MIN: usize = 16 * 1024;

/// What the broker owes on one connection.
#[derive(Debug)]
pub(super) struct Silence(Mutex<Owed>);

#[derive(Debug)]
struct Owed {
    publishes: usize,
    bytes: usize,
    /// The last sign of life, or when the first of these publishes began.
    since: Instant,
}

impl Silence {
    pub(super) fn new() -> Self {
        Self(Mutex::new(Owed { publishes: 0, bytes: 0, since: Instant::now() }))
    }

    /// A publish begins; the guard is its end.
    pub(super) fn owed(&self, bytes: usize) -> Debt<'_> {
        let ahead = self.with(|owed| {
            if owed.publishes == 0 {
                owed.since = Instant::now();
            }
            owed.publishes += 1;
            owed.bytes += bytes;
            owed.bytes
        });
        Debt { silence: self, bytes, ahead, since: Instant::now() }
    }

    /// Something came from the broker.
    pub(super) fn heard(&self) {
        self.with(|owed| owed.since = Instant::now());
    }

    /// Returns once the broker has been silent for too long.
    pub(super) async fn broken(&self) {
        loop {
            let until = self.with(|owed| owed.since + owed.silence_max());
            if self.with(|owed| owed.publishes > 0) && Instant::now() >= until {
                return;
            }
            let look = Instant::now() + Duration::from_secs(1);
            tokio::time::sleep_until(until.max(look)).await;
        }
    }

    fn with<T>(&self, f: impl FnOnce(&mut Owed) -> T) -> T {
        f(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Owed {
    fn silence_max(&self) -> Duration {
        silence_max(self.bytes)
    }
}

/// How long the other side may be silent while so many bytes are on their way to it.
pub(super) fn silence_max(bytes: usize) -> Duration {
    let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
    SILENCE_MAX + Duration::from_secs(u64::from(bytes / BYTES_PER_S_MIN))
}

/// One publish that is not acknowledged yet.
pub(super) struct Debt<'a> {
    silence: &'a Silence,
    bytes: usize,
    /// With what was on its way before it.
    ahead: usize,
    since: Instant,
}

impl Debt<'_> {
    /// Bytes per second that the link has carried, now that this is acknowledged; `None` if it was too little to tell.
    pub(super) fn carried(&self) -> Option<f64> {
        let enough = self.ahead >= CARRIED_BYTES_MIN;
        enough.then(|| self.ahead as f64 / self.since.elapsed().as_secs_f64().max(1e-3))
    }
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        self.silence.with(|owed| {
            owed.publishes -= 1;
            owed.bytes -= self.bytes;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How long after its start a publish of so many bytes, never answered, breaks the connection.
    async fn breaks_after(bytes: usize) -> Duration {
        let silence = Silence::new();
        let start = Instant::now();
        let _debt = silence.owed(bytes);
        silence.broken().await;
        start.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn an_unanswered_publish_breaks_the_connection_in_time_and_a_large_one_has_longer() {
        assert!(breaks_after(500).await <= Duration::from_secs(32));
        assert!(breaks_after(64 * 1024).await >= Duration::from_secs(60));
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_and_having_nothing_owed_keep_it() {
        let silence = Silence::new();
        drop(silence.owed(500));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, silence.broken()).await.is_err(), "nothing is owed");
        let _debt = silence.owed(500);
        let talking = async {
            for _ in 0..10 {
                tokio::time::sleep(SILENCE_MAX / 2).await;
                silence.heard();
            }
        };
        tokio::select! {
            () = silence.broken() => panic!("it was not silent"),
            () = talking => {}
        }
    }
}
