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
//! ```
//!
//! A broker without a live cloud behind it is `Degraded`: connected, but nobody answers. While a ceiling of the
//! budget is reached, a connected link is `OverBudget` instead: it listens and sends nothing. A device that rests its
//! radio leaves in good order at the end of its window and is `Resting` until the next; a window without a connection
//! leaves it `Offline`.

mod window;

use alloc::collections::BTreeMap;
use core::time::Duration;

use hedge_proto::{CloudState, CloudStatus, LinkState, Name, WIRE_VERSION};

use crate::budget::Reached;
use crate::chance::Chance;
use crate::clock::Moment;

use self::window::Window;
pub use self::window::Windows;

/// The shortest wait between two dials.
pub const DIAL_WAIT_MIN: Duration = Duration::from_secs(1);

/// A wait between two dials is this part of the time that there has been trouble: a link that comes and goes every few
/// seconds is met while it is there, and a broker that is away for long is left in peace.
const DIAL_WAIT_SHARE: u32 = 4;

/// What kind of link the device has: what it costs to keep and to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// The longest wait between two dials. A repaired link must be noticed within this time.
    pub dial_wait_max: Duration,
    /// How often the device shows that it is alive; a cut that nothing else shows is seen within twice that.
    pub keep_alive: Duration,
    /// How often live figures are sent while nothing changes.
    pub telemetry: Duration,
    /// None: the link is used at any time.
    pub windows: Option<Windows>,
}

impl Profile {
    /// Costs nothing: a cut is seen within 45 s, a repaired link used within 60 s.
    pub const LAN: Self = Self {
        dial_wait_max: Duration::from_secs(40),
        keep_alive: Duration::from_secs(20),
        telemetry: Duration::from_secs(60),
        windows: None,
    };

    /// Paid by the byte: at most 300 KB a day while idle.
    pub const METERED: Self = Self {
        dial_wait_max: Duration::from_secs(300),
        keep_alive: Duration::from_secs(600),
        telemetry: Duration::from_secs(6 * 3600),
        windows: None,
    };
}

/// A connection that held for so long was a good one, also when nothing was heard from a cloud on it.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// Somebody else uses this client id. Two that fight over it would throw each other out all day.
pub const TAKEN_OVER_WAIT: Duration = Duration::from_secs(180);

/// So many connections in a row, each closed by the broker before it was stable, look like another client with
/// this id: some brokers do not say so.
pub const SHORT_SESSIONS: u32 = 5;

/// The wait after that guess. It may be wrong (a broker that restarts over and over), so it is below two minutes.
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

/// The longest rest a status may ask for; it may say so again.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

/// How many cloud instances are remembered. A fleet's cloud has a handful.
const INSTANCES_MAX: usize = 64;

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
    /// The broker let another client have our session.
    TakenOver,
}

/// Why there is no connection, as far as can be told. Words for people; nothing is decided by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// An established connection ended.
    Lost,
    NoName,
    NoRoute,
    NobodyListens,
    NoAnswer,
    NotTrusted,
    NotAllowed,
    CaptivePortal,
    WrongClock,
    /// The internet is there, the broker is not.
    OnlyBroker,
}

impl Trouble {
    /// One sentence for people.
    #[must_use]
    pub fn text(self) -> &'static str {
        match self {
            Self::Lost => "the connection to the broker was lost",
            Self::NoName => "the broker's name is not known: no DNS, or a wrong name",
            Self::NoRoute => "there is no network, or no route to the broker",
            Self::NobodyListens => "nobody listens at the broker's address and port",
            Self::NoAnswer => "the broker does not answer",
            Self::NotTrusted => "the broker's certificate is not trusted: check ca_file, the name and the clock",
            Self::NotAllowed => "the broker refuses this device's user, password or certificate",
            Self::CaptivePortal => "something else answers in the internet's place: a captive portal?",
            Self::WrongClock => "this device's clock is wrong, so certificates are not valid",
            Self::OnlyBroker => "the internet is there, but the broker is not",
        }
    }
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
    instances: BTreeMap<Name, CloudStatus>,
    /// Something that only a live cloud can have sent came over this connection.
    proven: bool,
    /// The cloud owes a word since then.
    silent_since: Option<Moment>,
    late: bool,
    over_budget: Option<Reached>,
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
            proven: false,
            silent_since: None,
            late: false,
            over_budget: None,
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
        self.dial_at
    }

    /// Whether it is time to dial, and which way; if so the link counts as connecting.
    pub fn take_dial(&mut self, now: Moment) -> Option<Way> {
        self.dial_at.take_if(|at| *at <= now)?;
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
        self.rests = false;
        self.window.reopen(now);
        self.way = None;
        self.dial_at = self.dial_at.map(|_| now);
        self.redials = self.is_connected() || self.state == LinkState::Connecting;
        self.redials
    }

    /// Whether the recovery way has been used for long enough, or the window is over; if so the connection is to be
    /// ended.
    pub fn take_leave(&mut self, now: Moment) -> bool {
        let leaves = self.leave_at().is_some_and(|at| at <= now);
        self.rests |= leaves && self.window_is_over(now);
        self.redials |= leaves && !self.rests;
        leaves
    }

    /// When the present connection is to be left.
    #[must_use]
    pub fn leave_at(&self) -> Option<Moment> {
        if !self.is_connected() || self.redials || self.rests {
            return None;
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
            self.dial_at = Some(now);
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

    /// Nothing is to go over the radio until the next window.
    #[must_use]
    pub fn is_closed(&self, now: Moment) -> bool {
        !self.is_connected() && self.state != LinkState::Connecting && self.window_is_over(now)
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
        self.redials = false;
        self.rests = false;
        self.window.connected(now);
        self.silent_since = None;
        self.late = false;
        self.state = LinkState::Degraded;
        self.weigh();
    }

    pub fn lost(&mut self, now: Moment, loss: Loss) {
        let stable = self.is_connected() && now.since(self.connected_at) >= STABLE_AFTER;
        // A cloud that spoke is no broker that takes connections and ends them.
        if stable || (self.proven && loss == Loss::Broken) {
            self.trouble_since = now;
        }
        let short = self.is_connected() && !stable && loss == Loss::Closed && !self.rests;
        self.short_sessions = if short { self.short_sessions + 1 } else { 0 };
        let twin = self.short_sessions >= SHORT_SESSIONS;
        let trouble = now.since(self.trouble_since);
        let dial_wait = (trouble / DIAL_WAIT_SHARE).clamp(DIAL_WAIT_MIN, self.profile.dial_wait_max);
        let wait;
        (wait, self.reason) = match loss {
            Loss::Broken => (dial_wait, "no connection to the broker"),
            Loss::TakenOver => (TAKEN_OVER_WAIT, "another client uses this device's client id"),
            Loss::Closed if twin => (SHORT_SESSIONS_WAIT, LIKE_A_TWIN),
            Loss::Closed => (dial_wait, "the broker closed the connection"),
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
            self.dial_at = Some(now + wait.mul_f64(0.5 + 0.5 * self.chance.share()));
        }
        self.state = LinkState::Offline;
        self.wait_for_window(now);
        // Statuses come anew with the next subscription; what was known may be long gone by then.
        self.proven = false;
        self.instances.clear();
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

    /// A cloud instance's status. A retained one may be older than the instance's death.
    pub fn cloud_status(&mut self, instance: Name, status: CloudStatus, retained: bool) {
        // Before the session is ready the broker hands over what it kept while we were away.
        self.proven |= self.is_connected() && !retained && status.state == CloudState::Online;
        if self.instances.len() < INSTANCES_MAX || self.instances.contains_key(&instance) {
            self.instances.insert(instance, status);
        }
        self.weigh();
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

    /// A ceiling is reached, or none is any longer. Reached, the link stays up and only listens.
    pub fn budget(&mut self, reached: Option<Reached>) {
        self.over_budget = reached;
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

    /// The cases per second the cloud takes from one device: the most any instance offers, none for no limit.
    #[must_use]
    pub fn accept_per_s(&self) -> Option<f32> {
        self.readers().map(|status| status.accept).reduce(|a, b| Some(a?.max(b?))).flatten()
    }

    /// The largest payload that each instance takes within a message: any of them may get it.
    #[must_use]
    pub fn payload_bytes_max(&self) -> Option<u64> {
        self.readers().filter_map(|status| status.payload_bytes_max).min()
    }

    /// How long the cloud asks to be left alone, when all its instances do.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.readers().map(|status| status.retry_after_s).reduce(|a, b| Some(a?.min(b?))).flatten()?;
        Some(Duration::from_secs(u64::from(seconds)).min(RETRY_AFTER_MAX))
    }

    fn readers(&self) -> impl Iterator<Item = &CloudStatus> {
        self.instances
            .values()
            .filter(|status| status.state == CloudState::Online && status.wire.contains(&WIRE_VERSION))
    }

    fn weigh(&mut self) {
        if !self.is_connected() {
            return;
        }
        if let Some(reached) = self.over_budget {
            (self.state, self.reason) = (LinkState::OverBudget, reached.reason);
            return;
        }
        let online = self.instances.values().any(|status| status.state == CloudState::Online);
        (self.state, self.reason) = if self.instances.is_empty() {
            (LinkState::Degraded, "connected to the broker; no cloud has said it is there")
        } else if !online {
            (LinkState::Degraded, "connected to the broker; the cloud says it is offline")
        } else if self.readers().next().is_none() {
            (LinkState::Degraded, "the cloud does not read this agent's messages; update the cloud")
        } else if self.late {
            (LinkState::Degraded, "the cloud's answers are late")
        } else {
            (LinkState::Online, "connected, and a cloud is there")
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::vec::Vec;

    fn status(state: CloudState, wire: &[u16]) -> CloudStatus {
        CloudStatus { state, wire: wire.into(), accept: None, retry_after_s: None, payload_bytes_max: None }
    }

    fn instance() -> Name {
        Name::new("i1").expect("valid")
    }

    fn connected() -> Link {
        let mut link = Link::new(Moment(0), true, None, Profile::LAN, 1);
        assert!(link.take_dial(Moment(0)).is_some());
        link.connected(Moment(10));
        link
    }

    #[test]
    fn a_broker_without_a_live_cloud_is_degraded() {
        let mut link = connected();
        assert_eq!(link.state(), LinkState::Degraded);
        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), true);
        assert_eq!(link.state(), LinkState::Online);
        assert!(link.may_send() && !link.proven());
        link.cloud_status(instance(), status(CloudState::Offline, &[WIRE_VERSION]), false);
        assert_eq!(link.state(), LinkState::Degraded);
        assert!(!link.may_send());
    }

    #[test]
    fn what_the_broker_kept_while_we_were_away_proves_no_live_cloud() {
        let mut link = Link::new(Moment(0), true, None, Profile::LAN, 1);
        assert!(link.take_dial(Moment(0)).is_some());
        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
        link.cloud_spoke();
        link.connected(Moment(10));
        assert!(link.may_send() && !link.proven());
        link.cloud_spoke();
        assert!(link.proven());
    }

    #[test]
    fn an_old_cloud_is_held_for_and_said_so() {
        let mut link = connected();
        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION + 1]), false);
        assert!(!link.may_send());
        assert!(link.reason().contains("update the cloud"));
    }

    const DIAL_WAIT_MAX: Duration = Profile::LAN.dial_wait_max;

    /// How long the link waits after a connection that held for so long, and when it dials then.
    fn after_session(link: &mut Link, now: Moment, held: Duration, proven: bool, loss: Loss) -> (Duration, Moment) {
        assert!(link.take_dial(now).is_some());
        link.connected(now);
        if proven {
            link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
        }
        link.lost(now + held, loss);
        let at = link.dial_at().expect("dials again");
        (at.since(now + held), at)
    }

    #[test]
    fn dial_waits_grow_with_the_trouble_and_a_good_connection_ends_it() {
        let mut link = Link::new(Moment(0), true, None, Profile::LAN, 7);
        let mut now = Moment(0);
        for _ in 0..60 {
            assert!(link.take_dial(now).is_some());
            link.lost(now, Loss::Broken);
            let at = link.dial_at().expect("dials again");
            let most = (now.since(Moment(0)) / DIAL_WAIT_SHARE).clamp(DIAL_WAIT_MIN, DIAL_WAIT_MAX);
            assert!(at.since(now) <= most && at.since(now) >= most / 2);
            now = at;
        }
        let few_s = Duration::from_secs(3);
        let (wait, now) = after_session(&mut link, now, few_s, false, Loss::Broken);
        assert!(wait >= DIAL_WAIT_MAX / 2, "a short session on which nobody spoke ends nothing");
        let (wait, now) = after_session(&mut link, now, few_s, true, Loss::Closed);
        assert!(wait >= DIAL_WAIT_MAX / 2, "nor one that the broker ended");
        let (wait, now) = after_session(&mut link, now, few_s, true, Loss::Broken);
        assert!(wait <= DIAL_WAIT_MIN, "the cloud spoke");
        let (wait, _) = after_session(&mut link, now, STABLE_AFTER, false, Loss::Closed);
        assert!(wait <= DIAL_WAIT_MIN, "it was stable");
    }

    #[test]
    fn a_link_that_comes_and_goes_is_met_while_it_is_there() {
        const PHASES_MS: [u64; 7] = [1_000, 30_000, 2_000, 20_000, 5_000, 15_000, 3_000];
        for seed in 0..200 {
            let mut link = Link::new(Moment(0), true, None, Profile::LAN, seed);
            let (mut start, mut met) = (0, 0);
            for (number, length) in PHASES_MS.iter().cycle().take(50).enumerate() {
                let end = start + length;
                while let Some(at) = link.dial_at().filter(|at| at.0 < end) {
                    assert!(link.take_dial(at).is_some());
                    if number % 2 == 0 {
                        link.lost(at, Loss::Broken);
                    } else {
                        link.connected(at);
                        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
                        met = at.0;
                    }
                }
                if link.is_connected() {
                    link.lost(Moment(end), Loss::Broken);
                }
                start = end;
                assert!(start - met < 120_000, "seed {seed}: not met from {met} to {start} ms");
            }
        }
    }

    #[test]
    fn a_taken_over_session_waits_minutes() {
        let mut link = connected();
        link.lost(Moment(20), Loss::TakenOver);
        link.dial_now(Moment(30));
        assert!(link.dial_at().expect("dials again").since(Moment(20)) >= TAKEN_OVER_WAIT / 2);
    }

    #[test]
    fn a_few_connections_closed_at_once_look_like_a_twin_but_a_stable_or_broken_one_does_not() {
        let mut link = Link::new(Moment(0), true, None, Profile::LAN, 1);
        let mut session = |held: Duration, loss: Loss| {
            let now = link.dial_at().expect("dials again");
            assert!(link.take_dial(now).is_some());
            link.connected(now);
            link.lost(now + held, loss);
            link.reason().contains("client id")
        };
        let short = Duration::from_secs(5);
        for end in [Loss::Broken, Loss::Closed] {
            let held = if end == Loss::Closed { STABLE_AFTER } else { short };
            (0..SHORT_SESSIONS - 1).for_each(|_| assert!(!session(short, Loss::Closed)));
            assert!(!session(held, end), "{end:?}");
        }
        (0..SHORT_SESSIONS - 1).for_each(|_| assert!(!session(short, Loss::Closed)));
        assert!(session(short, Loss::Closed));
        assert!(!session(short, Loss::Closed), "and then it is tried anew");
    }

    #[test]
    fn late_answers_degrade_and_a_word_from_the_cloud_heals() {
        let mut link = connected();
        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
        link.expects_word(Moment(1_000), true);
        link.expects_word(Moment(1_000) + ANSWER_LATE_AFTER, true);
        assert_eq!(link.state(), LinkState::Degraded);
        link.expects_word(Moment(99_000), false);
        assert_eq!(link.state(), LinkState::Degraded, "only a word heals");
        link.cloud_spoke();
        assert_eq!(link.state(), LinkState::Online);
    }

    #[test]
    fn other_settings_are_dialled_at_once_whatever_the_link_was_doing() {
        let mut link = connected();
        assert!(link.redial(Moment(50)), "a connection is ended for it");
        link.lost(Moment(60), Loss::Broken);
        assert_eq!(link.take_dial(Moment(60)), Some(Way::Usual));
        assert!(link.redial(Moment(70)), "and so is a dial");
        link.lost(Moment(80), Loss::Broken);
        assert_eq!(link.take_dial(Moment(80)), Some(Way::Usual));
        link.lost(Moment(90), Loss::TakenOver);
        assert!(!link.redial(Moment(95)), "a wait is only cut short");
        assert_eq!(link.take_dial(Moment(95)), Some(Way::Usual));
    }

    #[test]
    fn after_long_without_a_connection_every_second_dial_goes_the_recovery_way() {
        let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), Profile::LAN, 1);
        let mut ways = Vec::new();
        let mut now = Moment(0);
        while now < Moment(0) + RECOVERY_AFTER * 2 {
            ways.push((now, link.take_dial(now).expect("dials")));
            link.lost(now, Loss::Broken);
            now = link.dial_at().expect("dials again");
        }
        let early = |at: &Moment| *at < Moment(0) + RECOVERY_AFTER;
        assert!(ways.iter().all(|(at, way)| !early(at) || *way == Way::Usual), "{ways:?}");
        let late: Vec<Way> = ways.iter().filter(|(at, _)| !early(at)).map(|(_, way)| *way).collect();
        assert!(late.chunks_exact(2).all(|pair| pair[0] != pair[1]), "{late:?}");
    }

    #[test]
    fn the_recovery_way_is_left_in_time_to_try_the_usual_one() {
        let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), Profile::LAN, 1);
        assert_eq!(link.take_dial(Moment(0)), Some(Way::Usual));
        let now = Moment(0) + RECOVERY_AFTER;
        link.lost(now, Loss::Broken);
        let now = link.dial_at().expect("dials again");
        assert_eq!(link.take_dial(now), Some(Way::Recovery));
        link.connected(now);
        let at = link.leave_at().expect("is left");
        assert!(!link.take_leave(at - Duration::from_millis(1)));
        assert!(link.take_leave(at));
        assert!(!link.take_leave(at), "once");
        link.lost(at, Loss::Broken);
        assert_eq!(link.take_dial(at), Some(Way::Usual));
    }

    const HOURLY: Profile = Profile {
        windows: Some(Windows { every: Duration::from_secs(3600), open: Duration::from_secs(120) }),
        ..Profile::METERED
    };

    fn at_s(seconds: u64) -> Moment {
        Moment(seconds * 1000)
    }

    #[test]
    fn between_windows_the_radio_rests_whatever_the_network_does() {
        let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), HOURLY, 1);
        for hour in 0..20 {
            let begins = at_s(3600 * hour);
            assert_eq!(link.take_dial(begins), Some(Way::Usual), "hour {hour}: a rest is no outage");
            link.connected(begins + Duration::from_secs(5));
            let end = link.leave_at().expect("is left");
            assert_eq!(end, begins + Duration::from_secs(125), "a slow dial does not shorten the stay");
            assert!(!link.take_leave(end - Duration::from_millis(1)) && !link.is_closed(end));
            assert!(link.take_leave(end) && !link.take_leave(end), "once");
            // The broker may be faster than we are.
            link.lost(end, if hour % 2 == 0 { Loss::Closed } else { Loss::Broken });
            link.explain(Trouble::Lost);
            assert_eq!((link.state(), link.reason()), (LinkState::Resting, RESTS), "hour {hour}: no trouble");
            assert!(link.is_closed(end));
            link.dial_now(end + Duration::from_secs(60));
            assert_eq!(link.dial_at(), Some(begins + Duration::from_secs(3600)), "windows do not drift");
        }
    }

    #[test]
    fn a_window_without_a_connection_is_given_up_at_its_end_and_leaves_the_device_offline() {
        let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), HOURLY, 1);
        let (mut now, mut ways) = (Moment(0), Vec::new());
        while now < at_s(4 * 3600) {
            ways.push(link.take_dial(now).expect("dials"));
            link.lost(now, Loss::Broken);
            assert_eq!(link.state(), LinkState::Offline);
            now = link.dial_at().expect("dials again");
            let into = Duration::from_millis(now.0 % 3_600_000);
            assert!(into < Duration::from_secs(120), "{into:?} after a window began");
        }
        assert!(ways.len() >= 16 && ways.contains(&Way::Recovery), "tried, and tried the other way: {ways:?}");
    }

    #[test]
    fn a_connection_that_breaks_in_its_window_is_dialled_anew_but_not_for_longer() {
        let mut link = Link::new(Moment(0), true, None, HOURLY, 1);
        assert!(link.take_dial(Moment(0)).is_some());
        link.connected(Moment(0));
        link.lost(at_s(60), Loss::Broken);
        let again = link.dial_at().expect("dials again");
        assert!(again < at_s(120) && link.take_dial(again).is_some());
        link.connected(again);
        assert_eq!(link.leave_at(), Some(at_s(120)));
        link.lost(at_s(119), Loss::Broken);
        if link.dial_at().expect("dials again") < at_s(120) {
            assert_eq!(link.state(), LinkState::Offline);
            link.lost(at_s(121), Loss::Broken);
        }
        assert_eq!((link.state(), link.dial_at()), (LinkState::Resting, Some(at_s(3600))));
    }

    #[test]
    fn another_client_with_our_name_is_left_in_peace_for_minutes_also_with_short_windows() {
        let windows = Some(Windows { every: Duration::from_secs(60), open: Duration::from_secs(30) });
        let mut link = Link::new(Moment(0), true, None, Profile { windows, ..Profile::LAN }, 1);
        assert!(link.take_dial(Moment(0)).is_some());
        link.connected(Moment(0));
        link.lost(at_s(10), Loss::TakenOver);
        assert_eq!(link.state(), LinkState::Offline);
        assert!(link.dial_at().expect("dials again").since(at_s(10)) >= TAKEN_OVER_WAIT / 2);
    }

    #[test]
    fn other_windows_begin_with_an_open_one_and_none_is_for_good() {
        let mut link = Link::new(Moment(0), true, None, HOURLY, 1);
        assert!(link.take_dial(Moment(0)).is_some());
        link.connected(Moment(0));
        link.set_profile(at_s(100), Profile::METERED);
        assert_eq!(link.leave_at(), None);
        link.set_profile(at_s(1200), HOURLY);
        assert_eq!(link.leave_at(), Some(at_s(1320)));
        assert!(link.take_leave(at_s(1320)));
        link.lost(at_s(1321), Loss::Broken);
        assert_eq!((link.state(), link.dial_at()), (LinkState::Resting, Some(at_s(1200 + 3600))));
        link.set_profile(at_s(2000), Profile::METERED);
        assert_eq!(link.dial_at(), Some(at_s(2000)));
    }

    #[test]
    fn without_a_broker_it_never_dials() {
        let mut link = Link::new(Moment(0), false, None, Profile::LAN, 1);
        link.dial_now(Moment(5));
        assert_eq!(link.take_dial(Moment(1_000_000)), None);
        assert_eq!(link.state(), LinkState::Offline);
    }

    #[test]
    fn the_most_generous_instance_sets_the_pace_and_all_must_ask_for_rest() {
        let mut link = connected();
        let mut first = status(CloudState::Online, &[WIRE_VERSION]);
        (first.accept, first.retry_after_s) = (Some(2.0), Some(9));
        link.cloud_status(instance(), first.clone(), true);
        assert_eq!((link.accept_per_s(), link.retry_after()), (Some(2.0), Some(Duration::from_secs(9))));
        first.retry_after_s = Some(u32::MAX);
        link.cloud_status(instance(), first.clone(), true);
        assert_eq!(link.retry_after(), Some(RETRY_AFTER_MAX), "nobody is silenced for good");
        (first.accept, first.retry_after_s) = (Some(5.0), None);
        link.cloud_status(Name::new("i2").expect("valid"), first.clone(), true);
        assert_eq!((link.accept_per_s(), link.retry_after()), (Some(5.0), None));
        first.accept = None;
        link.cloud_status(Name::new("i3").expect("valid"), first, true);
        assert_eq!(link.accept_per_s(), None);
    }

    #[test]
    fn a_payload_is_no_larger_than_any_instance_takes() {
        let mut link = connected();
        assert_eq!(link.payload_bytes_max(), None);
        for (name, state, bytes) in [
            ("i1", CloudState::Online, Some(2_000)),
            ("i2", CloudState::Online, None),
            ("i3", CloudState::Online, Some(3_000)),
            ("i4", CloudState::Offline, Some(1)),
        ] {
            let status = CloudStatus { payload_bytes_max: bytes, ..status(state, &[WIRE_VERSION]) };
            link.cloud_status(Name::new(name).expect("valid"), status, true);
        }
        assert_eq!(link.payload_bytes_max(), Some(2_000));
    }
}
