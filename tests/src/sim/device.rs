//! The device's life: start, kill, power cut, new cases, and the tasks of `hedge-agent` with their waits for disk
//! and time. The real engine turns in `driver`; the connection is in `uplink`.

use std::collections::{BTreeMap, VecDeque};

use hedge_core::budget::{Ceilings, Spent};
use hedge_core::clock::Moment;
use hedge_core::engine::{Configured, Engine, Event, Setup};
use hedge_core::outbox::sort_key;
use hedge_core::uplink::Waiting;
use hedge_proto::{CaseKey, Epoch};

use super::Planted;
use super::disk::{Disk, Op, Progress, Stage};
use super::message::{End, Form};
use super::uplink::UnderWay;
use super::watch::Watch;
use super::world::{Happening, World};

/// How often the queue on disk catches up.
pub(super) const CHECKPOINT_MS: u64 = 10_000;

/// What goes on inside the agent's process. It dies with it.
#[derive(Debug, Clone)]
pub(super) enum Step {
    Tick,
    /// A task tells the engine something.
    Tell(Event),
    /// A task reads cases, to publish them in one message.
    Load(Vec<CaseKey>, Form),
    /// A task looks for the best cases.
    Look(usize, u32),
    Mark(Vec<CaseKey>),
    Write(Op),
    /// Every sink has the correction.
    Delivered(CaseKey),
    Checkpoint,
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
    pub(super) session: Option<usize>,
    /// What counts against the ceilings, as the state file has it.
    pub(super) spent: Spent,
    /// By how much the powered clock is behind the world's.
    pub(super) clock_behind: u64,
    pub(super) epoch: Epoch,
    pub(super) sequence: u64,
    pub(super) under_way: BTreeMap<u32, UnderWay>,
    pub(super) next_id: u32,
    /// What came by the present connection, in order, and whether it may be acknowledged.
    pub(super) inbox: VecDeque<(u32, bool)>,
    /// The connection that was hung up because a verdict could not be stored: nobody waits for its others.
    pub(super) unheard: Option<usize>,
    pub(super) tick_at: Option<u64>,
    /// When the engine is told of the last thing that happened to a connection.
    pub(super) link_told_at: u64,
    /// Only for a planted bug: the least that the disk was ever looked through for.
    pub(super) smallest_look: u32,
    /// Read since the last tick.
    pub(super) bytes: u64,
}

impl Device {
    pub(super) fn new() -> Self {
        Self {
            engine: None,
            life: 0,
            disk: Disk::default(),
            watch: Watch::new(Moment(0)),
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
            link_told_at: 0,
            smallest_look: u32::MAX,
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
            recovery_after: None,
            open_cases: open,
            configured: Configured {
                profile: self.plan.profile,
                policies: self.plan.policies(),
                ceilings,
                batch_bytes_max: self.plan.batch_bytes_max,
            },
            spent: Some(self.device.spent.clone()),
            seed: self.dice.number(),
        };
        let engine = Engine::new(now, setup);
        self.device.engine = Some(engine);
        self.device.watch = Watch::new(now);
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
            self.device.watch.requeued(key);
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
            Step::Load(keys, form) => self.device_publishes(keys, form),
            Step::Look(count, below_bytes) => {
                let mut below_bytes = below_bytes;
                if self.planted == Some(Planted::NeverLooksAgain) {
                    self.device.smallest_look = self.device.smallest_look.min(below_bytes);
                    below_bytes = self.device.smallest_look;
                }
                let mut found = self.device.disk.fetch(count, below_bytes);
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
                let now = self.device_now();
                if let Some(engine) = &self.device.engine {
                    self.device.spent = engine.spent(now);
                }
                self.device_after(CHECKPOINT_MS, Step::Checkpoint);
            }
        }
    }

    /// A task of the agent goes on a moment later, and now and then much later.
    pub(super) fn device_soon(&mut self, step: Step) {
        let slow = self.dice.one_in(self.plan.slow_task_one_in);
        let wait = if slow { self.dice.between(1, 5_000) } else { self.dice.between(0, 2) };
        self.device_after(wait, step);
    }

    pub(super) fn device_after(&mut self, wait: u64, step: Step) {
        let life = self.device.life;
        self.after(wait, Happening::Device { life, step });
    }

    /// Hands an operation to the log's thread.
    pub(super) fn device_writes(&mut self, op: Op) {
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
        let taken = if self.planted == Some(Planted::TakesRevisionZero) { revision.max(1) } else { revision };
        let applied = self.device.disk.answer(key, taken) || self.planted == Some(Planted::AppliesTwice);
        if applied {
            let checked = self.ledger.applied(key, revision);
            self.check(checked);
            let wait = self.dice.between(10, 20_000);
            self.device_after(wait, Step::Delivered(key));
        }
        if self.planted == Some(Planted::AcksBeforeDurable) || self.device.unheard == Some(wire) {
            return;
        }
        // A word that ends nothing is read and forgotten.
        if revision == 0 && matches!(self.device.disk.get(key).map(|row| row.stage), Some(Stage::Open(_))) {
            if listening {
                self.acknowledge(id);
            }
            return;
        }
        self.device_soon(Step::Tell(Event::Closed { key, spoken: true }));
        if listening {
            self.settle(id, key);
        }
    }
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
