//! What is learned of each model: held for its thread, which judges by it, and for those who hear what came of its cases.
//!
//! Decides nothing, `hedge_core::judge` does. Each model has a file of its own, written whole and renamed over the old one.
//! A file that is missing, damaged or about another version means that the model begins with nothing, which is safe: under
//! a target no answer stays then, and a budget has its ceilings behind it.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_core::chance::Chance;
use hedge_core::clock::Moment;
use hedge_core::judge::{Asked, Experience, Forecast, Judgement, News, Past};
use hedge_core::release::comparison::{Comparison, Finding};
use hedge_outbox::files::replace;
use hedge_proto::{
    Case, CaseKey, Doubt, ModelRef, Name, Output, RivalFigures, RivalRole, SpotChecks, Verdict, from_cbor, to_cbor,
};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::clock::Clock;

/// Many times what the counts take.
const FILE_BYTES_MAX: usize = 4 << 20;

/// What is learned of one model. Cheap to clone.
#[derive(Clone)]
pub struct Learned {
    name: Name,
    /// None where no folder can be used: what is learned is forgotten with the process.
    file: Option<PathBuf>,
    clock: Clock,
    inner: Arc<Mutex<Inner>>,
    /// Another bundle has been found to be better, worse or alike.
    found: Arc<Notify>,
}

struct Inner {
    /// None before the model is loaded.
    experience: Option<Experience>,
    /// Of this run: it decides nothing, and is not worth a card's writes.
    past: Past,
    chance: Chance,
    /// It was judged by since it was written.
    used: bool,
    /// And that has come to something that is not to be forgotten: a case, or the end of one.
    changed: bool,
    /// Of this run: a comparison that is cut off begins again.
    rival: Option<Rival>,
    /// What the log says of the cases that were stored last, until the model is loaded.
    recalled: Vec<Recalled>,
}

/// A bundle that the one that answers is compared with.
struct Rival {
    model: ModelRef,
    dir: PathBuf,
    begun: Instant,
    comparison: Comparison,
}

/// A case of an earlier run.
#[derive(Debug, Clone)]
pub struct Recalled {
    pub case: Case,
    pub payload_bytes: u64,
    pub verdict: Option<Verdict>,
}

impl Learned {
    #[must_use]
    pub fn new(name: Name, state_dir: Option<&Path>, clock: Clock, seed: u64) -> Self {
        let file = state_dir.map(|dir| dir.join(format!("judge-{name}.cbor")));
        let chance = Chance::from_seed(seed);
        let inner = Inner {
            experience: None,
            past: Past::default(),
            chance,
            used: false,
            changed: false,
            rival: None,
            recalled: Vec::new(),
        };
        Self { name, file, clock, inner: Arc::new(Mutex::new(inner)), found: Arc::default() }
    }

    /// The model is loaded, and is this one. Blocks on the disk.
    pub fn begin(&self, model: ModelRef) {
        let kept = self.file.as_deref().and_then(|file| match read(file) {
            Ok(kept) => kept,
            Err(reason) => {
                tracing::warn!(model = %self.name, "what was learned of the model is lost: {reason}");
                None
            }
        });
        self.locked(|inner| {
            if inner.experience.as_ref().is_some_and(|before| *before.model() != model) {
                inner.past = Past::default();
            }
            // A model that is loaded again has not forgotten.
            let kept = inner.experience.take().or(kept);
            let mut experience = Experience::resume(kept, model);
            for Recalled { case, payload_bytes, verdict } in std::mem::take(&mut inner.recalled) {
                if case.model != *experience.model() {
                    continue;
                }
                let (key, stored_at) = (case.id.key, Moment(case.captured.powered_ms));
                experience.recalled(key, (&case.doubt, case.decision.check), payload_bytes, stored_at);
                // What that run did not come to learn.
                if let (Some(verdict), Some(local), true) = (&verdict, &case.said, experience.is_open(key)) {
                    experience.learn(verdict, (local, &case.doubt), case.decision.check);
                }
            }
            inner.experience = Some(experience);
        });
    }

    /// Cases of earlier runs, the oldest first, before the model is loaded.
    pub fn recall(&self, cases: Vec<Recalled>) {
        self.locked(|inner| inner.recalled = cases);
    }

    /// Decides on one answer, and learns of its doubt. None before the model is loaded.
    pub fn judge(&self, doubt: &Doubt, asked: Asked<'_>) -> Option<Judgement> {
        let now = self.clock.now();
        let judgement = self.locked(|inner| {
            let judgement = inner.experience.as_mut()?.judge(doubt, asked, now, &mut inner.chance);
            inner.past.saw(doubt, now);
            inner.used = true;
            inner.changed |= judgement.reason.is_some();
            Some(judgement)
        })?;
        if let Some(change) = judgement.alarm {
            tracing::warn!(model = %self.name, "{}: spot checks will show what that means", change.sentence());
        }
        Some(judgement)
    }

    /// An output could not be read, and becomes a case.
    pub fn unusable(&self) {
        self.change(|experience, now| experience.unusable(now));
    }

    /// A case was made. One about an answer of a model that was there before costs nothing of this one's.
    pub fn opened(&self, case: &Case, bytes: u64) {
        let news = self.change(|experience, now| {
            let doubt = (&case.doubt, case.decision.check);
            (*experience.model() == case.model).then(|| experience.opened(case.id.key, doubt, bytes, now)).flatten()
        });
        self.say(news.flatten());
    }

    /// A case is on its way, or has been.
    pub fn sent(&self, key: CaseKey) {
        // Not worth a write: it is seen again after a restart.
        self.locked(|inner| inner.experience.as_mut().map(|experience| experience.sent(key)));
    }

    /// A case was not taken, or has gone without a verdict.
    pub fn ended_unanswered(&self, key: CaseKey) {
        let news = self.change(|experience, _| experience.ended_unanswered(key));
        self.say(news.flatten());
    }

    /// What came of a case, if it is about the model as it is now.
    pub fn learn(&self, case: &Case, verdict: &Verdict) {
        let news = self.change(|experience, _| {
            let local = case.said.as_ref().filter(|_| *experience.model() == case.model)?;
            experience.learn(verdict, (local, &case.doubt), case.decision.check)
        });
        self.say(news.flatten());
        if let Some(local) = &case.said {
            self.with_rival(|rival| rival.comparison.answered(case.id.key, local, &verdict.said));
        }
    }

    /// What the spot checks of all devices have come to.
    pub fn heard(&self, fleet: &SpotChecks) {
        let news = self.change(|experience, _| experience.heard(fleet));
        self.say(news.flatten());
    }

    /// From now on this bundle looks at what the model answers. What was known of another is forgotten.
    pub fn begin_comparison(&self, model: ModelRef, dir: PathBuf, role: RivalRole) {
        let comparison = Comparison::new(role);
        self.locked(|inner| inner.rival = Some(Rival { model, dir, begun: Instant::now(), comparison }));
    }

    /// Whether the bundle that looks on is to look at the next sample.
    #[must_use]
    pub fn compares_next(&self) -> bool {
        self.locked(|inner| inner.rival.as_ref().is_some_and(|rival| rival.comparison.is_due(rival.begun.elapsed())))
    }

    /// What both made of a sample, and how long that took. Returns whether the cloud is to decide between them.
    pub fn compared(&self, own: (Option<&Output>, Duration), rival: (Option<&Output>, Duration)) -> bool {
        self.with_rival(|it| it.comparison.saw(own, rival)).unwrap_or(false)
    }

    /// They differ about this case.
    pub fn contested(&self, key: CaseKey, rival: Output) {
        self.with_rival(|it| it.comparison.opened(key, rival));
    }

    /// Waits until a comparison has ended. Returns the folder of the bundle that looked on, and what was found.
    pub async fn found(&self) -> (PathBuf, Finding) {
        loop {
            self.found.notified().await;
            let found = self.locked(|inner| {
                let rival = inner.rival.as_ref()?;
                Some((rival.dir.clone(), rival.comparison.finding()?))
            });
            if let Some(found) = found {
                return found;
            }
        }
    }

    /// What is known of the bundle that looks on.
    #[must_use]
    pub fn rival(&self) -> Option<RivalFigures> {
        self.locked(|inner| inner.rival.as_ref().map(|rival| rival.comparison.figures(rival.model.version.clone())))
    }

    fn with_rival<T>(&self, f: impl FnOnce(&mut Rival) -> T) -> Option<T> {
        self.locked(|inner| {
            let rival = inner.rival.as_mut()?;
            let was_open = rival.comparison.finding().is_none();
            let result = f(rival);
            if was_open && rival.comparison.finding().is_some() {
                self.found.notify_one();
            }
            Some(result)
        })
    }

    /// Cases made before this whose end is not known here.
    #[must_use]
    pub fn open_since_before(&self, moment: Moment) -> Vec<CaseKey> {
        self.look(|experience| experience.open_since_before(moment).collect()).unwrap_or_default()
    }

    /// None before the model is loaded.
    pub fn look<T>(&self, f: impl FnOnce(&Experience) -> T) -> Option<T> {
        self.locked(|inner| inner.experience.as_ref().map(f))
    }

    /// What these settings would have made of the answers of the last day. None before the first.
    #[must_use]
    pub fn forecast(&self, asked: &Asked<'_>) -> Option<Forecast> {
        let now = self.clock.now();
        self.locked(|inner| inner.experience.as_ref()?.forecast(&inner.past, asked, now))
    }

    /// Writes it if there is something that is not to be forgotten, or `also_if_used`: for a card's sake not after
    /// every few answers. Blocks on the disk.
    pub fn save(&self, also_if_used: bool) {
        let Some(file) = self.file.as_deref() else { return };
        let bytes = self.locked(|inner| {
            let wanted = inner.changed || (inner.used && also_if_used);
            let bytes = inner.experience.as_ref().filter(|_| wanted).map(to_cbor)?;
            (inner.used, inner.changed) = (false, false);
            Some(bytes)
        });
        if let Some(bytes) = bytes
            && let Err(error) = replace(file, &bytes)
        {
            tracing::warn!(model = %self.name, %error, "what was learned of the model cannot be kept");
            self.locked(|inner| inner.changed = true);
        }
    }

    fn change<T>(&self, f: impl FnOnce(&mut Experience, Moment) -> T) -> Option<T> {
        let now = self.clock.now();
        self.locked(|inner| {
            inner.changed = true;
            inner.experience.as_mut().map(|experience| f(experience, now))
        })
    }

    fn say(&self, news: Option<News>) {
        match news {
            None => {}
            Some(News::Certified) => tracing::debug!(model = %self.name, "spot checks allow more answers to stay"),
            Some(News::Revoked) => tracing::warn!(
                model = %self.name,
                "spot checks say that more answers are contradicted than the target allows: nothing stays until new ones \
                 show what may"
            ),
            Some(News::OtherCloud) => tracing::warn!(
                model = %self.name,
                "another model answers in the cloud: what was learned from the one before is no evidence any more"
            ),
            Some(News::OtherDoubt) if self.look(Experience::is_learned) == Some(true) => tracing::info!(
                model = %self.name,
                "spot checks show that a doubt learned from verdicts ranks answers better than their scores: it counts from now on"
            ),
            Some(News::OtherDoubt) => tracing::warn!(
                model = %self.name,
                "the learned doubt no longer ranks answers better than their scores: these count again"
            ),
        }
    }

    fn locked<T>(&self, f: impl FnOnce(&mut Inner) -> T) -> T {
        f(&mut self.inner.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

fn read(file: &Path) -> Result<Option<Experience>, String> {
    let bytes = match fs::read(file) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(format!("{}: {error}", file.display())),
    };
    match from_cbor(&bytes, FILE_BYTES_MAX) {
        Ok(experience) => Ok(Some(experience)),
        Err(error) => {
            let aside = file.with_extension("cbor.damaged");
            let kept =
                fs::rename(file, &aside).map_or_else(|_| String::new(), |()| format!("; kept as {}", aside.display()));
            Err(format!("{} is damaged ({error}){kept}", file.display()))
        }
    }
}

#[cfg(test)]
mod tests {
    use hedge_core::judge::Limits;
    use hedge_proto::Measure;

    use super::*;
    use crate::clock::ClockMark;

    fn learned(dir: &Path) -> Learned {
        let learned =
            Learned::new(Name::new("m").expect("valid"), Some(dir), Clock::resume(&ClockMark::default(), Moment(0)), 1);
        learned.begin(ModelRef { name: "m".into(), version: "1".into() });
        learned
    }

    fn judged(learned: &Learned) {
        let doubt = Doubt::NONE.with(Measure::Score, 0.3);
        learned.judge(&doubt, Asked::of(Limits::NONE)).expect("a model");
    }

    #[test]
    fn what_was_learned_survives_a_restart_and_a_damaged_file_is_set_aside() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let first = learned(dir.path());
        judged(&first);
        first.save(true);
        let before = first.look(Clone::clone).expect("learned");
        assert!(learned(dir.path()).look(Clone::clone).expect("read") == before);
        let file = dir.path().join("judge-m.cbor");
        let bytes = fs::read(&file).expect("written");
        fs::write(&file, &bytes[..bytes.len() / 2]).expect("torn");
        assert!(learned(dir.path()).look(Clone::clone).expect("anew") != before);
        assert!(dir.path().join("judge-m.cbor.damaged").exists());
    }

    #[test]
    fn what_has_not_changed_is_not_written_again() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let learned = learned(dir.path());
        let is_written = |also_if_used| {
            learned.save(also_if_used);
            fs::remove_file(dir.path().join("judge-m.cbor")).is_ok()
        };
        assert!(!is_written(true));
        judged(&learned);
        assert!(!is_written(false), "an answer that stayed");
        assert!(is_written(true) && !is_written(true));
        learned.unusable();
        assert!(is_written(false) && !is_written(false), "a case");
    }
}
