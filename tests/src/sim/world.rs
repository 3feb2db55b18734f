//! One world: a heap of what will happen, and everything it happens to. Virtual time, nothing else.

use std::cmp::Ordering;
use std::collections::BinaryHeap;

use hedge_proto::CaseKey;

use super::broker::Broker;
use super::cloud::{self, Cloud};
use super::device::{self, Device};
use super::disk::Stage;
use super::message::{Client, End, Packet};
use super::net::Net;
use super::oracle::{Broken, Checked, Ledger, drain_within};
use super::plan::{Dice, Fault, Plan};
use super::records::Records;
use super::trace::Trace;
use super::{Planted, Summary};

/// More steps than any world needs: beyond it something turns in a circle.
const STEPS_MAX: u64 = 3_000_000;

#[derive(Debug, Clone)]
pub(super) enum Happening {
    Dialled {
        client: Client,
        life: u32,
    },
    DialFailed {
        client: Client,
        life: u32,
    },
    Arrives {
        wire: usize,
        to: End,
        packet: Packet,
    },
    /// An end sees that the connection is over.
    Closes {
        wire: usize,
        end: End,
    },
    /// An end has waited long enough for a sign of the other.
    GivesUp {
        wire: usize,
        end: End,
    },
    Device {
        life: u32,
        step: device::Step,
    },
    Cloud {
        instance: usize,
        life: u32,
        step: cloud::Step,
    },
    NewCase {
        left: u64,
    },
    Strikes,
    DeviceStarts,
    CloudStarts {
        instance: usize,
    },
    BrokerStarts,
    /// Broker and instance take as much as before.
    LimitEnds {
        instance: usize,
    },
    /// Something an instance says in its status has changed.
    SpeaksUp {
        instance: usize,
    },
}

/// An appointment. Of two at the same time the one made first is kept first.
struct Due {
    at: u64,
    number: u64,
    happening: Happening,
}

impl Ord for Due {
    /// The heap gives the greatest first.
    fn cmp(&self, other: &Self) -> Ordering {
        (other.at, other.number).cmp(&(self.at, self.number))
    }
}

impl PartialOrd for Due {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Due {
    fn eq(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl Eq for Due {}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) planted: Option<Planted>,
    pub(super) now: u64,
    pub(super) dice: Dice,
    pub(super) net: Net,
    pub(super) broker: Broker,
    pub(super) clouds: Vec<Cloud>,
    pub(super) records: [Records; 2],
    pub(super) device: Device,
    pub(super) ledger: Ledger,
    pub(super) trace: Trace,
    pub(super) violation: Option<Broken>,
    due: BinaryHeap<Due>,
    appointments: u64,
    steps: u64,
}

impl World {
    pub(super) fn new(seed: u64, planted: Option<Planted>, trace: Trace) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(seed, &mut dice);
        let mut world = Self {
            clouds: (0..plan.instances).map(|_| Cloud::new()).collect(),
            plan,
            planted,
            now: 1_000_000, // the device had a life before
            dice,
            net: Net::default(),
            broker: Broker::default(),
            records: [Records::default(), Records::default()],
            device: Device::new(),
            ledger: Ledger::default(),
            trace,
            violation: None,
            due: BinaryHeap::new(),
            appointments: 0,
            steps: 0,
        };
        world.plan.calm_at += world.now;
        world
    }

    /// Lives through it: faults, then calm, until everything has drained.
    pub(super) fn run(mut self) -> Result<Summary, (Broken, Trace)> {
        let began = self.now;
        self.note_plan();
        self.begin();
        let limit = drain_within(&self.plan);
        let limit = self.plan.calm_at + u64::try_from(limit.as_millis()).unwrap_or(u64::MAX);
        while self.violation.is_none() && !(self.calm() && self.drained()) {
            let Some(Due { at, happening, .. }) = self.due.pop() else { break };
            self.now = at;
            self.steps += 1;
            if at > limit || self.steps > STEPS_MAX {
                let checked = self.stuck();
                self.check(checked);
                break;
            }
            self.happens(happening);
        }
        self.ledger_check_stored();
        if self.plan.is_peaceful() {
            let checked = self.ledger.sent_once();
            self.check(checked);
        }
        match self.violation.take() {
            None => Ok(Summary {
                steps: self.steps,
                virtual_s: (self.now - began) / 1_000,
                cases: self.ledger.stored() as u64,
                payloads: self.ledger.payloads,
            }),
            Some(broken) => Err((broken, self.trace)),
        }
    }

    fn begin(&mut self) {
        for instance in 0..self.plan.instances {
            self.cloud_starts(instance);
        }
        self.after(0, Happening::DeviceStarts);
        self.after(1, Happening::NewCase { left: self.plan.cases });
        self.after(1, Happening::Strikes);
    }

    fn happens(&mut self, happening: Happening) {
        match happening {
            Happening::Dialled { client, life } => self.dialled(client, life),
            Happening::DialFailed { client: Client::Device, life } if life == self.device.life => {
                self.device_dial_failed();
            }
            Happening::DialFailed { client: Client::Cloud(instance), life } if life == self.clouds[instance].life => {
                self.cloud_redials(instance);
            }
            Happening::DialFailed { .. } => {}
            Happening::Arrives { wire, to, packet } => self.arrives(wire, to, packet),
            Happening::Closes { wire, end } => self.closes(wire, end),
            Happening::GivesUp { wire, end } => self.hang_up(wire, end),
            Happening::Device { life, step } => self.device_step(life, step),
            Happening::Cloud { instance, life, step } => self.cloud_step(instance, life, step),
            Happening::NewCase { left } => {
                self.new_case();
                let (low, high) = self.plan.arrivals;
                let wait = self.dice.between(low, high);
                if left > 1 && self.now + wait < self.plan.calm_at {
                    self.after(wait, Happening::NewCase { left: left - 1 });
                }
            }
            Happening::Strikes => self.strikes(),
            Happening::DeviceStarts => self.device_starts(),
            Happening::CloudStarts { instance } => self.cloud_starts(instance),
            Happening::LimitEnds { instance } => {
                (self.broker.announced_max, self.broker.silent_max) = (None, None);
                self.clouds[instance].payload_bytes_max = None;
                self.cloud_speaks_up(instance);
            }
            Happening::BrokerStarts => self.broker.up = true,
            Happening::SpeaksUp { instance } => self.cloud_speaks_up(instance),
        }
    }

    pub(super) fn after(&mut self, wait: u64, happening: Happening) {
        self.at(self.now + wait, happening);
    }

    pub(super) fn at(&mut self, at: u64, happening: Happening) {
        self.appointments += 1;
        self.due.push(Due { at, number: self.appointments, happening });
    }

    /// Nothing new goes wrong, and whatever was wrong has ended.
    pub(super) fn calm(&self) -> bool {
        self.now >= self.plan.calm_at
    }

    fn drained(&self) -> bool {
        self.device.engine.is_some() && self.device.disk.open().all(|(key, _)| self.is_poison(key))
    }

    fn stuck(&self) -> Checked {
        let open: Vec<(String, Stage)> = self
            .device
            .disk
            .open()
            .filter(|(key, _)| !self.is_poison(*key))
            .map(|(key, row)| (device::short(key), row.stage))
            .collect();
        let link = self.device.engine.as_ref().map(hedge_core::engine::Engine::link);
        Err(Broken {
            promise: "in calm every case is answered or dead in bounded time",
            details: format!("{} still open ({link:?}): {:?}", open.len(), &open[..open.len().min(5)]),
            case: open.into_iter().next().map(|(case, _)| case),
        })
    }

    pub(super) fn check(&mut self, checked: Checked) {
        if let Err(broken) = checked {
            self.violation.get_or_insert(broken);
        }
    }

    pub(super) fn ledger_check_stored(&mut self) {
        let disk = &self.device.disk;
        let checked = self.ledger.nothing_is_lost(|key| disk.get(key).is_some());
        self.check(checked);
    }

    pub(super) fn note(&mut self, line: impl FnOnce() -> String) {
        self.trace.note(self.now, line);
    }

    fn note_plan(&mut self) {
        let plan = self.plan.clone();
        self.note(|| format!("{plan:?}"));
    }

    /// One fault, and the appointment for the next.
    fn strikes(&mut self) {
        let (low, high) = self.plan.fault_every;
        let wait = self.dice.between(low, high);
        if self.plan.faults.is_empty() || self.now + wait >= self.plan.calm_at {
            return;
        }
        self.after(wait, Happening::Strikes);
        if self.device.engine.is_some() {
            let faults = self.plan.faults.clone();
            let fault = self.dice.pick(&faults);
            self.strike(fault);
        }
    }

    fn strike(&mut self, fault: Fault) {
        self.note(|| format!("fault: {fault:?}"));
        let until = self.until(1, 120);
        let soon = self.until(1, 20);
        let instance = usize::from(self.plan.instances > 1 && self.dice.one_in(2));
        match fault {
            Fault::Reset(number) => self.with_client(number, World::reset),
            Fault::HalfOpen(number) => self.with_client(number, World::half_open),
            Fault::Outage(number) => self.with_client(number, |world, client| world.outage(client, until)),
            Fault::Kill | Fault::PowerCut => {
                self.device_dies(fault == Fault::PowerCut);
                self.at(soon, Happening::DeviceStarts);
            }
            Fault::DiskFull => self.device.disk.full_until = until,
            Fault::BrokerRestart | Fault::BrokerWiped => {
                self.broker_stops(fault == Fault::BrokerWiped);
                self.at(soon, Happening::BrokerStarts);
            }
            Fault::CloudCrash | Fault::CloudWiped | Fault::CloudStop | Fault::CloudOther => {
                self.cloud_stops(instance, fault == Fault::CloudStop);
                if fault == Fault::CloudWiped {
                    self.wipe_records(instance);
                }
                if fault == Fault::CloudOther {
                    self.clouds[instance].other_version_until = until;
                    self.at(until, Happening::SpeaksUp { instance });
                }
                self.at(soon, Happening::CloudStarts { instance });
            }
            Fault::CloudUnhealthy => {
                self.clouds[instance].unhealthy_until = until;
                self.cloud_speaks_up(instance);
                self.at(until, Happening::SpeaksUp { instance });
            }
            Fault::Lies => self.cloud_lies(instance),
            Fault::Limit => self.limit(instance, until),
            Fault::ShortLived => self.net.short_lived_until = self.until(60, 900),
            Fault::TakenOver => self.device_is_taken_over(),
            Fault::Drop => self.drop_by_hand(),
            Fault::Requeue => self.requeue_by_hand(),
            Fault::NetworkChanged => self.tell(hedge_core::engine::Event::NetworkChanged),
        }
    }

    /// Broker or cloud takes less from now on, whoever is connected; until then, or for some time in the middle of it
    /// once more.
    fn limit(&mut self, instance: usize, until: u64) {
        let (low, high) = self.plan.payload_bytes;
        let max = u32::try_from(self.dice.between(low / 2, high + 300)).unwrap_or(u32::MAX);
        match self.dice.between(0, 2) {
            0 => self.broker.silent_max = Some(max),
            1 => {
                self.broker.announced_max = Some(max);
                // A limit of CONNACK is one of the next connection. What it ends over is known at once.
                self.broker.silent_max = Some(max);
            }
            _ => {
                self.clouds[instance].payload_bytes_max = Some(max);
                self.cloud_speaks_up(instance);
            }
        }
        self.at(until, Happening::LimitEnds { instance });
    }

    /// Whether the broker ends connections over this case, whatever its size.
    pub(super) fn is_poison(&self, key: CaseKey) -> bool {
        self.plan.poison == Some(key.sequence) && (self.plan.poison_lasts || !self.calm())
    }

    fn with_client(&mut self, number: usize, act: impl FnOnce(&mut Self, Client)) {
        match number {
            0 => act(self, Client::Device),
            number if number <= self.plan.instances => act(self, Client::Cloud(number - 1)),
            _ => {}
        }
    }

    /// So many seconds from now, but never into the calm.
    pub(super) fn until(&mut self, low_s: u64, high_s: u64) -> u64 {
        let wait = 1_000 * self.dice.between(low_s, high_s);
        (self.now + wait).min(self.plan.calm_at)
    }
}
