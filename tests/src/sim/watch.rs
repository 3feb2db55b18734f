//! Watches the engine from outside: what it was told, and whether what it does follows the rules.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_core::engine::Event;
use hedge_core::link::{Profile, RETRY_AFTER_MAX};
use hedge_core::uplink::{NOBODY_WAIT, Publish, RECEIVED_WAIT, UNCONFIRMED_MAX, WINDOW_MAX};
use hedge_proto::{CaseKey, CloudState, CloudStatus, Name, WIRE_VERSION};

use super::dials::Dials;
use super::oracle::{
    Checked, has_reader, held_back, in_window, not_poured_out, one_probe, under_ceiling, within_the_hour,
};

const HOUR: Duration = Duration::from_secs(3_600);

/// What one run of the engine was told.
#[derive(Debug, Default)]
pub(super) struct Watch {
    connected: bool,
    window: usize,
    statuses: BTreeMap<Name, CloudStatus>,
    /// Something came over this connection that no earlier one can have brought.
    proven: bool,
    /// Sent and without a word since: in which publish, and the moment of its PUBACK.
    flying: BTreeMap<CaseKey, (u64, Option<Moment>)>,
    publishes: u64,
    /// When the last cases were sent, for the hourly ceiling.
    sent_at: VecDeque<Moment>,
    hold_until: Moment,
    /// Since when nobody takes what is sent.
    nobody_since: Option<Moment>,
    /// The earliest next send at the pace of the last one.
    next_send: Moment,
    /// When each payload set out, within the last hour.
    travelled: BTreeMap<CaseKey, VecDeque<Moment>>,
    dials: Dials,
}

impl Watch {
    pub(super) fn new(now: Moment) -> Self {
        Self { dials: Dials::new(now), ..Self::default() }
    }

    /// The engine wants to dial.
    pub(super) fn dials(&mut self, now: Moment, profile: &Profile) -> Checked {
        self.dials.dials(now, profile)
    }

    /// The device ends its connection.
    pub(super) fn leaves(&mut self) {
        self.dials.leaves();
    }

    /// A payload sets out.
    pub(super) fn travels(&mut self, now: Moment, key: CaseKey) -> Checked {
        let at = self.travelled.entry(key).or_default();
        at.push_back(now);
        while at.front().is_some_and(|at| now.since(*at) >= HOUR) {
            at.pop_front();
        }
        within_the_hour(key, at.len())
    }

    /// Its next life begins.
    pub(super) fn requeued(&mut self, key: CaseKey) {
        self.travelled.remove(&key);
    }

    /// Before the engine hears it.
    pub(super) fn hears(&mut self, now: Moment, event: &Event) {
        self.dials.hears(now, event);
        let proven_before = std::mem::take(&mut self.proven);
        self.learns(now, event);
        if self.proven {
            self.nobody_since = None;
        }
        self.proven |= proven_before && !matches!(event, Event::Disconnected(_));
    }

    fn learns(&mut self, now: Moment, event: &Event) {
        let waited = self.nobody_since.is_none_or(|since| now.since(since) >= NOBODY_WAIT);
        if matches!(event, Event::Published { outcome: Publish::Nobody, .. }) && waited {
            self.nobody_since = Some(now);
        }
        match event {
            Event::Connected { receive_maximum } => {
                self.connected = true;
                self.nobody_since = None;
                self.window = WINDOW_MAX.min(usize::from(*receive_maximum)).max(1);
            }
            Event::Disconnected(_) => {
                self.connected = false;
                self.proven = false;
                self.statuses.clear();
                self.flying.clear();
            }
            Event::CloudStatus { instance, status, retained } => {
                let online = status.state == CloudState::Online;
                self.proven |= online && !retained && self.connected;
                if !online && !retained {
                    self.flying.retain(|_, (_, acknowledged)| acknowledged.is_none());
                }
                self.statuses.insert(instance.clone(), status.clone());
                let rests: Option<Vec<u32>> = self.readers().map(|status| status.retry_after_s).collect();
                if let Some(rest_s) = rests.and_then(|rests| rests.into_iter().min()) {
                    self.hold(now + Duration::from_secs(u64::from(rest_s)));
                }
            }
            Event::Published { keys, outcome } => {
                for key in keys {
                    match (self.flying.get_mut(key), outcome) {
                        (Some((_, acknowledged @ None)), Publish::Acknowledged | Publish::Named) => {
                            *acknowledged = Some(now)
                        }
                        (Some((_, None)), Publish::Nobody | Publish::Unclear | Publish::TooLarge { .. }) => {
                            self.flying.remove(key);
                        }
                        _ => {}
                    }
                }
            }
            Event::Received { keys } | Event::Unknown { keys } => {
                self.proven |= self.connected;
                self.flying.retain(|key, _| !keys.contains(key));
            }
            Event::Wanted { key, .. } | Event::Dead { key, .. } | Event::Failed { key, .. } => {
                self.proven |= self.connected;
                self.flying.remove(key);
            }
            Event::TryCounted { key, .. } => {
                self.flying.remove(key);
            }
            Event::Busy { after } => {
                self.proven |= self.connected;
                self.hold(now + (*after).min(RETRY_AFTER_MAX));
            }
            Event::Closed { key, spoken } => {
                self.proven |= *spoken && self.connected;
                self.flying.remove(key);
            }
            Event::Stored(_)
            | Event::Fetched(_)
            | Event::AskFailed { .. }
            | Event::Unsendable { .. }
            | Event::NetworkChanged
            | Event::Configured(_)
            | Event::BrokerChanged
            | Event::OnTrial { .. }
            | Event::Explained(_)
            | Event::Spent { .. }
            | Event::Drain
            | Event::Tick => {}
        }
    }

    /// The engine wants these published whole.
    pub(super) fn sends(&mut self, now: Moment, keys: &[CaseKey], cases_per_hour: Option<u64>) -> Checked {
        self.asks(now)?;
        held_back(now, self.next_send)?;
        not_poured_out(now, self.nobody_since)?;
        let pace = self.pace();
        if pace == Some(0.0) {
            return held_back(now, Moment(u64::MAX));
        }
        if let Some(per_s) = pace {
            self.next_send = now + Duration::from_secs_f32(1.0 / per_s.max(1e-3)).mul_f64(keys.len() as f64);
        }
        self.flying.retain(|_, (_, at)| at.is_none_or(|at| now.since(at) < RECEIVED_WAIT));
        self.publishes += 1;
        self.flying.extend(keys.iter().map(|key| (*key, (self.publishes, None))));
        let unconfirmed: BTreeSet<u64> = self.flying.values().map(|(publish, _)| *publish).collect();
        in_window(unconfirmed.len(), UNCONFIRMED_MAX)?;
        let unacknowledged = self.flying.values().filter(|(_, acknowledged)| acknowledged.is_none());
        in_window(unacknowledged.map(|(publish, _)| *publish).collect::<BTreeSet<_>>().len(), self.window)?;
        one_probe(if self.proven { 0 } else { self.flying.len() })?;
        while self.sent_at.front().is_some_and(|at| now.since(*at) >= HOUR) {
            self.sent_at.pop_front();
        }
        let before = self.sent_at.len();
        self.sent_at.extend(keys.iter().map(|_| now));
        under_ceiling(before, cases_per_hour)
    }

    /// The engine wants to ask.
    pub(super) fn asks(&self, now: Moment) -> Checked {
        has_reader(if self.connected { self.readers().count() } else { 0 })?;
        held_back(now, self.hold_until)
    }

    pub(super) fn proven(&self) -> bool {
        self.proven
    }

    fn hold(&mut self, until: Moment) {
        self.hold_until = self.hold_until.max(until);
    }

    fn readers(&self) -> impl Iterator<Item = &CloudStatus> {
        self.statuses
            .values()
            .filter(|status| status.state == CloudState::Online && status.wire.contains(&WIRE_VERSION))
    }

    fn pace(&self) -> Option<f32> {
        self.readers().map(|status| status.accept).reduce(|a, b| Some(a?.max(b?))).flatten()
    }
}
