//! Start, wiring, stop. The whole life of the agent is [`run`].

pub mod config;
mod driver;
mod expiry;
mod keeper;
mod log;
pub(crate) mod notify;
mod restart;
mod wiring;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use hedge_proto::LinkState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use self::config::{Config, ConfigError};
pub use self::log::LogError;
pub use self::restart::{Restart, program};
use self::wiring::Parts;
use crate::capture::{Capture, CaptureError, Intake};
use crate::control::Control;
use crate::control::audit::Audit;
use crate::control::commands::{DeskSetup, DeskTask, Effects};
use crate::pipeline::Pipeline;
use crate::uplink::{Uplink, watch_network};
use crate::verdict::SinkConfigError;

/// A stop takes no longer, whatever hangs; systemd's own limit is longer.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Why the agent did not start. What heals by waiting is not among these.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Log(#[from] LogError),
    #[error("the device's identity: {0}")]
    Identity(String),
    #[error("the state folder {path}: {reason}")]
    State { path: PathBuf, reason: String },
    #[error(transparent)]
    Capture(#[from] CaptureError),
    #[error(transparent)]
    Sink(#[from] SinkConfigError),
    #[error("a part of the agent ended that must not; the log says which")]
    DriverEnded,
    #[error("this system: {0}")]
    System(#[from] std::io::Error),
}

/// What is wanted after an orderly end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    Stop,
    /// An operator asked for it.
    Restart,
}

/// Reads the configuration, starts everything, serves until told to stop, stops everything.
pub async fn run(config: Config) -> Result<Ending, StartError> {
    log::start(&config.log)?;
    // From here on a signal stops the agent in good order instead of killing it.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::spawn(reload(signal(SignalKind::hangup())?));

    let (stop_capture, stop) = (CancellationToken::new(), CancellationToken::new());
    let Parts { pipeline, uplink, mut keeper, verdicts, driver, events, deliveries, commands, renewer } =
        wiring::wire(&config)?;
    verdicts.forget_all_delivered().await;
    let mut driving = tokio::spawn(driver.run(events, stop.clone()));
    let delivering: Vec<_> = deliveries.into_iter().map(|delivery| tokio::spawn(delivery.run(stop.clone()))).collect();
    tokio::spawn(report(pipeline.clone(), uplink.clone(), telemetry_interval(&config), stop.clone()));
    let outbox = pipeline.outbox.clone();
    tokio::spawn(keeper.clone().run(move || outbox.figures().waiting > 0, stop.clone()));
    tokio::spawn(expiry::run(pipeline.outbox.clone(), pipeline.clock.clone(), config.outbox.age_max(), stop.clone()));
    tokio::spawn(watch_network(pipeline.events.clone(), stop.clone()));
    if let Some(renewer) = renewer {
        tokio::spawn(renewer.run(stop.clone()));
    }
    let capture = Capture::start(&config, &pipeline, &stop_capture).await?;
    for address in capture.addresses() {
        tracing::info!(%address, "listening");
    }
    let restart = Restart::default();
    let audit = Audit::new(&config.state_dir, keeper.clock.clone());
    if let (Some(uplink), Some(broker)) = (&uplink, &config.broker) {
        let setup = DeskSetup {
            device: pipeline.device.clone(),
            topics: broker.prefix.clone(),
            clock: keeper.clock.clone(),
            audit,
            effects: Effects { pipeline: pipeline.clone(), control: Control, restart: restart.clone() },
            says: uplink.clone(),
        };
        let desk = DeskTask::open(&config.state_dir, setup)
            .map_err(|error| StartError::State { path: config.state_dir.clone(), reason: error.to_string() })?;
        tokio::spawn(desk.run(commands, pipeline.link.clone(), stop_capture.clone()));
    }
    for judge in pipeline.judges.values() {
        judge.settle().await;
    }
    if let Some(uplink) = &uplink {
        // Not connected yet is no matter: the status is published with every connection.
        drop(uplink.say_online().await);
    }
    notify::ready();
    tracing::info!(device = %pipeline.device, version = env!("CARGO_PKG_VERSION"), "ready");

    let ending = tokio::select! {
        _ = terminate.recv() => Ending::Stop,
        _ = interrupt.recv() => Ending::Stop,
        () = restart.asked() => Ending::Restart,
        // Without its driver the agent would answer on and send nothing for ever; a restart heals that.
        ended = &mut driving => {
            tracing::error!(?ended, "the driver ended by itself");
            return Err(StartError::DriverEnded);
        }
    };
    tracing::info!(?ending, "stopping");
    match ending {
        Ending::Stop => notify::stopping(),
        Ending::Restart => notify::restarting(),
    }
    let stopped = tokio::time::timeout(STOP_MAX, async {
        // Samples first, so that what they leave behind is still stored, sent and said.
        stop_capture.cancel();
        capture.stopped().await;
        if let Some(uplink) = &uplink {
            uplink.hang_up().await;
        }
        stop.cancel();
        for task in delivering.into_iter().chain([driving]) {
            if let Err(error) = task.await {
                tracing::error!(%error, "a task ended badly");
            }
        }
        keeper.save().await;
        pipeline.outbox.clone().close().await;
    });
    if stopped.await.is_err() {
        tracing::warn!("not everything stopped within {STOP_MAX:?}; what was stored is safe");
    }
    Ok(ending)
}

/// Answers `systemctl reload`.
async fn reload(mut hangup: Signal) {
    while hangup.recv().await.is_some() {
        tracing::info!("reload: nothing to do; the configuration file is read at start");
    }
}

/// Publishes live figures, and at once when the link has changed.
async fn report(pipeline: Arc<Pipeline>, uplink: Option<Uplink>, interval: Duration, stop: CancellationToken) {
    let Some(uplink) = uplink else { return };
    let mut link = pipeline.link.clone();
    // What was told, not what is now: the link may change while figures are being sent.
    let mut told = LinkState::Offline;
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(interval) => {}
            changed = link.wait_for(|view| view.state != told) => if changed.is_err() { return },
        }
        let status = pipeline.status();
        told = status.link;
        if let Err(error) = uplink.telemetry(&status).await {
            tracing::debug!(%error, "figures not sent; the next ones will be newer");
        }
    }
}

fn telemetry_interval(config: &Config) -> Duration {
    match config.telemetry.interval_s {
        Some(seconds) => Duration::from_secs(seconds.max(1)),
        None => config.link.profile().telemetry,
    }
}
