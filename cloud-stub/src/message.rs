//! One MQTT message on its way from the broker to the records, and back as an acknowledgement.

use bytes::Bytes;
use rumqttc::ManualAck;
use tokio::sync::OwnedSemaphorePermit;

use crate::traces::Came;

/// The right to acknowledge one message, once, on the connection it came by.
#[derive(Debug)]
pub struct Receipt {
    pub(crate) generation: u64,
    pub(crate) ack: ManualAck,
}

/// One MQTT message as it came.
pub struct Incoming {
    pub topic: String,
    pub payload: Bytes,
    /// The broker has kept it: its sender may be gone long since.
    pub retained: bool,
    /// To be settled exactly once; absent for QoS 0.
    pub receipt: Option<Receipt>,
    /// Its share of the memory that messages may take between the broker and the records.
    pub share: Option<OwnedSemaphorePermit>,
    pub came: Came,
}

/// A message that needs nothing more from the broker.
pub struct Settled {
    pub receipt: Receipt,
    /// `false`: it could not be recorded, and the device was told to wait.
    pub taken: bool,
}
