//! A model of an MQTT 5 broker: sessions, QoS 1, shared subscriptions, retained statuses, wills.

use std::collections::{BTreeMap, VecDeque};

use hedge_proto::CaseKey;

use super::message::{Ack, Client, End, Form, Message, Packet, Status};
use super::world::World;

/// How many messages wait for a client that is away; more are dropped silently, as real brokers do.
const QUEUED_MAX: usize = 100;

/// How many messages a client takes unacknowledged.
const IN_FLIGHT_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Session {
    wire: Option<usize>,
    subscribed: bool,
    in_flight: VecDeque<(u32, Message, bool)>,
    queue: VecDeque<(Message, bool)>,
}

#[derive(Debug)]
pub(super) struct Broker {
    pub(super) up: bool,
    /// By client number.
    sessions: [Option<Session>; 3],
    retained: BTreeMap<usize, Status>,
    next_id: u32,
    /// The largest message it takes, as CONNACK says it; and what it ends connections over without having said so.
    pub(super) announced_max: Option<u32>,
    pub(super) silent_max: Option<u32>,
}

impl Default for Broker {
    fn default() -> Self {
        Self {
            up: true,
            sessions: [None, None, None],
            retained: BTreeMap::new(),
            next_id: 0,
            announced_max: None,
            silent_max: None,
        }
    }
}

const OFFLINE: Status =
    Status { online: false, reads: false, accept_per_s: None, retry_after_s: None, payload_bytes_max: None };

impl World {
    pub(super) fn broker_gets(&mut self, wire: usize, client: Client, packet: Packet) {
        match packet {
            Packet::Connect => self.broker_connects(wire, client),
            Packet::Subscribe => self.broker_subscribes(wire, client),
            Packet::Publish { message: Message::Cases(keys, form), .. } if self.ends_over(&keys, form) => {
                self.refuse(wire)
            }
            Packet::Publish { id, message, .. } => {
                let ack = match message {
                    Message::Cases(..) | Message::Ask(_) => self.route_up(message),
                    Message::Status(instance, status) => {
                        self.retain(instance, status);
                        Ack::Taken
                    }
                    Message::Down(_) => self.route_down(message),
                };
                self.transmit(wire, End::Broker, Packet::PubAck { id, ack });
            }
            Packet::PubAck { id, .. } => {
                if let Some(session) = &mut self.broker.sessions[client.number()] {
                    session.in_flight.retain(|(known, ..)| *known != id);
                }
                self.pump(client);
            }
            Packet::ConnAck | Packet::SubAck => {}
        }
    }

    fn broker_connects(&mut self, wire: usize, client: Client) {
        if let Some(old) = self.broker.sessions[client.number()].as_ref().and_then(|session| session.wire) {
            self.throw_out(old);
        }
        let session = &mut self.broker.sessions[client.number()];
        if client != Client::Device {
            *session = None;
        }
        let session = session.get_or_insert_default();
        session.wire = Some(wire);
        self.net.wires[wire].packet_bytes_max = self.broker.announced_max;
        let again: Vec<_> = session.in_flight.iter().cloned().collect();
        self.transmit(wire, End::Broker, Packet::ConnAck);
        for (id, message, retained) in again {
            self.transmit(wire, End::Broker, Packet::Publish { id, message, retained });
        }
        self.pump(client);
    }

    fn broker_subscribes(&mut self, wire: usize, client: Client) {
        if let Some(session) = &mut self.broker.sessions[client.number()] {
            session.subscribed = true;
        }
        self.transmit(wire, End::Broker, Packet::SubAck);
        if client == Client::Device {
            for (instance, status) in self.broker.retained.clone() {
                self.deliver(client, Message::Status(instance, status), true);
            }
        }
    }

    /// Whether it ends the connection over these: they are larger than it takes, or one is poison to it.
    fn ends_over(&self, keys: &[CaseKey], form: Form) -> bool {
        let too_large = self.broker.silent_max.is_some_and(|max| self.message_bytes(keys, form) > max);
        too_large || keys.iter().any(|key| self.is_poison(*key))
    }

    /// Cases and questions go to one instance, or to all of them.
    fn route_up(&mut self, message: Message) -> Ack {
        let there = |instance: &usize| {
            let session = self.broker.sessions[1 + instance].as_ref();
            session.is_some_and(|session| session.subscribed && session.wire.is_some())
        };
        let instances: Vec<usize> = (0..self.plan.instances).filter(there).collect();
        if instances.is_empty() {
            return Ack::Nobody;
        }
        let chosen = if self.plan.shared_subscription { vec![self.dice.pick(&instances)] } else { instances };
        for instance in chosen {
            self.deliver(Client::Cloud(instance), message.clone(), false);
            if self.dice.one_in(self.plan.twice_one_in) {
                self.deliver(Client::Cloud(instance), message.clone(), false);
            }
        }
        Ack::Taken
    }

    fn route_down(&mut self, message: Message) -> Ack {
        let listening = self.broker.sessions[0].as_ref().is_some_and(|session| session.subscribed);
        if !listening {
            return Ack::Nobody;
        }
        if self.dice.one_in(self.plan.twice_one_in) {
            self.deliver(Client::Device, message.clone(), false);
        }
        self.deliver(Client::Device, message, false);
        Ack::Taken
    }

    fn retain(&mut self, instance: usize, status: Status) {
        self.broker.retained.insert(instance, status);
        if self.broker.sessions[0].as_ref().is_some_and(|session| session.subscribed) {
            self.deliver(Client::Device, Message::Status(instance, status), false);
        }
        // An instance hears what others say in its name: the will of its last connection.
        if !status.online {
            self.deliver(Client::Cloud(instance), Message::Status(instance, status), false);
        }
    }

    fn deliver(&mut self, client: Client, message: Message, retained: bool) {
        let Some(session) = &mut self.broker.sessions[client.number()] else { return };
        if session.wire.is_some() || session.queue.len() < QUEUED_MAX {
            session.queue.push_back((message, retained));
        }
        self.pump(client);
    }

    fn pump(&mut self, client: Client) {
        loop {
            let Some(session) = &mut self.broker.sessions[client.number()] else { return };
            let Some(wire) = session.wire else { return };
            if session.in_flight.len() >= IN_FLIGHT_MAX {
                return;
            }
            let Some((message, retained)) = session.queue.pop_front() else { return };
            self.broker.next_id += 1;
            let id = self.broker.next_id;
            session.in_flight.push_back((id, message.clone(), retained));
            self.transmit(wire, End::Broker, Packet::Publish { id, message, retained });
        }
    }

    /// The broker's end of a connection is closed.
    pub(super) fn broker_lost(&mut self, wire: usize, client: Client) {
        let session = &mut self.broker.sessions[client.number()];
        if session.as_ref().and_then(|session| session.wire) != Some(wire) {
            return;
        }
        let Client::Cloud(instance) = client else {
            if let Some(session) = session {
                session.wire = None;
            }
            return;
        };
        let left = session.take().unwrap_or_default();
        if !self.broker.up {
            return;
        }
        if self.plan.hands_on && self.plan.shared_subscription {
            let waiting = left.in_flight.into_iter().map(|(_, message, _)| message);
            for message in waiting.chain(left.queue.into_iter().map(|(message, _)| message)) {
                if matches!(message, Message::Cases(..) | Message::Ask(_)) {
                    self.route_up(message);
                }
            }
        }
        // After a goodbye the status says so already; the will changes nothing then.
        if self.broker.retained.get(&instance).is_some_and(|status| status.online) {
            self.note(|| format!("the will of instance {instance}"));
            self.retain(instance, OFFLINE);
        }
    }

    pub(super) fn broker_stops(&mut self, wiped: bool) {
        self.broker.up = false;
        for number in 0..self.broker.sessions.len() {
            let Some(wire) = self.broker.sessions[number].as_ref().and_then(|session| session.wire) else { continue };
            if self.dice.one_in(3) {
                self.swallow(wire);
            }
            self.hang_up(wire, End::Broker);
        }
        self.broker.sessions[1..].fill_with(|| None);
        if wiped {
            self.broker.sessions[0] = None;
            self.broker.retained.clear();
        } else if let Some(session) = self.broker.sessions[0].as_mut().filter(|_| self.dice.one_in(2)) {
            // It saves its memory now and then: the session is there, what waited in it is not.
            session.in_flight.clear();
            session.queue.clear();
        }
    }

    /// Another client connects with the device's id.
    pub(super) fn device_is_taken_over(&mut self) {
        if let Some(wire) = self.broker.sessions[0].as_ref().and_then(|session| session.wire) {
            self.throw_out(wire);
        }
    }
}
