//! A device that is online, and an operator at its broker who says what it is to be like.

use std::time::Duration;

use anyhow::{Context as _, Result};
use hedge_proto::{Reported, SettingsOutcome};

use crate::mosquitto::MosquittoSetup;
use crate::{Agent, AgentConfig, Operator, Scene, skip};

/// The device's name.
pub const DEVICE: &str = "device-1";

pub struct Operated {
    pub operator: Operator,
    pub agent: Agent,
    pub scene: Scene,
}

impl Operated {
    /// None, and noted as skipped, where a part of it is not installed.
    pub fn start() -> Result<Option<Self>> {
        Self::start_with(|config| config)
    }

    /// With more in its configuration.
    pub fn start_with(more: impl FnOnce(AgentConfig) -> AgentConfig) -> Result<Option<Self>> {
        if !skip::has_onnxruntime() || !skip::has_mosquitto() {
            return Ok(None);
        }
        let scene = Scene::stub(&MosquittoSetup::default())?;
        let operator = Operator::at(scene.broker()?)?;
        let config = scene.doubter(DEVICE).broker(&format!("mqtt://{}", scene.broker()?));
        let mut agent = more(config).start()?;
        agent.wait_until_online()?;
        Ok(Some(Self { operator, agent, scene }))
    }

    /// Waits until the device reports what became of a version.
    pub fn wait_for(&self, version: u64, outcome: SettingsOutcome, bound: Duration) -> Result<Reported> {
        let what = format!("version {version} is {outcome:?}");
        let decided = |report: &Reported| {
            report.last.as_ref().is_some_and(|last| last.version == Some(version) && last.outcome == outcome)
        };
        self.operator.wait_for_report(DEVICE, &what, bound, decided).with_context(|| self.agent.log_end())
    }
}
