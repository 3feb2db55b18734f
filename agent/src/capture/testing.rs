//! An intake that answers everything at once, and remembers what it was asked.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedge_core::policy::Policies;
use hedge_inference::{Tensor, Tensors};
use hedge_proto::{
    Answer, Authority, Captured, Case, CaseDecision, CaseFate, CaseId, CaseKey, DeviceId, Digest, Doubt, Epoch,
    Explanation, LinkState, ModelRef, Name, Outcome, PayloadForm, Reason, Telemetry, ThresholdMode,
};
use tokio::sync::{Notify, mpsc, watch};

use super::{Asking, Intake, Lookup, ModelFacts, Snapshots, Source, Taker};
use crate::answers::Answers;
use crate::control::Control;
use crate::link::LinkView;
use crate::queue::Queue;
use crate::sample::{NewSample, SampleError};

/// Decides on a sample in a test.
type Verdict = Box<dyn Fn(&NewSample) -> Result<(), SampleError> + Send + Sync>;

pub(super) struct Fake {
    answers: Answers,
    pub(super) snapshots: Snapshots,
    next: AtomicU64,
    pub(super) skipped: AtomicU64,
    pub(super) samples: Mutex<Vec<NewSample>>,
    pub(super) states: Mutex<Vec<String>>,
    /// Of each sample a source brought, whether it was new.
    pub(super) seen: Mutex<Vec<bool>>,
    pub(super) verdict: Mutex<Verdict>,
    /// Given by tests that look at it.
    pub(super) queue: Mutex<Option<Queue>>,
    /// Online until a test says otherwise.
    pub(super) link: watch::Sender<LinkView>,
    /// Every case is a dead letter.
    pub(super) dead: watch::Sender<bool>,
    /// Set: no answer is given before a permit is added here.
    gate: Option<tokio::sync::Semaphore>,
    changed: Notify,
}

impl Default for Fake {
    fn default() -> Self {
        Self {
            answers: Answers::default(),
            snapshots: Snapshots::default(),
            next: AtomicU64::new(0),
            skipped: AtomicU64::new(0),
            samples: Mutex::default(),
            states: Mutex::default(),
            seen: Mutex::default(),
            verdict: Mutex::new(Box::new(|_| Ok(()))),
            queue: Mutex::default(),
            link: watch::channel(LinkView::starting(Policies::DEFAULT.online)).0,
            dead: watch::channel(false).0,
            gate: None,
            changed: Notify::new(),
        }
    }
}

pub(crate) fn name(text: &str) -> Name {
    Name::new(text).expect("a valid name")
}

pub(crate) fn id(sequence: u64) -> CaseId {
    CaseId { device: DeviceId::new("dev").expect("valid"), key: CaseKey { epoch: Epoch(1), sequence } }
}

/// A case of the same sample, without a local result.
pub(crate) fn case(sequence: u64) -> Case {
    let local = answer(id(sequence), "cam", None, 0);
    Case {
        v: 1,
        id: local.id,
        reference: None,
        source: local.source,
        task: local.task,
        labels_hash: Digest::of(b"labels"),
        model: local.model,
        said: None,
        doubt: Doubt::NONE,
        view: None,
        decision: CaseDecision { reason: Reason::LowScore, check: false, threshold: 0.5, mode: ThresholdMode::Fixed },
        settings_version: 0,
        captured: local.captured,
        form: PayloadForm::Whole,
        content_type: "image/png".to_owned(),
        payload_sha256: Digest::of(b"x"),
        payload: None,
        offer: None,
        metadata: BTreeMap::new(),
    }
}

pub(crate) fn answer(id: CaseId, source: &str, reference: Option<String>, revision: u32) -> Answer {
    Answer {
        id,
        reference,
        source: source.to_owned(),
        task: "things".to_owned(),
        revision,
        authority: if revision == 0 { Authority::Device } else { Authority::Model },
        model: ModelRef { name: "m".to_owned(), version: "1".to_owned() },
        said: None,
        provisional: revision == 0,
        changed: revision > 0,
        decision: Explanation {
            outcome: Outcome::Defer,
            reason: None,
            check: false,
            score: None,
            agreement: None,
            doubt: Doubt::NONE,
            threshold: 0.5,
            mode: ThresholdMode::Fixed,
            because: String::new(),
        },
        case: None,
        link: LinkState::Offline,
        captured: Captured { powered_ms: 0, boot: String::new(), wall_ms: None, synced: false },
        metadata: BTreeMap::new(),
        crops: Vec::new(),
    }
}

impl Fake {
    /// Answers nothing before it is opened.
    pub(super) fn stuck() -> Self {
        Self { gate: Some(tokio::sync::Semaphore::new(0)), ..Self::default() }
    }

    pub(super) fn open(&self) {
        self.gate.as_ref().expect("a gate").add_permits(1000);
    }

    pub(super) fn source(self: &Arc<Self>, interval: Option<Duration>) -> Source<Self> {
        Source { name: name("cam"), interval, quiet: None, sample_bytes_max: 100_000, intake: self.clone() }
    }

    /// Waits until `holds`, which is looked at whenever something reaches the intake.
    pub(super) async fn until(&self, what: &str, holds: impl Fn(&Self) -> bool) {
        let wait = async {
            loop {
                let changed = self.changed.notified();
                if holds(self) {
                    return;
                }
                changed.await;
            }
        };
        // Real time, because some tests pause the other one; far more than a busy machine takes.
        let (ring, rung) = tokio::sync::oneshot::channel::<()>();
        let alarm = std::thread::spawn(move || {
            std::thread::park_timeout(Duration::from_secs(60));
            drop(ring);
        });
        tokio::select! {
            () = wait => alarm.thread().unpark(),
            _ = rung => panic!("{what} did not come; states: {:?}", self.states.lock().expect("not poisoned")),
        }
    }

    pub(super) fn sample_count(&self) -> usize {
        self.samples.lock().expect("not poisoned").len()
    }

    pub(super) fn said(&self, text: &str) -> bool {
        self.states.lock().expect("not poisoned").iter().any(|state| state.contains(text))
    }

    pub(super) fn decide(&self, verdict: impl Fn(&NewSample) -> Result<(), SampleError> + Send + Sync + 'static) {
        *self.verdict.lock().expect("not poisoned") = Box::new(verdict);
    }
}

impl Taker for Fake {
    async fn answer(&self, sample: NewSample) -> Result<Arc<Answer>, SampleError> {
        let content = sample.reference.as_ref().map(|_| Digest::of(&sample.bytes));
        if let Some(reference) = &sample.reference
            && let Some(remembered) = self.answers.known(&sample.source, reference, content)?
        {
            return Ok(remembered.latest().clone());
        }
        let decided = self.verdict.lock().expect("not poisoned")(&sample);
        let (source, reference) = (sample.source.to_string(), sample.reference.clone());
        self.samples.lock().expect("not poisoned").push(sample);
        self.changed.notify_waiters();
        decided?;
        if let Some(gate) = &self.gate {
            gate.acquire().await.expect("open").forget();
        }
        let id = id(self.next.fetch_add(1, Ordering::Relaxed));
        Ok(self.answers.give_to(answer(id, &source, reference, 0), content))
    }

    fn set_source_state(&self, _: &Name, state: String) {
        self.states.lock().expect("not poisoned").push(state);
        self.changed.notify_waiters();
    }

    fn saw(&self, _: &Name, is_new: bool) {
        self.seen.lock().expect("not poisoned").push(is_new);
        self.changed.notify_waiters();
    }

    fn asked(&self, source: &Name) -> mpsc::Receiver<Asking> {
        self.snapshots.register(source)
    }

    fn count_skipped(&self, _: &Name, count: u64) {
        self.skipped.fetch_add(count, Ordering::Relaxed);
        self.changed.notify_waiters();
    }
}

impl Intake for Fake {
    fn answers(&self) -> &Answers {
        &self.answers
    }

    fn as_it_stands(&self, answer: Arc<Answer>) -> Arc<Answer> {
        let case = self.dead.borrow().then_some(CaseFate::Dead);
        match case.filter(|_| answer.provisional) {
            Some(_) => Arc::new(Answer { case, provisional: false, ..(*answer).clone() }),
            None => answer,
        }
    }

    async fn ended(&self, _: &Answer) {
        drop(self.dead.subscribe().wait_for(|dead| *dead).await);
    }

    async fn lookup(&self, id: &CaseId) -> Lookup {
        match (self.answers.get(id), id.key.epoch.0) {
            (Some(remembered), _) => Lookup::Found(remembered),
            (None, 1) => Lookup::Gone,
            (None, 2) => Lookup::Open,
            (None, _) => Lookup::NotOurs,
        }
    }

    fn models(&self) -> Vec<ModelFacts> {
        vec![ModelFacts {
            name: name("m"),
            version: "1".to_owned(),
            cannot_answer: None,
            input_name: "x".to_owned(),
            input_shape: vec![1, 3],
            outputs: vec![("y".to_owned(), vec![1, 2])],
            labels: vec!["a".to_owned(), "b".to_owned()],
        }]
    }

    /// The sum and the first number.
    async fn run(&self, _: &Name, tensor: Tensor) -> Result<Tensors, SampleError> {
        assert_eq!(tensor.shape, [1, 3]);
        let output = Tensor::new(vec![1, 2], vec![tensor.data.iter().sum(), tensor.data[0]]);
        Ok(Tensors(vec![("y".to_owned(), output)]))
    }

    fn faults(&self) -> hedge_proto::Faults {
        hedge_proto::Faults::new()
    }

    fn status(&self) -> Telemetry {
        Telemetry { uptime_s: 7, ..Telemetry::new(LinkState::Offline) }
    }

    fn link(&self) -> watch::Receiver<LinkView> {
        self.link.subscribe()
    }

    fn metrics(&self) -> String {
        "hedge_agent_uptime_seconds 7\n".to_owned()
    }

    fn queue(&self) -> Queue {
        self.queue.lock().expect("not poisoned").clone().expect("the test has given a queue")
    }

    fn control(&self) -> Control {
        Control::new().0
    }
}
