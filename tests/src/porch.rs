//! The device of the documentation: `porch`, with a camera, and a cloud that takes everything for a coat.

use std::time::Duration;

use anyhow::Result;

use crate::mosquitto::MosquittoSetup;
use crate::{Agent, AgentConfig, Scene, places, skip};

const WAIT_MAX: Duration = Duration::from_secs(30);

/// At mosquitto. Its model is called `photo`; its answers are published.
pub struct Porch {
    pub agent: Agent,
    pub scene: Scene,
}

impl Porch {
    /// None, and noted as skipped, where a part of it is not installed.
    pub fn start() -> Result<Option<Self>> {
        Self::start_with(|config| config)
    }

    /// With further sections in its file.
    pub fn start_with(more: impl FnOnce(AgentConfig) -> AgentConfig) -> Result<Option<Self>> {
        if !skip::has_onnxruntime() || !skip::has_mosquitto() {
            return Ok(None);
        }
        let scene = Scene::stub(&MosquittoSetup::default())?;
        let bytes = std::fs::read(places::model("fashion-small").join("golden/test-0.png"))?;
        let frame = scene.dir().join("frame");
        std::fs::write(&frame, [&u32::try_from(bytes.len())?.to_be_bytes()[..], &bytes].concat())?;
        let camera = ["sh".to_owned(), "-c".to_owned(), format!("while cat {}; do sleep 0.2; done", frame.display())];
        let bundle = places::model("fashion-small");
        let config = AgentConfig::new(scene.dir(), "porch")
            .section(&format!("[[model]]\nname = \"photo\"\nbundle = \"{}\"", bundle.display()))
            .command_source("camera", &camera)
            // It takes pictures when it is asked to; the first comes at once.
            .section("interval_ms = 3_600_000")
            .http_source("pictures")
            .section("[verdicts.mqtt]\nwanted = \"all\"")
            .broker(scene.cloud.broker());
        let mut agent = more(config).start()?;
        agent.wait_until_online()?;
        agent.wait_for_status("the first picture is done with", WAIT_MAX, |status| {
            status.samples.answered > 0 && status.queue.waiting == 0 && status.queue.answered == 0
        })?;
        Ok(Some(Self { scene, agent }))
    }
}
