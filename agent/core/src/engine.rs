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
//!
//! Call in this order, from one task:
//!
//! 1. [`Engine::handle`] for each event, in the order in which they happened. `now` never goes back.
//! 2. [`Engine::next_action`] until there is none. An action is forgotten once it is handed out: whoever does not carry
//!    it out has broken the promise, not postponed it.
//! 3. Sleep until [`Engine::wake_at`] or the next event, whichever is sooner, and come back with [`Event::Tick`] if it was
//!    the clock. It is asked anew after each round, because any event may move it.
//!
//! Three actions are questions, and only their answer lets more follow: [`Action::Fetch`] is answered by
//! [`Event::Fetched`] (also with nothing), [`Action::Dial`] by [`Event::Connected`] or [`Event::Disconnected`], and each key of
//! an [`Action::Send`] by one [`Event::Published`], [`Event::Unsendable`] or [`Event::Closed`]. The rest may be lost with the process
//! or the connection: the case is asked about later.
//!
//! What only shows (`link`, `policy`, `spent`, …) may be called between any two of these and changes nothing.

use alloc::boxed::Box;
use alloc::collections::VecDeque;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{CaseKey, CloudState, CloudStatus, LinkState, Name, PayloadForm};

use crate::budget::{Budget, Ceilings, Spent};
use crate::clock::Moment;
use crate::link::{Link, Loss, Profile, RETRY_AFTER_MAX, Trouble, Way};
use crate::policy::{Policies, Policy};
use crate::uplink::{Guilty, Limit, OWED_MAX, Permission, Publish, READY_MAX, Step, Uplink, Waiting};

/// Why a try is counted that the cloud knows nothing of.
const CUT_BY_IT: &str = "the broker ended the connection when this case was sent, also when it was sent alone";

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
    /// The cloud asks for one payload (again), in this form.
    Wanted {
        key: CaseKey,
        form: PayloadForm,
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
    /// It can never be sent: what is stored of it cannot be read as a case.
    Unsendable {
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
    /// Other settings are in force.
    Configured(Box<Configured>),
    /// Where the broker is, or how it is reached, has changed.
    BrokerChanged,
    /// Settings are on trial until then, or no longer.
    OnTrial {
        until: Option<Moment>,
    },
    /// An operator wants what waits to be sent now: waits of earlier failures are over, what the cloud asked for is not.
    Drain,
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
    Dial {
        way: Way,
    },
    /// End the present connection, or dial.
    HangUp,
    /// Bring the best open cases, at most so many. Of those that were never sent only the ones whose payloads are smaller
    /// than this: the others do not fit into a message now.
    Fetch {
        count: usize,
        below_bytes: u32,
    },
    /// Publish these cases in one message, and note that they were sent. Of pictures, thumbnails of `first` pixels go, and
    /// their wholes are offered if `offers`, if that is given and [`crate::privacy`] has it so.
    Send {
        keys: Vec<CaseKey>,
        first: Option<u32>,
        offers: bool,
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

/// What is configured of it, and may change while it runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Configured {
    pub profile: Profile,
    pub policies: Policies,
    pub ceilings: Ceilings,
    /// Payload bytes that small cases may share a publish up to; 0 for one case each.
    pub batch_bytes_max: u32,
}

/// What an engine starts from.
#[derive(Debug, Clone)]
pub struct Setup {
    pub has_broker: bool,
    /// There is a broker to go to when the usual one is away for long.
    pub recovery_after: Option<Duration>,
    /// Cases the outbox holds from earlier runs.
    pub open_cases: u64,
    pub configured: Configured,
    /// By earlier runs; `None` where that is lost.
    pub spent: Option<Spent>,
    /// Chance, for the waits between dials.
    pub seed: u64,
}

/// What the device knows, and what it is about to do.
#[derive(Debug)]
pub struct Engine {
    link: Link,
    uplink: Uplink,
    policies: Policies,
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
        let Configured { profile, policies, ceilings, batch_bytes_max } = setup.configured;
        let budget = Budget::resume(ceilings, setup.spent, now);
        let mut uplink = Uplink::new(batch_bytes_max);
        uplink.recall_repeated(&budget.spent().repeated);
        let mut engine = Self {
            link: Link::new(now, setup.has_broker, setup.recovery_after, profile, setup.seed),
            uplink,
            policies,
            budget,
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
        self.link.delivers(self.uplink.not_taken(), self.uplink.is_held(now));
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
        [self.link.dial_at(), self.link.leave_at(), sending, self.over_until].into_iter().flatten().min()
    }

    #[must_use]
    pub fn link(&self) -> (LinkState, &'static str) {
        (self.link.state(), self.link.reason())
    }

    /// Whether something that only a live cloud can have sent came over the present connection.
    #[must_use]
    pub fn proven(&self) -> bool {
        self.link.proven()
    }

    /// Whether the radio rests: nothing is to go over it until its next window.
    #[must_use]
    pub fn is_closed(&self, now: Moment) -> bool {
        self.link.is_closed(now)
    }

    /// The highest version of the wire that the cloud reads.
    #[must_use]
    pub fn wire_max(&self) -> u16 {
        self.link.wire_max()
    }

    /// The version of the wire that cases wait for because the cloud does not read it.
    #[must_use]
    pub fn newer(&self, now: Moment) -> Option<u16> {
        self.uplink.newer(now).filter(|version| *version > self.wire_max())
    }

    /// The largest payload that cloud and broker take within a message, as far as that is known.
    #[must_use]
    pub fn payload_bytes_max(&self, now: Moment) -> Option<u64> {
        self.link.payload_bytes_max().into_iter().chain(self.uplink.payload_bytes_max(now)).min()
    }

    /// What keeps cases back for their size, if anything does.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        self.uplink.limit()
    }

    /// What holds in the link's present state.
    #[must_use]
    pub fn policy(&self) -> &Policy {
        self.policies.of(self.link.state())
    }

    /// What counts against the ceilings, to be kept over a restart.
    #[must_use]
    pub fn spent(&self, now: Moment) -> Spent {
        let mut spent = self.budget.spent().clone();
        spent.repeated = self.uplink.repeated(now);
        spent
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
                self.uplink.connected(now, receive_maximum);
                // Another connection, other limits.
                self.more_on_disk |= self.uplink.forget_limit();
            }
            Event::Disconnected(loss) => {
                let by_others = (!self.link.is_leaving()).then_some(loss);
                self.link.lost(now, loss);
                if let Some(Guilty { key, by_itself: true }) = self.uplink.disconnected(now, by_others) {
                    self.actions.push_back(Action::CountTry { key, reason: String::from(CUT_BY_IT) });
                }
            }
            Event::CloudStatus { instance, status, retained } => {
                if status.state == CloudState::Offline && !retained {
                    self.uplink.instance_lost(now);
                }
                if status.state == CloudState::Online && !retained {
                    self.uplink.somebody_listens();
                }
                let took = self.link.payload_bytes_max();
                self.link.cloud_status(instance, status, retained);
                if self.link.payload_bytes_max() != took {
                    self.more_on_disk |= self.uplink.forget_limit();
                }
                if let Some(rest) = self.link.retry_after() {
                    self.uplink.hold(now + rest);
                }
            }
            Event::Published { keys, outcome } => self.uplink.published(now, &keys, outcome),
            Event::Spent { bytes } => self.budget.spend(now, 0, bytes),
            Event::AskFailed { keys } => self.uplink.ask_failed(now, &keys),
            Event::Explained(trouble) => self.link.explain(trouble),
            Event::NetworkChanged => self.link.dial_now(now),
            Event::Configured(configured) => {
                let Configured { profile, policies, ceilings, batch_bytes_max } = *configured;
                self.link.set_profile(now, profile);
                self.policies = policies;
                self.budget.set_ceilings(ceilings);
                self.uplink.set_batch_bytes_max(batch_bytes_max);
            }
            Event::BrokerChanged => {
                self.uplink.forget_suspicion();
                self.more_on_disk |= self.uplink.forget_limit();
                if self.link.redial(now) {
                    self.actions.push_back(Action::HangUp);
                }
            }
            Event::OnTrial { until } => self.link.on_trial(now, until),
            Event::Drain => {
                self.link.open_window(now);
                self.uplink.forget_failures(now);
                self.more_on_disk |= self.uplink.forget_limit();
            }
            Event::Closed { key, spoken } => {
                if spoken {
                    self.uplink.received(now, &[key]);
                    self.uplink.somebody_listens();
                    self.link.cloud_spoke();
                }
                self.uplink.forget(key);
            }
            Event::TryCounted { key, tries, reason } => {
                if !self.uplink.failed(now, key, tries) {
                    self.actions.push_back(Action::Bury { key, reason });
                }
            }
            Event::Unsendable { key, reason } => self.give_up(now, key, reason),
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
        self.link.budget(reached, self.budget.exhausted(now));
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
            Event::Wanted { key, form } => self.uplink.wanted_as(now, key, form),
            // It may say so again.
            Event::Busy { after } => self.uplink.hold(now + after.min(RETRY_AFTER_MAX)),
            Event::Failed { key, reason } if self.uplink.fails(now, key) => {
                self.actions.push_back(Action::CountTry { key, reason });
            }
            // On what it was never sent the cloud has nothing to say.
            Event::Dead { key, reason } if self.uplink.was_sent(key) => {
                self.give_up(now, key, reason);
            }
            _ => {}
        }
    }

    fn give_up(&mut self, now: Moment, key: CaseKey, reason: String) {
        self.uplink.dying(now, key);
        self.actions.push_back(Action::Bury { key, reason });
    }

    fn remember(&mut self, now: Moment, case: Waiting) {
        if !self.uplink.add(now, case) {
            self.more_on_disk = true;
        }
    }

    fn permission(&self) -> Permission {
        let pace = [self.link.accept_per_s(), self.policy().drain_per_s].into_iter().flatten().reduce(f32::min);
        Permission { proven: self.link.proven(), accept_per_s: pace }
    }

    fn advance(&mut self, now: Moment) {
        self.weigh_budget(now);
        if self.uplink.wants_another_connection(now, self.link.payload_bytes_max()) && self.link.leave(now) {
            self.actions.push_back(Action::HangUp);
        }
        self.more_on_disk |= self.uplink.look_again(now);
        if self.link.take_leave(now) {
            self.actions.push_back(Action::HangUp);
        }
        if let Some(way) = self.link.take_dial(now) {
            self.actions.push_back(Action::Dial { way });
        }
        let permission = self.permission();
        while self.link.may_send()
            && let Some(step) = self.uplink.step(now, permission)
        {
            let action = match step {
                Step::Ask(keys) => Action::Ask { keys },
                Step::Send(keys) => {
                    // By the state in which it sets out: it may be the last one under a ceiling.
                    let first = self.uplink.shrinks(&keys, self.policy().thumbnail_first());
                    self.budget.spend(now, keys.len() as u64, 0);
                    self.weigh_budget(now);
                    Action::Send { offers: self.uplink.offers(&keys), keys, first }
                }
            };
            self.actions.push_back(action);
        }
        let room = self.uplink.ready() < READY_MAX / 2 && self.uplink.owed() < OWED_MAX;
        if self.more_on_disk && self.fetching.is_none() && room {
            let count = READY_MAX + self.uplink.len();
            self.fetching = Some(count);
            self.more_on_disk = false; // until the answer, or a case stored after the disk was looked at
            let below_bytes = self.uplink.limit().map_or(u32::MAX, |limit| limit.from_bytes);
            self.actions.push_back(Action::Fetch { count, below_bytes });
        }
    }
}

#[cfg(test)]
mod tests;
