//! The changes in stages that were begun on the page: what each wants, how far it is, and how it ended. One runs at a time.
//!
//! They are kept in a file, written at each stage. One that was under way when the program ended does not go on by itself: it
//! is shown as stopped, and goes on when an operator says so. What carries it out is [`super::rollout`].

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use hedge_identity::write_whole;
use hedge_proto::{Confirm, DeviceId};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::oneshot;

use super::carry_out::Progress;
use super::change::Onto;
use super::rollout::{Step, Stopped};

/// How many are kept: the newest.
const KEPT_MAX: usize = 50;

/// How many devices that did not end well are named.
const TROUBLES_MAX: usize = 50;

/// The file is ours, so it is never longer than this.
const FILE_BYTES_MAX: u64 = 64 << 20;

const INTERRUPTED: &str =
    "hedge-cloud ended while this was under way: what was sent stays, and the other devices were left alone";

/// What an operator wants of many devices.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Wanted {
    /// Conditions as `--where` takes them; empty for every device.
    #[serde(rename = "where", default)]
    pub conditions: String,
    /// Fields by their dotted names; `null` restores the local value.
    pub edits: BTreeMap<String, Value>,
    #[serde(default = "ten_fifty_all")]
    pub stages: String,
    #[serde(default = "a_minute")]
    pub settle_s: u32,
    #[serde(default = "an_hour")]
    pub within_s: u32,
    #[serde(default)]
    pub onto: Option<Onto>,
    #[serde(default)]
    pub confirm: Confirm,
}

fn ten_fifty_all() -> String {
    "10,50,100".to_owned()
}

fn a_minute() -> u32 {
    60
}

fn an_hour() -> u32 {
    3600
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RolloutState {
    Running,
    Done,
    Stopped,
}

/// A device that did not end well.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Trouble {
    pub device: DeviceId,
    pub outcome: String,
    pub why: String,
}

/// One of them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Rollout {
    pub id: String,
    #[serde(flatten)]
    pub wanted: Wanted,
    /// Who began it, or resumed it last.
    pub by: String,
    pub state: RolloutState,
    pub begun_ms: u64,
    #[serde(default)]
    pub ended_ms: Option<u64>,
    /// Why it has stopped.
    #[serde(default)]
    pub why: Option<String>,
    /// How many devices are in each stage.
    #[serde(default)]
    pub devices: Vec<usize>,
    /// The stage it is in or has ended in, counted from one; 0 before the first.
    #[serde(default)]
    pub stage: usize,
    /// Each device of the stage has answered: they are watched.
    #[serde(default)]
    pub watching: bool,
    /// What the next stage waits for.
    #[serde(default)]
    pub awaits: Option<String>,
    /// How many devices had it already, and how many came to which end.
    #[serde(default)]
    pub had_it: usize,
    #[serde(default)]
    pub outcomes: BTreeMap<String, usize>,
    #[serde(default)]
    pub troubles: Vec<Trouble>,
}

/// Why it is not done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotNow {
    #[error("a change in stages is under way already; stop it first")]
    Runs,
    #[error("there is no change in stages `{0}` here")]
    Unknown(String),
    #[error("this change is not under way")]
    Ended,
    #[error("every device has this change already")]
    Done,
}

/// All of them.
pub struct Rollouts {
    file: PathBuf,
    all: Mutex<All>,
    /// Whoever holds it writes what is known by then.
    writing: Mutex<()>,
}

#[derive(Default)]
struct All {
    /// Newest last.
    list: Vec<Rollout>,
    stop: Option<oneshot::Sender<String>>,
}

impl Rollouts {
    /// Reads what an earlier process has left. What cannot be read is moved aside.
    #[must_use]
    pub fn open(file: PathBuf, now_ms: u64) -> Self {
        let mut list = read(&file).unwrap_or_else(|error| {
            let aside = file.with_extension("json.damaged");
            tracing::warn!("{} cannot be read ({error}); it is now {}", file.display(), aside.display());
            if let Err(error) = std::fs::rename(&file, &aside) {
                tracing::warn!("{} stays where it is: {error}", file.display());
            }
            Vec::new()
        });
        for rollout in list.iter_mut().filter(|rollout| rollout.state == RolloutState::Running) {
            rollout.end(Some(INTERRUPTED.to_owned()), now_ms);
        }
        Self { file, all: Mutex::new(All { list, stop: None }), writing: Mutex::default() }
    }

    fn all(&self) -> MutexGuard<'_, All> {
        self.all.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Newest first.
    #[must_use]
    pub fn list(&self) -> Vec<Rollout> {
        self.all().list.iter().rev().cloned().collect()
    }

    /// Puts a new one on the list; what it returns tells who has stopped it.
    pub fn begin(
        &self,
        id: String,
        wanted: Wanted,
        by: String,
        now_ms: u64,
    ) -> Result<oneshot::Receiver<String>, NotNow> {
        let mut all = self.all();
        let stop = all.take_turn()?;
        all.list.push(Rollout::new(id, wanted, by, now_ms));
        let surplus = all.list.len().saturating_sub(KEPT_MAX);
        all.list.drain(..surplus);
        Ok(stop)
    }

    pub fn find(&self, id: &str) -> Result<Rollout, NotNow> {
        let found = self.all().list.iter().find(|one| one.id == id).cloned();
        found.ok_or_else(|| NotNow::Unknown(id.to_owned()))
    }

    /// One that has stopped goes on.
    pub fn resume(&self, id: &str, by: String, now_ms: u64) -> Result<oneshot::Receiver<String>, NotNow> {
        let mut all = self.all();
        let at = all.list.iter().position(|one| one.id == id).ok_or_else(|| NotNow::Unknown(id.to_owned()))?;
        if all.list[at].state == RolloutState::Done {
            return Err(NotNow::Done);
        }
        let stop = all.take_turn()?;
        all.list[at] = Rollout::new(id.to_owned(), all.list[at].wanted.clone(), by, now_ms);
        Ok(stop)
    }

    /// Stops the one that runs.
    pub fn stop(&self, id: &str, by: String) -> Result<(), NotNow> {
        let mut all = self.all();
        let rollout = all.list.iter().find(|one| one.id == id).ok_or_else(|| NotNow::Unknown(id.to_owned()))?;
        if rollout.state != RolloutState::Running {
            return Err(NotNow::Ended);
        }
        let told = all.stop.take().is_some_and(|stop| stop.send(by).is_ok());
        if told { Ok(()) } else { Err(NotNow::Ended) }
    }

    /// Changes what is shown of one.
    pub fn note(&self, id: &str, change: impl FnOnce(&mut Rollout)) {
        if let Some(rollout) = self.all().list.iter_mut().find(|one| one.id == id) {
            change(rollout);
        }
    }

    /// Blocks until the file is on disk.
    pub fn write(&self) -> io::Result<()> {
        let _writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let json = serde_json::to_vec(&self.all().list).map_err(io::Error::other)?;
        write_whole(&self.file, &json, 0o644)
    }
}

impl All {
    fn take_turn(&mut self) -> Result<oneshot::Receiver<String>, NotNow> {
        if self.list.iter().any(|one| one.state == RolloutState::Running) {
            return Err(NotNow::Runs);
        }
        let (stop, stopped) = oneshot::channel();
        self.stop = Some(stop);
        Ok(stopped)
    }
}

impl Rollout {
    fn new(id: String, wanted: Wanted, by: String, begun_ms: u64) -> Self {
        Self {
            id,
            wanted,
            by,
            state: RolloutState::Running,
            begun_ms,
            ended_ms: None,
            why: None,
            devices: Vec::new(),
            stage: 0,
            watching: false,
            awaits: None,
            had_it: 0,
            outcomes: BTreeMap::new(),
            troubles: Vec::new(),
        }
    }

    /// Takes note of what happens.
    pub fn take(&mut self, step: &Step<'_>) {
        match step {
            Step::Stage { number, devices, to_change } => {
                (self.stage, self.watching, self.awaits) = (*number, false, None);
                self.had_it += devices - to_change;
            }
            Step::Device(Progress::Trial(_)) => {}
            Step::Device(Progress::Ended(report)) => {
                *self.outcomes.entry(report.outcome.text().to_owned()).or_default() += 1;
                if !report.outcome.is_good() && self.troubles.len() < TROUBLES_MAX {
                    let fields = report.errors.iter().map(|error| format!("{}: {}", error.field, error.reason));
                    let why: Vec<String> = report.reason.iter().cloned().chain(fields).collect();
                    let (device, outcome) = (report.device.clone(), report.outcome.text().to_owned());
                    self.troubles.push(Trouble { device, outcome, why: why.join("; ") });
                }
            }
            Step::Taken => self.watching = true,
            Step::Awaits(what) => {
                if self.awaits.as_deref() != *what {
                    self.awaits = what.map(str::to_owned);
                }
            }
        }
    }

    /// With why it has stopped, if it has.
    pub fn end(&mut self, why: Option<String>, now_ms: u64) {
        self.state = if why.is_some() { RolloutState::Stopped } else { RolloutState::Done };
        (self.why, self.ended_ms, self.watching, self.awaits) = (why, Some(now_ms), false, None);
    }
}

/// For people.
#[must_use]
pub fn why(stopped: &Stopped) -> String {
    match stopped.left {
        0 => stopped.why.clone(),
        1 => format!("{}; 1 device is left alone", stopped.why),
        left => format!("{}; {left} devices are left alone", stopped.why),
    }
}

fn read(file: &Path) -> io::Result<Vec<Rollout>> {
    match std::fs::metadata(file) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Ok(found) if found.len() > FILE_BYTES_MAX => return Err(io::Error::other("it is too long")),
        _ => {}
    }
    serde_json::from_slice(&std::fs::read(file)?).map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn wanted() -> Wanted {
        serde_json::from_value(json!({"where": "link=online", "edits": {"log.level": "warn"}})).expect("wanted")
    }

    #[test]
    fn one_that_was_under_way_when_the_program_ended_has_stopped_and_says_so_and_goes_on_when_told() {
        let dir = tempfile::tempdir().expect("a directory");
        let file = dir.path().join("rollouts.json");
        let rollouts = Rollouts::open(file.clone(), 1);
        drop(rollouts.begin("a".to_owned(), wanted(), "ann".to_owned(), 2).expect("begun"));
        rollouts.note("a", |one| one.take(&Step::Stage { number: 1, devices: 3, to_change: 2 }));
        assert_eq!(rollouts.begin("b".to_owned(), wanted(), "bob".to_owned(), 3).err(), Some(NotNow::Runs));
        rollouts.write().expect("written");

        let rollouts = Rollouts::open(file.clone(), 4);
        let one = &rollouts.list()[0];
        assert_eq!((one.state, one.stage, one.had_it), (RolloutState::Stopped, 1, 1));
        assert!(one.why.as_deref().is_some_and(|why| why.contains("ended while this was under way")), "{one:?}");
        assert_eq!(rollouts.stop("a", "ann".to_owned()), Err(NotNow::Ended));
        let mut stopped = rollouts.resume("a", "bob".to_owned(), 5).expect("resumed");
        let again = rollouts.find("a").expect("there");
        assert_eq!((again.wanted, again.by.as_str()), (wanted(), "bob"));
        rollouts.stop("a", "ann".to_owned()).expect("stopped");
        assert_eq!(stopped.try_recv(), Ok("ann".to_owned()));
        rollouts.note("a", |one| one.end(None, 6));
        assert_eq!(rollouts.resume("a", "bob".to_owned(), 7).err(), Some(NotNow::Done));

        std::fs::write(&file, "[{").expect("damaged");
        assert!(Rollouts::open(file, 8).list().is_empty());
        assert!(dir.path().join("rollouts.json.damaged").exists());
    }

    #[test]
    fn what_is_kept_is_bounded() {
        let dir = tempfile::tempdir().expect("a directory");
        let rollouts = Rollouts::open(dir.path().join("rollouts.json"), 1);
        for n in 0..KEPT_MAX + 5 {
            drop(rollouts.begin(n.to_string(), wanted(), "ann".to_owned(), 2).expect("begun"));
            rollouts.note(&n.to_string(), |one| {
                for device in 0..2 * TROUBLES_MAX {
                    let device = DeviceId::new(&format!("d{device}")).expect("a name");
                    let report = super::super::errand::Report::new(&device, super::super::errand::Ending::Refused);
                    one.take(&Step::Device(Progress::Ended(&report)));
                }
                one.end(Some("enough".to_owned()), 3);
            });
        }
        let list = rollouts.list();
        assert_eq!((list.len(), list[0].id.as_str()), (KEPT_MAX, "54"));
        assert_eq!((list[0].troubles.len(), list[0].outcomes["refused"]), (TROUBLES_MAX, 2 * TROUBLES_MAX));
    }
}
