//! The device: the real engine, and a model of what carries out its actions (`hedge-agent`'s driver, uplink and
//! outbox).

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use hedge_core::budget::{Budget, Ceilings, Spent};
use hedge_core::clock::Moment;
use hedge_core::engine::{Action, Engine, Event, Setup};
use hedge_core::link::Loss;
use hedge_core::outbox::sort_key;
use hedge_core::uplink::{Publish, Waiting};
use hedge_proto::{CaseKey, CloudState, CloudStatus, Epoch, Name, WIRE_VERSION};

use super::Planted;
use super::disk::{Disk, Op, Progress, Stage};
use super::message::{Ack, Client, Down, End, Message, Packet, Status};
use super::watch::Watch;
use super::world::{Happening, World};

/// How often the queue on disk catches up.
pub(super) const CHECKPOINT_MS: u64 = 10_000;

/// What a packet without a payload weighs.
const PACKET_BYTES: u64 = 100;

/// What goes on inside the agent's process. It dies with it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Tick,
    /// A task tells the engine something.
    Tell(Event),
    /// A task reads cases, to publish them in one message.
    Load(Vec<CaseKey>),
    /// A task looks for the best cases.
    Look(usize),
    Mark(Vec<CaseKey>),
    Write(Op),
    /// Every sink has the correction.
    Delivered(CaseKey),
    Checkpoint,
}

/// A publish that waits for its PUBACK.
#[derive(Debug)]
enum UnderWay {
    Cases(Vec<CaseKey>),
    Ask(Vec<CaseKey>),
}

#[derive(Debug)]
pub(super) struct Device {
    /// None while it is off.
    pub(super) engine: Option<Engine>,
    pub(super) life: u32,
    pub(super) disk: Disk,
    pub(super) watch: Watch,
    pub(super) wire: Option<usize>,
    /// The connection once every subscription is granted.
    session: Option<usize>,
    /// What counts against the ceilings, as the state file has it.
    spent: Spent,
    /// By how much the powered clock is behind the world's.
    pub(super) clock_behind: u64,
    epoch: Epoch,
    sequence: u64,
    under_way: BTreeMap<u32, UnderWay>,
    next_id: u32,
    /// What came by the present connection, in order, and whether it may be acknowledged.
    inbox: VecDeque<(u32, bool)>,
    /// The connection that was hung up because a verdict could not be stored: nobody waits for its others.
    unheard: Option<usize>,
    tick_at: Option<u64>,
    /// Read since the last tick.
    bytes: u64,
}

impl Device {
    pub(super) fn new() -> Self {
        Self {
            engine: None,
            life: 0,
            disk: Disk::default(),
            watch: Watch::default(),
            wire: None,
            session: None,
            spent: Spent::default(),
            clock_behind: 0,
            epoch: Epoch(0),
            sequence: 0,
            under_way: BTreeMap::new(),
            next_id: 0,
            inbox: VecDeque::new(),
            unheard: None,
            tick_at: None,
            bytes: 0,
        }
    }
}

impl World {
    pub(super) fn device_now(&self) -> Moment {
        Moment(self.now - self.device.clock_behind)
    }

    pub(super) fn device_starts(&mut self) {
        if self.device.engine.is_some() {
            return;
        }
        self.device.epoch = Epoch(self.dice.number());
        self.device.sequence = 0;
        let open = self.device.disk.open().count() as u64;
        self.note(|| format!("the device starts with {open} open cases"));
        let now = self.device_now();
        let ceilings =
            if self.planted == Some(Planted::IgnoresCeilings) { Ceilings::LAN } else { self.plan.ceilings() };
        let setup = Setup {
            has_broker: true,
            open_cases: open,
            profile: self.plan.profile,
            budget: Budget::resume(ceilings, Some(self.device.spent.clone()), now),
            batch_bytes_max: self.plan.batch_bytes_max,
            seed: self.dice.number(),
        };
        let engine = Engine::new(now, setup);
        self.device.engine = Some(engine);
        self.device.watch = Watch::default();
        let answered: Vec<CaseKey> = self.device.disk.answered().collect();
        for key in answered {
            self.device_soon(Step::Delivered(key));
        }
        self.device_after(CHECKPOINT_MS, Step::Checkpoint);
        self.carry_out_all();
    }

    pub(super) fn device_dies(&mut self, power_cut: bool) {
        if self.device.engine.take().is_none() {
            return;
        }
        self.device.life += 1;
        if let Some(wire) = self.device.wire {
            if power_cut {
                self.swallow(wire);
            }
            self.hang_up(wire, End::Client);
        }
        self.device.wire = None;
        self.device.session = None;
        self.device.under_way.clear();
        self.device.inbox.clear();
        self.device.tick_at = None;
        if power_cut {
            let lost = self.dice.between(0, 600_000);
            self.device.clock_behind = (self.device.clock_behind + lost).min(self.now);
        }
        let rebuilt = self.dice.one_in(3);
        self.device.disk.reopen(rebuilt);
        let unmarked: Vec<CaseKey> = self
            .device
            .disk
            .open()
            .filter(|(_, row)| row.stage == Stage::Open(Progress::Waiting))
            .map(|(key, _)| key)
            .collect();
        self.ledger.progress_lost(unmarked);
        self.ledger_check_stored();
    }

    /// A sample the device is not sure about.
    pub(super) fn new_case(&mut self) {
        if self.device.engine.is_none() {
            return;
        }
        let key = CaseKey { epoch: self.device.epoch, sequence: self.device.sequence };
        self.device.sequence += 1;
        #[expect(clippy::cast_precision_loss, reason = "a share")]
        let priority = self.dice.between(1, 1_000) as f32 / 1_000.0;
        let (low, high) = self.plan.payload_bytes;
        let stored_at = self.device_now();
        let case = Waiting {
            key,
            sort_key: sort_key(priority, stored_at),
            stored_at,
            payload_bytes: u32::try_from(self.dice.between(low, high)).unwrap_or(u32::MAX),
            sent: false,
            urgent: self.dice.one_in(self.plan.urgent_one_in),
        };
        if self.planted == Some(Planted::StoredBeforeDurable) {
            self.ledger.said_stored(key);
        }
        self.device_writes(Op::Store(case));
    }

    pub(super) fn drop_by_hand(&mut self) {
        let open: Vec<CaseKey> = self.device.disk.open().map(|(key, _)| key).collect();
        if !open.is_empty() {
            let key = self.dice.pick(&open);
            self.ledger.dropped(key);
            self.device.disk.forget(key);
            self.device_after(1, Step::Tell(Event::Closed { key, spoken: false }));
        }
    }

    pub(super) fn requeue_by_hand(&mut self) {
        let dead: Vec<CaseKey> = self.device.disk.dead().collect();
        for key in dead {
            self.ledger.requeued(key);
            if let Some(case) = self.device.disk.requeue(key) {
                // A person is slower than the task that made it a dead letter.
                self.device_after(5, Step::Tell(Event::Stored(case)));
            }
        }
    }

    pub(super) fn device_step(&mut self, life: u32, step: Step) {
        if self.device.engine.is_none() || self.device.life != life {
            return;
        }
        match step {
            Step::Tick => self.device_ticks(),
            Step::Tell(event) => self.tell(event),
            Step::Load(keys) => self.device_publishes(keys),
            Step::Look(count) => {
                let mut found = self.device.disk.fetch(count);
                if self.planted == Some(Planted::DropsLeftovers) && found.len() > 8 {
                    found.truncate(8);
                }
                self.device_soon(Step::Tell(Event::Fetched(found)));
            }
            Step::Mark(keys) => keys.into_iter().for_each(|key| self.device.disk.mark(key, Progress::Received)),
            Step::Write(op) => self.device_wrote(op),
            Step::Delivered(key) => self.device_writes(Op::Forget { key }),
            Step::Checkpoint => {
                self.device.disk.checkpoint();
                if let Some(engine) = &self.device.engine {
                    self.device.spent = engine.spent().clone();
                }
                self.device_after(CHECKPOINT_MS, Step::Checkpoint);
            }
        }
    }

    /// A task of the agent goes on a moment later, and now and then much later.
    fn device_soon(&mut self, step: Step) {
        let slow = self.dice.one_in(self.plan.slow_task_one_in);
        let wait = if slow { self.dice.between(1, 5_000) } else { self.dice.between(0, 2) };
        self.device_after(wait, step);
    }

    fn device_after(&mut self, wait: u64, step: Step) {
        let life = self.device.life;
        self.after(wait, Happening::Device { life, step });
    }

    /// Hands an operation to the log's thread.
    fn device_writes(&mut self, op: Op) {
        let (low, high) = self.plan.disk;
        let at = (self.now + self.dice.between(low, high)).max(self.device.disk.written_at);
        self.device.disk.written_at = at;
        self.device_after(at - self.now, Step::Write(op));
    }

    /// The operation is committed, or the disk refuses it.
    fn device_wrote(&mut self, op: Op) {
        let full = self.device.disk.full_until > self.now;
        match op {
            Op::Store(_) if full => {}
            Op::Store(case) => {
                self.device.disk.store(case);
                self.ledger.said_stored(case.key);
                self.device_soon(Step::Tell(Event::Stored(case)));
            }
            Op::Answer { key, revision, wire, id } => self.device_answered(key, revision, (wire, id), full),
            // What is small may still fit into the reserve.
            _ if full && self.dice.one_in(2) => self.note(|| format!("the disk refuses {op:?}")),
            Op::Attempt { key, reason } => {
                if let Some(tries) = self.device.disk.attempt(key) {
                    self.device_soon(Step::Tell(Event::TryCounted { key, tries, reason }));
                }
            }
            Op::Bury { key } => {
                self.device.disk.bury(key);
                self.note(|| format!("{} is a dead letter", short(key)));
                self.device_after(1, Step::Tell(Event::Closed { key, spoken: false }));
            }
            Op::Forget { key } => self.device.disk.forget(key),
        }
    }

    fn device_answered(&mut self, key: CaseKey, revision: u32, message: (usize, u32), full: bool) {
        let (wire, id) = message;
        let listening = self.device.wire == Some(wire);
        if full && self.dice.one_in(2) {
            self.note(|| format!("the verdict on {} cannot be stored; hanging up", short(key)));
            if self.planted == Some(Planted::AcksBeforeDurable) {
                return;
            }
            self.device.unheard = Some(wire);
            self.hang_up(wire, End::Client);
            return;
        }
        let applied = self.device.disk.answer(key, revision) || self.planted == Some(Planted::AppliesTwice);
        if applied {
            let checked = self.ledger.applied(key, revision);
            self.check(checked);
            let wait = self.dice.between(10, 20_000);
            self.device_after(wait, Step::Delivered(key));
        }
        if self.planted == Some(Planted::AcksBeforeDurable) || self.device.unheard == Some(wire) {
            return;
        }
        self.device_soon(Step::Tell(Event::Closed { key, spoken: true }));
        if listening {
            self.settle(id, key);
        }
    }

    /// A message is done with; messages are acknowledged in the order they came.
    fn settle(&mut self, id: u32, key: CaseKey) {
        let durable = !matches!(self.device.disk.get(key).map(|row| row.stage), Some(Stage::Open(_)));
        self.check(super::oracle::acknowledged_is_durable(durable));
        self.acknowledge(id);
    }

    fn acknowledge(&mut self, id: u32) {
        for (known, done) in &mut self.device.inbox {
            *done |= *known == id;
        }
        let Some(wire) = self.device.wire else { return };
        while let Some((id, true)) = self.device.inbox.front().copied() {
            self.device.inbox.pop_front();
            self.transmit(wire, End::Client, Packet::PubAck { id, ack: Ack::Taken });
        }
    }

    fn device_ticks(&mut self) {
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
        let Some(engine) = &mut self.device.engine else { return };
        if !matches!(event, Event::Tick | Event::Spent { .. }) {
            self.trace.note(self.now, || format!("device ← {}", shown(&event)));
        }
        self.device.watch.hears(now, &event);
        if let Some(key) = self.ledger.hears(&event) {
            self.trace.note(self.now, || format!("{} may travel once more", short(key)));
        }
        if self.planted == Some(Planted::PubackIsDone)
            && let Event::Published { keys, outcome: Publish::Acknowledged } = event
        {
            for key in keys {
                let closed = Event::Closed { key, spoken: false };
                self.device.watch.hears(now, &closed);
                engine.handle(now, closed);
                self.device.disk.forget(key);
            }
        } else if self.planted == Some(Planted::DeadAtFirstFailure)
            && let Event::TryCounted { key, reason, .. } = event
        {
            engine.handle(now, Event::TryCounted { key, tries: u32::MAX, reason });
        } else if self.planted == Some(Planted::TrustsRetained)
            && let Event::CloudStatus { instance, status, .. } = event
        {
            engine.handle(now, Event::CloudStatus { instance, status, retained: false });
        } else if self.planted == Some(Planted::SendsToAnyCloud)
            && let Event::CloudStatus { instance, mut status, retained } = event
        {
            status.wire = vec![WIRE_VERSION];
            engine.handle(now, Event::CloudStatus { instance, status, retained });
        } else if !(self.planted == Some(Planted::IgnoresBusy) && matches!(event, Event::Busy { .. })) {
            engine.handle(now, event);
        }
        self.carry_out_all();
    }

    fn carry_out_all(&mut self) {
        while self.violation.is_none()
            && let Some(action) = self.device.engine.as_mut().and_then(Engine::next_action)
        {
            self.carry_out(action);
        }
        let now = self.device_now();
        let Some(engine) = &self.device.engine else { return };
        let wake_at = engine.wake_at();
        let checked = super::oracle::engine_is_bounded(engine).and(super::oracle::never_spins(now, wake_at));
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
        match action {
            Action::LinkChanged { .. } => {}
            Action::Dial => self.dial(Client::Device, self.device.life),
            Action::Send { keys } => {
                let checked = self.device.watch.sends(now, &keys, self.plan.cases_per_hour);
                self.check(checked);
                self.device_soon(Step::Load(keys.clone()));
                if self.planted == Some(Planted::IgnoresWindow) {
                    self.tell_behind_the_watch(Event::Received { keys });
                }
            }
            Action::Ask { keys } => {
                let checked = self.device.watch.asks(now);
                self.check(checked);
                match self.planted {
                    Some(Planted::NeverAsks) => {}
                    Some(Planted::SendsOnSilence) => self.device_soon(Step::Load(keys)),
                    _ => self.device_asks(keys),
                }
            }
            Action::Fetch { count } => self.device_soon(Step::Look(count)),
            Action::MarkReceived { keys } => self.device_soon(Step::Mark(keys)),
            Action::CountTry { key, reason } => self.device_writes(Op::Attempt { key, reason }),
            Action::Bury { key, .. } => {
                let checked = self.ledger.buries(key);
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

    fn device_asks(&mut self, keys: Vec<CaseKey>) {
        match self.device.session {
            Some(wire) => self.device_transmits(wire, Message::Ask(keys.clone()), UnderWay::Ask(keys)),
            None => self.device_soon(Step::Tell(Event::AskFailed { keys })),
        }
    }

    fn device_publishes(&mut self, mut keys: Vec<CaseKey>) {
        keys.retain(|key| self.device_loads(*key));
        if keys.is_empty() {
            return;
        }
        let Some(wire) = self.device.session else {
            return self.device_soon(Step::Tell(Event::Published { keys, outcome: Publish::Nobody }));
        };
        for key in &keys {
            let open = matches!(self.device.disk.get(*key).map(|row| row.stage), Some(Stage::Open(_)));
            let checked = self.ledger.travels(*key, open);
            self.check(checked);
        }
        self.device_transmits(wire, Message::Cases(keys.clone()), UnderWay::Cases(keys));
    }

    /// Whether it is still to be sent; if so it counts as sent from here on.
    fn device_loads(&mut self, key: CaseKey) -> bool {
        let stage = self.device.disk.get(key).map(|row| row.stage);
        let open = matches!(stage, Some(Stage::Open(_)));
        let planted = stage.is_some() && self.planted == Some(Planted::SendsAnswered);
        if !open && !planted {
            self.device_soon(Step::Tell(Event::Closed { key, spoken: false }));
            return false;
        }
        self.device.disk.mark(key, Progress::Sent);
        true
    }

    fn device_transmits(&mut self, wire: usize, message: Message, what: UnderWay) {
        self.device.next_id += 1;
        let id = self.device.next_id;
        self.device.under_way.insert(id, what);
        self.transmit(wire, End::Client, Packet::Publish { id, message, retained: false });
    }

    pub(super) fn device_gets(&mut self, wire: usize, packet: Packet) {
        if self.device.wire != Some(wire) {
            return;
        }
        self.device.bytes += PACKET_BYTES;
        match packet {
            Packet::ConnAck => self.transmit(wire, End::Client, Packet::Subscribe),
            Packet::SubAck => {
                self.device.session = Some(wire);
                let receive_maximum = self.plan.receive_maximum;
                self.device_soon(Step::Tell(Event::Connected { receive_maximum }));
            }
            Packet::PubAck { id, ack } => self.device_hears_ack(id, ack),
            Packet::Publish { id, message, retained } => {
                self.device.inbox.push_back((id, false));
                self.device_reads(wire, id, message, retained);
            }
            Packet::Connect | Packet::Subscribe => {}
        }
    }

    fn device_hears_ack(&mut self, id: u32, ack: Ack) {
        let event = match (self.device.under_way.remove(&id), ack) {
            (Some(UnderWay::Cases(keys)), Ack::Taken) => Event::Published { keys, outcome: Publish::Acknowledged },
            (Some(UnderWay::Cases(keys)), Ack::Nobody | Ack::Refused) => {
                keys.iter().for_each(|key| self.ledger.allows(*key));
                Event::Published { keys, outcome: Publish::Nobody }
            }
            (Some(UnderWay::Ask(keys)), Ack::Nobody | Ack::Refused) => Event::AskFailed { keys },
            (Some(UnderWay::Ask(_)), Ack::Taken) | (None, _) => return,
        };
        self.device_soon(Step::Tell(event));
    }

    fn device_reads(&mut self, wire: usize, id: u32, message: Message, retained: bool) {
        let event = match message {
            Message::Status(instance, status) => cloud_status(instance, status, retained),
            Message::Down(Down::Verdict { key, revision }) => {
                self.trace.note(self.now, || format!("device reads a verdict on {}", short(key)));
                if self.planted == Some(Planted::AcksBeforeDurable) {
                    self.settle(id, key);
                    self.device_soon(Step::Tell(Event::Closed { key, spoken: true }));
                }
                return self.device_writes(Op::Answer { key, revision, wire, id });
            }
            Message::Down(Down::Received(keys)) => Event::Received { keys },
            Message::Down(Down::Unknown(keys)) => Event::Unknown { keys },
            Message::Down(Down::Busy { after_s }) => Event::Busy { after: Duration::from_secs(u64::from(after_s)) },
            Message::Down(Down::Failed(key)) => Event::Failed { key, reason: "failed".to_owned() },
            Message::Down(Down::Dead(key)) => Event::Dead { key, reason: "dead".to_owned() },
            Message::Down(Down::Send(key)) => Event::Wanted { key },
            Message::Cases(_) | Message::Ask(_) => return,
        };
        self.tell(event);
        self.acknowledge(id);
    }

    /// The device's end of a connection is closed.
    pub(super) fn device_lost(&mut self, wire: usize, taken_over: bool) {
        if self.device.engine.is_none() || self.device.wire != Some(wire) {
            return;
        }
        self.device.wire = None;
        self.device.session = None;
        self.device.inbox.clear();
        for (_, what) in std::mem::take(&mut self.device.under_way) {
            self.device_soon(Step::Tell(match what {
                UnderWay::Cases(keys) => Event::Published { keys, outcome: Publish::Unclear },
                UnderWay::Ask(keys) => Event::AskFailed { keys },
            }));
        }
        let loss = if taken_over { Loss::TakenOver } else { Loss::Broken };
        self.device_soon(Step::Tell(Event::Disconnected(loss)));
    }

    pub(super) fn device_dial_failed(&mut self) {
        self.device_soon(Step::Tell(Event::Disconnected(Loss::Broken)));
    }
}

fn cloud_status(instance: usize, status: Status, retained: bool) -> Event {
    let Status { online, reads, accept_per_s, retry_after_s } = status;
    let Ok(instance) = Name::new(&format!("i{instance}")) else { return Event::Tick };
    let status = CloudStatus {
        state: if online { CloudState::Online } else { CloudState::Offline },
        wire: vec![if reads { WIRE_VERSION } else { WIRE_VERSION + 1 }],
        accept: accept_per_s,
        retry_after_s,
        payload_bytes_max: None,
    };
    Event::CloudStatus { instance, status, retained }
}

/// A case as the trace names it.
pub(super) fn short(key: CaseKey) -> String {
    format!("{:04x}.{}", key.epoch.0 & 0xffff, key.sequence)
}

/// Debug output with its case keys shortened.
pub(super) fn shown(what: &impl std::fmt::Debug) -> String {
    let text = format!("{what:?}");
    let mut parts = text.split("CaseKey { epoch: Epoch(");
    let mut line = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let (key, rest) = part.split_once('}').unwrap_or((part, ""));
        let numbers: Vec<u64> =
            key.split(|c: char| !c.is_ascii_digit()).filter_map(|digits| digits.parse().ok()).collect();
        if let [epoch, sequence] = numbers[..] {
            line += &short(CaseKey { epoch: Epoch(epoch), sequence });
        }
        line += rest;
    }
    line
}
