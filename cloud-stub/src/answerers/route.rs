//! Which answerer of a task is asked next, and how long one that is down is left alone.
//!
//! ```text
//!            rest over                alive               one case came back
//!  Resting ───────────▶ Questioned ─────────▶ Alone ───────────────────────▶ Up
//!     ▲                     │                   │                             │
//!     └─────────────────────┴───────────────────┴── retry later, or down ─────┘
//! ```
//! A new one begins as if its rest were over: it is asked whether it is alive, and warmed up, before it gets a case.
//! `Alone` is one case at a time: what ends a backend that was alive a moment ago and has nothing else is this case.
//!
//! Preference is kept: one that is merely busy is waited for, one that rests or that no money is left for is passed over
//! by the next. A person is asked only when nobody else will answer: not for an outage that will be over.

use std::time::{Duration, Instant};

use hedge_core::clock::doubled;
use hedge_proto::CaseId;

use super::{Ledger, Micro};

/// How many answerers there are in all: a bit each.
pub const ANSWERERS_MAX: usize = 32;

/// The first and the longest rest of one that is down and does not say how long to wait.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);

/// How long all answerers of a task must be out of reach before devices are told: a status costs every device data.
const STUCK_AFTER: Duration = Duration::from_secs(10);

/// Which answerers of a task will not answer a case: a bit for each place in the route.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Declined(u32);

impl Declined {
    #[must_use]
    pub fn with(self, place: usize) -> Self {
        Self(self.0 | u32::try_from(place).ok().and_then(|place| 1_u32.checked_shl(place)).unwrap_or(0))
    }

    #[must_use]
    pub fn has(self, place: usize) -> bool {
        self.with(place) == self
    }
}

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// With a verdict, or with none for this case.
    Answered,
    /// It is there and wants to be left alone, for so long if it says how long.
    Later(Option<Duration>),
    Down,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Health {
    Up,
    Resting { until: Instant, rest: Duration },
    Questioned { rest: Duration },
    Alone { rest: Duration },
}

/// One answerer of a task.
#[derive(Debug)]
pub struct Seat {
    pub name: String,
    pub price: Micro,
    is_person: bool,
    places: usize,
    under_way: usize,
    health: Health,
    /// The case that ended it since it last answered, and whether another did, too.
    ended_by: Option<(CaseId, bool)>,
}

impl Seat {
    /// In this process, with room for so many cases.
    #[must_use]
    pub fn local(name: &str, places: usize) -> Self {
        let (name, price) = (name.to_owned(), Micro::default());
        Self { name, price, is_person: false, places, under_way: 0, health: Health::Up, ended_by: None }
    }

    /// Elsewhere, with so many calls at once.
    #[must_use]
    pub fn remote(name: &str, places: usize, price: Micro, now: Instant) -> Self {
        let health = Health::Resting { until: now, rest: Duration::ZERO };
        Self { price, health, ..Self::local(name, places) }
    }

    #[must_use]
    pub fn person(name: &str) -> Self {
        Self { is_person: true, ..Self::local(name, usize::MAX) }
    }

    #[must_use]
    pub fn is_person(&self) -> bool {
        self.is_person
    }
}

/// Who is asked now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Choice {
    Ask(usize),
    /// A person: the case goes to the review queue.
    Review(usize),
    /// Nobody can be asked now.
    Wait,
    /// Nobody is left to ask.
    Nobody,
}

/// How an answerer is, for people.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    Up,
    /// Asked whether it is alive.
    Questioned,
    Resting(Duration),
    /// The month's money is spent.
    NoMoney,
}

impl Condition {
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Questioned => "starting",
            Self::Resting(_) => "down",
            Self::NoMoney => "no_money",
        }
    }
}

/// The answerers of one task in order of preference.
#[derive(Debug, Default)]
pub struct Route {
    seats: Vec<Seat>,
    stuck_since: Option<Instant>,
}

impl Route {
    #[must_use]
    pub fn new(seats: Vec<Seat>) -> Self {
        Self { seats, stuck_since: None }
    }

    #[must_use]
    pub fn seats(&self) -> &[Seat] {
        &self.seats
    }

    #[must_use]
    pub fn choose(&self, declined: Declined, ledger: &Ledger) -> Choice {
        let (mut is_out_of_reach, mut is_anyone) = (false, false);
        for (place, seat) in self.seats.iter().enumerate().filter(|(place, _)| !declined.has(*place)) {
            is_anyone = true;
            if seat.is_person {
                return if is_out_of_reach { Choice::Wait } else { Choice::Review(place) };
            }
            if !ledger.affords(seat.price) {
                continue;
            }
            match seat.health {
                Health::Up if seat.under_way < seat.places => return Choice::Ask(place),
                Health::Up => return Choice::Wait,
                Health::Alone { .. } if seat.under_way == 0 => return Choice::Ask(place),
                // At its first case it is merely busy.
                Health::Alone { rest } if rest.is_zero() => return Choice::Wait,
                Health::Alone { .. } | Health::Resting { .. } | Health::Questioned { .. } => is_out_of_reach = true,
            }
        }
        if is_anyone { Choice::Wait } else { Choice::Nobody }
    }

    pub fn started(&mut self, place: usize) {
        if let Some(seat) = self.seats.get_mut(place) {
            seat.under_way += 1;
        }
    }

    /// `true`: the case was alone with an answerer that had been alive just before. `chance` is between 0 and 1.
    pub fn ended(&mut self, place: usize, ending: Ending, now: Instant, chance: f64) -> bool {
        let Some(seat) = self.seats.get_mut(place) else { return false };
        seat.under_way = seat.under_way.saturating_sub(1);
        let was_alone = matches!(seat.health, Health::Alone { .. });
        if ending == Ending::Answered {
            seat.ended_by = None;
        }
        seat.weigh(ending, now, chance);
        was_alone
    }

    /// Whether a case that ended an answerer which had nothing else may be why. Where others have done the same since it last
    /// answered, it is broken, and none of them is to blame.
    pub fn blames(&mut self, place: usize, id: &CaseId) -> bool {
        let Some(seat) = self.seats.get_mut(place) else { return false };
        let (first, others) = seat.ended_by.get_or_insert_with(|| (id.clone(), false));
        *others |= first != id;
        !*others
    }

    /// Whose rest is over: each is to be asked now whether it is alive.
    pub fn to_question(&mut self, now: Instant) -> Vec<usize> {
        let mut over = Vec::new();
        for (place, seat) in self.seats.iter_mut().enumerate() {
            if let Health::Resting { until, rest } = seat.health
                && until <= now
            {
                seat.health = Health::Questioned { rest };
                over.push(place);
            }
        }
        over
    }

    /// What came of that question.
    pub fn questioned(&mut self, place: usize, ending: Ending, now: Instant, chance: f64) {
        if let Some(seat) = self.seats.get_mut(place) {
            match (ending, seat.health) {
                (Ending::Answered, Health::Questioned { rest }) => seat.health = Health::Alone { rest },
                _ => seat.weigh(ending, now, chance),
            }
        }
    }

    #[must_use]
    pub fn condition(&self, place: usize, ledger: &Ledger, now: Instant) -> Condition {
        let Some(seat) = self.seats.get(place) else { return Condition::Up };
        match seat.health {
            Health::Resting { until, .. } => Condition::Resting(until.saturating_duration_since(now)),
            Health::Questioned { .. } => Condition::Questioned,
            Health::Up | Health::Alone { .. } if !ledger.affords(seat.price) => Condition::NoMoney,
            Health::Up | Health::Alone { .. } => Condition::Up,
        }
    }

    /// Whether nobody has been within reach for a while, however long a case waits. Asked at every tick.
    pub fn is_stuck(&mut self, ledger: &Ledger, now: Instant) -> bool {
        let is_up = |place: usize| !self.seats[place].is_person && self.condition(place, ledger, now) == Condition::Up;
        let is_reviewed = matches!(self.choose(Declined::default(), ledger), Choice::Review(_));
        if is_reviewed || self.seats.is_empty() || (0..self.seats.len()).any(is_up) {
            self.stuck_since = None;
            return false;
        }
        let since = *self.stuck_since.get_or_insert(now);
        now.saturating_duration_since(since) >= STUCK_AFTER
    }
}

impl Seat {
    fn weigh(&mut self, ending: Ending, now: Instant, chance: f64) {
        let (asked, known) = match ending {
            Ending::Answered => {
                if matches!(self.health, Health::Alone { .. }) {
                    self.health = Health::Up;
                }
                return;
            }
            Ending::Later(asked) => (asked, self.health),
            Ending::Down => (None, self.health),
        };
        let rest = match known {
            // Calls that were under way together and fail together are one failure.
            Health::Resting { rest, .. } => rest,
            Health::Up => REST_MIN,
            Health::Questioned { rest } | Health::Alone { rest } => doubled(rest.max(REST_MIN / 2), 1, REST_MAX),
        };
        // Never before the time it has asked for, and no sooner for having asked: some always ask for no time at all.
        let asked = asked.map_or(Duration::ZERO, |asked| asked + asked.min(REST_MAX).mul_f64(chance / 10.0));
        let pause = asked.max(rest.mul_f64(0.5 + chance / 2.0));
        let before = if let Health::Resting { until, .. } = known { until } else { now };
        self.health = Health::Resting { until: before.max(now.checked_add(pause).unwrap_or(now + REST_MAX)), rest };
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::answerers::Month;

    const S: fn(u64) -> Duration = Duration::from_secs;
    const ALL: Declined = Declined(0);

    fn ledger(month_max: f64) -> Ledger {
        Ledger::new(Micro::of(month_max), Month(1), BTreeMap::new())
    }

    fn up(route: &mut Route, now: Instant) {
        for place in route.to_question(now) {
            route.questioned(place, Ending::Answered, now, 0.0);
            route.started(place);
            route.ended(place, Ending::Answered, now, 0.0);
        }
    }

    fn two(now: Instant) -> Route {
        let seats = vec![Seat::remote("first", 2, Micro(0), now), Seat::remote("second", 1, Micro(10), now)];
        let mut route = Route::new(seats);
        up(&mut route, now);
        route
    }

    #[test]
    fn the_first_is_waited_for_while_it_is_busy_and_passed_over_while_it_rests() {
        let (now, ledger) = (Instant::now(), ledger(1.0));
        let mut route = two(now);
        for _ in 0..2 {
            assert_eq!(route.choose(ALL, &ledger), Choice::Ask(0));
            route.started(0);
        }
        assert_eq!(route.choose(ALL, &ledger), Choice::Wait);
        assert_eq!(route.choose(ALL.with(0), &ledger), Choice::Ask(1), "what the first has declined");
        route.ended(0, Ending::Down, now, 0.5);
        assert_eq!(route.choose(ALL, &ledger), Choice::Ask(1));
        assert_eq!(route.choose(ALL.with(0).with(1), &ledger), Choice::Nobody);
    }

    #[test]
    fn one_that_is_down_is_left_alone_for_longer_and_longer_and_then_gets_one_case() {
        let (start, ledger) = (Instant::now(), ledger(1.0));
        let mut route = Route::new(vec![Seat::remote("only", 8, Micro(0), start)]);
        up(&mut route, start);
        (0..8).for_each(|_| route.started(0));
        for _ in 0..8 {
            route.ended(0, Ending::Down, start, 1.0);
        }
        let (mut now, mut rests) = (start, Vec::new());
        while rests.len() < 9 {
            assert_eq!(route.choose(ALL, &ledger), Choice::Wait);
            let begun = now;
            while route.to_question(now).is_empty() {
                now += S(1);
            }
            rests.push((now - begun).as_secs());
            route.questioned(0, Ending::Down, now, 1.0);
        }
        assert_eq!(rests, [1, 2, 4, 8, 16, 32, 60, 60, 60]);
        now += S(60);
        assert_eq!(route.to_question(now), [0]);
        assert!(route.to_question(now).is_empty(), "asked once");
        route.questioned(0, Ending::Answered, now, 1.0);
        assert_eq!(route.choose(ALL, &ledger), Choice::Ask(0));
        route.started(0);
        assert_eq!(route.choose(ALL, &ledger), Choice::Wait, "one at a time until one has come back");
        assert!(route.ended(0, Ending::Answered, now, 1.0), "it was alone");
        (0..8).for_each(|_| route.started(0));
        assert!(!route.ended(0, Ending::Down, now, 0.0), "it was not alone");
    }

    #[test]
    fn nothing_is_asked_before_the_time_it_has_asked_for() {
        for chance in [0.0, 0.5, 1.0] {
            let start = Instant::now();
            let mut route = two(start);
            route.started(0);
            route.started(0);
            route.ended(0, Ending::Later(Some(S(300))), start, chance);
            // The other call that was under way neither shortens it nor brings it back.
            route.ended(0, if chance > 0.2 { Ending::Down } else { Ending::Answered }, start + S(1), chance);
            let asked = (0..400).find(|s| !route.to_question(start + S(*s)).is_empty()).expect("in the end");
            assert!((300..=306).contains(&asked), "{asked} s");
        }
    }

    #[test]
    fn a_case_is_blamed_only_while_no_other_has_ended_the_answerer_since_it_last_answered() {
        let (now, id) = (Instant::now(), |n: u8| format!("d.0000000000000001.{n}").parse::<CaseId>().expect("an id"));
        let mut route = two(now);
        assert!(route.blames(0, &id(1)) && route.blames(0, &id(1)), "nobody else has had it");
        assert!(!route.blames(0, &id(2)) && !route.blames(0, &id(1)), "it is broken for all of them");
        assert!(route.blames(1, &id(2)), "another answerer");
        route.started(0);
        route.ended(0, Ending::Down, now, 0.0);
        assert!(!route.blames(0, &id(1)));
        route.ended(0, Ending::Answered, now, 0.0);
        assert!(route.blames(0, &id(2)), "it can answer");
    }

    #[test]
    fn one_that_always_asks_for_no_time_is_left_alone_for_longer_and_longer_too() {
        let start = Instant::now();
        let mut route = Route::new(vec![Seat::remote("only", 1, Micro(0), start)]);
        up(&mut route, start);
        let (mut now, mut calls) = (start, 0);
        while now < start + S(600) {
            for place in route.to_question(now) {
                route.questioned(place, Ending::Answered, now, 1.0);
            }
            if route.choose(ALL, &ledger(1.0)) == Choice::Ask(0) {
                calls += 1;
                route.started(0);
                route.ended(0, Ending::Later(Some(S(0))), now, 1.0);
            }
            now += S(1);
        }
        assert!(calls < 20, "{calls} calls in ten minutes");
    }

    #[test]
    fn without_money_the_next_takes_over_and_at_last_a_person_but_not_for_an_outage() {
        let now = Instant::now();
        let mut route = Route::new(vec![Seat::remote("paid", 1, Micro(10), now), Seat::person("people")]);
        up(&mut route, now);
        assert_eq!(route.choose(ALL, &ledger(1.0)), Choice::Ask(0));
        assert_eq!(route.choose(ALL, &ledger(0.000_009)), Choice::Review(1));
        assert_eq!(route.choose(ALL.with(0), &ledger(1.0)), Choice::Review(1));
        assert_eq!(route.condition(0, &ledger(0.0), now), Condition::NoMoney);
        route.started(0);
        assert_eq!(route.choose(ALL, &ledger(1.0)), Choice::Wait, "busy");
        route.ended(0, Ending::Down, now, 0.0);
        assert_eq!(route.choose(ALL, &ledger(1.0)), Choice::Wait, "down");
        let mut alone = Route::new(vec![Seat::remote("paid", 1, Micro(10), now)]);
        up(&mut alone, now);
        assert_eq!(alone.choose(ALL, &ledger(0.0)), Choice::Wait, "the queue takes over");
    }

    #[test]
    fn devices_are_told_only_of_what_lasts() {
        let (now, ledger) = (Instant::now(), ledger(1.0));
        let mut route = two(now);
        assert!(!route.is_stuck(&ledger, now));
        for place in [0, 1] {
            route.started(place);
            route.ended(place, Ending::Down, now, 1.0);
        }
        assert!(!route.is_stuck(&ledger, now));
        assert!(!route.is_stuck(&ledger, now + S(9)));
        assert!(route.is_stuck(&ledger, now + S(10)));
        up(&mut route, now + S(11));
        assert!(!route.is_stuck(&ledger, now + S(11)));
    }
}
