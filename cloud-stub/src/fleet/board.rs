//! What the broker says about devices, as of the last message.

use std::collections::BTreeMap;

use hedge_proto::{Desired, DeviceId, DeviceState, DeviceStatus, Message as _, Reply, Reported, Telemetry, Topic};

use crate::intake::decide;

/// The most devices that are looked at: names are free to make up.
const DEVICES_MAX: usize = 100_000;

/// What a device's link may be.
pub const LINKS: [&str; 5] = ["online", "degraded", "over_budget", "offline", "unknown"];

/// One message about a device. An emptied retained topic says `None`.
#[derive(Debug, Clone, PartialEq)]
pub enum Said {
    Status(Option<DeviceStatus>),
    Reported(Option<Box<Reported>>),
    Desired(Option<Desired>),
    Reply(Reply),
    Telemetry(Box<Telemetry>),
    /// What it was meant to be, and what is wrong with it.
    Unreadable(&'static str, String),
}

/// What is known of one device.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Device {
    pub status: Option<DeviceStatus>,
    pub reported: Option<Reported>,
    pub desired: Option<Desired>,
    /// Why the wanted document that is there cannot be read.
    pub desired_unreadable: Option<String>,
}

impl Device {
    /// It has said itself, or by its will, that it is away.
    #[must_use]
    pub fn is_offline(&self) -> bool {
        self.status.as_ref().is_some_and(|status| status.state == DeviceState::Offline)
    }

    /// How often it connects, if it rests its radio in between.
    #[must_use]
    pub fn window_every_s(&self) -> Option<u32> {
        self.status.as_ref().and_then(|status| status.window_every_s)
    }

    /// One of [`LINKS`]: what it says of its link while it is there; `unknown` while it has no status.
    #[must_use]
    pub fn link(&self) -> &'static str {
        match self.status.as_ref().map(|status| (status.state, status.link.as_deref())) {
            Some((DeviceState::Online, Some("degraded"))) => "degraded",
            Some((DeviceState::Online, Some("over_budget"))) => "over_budget",
            Some((DeviceState::Online, _)) => "online",
            Some((DeviceState::Offline, _)) => "offline",
            None => "unknown",
        }
    }

    fn hear(&mut self, said: &Said) {
        match said {
            Said::Status(None) => self.status = None,
            Said::Status(Some(status)) if decide::replaces(status, self.status.as_ref()) => {
                self.status = Some(status.clone());
            }
            Said::Reported(reported) => self.reported = reported.as_deref().cloned(),
            Said::Desired(desired) => {
                self.desired.clone_from(desired);
                self.desired_unreadable = None;
            }
            Said::Unreadable("desired", why) => {
                self.desired = None;
                self.desired_unreadable = Some(why.clone());
            }
            Said::Status(_) | Said::Reply(_) | Said::Telemetry(_) | Said::Unreadable(..) => {}
        }
    }
}

/// All devices, by name.
#[derive(Debug, Default)]
pub struct Board {
    pub devices: BTreeMap<DeviceId, Device>,
}

impl Board {
    pub fn hear(&mut self, device: &DeviceId, said: &Said) {
        if self.devices.len() < DEVICES_MAX || self.devices.contains_key(device) {
            self.devices.entry(device.clone()).or_default().hear(said);
        }
    }
}

/// Reads one message; `None` for topics that say nothing about a device's state.
#[must_use]
pub fn read(topic: Topic, payload: &[u8]) -> Option<(DeviceId, Said)> {
    let empty = payload.is_empty();
    let (device, what, said) = match topic {
        Topic::UpStatus(device) if empty => (device, "status", Ok(Said::Status(None))),
        Topic::UpStatus(device) => {
            (device, "status", DeviceStatus::read(payload).map(|status| Said::Status(Some(status))))
        }
        Topic::UpReported(device) if empty => (device, "reported", Ok(Said::Reported(None))),
        Topic::UpReported(device) => {
            let reported = Reported::read(payload);
            (device, "reported", reported.map(|reported| Said::Reported(Some(Box::new(reported)))))
        }
        Topic::DownDesired(device) if empty => (device, "desired", Ok(Said::Desired(None))),
        Topic::DownDesired(device) => {
            (device, "desired", Desired::read(payload).map(|desired| Said::Desired(Some(desired))))
        }
        Topic::UpReply(device) => (device, "reply", Reply::read(payload).map(Said::Reply)),
        Topic::UpTelemetry(device) => {
            let telemetry = Telemetry::read(payload);
            (device, "telemetry", telemetry.map(|telemetry| Said::Telemetry(Box::new(telemetry))))
        }
        _ => return None,
    };
    Some((device, said.unwrap_or_else(|error| Said::Unreadable(what, error.to_string()))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_emptied_topic_is_forgotten_and_garbage_is_said() {
        let device = DeviceId::new("d").expect("valid");
        let mut board = Board::default();
        for (payload, version, unreadable) in [
            (&br#"{"version": 4}"#[..], Some(4), false),
            (b"{", None, true),
            (br#"{"version": 5}"#, Some(5), false),
            (b"", None, false),
        ] {
            let (name, said) = read(Topic::DownDesired(device.clone()), payload).expect("about a device");
            board.hear(&name, &said);
            let known = &board.devices[&device];
            assert_eq!(known.desired.as_ref().map(|desired| desired.version), version);
            assert_eq!(known.desired_unreadable.is_some(), unreadable);
        }
    }

    #[test]
    fn made_up_names_do_not_fill_the_memory() {
        let mut board = Board::default();
        for n in 0..=DEVICES_MAX {
            board.hear(&DeviceId::new(&format!("d{n}")).expect("valid"), &Said::Status(None));
        }
        assert_eq!(board.devices.len(), DEVICES_MAX);
    }
}
