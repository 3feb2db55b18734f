//! Decides when a sink is offered again what it has not taken.
//!
//! Bringing it there, and what becomes of it in the end, is up to the agent's `verdict`.
//!
//! ```text
//!      taken: at once            refused: that one waits alone (2 s, doubling to 5 min)
//!          ┌──────────▶ the next is offered ◀──────────┐
//!          └────────────────┐   │   ┌──────────────────┘
//!                           │   │ the sink is away, or has refused three in a row
//!                           │   ▼
//!                           one is offered after 100 ms, doubling to a minute
//! ```
//! A sink cannot say whether it refuses this one delivery or all of them: the same status answers a body it cannot read
//! and a token that is being changed. So one that is never taken holds up no other, and a sink that takes nothing is not
//! offered all that waits.

use alloc::collections::BTreeMap;
use core::time::Duration;

use crate::clock::{Moment, doubled};

/// The first wait for a sink that is away. Short, because one that fails every so often must still take more than the
/// cloud can answer.
pub const SINK_WAIT_MIN: Duration = Duration::from_millis(100);

/// The longest wait for a sink: one that is back is served within it.
pub const SINK_WAIT_MAX: Duration = Duration::from_secs(60);

/// The first and the longest wait of one delivery that was refused. The waits double, so that a refusal that lasted an
/// hour costs a few requests, and a corrected one is noticed after about as long as it lasted.
const ASIDE_WAIT_MIN: Duration = Duration::from_secs(2);
pub const ASIDE_WAIT_MAX: Duration = Duration::from_secs(300);

/// A sink that has refused so many in a row takes nothing now.
const REFUSED_IN_A_ROW_MAX: u32 = 3;

/// Deliveries that are made ready for a sink that may take none of them. What is made ready is read from the disk.
const AT_ONCE_MIN: usize = 8;

/// Deliveries that wait alone. Of more the one whose turn is next is offered at once.
const ASIDE_MAX: usize = 1024;

/// How patient to be with one sink. `K` names a delivery.
#[derive(Debug)]
pub struct Patience<K> {
    wait: Duration,
    refused_in_a_row: u32,
    taken_in_a_row: usize,
    aside: BTreeMap<K, Aside>,
}

#[derive(Debug, Clone, Copy)]
struct Aside {
    until: Moment,
    wait: Duration,
}

impl<K> Default for Patience<K> {
    fn default() -> Self {
        Self { wait: SINK_WAIT_MIN, refused_in_a_row: 0, taken_in_a_row: 0, aside: BTreeMap::new() }
    }
}

impl<K: Ord + Copy> Patience<K> {
    /// Whether it is this delivery's turn.
    #[must_use]
    pub fn may_offer(&self, delivery: K, now: Moment) -> bool {
        self.aside.get(&delivery).is_none_or(|aside| aside.until <= now)
    }

    /// How many deliveries are made ready at once: as many as the sink has taken in a row, so that one that fails every so
    /// often does not have hundreds read for each few that it takes.
    #[must_use]
    pub fn at_once(&self, most: usize) -> usize {
        self.taken_in_a_row.clamp(AT_ONCE_MIN, most)
    }

    /// Deliveries that were refused and wait alone.
    #[must_use]
    pub fn aside(&self) -> usize {
        self.aside.len()
    }

    /// Whether the sink has refused so much lately that only now and then something is offered.
    #[must_use]
    pub fn takes_nothing(&self) -> bool {
        self.refused_in_a_row >= REFUSED_IN_A_ROW_MAX
    }

    /// The sink has taken one. If it took nothing before, what it refused meanwhile was none of its own fault.
    pub fn taken(&mut self, delivery: Option<K>) {
        if self.takes_nothing() {
            self.aside.values_mut().for_each(|aside| aside.until = Moment(0));
        }
        self.wait = SINK_WAIT_MIN;
        self.refused_in_a_row = 0;
        self.taken_in_a_row = self.taken_in_a_row.saturating_add(1);
        if let Some(delivery) = delivery {
            self.aside.remove(&delivery);
        }
    }

    /// The sink has refused one. A `delivery` waits alone from now on.
    pub fn refused(&mut self, delivery: Option<K>, now: Moment) {
        self.refused_in_a_row = self.refused_in_a_row.saturating_add(1);
        self.taken_in_a_row = 0;
        let Some(delivery) = delivery else { return };
        let wait = self.aside.get(&delivery).map_or(ASIDE_WAIT_MIN, |aside| doubled(aside.wait, 1, ASIDE_WAIT_MAX));
        self.aside.insert(delivery, Aside { until: now + wait, wait });
        if self.aside.len() > ASIDE_MAX
            && let Some(next) = self.aside.iter().min_by_key(|(_, aside)| aside.until).map(|(delivery, _)| *delivery)
        {
            self.aside.remove(&next);
        }
    }

    /// How long to wait for a sink that is away or takes nothing; longer each time, until it takes something.
    pub fn wait(&mut self) -> Duration {
        let wait = self.wait;
        self.taken_in_a_row = 0;
        self.wait = doubled(wait, 1, SINK_WAIT_MAX);
        wait
    }

    /// The sink is there, and nothing is due: the next time it is away is another one.
    pub fn there(&mut self) {
        if !self.takes_nothing() {
            self.wait = SINK_WAIT_MIN;
        }
    }

    /// Whether the sink has been waited for in vain for some seconds: most that are away for less are only starting.
    #[must_use]
    pub fn has_waited(&self) -> bool {
        self.wait > SINK_WAIT_MIN * 32
    }

    /// How long until the turn of the first that waits alone.
    #[must_use]
    pub fn next_turn(&self, now: Moment) -> Option<Duration> {
        self.aside.values().map(|aside| aside.until.since(now)).min()
    }

    /// Forgets deliveries that are no longer wanted.
    pub fn retain(&mut self, wanted: impl Fn(K) -> bool) {
        self.aside.retain(|delivery, _| wanted(*delivery));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seconds(seconds: u64) -> Moment {
        Moment(seconds * 1000)
    }

    #[test]
    fn a_delivery_that_is_never_taken_holds_up_no_other_and_is_offered_ever_more_slowly() {
        let mut patience = Patience::default();
        let (mut now, mut offered) = (Moment(0), std::vec::Vec::new());
        while now < seconds(3600) {
            if patience.may_offer(1, now) {
                offered.push(now.0 / 1000);
                patience.refused(Some(1), now);
            }
            assert!(patience.may_offer(2, now) && !patience.takes_nothing());
            patience.taken(Some(2));
            now = now + Duration::from_secs(1);
        }
        assert_eq!(offered[..6], [0, 2, 6, 14, 30, 62]);
        let gaps: std::vec::Vec<u64> = offered.windows(2).map(|pair| pair[1] - pair[0]).collect();
        assert_eq!(gaps.last(), Some(&300));
    }

    /// How many deliveries are made ready, and how often, until a sink that fails now and then has taken 10,000.
    fn made_ready(fails: impl Fn(usize) -> bool) -> (usize, usize) {
        let mut patience = Patience::<usize>::default();
        let (mut offered, mut taken, mut ready, mut times) = (0, 0, 0, 0);
        while taken < 10_000 {
            let at_once = patience.at_once(256);
            (ready, times) = (ready + at_once, times + 1);
            for _ in 0..at_once {
                offered += 1;
                if fails(offered) {
                    patience.wait();
                    break;
                }
                taken += 1;
                patience.taken(None);
            }
        }
        (ready, times)
    }

    #[test]
    fn a_sink_that_fails_every_so_often_has_few_made_ready_for_nothing_and_a_good_one_many_at_once() {
        let (ready, times) = made_ready(|_| false);
        assert!(ready < 10_256 && times < 50, "{ready} in {times} times");
        let (ready, _) = made_ready(|offered| offered.is_multiple_of(5));
        assert!(ready <= 20_000, "{ready} are read for 10,000");
    }

    #[test]
    fn a_sink_that_takes_nothing_is_asked_once_a_minute_and_gets_all_when_it_is_mended() {
        let mut patience = Patience::default();
        for delivery in 0..3 {
            assert!(!patience.takes_nothing());
            patience.refused(Some(delivery), seconds(1));
        }
        assert!(patience.takes_nothing());
        let waits: std::vec::Vec<u64> = (0..12).map(|_| patience.wait().as_secs()).collect();
        assert_eq!(waits[8..], [25, 51, 60, 60]);
        assert!(patience.has_waited());
        assert!(!patience.may_offer(0, seconds(2)));
        patience.taken(Some(7));
        assert!((0..3).all(|delivery| patience.may_offer(delivery, seconds(2))));
        assert_eq!(patience.wait(), SINK_WAIT_MIN);
    }

    #[test]
    fn one_that_is_mended_is_noticed_after_about_as_long_as_it_was_broken() {
        for broken in [5, 60, 200, 3600] {
            let (mut patience, mut now) = (Patience::default(), Moment(0));
            let mut last = Moment(0);
            while now < seconds(broken) {
                patience.refused(Some(1), now);
                last = now;
                now = now + patience.next_turn(now).expect("its turn comes");
            }
            assert!(now.since(last) <= (last.since(Moment(0)) + ASIDE_WAIT_MIN).min(ASIDE_WAIT_MAX), "{broken}");
        }
    }

    #[test]
    fn what_waits_alone_is_bounded_and_forgotten_when_it_is_no_longer_wanted() {
        let mut patience = Patience::default();
        for delivery in 0..5000 {
            patience.refused(Some(delivery), Moment(delivery));
        }
        assert_eq!(patience.aside(), ASIDE_MAX);
        assert!(patience.may_offer(0, Moment(5000)), "offered again, not forgotten");
        patience.retain(|delivery| delivery >= 4999);
        assert_eq!(patience.aside(), 1);
    }
}
