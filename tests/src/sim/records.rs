//! What the model of a cloud has on record, and what it has to tell of one commit.

use std::collections::BTreeMap;

use hedge_proto::CaseKey;

use super::message::{Down, Form};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Standing {
    /// Before the model of an instance.
    Waiting(usize),
    /// Its thumbnail is not enough for that instance's model: the whole is wanted of the device.
    Wanted(usize),
    Answered(u32),
    Failed,
    Dead,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Record {
    pub(super) standing: Standing,
    pub(super) failures: u32,
    /// Of what came.
    pub(super) form: Form,
    /// The thumbnail must do.
    pub(super) makes_do: bool,
}

/// What outlives the process.
#[derive(Debug, Default)]
pub(super) struct Records {
    pub(super) cases: BTreeMap<CaseKey, Record>,
    pub(super) waiting: usize,
}

impl Records {
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }

    /// A case that comes for the first time.
    pub(super) fn take(&mut self, key: CaseKey, form: Form, standing: Standing) {
        self.cases.insert(key, Record { standing: Standing::Failed, failures: 0, form, makes_do: form == Form::Last });
        self.set(key, standing);
    }

    pub(super) fn set(&mut self, key: CaseKey, standing: Standing) {
        let Some(record) = self.cases.get_mut(&key) else { return };
        self.waiting -= usize::from(matches!(record.standing, Standing::Waiting(_)));
        self.waiting += usize::from(matches!(standing, Standing::Waiting(_)));
        record.standing = standing;
    }
}

/// What one commit has to tell, in the order the cloud says it.
#[derive(Debug, Default)]
pub(super) struct Said {
    pub(super) received: Vec<CaseKey>,
    pub(super) unknown: Vec<CaseKey>,
    pub(super) single: Vec<Down>,
    pub(super) busy_s: Option<u32>,
}

impl Said {
    /// Whether the device is told that these were not taken.
    pub(super) fn refused(&self, keys: &[CaseKey]) -> bool {
        let about = |key: &CaseKey| {
            let single = |down: &Down| matches!(down, Down::Failed(known) | Down::Send(known) if known == key);
            self.unknown.contains(key) || self.single.iter().any(single)
        };
        self.busy_s.is_some() || keys.iter().any(about)
    }

    pub(super) fn into_messages(self) -> Vec<Down> {
        let mut messages = Vec::new();
        for ids in self.received.chunks(hedge_proto::IDS_MAX) {
            messages.push(Down::Received(ids.to_vec()));
        }
        for ids in self.unknown.chunks(hedge_proto::IDS_MAX) {
            messages.push(Down::Unknown(ids.to_vec()));
        }
        messages.extend(self.single);
        messages.extend(self.busy_s.map(|after_s| Down::Busy { after_s }));
        messages
    }
}
