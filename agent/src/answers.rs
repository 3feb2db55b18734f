//! Remembers recent answers and tells everyone who listens when one is given or corrected.
//!
//! Memory only, bounded: what must survive a restart is in the outbox. Slow listeners lose answers rather
//! than hold up the path; the count of what they lost is theirs to report.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_proto::{Answer, CaseId, Name};
use tokio::sync::broadcast;
use tokio::time::Instant;

/// How many ids can be looked up.
pub const ANSWERS_MAX: usize = 10_000;

/// How long an id can be looked up.
pub const ANSWER_AGE_MAX: Duration = Duration::from_secs(24 * 3600);

/// How far a listener may fall behind before it loses answers.
const LISTENER_BACKLOG: usize = 256;

/// Recent answers by id, and the stream of new ones. Cheap to clone.
#[derive(Clone)]
pub struct Answers {
    recent: Arc<Mutex<Recent>>,
    stream: broadcast::Sender<Arc<Answer>>,
}

#[derive(Default)]
struct Recent {
    by_id: HashMap<CaseId, Entry>,
    by_reference: HashMap<(Name, String), CaseId>,
    oldest_first: VecDeque<(Instant, CaseId)>,
}

struct Entry {
    local: Arc<Answer>,
    /// The correction of the highest revision.
    correction: Option<Arc<Answer>>,
}

/// All that is remembered of one answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    pub local: Arc<Answer>,
    pub correction: Option<Arc<Answer>>,
}

impl Remembered {
    /// The last word: the correction if there is one.
    #[must_use]
    pub fn latest(&self) -> &Arc<Answer> {
        self.correction.as_ref().unwrap_or(&self.local)
    }
}

impl Default for Answers {
    fn default() -> Self {
        Self { recent: Arc::default(), stream: broadcast::channel(LISTENER_BACKLOG).0 }
    }
}

impl Answers {
    /// Remembers a local answer and tells the listeners.
    pub fn give(&self, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(answer);
        self.with(|recent| recent.insert(&answer));
        self.tell(&answer);
        answer
    }

    /// Remembers a correction, if its revision is new here, and tells the listeners.
    pub fn correct(&self, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(answer);
        self.with(|recent| {
            if let Some(entry) = recent.by_id.get_mut(&answer.id)
                && entry.correction.as_ref().is_none_or(|known| known.revision < answer.revision)
            {
                entry.correction = Some(answer.clone());
            }
        });
        self.tell(&answer);
        answer
    }

    #[must_use]
    pub fn get(&self, id: &CaseId) -> Option<Remembered> {
        self.with(|recent| recent.get(id))
    }

    /// The last answers, newest first.
    #[must_use]
    pub fn recent(&self, last: usize) -> Vec<Remembered> {
        self.with(|recent| recent.oldest_first.iter().rev().filter_map(|(_, id)| recent.get(id)).take(last).collect())
    }

    /// The answer already given to the sample an application named `reference`.
    #[must_use]
    pub fn by_reference(&self, source: &Name, reference: &str) -> Option<Remembered> {
        self.with(|recent| {
            let id = recent.by_reference.get(&(source.clone(), reference.to_owned()))?;
            recent.get(id)
        })
    }

    /// Every answer and correction from now on.
    #[must_use]
    pub fn listen(&self) -> broadcast::Receiver<Arc<Answer>> {
        self.stream.subscribe()
    }

    /// Waits until `id` has a correction, but never past `deadline`.
    pub async fn correction(&self, id: &CaseId, deadline: Instant) -> Option<Arc<Answer>> {
        let mut stream = self.listen();
        loop {
            if let Some(correction) = self.get(id).and_then(|remembered| remembered.correction) {
                return Some(correction);
            }
            match tokio::time::timeout_at(deadline, stream.recv()).await {
                // A lagging listener looks the id up again, so nothing is missed.
                Ok(Ok(_) | Err(broadcast::error::RecvError::Lagged(_))) => {}
                Ok(Err(broadcast::error::RecvError::Closed)) | Err(_) => return None,
            }
        }
    }

    fn tell(&self, answer: &Arc<Answer>) {
        // An error means that nobody listens, which is nobody's loss.
        drop(self.stream.send(answer.clone()));
    }

    fn with<T>(&self, f: impl FnOnce(&mut Recent) -> T) -> T {
        f(&mut self.recent.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Recent {
    fn insert(&mut self, answer: &Arc<Answer>) {
        let now = Instant::now();
        while let Some((given, id)) = self.oldest_first.front() {
            if self.oldest_first.len() < ANSWERS_MAX && now.duration_since(*given) < ANSWER_AGE_MAX {
                break;
            }
            if let Some(entry) = self.by_id.remove(id)
                && let Some(key) = reference_key(&entry.local)
            {
                self.by_reference.remove(&key);
            }
            self.oldest_first.pop_front();
        }
        if let Some(key) = reference_key(answer) {
            self.by_reference.insert(key, answer.id.clone());
        }
        self.oldest_first.push_back((now, answer.id.clone()));
        self.by_id.insert(answer.id.clone(), Entry { local: answer.clone(), correction: None });
    }

    fn get(&self, id: &CaseId) -> Option<Remembered> {
        let entry = self.by_id.get(id)?;
        Some(Remembered { local: entry.local.clone(), correction: entry.correction.clone() })
    }
}

fn reference_key(answer: &Answer) -> Option<(Name, String)> {
    Some((Name::new(&answer.source).ok()?, answer.reference.clone()?))
}
