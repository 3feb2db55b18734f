//! How often somebody may try to log in.
//!
//! Counted by address and name together, so that who tries a name from elsewhere never keeps its owner out; and by
//! address alone, against one that tries many names. A few tries are free; then each failure doubles a wait, up to a
//! minute. Nothing tried meanwhile counts, so a wait always ends.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A mistyped password and a forgotten one.
const FREE_OF_NAME: u32 = 5;

/// An office behind one address.
const FREE_OF_ADDRESS: u32 = 30;

const WAIT_MAX: Duration = Duration::from_secs(60);

/// Failures are forgotten after this long without another.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(15 * 60);

/// How many addresses and names are remembered: a megabyte.
const REMEMBERED_MAX: usize = 10_000;

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
enum Key {
    Name(Option<IpAddr>, String),
    Address(IpAddr),
}

struct Failures {
    count: u32,
    last: Instant,
}

impl Failures {
    fn wait(&self, free: u32, now: Instant) -> Option<Duration> {
        let exponent = self.count.checked_sub(free)?;
        let wait = Duration::from_secs(1 << exponent.min(6)).min(WAIT_MAX);
        (self.last + wait).checked_duration_since(now).filter(|left| !left.is_zero())
    }
}

#[derive(Default)]
pub(super) struct Attempts(Mutex<HashMap<Key, Failures>>);

impl Attempts {
    /// Counts a try as failed until [`Self::succeeded`], or says how long to wait before the next. `address` is `None`
    /// for this machine itself: behind it is everybody that a proxy lets through.
    pub(super) fn begin(&self, address: Option<IpAddr>, name: &str, now: Instant) -> Result<(), Duration> {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let keys = keys(address, name);
        let waits = keys.iter().filter_map(|(key, free)| all.get(key)?.wait(*free, now));
        if let Some(wait) = waits.max() {
            return Err(wait);
        }
        if all.len() + keys.len() > REMEMBERED_MAX {
            all.retain(|_, failures| now - failures.last < FORGOTTEN_AFTER);
        }
        for (key, _) in keys {
            if all.len() >= REMEMBERED_MAX && !all.contains_key(&key) {
                let oldest = all.iter().min_by_key(|(_, failures)| failures.last).map(|(key, _)| key.clone());
                oldest.and_then(|key| all.remove(&key));
            }
            let failures = all.entry(key).or_insert(Failures { count: 0, last: now });
            if now - failures.last >= FORGOTTEN_AFTER {
                failures.count = 0;
            }
            failures.count += 1;
            failures.last = now;
        }
        Ok(())
    }

    /// What came before is forgiven to this name; the address has one failure less.
    pub(super) fn succeeded(&self, address: Option<IpAddr>, name: &str) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, _) in keys(address, name) {
            match key {
                Key::Name(..) => drop(all.remove(&key)),
                Key::Address(_) => {
                    if let Some(failures) = all.get_mut(&key) {
                        failures.count = failures.count.saturating_sub(1);
                    }
                }
            }
        }
    }
}

fn keys(address: Option<IpAddr>, name: &str) -> Vec<(Key, u32)> {
    let of_name = (Key::Name(address, name.chars().take(64).collect()), FREE_OF_NAME);
    let of_address = address.map(|address| (Key::Address(address), FREE_OF_ADDRESS));
    [Some(of_name), of_address].into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const HERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1)));
    const ELSEWHERE: Option<IpAddr> = Some(IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 2)));

    /// How many tries are let through in so many seconds, ten a second.
    fn let_through(attempts: &Attempts, now: Instant, seconds: u64) -> usize {
        let at = |tenth: u64| now + Duration::from_millis(100 * tenth);
        (0..10 * seconds).filter(|tenth| attempts.begin(HERE, "ann", at(*tenth)).is_ok()).count()
    }

    #[test]
    fn who_guesses_waits_longer_and_longer_and_never_for_ever() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        assert_eq!(let_through(&attempts, now, 60), 10, "five, and after 1, 2, 4, 8 and 16 seconds");
        let wait = attempts.begin(HERE, "ann", now + Duration::from_secs(60)).expect_err("a wait");
        assert!(wait <= WAIT_MAX);
        let (later, hour) = (now + Duration::from_secs(60) + wait, 60 * 60);
        assert!((55..=65).contains(&let_through(&attempts, later, hour)), "one a minute");
    }

    #[test]
    fn the_right_person_elsewhere_is_not_kept_out() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let_through(&attempts, now, 60);
        let later = now + Duration::from_secs(60);
        assert!(attempts.begin(HERE, "ann", later).is_err());
        assert_eq!(attempts.begin(ELSEWHERE, "ann", later), Ok(()));
        attempts.succeeded(ELSEWHERE, "ann");
        assert!((0..4).all(|_| attempts.begin(ELSEWHERE, "ann", later).is_ok()), "what came before is forgiven");
    }

    #[test]
    fn one_address_with_many_names_waits_and_memory_stays_bounded() {
        let (attempts, now) = (Attempts::default(), Instant::now());
        let tries = (0..100).filter(|n| attempts.begin(HERE, &format!("user-{n}"), now).is_ok()).count();
        assert_eq!(tries, FREE_OF_ADDRESS as usize);
        for n in 0..2 * REMEMBERED_MAX {
            let address = IpAddr::from(u32::try_from(n).expect("few").to_be_bytes());
            attempts.begin(Some(address), "ann", now).expect("another address");
        }
        assert!(attempts.0.lock().expect("free").len() <= REMEMBERED_MAX);
    }
}
