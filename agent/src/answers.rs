//! Remembers recent answers and tells everyone who listens when one is given or corrected.
//!
//! Memory only, bounded: what must survive a restart is in the outbox, and named samples are recalled from there.
//! Slow listeners lose answers rather than hold up the path; the count of what they lost is theirs to report.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_proto::{Answer, CaseId, CaseKey, Digest, Name};
use tokio::sync::broadcast;
use tokio::time::Instant;

use crate::sample::SampleError;

/// How many ids can be looked up.
pub const ANSWERS_MAX: usize = 10_000;

/// What all of them may take in memory: 10,000 usual ones, fewer with long metadata, labels or corrections.
pub const ANSWERS_BYTES_MAX: usize = 16 * 1024 * 1024;

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
    by_key: HashMap<CaseKey, Remembered>,
    by_reference: HashMap<(Name, String), CaseKey>,
    oldest_first: VecDeque<(Instant, CaseKey)>,
    bytes: usize,
}

/// All that is remembered of one answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Remembered {
    pub local: Arc<Answer>,
    /// The one of the highest revision.
    pub correction: Option<Arc<Answer>>,
    /// The sum of the sample, if it has a `ref` and its bytes are known as they came.
    pub content: Option<Digest>,
}

impl Remembered {
    /// What it takes in memory, with its places in the maps.
    fn bytes(&self) -> usize {
        const PLACES: usize = 2 * size_of::<(CaseKey, Remembered, Instant)>();
        let reference = self.local.reference.as_ref().map_or(0, |name| 2 * (name.len() + self.local.source.len()));
        PLACES + reference + bytes_of(&self.local) + self.correction.as_deref().map_or(0, bytes_of)
    }

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
        self.give_to(answer, None)
    }

    /// Likewise, to a sample whose sum is known.
    pub fn give_to(&self, answer: Answer, content: Option<Digest>) -> Arc<Answer> {
        let answer = Arc::new(answer);
        self.with(|recent| recent.insert(Remembered { local: answer.clone(), correction: None, content }));
        self.tell(&answer);
        answer
    }

    /// Remembers what an earlier run answered. Nobody is told: they were then.
    pub fn recall(&self, remembered: Remembered) {
        self.with(|recent| recent.insert(remembered));
    }

    /// Remembers a correction, if its revision is new here, and tells the listeners.
    pub fn correct(&self, answer: Answer) -> Arc<Answer> {
        let answer = Arc::new(answer);
        self.with(|recent| recent.correct(&answer));
        self.tell(&answer);
        answer
    }

    #[must_use]
    pub fn get(&self, id: &CaseId) -> Option<Remembered> {
        self.with(|recent| recent.get(&id.key).filter(|remembered| remembered.local.id == *id))
    }

    /// The last answers, newest first.
    #[must_use]
    pub fn recent(&self, last: usize) -> Vec<Remembered> {
        self.with(|recent| recent.oldest_first.iter().rev().filter_map(|(_, key)| recent.get(key)).take(last).collect())
    }

    /// The answer already given to the sample an application named `reference`.
    #[must_use]
    pub fn by_reference(&self, source: &Name, reference: &str) -> Option<Remembered> {
        self.with(|recent| {
            let key = recent.by_reference.get(&(source.clone(), reference.to_owned()))?;
            recent.get(key)
        })
    }

    /// The answer already given to this very sample. One name for two samples is the caller's mistake: it would get an
    /// answer to another picture.
    pub fn known(
        &self,
        source: &Name,
        reference: &str,
        content: Option<Digest>,
    ) -> Result<Option<Remembered>, SampleError> {
        let remembered = self.by_reference(source, reference);
        let other = remembered.as_ref().and_then(|one| one.content).zip(content).is_some_and(|(one, two)| one != two);
        if other { Err(SampleError::OtherContent(reference.to_owned())) } else { Ok(remembered) }
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
    fn insert(&mut self, remembered: Remembered) {
        let (now, key) = (Instant::now(), remembered.local.id.key);
        let bytes = remembered.bytes();
        while let Some((given, _)) = self.oldest_first.front() {
            let fits = self.oldest_first.len() < ANSWERS_MAX && self.bytes + bytes <= ANSWERS_BYTES_MAX;
            if fits && now.duration_since(*given) < ANSWER_AGE_MAX {
                break;
            }
            self.forget_oldest();
        }
        if let Some(name) = reference_key(&remembered.local) {
            self.by_reference.insert(name, key);
        }
        self.oldest_first.push_back((now, key));
        self.bytes += bytes;
        self.by_key.insert(key, remembered);
    }

    fn correct(&mut self, answer: &Arc<Answer>) {
        let Some(entry) = self.by_key.get_mut(&answer.id.key) else { return };
        if entry.correction.as_ref().is_some_and(|known| known.revision >= answer.revision) {
            return;
        }
        self.bytes -= entry.bytes();
        entry.correction = Some(answer.clone());
        self.bytes += entry.bytes();
        while self.bytes > ANSWERS_BYTES_MAX {
            self.forget_oldest();
        }
    }

    fn forget_oldest(&mut self) {
        let Some((_, key)) = self.oldest_first.pop_front() else { return };
        let Some(entry) = self.by_key.remove(&key) else { return };
        self.bytes -= entry.bytes();
        if let Some(name) = reference_key(&entry.local)
            && self.by_reference.get(&name) == Some(&key)
        {
            self.by_reference.remove(&name);
        }
    }

    fn get(&self, key: &CaseKey) -> Option<Remembered> {
        self.by_key.get(key).cloned()
    }
}

fn reference_key(answer: &Answer) -> Option<(Name, String)> {
    Some((Name::new(&answer.source).ok()?, answer.reference.clone()?))
}

/// What an answer takes in memory, as far as it depends on what others said: the texts, each with what the allocator
/// keeps beside it, and the lists.
fn bytes_of(answer: &Answer) -> usize {
    const BESIDE: usize = 16;
    let text = |text: &str| text.len() + BESIDE;
    let Answer { id, reference, source, task, model, said, decision, captured, metadata, .. } = answer;
    let texts = [id.device.as_str(), source, task, &model.name, &model.version, &decision.because, &captured.boot];
    let said = said.as_ref().map_or(0, |said| said.memory_bytes(BESIDE));
    // A tree keeps its entries in nodes that are half full at worst.
    let entry = 2 * size_of::<(String, String)>();
    let metadata = metadata.iter().map(|(name, value)| entry + text(name) + text(value)).sum::<usize>();
    size_of::<Answer>()
        + texts.iter().map(|one| text(one)).sum::<usize>()
        + reference.as_deref().map_or(0, text)
        + said
        + metadata
}

#[cfg(test)]
mod tests {
    use hedge_proto::{LabelScore, Output};

    use super::*;
    use crate::capture::testing::{answer, id, name};

    /// An answer about which others had much to say, and its correction.
    fn long(n: u64) -> (Answer, Answer) {
        let mut local = answer(id(n), "cam", Some(format!("ref {n}")), 0);
        local.metadata = (0..8).map(|field| (format!("field {field}"), "x".repeat(100))).collect();
        let mut correction = answer(id(n), "cam", Some(format!("ref {n}")), 1);
        let scores: Vec<_> =
            (0..1000).map(|class| LabelScore { label: format!("class {class}"), score: 0.001 }).collect();
        correction.said = Some(Output::Classes(scores));
        (local, correction)
    }

    #[test]
    fn what_is_remembered_is_bounded_in_bytes_whatever_answers_hold() {
        let answers = Answers::default();
        let weighed = |answers: &Answers| answers.recent(usize::MAX).iter().map(Remembered::bytes).sum::<usize>();
        for n in 0..2000 {
            let (local, correction) = long(n);
            let json = hedge_proto::to_json(&local).len() + hedge_proto::to_json(&correction).len();
            answers.give(local);
            answers.correct(correction);
            let newest = answers.get(&id(n)).expect("the newest is there");
            assert!(newest.correction.is_some() && newest.bytes() > json, "counted for less than is written of it");
            assert!(answers.with(|recent| recent.bytes) <= ANSWERS_BYTES_MAX);
        }
        assert_eq!(answers.with(|recent| recent.bytes), weighed(&answers), "the sum is kept right");
        assert!(answers.get(&id(0)).is_none() && answers.by_reference(&name("cam"), "ref 0").is_none());
        let kept = answers.with(|recent| (recent.by_key.len(), recent.by_reference.len(), recent.oldest_first.len()));
        assert!(kept.0 == kept.1 && kept.1 == kept.2 && kept.0 > 100, "{kept:?}");
    }

    #[test]
    fn one_name_for_two_samples_is_refused_and_for_one_is_not() {
        let answers = Answers::default();
        let cam = name("cam");
        let content = |bytes: &[u8]| Some(Digest::of(bytes));
        assert_eq!(answers.known(&cam, "latest", content(b"one")), Ok(None));
        answers.give_to(answer(id(1), "cam", Some("latest".to_owned()), 0), content(b"one"));
        let known = answers.known(&cam, "latest", content(b"one")).expect("the same").expect("known");
        assert_eq!(known.local.id, id(1));
        assert!(matches!(answers.known(&cam, "latest", content(b"two")), Err(SampleError::OtherContent(_))));
        assert_eq!(answers.known(&name("other"), "latest", content(b"two")), Ok(None));
    }
}
