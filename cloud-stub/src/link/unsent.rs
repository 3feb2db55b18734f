//! Replies that wait for the connection, and messages that could not be taken.

use std::collections::HashMap;
use std::time::Duration;

use hedge_proto::{DeviceId, DownMessage};
use tokio::time::Instant;

use crate::intake::decide::BUSY_S;
use crate::reply::Reply;
use crate::turns::Turns;

/// Replies that wait to be sent, in turns by device: those of an earlier connection, too, that the broker has not
/// acknowledged.
pub(super) struct Unsent(pub(super) Turns<Reply>);

impl Unsent {
    pub(super) fn new() -> Self {
        Self(Turns::one_each(3 * super::REPLIES_MAX, u64::MAX))
    }

    /// Whether it takes one more, whoever for: one device alone may have as many waiting as may come from the intake.
    pub(super) fn has_room(&self) -> bool {
        self.0.items_left() > super::REPLIES_MAX
    }

    pub(super) fn put(&mut self, reply: Reply) {
        if self.0.has_room(&reply.device, 0) {
            self.0.put(&reply.device.clone(), reply, 0);
        } else {
            // The device asks again for what it does not hear.
            tracing::debug!(device = %reply.device, "a reply was dropped: too many wait for this device");
        }
    }

    /// A reply that was on its way already.
    pub(super) fn put_back(&mut self, reply: Reply) {
        self.0.put_back(&reply.device.clone(), reply, 0);
    }
}

/// The shortest time between two `busy` to one device whose messages are passed over.
const BUSY_EVERY: Duration = Duration::from_secs(1);

/// Messages that the intake had no place for: acknowledged, so that they do not stand in the broker's window for good,
/// and their devices told to come again.
#[derive(Default)]
pub(super) struct PassedOver {
    told: HashMap<DeviceId, Instant>,
}

impl PassedOver {
    /// What is said to its sender, if that was not said just now.
    pub(super) fn busy(&mut self, device: DeviceId) -> Option<Reply> {
        let now = Instant::now();
        self.told.retain(|_, told| now.duration_since(*told) < BUSY_EVERY);
        let is_new = !self.told.contains_key(&device);
        is_new.then(|| {
            self.told.insert(device.clone(), now);
            Reply { device, message: DownMessage::Busy { after_s: BUSY_S } }
        })
    }
}
