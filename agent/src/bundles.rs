//! Where the versions of a model lie that came from afar, and which of them is run.
//!
//! ```text
//! STATE/models/MODEL/shelf.json         which one is run, which one before: replaced as a whole, so it is the truth
//! STATE/models/MODEL/current            a link to its folder; made right from shelf.json at every start and command
//! STATE/models/MODEL/NAME-VERSION-SUM/  one bundle, synced before shelf.json names it
//! STATE/models/MODEL/shelf.lock         held while shelf.json is changed
//! ```
//! Which version may run is up to `hedge_core::release::shelf`.

mod delivery;

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use hedge_config::Config;
use hedge_core::release::comparison::Finding;
use hedge_core::release::shelf::{Held, NotTried, Shelf};
use hedge_outbox::files::replace;
use hedge_proto::Name;
use tokio::sync::watch;

pub use self::delivery::{Deliveries, Shown};
use crate::in_force::InForce;
use crate::inference::Judge;

/// How often a bundle on probation is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The folder of one model.
#[derive(Debug, Clone, PartialEq)]
pub struct Shelves {
    dir: PathBuf,
}

impl Shelves {
    #[must_use]
    pub fn of(state_dir: &Path, model: &Name) -> Self {
        Self { dir: hedge_config::bundles_of(state_dir, model) }
    }

    /// That of a model whose configuration names the link here as its bundle.
    fn configured(config: &Config, model: &hedge_config::ModelConfig) -> Option<Self> {
        let shelves = Self::of(&config.state_dir, &model.name);
        (model.bundle == shelves.current()).then_some(shelves)
    }

    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What `bundle` in the configuration of the model is to say.
    #[must_use]
    pub fn current(&self) -> PathBuf {
        self.dir.join("current")
    }

    /// Where this bundle lies.
    #[must_use]
    pub fn place(&self, held: &Held) -> PathBuf {
        self.dir.join(held.folder())
    }

    fn file(&self) -> PathBuf {
        self.dir.join("shelf.json")
    }

    /// What is known; nothing if there is nothing yet. A file that cannot be read is an error, not a new beginning:
    /// what failed would be tried again.
    pub fn read(&self) -> io::Result<Shelf> {
        match fs::read(self.file()) {
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(|error| {
                let reason =
                    format!("{}: {error}; remove it, and what failed before may be tried again", self.file().display());
                io::Error::new(io::ErrorKind::InvalidData, reason)
            }),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Shelf::default()),
            Err(error) => Err(error),
        }
    }

    /// Changes what is known, if `f` does: the agent and a command may both want to. Makes the link right in any case: who
    /// changed it last may have been cut off before. Blocks on the disk.
    pub fn change<T>(&self, f: impl FnOnce(&mut Shelf) -> T) -> io::Result<T> {
        fs::create_dir_all(&self.dir)?;
        let lock = File::create(self.dir.join("shelf.lock"))?;
        lock.lock()?;
        let before = self.read()?;
        let mut shelf = before.clone();
        let result = f(&mut shelf);
        if shelf == before {
            self.link(&shelf)?
        } else {
            self.write(&shelf)?
        }
        Ok(result)
    }

    /// The same, from a task: a card may take its time.
    async fn changed<T: Send + 'static>(&self, f: impl FnOnce(&mut Shelf) -> T + Send + 'static) -> io::Result<T> {
        let shelves = self.clone();
        tokio::task::spawn_blocking(move || shelves.change(f)).await.map_err(io::Error::from)?
    }

    /// Makes it so, durably: cut off anywhere, the one before or this one is run, and it is whole.
    fn write(&self, shelf: &Shelf) -> io::Result<()> {
        fs::create_dir_all(&self.dir)?;
        replace(&self.file(), &serde_json::to_vec(shelf).map_err(io::Error::other)?)?;
        self.link(shelf)
    }

    /// Makes the link say what `shelf` says.
    fn link(&self, shelf: &Shelf) -> io::Result<()> {
        let Some(current) = &shelf.current else { return Ok(()) };
        let folder = current.folder();
        if fs::read_link(self.current()).is_ok_and(|there| there == Path::new(&folder)) {
            return Ok(());
        }
        let new = self.dir.join("current.new");
        match fs::remove_file(&new) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        std::os::unix::fs::symlink(&folder, &new)?;
        fs::rename(&new, self.current())?;
        File::open(&self.dir)?.sync_all()
    }

    /// Removes bundles that are kept no longer, and what was begun and is not gone on with.
    pub fn clear_away(&self, shelf: &Shelf) -> io::Result<()> {
        for entry in fs::read_dir(&self.dir)? {
            let entry = entry?;
            let name = entry.file_name();
            if entry.file_type()?.is_dir() && !name.to_str().is_some_and(|name| shelf.keeps(name)) {
                fs::remove_dir_all(entry.path())?;
            }
        }
        Ok(())
    }

    /// The agent starts: the link is made right, and a bundle that never came as far as an answer is given back.
    fn start(&self, model: &Name, crashed: bool) -> io::Result<()> {
        if self.change(|shelf| crashed && shelf.crashed())? {
            tracing::error!(%model, "its bundle was given back: the agent crashed again and again before it had answered");
        }
        Ok(())
    }
}

/// Looks after every model whose bundle lies here, before any is loaded. `crashed`: the last run ended so.
pub fn start(config: &Config, crashed: bool) {
    for model in &config.models {
        let Some(shelves) = Shelves::configured(config, model) else { continue };
        if let Err(error) = shelves.start(&model.name, crashed) {
            tracing::warn!(model = %model.name, %error, "what is known of its bundles cannot be read or written");
        }
    }
}

/// Has every model take the bundle that stands at its place now, and compared with the one that it is to be compared with. Waits for one after the other.
pub async fn reload(config: Config, judges: &BTreeMap<Name, Judge>) -> Result<(), String> {
    let (mut failed, mut swapped) = (Vec::new(), false);
    for (name, judge) in judges {
        match judge.reload().await {
            Ok(model) => swapped |= model.is_some(),
            Err(reason) => failed.push(format!("model `{name}`: {reason}; the one before answers on")),
        }
    }
    if swapped {
        watch(&config, judges);
    }
    for (model, shelves, judge) in looked_after(&config, judges) {
        if let Err(reason) = compare(&shelves, judge).await {
            failed.push(format!("model `{model}` is compared with no other bundle: {reason}"));
        }
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("the file is in force, but {}", failed.join("; "))) }
}

/// Has another bundle that lies on the device already be the one that is run.
pub async fn turn(
    config: &Config,
    judges: &BTreeMap<Name, Judge>,
    model: &Name,
    turn: fn(&mut Shelf) -> Result<(), NotTried>,
) -> Result<(), String> {
    let found = looked_after(config, judges).find(|(name, ..)| name == model);
    let (_, shelves, judge) = found.ok_or_else(|| {
        format!(
            "model: `{model}` is no model here whose bundles came from afar, in the folder that `bundle update` keeps"
        )
    })?;
    shelves.changed(turn).await.map_err(|error| error.to_string())?.map_err(|error| error.to_string())?;
    delivery::take_up(model, &shelves, judge).await.map_err(|reason| format!("it is the current bundle, but {reason}"))
}

/// Whether the model's bundle was put there by hand, and nobody's signature was asked for.
#[must_use]
pub fn is_local(config: &Config, model: &hedge_config::ModelConfig) -> bool {
    Shelves::configured(config, model).is_none()
}

/// The models whose bundles lie here.
fn looked_after<'a>(
    config: &Config,
    judges: &'a BTreeMap<Name, Judge>,
) -> impl Iterator<Item = (Name, Shelves, &'a Judge)> {
    let of = |model| Some((Shelves::configured(config, model)?, model.name.clone()));
    let all: Vec<_> = config.models.iter().filter_map(of).collect();
    all.into_iter().filter_map(|(shelves, name)| Some((name.clone(), shelves, judges.get(&name)?)))
}

/// Looks after the bundles of models that run: ends their probation, has them compared, and does what follows from that.
pub fn look_after(settings: &watch::Receiver<Arc<InForce>>, judges: &BTreeMap<Name, Judge>) {
    let config = settings.borrow().config.clone();
    watch(&config, judges);
    for (model, shelves, judge) in looked_after(&config, judges) {
        tokio::spawn(compare_on(model, shelves, judge.clone(), settings.clone()));
    }
}

/// Ends the probation of bundles with their first answer.
fn watch(config: &Config, judges: &BTreeMap<Name, Judge>) {
    for (model, shelves, judge) in looked_after(config, judges) {
        if let Ok(true) = shelves.read().map(|shelf| shelf.on_probation()) {
            tokio::spawn(prove(model, shelves, judge.clone()));
        }
    }
}

async fn prove(model: Name, shelves: Shelves, judge: Judge) {
    while judge.answered_at().is_none() {
        tokio::time::sleep(LOOK_EVERY).await;
    }
    match shelves.changed(Shelf::answered).await {
        Ok(_) => tracing::info!(%model, "its new bundle has answered and is kept"),
        Err(error) => tracing::warn!(%model, %error, "its bundle stays on probation"),
    }
}

/// Has the bundle look on that the current one is to be compared with, or none.
async fn compare(shelves: &Shelves, judge: &Judge) -> Result<(), String> {
    let shelf = shelves.read().map_err(|error| error.to_string())?;
    let whole = |dir: PathBuf| fs::canonicalize(&dir).unwrap_or(dir);
    let rival = shelf.rival().map(|(held, role)| (whole(shelves.place(held)), role));
    judge.compare_with(rival).await
}

/// Compares as long as the agent runs, and does what follows from what is found.
async fn compare_on(model: Name, shelves: Shelves, judge: Judge, settings: watch::Receiver<Arc<InForce>>) {
    let mut begins = true;
    loop {
        let begun = if begins { compare(&shelves, &judge).await } else { judge.compare_with(None).await };
        if let Err(reason) = begun {
            tracing::warn!(%model, "it is compared with no other bundle: {reason}");
        }
        let (dir, finding) = judge.learned().found().await;
        let config = settings.borrow().config.clone();
        let allowed = config.models.iter().any(|known| known.name == model && known.promote_by_evidence);
        let folder = dir.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let decided = shelves.changed(move |shelf| {
            let before = shelf.clone();
            (shelf.found(&folder, &finding, allowed), before, shelf.clone(), finding)
        });
        let (is_another, before, after, finding) = match decided.await {
            Ok(decided) => decided,
            Err(error) => {
                tracing::error!(%model, %error, "what was found of its bundles cannot be kept");
                continue;
            }
        };
        say(&model, &before, &after, &finding);
        // The one that looked on is in memory, unless it has been replaced just now.
        if is_another
            && !judge.exchange(dir).await
            && let Err(reason) = judge.reload().await
        {
            tracing::error!(%model, "the other bundle is not run: {reason}");
        }
        if after.on_probation() {
            tokio::spawn(prove(model.clone(), shelves.clone(), judge.clone()));
        }
        // Where nothing has changed a person's word is waited for: what was found stays to be seen, what looked on goes.
        begins = after.rival() != before.rival();
    }
}

fn say(model: &Name, before: &Shelf, after: &Shelf, finding: &Finding) {
    let version = |shelf: &Shelf| shelf.current.as_ref().map(|held| held.version.to_string()).unwrap_or_default();
    let (was, is, why) = (version(before), version(after), finding.text());
    if was != is {
        match finding {
            Finding::NewerWorse(_) => tracing::error!(%model, "its bundle {was} was given back for {is}: {why}"),
            _ => tracing::warn!(%model, "its bundle {is} was promoted over {was}: {why}"),
        }
    } else if let Some(candidate) = &before.candidate {
        let next = if after.candidate.is_none() {
            "it is given up"
        } else {
            "`hedge-agent bundle promote` makes it the one that answers"
        };
        tracing::warn!(%model, "its candidate {}: {why}; {next}", candidate.version);
    } else {
        tracing::info!(%model, "its bundle {is} has proved itself: {why}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::Digest;

    fn held(version: &str) -> Held {
        let name = |text| Name::new(text).expect("a name");
        Held { name: name("m"), version: name(version), signature: Digest::of(version.as_bytes()) }
    }

    fn put(shelves: &Shelves, shelf: &mut Shelf, version: &str) {
        fs::create_dir_all(shelves.dir().join(held(version).folder())).expect("a folder");
        fs::write(shelves.dir().join(held(version).folder()).join("who"), version).expect("written");
        shelf.promote(held(version));
        shelves.write(shelf).expect("written");
    }

    fn runs(shelves: &Shelves) -> String {
        fs::read_to_string(shelves.current().join("who")).expect("a whole bundle")
    }

    #[test]
    fn a_cut_between_the_truth_and_the_link_is_made_good_by_the_next_start_and_the_next_command() {
        let dir = tempfile::tempdir().expect("a folder");
        let model = Name::new("front").expect("a name");
        let shelves = Shelves::of(dir.path(), &model);
        let mut shelf = shelves.read().expect("nothing yet");
        put(&shelves, &mut shelf, "1");
        assert_eq!(runs(&shelves), "1");
        put(&shelves, &mut shelf, "2");
        let start = |shelves: &Shelves| shelves.start(&model, false);
        let command = |shelves: &Shelves| shelves.change(|_| ());
        for next in [&start as &dyn Fn(&Shelves) -> io::Result<()>, &command] {
            // As if the link had not been reached, and the one beside it was left behind.
            fs::remove_file(shelves.current()).expect("removed");
            std::os::unix::fs::symlink(held("1").folder(), shelves.current()).expect("linked");
            std::os::unix::fs::symlink("nowhere", shelves.dir().join("current.new")).expect("linked");
            assert_eq!(runs(&shelves), "1", "until then the one before is run, whole");
            next(&shelves).expect("made right");
            assert_eq!(runs(&shelves), "2");
        }
    }

    #[test]
    fn a_bundle_that_never_answers_is_given_back_after_crashes() {
        let dir = tempfile::tempdir().expect("a folder");
        let model = Name::new("front").expect("a name");
        let shelves = Shelves::of(dir.path(), &model);
        let mut shelf = Shelf::default();
        put(&shelves, &mut shelf, "1");
        assert!(shelf.answered());
        put(&shelves, &mut shelf, "2");
        for _ in 0..10 {
            shelves.start(&model, false).expect("started");
        }
        assert_eq!(runs(&shelves), "2", "power cuts and restarts say nothing of it");
        shelves.start(&model, true).expect("started");
        assert_eq!(runs(&shelves), "2", "one crash may be another's doing");
        shelves.start(&model, true).expect("started");
        assert_eq!(runs(&shelves), "1");
        assert!(shelves.read().expect("read").may_try(&held("2"), false).is_err(), "and not tried again by itself");
    }

    #[test]
    fn only_what_is_kept_stays_on_the_disk() {
        let dir = tempfile::tempdir().expect("a folder");
        let shelves = Shelves::of(dir.path(), &Name::new("front").expect("a name"));
        let mut shelf = Shelf::default();
        for version in ["1", "2", "3"] {
            put(&shelves, &mut shelf, version);
        }
        fs::create_dir(shelves.dir().join("m-4-abc.part")).expect("a folder");
        shelves.clear_away(&shelf).expect("cleared");
        let there = |version| shelves.dir().join(held(version).folder()).exists();
        assert_eq!([there("1"), there("2"), there("3")], [false, true, true]);
        assert!(!shelves.dir().join("m-4-abc.part").exists());
        fs::write(shelves.file(), "{").expect("written");
        assert!(shelves.read().is_err(), "damage is no new beginning");
    }
}
