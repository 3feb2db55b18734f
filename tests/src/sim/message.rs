//! What travels in the modelled world: MQTT packets, and Hedge's messages without their payloads.

use hedge_proto::CaseKey;

/// A side that dials the broker.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Client {
    Device,
    Cloud(usize),
}

impl Client {
    /// 0 for the device, then the instances.
    pub(super) fn number(self) -> usize {
        match self {
            Self::Device => 0,
            Self::Cloud(instance) => 1 + instance,
        }
    }
}

/// An end of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Client,
    Broker,
}

impl End {
    pub(super) fn other(self) -> Self {
        match self {
            Self::Client => Self::Broker,
            Self::Broker => Self::Client,
        }
    }
}

#[derive(Debug, Clone)]
pub(super) enum Packet {
    Connect,
    ConnAck,
    Subscribe,
    SubAck,
    Publish { id: u32, message: Message, retained: bool },
    PubAck { id: u32, ack: Ack },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ack {
    Taken,
    Nobody,
    /// The receiver could not record it.
    Refused,
}

/// What goes of the payloads of one message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// And the whole is offered.
    Thumbnail,
    /// A thumbnail, and there is no more to be had.
    Last,
    Whole,
}

#[derive(Debug, Clone)]
pub(super) enum Message {
    Cases(Vec<CaseKey>, Form),
    Ask(Vec<CaseKey>),
    Status(usize, Status),
    Down(Down),
}

/// An instance's status.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) struct Status {
    pub(super) online: bool,
    /// It reads our wire version.
    pub(super) reads: bool,
    pub(super) accept_per_s: Option<f32>,
    pub(super) retry_after_s: Option<u32>,
    pub(super) payload_bytes_max: Option<u32>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Down {
    Verdict {
        key: CaseKey,
        revision: u32,
    },
    Received(Vec<CaseKey>),
    Unknown(Vec<CaseKey>),
    Busy {
        after_s: u32,
    },
    Failed(CaseKey),
    Dead(CaseKey),
    Send(CaseKey),
    /// Of a kind that nobody has heard of.
    Odd,
}
