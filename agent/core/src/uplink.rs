//! Decides which cases are sent or asked about, and when.
//!
//! It keeps the window of what is in flight and the memory of what the cloud owes an answer to. Whether there
//! is a link is up to `link`; what lies on disk is up to `outbox`. PUBACK frees a window slot, nothing more.
//!
//! ```text
//!           send               PUBACK                  received
//!  Ready ─────────▶ Publishing ───────▶ Published ────────────────▶ Held ──▶ (verdict stored: gone)
//!    ▲   ▲              │                   │ silence                │ silence
//!    │   │ nobody there │ cut               ▼          ask           ▼
//!    │   └──────────────┤◀────────────── Doubtful ──────────▶ Asked ─┐
//!    │                  └──────────────────▶▲ silence, cut ◀─────────┤
//!    └────────────────────── unknown, send, failed ◀─────────────────┘
//! ```
//!
//! Invariant: after one full publish a payload travels again only if the cloud says that it lacks it, and however often
//! it says so, at most [`SENDS_PER_HOUR_MAX`] times in any hour. A thumbnail that goes first and the whole that follows
//! when the cloud says `send` count as one payload.
//!
//! What a message does not take now, because broker or cloud take less, waits on the disk and holds nobody up: that is a
//! state of the world, which another connection may end.
//!
//! What goes next: cases whose callers wait; then by worth, but every fourth publish is kept for what was stored
//! just now, so that a long backlog does not make today's questions late. Small cases share a publish on their
//! first way.

mod congestion;
mod heard;
mod limits;
mod next;
mod repeats;
mod suspects;
mod tracked;
mod travel;

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{CaseKey, IDS_MAX};

use crate::clock::{Moment, doubled};
use crate::link::Loss;

use self::congestion::Congestion;
pub use self::limits::*;
use self::suspects::Suspicion;
pub use self::suspects::{ALONE_AFTER, CUT_AFTER, Guilty, HELD_WAIT, HELD_WAIT_MAX};
pub use self::tracked::Waiting;
use self::tracked::{Phase, Tracked, Whole, worth};
pub use self::travel::{MESSAGE_TIME_MAX, Travel, travel};

/// What is to be done next.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// In one publish.
    Send(Vec<CaseKey>),
    Ask(Vec<CaseKey>),
}

/// How a publish ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Publish {
    /// The broker has it and somebody subscribes.
    Acknowledged,
    /// The same of a message without all of its payload: it only names what went another way, or has a thumbnail of it.
    Named,
    /// The broker has it and nobody subscribes, or it was never sent: the cloud cannot have it.
    Nobody,
    /// The connection was lost: the cloud may or may not have it.
    Unclear,
    /// Its payload could not be brought to the cloud first; nothing was said of the case.
    Stuck,
    /// It did not set out: the cloud does not read this version of the wire.
    Newer { version: u16 },
    /// The broker has refused it and said so.
    Refused,
    /// It did not set out: broker and cloud take messages of at most so many bytes now, if they say so.
    TooLarge { bytes_max: Option<u32> },
}

/// What keeps cases back for their size.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// The smallest payload that was seen not to fit.
    pub from_bytes: u32,
    /// What a message may have, if broker or cloud have said so; otherwise connections ended over it.
    pub bytes_max: Option<u32>,
    /// When it is looked at again.
    until: Moment,
}

/// The window and what the cloud owes.
#[derive(Debug)]
pub struct Uplink {
    cases: BTreeMap<CaseKey, Tracked>,
    window_max: usize,
    congestion: Congestion,
    /// The payload bytes one publish of several cases may carry; 0 for one case each.
    batch_bytes_max: u32,
    publishes: u64,
    /// Nothing is sent before this: the cloud asked for rest.
    hold_until: Moment,
    /// When the last payload began, for the pace of the next one.
    last_send: Option<Moment>,
    /// No payload is sent before this: nobody took the last one. And how often in a row that was so.
    nobody_until: Moment,
    nobody_times: u32,
    /// What became of the last payload, if the broker took it to nobody.
    not_taken: Option<&'static str>,
    connected_at: Moment,
    /// What messages do not take over the present connection.
    limit: Option<Limit>,
    /// On their way when the connection ended, as far as that is known already.
    cut: Vec<CaseKey>,
    suspicion: Option<Suspicion>,
    /// A version of the wire that a case needed and the cloud did not read, and how long that is believed.
    newer: Option<(u16, Moment)>,
    /// How often payloads travelled in an earlier run, and when they did last, of cases that were not in memory since.
    repeated_before: BTreeMap<CaseKey, (u32, Moment)>,
    /// The largest payload that the broker was seen to take.
    carried_bytes: Option<u32>,
    /// Whether the broker has taken a thumbnail.
    carried_small: bool,
}

/// What the link allows.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Permission {
    /// A live cloud has spoken on this connection; otherwise one case at a time is the probe.
    pub proven: bool,
    /// Cases per second that the cloud takes and the link's state allows; none for no limit.
    pub accept_per_s: Option<f32>,
}

impl Uplink {
    /// `batch_bytes_max`: payload bytes that small cases may share a publish up to; 0 for one case each.
    #[must_use]
    pub fn new(batch_bytes_max: u32) -> Self {
        Self {
            cases: BTreeMap::new(),
            window_max: WINDOW_MAX,
            congestion: Congestion::unknown(Moment(0)),
            batch_bytes_max,
            publishes: 0,
            hold_until: Moment(0),
            last_send: None,
            nobody_until: Moment(0),
            nobody_times: 0,
            not_taken: None,
            connected_at: Moment(0),
            limit: None,
            cut: Vec::new(),
            suspicion: None,
            newer: None,
            repeated_before: BTreeMap::new(),
            carried_bytes: None,
            carried_small: false,
        }
    }

    /// For what is sent from now on.
    pub fn set_batch_bytes_max(&mut self, batch_bytes_max: u32) {
        self.batch_bytes_max = batch_bytes_max;
    }

    #[must_use]
    pub fn knows(&self, key: CaseKey) -> bool {
        self.cases.contains_key(&key)
    }

    /// How many cases are remembered as ready to be sent for the first time.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.cases.values().filter(|case| case.is_ready()).count()
    }

    #[must_use]
    pub fn len(&self) -> usize {
        self.cases.len()
    }

    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.cases.is_empty()
    }

    /// Cases sent whose verdict has not come.
    #[must_use]
    pub fn owed(&self) -> usize {
        self.cases.len() - self.ready()
    }

    /// The bound that does not hold, if any; for assertions and simulations.
    #[must_use]
    pub fn broken_bound(&self) -> Option<&'static str> {
        if self.publishes(Tracked::is_publishing) > WINDOW_MAX {
            Some("more publishes are in flight than the window holds")
        } else if self.publishes(Tracked::is_unconfirmed) > UNCONFIRMED_MAX {
            Some("more publishes are unconfirmed than may be")
        } else if self.cases.len() > READY_MAX + OWED_MAX {
            Some("more cases are in memory than may be")
        } else {
            None
        }
    }

    /// Takes a case into memory. False if it or a lesser one has no room there and is left to the disk.
    pub fn add(&mut self, now: Moment, case: Waiting) -> bool {
        // What does not fit is left to the disk until the limit is looked at again; it has no place to take from others.
        let waits = self.limit.is_some_and(|limit| case.payload_bytes >= limit.from_bytes) && !case.sent;
        if self.knows(case.key) || waits {
            return true;
        }
        let urgent = case.urgent && self.cases.values().filter(|known| known.case.urgent).count() < URGENT_MAX;
        let case = Waiting { urgent, ..case };
        let had_room = case.sent || self.ready() < READY_MAX;
        let (phase, room) = if case.sent {
            (Phase::Doubtful { not_before: now }, self.owed() < OWED_MAX)
        } else {
            (Phase::Ready { not_before: now }, self.make_room(&case))
        };
        if room {
            let mut tracked = Tracked::new(now, case, phase);
            if let Some(before) = self.repeated_before.remove(&case.key) {
                (tracked.sends, tracked.sent_at) = before;
            }
            self.cases.insert(case.key, tracked);
        }
        room && had_room
    }

    /// Whether one more may wait in memory, if need be in the place of one that is worth less.
    fn make_room(&mut self, case: &Waiting) -> bool {
        if self.ready() < READY_MAX {
            return true;
        }
        let least = self.cases.values().filter(|known| known.is_ready()).min_by(|a, b| a.worth().total_cmp(&b.worth()));
        match least.map(|least| (least.case.key, least.worth())) {
            Some((key, least)) if least < worth(case) => self.cases.remove(&key).is_some(),
            _ => false,
        }
    }

    /// The session is ready; the broker takes at most `receive_maximum` publishes in flight.
    pub fn connected(&mut self, now: Moment, receive_maximum: u16) {
        self.window_max = WINDOW_MAX.min(usize::from(receive_maximum)).max(1);
        self.congestion = Congestion::unknown(now);
        self.connected_at = now;
        for case in self.cases.values_mut().filter(|case| case.whole == Whole::TooLarge) {
            case.whole = Whole::Offered;
        }
        self.cut.clear();
        self.somebody_listens();
    }

    /// What is too large for a message now, if anything is.
    #[must_use]
    pub fn limit(&self) -> Option<Limit> {
        self.limit
    }

    /// The version of the wire that cases wait for, as far as one was seen lately; a cloud may read it by now.
    #[must_use]
    pub fn newer(&self, now: Moment) -> Option<u16> {
        self.newer.filter(|(_, until)| now < *until).map(|(version, _)| version)
    }

    /// Broker or cloud may take more now, or it is time to look: true if cases on the disk were kept back.
    pub fn forget_limit(&mut self) -> bool {
        self.limit.take().is_some()
    }

    /// What was to be taken over the present connection has been too little for so long that another one may take more: a
    /// broker says it once, when a connection begins. `cloud_bytes_max` is what the cloud takes.
    #[must_use]
    pub fn wants_another_connection(&self, now: Moment, cloud_bytes_max: Option<u64>) -> bool {
        let of_cloud = |from: u32| cloud_bytes_max.is_some_and(|max| u64::from(from) > max);
        let of_broker = |limit: &Limit| limit.bytes_max.is_some() && !of_cloud(limit.from_bytes);
        let due = self.limit.as_ref().is_some_and(|limit| limit.until <= now && of_broker(limit));
        due && now >= self.connected_at + LIMIT_OUTLIVES
    }

    /// As [`Self::forget_limit`], if it is time to look again.
    pub fn look_again(&mut self, now: Moment) -> bool {
        self.try_others_first(now);
        self.limit.is_some_and(|limit| limit.until <= now) && self.forget_limit()
    }

    /// The largest payload that is sent within a message, as far as was learnt from connections that ended over it.
    #[must_use]
    pub fn payload_bytes_max(&self, now: Moment) -> Option<u64> {
        self.suspected_from(now).map(|from| u64::from(from.saturating_sub(1)))
    }

    /// A live cloud has spoken, or this is another connection: the next payload need not wait any longer.
    pub fn somebody_listens(&mut self) {
        self.nobody_until = Moment(0);
        self.nobody_times = 0;
        self.not_taken = None;
    }

    /// One sentence for people, while the broker takes payloads to nobody.
    #[must_use]
    pub fn not_taken(&self) -> Option<&'static str> {
        self.not_taken
    }

    /// Whether nothing is sent because the cloud asked for rest.
    #[must_use]
    pub fn is_held(&self, now: Moment) -> bool {
        now < self.hold_until
    }

    fn nobody_listens(&mut self, now: Moment) {
        // What was sent side by side is told side by side, and counts once.
        if now >= self.nobody_until {
            self.nobody_until = now + doubled(NOBODY_WAIT, self.nobody_times, NOBODY_WAIT_MAX);
            self.nobody_times += 1;
        } else {
            // A publish that took nearly as long as the wait tells it anew.
            self.nobody_until = self.nobody_until.max(now + NOBODY_WAIT);
        }
    }

    /// Whatever was under way when the connection broke may or may not have arrived. A wait the cloud asked
    /// for outlives the connection.
    ///
    /// `loss` is none if we have ended it ourselves. Returns the case that is to blame, if that is clear.
    pub fn disconnected(&mut self, now: Moment, loss: Option<Loss>) -> Option<Guilty> {
        let mut flying = core::mem::take(&mut self.cut);
        flying.extend(self.cases.iter().filter(|(_, case)| case.is_publishing()).map(|(key, _)| *key));
        let guilty = self.suspects(now, &flying, loss);
        for case in self.cases.values_mut() {
            if matches!(case.phase, Phase::Publishing | Phase::Published | Phase::Asked | Phase::Held) {
                case.enter(now, Phase::Doubtful { not_before: now });
            }
        }
        guilty
    }

    /// Waits that earlier failures left behind are over. A rest the cloud asked for, its pace, and how often a payload
    /// may travel still hold.
    pub fn forget_failures(&mut self, now: Moment) {
        self.somebody_listens();
        self.forget_suspicion();
        for case in self.cases.values_mut() {
            if let Phase::Ready { not_before } | Phase::Doubtful { not_before } = &mut case.phase {
                *not_before = now.min(*not_before);
            }
        }
    }

    /// The cloud asks for rest.
    pub fn hold(&mut self, until: Moment) {
        self.hold_until = self.hold_until.max(until);
        self.congestion = Congestion::unknown(until);
    }

    /// Whether the cloud owes a word on something: a publish or a question.
    #[must_use]
    pub fn expects_word(&self) -> bool {
        self.cases.values().any(|case| matches!(case.phase, Phase::Published | Phase::Asked))
    }

    /// A cloud instance went down: what it had said it holds may be gone with it.
    pub fn instance_lost(&mut self, now: Moment) {
        self.congestion = Congestion::unknown(now);
        for case in self.cases.values_mut() {
            if matches!(case.phase, Phase::Published | Phase::Asked | Phase::Held) {
                case.enter(now, Phase::Doubtful { not_before: now + INSTANCE_LOST_WAIT });
            }
        }
    }

    /// The next thing to do now, if any; it counts as begun.
    pub fn step(&mut self, now: Moment, permission: Permission) -> Option<Step> {
        self.doubt_the_silent(now);
        if now < self.hold_until || permission.accept_per_s == Some(0.0) {
            return None;
        }
        self.ask(now).or_else(|| self.send(now, permission))
    }

    fn doubt_the_silent(&mut self, now: Moment) {
        for case in self.cases.values_mut() {
            let silent = match case.phase {
                Phase::Published | Phase::Asked => {
                    now.since(case.since) >= doubled(RECEIVED_WAIT, case.asked, QUIET_MAX)
                }
                Phase::Held => now.since(case.since) >= doubled(VERDICT_WAIT, case.asked, QUIET_MAX),
                Phase::Ready { .. } | Phase::Publishing | Phase::Doubtful { .. } => false,
            };
            if silent {
                if case.phase == Phase::Published {
                    self.congestion.halve(now, case.sent_at);
                }
                case.enter(now, Phase::Doubtful { not_before: now });
            }
        }
    }

    fn ask(&mut self, now: Moment) -> Option<Step> {
        let due = |case: &Tracked| matches!(case.phase, Phase::Doubtful { not_before } if not_before <= now);
        let keys: Vec<CaseKey> =
            self.cases.iter().filter(|(_, case)| due(case)).map(|(key, _)| *key).take(IDS_MAX).collect();
        for key in &keys {
            if let Some(case) = self.cases.get_mut(key) {
                case.asked = case.asked.saturating_add(1);
                case.tried = true;
                case.enter(now, Phase::Asked);
            }
        }
        (!keys.is_empty()).then_some(Step::Ask(keys))
    }

    fn send(&mut self, now: Moment, permission: Permission) -> Option<Step> {
        if !self.has_slot(permission) || now < self.paced_until(permission).max(self.nobody_until) {
            return None;
        }
        let (suspects, tried) = self.suspects_due(now);
        // A suspect has the connection to itself until the broker has said what it makes of it.
        if tried || (!suspects.is_empty() && self.publishes(Tracked::is_publishing) > 0) {
            return None;
        }
        let first = self.next_case(now, suspects)?;
        // While the cloud is not proven up, or paces us, one case is one publish.
        let alone = !permission.proven
            || permission.accept_per_s.is_some()
            || self.cases.get(&first).is_some_and(|case| self.is_suspect(case));
        let keys = if alone { [first].into() } else { self.with_company(now, first) };
        self.publishes += 1;
        for key in &keys {
            if let Some(case) = self.cases.get_mut(key) {
                case.sets_out(now, self.publishes);
            }
        }
        self.last_send = Some(now);
        Some(Step::Send(keys))
    }

    /// Answered, dead, evicted or dropped by hand: nothing more is done about it.
    pub fn forget(&mut self, key: CaseKey) {
        self.cases.remove(&key);
    }

    /// When the next step may become due without any event. What waits for a slot or for the cloud to take
    /// anything at all waits for an event.
    #[must_use]
    pub fn wake_at(&self, permission: Permission) -> Option<Moment> {
        let takes = permission.accept_per_s != Some(0.0);
        let sends = takes && self.has_slot(permission);
        let send_at = self.paced_until(permission).max(self.hold_until).max(self.nobody_until);
        // While a suspect is tried, or waits for the window to empty, an event comes before anything else is sent.
        let places = self.places();
        let waits = |case: &Tracked| case.due_at().is_some() && self.fits(case, places);
        let crosses = |case: &Tracked| self.is_suspect(case) && (case.is_publishing() || waits(case));
        let crossed = self.cases.values().any(Tracked::is_publishing) && self.cases.values().any(crosses);
        let ready_at = |case: &Tracked| {
            let alone_at = if self.is_suspect(case) { self.connected_at + ALONE_AFTER } else { Moment(0) };
            case.due_at()
                .filter(|_| sends && !crossed && self.fits(case, places))
                .map(|at| at.max(send_at).max(alone_at))
        };
        let due = |case: &Tracked| match case.phase {
            Phase::Ready { .. } => ready_at(case),
            Phase::Doubtful { not_before } => takes.then(|| not_before.max(self.hold_until)),
            Phase::Published | Phase::Asked => Some(case.since + doubled(RECEIVED_WAIT, case.asked, QUIET_MAX)),
            Phase::Held => Some(case.since + doubled(VERDICT_WAIT, case.asked, QUIET_MAX)),
            Phase::Publishing => None,
        };
        let looks_at = self.limit.map(|limit| limit.until);
        self.cases.values().filter_map(due).chain(looks_at).min()
    }
}

#[cfg(test)]
mod tests;
