//! Answerers elsewhere: one task of the async runtime for each call.

use std::sync::Arc;
use std::time::Instant;

use hedge_proto::ModelRef;
use prometheus_client::metrics::histogram::Histogram;
use tokio::runtime::Handle;
use tokio::sync::mpsc;

use super::call::SPAN;
use super::chat::Chat;
use super::open_inference::OpenInference;
use super::template::Template;
use super::{Job, ModelFailure, Opinion, Outcome};
use crate::answerers::{AnswererConfig, Kind};
use crate::traces::Traces;
use crate::wall_ms;

/// One kind of service.
enum Service {
    Chat(Chat),
    OpenInference(Box<OpenInference>),
    Http(Template),
}

/// What came of asking one whether it is alive.
#[derive(Debug)]
pub struct Questioned {
    pub task: String,
    pub place: usize,
    pub alive: Result<(), ModelFailure>,
}

/// An answerer elsewhere.
pub struct Remote {
    service: Service,
    model: ModelRef,
}

impl Remote {
    /// Reads what the configuration names; nothing is dialled. What is wrong names its field.
    pub fn new(config: &AnswererConfig) -> Result<Self, String> {
        let own = |name: &str| ModelRef { name: name.to_owned(), version: config.version.clone().unwrap_or_default() };
        let (service, model) = match config.kind {
            Kind::OpenInference => {
                let service = OpenInference::new(config)?;
                let model = service.model_ref();
                (Service::OpenInference(Box::new(service)), model)
            }
            Kind::Chat => (Service::Chat(Chat::new(config)?), own(config.model.as_deref().unwrap_or_default())),
            Kind::Http | Kind::Onnx | Kind::Person => {
                (Service::Http(Template::new(config)?), own(config.name.as_str()))
            }
        };
        Ok(Self { service, model })
    }

    /// The task that its bundle names.
    #[must_use]
    pub fn task(&self) -> Option<&str> {
        match &self.service {
            Service::OpenInference(service) => Some(service.task()),
            Service::Chat(_) | Service::Http(_) => None,
        }
    }

    /// Whether asking it again costs nothing that anybody pays for.
    #[must_use]
    pub fn is_watched(&self) -> bool {
        matches!(self.service, Service::OpenInference(_))
    }

    async fn answer(&self, job: &Job) -> Result<Opinion, ModelFailure> {
        let (case, payload) = (&job.case, job.payload.as_slice());
        let said = match &self.service {
            Service::Chat(service) => service.answer(case, payload).await,
            Service::OpenInference(service) => service.answer(case, payload).await,
            Service::Http(service) => service.answer(case, payload).await,
        };
        Ok(Opinion { said: said?, model: self.model.clone() })
    }

    /// Whether it is alive, warm and what it is meant to be.
    pub async fn question(&self) -> Result<(), ModelFailure> {
        match &self.service {
            Service::Chat(service) => service.question().await,
            Service::OpenInference(service) => service.question().await,
            Service::Http(service) => service.question().await,
        }
    }
}

/// The side of the intake.
pub(super) struct Calls<E> {
    pub(super) remote: Arc<Remote>,
    pub(super) events: mpsc::Sender<E>,
    pub(super) seconds: Histogram,
    pub(super) runtime: Handle,
    pub(super) traces: Traces,
    pub(super) task: String,
    pub(super) place: usize,
}

impl<E: From<Box<Outcome>> + From<Questioned> + Send + 'static> Calls<E> {
    pub(super) fn put(&self, mut job: Job) {
        let (remote, events, seconds, place) =
            (self.remote.clone(), self.events.clone(), self.seconds.clone(), self.place);
        let span = self.traces.of(&job.case.id).map(|trace| trace.begin());
        self.runtime.spawn(async move {
            let (begun, began_ms) = (Instant::now(), wall_ms());
            let opinion = match job.fetch().await {
                Ok(()) => SPAN.scope(span, remote.answer(&job)).await,
                Err(failure) => Err(failure),
            };
            let took = begun.elapsed();
            seconds.observe(took.as_secs_f64());
            let payload_bytes = job.payload.len() as u64;
            let outcome = Outcome { payload_bytes, case: job.case, place, began_ms, span, took, opinion };
            // The intake has gone; what is unanswered is picked up at the next start.
            drop(events.send(E::from(Box::new(outcome))).await);
        });
    }

    pub(super) fn question(&self) {
        let (remote, events, task, place) = (self.remote.clone(), self.events.clone(), self.task.clone(), self.place);
        self.runtime.spawn(async move {
            let alive = remote.question().await;
            drop(events.send(E::from(Questioned { task, place, alive })).await);
        });
    }
}
