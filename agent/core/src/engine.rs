//! The whole path on one page: one event in, actions out.
//!
//! The engine owns what the device knows about its link and its cases under way. It does nothing itself: the
//! agent's driver brings it events with the time, and carries out what [`Engine::next_action`] returns.
//!
//! ```text
//!  Stored ──▶ Send ──▶ Published ──▶ Received ──▶ (verdict on disk) Closed
//!               ▲                        │
//!               └── Unknown ◀── Ask ◀────┘ silence, or after a cut
//! ```

use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{CaseKey, CloudState, CloudStatus, LinkState, Name};

use crate::budget::{Budget, Spent};
use crate::clock::Moment;
use crate::link::{Link, Loss, Profile, Trouble};
use crate::uplink::{OWED_MAX, Permission, Publish, READY_MAX, Step, Uplink, Waiting};

/// Something that happened.
#[derive(Debug, Clone)]
pub enum Event {
    /// A case is on disk, or was requeued by hand.
    Stored(Waiting),
    /// The answer to [`Action::Fetch`]: the best open cases, at most as many as were asked for.
    Fetched(Vec<Waiting>),
    /// Connected, and every subscription granted.
    Connected {
        receive_maximum: u16,
    },
    Disconnected(Loss),
    /// Why there is no connection, in words for people.
    Explained(Trouble),
    CloudStatus {
        instance: Name,
        status: CloudStatus,
        retained: bool,
    },
    Published {
        keys: Vec<CaseKey>,
        outcome: Publish,
    },
    AskFailed {
        keys: Vec<CaseKey>,
    },
    Received {
        keys: Vec<CaseKey>,
    },
    Unknown {
        keys: Vec<CaseKey>,
    },
    /// The cloud asks for one payload (again).
    Wanted {
        key: CaseKey,
    },
    Busy {
        after: Duration,
    },
    Failed {
        key: CaseKey,
        reason: String,
    },
    Dead {
        key: CaseKey,
        reason: String,
    },
    /// The answer to [`Action::CountTry`].
    TryCounted {
        key: CaseKey,
        tries: u32,
        reason: String,
    },
    /// The case is answered, dead, evicted or dropped by hand; `spoken` if a cloud's message closed it.
    Closed {
        key: CaseKey,
        spoken: bool,
    },
    /// The network has changed: a wait for the next dial is over.
    NetworkChanged,
    /// So many bytes went over the wire, in both directions, of whatever kind.
    Spent {
        bytes: u64,
    },
    /// Nothing but time has passed.
    Tick,
}

/// Something to do.
#[derive(Debug, Clone, PartialEq)]
pub enum Action {
    Dial,
    /// Bring the best open cases, at most so many.
    Fetch {
        count: usize,
    },
    /// Publish these cases whole, in one message, and note that they were sent.
    Send {
        keys: Vec<CaseKey>,
    },
    Ask {
        keys: Vec<CaseKey>,
    },
    /// Note that the cloud holds these; need not survive a crash.
    MarkReceived {
        keys: Vec<CaseKey>,
    },
    /// Count a failed try durably, then bring [`Event::TryCounted`].
    CountTry {
        key: CaseKey,
        reason: String,
    },
    /// Make it a dead letter durably, then bring [`Event::Closed`]. Without that the cloud is asked again later.
    Bury {
        key: CaseKey,
        reason: String,
    },
    LinkChanged {
        state: LinkState,
        reason: &'static str,
    },
}

/// What an engine starts from.
#[derive(Debug, Clone)]
pub struct Setup {
    pub has_broker: bool,
    /// Cases the outbox holds from earlier runs.
    pub open_cases: u64,
    pub profile: Profile,
    pub budget: Budget,
    /// Payload bytes that small cases may share a publish up to; 0 for one case each.
    pub batch_bytes_max: u32,
    /// Chance, for the waits between dials.
    pub seed: u64,
}

/// What the device knows, and what it is about to do.
#[derive(Debug)]
pub struct Engine {
    link: Link,
    uplink: Uplink,
    budget: Budget,
    /// When there is room under every ceiling again.
    over_until: Option<Moment>,
    actions: VecDeque<Action>,
    /// The disk may hold open cases that are not in memory.
    more_on_disk: bool,
    /// How many cases the disk was asked for.
    fetching: Option<usize>,
}

impl Engine {
    /// Dials at once if there is a broker.
    #[must_use]
    pub fn new(now: Moment, setup: Setup) -> Self {
        let mut engine = Self {
            link: Link::new(now, setup.has_broker, setup.profile, setup.seed),
            uplink: Uplink::new(setup.batch_bytes_max),
            budget: setup.budget,
            over_until: None,
            actions: VecDeque::new(),
            more_on_disk: setup.open_cases > 0,
            fetching: None,
        };
        engine.advance(now);
        engine
    }

    /// Takes one event. What follows from it is then in [`Self::next_action`].
    pub fn handle(&mut self, now: Moment, event: Event) {
        let before = (self.link.state(), self.link.reason());
        self.take(now, event);
        self.advance(now);
        self.link.expects_word(now, self.uplink.expects_word());
        debug_assert_eq!(self.broken_bound(), None);
        let (state, reason) = (self.link.state(), self.link.reason());
        if before != (state, reason) {
            self.actions.push_back(Action::LinkChanged { state, reason });
        }
    }

    /// What to do next; `None` when there is nothing until the next event or [`Self::wake_at`].
    pub fn next_action(&mut self) -> Option<Action> {
        self.actions.pop_front()
    }

    /// When to come back with [`Event::Tick`] if nothing happens before.
    #[must_use]
    pub fn wake_at(&self) -> Option<Moment> {
        let sending = if self.link.may_send() { self.uplink.wake_at(self.permission()) } else { None };
        [self.link.dial_at(), sending, self.over_until].into_iter().flatten().min()
    }

    #[must_use]
    pub fn link(&self) -> (LinkState, &'static str) {
        (self.link.state(), self.link.reason())
    }

    /// What counts against the ceilings, to be kept over a restart.
    #[must_use]
    pub fn spent(&self) -> &Spent {
        self.budget.spent()
    }

    /// Cases sent whose verdict has not come.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.uplink.owed()
    }

    /// The bound of memory or window that does not hold, if any.
    #[must_use]
    pub fn broken_bound(&self) -> Option<&'static str> {
        self.uplink.broken_bound()
    }

    fn take(&mut self, now: Moment, event: Event) {
        match event {
            Event::Stored(case) => self.remember(now, case),
            Event::Fetched(cases) => {
                // A full answer may not be all; what does not fit in memory is fetched again when there is room.
                self.more_on_disk |= self.fetching.take().is_some_and(|count| cases.len() >= count);
                cases.into_iter().for_each(|case| self.remember(now, case));
            }
            Event::Connected { receive_maximum } => {
                self.link.connected(now);
                self.uplink.connected(receive_maximum);
            }
            Event::Disconnected(loss) => {
                self.link.lost(now, loss);
                self.uplink.disconnected(now);
            }
            Event::CloudStatus { instance, status, retained } => {
                if status.state == CloudState::Offline && !retained {
                    self.uplink.instance_lost(now);
                }
                if status.state == CloudState::Online && !retained {
                    self.uplink.somebody_listens();
                }
                self.link.cloud_status(instance, status, retained);
                if let Some(rest) = self.link.retry_after() {
                    self.uplink.hold(now + rest);
                }
            }
            Event::Published { keys, outcome } => self.uplink.published(now, &keys, outcome),
            Event::Spent { bytes } => self.budget.spend(now, 0, bytes),
            Event::AskFailed { keys } => self.uplink.ask_failed(now, &keys),
            Event::Explained(trouble) => self.link.explain(trouble),
            Event::NetworkChanged => self.link.dial_now(now),
            Event::Closed { key, spoken } => {
                self.uplink.forget(key);
                if spoken {
                    self.uplink.somebody_listens();
                    self.link.cloud_spoke();
                }
            }
            Event::TryCounted { key, tries, reason } => {
                if !self.uplink.failed(now, key, tries) {
                    self.actions.push_back(Action::Bury { key, reason });
                }
            }
            Event::Tick => {}
            Event::Received { .. }
            | Event::Unknown { .. }
            | Event::Wanted { .. }
            | Event::Busy { .. }
            | Event::Failed { .. }
            | Event::Dead { .. } => self.listen(now, event),
        }
    }

    fn weigh_budget(&mut self, now: Moment) {
        let reached = self.budget.reached(now);
        self.over_until = reached.map(|reached| reached.until);
        self.link.budget(reached);
    }

    /// What the cloud says about its work.
    fn listen(&mut self, now: Moment, event: Event) {
        self.link.cloud_spoke();
        self.uplink.somebody_listens();
        match event {
            Event::Received { keys } => {
                self.uplink.received(now, &keys);
                self.actions.push_back(Action::MarkReceived { keys });
            }
            Event::Unknown { keys } => keys.into_iter().for_each(|key| self.uplink.wanted(now, key)),
            Event::Wanted { key } => self.uplink.wanted(now, key),
            Event::Busy { after } => self.uplink.hold(now + after),
            Event::Failed { key, reason } => self.actions.push_back(Action::CountTry { key, reason }),
            Event::Dead { key, reason } => {
                self.uplink.dying(now, key);
                self.actions.push_back(Action::Bury { key, reason });
            }
            _ => {}
        }
    }

    fn remember(&mut self, now: Moment, case: Waiting) {
        if !self.uplink.add(now, case) {
            self.more_on_disk = true;
        }
    }

    fn permission(&self) -> Permission {
        Permission { proven: self.link.proven(), accept_per_s: self.link.accept_per_s() }
    }

    fn advance(&mut self, now: Moment) {
        if self.link.take_dial(now) {
            self.actions.push_back(Action::Dial);
        }
        self.weigh_budget(now);
        let permission = self.permission();
        while self.link.may_send()
            && let Some(step) = self.uplink.step(now, permission)
        {
            let action = match step {
                Step::Ask(keys) => Action::Ask { keys },
                Step::Send(keys) => {
                    self.budget.spend(now, keys.len() as u64, 0);
                    self.weigh_budget(now);
                    Action::Send { keys }
                }
            };
            self.actions.push_back(action);
        }
        let room = self.uplink.ready() < READY_MAX / 2 && self.uplink.owed() < OWED_MAX;
        if self.more_on_disk && self.fetching.is_none() && room {
            let count = READY_MAX + self.uplink.len();
            self.fetching = Some(count);
            self.more_on_disk = false; // until the answer, or a case stored after the disk was looked at
            self.actions.push_back(Action::Fetch { count });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Ceilings;
    use hedge_proto::{Epoch, WIRE_VERSION};
    use std::vec;

    fn key(sequence: u64) -> CaseKey {
        CaseKey { epoch: Epoch(1), sequence }
    }

    fn waiting(sequence: u64, sent: bool) -> Waiting {
        Waiting { key: key(sequence), sort_key: 0.0, stored_at: Moment(0), payload_bytes: 50_000, sent, urgent: false }
    }

    fn cloud(state: CloudState) -> Event {
        Event::CloudStatus {
            instance: Name::new("i1").expect("valid"),
            status: CloudStatus {
                state,
                wire: vec![WIRE_VERSION],
                accept: None,
                retry_after_s: None,
                payload_bytes_max: None,
            },
            retained: false,
        }
    }

    fn actions(engine: &mut Engine) -> Vec<Action> {
        core::iter::from_fn(|| engine.next_action()).collect()
    }

    fn engine(open_cases: u64, ceilings: Ceilings) -> Engine {
        let budget = Budget::resume(ceilings, Some(Spent::default()), Moment(0));
        let profile = Profile::LAN;
        Engine::new(Moment(0), Setup { has_broker: true, open_cases, profile, budget, batch_bytes_max: 0, seed: 1 })
    }

    fn online(open_cases: u64) -> Engine {
        let mut engine = engine(open_cases, Ceilings::LAN);
        engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
        engine.handle(Moment(2), cloud(CloudState::Online));
        engine
    }

    #[test]
    fn it_dials_at_the_start_and_says_how_the_link_is() {
        let mut engine = engine(0, Ceilings::LAN);
        assert_eq!(actions(&mut engine), [Action::Dial]);
        engine.handle(Moment(5), Event::Disconnected(Loss::Broken));
        assert!(matches!(actions(&mut engine)[..], [Action::LinkChanged { state: LinkState::Offline, .. }]));
        let wake = engine.wake_at().expect("dials again");
        engine.handle(wake, Event::Tick);
        assert!(actions(&mut engine).contains(&Action::Dial));
    }

    #[test]
    fn a_case_goes_out_when_the_cloud_is_there_and_is_closed_by_its_verdict() {
        let mut engine = online(0);
        actions(&mut engine);
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(7)] }]);
        engine.handle(Moment(4), Event::Published { keys: vec![key(7)], outcome: Publish::Acknowledged });
        engine.handle(Moment(5), Event::Received { keys: vec![key(7)] });
        assert_eq!(actions(&mut engine), [Action::MarkReceived { keys: vec![key(7)] }]);
        assert_eq!(engine.in_flight(), 1);
        engine.handle(Moment(6), Event::Closed { key: key(7), spoken: true });
        assert_eq!(engine.in_flight(), 0);
    }

    #[test]
    fn what_an_earlier_run_sent_is_asked_about_first() {
        let mut engine = online(2);
        let fetch = Action::Fetch { count: READY_MAX };
        assert!(actions(&mut engine).contains(&fetch));
        engine.handle(Moment(3), Event::Fetched(vec![waiting(1, true), waiting(2, false)]));
        assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(1)] }, Action::Send { keys: vec![key(2)] }]);
        engine.handle(Moment(4), Event::Unknown { keys: vec![key(1)] });
        assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(1)] }]);
    }

    #[test]
    fn nothing_is_sent_while_no_cloud_is_known_to_read_it() {
        let mut engine = engine(0, Ceilings::LAN);
        engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
        engine.handle(Moment(2), Event::Stored(waiting(7, false)));
        assert!(!actions(&mut engine).iter().any(|action| matches!(action, Action::Send { .. })));
        engine.handle(Moment(3), cloud(CloudState::Online));
        assert!(actions(&mut engine).contains(&Action::Send { keys: vec![key(7)] }));
    }

    #[test]
    fn a_case_the_cloud_cannot_answer_becomes_a_dead_letter_after_bounded_tries() {
        let mut engine = online(0);
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        actions(&mut engine);
        let reason = || String::from("out of memory");
        engine.handle(Moment(4), Event::Failed { key: key(7), reason: reason() });
        assert_eq!(actions(&mut engine), [Action::CountTry { key: key(7), reason: reason() }]);
        let tries = crate::uplink::TRIES_MAX;
        engine.handle(Moment(5), Event::TryCounted { key: key(7), tries, reason: reason() });
        assert_eq!(actions(&mut engine), [Action::Bury { key: key(7), reason: reason() }]);
    }

    #[test]
    fn a_dead_letter_that_the_disk_refuses_is_made_later() {
        let mut engine = online(0);
        let dead = || Event::Dead { key: key(7), reason: String::from("unreadable") };
        let bury = Action::Bury { key: key(7), reason: String::from("unreadable") };
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        actions(&mut engine);
        engine.handle(Moment(4), dead());
        assert_eq!(actions(&mut engine), core::slice::from_ref(&bury));
        let wake = engine.wake_at().expect("asks again");
        engine.handle(wake, Event::Tick);
        assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(7)] }]);
        engine.handle(wake, dead());
        assert_eq!(actions(&mut engine), [bury]);
        engine.handle(wake, Event::Closed { key: key(7), spoken: false });
        assert_eq!(engine.wake_at(), None);
    }

    #[test]
    fn a_reached_ceiling_is_a_state_of_the_link_and_ends_by_itself() {
        let mut engine = engine(0, Ceilings { cases_per_hour: 2, ..Ceilings::LAN });
        engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
        engine.handle(Moment(2), cloud(CloudState::Online));
        for sequence in 0..3 {
            engine.handle(Moment(3), Event::Stored(waiting(sequence, false)));
        }
        let sent =
            |engine: &mut Engine| actions(engine).iter().filter(|action| matches!(action, Action::Send { .. })).count();
        assert_eq!((sent(&mut engine), engine.link().0), (2, LinkState::OverBudget));
        let wake = engine.wake_at().expect("the hour ends");
        engine.handle(wake, Event::Tick);
        assert_eq!((sent(&mut engine), engine.link().0), (1, LinkState::Online));
    }

    #[test]
    fn every_byte_on_the_wire_counts() {
        let mut engine = engine(0, Ceilings { bytes_per_day: 1_000, ..Ceilings::LAN });
        engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
        engine.handle(Moment(2), cloud(CloudState::Online));
        engine.handle(Moment(3), Event::Spent { bytes: 1_000 });
        assert_eq!(engine.link(), (LinkState::OverBudget, "the ceiling of bytes per day is reached"));
    }

    #[test]
    fn after_an_instance_is_lost_its_cases_are_asked_about_soon() {
        let mut engine = online(0);
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        engine.handle(Moment(4), Event::Received { keys: vec![key(7)] });
        engine.handle(Moment(5), cloud(CloudState::Offline));
        engine.handle(Moment(6), cloud(CloudState::Online));
        actions(&mut engine);
        let soon = Moment(5) + crate::uplink::INSTANCE_LOST_WAIT;
        assert!(engine.wake_at().is_some_and(|at| at <= soon));
        engine.handle(soon, Event::Tick);
        assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(7)] }]);
    }

    #[test]
    fn a_cloud_that_never_answers_makes_the_link_degraded_while_it_is_asked_again() {
        let mut engine = online(0);
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        engine.handle(Moment(4), Event::Published { keys: vec![key(7)], outcome: Publish::Acknowledged });
        assert_eq!(engine.link().0, LinkState::Online);
        for second in 1..=40 {
            engine.handle(Moment(second * 1_000), Event::Tick);
        }
        assert_eq!(engine.link().0, LinkState::Degraded);
        engine.handle(Moment(41_000), Event::Received { keys: vec![key(7)] });
        assert_eq!(engine.link().0, LinkState::Online);
    }

    #[test]
    fn what_memory_had_no_room_for_is_fetched_when_there_is_room() {
        let mut engine = engine(0, Ceilings::LAN);
        let later_is_better = |sequence: u64| Waiting { sort_key: sequence as f64, ..waiting(sequence, false) };
        for sequence in 0..=READY_MAX as u64 {
            engine.handle(Moment(1), Event::Stored(later_is_better(sequence)));
        }
        engine.handle(Moment(2), Event::Connected { receive_maximum: 100 });
        engine.handle(Moment(3), cloud(CloudState::Online));
        let mut fetches = 0;
        while let Some(action) = engine.next_action() {
            match action {
                Action::Send { keys } => engine.handle(Moment(4), Event::Closed { key: keys[0], spoken: true }),
                Action::Fetch { .. } => fetches += 1,
                _ => {}
            }
        }
        assert_eq!(fetches, 1, "the first case gave way to better ones and lies on the disk alone");
    }

    #[test]
    fn a_case_stored_while_the_disk_is_looked_at_is_not_forgotten() {
        let mut engine = online(1);
        assert!(actions(&mut engine).contains(&Action::Fetch { count: READY_MAX }));
        for sequence in 0..2 * READY_MAX as u64 {
            engine.handle(Moment(3), Event::Stored(waiting(sequence, false)));
        }
        engine.handle(Moment(4), Event::Fetched(vec![]));
        let mut open: Vec<CaseKey> = (0..2 * READY_MAX as u64).map(key).collect();
        while let Some(action) = engine.next_action() {
            match action {
                Action::Send { keys } => {
                    open.retain(|known| *known != keys[0]);
                    engine.handle(Moment(5), Event::Closed { key: keys[0], spoken: true });
                }
                Action::Fetch { .. } => {
                    let best = open.iter().map(|key| waiting(key.sequence, false)).collect();
                    engine.handle(Moment(5), Event::Fetched(best));
                }
                _ => {}
            }
        }
        assert!(open.is_empty(), "{} left", open.len());
    }

    #[test]
    fn a_backlog_larger_than_memory_drains_to_the_last_case() {
        let mut disk: Vec<u64> = (0..3 * READY_MAX as u64).collect();
        let mut engine = online(disk.len() as u64);
        let mut now = Moment(10);
        while let Some(action) = engine.next_action() {
            now = now + Duration::from_millis(1);
            match action {
                Action::Fetch { count } => {
                    let best = disk.iter().take(count).map(|&sequence| waiting(sequence, false)).collect();
                    engine.handle(now, Event::Fetched(best));
                }
                Action::Send { keys } => {
                    let key = keys[0];
                    engine.handle(now, Event::Published { keys, outcome: Publish::Acknowledged });
                    disk.retain(|&sequence| sequence != key.sequence);
                    engine.handle(now, Event::Closed { key, spoken: true });
                }
                _ => {}
            }
        }
        assert!(disk.is_empty(), "{} left", disk.len());
    }
}
