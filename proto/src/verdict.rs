//! What the cloud tells a device about its cases, on `down/verdict`.

use alloc::string::String;
use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::{CaseId, ModelRef, Output, PayloadForm, SpotChecks};

/// Whose word a result is, in rising order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum Authority {
    /// The device's own model.
    Device,
    Model,
    StrongerModel,
    Person,
}

/// The answer to one case. A higher revision replaces a lower one.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct Verdict {
    /// The lowest version of the wire that carries it: [`Output::wire_version`] of what it says.
    pub v: u16,
    pub id: CaseId,
    /// From 1.
    pub revision: u32,
    pub authority: Authority,
    pub task: String,
    #[serde(rename = "result")]
    pub said: Output,
    pub model: ModelRef,
}

/// Everything the cloud says on `down/verdict`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum DownMessage {
    Verdict(Verdict),
    /// The cloud's records hold these cases: do not send them again.
    Received {
        ids: Vec<CaseId>,
    },
    /// Send nothing for so long.
    Busy {
        after_s: u32,
    },
    /// The cloud tried and could not; the device may try again, a bounded number of times.
    Failed {
        id: CaseId,
        reason: String,
    },
    /// The cloud will never answer this one.
    Dead {
        id: CaseId,
        reason: String,
    },
    /// The cloud has never seen these: send them.
    Unknown {
        ids: Vec<CaseId>,
    },
    /// The cloud wants this case's payload in this form.
    Send {
        id: CaseId,
        form: PayloadForm,
    },
    /// What the whole fleet's spot checks have come to. Only devices that have told their own hear of it.
    Checks(SpotChecks),
}
