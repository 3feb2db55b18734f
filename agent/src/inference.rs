//! Runs one model on its own thread: decodes, infers, judges.
//!
//! The thread owns the session and the judge, so a sample is judged from first byte to decision under one set
//! of settings. What happens to a deferred sample is not its business.

mod loaded;
mod record;
mod thread;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedge_core::judge::{Asked, Forecast, Judgement, ThresholdScale, Thresholds, explain_unusable, judge};
use hedge_inference::{Bundle, ContentType, Region, Task, Tensor, Tensors};
use hedge_proto::{Doubt, Explanation, ModelRef, Name, Outcome, Output, Rect, RivalRole, in_one_line};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, timeout};

use self::loaded::Loaded;
pub use self::loaded::{ModelCard, Place};
use self::record::{Record, Work};
pub use self::thread::RELOAD_WAIT;
use self::thread::{Job, ModelThread};
use crate::faults::Faults;
use crate::figures::Figures;
use crate::learned::Learned;
use crate::sample::{NO_THRESHOLD, SampleError};
use hedge_config::ThresholdConfig;

/// Samples that may wait for one model. More would only be answered late; the sender is told instead.
const WAITING_MAX: usize = 32;

/// What the model makes of one sample.
#[derive(Debug)]
pub struct Opinion {
    /// Absent when the output was unusable.
    pub said: Option<Output>,
    pub explanation: Explanation,
    /// How much a second opinion is expected to help.
    pub priority: f32,
    /// What the bundle says that this one is compared with, where they differ.
    pub rival: Option<Output>,
    /// What may leave the device in the place of the sample, if the model has made that of one that is deferred.
    pub embedding: Option<Tensor>,
}

impl Opinion {
    /// What a model's outputs mean under these thresholds, by their numbers alone. `hedge-agent infer` asks here, too.
    #[must_use]
    pub fn new(task: &Task, outputs: &Tensors, frame: &Rect, thresholds: &Thresholds) -> Self {
        Self::by(task, outputs, frame, thresholds, |_, doubt, asked| judge(doubt, &asked))
    }

    fn by(
        task: &Task,
        outputs: &Tensors,
        frame: &Rect,
        thresholds: &Thresholds,
        judge: impl FnOnce(&Output, &Doubt, Asked<'_>) -> Judgement,
    ) -> Self {
        match task.read(outputs, frame) {
            Ok((said, doubt)) => {
                let judgement = judge(&said, &doubt, thresholds.of(&said));
                let (explanation, priority) = (judgement.explain(), judgement.priority());
                let is_deferred = explanation.outcome == Outcome::Defer;
                let embedding = is_deferred.then(|| task.embedding(outputs)).flatten();
                Self { said: Some(said), explanation, priority, rival: None, embedding }
            }
            Err(error) => Self {
                said: None,
                explanation: explain_unusable(in_one_line(&error), &thresholds.general()),
                priority: 1.0,
                rival: None,
                embedding: task.embedding(outputs),
            },
        }
    }
}

/// The way to one model's thread. Cheap to clone.
#[derive(Clone)]
pub struct Judge {
    name: Name,
    jobs: mpsc::Sender<Job>,
    place: Place,
    card: watch::Receiver<Option<Arc<ModelCard>>>,
    work: Work,
    record: Record,
    hung_after: Duration,
    learned: Learned,
}

/// A model that has answered before fails when it has answered none of so many samples in a row; one that never did,
/// with the first.
const FAILURES_MAX: u32 = 5;

/// How to load one model.
pub struct ModelSetup {
    pub name: Name,
    pub place: Place,
    /// The longest it may work on one sample.
    pub hung_after: Duration,
    /// How long it waits before it is loaded, and why.
    pub rest: Option<(Duration, String)>,
    /// Where it is noted that it is not loaded.
    pub faults: Faults,
    /// Where the time of each stage is counted.
    pub figures: Arc<Figures>,
    /// Counts the models that were loaded.
    pub loaded: watch::Sender<usize>,
    pub learned: Learned,
}

impl Judge {
    /// Starts the thread and loads the model on it. A model that does not load is said in every answer and
    /// tried again; it does not keep the agent from starting.
    pub fn start(setup: ModelSetup) -> std::io::Result<Self> {
        let (jobs, queue) = mpsc::channel(WAITING_MAX);
        let (cards, card) = watch::channel(None);
        let work = Work::default();
        let record = Record::default();
        let judge = Self {
            name: setup.name.clone(),
            jobs,
            place: setup.place.clone(),
            card,
            work: work.clone(),
            record: record.clone(),
            hung_after: setup.hung_after,
            learned: setup.learned.clone(),
        };
        let thread = std::thread::Builder::new().name(format!("model-{}", setup.name));
        thread.spawn(move || {
            ModelThread::new(setup, cards, (work, record)).serve(queue);
        })?;
        Ok(judge)
    }

    /// What is known of the model; `None` until it has been loaded once.
    #[must_use]
    pub fn card(&self) -> Option<Arc<ModelCard>> {
        self.card.borrow().clone()
    }

    /// What is learned of the model.
    #[must_use]
    pub fn learned(&self) -> &Learned {
        &self.learned
    }

    /// Whether the model has worked on one sample for longer than it may.
    #[must_use]
    pub fn hangs(&self) -> bool {
        self.work.since().is_some_and(|since| since.elapsed() > self.hung_after)
    }

    /// When it answered last.
    #[must_use]
    pub fn answered_at(&self) -> Option<Instant> {
        self.record.with(|record| record.last)
    }

    /// Why no sample gets an answer of it now, under this threshold; none while it is being loaded for the first time.
    #[must_use]
    pub fn cannot_answer(&self, threshold: &ThresholdConfig) -> Option<String> {
        let Some(card) = self.card() else {
            return self.record.with(|record| record.missing.as_deref().map(str::to_owned));
        };
        if self.hangs() {
            return Some(format!("it has worked on one sample for more than {} s", self.hung_after.as_secs()));
        }
        if threshold.resolve(card.suggested, &card.labels, |label| label).is_none() {
            return Some(format!("it answers no sample: {NO_THRESHOLD}"));
        }
        self.record.with(|record| {
            let many = if record.last.is_some() { FAILURES_MAX } else { 1 };
            let advice = "try `hedge-agent infer` with its bundle and one of the samples";
            (record.failures >= many).then(|| match record.last {
                Some(_) => format!("it has stopped answering: {}; {advice}", record.reason),
                None => format!("it has answered no sample yet: {}; {advice}", record.reason),
            })
        })
    }

    /// What this threshold would have made of the answers of the last day.
    pub fn forecast(&self, threshold: &ThresholdConfig) -> Result<Option<Forecast>, String> {
        let card = self.card().ok_or("the model is not loaded")?;
        if let Some(unknown) = threshold.unknown_labels(&card.labels) {
            return Err(unknown);
        }
        let thresholds = threshold.resolve(card.suggested, &card.labels, |label| label).ok_or(NO_THRESHOLD)?;
        let asked = Asked { rule: &thresholds.rule, ..Asked::of(thresholds.general()) };
        Ok(self.learned.forecast(&asked))
    }

    /// What is wrong with it under this threshold, if anything is.
    #[must_use]
    pub fn fault(&self, threshold: &ThresholdConfig) -> Option<String> {
        let unknown = || threshold.unknown_labels(&self.card()?.labels);
        let refused = || self.card()?.runs_on.refused.clone();
        let alarm = || Some(self.learned.look(|experience| experience.alarm())??.sentence().to_owned());
        self.cannot_answer(threshold).or_else(unknown).or_else(alarm).or_else(refused)
    }

    /// Waits until the model is loaded, or has failed to load.
    pub async fn settle(&self) {
        // A thread that has ended will not change any more either.
        drop(self.ask(|reply| Job::Settle { reply }).await);
    }

    /// Has a missing model tried again if its time has come. A model that works is not disturbed.
    pub async fn look(&self) {
        if self.card().is_none() {
            self.settle().await;
        }
    }

    /// Takes the bundle that stands at the model's place now, if that is another one. Samples are answered by the one
    /// before until it is loaded, and further on if it cannot be; both are in memory only that long.
    pub async fn reload(&self) -> Result<Option<ModelRef>, String> {
        let late = |_| Err(format!("it was not loaded within {} s", self.hung_after.as_secs()));
        timeout(self.hung_after, self.swap()).await.unwrap_or_else(late)
    }

    async fn swap(&self) -> Result<Option<ModelRef>, String> {
        let Some(card) = self.card() else {
            self.settle().await;
            return Ok(None);
        };
        let (place, name) = (self.place.clone(), self.name.clone());
        let loading = tokio::task::spawn_blocking(move || {
            let dir = place.dir();
            let bundle = Bundle::open(&dir).map_err(|error| error.to_string())?;
            let same = dir == card.dir && bundle.model_ref() == card.model;
            if same { Ok(None) } else { Loaded::new(dir, &place, name).map(|loaded| Some(Box::new(loaded))) }
        });
        let Some(loaded) = loading.await.map_err(|error| error.to_string())?? else { return Ok(None) };
        let (reply, swapped) = oneshot::channel();
        let stopping = || SampleError::Stopping.to_string();
        self.jobs.send(Job::Swap { loaded, reply }).await.map_err(|_| stopping())?;
        swapped.await.map(Some).map_err(|_| stopping())
    }

    /// Has the bundle in this folder look at what is answered, or none. Samples are answered while it is loaded.
    pub async fn compare_with(&self, with: Option<(PathBuf, RivalRole)>) -> Result<(), String> {
        if self.compare(with.clone(), None).await? {
            return Ok(());
        }
        let Some((dir, _)) = &with else { return Ok(()) };
        let (place, name, dir) = (self.place.clone(), self.name.clone(), dir.clone());
        let loading = tokio::task::spawn_blocking(move || Loaded::new(dir, &place, name).map(Box::new));
        let loaded = loading.await.map_err(|error| error.to_string())??;
        self.compare(with, Some(loaded)).await.map(drop)
    }

    async fn compare(&self, with: Option<(PathBuf, RivalRole)>, loaded: Option<Box<Loaded>>) -> Result<bool, String> {
        let (reply, known) = oneshot::channel();
        let stopping = || SampleError::Stopping.to_string();
        self.jobs.send(Job::Compare { with, loaded, reply }).await.map_err(|_| stopping())?;
        known.await.map_err(|_| stopping())
    }

    /// Has the bundle of this folder answer, and the one that answered look on. False if it is not the one that looks on.
    pub async fn exchange(&self, with: PathBuf) -> bool {
        let (reply, exchanged) = oneshot::channel();
        self.jobs.send(Job::Exchange { with, reply }).await.is_ok() && exchanged.await.unwrap_or(false)
    }

    /// Decodes and judges one sample; what is said of the model is that of the one that did.
    pub async fn judge(
        &self,
        content_type: ContentType,
        bytes: Bytes,
        region: Option<Region>,
        threshold: Arc<ThresholdConfig>,
        scale: ThresholdScale,
        frame_of: Option<(Name, Option<Name>)>,
    ) -> Result<(Opinion, Arc<ModelCard>), SampleError> {
        self.ask(|reply| Job::Judge { content_type, bytes, region, threshold, scale, frame_of, reply }).await
    }

    /// The model's raw outputs for one tensor. Nothing is judged or deferred.
    pub async fn run(&self, tensor: Tensor) -> Result<Tensors, SampleError> {
        self.ask(|reply| Job::Run { tensor, reply }).await
    }

    async fn ask<T>(&self, job: impl FnOnce(oneshot::Sender<Result<T, SampleError>>) -> Job) -> Result<T, SampleError> {
        let (reply, answer) = oneshot::channel();
        self.jobs.try_send(job(reply)).map_err(|error| match error {
            mpsc::error::TrySendError::Full(_) => SampleError::Overloaded(self.name.to_string()),
            mpsc::error::TrySendError::Closed(_) => SampleError::Stopping,
        })?;
        answer.await.map_err(|_| SampleError::Stopping)?
    }
}

#[cfg(test)]
mod tests {
    use hedge_core::clock::Moment;
    use hedge_core::judge::Limits;
    use hedge_inference::{RunsOn, SessionOptions};

    use super::*;
    use crate::clock::{Clock, ClockMark};

    fn judge(suggested: Option<Limits>) -> Judge {
        judge_on_cpu(suggested, None)
    }

    fn judge_on_cpu(suggested: Option<Limits>, refused: Option<String>) -> Judge {
        let text = |text: &str| text.to_owned();
        let name = Name::new("rgb").expect("valid");
        let labels: Arc<[String]> = ["r", "g", "b"].map(str::to_owned).into();
        let card = ModelCard {
            name: name.clone(),
            model: ModelRef { name: text("rgb"), version: text("1") },
            task: text("colours"),
            labels_hash: hedge_proto::labels_hash(&labels),
            labels,
            input_name: text("x"),
            input_shape: vec![1, 3],
            outputs: vec![(text("y"), vec![1, 3])],
            suggested,
            embeds: false,
            dir: PathBuf::new(),
            runs_on: RunsOn { name: "cpu", steps: None, refused },
        };
        let jobs = mpsc::channel(1).0;
        let card = watch::channel(Some(Arc::new(card))).1;
        let place = Place { bundle: PathBuf::new(), variant: None, session: SessionOptions::default(), library: None };
        let (work, record) = (Work::default(), Record::default());
        let learned = Learned::new(name.clone(), None, Clock::resume(&ClockMark::default(), Moment(0)), 1);
        Judge { name, jobs, place, card, work, record, hung_after: Duration::from_secs(60), learned }
    }

    fn threshold(text: &str) -> ThresholdConfig {
        toml::from_str(text).expect("valid")
    }

    #[test]
    fn a_model_without_a_threshold_is_a_fault_until_somebody_gives_one() {
        let silent = judge(None);
        let fault = silent.fault(&threshold("")).expect("a fault");
        assert!(fault.contains("no threshold") && fault.contains("bundle calibrate"), "{fault}");
        assert_eq!(silent.fault(&threshold("score_min = 0.5")), None);
        assert_eq!(judge(Some(Limits::new(0.5, 0.0, 1.0).expect("valid"))).fault(&threshold("")), None);
    }

    #[test]
    fn a_model_that_answers_no_sample_is_a_fault_until_it_answers_one() {
        let (model, given) = (judge(None), threshold("score_min = 0.5"));
        model.record.failed("the output adds up to 17.2, not 1");
        let fault = model.fault(&given).expect("a fault");
        assert!(fault.contains("no sample yet") && fault.contains("adds up to 17.2"), "{fault}");
        model.record.answered();
        assert_eq!(model.fault(&given), None);
        for _ in 1..FAILURES_MAX {
            model.record.failed("NaN");
        }
        assert_eq!(model.fault(&given), None, "a model that works may fail for single samples");
        model.record.failed("NaN");
        assert!(model.fault(&given).is_some_and(|fault| fault.contains("stopped answering: NaN")));
        model.record.answered();
        assert_eq!(model.fault(&given), None);
    }

    #[test]
    fn a_model_that_cannot_have_its_accelerator_answers_and_says_so() {
        let refused = Some("it runs on the cpu and not on xnnpack: it takes no step of this model".to_owned());
        let (model, given) = (judge_on_cpu(None, refused), threshold("score_min = 0.5"));
        assert!(model.fault(&given).is_some_and(|fault| fault.contains("not on xnnpack")));
        assert_eq!(model.cannot_answer(&given), None);
    }

    #[test]
    fn an_unknown_label_is_a_fault_and_does_not_keep_the_model_from_answering() {
        let (model, given) = (judge(None), threshold("score_min = 0.5\nclasses = { r = 0.99, cow = 0.9 }"));
        assert!(model.fault(&given).is_some_and(|fault| fault.contains("threshold.classes.cow")));
        assert_eq!(model.cannot_answer(&given), None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_model_hangs_when_one_sample_takes_longer_than_its_limit() {
        let (judge, given) = (judge(None), threshold("score_min = 0.5"));
        let later = |seconds| tokio::time::advance(Duration::from_secs(seconds));
        later(100).await;
        assert!(!judge.hangs(), "it waits for samples");
        judge.work.set(Some(Instant::now()));
        later(60).await;
        assert!(!judge.hangs(), "within its limit");
        later(1).await;
        assert!(judge.hangs());
        assert!(judge.fault(&given).is_some_and(|fault| fault.contains("more than 60 s")));
        judge.work.set(None);
        assert!(!judge.hangs(), "it came through after all");
    }
}
