//! Decides what the device believes about its way to the cloud, and when to dial.
//!
//! It weighs evidence others bring: the MQTT connection, cloud statuses, answers. It sends nothing and reads
//! no clock. How much is in flight is up to `uplink`.
//!
//! ```text
//!            dial due                session ready            cloud live
//!  Offline ───────────▶ Connecting ───────────────▶ Degraded ◀──────────▶ Online
//!     ▲                     │                           │    no live cloud,  │
//!     │     dial failed     │      connection lost      │    answers late    │
//!     └─────────────────────┴───────────────────────────┴────────────────────┘
//!
//!  Degraded, Online ── window over ──▶ Resting ── next window ──▶ Connecting
//! ```
//!
//! A broker without a live cloud behind it is `Degraded`: connected, but nobody answers. While a ceiling of the
//! budget is reached, a connected link is `OverBudget` instead: it listens and sends nothing. Once the reserve of a byte
//! ceiling is spent as well, the link is left and not dialled until there is room. A device that rests its radio leaves in good order at the end of its window and is `Resting` until the next; a window without a connection
//! leaves it `Offline`.

mod clouds;
mod profile;
mod trouble;
mod window;

use alloc::collections::BTreeMap;
use core::time::Duration;

use hedge_proto::{CloudStatus, LinkState, Name};

use crate::budget::Reached;
use crate::chance::Chance;
use crate::clock::Moment;

pub use self::clouds::RETRY_AFTER_MAX;
pub use self::profile::Profile;
pub use self::trouble::{Trouble, refusal};
use self::window::Window;
pub use self::window::Windows;

/// The shortest wait between two dials.
pub const DIAL_WAIT_MIN: Duration = Duration::from_secs(1);

/// A wait between two dials is this part of the time that there has been trouble: a link that comes and goes every few
/// seconds is met while it is there, and a broker that is away for long is left in peace.
const DIAL_WAIT_SHARE: u32 = 4;

/// So many dials may follow each other without a pause. In the long run there is one in a quarter of the longest wait,
/// whatever ends the connections: six a minute on a LAN, fewer than one when metered.
pub const DIALS_AT_ONCE: u32 = 6;

/// A connection on which the cloud spoke takes so many times its own length off the time of trouble: one that proves
/// nothing but a word leaves the waits long, one that comes and goes is met again soon.
const HELD_COUNTS: u32 = 8;

/// A connection that held for so long was a good one, also when nothing was heard from a cloud on it.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Somebody else uses this client id. Two that fight over it would throw each other out all day.
pub const TAKEN_OVER_WAIT: Duration = Duration::from_secs(180);

/// So many connections in a row, each closed by the broker before it was stable, look like another client with
/// this id: some brokers do not say so.
pub const SHORT_SESSIONS: u32 = 5;

/// The least wait after that guess. It may be wrong (a broker that restarts over and over), so it is below two minutes.
pub const SHORT_SESSIONS_WAIT: Duration = Duration::from_secs(110);

const LIKE_A_TWIN: &str = "the broker closes every connection soon: does another client use this client id?";

/// Without a connection for so long, unless the local file says otherwise, every second dial goes the recovery way: whoever set the usual one wrong can say
/// so there.
pub const RECOVERY_AFTER: Duration = Duration::from_secs(600);

/// A connection by the recovery way is left after so long, to see whether the usual one is there again.
pub const RECOVERY_STAY_MAX: Duration = Duration::from_secs(3600);

const RESTS: &str = "the radio rests until the next window";

/// Something sent and unanswered for so long makes the link `Degraded`.
pub const ANSWER_LATE_AFTER: Duration = Duration::from_secs(30);

/// Which broker is dialled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// The one of the settings in force.
    Usual,
    /// The one that only the local file names.
    Recovery,
}

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The dial failed, or an established connection broke.
    Broken,
    /// The broker closed the connection in good order, without saying why.
    Closed,
    /// The broker answered something that this device had sent by ending the connection.
    Refused,
    /// The broker let another client have our session.
    TakenOver,
}

/// What the device knows about its way to the cloud.
#[derive(Debug)]
pub struct Link {
    state: LinkState,
    reason: &'static str,
    chance: Chance,
    profile: Profile,
    recovery_after: Option<Duration>,
    /// The way of the present connection, or of the last dial; none since the settings changed.
    way: Option<Way>,
    /// The last moment with a connection.
    offline_since: Moment,
    /// The end of the present connection is not a loss: it makes room for one with other settings.
    redials: bool,
    window: Window,
    /// The end of the present connection is that of its window.
    rests: bool,
    /// When to dial next; none while connecting or connected, or when there is no broker at all.
    dial_at: Option<Moment>,
    /// The last good connection ended then.
    trouble_since: Moment,
    /// The present wait leaves the place to another client with our name.
    gives_way: bool,
    connected_at: Moment,
    short_sessions: u32,
    /// Those that are there. Each with whether its status was a retained one, which may be older than its death.
    instances: BTreeMap<Name, (CloudStatus, bool)>,
    /// An instance has said that it is offline.
    gone: bool,
    /// Something that only a live cloud can have sent came over this connection.
    proven: bool,
    /// The cloud owes a word since then.
    silent_since: Option<Moment>,
    late: bool,
    /// What becomes of cases, if the broker takes them to no cloud.
    not_taken: Option<&'static str>,
    /// The cloud asked for rest.
    held: bool,
    over_budget: Option<Reached>,
    /// Not even the connection may cost anything until then.
    exhausted: Option<Reached>,
    /// The end of the present connection is that of the budget.
    spares: bool,
    /// The dials so far are paid for by then; see [`DIALS_AT_ONCE`].
    dials_paid_at: Moment,
}

impl Link {
    /// Dials at once if there is a broker.
    #[must_use]
    pub fn new(now: Moment, has_broker: bool, recovery_after: Option<Duration>, profile: Profile, seed: u64) -> Self {
        Self {
            recovery_after,
            way: None,
            offline_since: now,
            redials: false,
            window: Window::open(now),
            rests: false,
            state: LinkState::Offline,
            reason: if has_broker { "starting" } else { "no broker is configured" },
            chance: Chance::from_seed(seed),
            profile,
            dial_at: has_broker.then_some(now),
            trouble_since: now,
            gives_way: false,
            connected_at: now,
            short_sessions: 0,
            instances: BTreeMap::new(),
            gone: false,
            proven: false,
            silent_since: None,
            late: false,
            not_taken: None,
            held: false,
            over_budget: None,
            exhausted: None,
            spares: false,
            dials_paid_at: now,
        }
    }

    #[must_use]
    pub fn state(&self) -> LinkState {
        self.state
    }

    /// One sentence for people.
    #[must_use]
    pub fn reason(&self) -> &'static str {
        self.reason
    }

    #[must_use]
    pub fn dial_at(&self) -> Option<Moment> {
        let room_at = self.exhausted.map_or(Moment(0), |reached| reached.until);
        self.dial_at.map(|at| at.max(room_at))
    }

    /// When one more dial is within what there may be in the long run.
    fn dial_paid_at(&self) -> Moment {
        self.dials_paid_at - self.dial_every() * (DIALS_AT_ONCE - 1)
    }

    fn dial_every(&self) -> Duration {
        self.profile.dial_wait_max / DIAL_WAIT_SHARE
    }

    /// Whether it is time to dial, and which way; if so the link counts as connecting.
    pub fn take_dial(&mut self, now: Moment) -> Option<Way> {
        self.dial_at().filter(|at| *at <= now)?;
        self.dial_at = None;
        self.dials_paid_at = self.dials_paid_at.max(now) + self.dial_every();
        if let Some(windows) = self.profile.windows {
            self.window.dialled(now, windows);
        }
        self.state = LinkState::Connecting;
        let lost_for_long = self.recovery_after.is_some_and(|after| now.since(self.offline_since) >= after);
        let way;
        (way, self.reason) = match self.way {
            Some(Way::Usual) if lost_for_long => (Way::Recovery, "dialling the recovery broker"),
            _ => (Way::Usual, "dialling"),
        };
        self.way = Some(way);
        self.way
    }

    /// The broker's settings, or what they mean, have changed: true if a connection or dial is to be ended for it.
    pub fn redial(&mut self, now: Moment) -> bool {
        self.trouble_since = now;
        self.gives_way = false;
        (self.rests, self.spares) = (false, false);
        self.window.reopen(now);
        self.way = None;
        self.dial_at = self.dial_at.map(|_| now);
        self.redials = self.is_connected() || self.state == LinkState::Connecting;
        self.redials
    }

    /// Whether the recovery way has been used for long enough, the window is over, or nothing is left of the budget; if
    /// so the connection is to be ended.
    pub fn take_leave(&mut self, now: Moment) -> bool {
        let leaves = self.leave_at().is_some_and(|at| at <= now);
        self.rests |= leaves && self.window_is_over(now);
        self.spares |= leaves && !self.rests && self.exhausted.is_some();
        self.redials |= leaves && !self.rests && !self.spares;
        leaves
    }

    /// Another connection may be better than this one, which is a good one: true if it is to be ended for that.
    pub fn leave(&mut self, now: Moment) -> bool {
        let leaves = self.is_connected() && !self.is_leaving() && !self.window_is_over(now);
        self.redials |= leaves;
        leaves
    }

    /// The end of the present connection is our own doing.
    #[must_use]
    pub fn is_leaving(&self) -> bool {
        self.redials || self.rests || self.spares
    }

    /// When the present connection is to be left.
    #[must_use]
    pub fn leave_at(&self) -> Option<Moment> {
        if !self.is_connected() || self.is_leaving() {
            return None;
        }
        if self.exhausted.is_some() {
            return Some(Moment(0));
        }
        let recovery = (self.way == Some(Way::Recovery)).then_some(self.connected_at + RECOVERY_STAY_MAX);
        [recovery, self.window_ends()].into_iter().flatten().min()
    }

    /// Other windows begin with an open one.
    pub fn set_profile(&mut self, now: Moment, profile: Profile) {
        let other_windows = self.profile.windows != profile.windows;
        self.profile = profile;
        if other_windows {
            self.open_window(now);
        }
    }

    /// Dials at once, because the network has changed. A wait for another client of our name is none of the network's,
    /// and neither is a radio that rests.
    pub fn dial_now(&mut self, now: Moment) {
        if self.dial_at.is_some() && !self.gives_way && !self.window_is_over(now) {
            self.dial_at = Some(now.max(self.dial_paid_at()));
        }
    }

    /// Uses the radio from now on, because somebody wants it.
    pub fn open_window(&mut self, now: Moment) {
        self.window.reopen(now);
        if self.is_connected() {
            self.window.connected(now);
        }
        self.dial_now(now);
    }

    /// Settings are on trial until then, or no longer. A radio that rested meanwhile would fail them; when they are not
    /// any more, whoever tried them gets a window to see how it ended.
    pub fn on_trial(&mut self, now: Moment, until: Option<Moment>) {
        if self.window.hold(until) && until.is_none() {
            self.open_window(now);
        }
    }

    /// Nothing is to go over the radio until the next window, or until the budget has room.
    #[must_use]
    pub fn is_closed(&self, now: Moment) -> bool {
        let shut = self.window_is_over(now) || self.exhausted.is_some();
        !self.is_connected() && self.state != LinkState::Connecting && shut
    }

    fn window_is_over(&self, now: Moment) -> bool {
        self.window_ends().is_some_and(|end| end <= now)
    }

    fn window_ends(&self) -> Option<Moment> {
        self.profile.windows.map(|windows| self.window.ends(windows))
    }

    /// The session is ready: connected, and every subscription granted.
    pub fn connected(&mut self, now: Moment) {
        self.connected_at = now;
        (self.redials, self.rests, self.spares) = (false, false, false);
        self.window.connected(now);
        self.silent_since = None;
        self.late = false;
        self.state = LinkState::Degraded;
        self.weigh();
    }

    pub fn lost(&mut self, now: Moment, loss: Loss) {
        let held = if self.is_connected() { now.since(self.connected_at) } else { Duration::ZERO };
        let stable = held >= STABLE_AFTER;
        if stable {
            self.trouble_since = now;
        } else if self.proven && loss == Loss::Broken {
            // A cloud that spoke is no broker that takes connections and ends them, but a word is no lasting link.
            self.trouble_since = now.min(self.trouble_since + held * HELD_COUNTS);
        }
        let short = self.is_connected() && !stable && loss == Loss::Closed && !self.rests;
        self.short_sessions = if short { self.short_sessions + 1 } else { 0 };
        let twin = self.short_sessions >= SHORT_SESSIONS;
        let trouble = now.since(self.trouble_since);
        // What is left of a ceiling is not spent on dials.
        let least = if self.over_budget.is_some() { self.profile.dial_wait_max } else { DIAL_WAIT_MIN };
        let dial_wait = (trouble / DIAL_WAIT_SHARE).clamp(least, self.profile.dial_wait_max);
        let wait;
        (wait, self.reason) = match loss {
            Loss::Broken => (dial_wait, "no connection to the broker"),
            Loss::TakenOver => (dial_wait.max(TAKEN_OVER_WAIT), "another client uses this device's client id"),
            Loss::Closed if twin => (dial_wait.max(SHORT_SESSIONS_WAIT), LIKE_A_TWIN),
            Loss::Closed => (dial_wait, "the broker closed the connection"),
            Loss::Refused => (dial_wait, "the broker ended the connection over something that was sent"),
        };
        self.gives_way = twin || loss == Loss::TakenOver;
        if twin {
            self.short_sessions = 0;
        }
        if self.is_connected() {
            self.offline_since = now;
        }
        if core::mem::take(&mut self.redials) {
            (self.dial_at, self.gives_way) = (Some(now), false);
        } else {
            let at = now + wait.mul_f64(0.5 + 0.5 * self.chance.share());
            self.dial_at = Some(at.max(self.dial_paid_at()));
        }
        self.spares = false;
        self.state = LinkState::Offline;
        self.wait_for_window(now);
        // Statuses come anew with the next subscription; what was known may be long gone by then.
        self.proven = false;
        self.instances.clear();
        self.gone = false;
    }

    /// A dial that would fall between two windows waits for the next.
    fn wait_for_window(&mut self, now: Moment) {
        let rests = core::mem::take(&mut self.rests);
        let (Some(at), Some(windows)) = (self.dial_at, self.profile.windows) else { return };
        if !rests && at < self.window.ends(windows) {
            return;
        }
        let next = self.window.next(if self.gives_way { at } else { now }, windows);
        // A window is too short for the long waits of the one before it.
        (self.dial_at, self.trouble_since) = (Some(next), next);
        if self.window.has_met() && !self.gives_way {
            (self.state, self.reason) = (LinkState::Resting, RESTS);
            // A rest is no loss: the usual broker is not away for it.
            self.offline_since = next;
        }
    }

    /// Why there is no connection. Ignored once there is one again, and where there is none by our own will.
    pub fn explain(&mut self, trouble: Trouble) {
        if self.state == LinkState::Offline {
            self.reason = trouble.text();
        }
    }

    /// A message about a case came in: a cloud is alive.
    pub fn cloud_spoke(&mut self) {
        self.proven |= self.is_connected();
        self.silent_since = None;
        self.late = false;
        self.weigh();
    }

    /// Whether the cloud owes a word now. Late is measured from its last one, or from when this began.
    pub fn expects_word(&mut self, now: Moment, expects: bool) {
        if !expects {
            self.silent_since = None;
            return;
        }
        let since = *self.silent_since.get_or_insert(now);
        self.late |= now.since(since) >= ANSWER_LATE_AFTER;
        self.weigh();
    }

    /// What became of the last case if the broker took it to no cloud, and whether a cloud asked for rest.
    pub fn delivers(&mut self, not_taken: Option<&'static str>, held: bool) {
        (self.not_taken, self.held) = (not_taken, held);
        self.weigh();
    }

    /// A ceiling is reached, or none is any longer. Reached, the link stays up and only listens; exhausted, it is left.
    pub fn budget(&mut self, reached: Option<Reached>, exhausted: Option<Reached>) {
        (self.over_budget, self.exhausted) = (reached, exhausted);
        if let Some(reached) = exhausted
            && self.state == LinkState::Offline
        {
            self.reason = reached.reason;
        }
        self.weigh();
    }

    /// Whether a cloud reads our messages, as far as its statuses say. Unknown means hold.
    #[must_use]
    pub fn may_send(&self) -> bool {
        self.is_connected() && self.over_budget.is_none() && self.readers().next().is_some()
    }

    fn is_connected(&self) -> bool {
        matches!(self.state, LinkState::Online | LinkState::Degraded | LinkState::OverBudget)
    }

    /// Whether something that only a live cloud can have sent came over this connection.
    #[must_use]
    pub fn proven(&self) -> bool {
        self.proven
    }

    fn weigh(&mut self) {
        if !self.is_connected() {
            return;
        }
        if let Some(reached) = self.over_budget {
            (self.state, self.reason) = (LinkState::OverBudget, reached.reason);
            return;
        }
        (self.state, self.reason) = if self.instances.is_empty() && self.gone {
            (LinkState::Degraded, "connected to the broker; the cloud says it is offline")
        } else if self.instances.is_empty() {
            (LinkState::Degraded, "connected to the broker; no cloud has said it is there")
        } else if self.readers().next().is_none() {
            (LinkState::Degraded, "the cloud does not read this agent's messages; update the cloud")
        } else if self.accept_per_s() == Some(0.0) {
            (LinkState::Degraded, "the cloud takes no cases now")
        } else if let Some(reason) = self.not_taken {
            (LinkState::Degraded, reason)
        } else if self.late {
            (LinkState::Degraded, "the cloud's answers are late")
        } else if self.held {
            // Nothing is wrong with the link: a cloud with much to do says so to one device after the other.
            (LinkState::Online, "connected; the cloud is busy and asked for rest, and cases wait until it is over")
        } else {
            (LinkState::Online, "connected, and a cloud is there")
        };
    }
}

#[cfg(test)]
mod tests;
