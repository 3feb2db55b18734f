//! `POST /v1/samples` and `GET /v1/samples/{id}`.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use axum::body::Body;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Json, Response};
use hedge_proto::{Answer, CaseId, METADATA_BYTES_MAX, Metadata, Name};
use serde::Deserialize;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

use super::body::Received;
use super::{Api, HttpError};
use crate::capture::{Intake, Lookup, content_type};
use crate::link::LinkView;
use crate::sample::{NewSample, SampleError};
use hedge_config::SourceConfig;

/// The longest wait for a correction that is honoured; longer ones are cut to it.
const WAIT_MAX: Duration = Duration::from_secs(60);

/// Callers that wait for a correction at once: half of the connections. Further ones get the local answer at once, so
/// that there is always a way in for those who do not wait.
pub(super) const WAITERS_MAX: usize = 128;

/// How long the local answer may take. Only a stuck model needs longer.
const ANSWER_WAIT_MAX: Duration = Duration::from_secs(30);

/// The longest `ref`.
const REFERENCE_BYTES_MAX: usize = 256;

pub(super) const METADATA_HEADER: &str = "x-hedge-metadata";

/// One `[[source]]` with `kind = "http"`.
pub(super) struct HttpSource {
    pub(super) name: Name,
    interval: Option<Duration>,
    last_taken: Mutex<Option<Instant>>,
}

impl HttpSource {
    pub(super) fn new(config: &SourceConfig) -> Self {
        let interval = config.interval_ms.filter(|ms| *ms > 0).map(Duration::from_millis);
        Self { name: config.name.clone(), interval, last_taken: Mutex::new(None) }
    }

    /// Whether this is the source that `config` describes.
    pub(super) fn is(&self, config: &SourceConfig) -> bool {
        let other = Self::new(config);
        (&self.name, self.interval) == (&other.name, other.interval)
    }

    /// Whether another sample may be taken now, by the source's interval.
    fn takes_now(&self) -> bool {
        let Some(interval) = self.interval else { return true };
        let mut last_taken = self.last_taken.lock().unwrap_or_else(PoisonError::into_inner);
        let takes = last_taken.is_none_or(|last| last.elapsed() >= interval);
        if takes {
            *last_taken = Some(Instant::now());
        }
        takes
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct PostQuery {
    source: Option<String>,
    wait_ms: Option<u64>,
    #[serde(rename = "ref")]
    reference: Option<String>,
    camera: Option<String>,
}

/// Takes one sample. The response is its correction if one comes within `wait_ms` and as long as the link's state
/// allows to wait, else the local answer.
pub(super) async fn post<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    query: Result<Query<PostQuery>, QueryRejection>,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, HttpError> {
    let arrived = Instant::now();
    let Query(query) = query?;
    let source = api.source(query.source.as_deref())?;
    if let Some(reference) = query.reference.as_deref().filter(|text| text.len() > REFERENCE_BYTES_MAX) {
        let bytes = reference.len();
        return Err(HttpError::bad_request(format!("ref has {bytes} bytes; at most {REFERENCE_BYTES_MAX} are kept")));
    }
    let camera = query.camera.as_deref().map(Name::new).transpose();
    let camera = camera.map_err(|error| HttpError::bad_request(format!("camera: {error}")))?;
    let metadata = metadata(&headers)?;
    let received = api.bodies.receive(&headers, body).await?;

    let stated = headers.get(header::CONTENT_TYPE).map(|value| value.to_str().unwrap_or("not text"));
    let sample = NewSample {
        source: source.name.clone(),
        reference: query.reference.filter(|text| !text.is_empty()),
        metadata,
        urgent: query.wait_ms.is_some_and(|wait_ms| wait_ms > 0)
            && !api.intake.link().borrow().policy.wait_max.is_zero(),
        frame: camera.is_some(),
        camera,
        content_type: content_type(stated, &received.bytes)?,
        bytes: received.bytes.clone(),
        view: None,
    };
    // On its own, so that a caller who hangs up and posts again finds the answer.
    let answering = tokio::spawn(answer(api.clone(), sample, received));
    let answer = match timeout(ANSWER_WAIT_MAX, answering).await {
        Ok(Ok(answer)) => answer?,
        Ok(Err(_)) => return Err(HttpError::new(StatusCode::INTERNAL_SERVER_ERROR, "the answer was lost to a fault")),
        Err(_) => return Err(too_slow()),
    };
    let mut link = api.intake.link();
    let answer = tokio::select! {
        biased;
        answer = api.wait_for_correction(answer.clone(), arrived, query.wait_ms) => answer,
        () = wait_is_over(&mut link, arrived) => answer,
    };
    Ok(document(&answer))
}

/// Returns once the link's state allows no longer wait since `since`.
async fn wait_is_over(link: &mut watch::Receiver<LinkView>, since: Instant) {
    loop {
        let until = since + link.borrow_and_update().policy.wait_max;
        tokio::select! {
            () = sleep_until(until) => return,
            // Without the driver nothing changes any more.
            changed = link.changed() => if changed.is_err() { return },
        }
    }
}

/// The answer to one sample: the one already given if its `ref` was answered before.
async fn answer<I: Intake>(api: Arc<Api<I>>, sample: NewSample, _room: Received) -> Result<Arc<Answer>, HttpError> {
    let mut _turn = None;
    if let Some(reference) = &sample.reference {
        _turn = Some(api.repeats.turn(&sample.source, reference).await);
        if api.intake.answers().by_reference(&sample.source, reference).is_some() {
            // It is no new sample, so it does not count against the interval.
            return Ok(api.intake.answer(sample).await?);
        }
    }
    let source = api.source(Some(sample.source.as_str()))?;
    api.intake.saw(&source.name, true);
    if !source.takes_now() {
        api.intake.count_skipped(&source.name, 1);
        let every_ms = source.interval.unwrap_or_default().as_millis();
        let text = format!("source `{}` takes one sample in {every_ms} ms", source.name);
        return Err(HttpError::later(StatusCode::TOO_MANY_REQUESTS, text));
    }
    Ok(api.intake.answer(sample).await?)
}

fn document(answer: &Answer) -> Response {
    Json(answer).into_response()
}

fn too_slow() -> HttpError {
    let text = format!("the model gave no answer within {} s", ANSWER_WAIT_MAX.as_secs());
    HttpError::new(StatusCode::GATEWAY_TIMEOUT, text)
}

/// Reads `X-Hedge-Metadata: {"line": "3", …}`.
pub(super) fn metadata(headers: &HeaderMap) -> Result<Metadata, HttpError> {
    let Some(value) = headers.get(METADATA_HEADER) else { return Ok(Metadata::new()) };
    let bytes = value.as_bytes();
    if bytes.len() > METADATA_BYTES_MAX {
        return Err(SampleError::MetadataTooLarge { bytes: bytes.len(), bytes_max: METADATA_BYTES_MAX }.into());
    }
    serde_json::from_slice(bytes).map_err(|_| {
        HttpError::bad_request("X-Hedge-Metadata is not a JSON object with texts as values, such as {\"line\": \"3\"}")
    })
}

impl<I: Intake> Api<I> {
    /// The last word on `answer`: at the latest at `since + wait_ms`, when its case ends without one, or when the agent
    /// stops.
    async fn wait_for_correction(&self, answer: Arc<Answer>, since: Instant, wait_ms: Option<u64>) -> Arc<Answer> {
        let wait = Duration::from_millis(wait_ms.unwrap_or(0)).min(WAIT_MAX);
        if wait.is_zero() || !answer.provisional {
            return answer;
        }
        let Ok(_place) = self.waiters.try_acquire() else { return answer };
        let correction = tokio::select! {
            biased;
            correction = self.intake.answers().correction(&answer.id, since + wait) => correction,
            () = self.intake.ended(&answer) => None,
            () = self.stop.cancelled() => None,
        };
        correction.unwrap_or_else(|| self.intake.as_it_stands(answer))
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct GetQuery {
    wait_ms: Option<u64>,
}

/// The last word on an id. 202 means: its case waits since an earlier run, and only the correction will be known.
pub(super) async fn get<I: Intake>(
    State(api): State<Arc<Api<I>>>,
    id: Result<Path<String>, PathRejection>,
    query: Result<Query<GetQuery>, QueryRejection>,
) -> Result<Response, HttpError> {
    let arrived = Instant::now();
    let Query(query) = query?;
    let not_ours = || HttpError::new(StatusCode::NOT_FOUND, "no answer of this device has this id");
    let id: CaseId = id?.parse().map_err(|_| not_ours())?;
    match api.intake.lookup(&id).await {
        Lookup::Found(remembered) => {
            let answer = api.intake.as_it_stands(remembered.latest().clone());
            let answer = api.wait_for_correction(answer, arrived, query.wait_ms).await;
            Ok(document(&answer))
        }
        Lookup::Open => {
            let open = serde_json::json!({ "id": id, "provisional": true, "case": "stored" });
            Ok((StatusCode::ACCEPTED, Json(open)).into_response())
        }
        Lookup::Gone => Err(HttpError::new(StatusCode::GONE, "this answer was given too long ago to be remembered")),
        Lookup::NotOurs => Err(not_ours()),
    }
}
