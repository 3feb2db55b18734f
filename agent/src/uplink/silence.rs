//! Notices that the broker has fallen silent while it owes acknowledgements.
//!
//! They come in the order of the publishes, so it is the first of those that the next sign of life waits for.
//!
//! On a busy link nothing else shows it: every packet sent puts the keep-alive off, and a middlebox that still
//! acknowledges keeps TCP content.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Silence for so long, with an acknowledgement owed, is a broken link: an outage is seen within 45 s.
const SILENCE_MAX: Duration = Duration::from_secs(30);

/// However much else comes, a publish without its acknowledgement for so long is lost to the broker: they come in order.
/// The case in it would be stuck, and its place taken, for as long as the connection lasts.
const UNANSWERED_MAX: Duration = Duration::from_secs(120);

/// What is on its way takes time by itself: the slowest link that is served has 16 kbit/s.
const BYTES_PER_S_MIN: f64 = 2_000.0;

/// A link may become so much slower than it was a moment ago without counting as broken.
const SLOWER_MAX: f64 = 8.0;

/// Less than this tells the time of a round trip, not what the link carries.
const CARRIED_BYTES_MIN: usize = 16 * 1024;

/// What the broker owes on one connection.
#[derive(Debug)]
pub(super) struct Silence(Mutex<Owed>);

#[derive(Debug)]
struct Owed {
    /// By its number.
    publishes: BTreeMap<u64, Publish>,
    next: u64,
    bytes: usize,
    /// The last sign of life, or when the first of these publishes began.
    since: Instant,
    /// What the link carried at least when the last publish was acknowledged.
    bytes_per_s: f64,
}

#[derive(Debug, Clone, Copy)]
struct Publish {
    bytes: usize,
    /// With what was on its way before it.
    ahead: usize,
    since: Instant,
}

impl Silence {
    pub(super) fn new() -> Self {
        let owed = Owed { publishes: BTreeMap::new(), next: 0, bytes: 0, since: Instant::now(), bytes_per_s: 0.0 };
        Self(Mutex::new(owed))
    }

    /// A publish begins; the guard is its end.
    pub(super) fn owed(&self, bytes: usize) -> Debt<'_> {
        let since = Instant::now();
        self.with(|owed| {
            if owed.publishes.is_empty() {
                owed.since = since;
            }
            let number = owed.next;
            owed.next += 1;
            owed.bytes += bytes;
            let publish = Publish { bytes, ahead: owed.bytes, since };
            owed.publishes.insert(number, publish);
            Debt { silence: self, number, publish }
        })
    }

    /// Something came from the broker.
    pub(super) fn heard(&self) {
        self.with(|owed| owed.since = Instant::now());
    }

    /// Returns once the broker has been silent for too long.
    pub(super) async fn broken(&self) {
        loop {
            let until = self.with(|owed| owed.until());
            if self.with(|owed| !owed.publishes.is_empty()) && Instant::now() >= until {
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
    /// When the connection is given up, if nothing comes.
    fn until(&self) -> Instant {
        let first = self.publishes.first_key_value().map(|(_, first)| *first);
        let silent = self.since + silence_max(first.map_or(0, |first| first.bytes), self.bytes_per_s / SLOWER_MAX);
        let unanswered = |first: Publish| {
            first.since + UNANSWERED_MAX + Duration::from_secs_f64(first.ahead as f64 / BYTES_PER_S_MIN)
        };
        first.map(unanswered).map_or(silent, |unanswered| silent.min(unanswered))
    }
}

/// How long the other side may be silent while so many bytes are on their way to it, if the link carries so many a
/// second or as few as any link that is served.
pub(super) fn silence_max(bytes: usize, bytes_per_s: f64) -> Duration {
    SILENCE_MAX + Duration::from_secs_f64(bytes as f64 / bytes_per_s.max(BYTES_PER_S_MIN))
}

/// One publish that is not acknowledged yet.
pub(super) struct Debt<'a> {
    silence: &'a Silence,
    number: u64,
    publish: Publish,
}

impl Debt<'_> {
    /// It is acknowledged. Returns the bytes per second that the link has carried; `None` if it was too little to tell.
    pub(super) fn paid(&self) -> Option<f64> {
        let Publish { ahead, since, .. } = self.publish;
        let bytes_per_s = ahead as f64 / since.elapsed().as_secs_f64().max(1e-3);
        self.silence.with(|owed| owed.bytes_per_s = bytes_per_s);
        (ahead >= CARRIED_BYTES_MIN).then_some(bytes_per_s)
    }
}

impl Drop for Debt<'_> {
    fn drop(&mut self) {
        self.silence.with(|owed| {
            owed.publishes.remove(&self.number);
            owed.bytes -= self.publish.bytes;
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
    async fn what_waits_behind_the_first_publish_gives_no_more_time() {
        let silence = Silence::new();
        let _debts: Vec<_> = (0..300).map(|_| silence.owed(1_200)).collect();
        let start = Instant::now();
        silence.broken().await;
        assert!(start.elapsed() <= Duration::from_secs(32));
    }

    #[tokio::test(start_paused = true)]
    async fn on_a_link_known_to_be_fast_a_large_publish_has_little_longer() {
        let silence = Silence::new();
        let small = silence.owed(1_200);
        tokio::time::advance(Duration::from_millis(10)).await;
        assert_eq!(small.paid(), None, "too little to tell");
        drop(small);
        let _debt = silence.owed(64 * 1024);
        let start = Instant::now();
        silence.broken().await;
        assert!(start.elapsed() <= Duration::from_secs(36));
    }

    #[tokio::test(start_paused = true)]
    async fn a_publish_that_is_never_acknowledged_breaks_the_connection_however_much_else_comes() {
        let silence = Silence::new();
        let _debt = silence.owed(500);
        let start = Instant::now();
        let talking = async {
            loop {
                tokio::time::sleep(Duration::from_secs(1)).await;
                silence.heard();
                drop(silence.owed(500)); // acknowledged
            }
        };
        tokio::select! {
            () = silence.broken() => {}
            () = talking => {}
            () = tokio::time::sleep(Duration::from_secs(600)) => panic!("it is kept for ever"),
        }
        assert!(start.elapsed() >= UNANSWERED_MAX && start.elapsed() <= UNANSWERED_MAX + SILENCE_MAX);
    }

    #[tokio::test(start_paused = true)]
    async fn signs_of_life_and_having_nothing_owed_keep_it() {
        let silence = Silence::new();
        drop(silence.owed(500));
        let hour = Duration::from_secs(3600);
        assert!(tokio::time::timeout(hour, silence.broken()).await.is_err(), "nothing is owed");
        let _debt = silence.owed(500);
        let talking = async {
            for _ in 0..6 {
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
