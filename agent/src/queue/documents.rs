//! What the queue commands show, as JSON: the same on a running agent and a stopped one.

use std::collections::BTreeMap;

use hedge_proto::{Case, CaseId, CaseKey, Epoch, Reason, Verdict};
use serde::{Deserialize, Serialize};

use hedge_outbox::{Inspection, State};

/// How far a case has come, in one word.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    Waiting,
    /// In full, once; no word from the cloud yet.
    Sent,
    /// The cloud has it.
    Received,
    /// The verdict is on disk, and some sink does not have it.
    Answered,
    /// A dead letter: kept for inspection, never sent.
    Dead,
}

impl From<State> for Stage {
    fn from(state: State) -> Self {
        match state {
            State::Waiting => Self::Waiting,
            State::Sent => Self::Sent,
            State::Received => Self::Received,
            State::Answered { .. } => Self::Answered,
            State::Dead => Self::Dead,
        }
    }
}

/// One line of the queue.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseLine {
    pub id: CaseId,
    pub stage: Stage,
    /// On the powered clock.
    pub age_s: u64,
    /// 0 once it is answered.
    pub payload_bytes: u64,
    /// Tries the cloud failed at.
    pub tries: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Why the device asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<Reason>,
    /// Why it is a dead letter, or why it cannot be read.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// The first lines of the queue, in the order in which cases are sent.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Listing {
    pub cases: Vec<CaseLine>,
    /// There are more of those asked for.
    pub more: bool,
}

/// Everything about one case but its payload.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CaseDocument {
    #[serde(flatten)]
    pub line: CaseLine,
    pub case: Case,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub verdict: Option<Verdict>,
}

/// Counts and sizes.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Stats {
    pub cases: BTreeMap<String, u64>,
    pub cases_max: u64,
    pub bytes: u64,
    pub bytes_max: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oldest_s: Option<u64>,
    pub disk_bytes: u64,
    /// Found damaged since the outbox was opened.
    pub damaged_records: u64,
    /// The queue on disk cannot be written; its order is kept in memory.
    pub in_memory: bool,
}

/// What reading the whole log has shown.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct CheckReport {
    pub segments: u64,
    pub bytes: u64,
    /// Intact records by kind.
    pub records: BTreeMap<String, u64>,
    pub damaged: u64,
    /// The first places.
    pub damage: Vec<DamagedPlace>,
    /// An interrupted write at the end, cut off at the next start; nothing in it was promised.
    pub torn_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DamagedPlace {
    pub segment: u32,
    pub offset: u64,
    pub bytes: u64,
    pub what: String,
}

impl From<Inspection> for CheckReport {
    fn from(found: Inspection) -> Self {
        let place = |damage: hedge_outbox::Damage| DamagedPlace {
            segment: damage.segment,
            offset: damage.offset,
            bytes: damage.bytes,
            what: damage.what.to_owned(),
        };
        Self {
            segments: found.segments,
            bytes: found.bytes,
            records: found.records.into_iter().map(|(kind, count)| (kind.to_owned(), count)).collect(),
            damaged: found.damaged,
            damage: found.damage.into_iter().map(place).collect(),
            torn_bytes: found.torn_bytes,
        }
    }
}

/// Which cases to change.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Selection {
    pub ids: Vec<Id>,
    /// Every dead letter.
    pub all_dead: bool,
}

/// What became of each case that was to be changed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub id: CaseId,
    /// Absent when it was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<String>,
}

/// A case as a person names it: its whole id, or `epoch.sequence` without the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Id(pub CaseKey);

impl std::str::FromStr for Id {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if let Ok(id) = text.parse::<CaseId>() {
            return Ok(Self(id.key));
        }
        let key = text.split_once('.').and_then(|(epoch, sequence)| {
            let epoch = Epoch(u64::from_str_radix(epoch, 16).ok()?);
            Some(CaseKey { epoch, sequence: sequence.parse().ok()? })
        });
        key.map(Self).ok_or_else(|| {
            let text: String = text.chars().take(100).collect();
            format!("`{text}` is not a case id; `hedge-agent queue list` shows them")
        })
    }
}

impl TryFrom<String> for Id {
    type Error = String;

    fn try_from(text: String) -> Result<Self, String> {
        text.parse()
    }
}

impl From<Id> for String {
    fn from(id: Id) -> Self {
        format!("{:016x}.{}", id.0.epoch.0, id.0.sequence)
    }
}

impl std::fmt::Display for Id {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&String::from(*self))
    }
}
