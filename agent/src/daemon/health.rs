//! Looks after what is wrong: tells it wherever a person may look, and takes up again what has healed.
//!
//! What a start could not use (configuration, identity, state folder) is looked at again and again; once it can be
//! used the agent starts anew, in the same process. Everything else heals while it runs.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::future::join_all;
use hedge_proto::{LinkState, Name, Payload};
use rustix::fs::StatVfsMountFlags;
use tokio::task::JoinHandle;
use tokio::time::{Instant, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use super::{Restart, last_run, notify};
use crate::audit::Audit;
use crate::clock::{Clock, synced_from_outside};
use crate::commands::journal_opens;
use crate::faults::{Faults, Part};
use crate::inference::Judge;
use crate::pipeline::Pipeline;
use crate::sample::NO_EMBEDDING;
use crate::state::StateFile;
use crate::uplink::{Uplink, payloads_fault};
use hedge_config::{Config, ConfigFile, PayloadsConfig};
use hedge_identity::{built_ms, wall_ms};
use hedge_outbox::files::writable;
use hedge_outbox::{Limits, OpenError, Outbox, Trouble};

/// How often it is looked. A look costs a few system calls.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// How long one round waits for models that are being loaded.
const LOOK_WAIT: Duration = Duration::from_secs(1);

/// The largest bundle on a slow card takes seconds.
pub(super) const SLOW_AFTER: Duration = Duration::from_secs(60);

/// What a start could not use.
pub(super) enum Cause {
    Config(Box<ConfigFile>),
    Identity(Box<Config>),
    State {
        dir: PathBuf,
        limits: Limits,
    },
    /// The journal of commands in this folder, and why.
    Journal {
        dir: PathBuf,
        why: String,
    },
}

/// What is looked after.
pub(super) struct Health {
    pub(super) causes: Vec<Cause>,
    pub(super) faults: Faults,
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) state_dir: PathBuf,
    pub(super) limits: Limits,
    pub(super) payloads: Option<PayloadsConfig>,
    pub(super) state: Arc<Mutex<StateFile>>,
    pub(super) outbox: Outbox,
    pub(super) clock: Clock,
    pub(super) audit: Audit,
    pub(super) restart: Restart,
}

impl Health {
    /// Looks every few seconds until told to stop.
    pub(super) async fn run(mut self, stop: CancellationToken) {
        let mut shown_until = Some(Instant::now() + last_run::SHOWN);
        // A file that is being written may be valid half-way: it must be the same twice.
        let mut seen: Option<String> = None;
        let mut trouble = self.outbox.trouble();
        let mut settings = self.pipeline.settings.clone();
        let mut sources = BTreeSet::new();
        let mut looks = Looks::default();
        loop {
            self.look_at_the_state_folder().await;
            // What the look itself found is no reason to look again at once.
            trouble.mark_unchanged();
            self.faults.note(&Part::Clock, clock_fault());
            self.faults.note(&Part::Disk, disk_fault(&self.state_dir, &self.limits));
            self.faults.note(&Part::Payloads, self.payloads.as_ref().and_then(payloads_fault));
            if shown_until.take_if(|until| *until <= Instant::now()).is_some() {
                self.faults.clear(&Part::LastRun);
                self.forget_crashes();
            }
            looks.look(&self.pipeline.judges).await;
            note_models(&self.pipeline, &looks);
            sources = note_sources(&self.pipeline, &sources);
            synced_from_outside().await;
            if let Some(part) = self.healed(&mut seen).await {
                match self.restart.ask() {
                    Ok(()) => return tracing::warn!(%part, "this can be used again; the agent restarts with it"),
                    Err(error) => tracing::warn!(error, %part, "this can be used again, after a restart"),
                }
            }
            let next = Instant::now() + LOOK_EVERY;
            loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    // A threshold may be what was missing; nothing else is looked at any sooner for it.
                    changed = settings.changed() => match changed {
                        Ok(()) => note_models(&self.pipeline, &looks),
                        Err(_) => return,
                    },
                    Ok(()) = trouble.changed() => break,
                    () = sleep_until(next) => break,
                }
            }
        }
    }

    /// Says what is wrong with what is written to the state folder, and tries what could not be written again.
    async fn look_at_the_state_folder(&self) {
        if self.causes.iter().any(|cause| matches!(cause, Cause::Identity(_) | Cause::State { .. })) {
            return; // it is not used, which was said
        }
        let outbox = self.outbox.clone();
        if let Err(error) = tokio::task::spawn_blocking(move || outbox.look_for_folder()).await {
            tracing::error!(%error, "the outbox could not be looked at");
        }
        // Writing is tried only where it failed before: a card wears out.
        let now = self.outbox.trouble().borrow().clone();
        let dir = self.state_dir.clone();
        let again = match now {
            Some(Trouble::Refused(_)) => {
                matches!(tokio::task::spawn_blocking(move || writable(&dir)).await, Ok(Ok(())))
            }
            Some(Trouble::Elsewhere) => true,
            Some(Trouble::Gone) | None => false,
        };
        if again {
            // What comes of it is the outbox's trouble, or that there is none any more.
            drop(self.outbox.clock(self.clock.now()).await);
        }
        let (outbox, dir) = (self.outbox.clone(), self.state_dir.clone());
        let (state, audit) = (self.state.clone(), self.audit.clone());
        let fault = tokio::task::spawn_blocking(move || state_fault(&outbox, &dir, &state, &audit));
        let journal = self.causes.iter().find_map(|cause| match cause {
            Cause::Journal { why, .. } => Some(why.clone()),
            _ => None,
        });
        match fault.await {
            Ok(fault) => self.faults.note(&Part::State, fault.or(journal)),
            Err(error) => tracing::error!(%error, "the state folder could not be looked at"),
        }
    }

    /// This run has lasted; what ended earlier ones counts no more.
    fn forget_crashes(&self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.state().crashes > 0
            && let Err(error) = state.update(|state| state.crashes = 0)
        {
            tracing::warn!(%error, "cannot write the state file");
        }
    }

    /// What the outbox held is gone with its folder: a start makes another, and says how much is missing.
    async fn begins_anew(&self) -> bool {
        if *self.outbox.trouble().borrow() != Some(Trouble::Gone) {
            return false;
        }
        let (dir, state) = (self.state_dir.clone(), self.state.clone());
        let figures = self.outbox.figures();
        let before = figures.waiting + figures.answered + figures.dead;
        let opens = tokio::task::spawn_blocking(move || {
            writable(&dir).map_err(|error| error.to_string())?;
            let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
            state.update(|state| state.cases_before = Some(before)).map_err(|error| error.to_string())
        });
        matches!(opens.await, Ok(Ok(())))
    }

    async fn healed(&mut self, seen: &mut Option<String>) -> Option<Part> {
        if self.begins_anew().await {
            return Some(Part::State);
        }
        for cause in &self.causes {
            match cause {
                Cause::Config(file) => match file.again() {
                    Ok(now) if seen.as_deref() == Some(now.text()) => return Some(Part::Config),
                    Ok(now) => *seen = Some(now.text().to_owned()),
                    Err(error) => tracing::debug!(%error, "the configuration file"),
                },
                Cause::Identity(config) if config.device_id().is_ok() => return Some(Part::Identity),
                Cause::Identity(_) => {}
                Cause::Journal { dir, .. } if journal_opens(dir).is_ok() => return Some(Part::State),
                Cause::Journal { .. } => {}
                Cause::State { dir, limits } => {
                    let (dir, limits) = (dir.clone(), *limits);
                    let opens = tokio::task::spawn_blocking(move || state_opens(&dir, limits)).await;
                    if matches!(opens, Ok(Ok(()))) {
                        return Some(Part::State);
                    }
                }
            }
        }
        None
    }
}

/// The looks at models under way: each waits for its model's thread, which may never come back from loading a file.
#[derive(Default)]
pub(super) struct Looks(BTreeMap<Name, (Instant, JoinHandle<()>)>);

impl Looks {
    /// Has each model loaded that is missing, if its time has come. One whose last look has not ended is not asked
    /// again, for its thread has a bounded queue that samples need, too.
    async fn look(&mut self, judges: &BTreeMap<Name, Judge>) {
        self.0.retain(|_, (_, task)| !task.is_finished());
        for (name, judge) in judges {
            let judge = judge.clone();
            self.0
                .entry(name.clone())
                .or_insert_with(|| (Instant::now(), tokio::spawn(async move { judge.look().await })));
        }
        // Most end at once, and then what they found is said now rather than with the next look.
        let all = join_all(self.0.values_mut().map(|(_, task)| task));
        drop(timeout(LOOK_WAIT, all).await);
        self.0.retain(|_, (_, task)| !task.is_finished());
    }

    /// The models that are not done with loading, and what is to be said of them.
    fn slow(&self) -> impl Iterator<Item = (Name, String)> {
        let slow = self.0.iter().filter(|(_, (since, _))| since.elapsed() >= SLOW_AFTER);
        slow.map(|(name, (since, _))| {
            let seconds = since.elapsed().as_secs() / 60 * 60;
            let advice = "its samples are refused until it is; see whether its disk answers, then restart the agent";
            (name.clone(), format!("it has been loading for more than {seconds} s; {advice}"))
        })
    }
}

/// What is wrong with what is written to the state folder.
fn state_fault(outbox: &Outbox, dir: &std::path::Path, state: &Mutex<StateFile>, audit: &Audit) -> Option<String> {
    let trouble = outbox.trouble().borrow().clone();
    if let Some(trouble) = trouble {
        let dir = dir.join("outbox");
        return Some(format!("the outbox in {}: {trouble}; samples are answered and no case is stored", dir.display()));
    }
    let log = dir.join("outbox").join("log");
    let access = rustix::fs::Access::WRITE_OK | rustix::fs::Access::EXEC_OK;
    if log.exists()
        && let Err(error) = rustix::fs::access(&log, access)
    {
        let error = std::io::Error::from(error);
        return Some(format!(
            "the outbox's folder {} cannot be written: {error}; give it back to the agent",
            log.display()
        ));
    }
    let state = state.lock().unwrap_or_else(PoisonError::into_inner).trouble();
    if let Some(trouble) = state {
        return Some(format!("what must survive a restart cannot be written: {trouble}"));
    }
    audit.trouble().map(|trouble| format!("the log of changes and commands cannot be written: {trouble}"))
}

/// Notes of each model why it cannot answer, or what of its threshold has no effect.
pub(super) fn note_models(pipeline: &Pipeline, looks: &Looks) {
    let slow: BTreeMap<Name, String> = looks.slow().collect();
    let settings = pipeline.settings.borrow().clone();
    let leaves = settings.config.privacy.ceiling().hold(pipeline.link.borrow().policy.payload);
    for (name, judge) in &pipeline.judges {
        let threshold = settings.thresholds.get(name).cloned().unwrap_or_default();
        let does_not_embed =
            || (leaves == Payload::Embedding && !judge.card()?.embeds).then(|| NO_EMBEDDING.to_owned());
        let fault = judge.fault(&threshold).or_else(|| slow.get(name).cloned()).or_else(does_not_embed);
        pipeline.faults.note(&Part::Model(name.clone()), fault);
    }
}

/// Notes of each source whether it brings anything. Those `before` that are off by now have no fault any more.
fn note_sources(pipeline: &Pipeline, before: &BTreeSet<Name>) -> BTreeSet<Name> {
    let now = pipeline.figures.quiet_sources();
    for gone in before.iter().filter(|name| !now.contains_key(name)) {
        pipeline.faults.clear(&Part::Source(gone.clone()));
    }
    for (name, fault) in &now {
        pipeline.faults.note(&Part::Source(name.clone()), fault.clone());
    }
    now.into_keys().collect()
}

/// Whether a start could use the folder now. Everything is tried, so that a restart for it is not in vain.
fn state_opens(dir: &std::path::Path, limits: Limits) -> Result<(), String> {
    writable(dir).map_err(|error| error.to_string())?;
    StateFile::open(dir).map_err(|error| error.to_string())?;
    journal_opens(dir).map_err(|error| error.to_string())?;
    Outbox::open(&dir.join("outbox"), limits).map(drop).map_err(|error: OpenError| error.to_string())
}

/// What is wrong with the wall clock. A device without a battery-backed one wakes up in 1970.
pub fn clock_fault() -> Option<String> {
    let now_ms = wall_ms().unwrap_or(0);
    (now_ms < built_ms()).then(|| {
        "the clock has not been set since the device was switched on: answers carry a wrong time until the network sets \
         it; see that a time service runs (systemd-timesyncd, chrony or ntpd)"
            .to_owned()
    })
}

/// What is wrong with the disk of the state folder.
pub fn disk_fault(dir: &std::path::Path, limits: &Limits) -> Option<String> {
    let dir_shown = dir.display();
    let stat = rustix::fs::statvfs(dir).ok()?;
    if stat.f_flag.contains(StatVfsMountFlags::RDONLY) {
        return Some(format!(
            "the disk of {dir_shown} is mounted read-only, so nothing is stored; if it should not be, look at `dmesg` for \
             errors of the disk, then mount it again or reboot"
        ));
    }
    let free = stat.f_bavail.saturating_mul(stat.f_frsize);
    (free < limits.free_bytes_min).then(|| {
        format!(
            "the disk of {dir_shown} has {} MiB free, less than the {} MiB kept free (`free_bytes_min` in [outbox]), so no \
             new case is stored; make room",
            free >> 20,
            limits.free_bytes_min >> 20
        )
    })
}

/// Tells systemd the link's state and what is wrong, and the broker what is wrong and how often it hears of us, whenever
/// it changes.
pub(super) async fn tell(pipeline: Arc<Pipeline>, uplink: Option<Uplink>, stop: CancellationToken) {
    let (mut link, mut faults) = (pipeline.link.clone(), pipeline.faults.subscribe());
    let (mut settings, mut loaded) = (pipeline.settings.clone(), pipeline.loaded.clone());
    let mut told: Option<(LinkState, &'static str, hedge_proto::Faults)> = None;
    let mut said_online = (hedge_proto::Faults::new(), settings.borrow().config.link.windows, *loaded.borrow());
    loop {
        let (state, reason) = {
            let view = link.borrow_and_update();
            (view.state, view.reason)
        };
        let now = faults.borrow_and_update().clone();
        let windows = settings.borrow_and_update().config.link.windows;
        let models = *loaded.borrow_and_update();
        if told.as_ref() != Some(&(state, reason, now.clone())) {
            notify::say(&status_line(state, reason, &now));
            told = Some((state, reason, now.clone()));
        }
        if let Some(uplink) = &uplink
            && said_online != (now.clone(), windows, models)
        {
            // Not connected is no matter: every connection begins with it.
            drop(uplink.say_online().await);
            said_online = (now, windows, models);
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = link.changed() => if changed.is_err() { return },
            changed = faults.changed() => if changed.is_err() { return },
            changed = settings.changed() => if changed.is_err() { return },
            changed = loaded.changed() => if changed.is_err() { return },
        }
    }
}

fn status_line(state: LinkState, reason: &str, faults: &hedge_proto::Faults) -> String {
    let link = format!("link {}: {reason}", state.name());
    if faults.is_empty() {
        return link;
    }
    let faults: Vec<String> = faults.iter().map(|(part, sentence)| format!("{part}: {sentence}")).collect();
    format!("degraded: {}; {link}", faults.join("; "))
}

#[cfg(test)]
mod tests {
    use hedge_core::clock::Moment;

    use super::*;
    use crate::clock::ClockMark;
    use crate::inference::{ModelSetup, Place};
    use crate::learned::Learned;
    use hedge_inference::SessionOptions;
    use tokio::sync::watch;

    #[test]
    fn systemd_is_told_what_is_wrong_before_the_link() {
        let none = hedge_proto::Faults::new();
        assert_eq!(status_line(LinkState::Online, "connected", &none), "link online: connected");
        let faults = [("disk".to_owned(), "full".to_owned())].into();
        assert_eq!(
            status_line(LinkState::Offline, "no network", &faults),
            "degraded: disk: full; link offline: no network"
        );
    }

    #[tokio::test]
    async fn a_model_that_hangs_while_it_is_loaded_holds_up_no_look_and_is_said() {
        let dir = tempfile::tempdir().expect("temporary folder");
        // To open a pipe that nobody writes to never ends, as a read from a dying card.
        let made = std::process::Command::new("mkfifo").arg(dir.path().join("manifest.toml")).status();
        assert!(made.expect("mkfifo").success());
        let name = Name::new("m").expect("a name");
        let (loaded, _) = watch::channel(0);
        let judge = Judge::start(ModelSetup {
            name: name.clone(),
            place: Place {
                bundle: dir.path().to_owned(),
                variant: None,
                session: SessionOptions::default(),
                library: None,
            },
            hung_after: Duration::from_secs(60),
            rest: None,
            faults: Faults::default(),
            figures: Arc::default(),
            loaded,
            learned: Learned::new(name.clone(), None, Clock::resume(&ClockMark::default(), Moment(0)), 1),
        });
        let judges = BTreeMap::from([(name.clone(), judge.expect("a thread"))]);
        let mut looks = Looks::default();
        for _ in 0..2 {
            timeout(LOOK_WAIT * 20, looks.look(&judges)).await.expect("a look ends");
        }
        assert_eq!((looks.0.len(), looks.slow().count()), (1, 0), "one look for each model");
        let begun = Instant::now().checked_sub(SLOW_AFTER * 2).expect("a time");
        looks.0.values_mut().for_each(|(since, _)| *since = begun);
        let slow: Vec<(Name, String)> = looks.slow().collect();
        assert!(slow.len() == 1 && slow[0].1.contains("120 s"), "{slow:?}");
        // Its thread ends with it.
        drop(std::fs::OpenOptions::new().write(true).open(dir.path().join("manifest.toml")));
    }

    #[test]
    fn a_folder_without_room_is_a_sentence_with_a_way_out() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let limits = hedge_config::Config::default().outbox.limits();
        assert_eq!(disk_fault(dir.path(), &Limits { free_bytes_min: 0, ..limits }), None);
        let fault = disk_fault(dir.path(), &Limits { free_bytes_min: u64::MAX, ..limits }).expect("a fault");
        assert!(fault.contains("MiB free") && fault.contains("make room"), "{fault}");
    }
}
