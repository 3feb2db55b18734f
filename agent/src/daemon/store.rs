//! Opens the state folder and tells who the device is; goes on without either where it must.
//!
//! A folder that cannot be used is left alone: the device answers, refuses to store, and starts anew once it can be
//! used. Only a folder that another agent uses is a reason not to start.

use std::path::Path;
use std::time::Duration;

use hedge_core::budget::Spent;
use hedge_core::clock::Moment;
use hedge_proto::DeviceId;

use super::health::Cause;
use super::{StartError, last_run};
use crate::clock::Clock;
use crate::faults::{Faults, Part};
use crate::state::StateFile;
use hedge_config::Config;
use hedge_outbox::files::writable;
use hedge_outbox::{OpenError, OpenReport, Outbox};

/// What the state folder holds, or what stands for it.
pub(super) struct Store {
    pub(super) state: StateFile,
    pub(super) outbox: Outbox,
    pub(super) clock: Clock,
    pub(super) causes: Vec<Cause>,
    /// Why the folder is not used, if it is not.
    pub(super) closed: Option<String>,
    /// How long models rest before they are loaded, and why.
    pub(super) rest: Option<(Duration, String)>,
    /// Cases that the last run had stored and that are gone.
    pub(super) gone: u64,
}

/// Under which name the device works.
pub(super) struct Identified {
    pub(super) device: DeviceId,
    /// Nothing may be stored or sent under it: it may be another's.
    pub(super) is_guess: bool,
}

pub(super) fn open(config: &Config, faults: &Faults) -> Result<Store, StartError> {
    let dir = &config.state_dir;
    let why = match try_open(config) {
        Ok((mut state, outbox, clock)) => {
            let rest = weigh_last_run(&mut state, dir, faults);
            let gone = say_what_is_gone(&mut state, &outbox, faults);
            return Ok(Store { state, outbox, clock, causes: Vec::new(), closed: None, rest, gone });
        }
        Err(Unusable::InUse(reason)) => return Err(StartError::InUse { path: dir.clone(), reason }),
        Err(Unusable::Folder(why)) => why,
    };
    let why = format!("the state folder {} cannot be used: {why}", dir.display());
    faults.set(&Part::State, format!("{why}; samples are answered and nothing is stored until it can be"));
    Ok(closed(config, &why, Cause::State { dir: dir.clone(), limits: config.outbox.limits() }))
}

/// A store that takes nothing.
fn closed(config: &Config, why: &str, cause: Cause) -> Store {
    let state = StateFile::in_memory(&config.state_dir, why);
    let outbox = Outbox::refusing(&config.state_dir.join("outbox"), config.outbox.limits(), why);
    let clock = Clock::resume(&state.state().clock, Moment(0));
    Store { state, outbox, clock, causes: vec![cause], closed: Some(why.to_owned()), rest: None, gone: 0 }
}

enum Unusable {
    InUse(String),
    Folder(String),
}

fn try_open(config: &Config) -> Result<(StateFile, Outbox, Clock), Unusable> {
    let dir = &config.state_dir;
    let folder = |error: std::io::Error| Unusable::Folder(error.to_string());
    // Whoever has it is told apart from a folder that cannot be written before anything is.
    let outbox_dir = dir.join("outbox");
    let is_new = !outbox_dir.exists();
    let opened = Outbox::open(&outbox_dir, config.outbox.limits());
    let (outbox, report) = opened.map_err(|error| match error {
        OpenError::InUse(_) => Unusable::InUse(error.to_string()),
        OpenError::Io { source, .. } => folder(source),
        OpenError::Newer { .. } => Unusable::Folder(error.to_string()),
    })?;
    // A full disk is no reason: the outbox knows how to live with one.
    if let Err(error) = writable(dir)
        && error.kind() != std::io::ErrorKind::StorageFull
    {
        return Err(folder(error));
    }
    let (mut state, lost) = StateFile::open(dir).map_err(folder)?;
    if let Some(lost) = lost {
        tracing::warn!(lost);
    }
    // Without its outbox a device has lost no memory of what it spent: it never ran.
    if is_new
        && state.state().spent.is_none()
        && let Err(error) = state.update(|state| state.spent = Some(Spent::default()))
    {
        tracing::warn!(%error, "cannot write the state file");
    }
    say_report(&report, dir);
    let clock = Clock::resume(&state.state().clock, report.clock.unwrap_or(Moment(0)));
    Ok((state, outbox, clock))
}

fn say_report(report: &OpenReport, dir: &Path) {
    let OpenReport { cases, rebuilt, torn_bytes, damaged_segments, .. } = *report;
    tracing::info!(cases, torn_bytes, damaged_segments, rebuilt, "outbox open");
    if report.damaged_records > 0 {
        let records = report.damaged_records;
        tracing::warn!(records, dir = %dir.display(), "damaged records were set aside");
    }
}

/// Says how the last run ended, and how long models rest because runs keep ending so.
fn weigh_last_run(state: &mut StateFile, dir: &Path, faults: &Faults) -> Option<(Duration, String)> {
    let before = state.state().crashes;
    let crashes = match last_run::take(dir) {
        Some(end) => {
            if let Some(sentence) = end.sentence {
                faults.set(&Part::LastRun, sentence);
            }
            if end.crashed { before.saturating_add(1) } else { 0 }
        }
        None => before,
    };
    if crashes != before
        && let Err(error) = state.update(|state| state.crashes = crashes)
    {
        tracing::warn!(%error, "cannot write the state file");
    }
    let rest = last_run::rest(crashes)?;
    let seconds = rest.as_secs();
    Some((
        rest,
        format!("{crashes} runs in a row ended in a crash or without memory, so it is loaded after {seconds} s"),
    ))
}

/// Says how many cases went with a folder that was deleted under the last run, and counts them.
fn say_what_is_gone(state: &mut StateFile, outbox: &Outbox, faults: &Faults) -> u64 {
    let Some(before) = state.state().cases_before else { return 0 };
    let now = outbox.figures();
    let gone = before.saturating_sub(now.waiting + now.answered + now.dead);
    if gone > 0 {
        let sentence = format!(
            "{gone} cases that were stored are gone: the outbox's folder or its files were deleted, replaced or written to while \
             the agent ran; see that nothing else writes there"
        );
        faults.set(&Part::LastRun, sentence);
    }
    if let Err(error) = state.update(|state| state.cases_before = None) {
        tracing::warn!(%error, "cannot write the state file");
    }
    gone
}

/// Who the device is: what its configuration says, else who it was before, else the host's name for the time being.
pub(super) fn identify(config: &Config, store: &mut Store, faults: &Faults) -> Identified {
    let error = match config.device_id() {
        Ok(device) => return Identified { device, is_guess: false },
        Err(error) => error,
    };
    let cause = Cause::Identity(Box::new(config.clone()));
    if let Some(device) = store.state.state().device.clone() {
        faults.set(&Part::Identity, format!("{error}; the device goes on as `{device}`"));
        store.causes.push(cause);
        return Identified { device, is_guess: false };
    }
    let why = format!("who this device is cannot be told: {error}");
    faults.set(&Part::Identity, format!("{why}; samples are answered, and nothing is stored or sent until it can be"));
    let causes = std::mem::take(&mut store.causes);
    *store = closed(config, &why, cause);
    store.causes.extend(causes);
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let device = DeviceId::new(&host).or_else(|_| DeviceId::new("unknown"));
    Identified { device: device.unwrap_or_else(|_| unreachable!("`unknown` is a device id")), is_guess: true }
}
