//! Owns the settings: takes wanted documents, puts them in force, watches trials, reports.
//!
//! Whatever comes into force is on disk before. What could cut the link is on trial until a live cloud has answered
//! over it; how that ends is decided in core, also after a crash at any step.

pub(crate) mod desired;
mod effective;
mod report;
#[cfg(test)]
mod tests;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_core::clock::Moment;
use hedge_core::control::settings::{Book, Overlay};
use hedge_core::control::trial::{End, Evidence, Trial};
use hedge_core::engine::Event;
use hedge_core::link::Way;
use hedge_proto::{
    CaseKey, Confirm, Epoch, FieldError, LastDesired, Name, Reported, Settings, SettingsOutcome, ThresholdSettings,
};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use self::desired::{Device, Wanted, refused};
use self::report::reported;
use crate::audit::{Audit, Kind, Noted};
use crate::bundles;
use crate::capture::Capture;
use crate::clock::Clock;
use crate::control::Request;
use crate::faults::Part;
use crate::in_force::InForce;
use crate::link::LinkView;
use crate::log::LogLevel;
use crate::pipeline::Pipeline;
use crate::state::{Remembered, StateFile};
use crate::uplink::{SessionView, Uplink};
use crate::verdict::Sinks;
use hedge_config::{Config, ConfigFile};

/// The longest time a log level may be changed for.
const LOG_LEVEL_MAX: Duration = Duration::from_secs(24 * 3600);

/// A question about a case that cannot exist: whoever answers it is a live cloud.
const NO_CASE: CaseKey = CaseKey { epoch: Epoch(0), sequence: u64::MAX };

/// What a start begins with: the last settings, or what a trial that must end leaves.
pub(crate) fn resume(file: &ConfigFile, state: &mut StateFile, clock: &Clock) -> (InForce, Remembered) {
    let mut remembered = state.state().settings.clone();
    if remembered.started(clock.now())
        && let Err(error) = state.update(|state| state.settings = remembered.clone())
    {
        tracing::error!(%error, "cannot write the state file; the trial of the settings continues in memory");
    }
    let (version, config) = match in_force(file, &remembered.book) {
        Ok(found) => found,
        Err(errors) => {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            let errors = errors.join("; ");
            tracing::error!(errors, "the remote settings do not fit the local file any more; it alone is in force");
            (0, file.config.clone())
        }
    };
    (InForce::new(version, config, &remembered.paused), remembered)
}

/// The version and configuration that the book says is in force.
pub fn in_force(file: &ConfigFile, book: &Book) -> Result<(u64, Config), Vec<FieldError>> {
    match book.in_force() {
        Some(overlay) => Ok((overlay.version, file.overlaid(&overlay.settings)?)),
        None => Ok((0, file.config.clone())),
    }
}

impl Remembered {
    /// The agent has started. True if a trial was under way, so that this is to be kept.
    fn started(&mut self, now: Moment) -> bool {
        let Some(trial) = self.book.trial_mut() else { return false };
        trial.started_again(now);
        // What was seen belonged to an earlier process, so it can only fail.
        if let Some(end) = trial.end(now) {
            self.end(end);
        }
        true
    }

    /// Takes settings in force, on trial if they could cut the link.
    fn take(
        &mut self,
        file: &ConfigFile,
        overlay: Overlay,
        config: &Config,
        confirm: Confirm,
        now: Moment,
    ) -> SettingsOutcome {
        let version = Some(overlay.version);
        let good = self.book.good().and_then(|overlay| file.overlaid(&overlay.settings).ok());
        let outcome = if InForce::cuts_the_link(good.as_ref().unwrap_or(&file.config), config) {
            self.book.begin_trial(now, file.config.settings.trial(), overlay, confirm);
            SettingsOutcome::OnTrial
        } else {
            self.book.accept(overlay);
            SettingsOutcome::Applied
        };
        self.last = Some(LastDesired { version, outcome, reason: None, errors: Vec::new() });
        outcome
    }

    /// Ends the trial.
    fn end(&mut self, end: End) {
        let version = self.book.trial().map(|trial| trial.version);
        let (outcome, reason) = match end {
            End::Confirmed => {
                self.book.confirm();
                (SettingsOutcome::Applied, None)
            }
            End::Failed(reason) => {
                self.book.fail();
                (SettingsOutcome::Failed, Some(reason.to_owned()))
            }
        };
        self.last = Some(LastDesired { version, outcome, reason, errors: Vec::new() });
    }
}

impl Remembered {
    /// Nothing is set from afar any more. Returns the version that was in force, and what the audit log is to say.
    pub fn reset(&mut self) -> (Option<u64>, Noted) {
        let before = self.book.in_force();
        let version = before.map(|overlay| overlay.version);
        let mut entry = Noted::new(Kind::Settings, version_text(version), "reset");
        entry.by = Some("somebody on the device".to_owned());
        entry.before = value(before.map(|overlay| &overlay.settings));
        self.book.reset();
        self.last = None;
        (version, entry)
    }
}

/// What settings move. One task runs it.
pub(crate) struct SettingsTask {
    pub file: ConfigFile,
    pub remembered: Remembered,
    pub state: Arc<Mutex<StateFile>>,
    pub clock: Clock,
    pub in_force: watch::Sender<Arc<InForce>>,
    pub events: mpsc::Sender<Event>,
    pub link: watch::Receiver<LinkView>,
    pub uplink: Option<Uplink>,
    pub pipeline: Arc<Pipeline>,
    pub capture: Capture,
    pub sinks: Sinks,
    pub log: LogLevel,
    pub audit: Audit,
}

/// What shows how a trial goes.
struct Watched {
    sessions: watch::Receiver<Option<SessionView>>,
    acknowledged: watch::Receiver<Option<SessionView>>,
    link: watch::Receiver<LinkView>,
    report: watch::Sender<Reported>,
    /// The connection over which a cloud was asked for a sign of life.
    asked: Option<SessionView>,
    log_until: Option<Instant>,
}

impl Watched {
    /// What is the same is not reported again.
    fn tell(&self, newest: Reported) {
        self.report.send_if_modified(|report| {
            let changed = *report != newest;
            *report = newest;
            changed
        });
    }
}

impl SettingsTask {
    /// Serves until told to stop; then gives back what it moved.
    pub(crate) async fn run(
        mut self,
        mut requests: mpsc::Receiver<Request>,
        stop: CancellationToken,
    ) -> (Capture, Sinks) {
        let (acknowledge, acknowledged) = watch::channel(None);
        let (report, newest) = watch::channel(self.reported());
        let sessions = match &self.uplink {
            Some(uplink) => {
                tokio::spawn(report::run(uplink.clone(), newest, acknowledge, stop.clone()));
                uplink.sessions()
            }
            None => watch::channel(None).1,
        };
        let mut watched =
            Watched { sessions, acknowledged, link: self.link.clone(), report, asked: None, log_until: None };
        let mut loaded = self.pipeline.loaded.clone();
        self.tell_trial().await;
        loop {
            self.weigh_trial(&mut watched).await;
            let on_trial = self.remembered.book.trial().is_some();
            let wake_at = self.wake_at(&watched);
            tokio::select! {
                () = stop.cancelled() => return (self.capture, self.sinks),
                request = requests.recv() => match request {
                    Some(request) => self.take(request, &mut watched).await,
                    None => return (self.capture, self.sinks),
                },
                // What its bundle suggests is known from now on.
                Ok(()) = loaded.changed() => watched.tell(self.reported()),
                Ok(()) = watched.sessions.changed(), if on_trial => {}
                Ok(()) = watched.acknowledged.changed(), if on_trial => {}
                Ok(()) = watched.link.changed(), if on_trial => {}
                () = tokio::time::sleep_until(wake_at) => {}
            }
            if watched.log_until.is_some_and(|until| until <= Instant::now()) {
                watched.log_until = None;
                self.set_log_level();
            }
        }
    }

    fn wake_at(&self, watched: &Watched) -> Instant {
        let now = self.clock.now();
        let trial = self.remembered.book.trial().map(|trial| Instant::now() + trial.ends_at().since(now));
        let never = Instant::now() + LOG_LEVEL_MAX;
        trial.into_iter().chain(watched.log_until).min().unwrap_or(never)
    }

    async fn take(&mut self, request: Request, watched: &mut Watched) {
        // Whoever asked may be gone; what was done stays done.
        match request {
            Request::Desired { bytes, by, retained, done } => {
                self.desired(&bytes, by.as_deref()).await;
                if !retained {
                    // Who publishes the same document again is told the same again.
                    watched.report.send_replace(self.reported());
                }
                drop(done.send(Ok(())));
            }
            Request::Pause(source, reply) => drop(reply.send(self.set_paused(source, true).await)),
            Request::Resume(source, reply) => drop(reply.send(self.set_paused(source, false).await)),
            Request::Confirm(version, reply) => drop(reply.send(self.end_trial(version, End::Confirmed).await)),
            Request::Revert(version, reply) => {
                drop(reply.send(self.end_trial(version, End::Failed("an operator gave the settings back")).await));
            }
            Request::Reload(reply) => drop(reply.send(self.reload().await)),
            Request::Reset(reply) => drop(reply.send(self.reset().await)),
            Request::LogLevel(level, for_s, reply) => {
                let until = Instant::now() + Duration::from_secs(u64::from(for_s)).min(LOG_LEVEL_MAX);
                let set = self.log.set(&level).map_err(|error| error.to_string());
                if set.is_ok() {
                    watched.log_until = Some(until);
                }
                drop(reply.send(set));
            }
        }
        watched.tell(self.reported());
    }

    async fn desired(&mut self, bytes: &[u8], by: Option<&str>) {
        if bytes.is_empty() {
            return; // the retained document was taken back; what is in force stays
        }
        let refusal = match self.try_desired(bytes, by).await {
            Ok(()) => return,
            Err(refusal) => refusal,
        };
        let failed_before = self.remembered.last.as_ref().is_some_and(|last| {
            last.outcome == SettingsOutcome::Failed && last.version.is_some() && last.version == refusal.version
        });
        let errors: Vec<String> = refusal.errors.iter().map(ToString::to_string).collect();
        let errors = errors.join("; ");
        tracing::warn!(version = refusal.version, reason = refusal.reason, errors, "settings refused");
        let mut entry = Noted::new(Kind::Settings, version_text(refusal.version), "refused");
        let errors = refusal.errors.iter().map(ToString::to_string);
        let why: Vec<String> = refusal.reason.iter().cloned().chain(errors).collect();
        (entry.by, entry.reason) = (by.map(str::to_owned), Some(why.join("; ")));
        self.audit.note(entry).await;
        if !failed_before {
            // Why it failed says more than that it came again.
            self.remembered.last = Some(refusal);
        }
    }

    async fn try_desired(&mut self, bytes: &[u8], by: Option<&str>) -> Result<(), LastDesired> {
        let judges = &self.pipeline.judges;
        let labels = |model: &Name| judges.get(model)?.card().map(|card| card.labels.clone());
        let device = Device { file: &self.file, book: &self.remembered.book, labels };
        let Some(Wanted { overlay, config, confirm, by: named }) = device.read(bytes)? else { return Ok(()) };
        let version = overlay.version;
        let mut entry = Noted::new(Kind::Settings, version_text(Some(version)), "applied");
        entry.by = named.or_else(|| by.map(str::to_owned));
        entry.before = value(self.remembered.book.in_force().map(|overlay| &overlay.settings));
        entry.after = value(Some(&overlay.settings));
        let mut next = self.remembered.clone();
        let outcome = next.take(&self.file, overlay, &config, confirm, self.clock.now());
        if outcome == SettingsOutcome::OnTrial {
            (entry.kind, entry.outcome) = (Kind::Trial, "begun".to_owned());
        }
        self.save(next).await.map_err(|error| {
            let reason = format!("the device cannot write its state ({error}); publish it again later");
            refused(Some(version), &reason, vec![])
        })?;
        tracing::info!(version, by = entry.by, "settings {}", outcome.text());
        self.put_in_force(version, config, outcome == SettingsOutcome::OnTrial).await;
        self.audit.note(entry).await;
        Ok(())
    }

    /// Remembers durably, then takes it. On an error nothing has changed.
    async fn save(&mut self, next: Remembered) -> std::io::Result<()> {
        let (state, kept) = (self.state.clone(), next.clone());
        let saved = tokio::task::spawn_blocking(move || {
            state.lock().unwrap_or_else(PoisonError::into_inner).commit(|state| state.settings = kept)
        });
        saved.await.map_err(std::io::Error::other)??;
        self.remembered = next;
        Ok(())
    }

    /// From the next sample on everything goes by `config`.
    async fn put_in_force(&mut self, version: u64, config: Config, redial: bool) {
        let before = self.in_force.borrow().clone();
        // What is being sent may be more than may leave from now on.
        let tightened = config.privacy.ceiling() < before.config.privacy.ceiling();
        let redial = redial || tightened || InForce::cuts_the_link(&before.config, &config);
        let now = Arc::new(InForce::new(version, config, &self.remembered.paused));
        self.in_force.send_replace(now.clone());
        if before.config.log.level != now.config.log.level {
            self.set_log_level();
        }
        self.capture.apply(&now.config, &now.paused, &self.pipeline);
        self.sinks.apply(&now.config.verdicts);
        // If the engine is gone the agent is stopping.
        drop(self.events.send(Event::Configured(Box::new(now.config.configured()))).await);
        if redial {
            drop(self.events.send(Event::BrokerChanged).await);
        }
        self.tell_trial().await;
    }

    /// Whether settings are on trial, so that the radio does not rest meanwhile.
    async fn tell_trial(&self) {
        let until = self.remembered.book.trial().map(Trial::ends_at);
        drop(self.events.send(Event::OnTrial { until }).await);
    }

    fn set_log_level(&self) {
        let level = &self.in_force.borrow().config.log.level;
        if let Err(error) = self.log.set(level) {
            tracing::error!(%error, "the log level stays as it is");
        }
    }

    async fn weigh_trial(&mut self, watched: &mut Watched) {
        let Some(trial) = self.remembered.book.trial_mut() else { return };
        let version = trial.version;
        let session =
            watched.sessions.borrow_and_update().filter(|seen| seen.version == version && seen.way == Way::Usual);
        trial.lost();
        if let Some(session) = session {
            trial.saw(Evidence::Subscribed);
            if *watched.acknowledged.borrow_and_update() == Some(session) {
                trial.saw(Evidence::Reported);
            }
            if watched.link.borrow_and_update().proven {
                trial.saw(Evidence::CloudSpoke);
            } else if watched.asked.replace(session) != Some(session)
                && let Some(uplink) = &self.uplink
            {
                uplink.ask(vec![NO_CASE]);
            }
        }
        if let Some(end) = trial.end(self.clock.now()) {
            // The version is the trial's own.
            if let Err(error) = self.end_trial(version, end).await {
                tracing::error!(error, "a trial could not be ended");
            }
            watched.report.send_replace(self.reported());
        }
    }

    async fn end_trial(&mut self, version: u64, end: End) -> Result<(), String> {
        match self.remembered.book.trial() {
            Some(trial) if trial.version == version => {}
            Some(trial) => return Err(format!("version {} is on trial, not {version}", trial.version)),
            None => return Err("no settings are on trial".to_owned()),
        }
        let mut next = self.remembered.clone();
        let mut entry = Noted::new(Kind::Trial, version_text(Some(version)), "confirmed");
        next.end(end);
        match end {
            End::Confirmed => {
                tracing::info!(version, "settings on trial are confirmed");
            }
            End::Failed(reason) => {
                tracing::warn!(version, reason, "settings on trial are given back");
                (entry.outcome, entry.reason) = ("failed".to_owned(), Some(reason.to_owned()));
            }
        }
        if let Err(error) = self.save(next.clone()).await {
            // After a restart the trial ends again, the same way.
            tracing::error!(%error, "cannot write the state file; the end of the trial is in memory only");
            self.remembered = next;
        }
        if let End::Confirmed = end {
            self.tell_trial().await;
        } else {
            let (version, config) =
                in_force(&self.file, &self.remembered.book).unwrap_or_else(|_| (0, self.file.config.clone()));
            self.put_in_force(version, config, true).await;
        }
        self.audit.note(entry).await;
        Ok(())
    }

    async fn set_paused(&mut self, source: Option<Name>, paused: bool) -> Result<(), String> {
        let now = self.in_force.borrow().clone();
        let mut next = self.remembered.clone();
        let named: Vec<Name> = match source {
            Some(source) if now.sources.contains_key(&source) => vec![source],
            Some(source) => {
                let known: Vec<&str> = now.sources.keys().map(Name::as_str).collect();
                return Err(format!("there is no source named `{source}`; there are: {}", known.join(", ")));
            }
            None => now.sources.keys().cloned().collect(),
        };
        for name in named {
            if paused {
                next.paused.insert(name);
            } else {
                next.paused.remove(&name);
            }
        }
        self.save(next).await.map_err(|error| format!("the device cannot write its state: {error}"))?;
        self.put_in_force(now.version, now.config.clone(), false).await;
        Ok(())
    }

    async fn reload(&mut self) -> Result<Vec<String>, String> {
        let later = self.read_again().await.inspect_err(|reason| {
            let fault = format!("{reason}; what was in force stays so: correct the file and reload again");
            self.pipeline.faults.set(&Part::Config, fault);
        })?;
        let config = self.in_force.borrow().config.clone();
        bundles::reload(config, &self.pipeline.judges).await?;
        Ok(later)
    }

    async fn read_again(&mut self) -> Result<Vec<String>, String> {
        let file = self.file.again().map_err(|error| error.to_string())?;
        let (version, config) = in_force(&file, &self.remembered.book).map_err(|errors| {
            let errors: Vec<String> = errors.iter().map(ToString::to_string).collect();
            format!("the remote settings do not fit the file: {}", errors.join("; "))
        })?;
        let (config, later) = config.keeping_what_needs_a_restart(&self.in_force.borrow().config)?;
        self.file = file;
        self.put_in_force(version, config, false).await;
        self.pipeline.faults.clear(&Part::Config);
        if let Err(error) = self.file.keep() {
            tracing::warn!(%error, "this configuration cannot be kept as the last that worked");
        }
        tracing::info!(next_start = later.join(", "), "reload: the configuration file was read again");
        Ok(later)
    }

    async fn reset(&mut self) -> Result<Option<u64>, String> {
        let mut next = self.remembered.clone();
        let (version, entry) = next.reset();
        self.save(next).await.map_err(|error| format!("the device cannot write its state: {error}"))?;
        tracing::warn!(version, "the settings were reset on the device; the local file alone is in force");
        self.put_in_force(0, self.file.config.clone(), false).await;
        self.audit.note(entry).await;
        Ok(version)
    }

    fn reported(&self) -> Reported {
        let overlay = self.remembered.book.in_force().map(|overlay| overlay.settings.clone()).unwrap_or_default();
        let in_force = self.in_force.borrow();
        let suggested = self.pipeline.judges.iter().filter_map(|(name, judge)| {
            let suggestion = in_force.thresholds.get(name)?.suggestion(judge.card()?.suggested);
            Some((name.clone(), suggestion)).filter(|(_, suggestion)| *suggestion != ThresholdSettings::default())
        });
        reported(&in_force, overlay, suggested.collect(), self.remembered.last.clone())
    }
}

fn version_text(version: Option<u64>) -> String {
    version.map_or_else(|| "no version".to_owned(), |version| format!("version {version}"))
}

fn value(settings: Option<&Settings>) -> serde_json::Value {
    // By way of text, so that 0.7 stays 0.7.
    let text = settings.map(hedge_proto::to_json).unwrap_or_default();
    serde_json::from_slice(&text).unwrap_or_default()
}
