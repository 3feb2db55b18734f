//! Runs answerers: local models each on a thread of its own, those elsewhere as calls over HTTP, so that none holds up
//! the intake or another.
//!
//! Who is asked, and in which order, is decided by the intake and [`crate::answerers`]; an answerer answers one case after
//! another and hands back what came out.

pub mod alone;
mod bench;
mod call;
mod chat;
mod fixed;
mod onnx;
mod open_inference;
mod remote;
mod template;

pub use bench::Jobs;
pub use fixed::Fixed;
pub use onnx::{Onnx, OnnxError};
pub use remote::{Questioned, Remote};

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use hedge_inference::{Bundle, ContentType, Region, Runtime, SessionOptions, Tensor};
use hedge_proto::{Authority, Case, DeviceId, ModelRef, Output, PayloadForm, TraceContext, in_one_line};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use crate::answerers::{AnswererConfig, Kind, Micro, Route, Seat};
use crate::store::Coming;
use crate::traces::Traces;
use crate::wall_ms;
use alone::Alone;
use bench::Taker;
use remote::Calls;

/// What a model says about one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opinion {
    pub said: Output,
    pub model: ModelRef,
}

/// Why an answerer has no verdict, sorted by what the intake does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelFailure {
    /// It can never answer this case: it cannot be decoded, has the wrong shape, or is not what it answers. The next
    /// answerer may.
    #[error("{0}")]
    Dead(String),
    /// This run failed; another may not.
    #[error("{0}")]
    Failed(String),
    /// It wants to be left alone for a while, for so long if it says how long. The case waits.
    #[error("{why}")]
    Later { after: Option<Duration>, why: String },
    /// It does not answer anything now. The case waits.
    #[error("{why}")]
    Down {
        why: String,
        /// The case had reached it, and may be why.
        had_it: bool,
    },
    /// It was not asked: the payload cannot be fetched now. The case waits.
    #[error("the payload cannot be fetched: {0}")]
    NoPayload(String),
}

impl ModelFailure {
    /// For a trace.
    #[must_use]
    pub fn word(&self) -> &'static str {
        match self {
            Self::Dead(_) => "no_verdict",
            Self::Failed(_) => "failed",
            Self::Later { .. } => "later",
            Self::Down { .. } => "down",
            Self::NoPayload(_) => "no_payload",
        }
    }
}

/// The one thing a model does here.
pub trait Answerer: Send {
    /// Which cases it answers: those of this task.
    fn task(&self) -> &str;

    /// What it may say; empty if that is not known.
    fn labels(&self) -> &[String] {
        &[]
    }

    fn answer(&mut self, case: &Case, payload: &[u8]) -> Result<Opinion, ModelFailure>;

    /// How many cases it answers in one run.
    fn batch_max(&self) -> usize {
        1
    }

    /// Answers several at once, in order.
    fn answer_all(&mut self, jobs: &[Job]) -> Vec<Result<Opinion, ModelFailure>> {
        jobs.iter().map(|job| self.answer(&job.case, &job.payload)).collect()
    }

    /// The arguments of `hedge-cloud` that load the same model in a process of its own.
    fn alone(&self) -> Vec<OsString>;
}

/// One case to answer.
pub struct Job {
    pub case: Case,
    /// Empty while it is coming.
    pub payload: Vec<u8>,
    pub coming: Option<Coming>,
    /// A process before this one had it when it ended: see [`alone`].
    pub left_over: bool,
}

impl Job {
    /// Returns once the payload is here.
    async fn fetch(&mut self) -> Result<(), ModelFailure> {
        let Some(coming) = self.coming.take() else { return Ok(()) };
        match coming.await {
            Ok(Ok(Some(bytes))) => self.payload = bytes,
            Ok(Ok(None)) => return Err(ModelFailure::Failed("the payload is no longer kept here".to_owned())),
            Ok(Err(why)) => return Err(ModelFailure::NoPayload(why)),
            Err(_) => return Err(ModelFailure::NoPayload("this program is stopping".to_owned())),
        }
        Ok(())
    }
}

/// What came of one job.
#[derive(Debug)]
pub struct Outcome {
    pub case: Case,
    pub payload_bytes: u64,
    /// Whose it is: the answerer's place in its task's route.
    pub place: usize,
    /// When the call began, for the case's trace, and the span that was told to the other side.
    pub began_ms: u64,
    pub span: Option<TraceContext>,
    pub took: Duration,
    pub opinion: Result<Opinion, ModelFailure>,
}

/// An answerer before it works.
pub struct Answering {
    pub name: String,
    pub task: String,
    pub authority: Authority,
    /// Of one call.
    pub price: Micro,
    pub way: Way,
}

/// Where it works.
pub enum Way {
    /// In this process, on a thread of its own, with a wait for more cases of the same run.
    Local(Box<dyn Answerer>, Duration),
    /// Elsewhere, with so many calls at once.
    Remote(Box<Remote>, usize),
    /// A person, who may say these labels; any if there are none.
    Person(Vec<String>),
}

/// An answerer at work. Dropping it ends its thread.
pub struct Worker {
    pub authority: Authority,
    /// What a person may say; any label if there are none.
    pub labels: Vec<String>,
    hands: Hands,
}

enum Hands {
    Local(Jobs),
    Remote { put: Box<dyn Fn(Job) + Send>, question: Box<dyn Fn() + Send>, is_watched: bool, places: usize },
    Person,
}

impl Worker {
    #[must_use]
    pub fn has_room(&self, device: &DeviceId) -> bool {
        match &self.hands {
            Hands::Local(jobs) => jobs.has_room(device),
            Hands::Remote { .. } | Hands::Person => true,
        }
    }

    /// `false`: its thread has gone.
    #[must_use]
    pub fn put(&self, job: Job) -> bool {
        match &self.hands {
            Hands::Local(jobs) => return jobs.put(job),
            Hands::Remote { put, .. } => put(job),
            Hands::Person => {}
        }
        true
    }

    /// Asks whether it is alive; what comes of it is an event.
    pub fn question(&self) {
        if let Hands::Remote { question, .. } = &self.hands {
            question();
        }
    }

    /// How many cases it works on at once.
    #[must_use]
    pub fn at_once(&self) -> u32 {
        match self.hands {
            Hands::Remote { places, .. } => u32::try_from(places).unwrap_or(u32::MAX).max(1),
            Hands::Local(_) | Hands::Person => 1,
        }
    }

    #[must_use]
    pub fn is_remote(&self) -> bool {
        matches!(self.hands, Hands::Remote { .. })
    }

    /// Asked from time to time also while all is well.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(self.hands, Hands::Remote { is_watched: true, .. })
    }
}

/// The answerers of one task.
pub struct Panel {
    pub route: Route,
    /// In the order of the route.
    pub workers: Vec<Worker>,
    /// What they may say, as far as that is known.
    pub labels: Vec<String>,
}

impl Panel {
    fn knows(&mut self, labels: &[String]) {
        let new: Vec<String> = labels.iter().filter(|label| !self.labels.contains(label)).cloned().collect();
        self.labels.extend(new);
    }
}

/// Who answers, by task. Dropping them ends their threads.
pub type Panels = BTreeMap<String, Panel>;

/// How long models take for one case, by task. Clones count together.
pub type Seconds = Family<Vec<(&'static str, String)>, Histogram, fn() -> Histogram>;

/// Upper ends of the steps in seconds: a small model on this machine to a large one elsewhere.
const BOUNDS_S: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

#[must_use]
pub fn seconds() -> Seconds {
    Seconds::new_with_constructor(|| Histogram::new(BOUNDS_S))
}

/// Loads what the configuration names of an answerer; nothing is dialled. What is wrong names its field.
pub fn load(config: &AnswererConfig, library: Option<&Path>) -> Result<Answering, String> {
    let given = || config.task.clone().unwrap_or_default();
    let (task, way) = match config.kind {
        Kind::Onnx => {
            let runtime = Runtime::find(library).map_err(|error| in_one_line(&error))?;
            let dir = config.bundle.clone().unwrap_or_default();
            let options = SessionOptions { threads: config.threads.unwrap_or(1), ..SessionOptions::default() };
            let model = Onnx::load(&runtime, library, &dir, options)
                .map_err(|error| format!("bundle = {}: {}", dir.display(), in_one_line(&error)))?;
            let model = model.batching(config.batch_max.map_or(1, usize::from));
            let wait = Duration::from_millis(config.batch_wait_ms.unwrap_or(0).into());
            (model.task().to_owned(), Way::Local(Box::new(model), wait))
        }
        Kind::Person => (given(), Way::Person(config.labels.clone().unwrap_or_default())),
        Kind::OpenInference | Kind::Chat | Kind::Http => {
            let remote = Remote::new(config)?;
            (remote.task().map_or_else(given, str::to_owned), Way::Remote(Box::new(remote), config.concurrency()))
        }
    };
    let (authority, price) = (config.authority(), config.price());
    Ok(Answering { name: config.name.to_string(), task, authority, price, way })
}

/// Starts every answerer. What comes of their work goes to `events`.
pub fn start<E: From<Box<Outcome>> + From<Questioned> + Send + 'static>(
    answerers: Vec<Answering>,
    events: &mpsc::Sender<E>,
    seconds: &Seconds,
    traces: &Traces,
    runtime: &Handle,
) -> std::io::Result<Panels> {
    let (now, mut seats, mut panels) = (Instant::now(), BTreeMap::<String, Vec<Seat>>::new(), Panels::new());
    for Answering { name, task, authority, price, way } in answerers {
        let panel = panels.entry(task.clone()).or_insert_with(|| Panel {
            route: Route::default(),
            workers: Vec::new(),
            labels: Vec::new(),
        });
        let seats = seats.entry(task.clone()).or_default();
        let seconds = seconds.get_or_create_owned(&vec![("task", task.clone()), ("answerer", name.clone())]);
        let (events, place, mut labels) = (events.clone(), panel.workers.len(), Vec::new());
        let hands = match way {
            Way::Local(model, wait) => {
                panel.knows(model.labels());
                let (jobs, taker) = bench::bench();
                std::thread::Builder::new()
                    .name(format!("model {task}"))
                    .spawn(move || work(model, wait, place, &taker, &events, &seconds))?;
                seats.push(Seat::local(&name, bench::JOBS_MAX));
                Hands::Local(jobs)
            }
            Way::Remote(remote, places) => {
                let (is_watched, remote) = (remote.is_watched(), Arc::from(remote));
                let (runtime, traces) = (runtime.clone(), traces.clone());
                let calls = Arc::new(Calls { remote, events, seconds, runtime, traces, task, place });
                seats.push(Seat::remote(&name, places, price, now));
                let asking = calls.clone();
                Hands::Remote {
                    put: Box::new(move |job| calls.put(job)),
                    question: Box::new(move || asking.question()),
                    is_watched,
                    places,
                }
            }
            Way::Person(may_say) => {
                panel.knows(&may_say);
                labels = may_say;
                seats.push(Seat::person(&name));
                Hands::Person
            }
        };
        panel.workers.push(Worker { authority, labels, hands });
    }
    for (panel, seats) in panels.values_mut().zip(seats.into_values()) {
        panel.route = Route::new(seats);
    }
    Ok(panels)
}

fn work<E: From<Box<Outcome>>>(
    mut model: Box<dyn Answerer>,
    wait: Duration,
    place: usize,
    jobs: &Taker,
    events: &mpsc::Sender<E>,
    seconds: &Histogram,
) {
    let mut alone = Alone::new(model.alone());
    while let Ok(job) = jobs.take(alone::IDLE_MAX) {
        alone.rest();
        let Some(job) = job else { continue };
        let mut together = vec![job];
        if model.batch_max() > 1 {
            jobs.take_more(&mut together, model.batch_max(), wait);
        }
        let mut outcomes = Vec::new();
        let mut here = Vec::new();
        for mut job in together {
            let (begun, began_ms) = (Instant::now(), wall_ms());
            match futures_executor::block_on(job.fetch()) {
                Ok(()) => here.push(job),
                Err(failure) => outcomes.push((job, began_ms, begun.elapsed(), Err(failure))),
            }
        }
        let (left_over, mut together): (Vec<Job>, Vec<Job>) = here.into_iter().partition(|job| job.left_over);
        for job in left_over {
            let (begun, began_ms) = (Instant::now(), wall_ms());
            match alone.answer(&job.case, &job.payload) {
                Some(opinion) => outcomes.push((job, began_ms, begun.elapsed(), opinion)),
                None => together.push(job),
            }
        }
        let (begun, began_ms) = (Instant::now(), wall_ms());
        let opinions = match together.as_slice() {
            [only] => vec![model.answer(&only.case, &only.payload)],
            several => model.answer_all(several),
        };
        let each = begun.elapsed() / u32::try_from(together.len().max(1)).unwrap_or(u32::MAX);
        outcomes.extend(together.into_iter().zip(opinions).map(|(job, opinion)| (job, began_ms, each, opinion)));
        for (Job { case, payload, .. }, began_ms, took, opinion) in outcomes {
            seconds.observe(took.as_secs_f64());
            let payload_bytes = payload.len() as u64;
            let outcome = Outcome { case, payload_bytes, place, began_ms, span: None, took, opinion };
            if events.blocking_send(E::from(Box::new(outcome))).is_err() {
                // The intake has gone; what is unanswered is picked up at the next start.
                return;
            }
        }
    }
}

/// A case's sample as a bundle's model takes it.
fn tensor(bundle: &Bundle, case: &Case, payload: &[u8]) -> Result<Tensor, ModelFailure> {
    let unusable = |why: &dyn std::fmt::Display| ModelFailure::Dead(why.to_string());
    let kind = ContentType::parse(&case.content_type)
        .ok_or_else(|| unusable(&"its content type is neither a picture nor a tensor this model can read"))?;
    if case.form == PayloadForm::Embedding && !bundle.input().is_numbers() {
        return Err(unusable(&"it is an embedding, and this model takes samples as they come"));
    }
    let region = region(case).map_err(|why| unusable(&why))?;
    bundle.input().tensor(&kind, payload, region.as_ref()).map_err(|error| unusable(&error))
}

/// The part of the payload that the device judged: its view, unless that is all that came.
fn region(case: &Case) -> Result<Option<Region>, String> {
    let view = case.view.filter(|_| !matches!(case.form, PayloadForm::Crop | PayloadForm::Embedding));
    let region = view.map(Region::try_from).transpose();
    region.map_err(|error| format!("the case's `view` cannot be meant: {error}"))
}

/// What was found in a part of a picture that came alone, at its places in the whole.
fn placed(said: Output, case: &Case) -> Output {
    match case.view.filter(|_| case.form == PayloadForm::Crop) {
        Some(view) => said.within(&view),
        None => said,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    pub(super) fn case(task: &str) -> Case {
        Case { task: task.to_owned(), ..crate::store::testing::case(1) }
    }

    #[test]
    fn no_embedding_is_taken_for_a_picture_of_its_size() {
        let models = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models");
        let bundle = Bundle::open(&models.join("fashion-small")).expect("a bundle");
        let pixels = Case {
            content_type: "application/vnd.hedge.tensor; dtype=f32; shape=1,1,28,28".to_owned(),
            ..case(bundle.task())
        };
        assert!(tensor(&bundle, &pixels, &[0; 28 * 28 * 4]).is_ok());
        let embedding = Case { form: PayloadForm::Embedding, ..pixels };
        let refused = tensor(&bundle, &embedding, &[0; 28 * 28 * 4]).expect_err("it takes pictures");
        assert!(matches!(&refused, ModelFailure::Dead(why) if why.contains("embedding")), "{refused}");
    }
}
