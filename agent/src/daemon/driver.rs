//! Turns the engine: brings it events and the time, carries out its actions.
//!
//! One task owns the engine, so no state is shared and none is half updated. The driver itself never waits for
//! a disk or a network: whatever does is started and reports back as an event.

use std::time::Duration;

use hedge_core::budget::Spent;
use hedge_core::clock::Moment;
use hedge_core::engine::{Action, Engine, Event};
use hedge_core::uplink::Limit;
use hedge_proto::{CaseKey, LinkState};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::notify::Watchdog;
use crate::clock::Clock;
use crate::faults::{Faults, Part};
use crate::link::LinkView;
use crate::uplink::{Meter, Outgoing, Uplink};
use hedge_outbox::{Entry, Outbox, Progress, StoreError};

/// Events that may wait for the engine. It takes microseconds for each; whoever is faster waits a moment.
pub(super) const EVENTS_MAX: usize = 1024;

/// Events taken before the engine's actions are carried out: cases sent together are read and written together.
const EVENTS_AT_ONCE: usize = 64;

/// With nothing to do the driver still turns so often, so that the watchdog and the figures see it alive.
const TURN_MAX: Duration = Duration::from_secs(5);

/// How often the state file's keeper can see what was spent.
const SPENT_SHOWN_EVERY: Duration = Duration::from_secs(10);

/// And whoever fetches a bundle, after so many bytes, but not more often than this.
const SPENT_SHOWN_AFTER: (u64, Duration) = (16 * 1024, Duration::from_secs(1));

/// With another connection a limit is forgotten and seen again: only one that stays away has gone.
const LIMIT_GONE_AFTER: Duration = Duration::from_secs(60);

/// The engine and the limbs it moves.
pub(super) struct Driver {
    pub clock: Clock,
    pub engine: Engine,
    pub outbox: Outbox,
    /// None without a broker: the engine then never dials.
    pub uplink: Option<Uplink>,
    pub events: mpsc::Sender<Event>,
    pub link: watch::Sender<LinkView>,
    pub watchdog: Watchdog,
    pub meter: Meter,
    /// What counts against the ceilings, for the state file.
    pub spent: watch::Sender<Spent>,
    pub spent_shown: Instant,
    pub bytes_not_shown: u64,
    pub faults: Faults,
    /// When something was last too large to be sent.
    pub limit_seen: Option<Instant>,
}

impl Driver {
    /// Runs until told to stop.
    pub(super) async fn run(mut self, mut arrived: mpsc::Receiver<Event>, stop: CancellationToken) {
        let (state, reason) = self.engine.link();
        self.show_link(state, reason);
        let mut events = Vec::with_capacity(EVENTS_AT_ONCE);
        loop {
            self.carry_out_all();
            self.watchdog.turned();
            tokio::select! {
                () = stop.cancelled() => break,
                _ = arrived.recv_many(&mut events, EVENTS_AT_ONCE) => {}
                () = tokio::time::sleep(self.until_wake()) => events.push(Event::Tick),
            }
            let now = self.clock.now();
            let bytes = self.meter.take();
            if bytes > 0 {
                self.engine.handle(now, Event::Spent { bytes });
                // Nobody waits for this figure, so nobody is woken.
                self.link.send_if_modified(|view| {
                    view.bytes += bytes;
                    false
                });
            }
            events.drain(..).for_each(|event| self.engine.handle(now, event));
            self.bytes_not_shown += bytes;
            let (since, (many, soon)) = (self.spent_shown.elapsed(), SPENT_SHOWN_AFTER);
            if since >= SPENT_SHOWN_EVERY || (since >= soon && self.bytes_not_shown >= many) {
                self.show_spent();
            }
        }
        self.show_spent();
    }

    fn show_spent(&mut self) {
        (self.spent_shown, self.bytes_not_shown) = (Instant::now(), 0);
        self.spent.send_replace(self.engine.spent(self.clock.now()));
    }

    fn until_wake(&self) -> Duration {
        let now: Moment = self.clock.now();
        self.engine.wake_at().map_or(TURN_MAX, |at| at.since(now)).min(TURN_MAX).min(self.watchdog.turn_within())
    }

    fn carry_out_all(&mut self) {
        let (proven, policy) = (self.engine.proven(), *self.engine.policy());
        let closed = self.engine.is_closed(self.clock.now());
        self.link.send_if_modified(|view| {
            let before = (view.proven, view.policy, view.closed);
            (view.proven, view.policy, view.closed) = (proven, policy, closed);
            before != (proven, policy, closed)
        });
        let mut sends = Vec::new();
        while let Some(action) = self.engine.next_action() {
            self.carry_out(action, &mut sends);
        }
        if !sends.is_empty() {
            let payload_bytes_max = self.engine.payload_bytes_max(self.clock.now());
            self.with_uplink(|uplink| uplink.send(sends, payload_bytes_max, self.engine.wire_max()));
        }
        self.show_limit();
        let newer = self.engine.newer(self.clock.now());
        self.faults.note(&Part::Cloud, newer.map(not_read));
        let in_flight = self.engine.in_flight();
        self.link.send_if_modified(|view| std::mem::replace(&mut view.in_flight, in_flight) != in_flight);
    }

    /// What is to be sent is gathered in `sends`.
    fn carry_out(&self, action: Action, sends: &mut Vec<Outgoing>) {
        match action {
            Action::LinkChanged { state, reason } => self.show_link(state, reason),
            Action::Dial { way } => self.with_uplink(|uplink| uplink.dial(way)),
            Action::HangUp => self.with_uplink(Uplink::leave),
            Action::Send { keys, first, offers } => sends.push(Outgoing { keys, first, offers }),
            Action::Ask { keys } => self.with_uplink(|uplink| uplink.ask(keys)),
            Action::Fetch { count, below_bytes } => self.fetch(count, below_bytes),
            Action::MarkReceived { keys } => self.mark_received(keys),
            Action::CountTry { key, reason } => self.count_try(key, reason),
            Action::Bury { key, reason } => self.bury(key, reason),
        }
    }

    fn show_limit(&mut self) {
        if let Some(limit) = self.engine.limit() {
            self.limit_seen = Some(Instant::now());
            self.faults.set(&Part::Limit, too_large(limit));
        } else if self.limit_seen.is_some_and(|seen| seen.elapsed() >= LIMIT_GONE_AFTER) {
            self.limit_seen = None;
            self.faults.clear(&Part::Limit);
        }
    }

    fn with_uplink(&self, act: impl FnOnce(&Uplink)) {
        if let Some(uplink) = &self.uplink {
            act(uplink);
        }
    }

    fn show_link(&self, state: LinkState, reason: &'static str) {
        tracing::info!(state = state.name(), reason, "link");
        let policy = *self.engine.policy();
        self.link.send_modify(|view| view.enter(state, reason, policy));
    }

    fn fetch(&self, count: usize, below_bytes: u32) {
        let (outbox, events) = (self.outbox.clone(), self.events.clone());
        tokio::task::spawn_blocking(move || {
            let best = outbox.fetch(count, below_bytes).iter().map(Entry::waiting).collect();
            drop(events.blocking_send(Event::Fetched(best)));
        });
    }

    fn mark_received(&self, keys: Vec<CaseKey>) {
        let outbox = self.outbox.clone();
        tokio::spawn(async move {
            let marks = keys.into_iter().map(|key| (key, Progress::Received)).collect();
            outbox.mark(marks).await;
        });
    }

    fn count_try(&self, key: CaseKey, reason: String) {
        let (outbox, events) = (self.outbox.clone(), self.events.clone());
        tokio::spawn(async move {
            tracing::warn!(sequence = key.sequence, reason, "the cloud could not answer a case");
            match outbox.attempt(key).await {
                Ok(tries) => drop(events.send(Event::TryCounted { key, tries, reason }).await),
                // Not counted is tried again: the case stays owed and is asked about.
                Err(error) => tracing::error!(%error, "a failed try could not be recorded"),
            }
        });
    }

    fn bury(&self, key: CaseKey, reason: String) {
        let (outbox, events) = (self.outbox.clone(), self.events.clone());
        tokio::spawn(async move {
            tracing::warn!(sequence = key.sequence, reason, "a case became a dead letter");
            match outbox.dead(key, &reason).await {
                Ok(()) | Err(StoreError::Unknown) => drop(events.send(Event::Closed { key, spoken: false }).await),
                Err(error) => tracing::error!(%error, "a dead letter could not be recorded; it will be tried again"),
            }
        });
    }
}

fn not_read(version: u16) -> String {
    format!(
        "version {version} of the wire is needed, and the cloud does not read such cases: they wait; update the cloud"
    )
}

fn too_large(Limit { from_bytes, bytes_max, .. }: Limit) -> String {
    let why = match bytes_max {
        Some(bytes_max) => format!("broker and cloud take messages of at most {bytes_max} bytes"),
        None => "broker or cloud take none of that size".to_owned(),
    };
    format!(
        "{why}: cases with a payload of {from_bytes} bytes or more wait. Raise the limit there, or give `[payloads] url` \
         another way for them"
    )
}
