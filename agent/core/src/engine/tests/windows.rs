//! A radio that rests: days over a link that only the engine says when to use.

use super::*;
use crate::link::Windows;
use proptest::prelude::*;
use std::collections::BTreeSet;

const EVERY: Duration = Duration::from_secs(3600);
const OPEN: Duration = Duration::from_secs(120);

/// A dial takes at most so long; one that is begun in a window may end after it.
const DIAL: Duration = Duration::from_secs(30);

/// From the end of a window to the goodbye.
const GOODBYE: Duration = Duration::from_secs(2);

/// The engine, and a broker with a cloud behind it.
struct Radio {
    engine: Engine,
    now: Moment,
    to_come: Vec<(Moment, Event)>,
    /// How many seconds each dial takes, and whether it leads to a connection; then all do.
    dials: Vec<(u64, bool)>,
    /// Stored, and without a verdict.
    open: BTreeSet<CaseKey>,
    used: Vec<Moment>,
    sent: Vec<CaseKey>,
}

impl Radio {
    fn new(dials: Vec<(u64, bool)>) -> Self {
        let profile = Profile { windows: Some(Windows { every: EVERY, open: OPEN }), ..Profile::LAN };
        let (policies, ceilings) = (Policies::DEFAULT, Ceilings::LAN);
        let mut engine = engine(0, ceilings);
        actions(&mut engine);
        engine.handle(Moment(0), Event::Disconnected(Loss::Broken));
        let configured = Configured { profile, policies, ceilings, batch_bytes_max: 0 };
        engine.handle(Moment(0), Event::Configured(Box::new(configured)));
        let mut radio = Self {
            engine,
            now: Moment(0),
            to_come: Vec::new(),
            dials,
            open: BTreeSet::new(),
            used: Vec::new(),
            sent: Vec::new(),
        };
        radio.carry_out();
        radio
    }

    fn after(&mut self, wait: Duration, event: Event) {
        self.to_come.push((self.now + wait, event));
    }

    fn run_until(&mut self, end: Moment) {
        loop {
            let first = (0..self.to_come.len()).min_by_key(|at| self.to_come[*at].0);
            let event_at = first.map(|at| self.to_come[at].0);
            let at = event_at.into_iter().chain(self.engine.wake_at()).min().unwrap_or(end);
            if at >= end {
                self.now = end;
                return;
            }
            self.now = self.now.max(at);
            let due = first.filter(|_| event_at == Some(at));
            let event = due.map_or(Event::Tick, |place| self.to_come.remove(place).1);
            if let Event::Stored(case) = &event {
                self.open.insert(case.key);
            }
            if let Event::Closed { key, .. } = &event {
                self.open.remove(key);
            }
            self.engine.handle(self.now, event);
            self.carry_out();
        }
    }

    fn carry_out(&mut self) {
        for action in actions(&mut self.engine) {
            match action {
                Action::Dial { .. } => self.dial(),
                Action::HangUp => {
                    // What was under way comes to nothing.
                    self.to_come.retain(|(_, event)| matches!(event, Event::Stored(_) | Event::OnTrial { .. }));
                    self.used.push(self.now + GOODBYE);
                    self.after(GOODBYE, Event::Disconnected(Loss::Closed));
                }
                Action::Send { keys, .. } => self.send(keys),
                Action::Ask { keys } => {
                    self.used.push(self.now);
                    self.after(Duration::from_secs(1), Event::Unknown { keys });
                }
                Action::Fetch { .. } => self.after(Duration::ZERO, Event::Fetched(Vec::new())),
                _ => {}
            }
        }
    }

    fn dial(&mut self) {
        self.used.push(self.now);
        let (seconds, up) = self.dials.pop().unwrap_or((3, true));
        let took = Duration::from_secs(seconds).min(DIAL);
        if up {
            self.after(took, Event::Connected { receive_maximum: 100 });
            self.after(took + Duration::from_millis(1), cloud(CloudState::Online));
        } else {
            self.after(took, Event::Disconnected(Loss::Broken));
        }
    }

    fn send(&mut self, keys: Vec<CaseKey>) {
        self.used.push(self.now);
        self.sent.extend(&keys);
        for key in keys {
            let outcome = Publish::Acknowledged;
            self.after(Duration::from_millis(200), Event::Published { keys: vec![key], outcome });
            self.after(Duration::from_millis(300), Event::Received { keys: vec![key] });
            self.after(Duration::from_secs(2), Event::Closed { key, spoken: true });
        }
    }
}

fn at_s(seconds: u64) -> Moment {
    Moment(seconds * 1000)
}

#[test]
fn a_case_waits_for_the_window_and_the_urgent_one_goes_first() {
    let mut radio = Radio::new(Vec::new());
    radio.run_until(at_s(600));
    assert_eq!(radio.engine.link().0, LinkState::Resting);
    assert_eq!(radio.engine.policy().wait_max, Duration::ZERO, "nobody waits for a radio that rests");
    for sequence in 0..50 {
        radio.after(Duration::ZERO, Event::Stored(waiting(sequence, false)));
    }
    radio.after(Duration::from_secs(60), Event::Stored(Waiting { urgent: true, ..waiting(50, false) }));
    radio.run_until(at_s(3599));
    assert!(radio.sent.is_empty() && radio.open.len() == 51, "{:?}", radio.sent);
    radio.run_until(at_s(3720));
    assert!(radio.open.is_empty(), "{:?}", radio.open);
    assert_eq!(radio.sent.first(), Some(&key(50)));
}

#[test]
fn an_operator_opens_a_window_and_a_trial_holds_it_open_to_its_end() {
    let mut radio = Radio::new(Vec::new());
    radio.run_until(at_s(600));
    radio.after(Duration::ZERO, Event::NetworkChanged);
    radio.run_until(at_s(610));
    assert_eq!(radio.engine.link().0, LinkState::Resting, "a network is no reason");
    radio.after(Duration::ZERO, Event::Drain);
    radio.run_until(at_s(620));
    assert_eq!(radio.engine.link().0, LinkState::Online);
    // Other settings of the broker, on trial for much longer than a window is.
    radio.after(Duration::ZERO, Event::BrokerChanged);
    radio.after(Duration::ZERO, Event::OnTrial { until: Some(at_s(4000)) });
    radio.run_until(at_s(3999));
    assert_eq!(radio.engine.link().0, LinkState::Online);
    radio.after(Duration::ZERO, Event::OnTrial { until: None });
    radio.run_until(at_s(4100));
    assert_eq!(radio.engine.link().0, LinkState::Online, "whoever tried them sees how it ended");
    radio.run_until(at_s(4130));
    assert_eq!(radio.engine.link().0, LinkState::Resting);
}

proptest! {
    #[test]
    fn bytes_flow_only_while_a_window_is_open_and_nothing_is_lost(
        arrivals in prop::collection::vec(0_u64..3 * 86_400, 0..200),
        dials in prop::collection::vec((1_u64..40, prop::bool::weighted(0.4)), 0..60),
    ) {
        let mut radio = Radio::new(dials);
        for (sequence, arrival) in (0..).zip(&arrivals) {
            radio.to_come.push((at_s(*arrival), Event::Stored(waiting(sequence, false))));
        }
        let days = at_s(3 * 86_400) + EVERY * 70;
        while radio.now < days {
            radio.run_until((radio.now + EVERY).min(days));
        }
        for at in &radio.used {
            let into = Duration::from_millis(at.0 % 3_600_000);
            prop_assert!(into < OPEN + DIAL + OPEN + GOODBYE, "used {into:?} after a window began, at {at:?}");
        }
        prop_assert!(radio.open.is_empty(), "never answered: {:?}", radio.open);
    }
}
