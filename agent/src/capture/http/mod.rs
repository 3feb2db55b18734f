//! Serves applications on this machine: samples in, answers out.
//!
//! ```text
//! POST /v1/samples?source=&wait_ms=&ref=   one picture or tensor → its answer
//! GET  /v1/samples/{id}?wait_ms=           the last word on an id
//! GET  /v1/answers?source=                 every answer and correction, as server-sent events
//! GET  /v1/status                          live figures
//! GET  /metrics                            the same as Prometheus text
//! /v1/queue…                               the outbox, see `queue`
//! POST /v1/settings/reset                  remote settings out of force and forgotten
//! GET  /healthz                            the process is alive, and what is wrong with the device
//! /v2/…                                    Open Inference Protocol, see `open_inference`
//! ```
//! Every error is `{"error": "…"}` with a status that says whose turn it is. Bodies and waits are bounded here,
//! connections by `hedge_listen`; what a sample is worth is the intake's business.

mod body;
mod error;
mod events;
#[cfg(any(test, fuzzing))]
pub(crate) mod headers;
mod queue;
mod repeats;
mod samples;
mod settings;
#[cfg(test)]
pub(super) mod tests;

use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Json, Response};
use axum::routing::{get, post};
use hedge_listen::{Bounds, Door, Listener};
use hedge_proto::Telemetry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

use self::body::Bodies;
pub(super) use self::error::HttpError;
use self::repeats::Repeats;
use self::samples::HttpSource;
use super::{Intake, open_inference};
use crate::metrics::CONTENT_TYPE;
use crate::sample::SampleError;
use hedge_config::{Config, SourceConfig};

/// How much of an unknown name an error repeats.
const NAME_CHARS_SHOWN: usize = 64;

/// Every application of a device, and a few that hang. Most of these places can be waited in or listened at; the
/// rest serve those who want their answer at once.
const BOUNDS: Bounds = Bounds { what: "the HTTP interface", connections_max: 256, address_max: 256, files_each: 1 };

/// What every request handler may use.
pub(super) struct Api<I> {
    pub(super) intake: Arc<I>,
    pub(super) bodies: Bodies,
    sources: Sources,
    repeats: Repeats,
    listeners: Arc<Semaphore>,
    waiters: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Every path the agent answers on.
pub(super) fn routes<I: Intake>(
    config: &Config,
    sources: &Sources,
    intake: &Arc<I>,
    stop: &CancellationToken,
) -> Router {
    let api = Api {
        intake: intake.clone(),
        bodies: Bodies::new(config.http.body_bytes_max),
        sources: sources.clone(),
        repeats: Repeats::default(),
        listeners: Arc::new(Semaphore::new(events::LISTENERS_MAX)),
        waiters: Arc::new(Semaphore::new(samples::WAITERS_MAX)),
        stop: stop.clone(),
    };
    Router::new()
        .route("/v1/samples", post(samples::post::<I>))
        .route("/v1/samples/{id}", get(samples::get::<I>))
        .route("/v1/answers", get(events::answers::<I>))
        .route("/v1/status", get(status::<I>))
        .route("/metrics", get(metrics::<I>))
        .route("/healthz", get(health::<I>))
        .merge(queue::routes::<I>())
        .route("/v1/settings/reset", post(settings::reset::<I>))
        .merge(open_inference::routes::<I>())
        .fallback(async || HttpError::new(StatusCode::NOT_FOUND, "there is nothing at this path"))
        .method_not_allowed_fallback(method_not_allowed)
        .with_state(Arc::new(api))
}

/// Serves one listener until `stop`. A unix socket is for whom its file is for, and no browser reaches it; on loopback
/// every page that a browser on this machine shows would otherwise be an application.
pub(super) async fn serve(listener: Listener, routes: Router, names: Vec<String>, stop: CancellationToken) {
    let routes = match listener.address() {
        None => routes,
        Some(listen) => {
            let door = Door { listen, names, naming: "in `names` of [http]", look_only: false };
            routes.layer(middleware::from_fn_with_state(Arc::new(door), let_in))
        }
    };
    hedge_listen::serve(listener, BOUNDS, None, routes, stop).await;
}

async fn let_in(State(door): State<Arc<Door>>, request: Request, next: Next) -> Result<Response, HttpError> {
    door.lets_ask(request.headers())?;
    Ok(next.run(request).await)
}

async fn method_not_allowed() -> Response {
    HttpError::new(StatusCode::METHOD_NOT_ALLOWED, "this path does not take this method").into_response()
}

async fn status<I: Intake>(State(api): State<Arc<Api<I>>>) -> Json<Telemetry> {
    Json(api.intake.status())
}

/// Alive is alive: what is wrong is no reason to end the process.
async fn health<I: Intake>(State(api): State<Arc<Api<I>>>) -> Json<serde_json::Value> {
    let faults = api.intake.faults();
    Json(serde_json::json!({ "alive": true, "degraded": !faults.is_empty(), "faults": faults }))
}

async fn metrics<I: Intake>(State(api): State<Arc<Api<I>>>) -> impl IntoResponse {
    ([(header::CONTENT_TYPE, CONTENT_TYPE)], api.intake.metrics())
}

/// Sources of kind http, which may change while requests are served.
#[derive(Clone, Default)]
pub(super) struct Sources(Arc<Mutex<Vec<Arc<HttpSource>>>>);

impl Sources {
    /// A source that stays as it was keeps its pace.
    pub(super) fn set<'a>(&self, wanted: impl Iterator<Item = &'a SourceConfig>) {
        let mut sources = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *sources = wanted
            .map(|config| {
                let same = sources.iter().find(|source| source.is(config));
                same.cloned().unwrap_or_else(|| Arc::new(HttpSource::new(config)))
            })
            .collect();
    }

    fn all(&self) -> Vec<Arc<HttpSource>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl<I: Intake> Api<I> {
    /// The HTTP source a request names, or the only one.
    fn source(&self, name: Option<&str>) -> Result<Arc<HttpSource>, HttpError> {
        let all = self.sources.all();
        let known = || all.iter().map(|source| source.name.as_str()).collect::<Vec<_>>().join(", ");
        match (name, &all[..]) {
            (None, [only]) => Ok(only.clone()),
            // It may have one when the file is put right.
            (_, []) if self.intake.faults().contains_key("config") => {
                let fault = self.intake.faults().remove("config").unwrap_or_default();
                Err(HttpError::later(StatusCode::SERVICE_UNAVAILABLE, fault))
            }
            (None, []) => {
                Err(HttpError::new(StatusCode::NOT_FOUND, "the configuration has no source with kind = \"http\""))
            }
            (None, _) => Err(HttpError::bad_request(format!("say which source with ?source=; there are: {}", known()))),
            (Some(name), sources) => {
                sources.iter().find(|source| source.name.as_str() == name).cloned().ok_or_else(|| {
                    let name: String = name.chars().take(NAME_CHARS_SHOWN).collect();
                    SampleError::UnknownSource(name, known()).into()
                })
            }
        }
    }
}
