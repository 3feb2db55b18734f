//! Numbers in a range: a score or a part of a whole, and what a class is worth beside others.

use serde::{Deserialize, Serialize};

/// From 0 to 1, both included.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("minimum" = 0, "maximum" = 1)))]
#[serde(try_from = "f32")]
pub struct Share(f32);

/// The number is not from 0 to 1.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not a number from 0 to 1")]
pub struct NotAShare(f32);

impl Share {
    pub const ZERO: Self = Self(0.0);

    pub fn new(value: f32) -> Result<Self, NotAShare> {
        if (0.0..=1.0).contains(&value) { Ok(Self(value)) } else { Err(NotAShare(value)) }
    }

    #[must_use]
    pub fn value(self) -> f32 {
        self.0
    }
}

impl TryFrom<f32> for Share {
    type Error = NotAShare;
    fn try_from(value: f32) -> Result<Self, NotAShare> {
        Self::new(value)
    }
}

/// What a case about one class is worth beside others: from 0.01 to 100, 1 if nobody says.
#[derive(Debug, Clone, Copy, PartialEq, PartialOrd, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema), schemars(extend("minimum" = 0.01, "maximum" = 100)))]
#[serde(try_from = "f32")]
pub struct Weight(f32);

/// The number is not from 0.01 to 100.
#[derive(Debug, Clone, Copy, PartialEq, thiserror::Error)]
#[error("{0} is not a number from 0.01 to 100")]
pub struct NotAWeight(f32);

impl Weight {
    pub const MIN: Self = Self(0.01);
    pub const ONE: Self = Self(1.0);
    pub const MAX: Self = Self(100.0);

    pub fn new(value: f32) -> Result<Self, NotAWeight> {
        if (Self::MIN.0..=Self::MAX.0).contains(&value) { Ok(Self(value)) } else { Err(NotAWeight(value)) }
    }

    #[must_use]
    pub const fn value(self) -> f32 {
        self.0
    }
}

impl TryFrom<f32> for Weight {
    type Error = NotAWeight;
    fn try_from(value: f32) -> Result<Self, NotAWeight> {
        Self::new(value)
    }
}
