//! Whose messages are looked at now. A device that was told to wait, or that sends more than any device has reason to,
//! is turned away before anything of its message is read; it is told `busy`, and nothing of it is lost.
//!
//! What a device may send besides new cases is a bucket that fills again by itself. New cases cost nothing: how many of
//! them are taken is up to [`super::lanes`].

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use hedge_proto::DeviceId;

use super::decide::BUSY_S;

/// How many things a device may send at once that are no new case: repetitions, wrong cases, ids it asks about (sixteen
/// of them count as one), words about itself.
const THINGS_MAX: u32 = 128;

/// How many more a second. A device that keeps to its side of the wire has a few a minute.
const THINGS_PER_S: u32 = 8;

/// The shortest time between two `busy` to one device.
const TOLD_EVERY: Duration = Duration::from_secs(1);

/// How many devices are kept in mind before those that have been quiet are forgotten.
const DEVICES_MAX: usize = 100_000;

/// Which devices are shut out. Clones share it: the link turns their messages away where they come in, which costs
/// less than a broker takes to pass them on. Otherwise a flood would stand before everybody else's in its queue.
#[derive(Debug, Clone, Default)]
pub struct Shut(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    until: Mutex<HashMap<DeviceId, Out>>,
    turned_away: AtomicU64,
}

#[derive(Debug, Clone, Copy)]
struct Out {
    until: Instant,
    told: Instant,
}

/// What becomes of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Admission {
    In,
    Away,
    /// Its sender has not been told for a while.
    AwayAndTold,
}

impl Shut {
    #[must_use]
    pub fn way(&self, device: &DeviceId, now: Instant) -> Admission {
        let mut devices = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(out) = devices.get_mut(device) else { return Admission::In };
        if out.until <= now {
            devices.remove(device);
            return Admission::In;
        }
        self.0.turned_away.fetch_add(1, Ordering::Relaxed);
        if now.saturating_duration_since(out.told) < TOLD_EVERY {
            return Admission::Away;
        }
        out.told = now;
        Admission::AwayAndTold
    }

    /// For as long as it is told to wait; it is being told so now. `false`: it is shut out already.
    fn out(&self, device: &DeviceId, now: Instant) -> bool {
        let mut devices = self.0.until.lock().unwrap_or_else(PoisonError::into_inner);
        if devices.get(device).is_some_and(|out| out.until > now) {
            return false;
        }
        if devices.len() >= DEVICES_MAX {
            devices.retain(|_, out| out.until > now);
        }
        devices.insert(device.clone(), Out { until: now + Duration::from_secs(BUSY_S.into()), told: now });
        true
    }

    /// How many messages were turned away since this was asked last.
    pub(super) fn take_turned_away(&self) -> u64 {
        self.0.turned_away.swap(0, Ordering::Relaxed)
    }
}

#[derive(Debug, Default)]
pub(super) struct Gate {
    pub(super) shut: Shut,
    devices: HashMap<DeviceId, Seen>,
}

#[derive(Debug, Clone, Copy)]
struct Seen {
    /// How much of [`THINGS_MAX`] is used up, as of `at`.
    used: u32,
    at: Instant,
}

impl Seen {
    fn refill(&mut self, now: Instant) {
        let whole_s = now.saturating_duration_since(self.at).as_secs();
        self.at += Duration::from_secs(whole_s);
        let back = u32::try_from(whole_s).unwrap_or(u32::MAX).saturating_mul(THINGS_PER_S);
        self.used = self.used.saturating_sub(back);
    }
}

impl Gate {
    pub(super) fn new(shut: Shut) -> Self {
        Self { shut, devices: HashMap::new() }
    }

    /// Takes nothing more of this device for as long as it was told to wait.
    pub(super) fn shut_out(&mut self, device: &DeviceId, now: Instant, why: &str) {
        if self.shut.out(device, now) {
            tracing::warn!(%device, "{why}; it is told to wait, and turned away for {BUSY_S} s");
        }
    }

    /// The device has sent so many things that are no new case. `false`: that were too many, and it is shut out.
    pub(super) fn charge(&mut self, device: &DeviceId, things: u32, now: Instant) -> bool {
        let seen = self.seen(device, now);
        seen.refill(now);
        seen.used = seen.used.saturating_add(things).min(2 * THINGS_MAX);
        let too_many = seen.used > THINGS_MAX;
        if too_many {
            self.shut_out(device, now, "it sends more than its share of what is no new case");
        }
        !too_many
    }

    fn seen(&mut self, device: &DeviceId, now: Instant) -> &mut Seen {
        if self.devices.len() >= DEVICES_MAX && !self.devices.contains_key(device) {
            self.devices.retain(|_, seen| {
                seen.refill(now);
                seen.used > 0
            });
        }
        self.devices.entry(device.clone()).or_insert(Seen { used: 0, at: now })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_sends_more_than_any_device_has_reason_to_is_shut_out_for_a_while_and_nobody_else() {
        let (evil, good) = (DeviceId::new("evil").expect("valid"), DeviceId::new("good").expect("valid"));
        let (mut gate, start) = (Gate::default(), Instant::now());
        let taken = (0..10_000).take_while(|_| gate.charge(&evil, 1, start)).count();
        assert_eq!(taken, THINGS_MAX as usize);
        assert_eq!((gate.charge(&good, 1, start), gate.shut.way(&good, start)), (true, Admission::In));
        let ways = [0, 1, 1_000, 1_001].map(|ms| gate.shut.way(&evil, start + Duration::from_millis(ms)));
        assert_eq!(ways, [Admission::Away, Admission::Away, Admission::AwayAndTold, Admission::Away]);
        assert_eq!((gate.shut.take_turned_away(), gate.shut.take_turned_away()), (4, 0));
        let later = start + Duration::from_secs(u64::from(BUSY_S));
        assert_eq!((gate.shut.way(&evil, later), gate.charge(&evil, 1, later)), (Admission::In, true));
        // A device that keeps to its side is never shut out.
        for s in 0..1_000 {
            assert!(gate.charge(&good, THINGS_PER_S, start + Duration::from_secs(s)));
        }
    }
}
