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
    pub model: ModelRef,
    /// Whose word its answers were compared with.
    pub cloud: ModelRef,
    /// On how many devices.
    pub devices: u32,
    pub checks: f64,
    /// In which step of doubt how many lost so many quarters, counted from 0. What lost nothing is not listed.
    pub lost: Vec<(u8, u8, f32)>,
    /// In which step of doubt how many lost nothing. Earlier versions do not tell it; what they count says nothing of kept
    /// answers alone but what was lost of them.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub held: Vec<(u8, f32)>,
}
