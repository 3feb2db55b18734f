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

use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use hedge_core::policy;
use hedge_proto::LinkState;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use self::health::{Cause, Health};
use self::keeper::Keeper;
use self::wiring::Parts;
use crate::bundles;
use crate::capture::{Capture, Intake};
use crate::commands::{DeskSetup, DeskTask, Effects};
use crate::control::Control;
use crate::faults::Part;
use crate::home_assistant::HomeAssistant;
use crate::inference::Judge;
use crate::log::{self, LogLevel};
use crate::pipeline::Pipeline;
use crate::queue::Queue;
use crate::restart::Restart;
use crate::settings::SettingsTask;
use crate::uplink::{Uplink, watch_network};
use crate::verdict::Sinks;
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
    let mut told = Told::from_now_on()?;
    let hang_up = signal(SignalKind::hangup())?;

    let stop = CancellationToken::new();
    let mut parts = wiring::wire(&file, &stop)?;
    // A configuration that cannot be used is not kept as the last that worked.
    let kept = (fault.is_none() && parts.closed.is_none()).then(|| file.clone());
    if let Some(fault) = fault {
        parts.pipeline.faults.set(&Part::Config, fault);
        parts.causes.push(Cause::Config(Box::new(file.clone())));
    }
    let (mut running, health) = Running::start(parts, file, log, hang_up, stop).await?;
    running.settle(health).await;
    if let Some(kept) = kept {
        remember(&kept, &running.pipeline, &running.keeper);
    }
    tracing::info!(device = %running.pipeline.device, version = env!("CARGO_PKG_VERSION"), "ready");

    let ending = running.until(&mut told).await?;
    match ending {
        Ending::Stop => {
            tracing::info!("stopping");
            notify::stopping();
        }
        Ending::Restart => {
            tracing::info!("stopping for a restart");
            notify::restarting();
        }
    }
    if tokio::time::timeout(STOP_MAX, running.stop()).await.is_err() {
        tracing::warn!("not everything stopped within {} s; what was stored is safe", STOP_MAX.as_secs());
    }
    Ok(ending)
}

/// The signals that mean to stop.
struct Told {
    terminate: Signal,
    interrupt: Signal,
}

impl Told {
    fn from_now_on() -> std::io::Result<Self> {
        Ok(Self { terminate: signal(SignalKind::terminate())?, interrupt: signal(SignalKind::interrupt())? })
    }
}

/// What an end has to wait for, and what it needs for that.
struct Running {
    pipeline: Arc<Pipeline>,
    uplink: Option<Uplink>,
    keeper: Keeper,
    restart: Restart,
    driving: JoinHandle<()>,
    controlling: JoinHandle<(Capture, Sinks)>,
    /// Ends first, so that what samples leave behind is still stored, sent and said.
    stop_capture: CancellationToken,
    stop: CancellationToken,
}

impl Running {
    /// Starts every task but health, which looks once all that can be there is.
    async fn start(
        parts: Parts,
        file: ConfigFile,
        log: LogLevel,
        hang_up: Signal,
        stop: CancellationToken,
    ) -> Result<(Self, Health), StartError> {
        let stop_capture = CancellationToken::new();
        let Parts { pipeline, uplink, keeper, driver, events, settings, sinks, .. } = parts;
        let Parts { commands, renewer, audit, deliveries, mut causes, closed, .. } = parts;
        let config = settings.in_force.borrow().config.clone();
        let driving = tokio::spawn(driver.run(events, stop.clone()));
        tokio::spawn(report(pipeline.clone(), uplink.clone(), stop.clone()));
        if let Some(uplink) = uplink.clone() {
            let (device, settings, state) = (pipeline.device.clone(), pipeline.settings.clone(), keeper.state.clone());
            tokio::spawn(HomeAssistant { uplink, device, settings, state }.run(stop.clone()));
        }
        let outbox = pipeline.outbox.clone();
        tokio::spawn(keeper.clone().run(move || outbox.figures().waiting > 0, stop.clone()));
        let (outbox, clock) = (pipeline.outbox.clone(), pipeline.clock.clone());
        tokio::spawn(expiry::run(outbox, clock, config.outbox.age_max(), stop.clone()));
        tokio::spawn(watch_network(pipeline.events.clone(), stop.clone()));
        if let Some(renewer) = renewer {
            tokio::spawn(renewer.run(stop.clone()));
        }
        if let Some(deliveries) = deliveries {
            tokio::spawn(deliveries.run(stop_capture.clone()));
        }
        let paused = settings.in_force.borrow().paused.clone();
        let capture = Capture::start(&config, &paused, &pipeline, &pipeline.faults, &stop_capture).await;
        for address in capture.addresses() {
            tracing::info!(%address, "listening");
        }
        let restart = Restart::default();
        if let (Some(uplink), Some(broker)) = (&uplink, &config.broker) {
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
            let (desk, unusable) = open_desk(&config.state_dir, closed.as_deref(), setup)?;
            causes.extend(unusable);
            tokio::spawn(desk.run(commands, pipeline.link.clone(), stop_capture.clone()));
        }
        let health = Health {
            causes,
            faults: pipeline.faults.clone(),
            pipeline: pipeline.clone(),
            state_dir: config.state_dir.clone(),
            limits: config.outbox.limits(),
            payloads: config.payloads.clone(),
            state: keeper.state.clone(),
            outbox: pipeline.outbox.clone(),
            clock: keeper.clock.clone(),
            audit: audit.clone(),
            restart: restart.clone(),
        };
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
        Ok((Self { pipeline, uplink, keeper, restart, driving, controlling, stop_capture, stop }, health))
    }

    /// Waits for the models, says that the device is there, and has its health looked after from then on.
    async fn settle(&self, health: Health) {
        let (pipeline, uplink, stop) = (&self.pipeline, &self.uplink, &self.stop);
        // One that hangs while it loads is a fault of its own; the device is there all the same.
        drop(timeout(health::SLOW_AFTER, join_all(pipeline.judges.values().map(Judge::settle))).await);
        health::note_models(pipeline, &health::Looks::default());
        if let Some(uplink) = uplink {
            // Not connected yet is no matter: the status is published with every connection.
            drop(uplink.say_online().await);
        }
        notify::ready();
        bundles::look_after(&pipeline.settings, &pipeline.judges);
        tokio::spawn(revive(pipeline.queue()));
        tokio::spawn(presence::run(pipeline.link.clone(), uplink.clone(), stop.clone()));
        tokio::spawn(health::tell(pipeline.clone(), uplink.clone(), stop.clone()));
        tokio::spawn(health.run(stop.clone()));
    }

    async fn until(&mut self, told: &mut Told) -> Result<Ending, StartError> {
        tokio::select! {
            _ = told.terminate.recv() => Ok(Ending::Stop),
            _ = told.interrupt.recv() => Ok(Ending::Stop),
            () = self.restart.asked() => Ok(Ending::Restart),
            // Without its driver the agent would answer on and send nothing for ever; a restart heals that.
            ended = &mut self.driving => {
                match ended {
                    Ok(()) => tracing::error!("the driver ended by itself"),
                    Err(error) => tracing::error!("the driver ended by itself: {error}"),
                }
                Err(StartError::DriverEnded)
            }
        }
    }

    /// Samples first, then the goodbye, then everything that what came before still needed.
    async fn stop(mut self) {
        self.stop_capture.cancel();
        let sinks = match self.controlling.await {
            Ok((capture, sinks)) => {
                capture.stopped().await;
                Some(sinks)
            }
            Err(error) => {
                tracing::error!(%error, "the settings' task ended badly");
                None
            }
        };
        if let Some(uplink) = &self.uplink {
            uplink.hang_up().await;
        }
        self.stop.cancel();
        if let Some(sinks) = sinks {
            sinks.stopped().await;
        }
        if let Err(error) = self.driving.await {
            tracing::error!(%error, "the driver ended badly");
        }
        self.keeper.save().await;
        self.pipeline.outbox.clone().close().await;
    }
}

/// The desk, and what is wrong with its journal. Without a state folder nothing is written.
fn open_desk(
    dir: &Path,
    closed: Option<&str>,
    setup: DeskSetup<Effects, Uplink>,
) -> Result<(DeskTask<Effects, Uplink>, Option<Cause>), StartError> {
    if let Some(why) = closed {
        return Ok((DeskTask::without_journal(dir, why, setup)?, None));
    }
    let (desk, unusable) = DeskTask::open(dir, setup)?;
    Ok((desk, unusable.map(|why| Cause::Journal { dir: dir.to_owned(), why })))
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

/// Publishes live figures as often as settings say where the budget allows it, and at once when the link has changed.
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
            () = tokio::time::sleep_until(told_at + interval), if policy::tells(told) => {}
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

/// What an earlier version gave up for its size waits again.
async fn revive(queue: Queue) {
    match queue.revive().await {
        Ok(0) => {}
        Ok(cases) => tracing::info!(cases, "an earlier version gave cases up for their size: they wait again"),
        Err(error) => tracing::warn!(%error, "dead letters cannot be looked at; cases given up for their size stay so"),
    }
}

/// SIGHUP, which `systemctl reload` sends, reads the configuration file again and takes other bundles.
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
            Err(reason) => tracing::error!(reason, "reload: what could not be read again stays as it was"),
        }
    }
}
