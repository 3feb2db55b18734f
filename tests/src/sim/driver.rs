//! A model of the agent's driver: brings the engine events and the time, carries out its actions, and has
//! everything watched.

use hedge_core::engine::{Action, Engine, Event};
use hedge_core::uplink::Publish;
use hedge_proto::{CaseKey, WIRE_VERSION};

use super::Planted;
use super::device::{Step, short, shown};
use super::disk::Op;
use super::lies::FAILED;
use super::message::{Client, End, Form};
use super::oracle::{engine_is_bounded, never_spins, rests};
use super::world::World;

impl World {
    pub(super) fn device_ticks(&mut self) {
        if self.device.tick_at == Some(self.now) {
            self.device.tick_at = None;
        }
        let bytes = std::mem::take(&mut self.device.bytes);
        if bytes > 0 {
            self.tell(Event::Spent { bytes });
        }
        self.tell(Event::Tick);
    }

    /// One turn of the driver.
    pub(super) fn tell(&mut self, event: Event) {
        let now = self.device_now();
        if self.device.engine.is_none() {
            return;
        }
        if !matches!(event, Event::Tick | Event::Spent { .. }) {
            self.trace.note(self.now, || format!("device ← {}", shown(&event)));
        }
        self.device.watch.hears(now, &event);
        if let Some(key) = self.ledger.hears(&event) {
            self.trace.note(self.now, || format!("{} may travel once more", short(key)));
        }
        for event in self.planted_in(event) {
            let Some(engine) = &mut self.device.engine else { return };
            engine.handle(now, event);
        }
        self.carry_out_all();
    }

    pub(super) fn carry_out_all(&mut self) {
        while self.violation.is_none()
            && let Some(action) = self.device.engine.as_mut().and_then(Engine::next_action)
        {
            self.carry_out(action);
        }
        let now = self.device_now();
        let Some(engine) = &self.device.engine else { return };
        let wake_at = engine.wake_at();
        let checked = engine_is_bounded(engine).and(never_spins(now, wake_at));
        self.check(checked);
        let wait = wake_at.map_or(self.plan.turn_max, |at| at.0.saturating_sub(now.0)).min(self.plan.turn_max);
        let at = self.now + wait;
        if self.device.tick_at.is_none_or(|known| known > at) {
            self.device.tick_at = Some(at);
            self.device_after(wait, Step::Tick);
        }
    }

    fn carry_out(&mut self, action: Action) {
        let now = self.device_now();
        self.trace.note(self.now, || format!("engine → {}", shown(&action)));
        if matches!(action, Action::Dial { .. } | Action::Send { .. } | Action::Ask { .. }) {
            let checked = rests(self.device.engine.as_ref().is_some_and(|engine| engine.is_closed(now)));
            self.check(checked);
        }
        match action {
            Action::LinkChanged { .. } => {}
            // Settings do not change in these worlds: it is the end of a window, or of a limit's time.
            Action::HangUp => {
                self.device.watch.leaves();
                if let Some(wire) = self.device.wire {
                    self.hang_up(wire, End::Client);
                }
            }
            Action::Dial { .. } => {
                let checked = self.device.watch.dials(now, &self.plan.profile);
                self.check(checked);
                self.dial(Client::Device, self.device.life);
            }
            Action::Send { keys, first, offers } => {
                self.ledger.tries(&keys);
                let checked = self.device.watch.sends(now, &keys, self.plan.cases_per_hour);
                self.check(checked);
                let form = match first {
                    Some(_) if self.planted == Some(Planted::SendsWhole) => Form::Whole,
                    Some(_) if !offers => Form::Last,
                    Some(_) => Form::Thumbnail,
                    None => Form::Whole,
                };
                self.device_soon(Step::Load(keys.clone(), form));
                if self.planted == Some(Planted::IgnoresWindow) && self.device.watch.proven() {
                    self.tell_behind_the_watch(Event::Received { keys });
                }
            }
            Action::Ask { keys } => {
                self.ledger.tries(&keys);
                let checked = self.device.watch.asks(now);
                self.check(checked);
                match self.planted {
                    Some(Planted::NeverAsks) => {}
                    Some(Planted::SendsOnSilence) => self.device_soon(Step::Load(keys, self.plan.first_form())),
                    _ => self.device_asks(keys),
                }
            }
            Action::Fetch { count, below_bytes } => self.device_soon(Step::Look(count, below_bytes)),
            Action::MarkReceived { keys } => self.device_soon(Step::Mark(keys)),
            Action::CountTry { key, reason } => {
                if reason != FAILED {
                    self.ledger.cut(key);
                }
                self.device_writes(Op::Attempt { key, reason });
            }
            Action::Bury { key, .. } => {
                let checked = self.ledger.buries(key, self.is_poison(key));
                self.check(checked);
                self.device_writes(Op::Bury { key });
            }
        }
    }

    /// Only for planted bugs: the engine hears something that did not happen.
    fn tell_behind_the_watch(&mut self, event: Event) {
        let now = self.device_now();
        if let Some(engine) = &mut self.device.engine {
            engine.handle(now, event);
        }
    }

    fn sends_at_once(&mut self, keys: Vec<CaseKey>) -> Vec<Event> {
        keys.into_iter().for_each(|key| self.device_soon(Step::Load(vec![key], self.plan.first_form())));
        Vec::new()
    }

    /// What the engine hears of an event if a bug is planted there.
    fn planted_in(&mut self, event: Event) -> Vec<Event> {
        match (self.planted, event) {
            (Some(Planted::PubackIsDone), Event::Published { keys, outcome: Publish::Acknowledged }) => {
                let now = self.device_now();
                let closed: Vec<Event> = keys.iter().map(|key| Event::Closed { key: *key, spoken: false }).collect();
                closed.iter().for_each(|closed| self.device.watch.hears(now, closed));
                keys.into_iter().for_each(|key| self.device.disk.forget(key));
                closed
            }
            (Some(Planted::DeadAtFirstFailure), Event::TryCounted { key, reason, .. }) => {
                vec![Event::TryCounted { key, tries: u32::MAX, reason }]
            }
            (Some(Planted::TrustsRetained), Event::CloudStatus { instance, status, .. }) => {
                vec![Event::CloudStatus { instance, status, retained: false }]
            }
            (Some(Planted::SendsToAnyCloud), Event::CloudStatus { instance, mut status, retained }) => {
                status.wire = vec![WIRE_VERSION];
                vec![Event::CloudStatus { instance, status, retained }]
            }
            (Some(Planted::IgnoresBusy), Event::Busy { .. }) => Vec::new(),
            (Some(Planted::DialsAtOnce), event @ Event::Disconnected(_)) => vec![event, Event::NetworkChanged],
            (Some(Planted::DialsWithoutEnd), event @ Event::Disconnected(_)) => {
                let now = self.device_now();
                self.device.watch.hears(now, &Event::NetworkChanged);
                vec![event, Event::BrokerChanged]
            }
            (Some(Planted::SendsWhenWanted), Event::Wanted { key, .. }) => self.sends_at_once(vec![key]),
            (Some(Planted::SendsWhenWanted), Event::Unknown { keys }) => self.sends_at_once(keys),
            (Some(Planted::CountsEachFailed), Event::Failed { key, reason }) => {
                self.device_writes(Op::Attempt { key, reason });
                Vec::new()
            }
            (Some(Planted::DeadAtLimit), Event::Published { keys, outcome: Publish::TooLarge { .. } }) => {
                let dead = |key| Event::Unsendable { key, reason: "too large".to_owned() };
                keys.into_iter().map(dead).collect()
            }
            (_, event) => vec![event],
        }
    }
}
