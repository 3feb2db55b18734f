//! What came of spot checks, counted so that those of many devices can be added up.

use alloc::vec::Vec;

use serde::{Deserialize, Serialize};

use crate::ModelRef;

/// So many steps of doubt with losses, and levels of loss in each, may be told of.
pub const LOSSES_MAX: usize = 1024;

/// Spot checks of one model's answers, by doubt and by what they lost: nothing of any sample.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct SpotChecks {
    /// Whose word they were compared with.
    pub cloud: ModelRef,
    pub checks: f64,
    /// In which step of doubt how many lost so many quarters. What lost nothing is not listed.
    pub lost: Vec<(u8, u8, f32)>,
}

/// The same of all devices together that run this version of a model.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct FleetChecks {
    pub model: ModelRef,
    pub devices: u32,
    #[serde(flatten)]
    pub counted: SpotChecks,
}
