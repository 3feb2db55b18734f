//! A model of the agent's uplink: one connection at a time, publishes with their outcome, messages acknowledged in
//! the order they came.

use std::time::Duration;

use hedge_core::engine::Event;
use hedge_core::link::Loss;
use hedge_core::uplink::Publish;
use hedge_proto::{CaseKey, CloudState, CloudStatus, Name, PayloadForm, WIRE_VERSION};

use super::Planted;
use super::device::{Step, short};
use super::disk::{Op, Progress, Stage};
use super::lies::FAILED;
use super::message::{Ack, Client, Down, End, Form, Message, Packet, Status};
use super::oracle::acknowledged_is_durable;
use super::world::World;

/// What a packet without a payload weighs.
const PACKET_BYTES: u64 = 100;

/// A publish that waits for its PUBACK.
#[derive(Debug)]
pub(super) enum UnderWay {
    Cases(Vec<CaseKey>, Form),
    Ask(Vec<CaseKey>),
}

/// What a message about a case has beside its payload.
const ENVELOPE_BYTES: u32 = 300;

impl World {
    pub(super) fn device_asks(&mut self, keys: Vec<CaseKey>) {
        match self.device.session {
            Some(wire) => self.device_transmits(wire, Message::Ask(keys.clone()), UnderWay::Ask(keys)),
            None => self.device_soon(Step::Tell(Event::AskFailed { keys })),
        }
    }

    pub(super) fn device_publishes(&mut self, mut keys: Vec<CaseKey>, form: Form) {
        keys.retain(|key| self.device_loads(*key));
        if keys.is_empty() {
            return;
        }
        let Some(wire) = self.device.session else {
            return self.device_soon(Step::Tell(Event::Published { keys, outcome: Publish::Nobody }));
        };
        let bytes_max = self.device_bytes_max(wire);
        if self.message_bytes(&keys, form) > bytes_max {
            return match keys[..] {
                [_] => {
                    let outcome = Publish::TooLarge { bytes_max: Some(bytes_max) };
                    self.device_soon(Step::Tell(Event::Published { keys, outcome }));
                }
                // What is too large together may fit one by one.
                _ => keys.into_iter().for_each(|key| self.device_publishes(vec![key], form)),
            };
        }
        let now = self.device_now();
        for key in &keys {
            self.device.disk.mark(*key, Progress::Sent);
            let checked = self.device.watch.travels(now, *key);
            self.check(checked);
            let open = matches!(self.device.disk.get(*key).map(|row| row.stage), Some(Stage::Open(_)));
            let checked = self.ledger.travels(*key, open, form, self.plan.thumbnails);
            self.check(checked);
        }
        self.device_transmits(wire, Message::Cases(keys.clone(), form), UnderWay::Cases(keys, form));
    }

    /// Whether it is still to be sent.
    fn device_loads(&mut self, key: CaseKey) -> bool {
        let stage = self.device.disk.get(key).map(|row| row.stage);
        let open = matches!(stage, Some(Stage::Open(_)));
        let planted = stage.is_some() && self.planted == Some(Planted::SendsAnswered);
        if !open && !planted {
            self.device_soon(Step::Tell(Event::Closed { key, spoken: false }));
            return false;
        }
        true
    }

    /// What broker and cloud take in a message, as far as the device knows.
    fn device_bytes_max(&self, wire: usize) -> u32 {
        let now = self.device_now();
        let known = self.device.engine.as_ref().and_then(|engine| engine.payload_bytes_max(now));
        let known = known.map(|max| u32::try_from(max).unwrap_or(u32::MAX).saturating_add(ENVELOPE_BYTES));
        self.net.wires[wire].packet_bytes_max.into_iter().chain(known).min().unwrap_or(u32::MAX)
    }

    pub(super) fn message_bytes(&self, keys: &[CaseKey], form: Form) -> u32 {
        let whole = |key: &CaseKey| self.device.disk.get(*key).map_or(0, super::disk::Row::payload_bytes);
        let payload = |key: &CaseKey| if form == Form::Whole { whole(key) } else { whole(key) / 8 };
        keys.iter().map(|key| payload(key).saturating_add(ENVELOPE_BYTES)).fold(0, u32::saturating_add)
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
                self.device_tells_of_link(Event::Connected { receive_maximum });
            }
            Packet::PubAck { id, ack } => self.device_hears_ack(id, ack),
            Packet::Publish { id, message, retained } => {
                if self.now < self.net.short_lived_until {
                    self.reset(Client::Device);
                }
                self.device.inbox.push_back((id, false));
                self.device_reads(wire, id, message, retained);
            }
            Packet::Connect | Packet::Subscribe => {}
        }
    }

    fn device_hears_ack(&mut self, id: u32, ack: Ack) {
        let event = match (self.device.under_way.remove(&id), ack) {
            (Some(UnderWay::Cases(keys, form)), Ack::Taken) => {
                let outcome = if form == Form::Whole { Publish::Acknowledged } else { Publish::Named };
                Event::Published { keys, outcome }
            }
            (Some(UnderWay::Cases(keys, form)), Ack::Nobody | Ack::Refused) => {
                keys.iter().for_each(|key| self.ledger.unheard(*key, form));
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
            Message::Down(Down::Failed(key)) => Event::Failed { key, reason: FAILED.to_owned() },
            Message::Down(Down::Dead(key)) => Event::Dead { key, reason: "dead".to_owned() },
            Message::Down(Down::Send(key)) => Event::Wanted { key, form: PayloadForm::Whole },
            Message::Down(Down::Odd) => return self.acknowledge(id),
            Message::Cases(..) | Message::Ask(_) => return,
        };
        self.tell(event);
        self.acknowledge(id);
    }

    /// The device's end of a connection is closed.
    pub(super) fn device_lost(&mut self, wire: usize, loss: Loss) {
        if self.device.engine.is_none() || self.device.wire != Some(wire) {
            return;
        }
        self.device.wire = None;
        self.device.session = None;
        self.device.inbox.clear();
        for (_, what) in std::mem::take(&mut self.device.under_way) {
            self.device_soon(Step::Tell(match what {
                UnderWay::Cases(keys, _) => Event::Published { keys, outcome: Publish::Unclear },
                UnderWay::Ask(keys) => Event::AskFailed { keys },
            }));
        }
        self.device_tells_of_link(Event::Disconnected(loss));
    }

    pub(super) fn device_dial_failed(&mut self) {
        self.device_tells_of_link(Event::Disconnected(Loss::Broken));
    }

    /// What happens to connections is told in the order in which it happens, however slow a task is.
    fn device_tells_of_link(&mut self, event: Event) {
        let slow = self.dice.one_in(self.plan.slow_task_one_in);
        let wait = if slow { self.dice.between(1, 5_000) } else { self.dice.between(0, 2) };
        let at = (self.now + wait).max(self.device.link_told_at);
        self.device.link_told_at = at;
        self.device_after(at - self.now, Step::Tell(event));
    }

    /// A message is done with; messages are acknowledged in the order they came.
    pub(super) fn settle(&mut self, id: u32, key: CaseKey) {
        let durable = !matches!(self.device.disk.get(key).map(|row| row.stage), Some(Stage::Open(_)));
        self.check(acknowledged_is_durable(durable));
        self.acknowledge(id);
    }

    pub(super) fn acknowledge(&mut self, id: u32) {
        for (known, done) in &mut self.device.inbox {
            *done |= *known == id;
        }
        let Some(wire) = self.device.wire else { return };
        while let Some((id, true)) = self.device.inbox.front().copied() {
            self.device.inbox.pop_front();
            self.transmit(wire, End::Client, Packet::PubAck { id, ack: Ack::Taken });
        }
    }
}

fn cloud_status(instance: usize, status: Status, retained: bool) -> Event {
    let Status { online, reads, accept_per_s, retry_after_s, payload_bytes_max } = status;
    let Ok(instance) = Name::new(&format!("i{instance}")) else { return Event::Tick };
    let status = CloudStatus {
        state: if online { CloudState::Online } else { CloudState::Offline },
        wire: vec![if reads { WIRE_VERSION } else { WIRE_VERSION + 1 }],
        accept: accept_per_s,
        retry_after_s,
        payload_bytes_max: payload_bytes_max.map(u64::from),
    };
    Event::CloudStatus { instance, status, retained }
}
