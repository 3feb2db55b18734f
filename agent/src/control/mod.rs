//! The operator's hand on the device.

pub mod audit;
pub(crate) mod commands;

use hedge_proto::Name;

/// Asks the task that owns the settings. Cheap to clone.
#[derive(Clone)]
pub struct Control;

const NOT_YET: &str = "this version does not support it";

impl Control {
    pub async fn pause(&self, _: Option<Name>) -> Result<(), String> {
        Err(NOT_YET.to_owned())
    }

    pub async fn resume(&self, _: Option<Name>) -> Result<(), String> {
        Err(NOT_YET.to_owned())
    }

    pub async fn confirm(&self, _: u64) -> Result<(), String> {
        Err(NOT_YET.to_owned())
    }

    pub async fn revert(&self, _: u64) -> Result<(), String> {
        Err(NOT_YET.to_owned())
    }

    pub async fn reload(&self) -> Result<Vec<String>, String> {
        Err(NOT_YET.to_owned())
    }

    pub async fn log_level(&self, _: String, _: u32) -> Result<(), String> {
        Err(NOT_YET.to_owned())
    }
}
