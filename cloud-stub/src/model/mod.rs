//! Runs each task's model on a thread of its own, so that no model holds up the intake or another model.
//!
//! What is run, and in which order, is the intake's decision; a worker answers one job after another and
//! hands back what came out.

pub mod alone;
mod bench;
mod fixed;
mod onnx;

pub use bench::Jobs;
pub use fixed::Fixed;
pub use onnx::{Onnx, OnnxError};

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::time::{Duration, Instant};

use hedge_proto::{Case, ModelRef, Output};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::Histogram;
use serde::{Deserialize, Serialize};
use tokio::sync::mpsc;

use alone::Alone;
use bench::Taker;

/// What a model says about one case.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Opinion {
    pub said: Output,
    pub model: ModelRef,
}

/// Why a model has no answer, sorted by what the intake does next.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ModelFailure {
    /// The payload can never be answered: it cannot be decoded, or has the wrong shape.
    #[error("{0}")]
    Dead(String),
    /// This run failed; another may not.
    #[error("{0}")]
    Failed(String),
}

/// The one thing a model does here.
pub trait Answerer: Send {
    /// Which cases it answers: those of this task.
    fn task(&self) -> &str;

    fn answer(&mut self, case: &Case, payload: &[u8]) -> Result<Opinion, ModelFailure>;

    /// The arguments of `hedge-cloud` that load the same model in a process of its own.
    fn alone(&self) -> Vec<OsString>;
}

/// One case to answer.
pub struct Job {
    pub case: Case,
    pub payload: Vec<u8>,
    /// A process before this one had it when it ended: see [`alone`].
    pub left_over: bool,
}

/// What came of one job.
#[derive(Debug)]
pub struct Outcome {
    pub case: Case,
    pub payload_bytes: u64,
    pub took: Duration,
    pub opinion: Result<Opinion, ModelFailure>,
}

/// Two models were given for one task.
#[derive(Debug, thiserror::Error)]
pub enum WorkersError {
    #[error("two models answer the task `{0}`; give one model per task")]
    TaskTwice(String),
    #[error("a thread for the model of `{task}` cannot be started: {source}")]
    Thread { task: String, source: std::io::Error },
}

/// Where jobs are put, by task. Dropping them ends the workers.
pub type Workers = BTreeMap<String, Jobs>;

/// How long models take for one case, by task. Clones count together.
pub type Seconds = Family<Vec<(&'static str, String)>, Histogram, fn() -> Histogram>;

/// Upper ends of the steps in seconds: a small model on this machine to a large one elsewhere.
const BOUNDS_S: [f64; 11] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0, 5.0, 30.0];

#[must_use]
pub fn seconds() -> Seconds {
    Seconds::new_with_constructor(|| Histogram::new(BOUNDS_S))
}

/// Starts one thread per model. Outcomes go to `events`.
pub fn start<E: From<Box<Outcome>> + Send + 'static>(
    models: Vec<Box<dyn Answerer>>,
    events: &mpsc::Sender<E>,
    seconds: &Seconds,
) -> Result<Workers, WorkersError> {
    let mut workers = Workers::new();
    for model in models {
        let task = model.task().to_owned();
        let (jobs, taker) = bench::bench();
        if workers.insert(task.clone(), jobs).is_some() {
            return Err(WorkersError::TaskTwice(task));
        }
        let (events, seconds) = (events.clone(), seconds.get_or_create_owned(&vec![("task", task.clone())]));
        std::thread::Builder::new()
            .name(format!("model {task}"))
            .spawn(move || work(model, &taker, &events, &seconds))
            .map_err(|source| WorkersError::Thread { task, source })?;
    }
    Ok(workers)
}

fn work<E: From<Box<Outcome>>>(
    mut model: Box<dyn Answerer>,
    jobs: &Taker,
    events: &mpsc::Sender<E>,
    seconds: &Histogram,
) {
    let mut alone = Alone::new(model.alone());
    while let Ok(job) = jobs.take(alone::IDLE_MAX) {
        alone.rest();
        let Some(Job { case, payload, left_over }) = job else { continue };
        let begun = Instant::now();
        let opinion = if left_over { alone.answer(&case, &payload) } else { None };
        let opinion = opinion.unwrap_or_else(|| model.answer(&case, &payload));
        let took = begun.elapsed();
        seconds.observe(took.as_secs_f64());
        let outcome = Outcome { case, payload_bytes: payload.len() as u64, took, opinion };
        if events.blocking_send(E::from(Box::new(outcome))).is_err() {
            // The intake has gone; what is unanswered is picked up at the next start.
            return;
        }
    }
}
