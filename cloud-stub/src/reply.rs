//! Gathers what one commit has to tell each device, in as few messages as say it.
//!
//! Nothing here is sent before the commit; that is the intake's order of work, not this module's.

use std::collections::BTreeMap;

use hedge_proto::{CaseId, DeviceId, DownMessage, IDS_MAX};

/// One message for one device.
#[derive(Debug, Clone, PartialEq)]
pub struct Reply {
    pub device: DeviceId,
    pub message: DownMessage,
}

#[derive(Debug, Default)]
struct ForDevice {
    received: Vec<CaseId>,
    unknown: Vec<CaseId>,
    busy_s: Option<u32>,
    single: Vec<DownMessage>,
}

/// Replies that wait for the commit.
#[derive(Debug, Default)]
pub struct Replies {
    devices: BTreeMap<DeviceId, ForDevice>,
}

impl Replies {
    pub fn add(&mut self, device: &DeviceId, message: DownMessage) {
        let mine = self.devices.entry(device.clone()).or_default();
        match message {
            DownMessage::Received { ids } => mine.received.extend(ids),
            DownMessage::Unknown { ids } => mine.unknown.extend(ids),
            DownMessage::Busy { after_s } => mine.busy_s = mine.busy_s.max(Some(after_s)),
            other => mine.single.push(other),
        }
    }

    /// All messages: for each device first what is held and what is not, then single answers, then `busy`.
    #[must_use]
    pub fn into_messages(self) -> Vec<Reply> {
        let mut replies = Vec::new();
        for (device, mine) in self.devices {
            let mut push = |message| replies.push(Reply { device: device.clone(), message });
            for ids in mine.received.chunks(IDS_MAX) {
                push(DownMessage::Received { ids: ids.to_vec() });
            }
            for ids in mine.unknown.chunks(IDS_MAX) {
                push(DownMessage::Unknown { ids: ids.to_vec() });
            }
            mine.single.into_iter().for_each(&mut push);
            if let Some(after_s) = mine.busy_s {
                push(DownMessage::Busy { after_s });
            }
        }
        replies
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{CaseKey, Epoch, Name};

    #[test]
    fn ids_of_one_commit_share_messages_of_bounded_length() {
        let device = Name::new("d").expect("valid");
        let mut replies = Replies::default();
        for sequence in 0..=IDS_MAX as u64 {
            let id = CaseId { device: device.clone(), key: CaseKey { epoch: Epoch(1), sequence } };
            replies.add(&device, DownMessage::Received { ids: vec![id] });
            replies.add(&device, DownMessage::Busy { after_s: 5 });
        }
        let messages = replies.into_messages();
        let lengths: Vec<usize> = messages
            .iter()
            .map(|reply| match &reply.message {
                DownMessage::Received { ids } => ids.len(),
                DownMessage::Busy { after_s: 5 } => 0,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(lengths, [IDS_MAX, 1, 0]);
    }
}
