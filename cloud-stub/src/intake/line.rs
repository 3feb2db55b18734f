//! Messages that wait for their device's turn, and which of them is looked at next.

use std::time::Instant;

use hedge_proto::{DeviceId, DownMessage, Topic};

use super::Intake;
use super::decide::BUSY_S;
use super::gate::Admission;
use crate::message::{Incoming, Settled};
use crate::reply::Reply;

/// How many messages of a device lie with the broker while it waits for a word of ours, at most.
const DEVICE_WINDOW: usize = 64;

impl Intake {
    /// Puts a message where it waits for its device's turn, or turns it away.
    pub(super) fn line_up(&mut self, message: Incoming) {
        let (device, bytes) = (self.about(&message), message.payload.len() as u64);
        // A device that keeps to its side of the wire never has more than so many under way, and is not the one to pay
        // while all of them together fill this place.
        let keeps_to_its_side = self.messages.len_of(&device) < DEVICE_WINDOW && self.messages.items_left() > 0;
        if keeps_to_its_side || self.messages.has_room(&device, bytes) {
            self.messages.put(&device, message, bytes);
        } else {
            self.gate.shut_out(&device, Instant::now(), "it sends more than its share of messages");
            self.turn_away(message);
        }
    }

    /// The next message that is looked at. What a device has sent before it was shut out is turned away, too; an
    /// operator's word is nothing that its device is made to pay for.
    pub(super) fn next_message(&mut self, now: Instant) -> Option<Incoming> {
        while let Some(message) = self.messages.pop() {
            let topic = self.topics.read(&message.topic);
            match topic.as_ref().and_then(Topic::sender).map(|from| (from, self.gate.shut.way(from, now))) {
                None | Some((_, Admission::In)) => return Some(message),
                Some((_, Admission::Away)) => self.turn_away(message),
                Some((from, Admission::AwayAndTold)) => {
                    let busy = DownMessage::Busy { after_s: BUSY_S };
                    drop(self.reply(Reply { device: from.clone(), message: busy }));
                    self.turn_away(message);
                }
            }
        }
        None
    }

    pub(super) fn put_back(&mut self, message: Incoming) {
        let (device, bytes) = (self.about(&message), message.payload.len() as u64);
        self.messages.put_back(&device, message, bytes);
    }

    /// With whose messages it waits.
    pub(super) fn about(&self, message: &Incoming) -> DeviceId {
        match self.topics.read(&message.topic) {
            Some(Topic::DownDesired(device)) => device,
            Some(topic) => topic.sender().cloned().unwrap_or_else(nobody),
            None => nobody(),
        }
    }

    pub(super) fn turn_away(&self, message: Incoming) {
        if let Some(receipt) = message.receipt {
            self.settle(Settled { receipt, taken: false });
        }
    }
}

/// Under whose name messages wait whose topics name no device.
fn nobody() -> DeviceId {
    #[expect(clippy::expect_used, reason = "a dash is a name")]
    DeviceId::new("-").expect("a name")
}
