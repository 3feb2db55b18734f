//! Start, wiring, stop. The whole life of the agent is [`run`].

mod down;
mod driver;
mod expiry;
pub mod health;
mod keeper;
mod last_run;
pub mod notify;
mod presence;
mod renewer;
mod store;
mod wiring;

use std::path::PathBuf;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use hedge_proto::LinkState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::health::{Cause, Health};
use self::keeper::Keeper;
use self::wiring::Parts;
use crate::audit::Audit;
use crate::capture::{Capture, Intake};
use crate::commands::{DeskSetup, DeskTask, Effects};
use crate::control::Control;
use crate::faults::Part;
use crate::home_assistant::HomeAssistant;
use crate::log;
use crate::pipeline::Pipeline;
use crate::restart::Restart;
use crate::settings::SettingsTask;
use crate::uplink::{Uplink, watch_network};
use hedge_config::{ConfigFile, LogError, NoSetting, Starting};

/// A stop takes no longer, whatever hangs; systemd's own limit is longer.
const STOP_MAX: Duration = Duration::from_secs(10);

/// Why the agent did not start. What heals by waiting is not among these.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error(transparent)]
    Log(#[from] LogError),
    /// Two agents over one outbox would both send it.
    #[error("the state folder {path}: {reason}")]
    InUse { path: PathBuf, reason: String },
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

/// Starts everything that can be, serves until told to stop, stops everything.
pub async fn run(starting: Starting) -> Result<Ending, StartError> {
    let Starting { file, fault } = starting;
    let log = log::start(&file.config.log)?;
    for NoSetting { variable, reason, .. } in &file.not_settings {
        tracing::warn!("the environment variable {variable} is passed over: {reason}");
    }
    // From here on a signal stops the agent in good order instead of killing it.
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let hang_up = signal(SignalKind::hangup())?;

    let (stop_capture, stop) = (CancellationToken::new(), CancellationToken::new());
    let Parts { pipeline, uplink, mut keeper, driver, events, settings, sinks, commands, renewer, mut causes, closed } =
        wiring::wire(&file, &stop)?;
    let worked = fault.is_none();
    if let Some(fault) = fault {
        pipeline.faults.set(&Part::Config, fault);
        causes.push(Cause::Config(Box::new(file.clone())));
    }
    let mut driving = tokio::spawn(driver.run(events, stop.clone()));
    tokio::spawn(report(pipeline.clone(), uplink.clone(), stop.clone()));
    if let Some(uplink) = uplink.clone() {
        let (device, settings, state) = (pipeline.device.clone(), pipeline.settings.clone(), keeper.state.clone());
        tokio::spawn(HomeAssistant { uplink, device, settings, state }.run(stop.clone()));
    }
    let in_force = settings.in_force.borrow().clone();
    let outbox = pipeline.outbox.clone();
    tokio::spawn(keeper.clone().run(move || outbox.figures().waiting > 0, stop.clone()));
    tokio::spawn(expiry::run(
        pipeline.outbox.clone(),
        pipeline.clock.clone(),
        in_force.config.outbox.age_max(),
        stop.clone(),
    ));
    tokio::spawn(watch_network(pipeline.events.clone(), stop.clone()));
    if let Some(renewer) = renewer {
        tokio::spawn(renewer.run(stop.clone()));
    }
    let capture = Capture::start(&in_force.config, &in_force.paused, &pipeline, &pipeline.faults, &stop_capture).await;
    for address in capture.addresses() {
        tracing::info!(%address, "listening");
    }
    let restart = Restart::default();
    let audit = Audit::new(&in_force.config.state_dir, keeper.clock.clone());
    if let (Some(uplink), Some(broker)) = (&uplink, &in_force.config.broker) {
        let setup = DeskSetup {
            device: pipeline.device.clone(),
            topics: broker.prefix.clone(),
            clock: keeper.clock.clone(),
            audit: audit.clone(),
            effects: Effects {
                pipeline: pipeline.clone(),
                control: settings.control.clone(),
                restart: restart.clone(),
            },
            says: uplink.clone(),
        };
        let dir = &in_force.config.state_dir;
        let (desk, unusable) = match &closed {
            Some(why) => (DeskTask::without_journal(dir, why, setup)?, None),
            None => DeskTask::open(dir, setup)?,
        };
        causes.extend(unusable.map(|why| Cause::Journal { dir: dir.clone(), why }));
        tokio::spawn(desk.run(commands, pipeline.link.clone(), stop_capture.clone()));
    }
    let health = Health {
        causes,
        faults: pipeline.faults.clone(),
        pipeline: pipeline.clone(),
        state_dir: in_force.config.state_dir.clone(),
        limits: in_force.config.outbox.limits(),
        payloads: in_force.config.payloads.clone(),
        state: keeper.state.clone(),
        outbox: pipeline.outbox.clone(),
        clock: keeper.clock.clone(),
        audit: audit.clone(),
        restart: restart.clone(),
    };
    let kept = worked.then(|| file.clone());
    let task = SettingsTask {
        file,
        remembered: settings.remembered,
        state: keeper.state.clone(),
        clock: keeper.clock.clone(),
        in_force: settings.in_force,
        events: pipeline.events.clone(),
        link: pipeline.link.clone(),
        uplink: uplink.clone(),
        pipeline: pipeline.clone(),
        capture,
        sinks,
        log,
        audit,
    };
    let controlling = tokio::spawn(task.run(settings.requests, stop_capture.clone()));
    tokio::spawn(reload_on(hang_up, settings.control, stop.clone()));
    for judge in pipeline.judges.values() {
        judge.settle().await;
    }
    health::note_models(&pipeline);
    if let Some(uplink) = &uplink {
        // Not connected yet is no matter: the status is published with every connection.
        drop(uplink.say_online().await);
    }
    notify::ready();
    tokio::spawn(presence::run(pipeline.link.clone(), uplink.clone(), stop.clone()));
    tokio::spawn(health::tell(pipeline.clone(), uplink.clone(), stop.clone()));
    tokio::spawn(health.run(stop.clone()));
    if let Some(kept) = kept
        && closed.is_none()
    {
        remember(&kept, &pipeline, &keeper);
    }
    tracing::info!(device = %pipeline.device, version = env!("CARGO_PKG_VERSION"), "ready");

    let ending = tokio::select! {
        _ = terminate.recv() => Ending::Stop,
        _ = interrupt.recv() => Ending::Stop,
        () = restart.asked() => Ending::Restart,
        // Without its driver the agent would answer on and send nothing for ever; a restart heals that.
        ended = &mut driving => {
            match ended {
                Ok(_) => tracing::error!("the driver ended by itself"),
                Err(error) => tracing::error!("the driver ended by itself: {error}"),
            }
            return Err(StartError::DriverEnded);
        }
    };
    match ending {
        Ending::Stop => {
            tracing::info!("stopping");
            notify::stopping();
        }
        Ending::Restart => {
            tracing::info!("stopping, to start anew");
            notify::restarting();
        }
    }
    let stopped = tokio::time::timeout(STOP_MAX, async {
        // Samples first, so that what they leave behind is still stored, sent and said.
        stop_capture.cancel();
        let sinks = match controlling.await {
            Ok((capture, sinks)) => {
                capture.stopped().await;
                Some(sinks)
            }
            Err(error) => {
                tracing::error!(%error, "the settings' task ended badly");
                None
            }
        };
        if let Some(uplink) = &uplink {
            uplink.hang_up().await;
        }
        stop.cancel();
        if let Some(sinks) = sinks {
            sinks.stopped().await;
        }
        if let Err(error) = driving.await {
            tracing::error!(%error, "the driver ended badly");
        }
        keeper.save().await;
        pipeline.outbox.clone().close().await;
    });
    if stopped.await.is_err() {
        tracing::warn!("not everything stopped within {STOP_MAX:?}; what was stored is safe");
    }
    Ok(ending)
}

/// Keeps what a start can go by whose own configuration or certificate cannot be read.
fn remember(file: &ConfigFile, pipeline: &Pipeline, keeper: &Keeper) {
    if let Err(error) = file.keep() {
        tracing::warn!(%error, "this configuration cannot be kept as the last that worked");
    }
    let mut state = keeper.state.lock().unwrap_or_else(PoisonError::into_inner);
    if state.state().device.as_ref() != Some(&pipeline.device)
        && let Err(error) = state.update(|state| state.device = Some(pipeline.device.clone()))
    {
        tracing::warn!(%error, "cannot write the state file");
    }
}

/// Publishes live figures, and at once when the link has changed.
async fn report(pipeline: Arc<Pipeline>, uplink: Option<Uplink>, stop: CancellationToken) {
    let Some(uplink) = uplink else { return };
    let (mut link, mut settings) = (pipeline.link.clone(), pipeline.settings.clone());
    // What was told, not what is now: the link may change while figures are being sent.
    let mut told = LinkState::Offline;
    let mut told_at = Instant::now();
    loop {
        let interval = settings.borrow_and_update().config.telemetry_interval();
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep_until(told_at + interval) => {}
            changed = settings.changed() => {
                if changed.is_err() {
                    return;
                }
                continue;
            }
            changed = link.wait_for(|view| view.state != told) => if changed.is_err() { return },
        }
        let status = pipeline.status();
        (told, told_at) = (status.link, Instant::now());
        if let Err(error) = uplink.telemetry(&status).await {
            tracing::debug!(%error, "figures not sent; the next ones will be newer");
        }
    }
}

/// SIGHUP, which `systemctl reload` sends, reads the configuration file again.
async fn reload_on(mut hang_up: Signal, control: Control, stop: CancellationToken) {
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = hang_up.recv() => {}
        }
        match control.reload().await {
            Ok(later) if later.is_empty() => {}
            Ok(later) => {
                tracing::warn!(fields = later.join(", "), "some of the file takes effect at the next start only");
            }
            Err(reason) => tracing::error!(reason, "the configuration file cannot be used; the settings stay"),
        }
    }
}
