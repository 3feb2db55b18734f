//! What the demo consists of: one cloud, three cameras, one sorter, and the sorter's breakable link.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, Result};
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, FaultProxy, Sink, Tally, places};

use super::board::Line;

/// Where people expect a local page.
const DASHBOARD_PORT: u16 = 8080;

/// Slow enough to follow on the dashboard.
const CAMERA_FPS: u32 = 2;

const STOP_WAIT_MAX: Duration = Duration::from_secs(20);

pub(super) struct Stand {
    devices: Vec<Device>,
    pub(super) cloud: Cloud,
    /// Between the sorter and the broker.
    pub(super) link: FaultProxy,
    shutter: PathBuf,
}

struct Device {
    agent: Agent,
    sink: Sink,
}

impl Stand {
    /// `threshold` is the sorter's, if it is not what its bundle suggests.
    pub(super) fn start(dir: &Path, library: &Path, port: Option<u16>, threshold: Option<&str>) -> Result<Self> {
        let mut setup = CloudSetup::embedded(&["photo-large", "fashion-large", "objects-large"]);
        setup.listen = dashboard_address(port)?;
        setup.environment = vec![("ORT_DYLIB_PATH".into(), library.display().to_string())];
        let cloud = Cloud::start(dir, &setup)?;
        let link = FaultProxy::start(cloud.broker_address()?)?;
        let shutter = dir.join("shutter-is-open");

        let sorter = AgentConfig::new(dir, "sorter")
            .broker(&format!("mqtt://{}", link.address()))
            .model("fashion-small")
            .section(threshold.unwrap_or_default())
            .http_source("pictures")
            .corrections_file();
        let lane = AgentConfig::new(dir, "lane-camera")
            .broker(cloud.broker())
            .model("objects-small")
            .http_source(super::lane::SOURCE)
            .corrections_file();
        let mut configs = vec![sorter, lane];
        for (device, first) in [("gate-camera", 0), ("yard-camera", 5)] {
            let camera = AgentConfig::new(dir, device).broker(cloud.broker()).model("photo-small");
            // The ids of a camera's samples are known from its file alone: it holds the local answers too.
            configs.push(camera.command_source("camera", &camera_command(first, &shutter)?).all_answers_file());
        }
        let devices = configs
            .into_iter()
            .map(|config| {
                let agent = config.section("[telemetry]\ninterval_s = 2").library(library).start()?;
                Ok(Device { sink: agent.sink(), agent })
            })
            .collect::<Result<_>>()?;
        Ok(Self { devices, cloud, link, shutter })
    }

    pub(super) fn sorter(&self) -> &Agent {
        &self.devices[0].agent
    }

    /// The device that finds things.
    pub(super) fn lane(&self) -> &Agent {
        &self.devices[1].agent
    }

    /// From now on the cameras take pictures.
    pub(super) fn open_shutters(&self) -> Result<()> {
        std::fs::write(&self.shutter, "").context("cannot open the cameras' shutters")
    }

    /// The cameras go on running and take no picture.
    pub(super) fn close_shutters(&self) -> Result<()> {
        std::fs::remove_file(&self.shutter).context("cannot close the cameras' shutters")
    }

    /// What each device says about itself now; an error if a program has ended.
    pub(super) fn look(&mut self) -> Result<Vec<Line>> {
        self.cloud.check_alive()?;
        let look = |device: &mut Device| {
            device.agent.program().check_alive()?;
            Ok(Line { device: device.agent.device().to_owned(), status: device.agent.http.status()? })
        };
        self.devices.iter_mut().map(look).collect()
    }

    /// Cases the devices still hold.
    pub(super) fn waiting(&self) -> Result<u64> {
        self.devices.iter().map(|device| Ok(device.agent.http.status()?.queue.waiting)).sum()
    }

    /// Counts what the devices' files show since the last call.
    pub(super) fn read_sinks(&mut self, tally: &mut Tally) -> Result<()> {
        for device in &mut self.devices {
            for answer in device.sink.read_on()? {
                if answer.revision == 0 {
                    tally.answered(&answer, None);
                } else {
                    tally.corrected(&answer);
                }
            }
        }
        Ok(())
    }

    pub(super) fn stop(mut self) -> Result<()> {
        for device in &mut self.devices {
            device.agent.stop()?;
        }
        self.cloud.stop(STOP_WAIT_MAX)
    }
}

/// This program as a camera on the photos.
fn camera_command(first: u32, shutter: &Path) -> Result<Vec<String>> {
    let this = places::program("xtask")?;
    let words = [
        this.display().to_string(),
        "camera".into(),
        places::model("pictures").display().to_string(),
        format!("--fps={CAMERA_FPS}"),
        format!("--first={first}"),
        format!("--shutter={}", shutter.display()),
    ];
    Ok(words.into())
}

/// The port asked for; otherwise the usual one if nobody listens there.
fn dashboard_address(port: Option<u16>) -> Result<SocketAddr> {
    let at = |port| SocketAddr::from(([127, 0, 0, 1], port));
    match port {
        Some(port) => Ok(at(port)),
        None if TcpListener::bind(at(DASHBOARD_PORT)).is_ok() => Ok(at(DASHBOARD_PORT)),
        None => Ok(at(0)),
    }
}
