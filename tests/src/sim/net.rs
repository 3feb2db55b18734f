//! The virtual network: each connection keeps order and may end, stall or go silent; connections overtake each
//! other.

use hedge_core::link::Loss;

use super::message::{Client, End, Packet};
use super::world::{Happening, World};

/// How long an end waits for a sign of the other before it gives up: keep-alive and TCP's own limit.
const SILENT: (u64, u64) = (30_000, 60_000);

/// One connection between a client and the broker.
#[derive(Debug)]
pub(super) struct Wire {
    pub(super) client: Client,
    client_open: bool,
    broker_open: bool,
    /// When the last packet to each end arrives: none overtakes another.
    to_client_at: u64,
    to_broker_at: u64,
    half_open: bool,
    /// What the client's end will take its end for.
    loss: Loss,
    /// The largest message that the broker said to take.
    pub(super) packet_bytes_max: Option<u32>,
}

#[derive(Debug, Default)]
pub(super) struct Net {
    pub(super) wires: Vec<Wire>,
    /// By client number: nothing passes before this.
    outage_until: [u64; 3],
    /// Until then the device's connections end as soon as something has come over them.
    pub(super) short_lived_until: u64,
}

impl Wire {
    fn open(&mut self, end: End) -> &mut bool {
        match end {
            End::Client => &mut self.client_open,
            End::Broker => &mut self.broker_open,
        }
    }

    pub(super) fn is_open(&self, end: End) -> bool {
        match end {
            End::Client => self.client_open,
            End::Broker => self.broker_open,
        }
    }
}

impl World {
    /// A client tries to reach the broker; `life` tells a process from its successor.
    pub(super) fn dial(&mut self, client: Client, life: u32) {
        let wait = 2 * self.latency();
        self.after(wait, Happening::Dialled { client, life });
    }

    pub(super) fn dialled(&mut self, client: Client, life: u32) {
        if self.life(client) != Some(life) {
            return;
        }
        let outage = self.net.outage_until[client.number()] > self.now;
        if outage || !self.broker.up {
            let wait = if outage { self.dice.between(1, 30_000) } else { 1 };
            self.after(wait, Happening::DialFailed { client, life });
            return;
        }
        let wire = self.net.wires.len();
        let (now, open) = (self.now, true);
        self.net.wires.push(Wire {
            client,
            client_open: open,
            broker_open: open,
            to_client_at: now,
            to_broker_at: now,
            half_open: false,
            loss: Loss::Broken,
            packet_bytes_max: None,
        });
        match client {
            Client::Device => self.device.wire = Some(wire),
            Client::Cloud(instance) => self.clouds[instance].wire = Some(wire),
        }
        self.transmit(wire, End::Client, Packet::Connect);
    }

    pub(super) fn latency(&mut self) -> u64 {
        let (low, high) = self.plan.latency;
        self.dice.between(low, high)
    }

    /// Sends from one end of a connection. Lost if that end is closed already.
    pub(super) fn transmit(&mut self, wire: usize, from: End, packet: Packet) {
        if !self.net.wires[wire].is_open(from) || self.net.wires[wire].half_open {
            return;
        }
        let at = self.arrival(wire, from.other());
        self.at(at, Happening::Arrives { wire, to: from.other(), packet });
    }

    /// When something sent now arrives, behind all that was sent before.
    fn arrival(&mut self, wire: usize, to: End) -> u64 {
        let latency = self.latency();
        let held_until = self.net.outage_until[self.net.wires[wire].client.number()];
        let at = self.now.max(held_until) + latency;
        let wire = &mut self.net.wires[wire];
        let last = match to {
            End::Client => &mut wire.to_client_at,
            End::Broker => &mut wire.to_broker_at,
        };
        *last = at.max(*last);
        *last
    }

    pub(super) fn arrives(&mut self, wire: usize, to: End, packet: Packet) {
        if !self.net.wires[wire].is_open(to) {
            return;
        }
        match (to, self.net.wires[wire].client) {
            (End::Broker, client) => self.broker_gets(wire, client, packet),
            (End::Client, Client::Device) => self.device_gets(wire, packet),
            (End::Client, Client::Cloud(instance)) => self.cloud_gets(instance, wire, packet),
        }
    }

    /// One end closes the connection in good order; the other sees it after all that was sent before.
    pub(super) fn hang_up(&mut self, wire: usize, end: End) {
        if !std::mem::replace(self.net.wires[wire].open(end), false) {
            return;
        }
        if end == End::Broker && self.net.wires[wire].loss == Loss::Broken {
            self.net.wires[wire].loss = Loss::Closed;
        }
        if !self.net.wires[wire].half_open {
            let at = self.arrival(wire, end.other());
            self.at(at, Happening::Closes { wire, end: end.other() });
        }
        self.ended(wire, end);
    }

    /// The broker lets another client have the session. Not every broker says so.
    pub(super) fn throw_out(&mut self, wire: usize) {
        if self.dice.one_in(2) {
            self.net.wires[wire].loss = Loss::TakenOver;
        }
        self.hang_up(wire, End::Broker);
    }

    /// The broker ends the connection over something that was sent. Not every broker says so.
    pub(super) fn refuse(&mut self, wire: usize) {
        if self.dice.one_in(2) {
            self.net.wires[wire].loss = Loss::Refused;
        }
        self.hang_up(wire, End::Broker);
    }

    pub(super) fn closes(&mut self, wire: usize, end: End) {
        if std::mem::replace(self.net.wires[wire].open(end), false) {
            self.ended(wire, end);
        }
    }

    fn ended(&mut self, wire: usize, end: End) {
        let Wire { client, loss, .. } = self.net.wires[wire];
        self.note(|| format!("wire {wire} of {client:?} is closed at its {end:?} end"));
        match (end, client) {
            (End::Broker, client) => self.broker_lost(wire, client),
            (End::Client, Client::Device) => self.device_lost(wire, loss),
            (End::Client, Client::Cloud(instance)) => self.cloud_lost(instance, wire),
        }
    }

    /// Both ends see it end, each in its own time; what arrives before that has arrived.
    pub(super) fn reset(&mut self, client: Client) {
        if let Some(wire) = self.open_wire(client) {
            for end in [End::Client, End::Broker] {
                let wait = self.latency();
                self.after(wait, Happening::Closes { wire, end });
            }
        }
    }

    /// From now on nothing passes on this connection, and nobody is told.
    pub(super) fn half_open(&mut self, client: Client) {
        if let Some(wire) = self.open_wire(client) {
            self.swallow(wire);
        }
    }

    pub(super) fn swallow(&mut self, wire: usize) {
        self.net.wires[wire].half_open = true;
        for end in [End::Client, End::Broker] {
            let wait = self.dice.between(SILENT.0, SILENT.1);
            self.after(wait, Happening::Closes { wire, end });
        }
    }

    /// Nothing passes between this client and the broker until then.
    pub(super) fn outage(&mut self, client: Client, until: u64) {
        let number = client.number();
        self.net.outage_until[number] = until.max(self.net.outage_until[number]);
        if let Some(wire) = self.open_wire(client) {
            for end in [End::Client, End::Broker] {
                let wait = self.dice.between(SILENT.0, SILENT.1);
                if self.now + wait < until {
                    self.after(wait, Happening::GivesUp { wire, end });
                }
            }
        }
    }

    fn open_wire(&self, client: Client) -> Option<usize> {
        let open = |wire: &Wire| wire.client == client && (wire.client_open || wire.broker_open);
        self.net.wires.iter().rposition(open)
    }

    fn life(&self, client: Client) -> Option<u32> {
        match client {
            Client::Device => self.device.engine.is_some().then_some(self.device.life),
            Client::Cloud(instance) => self.clouds[instance].up.then_some(self.clouds[instance].life),
        }
    }
}
