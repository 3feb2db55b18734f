//! Where the versions of a model lie that came from afar, and which of them is run.
//!
//! ```text
//! STATE/models/MODEL/shelf.json         which one is run, which one before: replaced as a whole, so it is the truth
//! STATE/models/MODEL/current            a link to its folder; made right from shelf.json at every start
//! STATE/models/MODEL/NAME-VERSION-SUM/  one bundle, synced before shelf.json names it
//! ```
//! Which version may run is up to `hedge_core::release::shelf`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use hedge_config::Config;
use hedge_core::release::shelf::Shelf;
use hedge_outbox::files::replace;
use hedge_proto::Name;

use crate::inference::Judge;

/// How often a bundle on probation is looked at.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The folder of one model.
#[derive(Debug, Clone)]
pub struct Shelves {
    dir: PathBuf,
}

impl Shelves {
    #[must_use]
    pub fn of(state_dir: &Path, model: &Name) -> Self {
        Self { dir: state_dir.join("models").join(model.as_str()) }
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

    /// Makes it so, durably: cut off anywhere, the one before or this one is run, and it is whole.
    pub fn write(&self, shelf: &Shelf) -> io::Result<()> {
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
        let mut shelf = self.read()?;
        let went_back = crashed && shelf.crashed();
        self.write(&shelf)?;
        if went_back {
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

/// Has every model take the bundle that stands at its place now. Waits for one after the other.
pub async fn reload(config: Config, judges: &BTreeMap<Name, Judge>) -> Result<(), String> {
    let (mut failed, mut swapped) = (Vec::new(), false);
    for (name, judge) in judges {
        match judge.reload().await {
            Ok(model) => swapped |= model.is_some(),
            Err(reason) => failed.push(format!("model `{name}`: {reason}; the one before answers on")),
        }
    }
    if swapped {
        tokio::spawn(watch(config, judges.clone()));
    }
    if failed.is_empty() { Ok(()) } else { Err(format!("the file is in force, but {}", failed.join("; "))) }
}

/// Ends the probation of a model's bundle with its first answer.
pub async fn watch(config: Config, judges: BTreeMap<Name, Judge>) {
    for model in &config.models {
        let (Some(shelves), Some(judge)) = (Shelves::configured(&config, model), judges.get(&model.name)) else {
            continue;
        };
        let Ok(true) = shelves.read().map(|shelf| shelf.on_probation()) else { continue };
        let (judge, name) = (judge.clone(), model.name.clone());
        tokio::spawn(async move {
            while judge.answered_at().is_none() {
                tokio::time::sleep(LOOK_EVERY).await;
            }
            let proved =
                shelves.read().and_then(|mut shelf| if shelf.answered() { shelves.write(&shelf) } else { Ok(()) });
            match proved {
                Ok(()) => tracing::info!(model = %name, "its new bundle has answered and is kept"),
                Err(error) => tracing::warn!(model = %name, %error, "its bundle stays on probation"),
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_core::release::shelf::Held;
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
    fn a_cut_between_the_truth_and_the_link_is_made_good_by_the_next_start() {
        let dir = tempfile::tempdir().expect("a folder");
        let model = Name::new("front").expect("a name");
        let shelves = Shelves::of(dir.path(), &model);
        let mut shelf = shelves.read().expect("nothing yet");
        put(&shelves, &mut shelf, "1");
        assert_eq!(runs(&shelves), "1");
        put(&shelves, &mut shelf, "2");
        // As if the link had not been reached, and the one beside it was left behind.
        fs::remove_file(shelves.current()).expect("removed");
        std::os::unix::fs::symlink(held("1").folder(), shelves.current()).expect("linked");
        std::os::unix::fs::symlink("nowhere", shelves.dir().join("current.new")).expect("linked");
        assert_eq!(runs(&shelves), "1", "until then the one before is run, whole");
        shelves.start(&model, false).expect("started");
        assert_eq!(runs(&shelves), "2");
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
