//! Serves the dashboard and its JSON API: committed records, the link's state, and a page for each device.
//!
//! Devices are changed by `operate` alone, and only for requests that the [`Door`] lets through. Everything devices
//! have sent is untrusted here: the page writes it as text, payloads are served as pictures only when they say they
//! are, and never as anything a browser would run.

mod bundles;
mod cases;
mod delete;
mod device;
mod export;
mod live;
mod login;
mod metrics;
mod operate;
mod preview;
mod query;
mod review;
mod rollouts;
mod routes;
mod saved;
mod shape;
mod trend;

pub use device::{DevicePage, HistoryView};
pub use operate::Operating;
pub use shape::{AnswererView, CaseView, DeviceView, FiguresView, FleetView, VerdictView};

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use axum::extract::{DefaultBodyLimit, Path, State};
use axum::http::StatusCode;
use axum::http::header::{
    CACHE_CONTROL, CONTENT_DISPOSITION, CONTENT_SECURITY_POLICY, CONTENT_TYPE, HeaderName, REFERRER_POLICY,
    X_CONTENT_TYPE_OPTIONS,
};
use axum::response::{IntoResponse, Response};
use axum::{Json, Router};
use hedge_inference::ContentType;
use hedge_listen::{Door, Refused};
use hedge_proto::{CaseId, FieldError, Name, SETTINGS_SCHEMA};
use serde::Deserialize;
use tokio::sync::{Semaphore, mpsc, watch};

use self::preview::Previews;
use self::query::Query;
use self::routes::{ANYONE, OPERATOR, REVIEWER, Routes, VIEWER};
use crate::access::{Access, NotIn};
use crate::fleet::rollouts::NotNow;
use crate::fleet::select::Where;
use crate::intake::{AnswererNow, Event, NotReviewed, Taking};
use crate::link::{HearingError, LinkNow};
use crate::model::Seconds;
use crate::presence::Heard;
use crate::store::{Audit, AuditRow, DeviceRow, Reader, RecordsAt, StoreError};
use crate::traces::Traces;
use crate::wall_ms;

/// The most cases one answer of the API lists.
pub const CASES_LIMIT_MAX: u32 = 500;

/// How many cases are listed when nothing else is asked for: what the page shows.
const CASES_LIMIT: u32 = 24;

/// The page loads nothing from elsewhere and cannot be framed.
const PAGE_POLICY: &str = "default-src 'none'; img-src 'self'; media-src 'self'; style-src 'self'; script-src 'self'; \
     connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

/// What the page says about this instance.
#[derive(Clone)]
pub struct Shown {
    pub instance: Name,
    pub broker: String,
    /// Tasks that have a model here.
    pub tasks: Vec<String>,
    /// What may be said in each of them, as far as that is known.
    pub labels: BTreeMap<String, Vec<String>>,
    pub link: watch::Receiver<LinkNow>,
    pub heard: Heard,
    pub model_seconds: Seconds,
    pub traces: Traces,
    pub answerers: watch::Receiver<Vec<AnswererNow>>,
    pub taking: watch::Receiver<Taking>,
    /// The way of a person's word into the records.
    pub events: mpsc::Sender<Event>,
    /// The folder of published bundles that devices fetch from here.
    pub bundles: Option<PathBuf>,
}

/// What every request sees.
#[derive(Clone)]
struct View {
    records: Records,
    shown: Arc<Shown>,
    live: live::Live,
    previews: Arc<Previews>,
    exports: Arc<Semaphore>,
    records_at: RecordsAt,
    audit: Audit,
    started: Instant,
    door: Arc<Door>,
    access: Arc<Access>,
    operating: Operating,
}

/// The page and its API. Routes:
///
/// | path | answer |
/// |---|---|
/// | `/` | the page |
/// | `/devices/{name}` | the page of one device |
/// | `/api/devices?where=link=offline&order=trouble&offset=0&limit=60` | all devices, or some, by name or with what is wrong first: a list of [`DeviceView`]; the header `Hedge-Count` says how many there are |
/// | `/api/devices/{name}` | one [`DevicePage`] |
/// | `/api/devices/{name}/trend?span=day` | what became of it in the last `hour`, `day`, `week` or `month`, in buckets of time |
/// | `/api/devices/{name}/saved?span=day&call_price=0.002` | what hybrid saved against sending everything and nothing, with the assumptions `call_price`, `gb_price`, `sample_bytes` and `cloud_ms` |
/// | `/api/devices/{name}/settings` | POST: changes its settings; a [`Report`](crate::fleet::errand::Report) |
/// | `/api/devices/{name}/commands` | POST: gives it a command; likewise |
/// | `/api/saved?span=day` | the same for the whole fleet |
/// | `/fleet` | the page of who runs what, of what hybrid saved, and of changes in stages |
/// | `/api/rollouts` | the changes in stages that were begun on the page, newest first: a list of [`Rollout`](crate::fleet::rollouts::Rollout) |
/// | `/api/rollouts` | POST [`Wanted`](crate::fleet::rollouts::Wanted): how many devices that would change, and in which stages; with `"devices": N` of that answer, begins |
/// | `/api/rollouts/{id}/stop`, `/api/rollouts/{id}/resume` | POST: stops it; goes on |
/// | `/api/runs` | how many devices run each version of each bundle, and of the agent |
/// | `/api/bundles` | the bundles that devices can fetch from here: who signed each, and how many devices run and want it |
/// | `/api/settings-schema` | what can be set, as JSON Schema |
/// | `/cases`, `/cases/{id}` | the page of cases, and of one |
/// | `/api/cases?limit=24&device=D` | the latest cases, newest first, or those that `cases` says how to find: a list of [`CaseView`]; the header `Hedge-Next` names the one behind which there may be more |
/// | `/api/cases/{id}` | one [`CaseView`] |
/// | `/api/cases/{id}/words` | all that was ever said of it, the first word first: a list of [`VerdictView`] |
/// | `/api/cases/{id}/payload` | the sample itself, while it is kept |
/// | `/api/cases/{id}/preview` | its picture made small for lists, made once |
/// | `/api/delete?device=D`, `/api/cases/{id}/delete` | POST: how many cases that would delete, found as in `/api/cases`; with `{"cases": N, "until_ms": T}` of that answer, deletes these N and has their devices forget them |
/// | `/api/export?format=jsonl` | a training set as a tar archive: see [`crate::export`]; `format` is `jsonl`, `coco` or `csv`, and cases are found as in `/api/cases` |
/// | `/api/labels?task=T` | what may be said in a task, as far as its answerers tell |
/// | `/api/figures` | [`FiguresView`] |
/// | `/api/answerers` | how each answerer is: a list of [`AnswererView`] |
/// | `/api/review?limit=24` | the cases that wait for a person, oldest first: a list of [`CaseView`] |
/// | `/api/review/{id}` | POST `{"label": "…"}` or `{"found": […]}`, `by`, and `seen`, the revision that is corrected: a person's word on one of them, or on a case that is closed |
/// | `/login`, `/logout` | the page that asks who is there; POST: the form, and the end of a session |
/// | `/api/me` | who is logged in, and their role |
/// | `/api/audit?limit=500&before=SEQ` | who did what, newest first: a list of [`AuditRow`] |
/// | `/events` | server-sent events `figures`, `devices` and `cases` with the JSON of the path above, and later `changed_devices` and `changed_cases`: those that are new or not as they were |
/// | `/metrics` | figures as Prometheus text |
/// | `/healthz` | `ok`, or 503 while the broker is not reached or nothing can be recorded |
///
/// Errors are `{"error": "…"}` with a fitting status.
pub fn router(
    records: &RecordsAt,
    shown: Shown,
    door: Door,
    access: Access,
    operating: Operating,
    commits: watch::Receiver<u64>,
) -> Result<Router, StoreError> {
    let view = view(records, shown, door, access, operating, commits)?;
    Ok(table(view).finish().layer(DefaultBodyLimit::max(operate::BODY_BYTES_MAX)))
}

fn view(
    records: &RecordsAt,
    shown: Shown,
    door: Door,
    access: Access,
    operating: Operating,
    commits: watch::Receiver<u64>,
) -> Result<View, StoreError> {
    let records_at = records.clone();
    let audit = Audit::open(records)?;
    let records = Records(Arc::new(Mutex::new(Reader::open(records)?)));
    let shown = Arc::new(shown);
    let live = live::start(records.clone(), shown.clone(), commits);
    let (door, access) = (Arc::new(door), Arc::new(access));
    let previews = Arc::default();
    let exports = Arc::new(Semaphore::new(export::EXPORTS_MAX));
    let started = Instant::now();
    Ok(View { records, shown, live, previews, exports, records_at, audit, started, door, access, operating })
}

/// All that is answered, and which role it needs.
fn table(view: View) -> Routes {
    let schema = || async { ([(CONTENT_TYPE, "application/schema+json")], SETTINGS_SCHEMA) };
    files(Routes::new(view))
        .get(VIEWER, "/api/me", login::me)
        .get(VIEWER, "/api/devices", devices)
        .get(VIEWER, "/api/devices/{name}", device::device)
        .get(VIEWER, "/api/devices/{name}/trend", trend::trend)
        .get(VIEWER, "/api/devices/{name}/saved", saved::of_device)
        .get(VIEWER, "/api/saved", saved::of_fleet)
        .post(OPERATOR, "settings", "/api/devices/{name}/settings", operate::settings)
        .post(OPERATOR, "command", "/api/devices/{name}/commands", operate::command)
        .get(VIEWER, "/api/rollouts", rollouts::list)
        .post(OPERATOR, "rollout", "/api/rollouts", rollouts::begin)
        .post(OPERATOR, "stop", "/api/rollouts/{id}/stop", rollouts::stop)
        .post(OPERATOR, "resume", "/api/rollouts/{id}/resume", rollouts::resume)
        .get(VIEWER, "/api/runs", rollouts::runs)
        .get(VIEWER, "/api/bundles", bundles::shelf)
        .get(VIEWER, "/api/settings-schema", schema)
        .get(VIEWER, "/api/cases", cases::list)
        .get(VIEWER, "/api/cases/{id}", cases::one)
        .get(VIEWER, "/api/cases/{id}/words", cases::words)
        .get(VIEWER, "/api/cases/{id}/payload", payload)
        .get(VIEWER, "/api/cases/{id}/preview", preview::get)
        .post(OPERATOR, "delete", "/api/cases/{id}/delete", delete::one)
        .post(OPERATOR, "delete", "/api/delete", delete::found)
        .get(VIEWER, "/api/labels", cases::labels)
        .noted(REVIEWER, "export", "/api/export", export::archive)
        .get(VIEWER, "/api/figures", figures)
        .get(VIEWER, "/api/answerers", answerers)
        .get(VIEWER, "/api/review", review::waiting)
        .post(REVIEWER, "review", "/api/review/{id}", review::answer)
        .get(OPERATOR, "/api/audit", audit)
        .get(VIEWER, "/events", live::events)
        .get(ANYONE, "/login", login::page)
        .post(ANYONE, None, "/login", login::log_in)
        .post(VIEWER, None, "/logout", login::log_out)
        .watched(VIEWER, "/metrics", metrics::metrics)
        .watched(ANYONE, "/healthz", healthz)
}

const HTML: &str = "text/html; charset=utf-8";

fn files(routes: Routes) -> Routes {
    const CSS: &str = "text/css; charset=utf-8";
    const SCRIPT: &str = "text/javascript; charset=utf-8";
    routes
        .get(VIEWER, "/", || async { file(HTML, include_str!("page.html")) })
        .get(ANYONE, "/icon.svg", || async { file("image/svg+xml", include_str!("icon.svg")) })
        .get(ANYONE, "/page.css", || async { file(CSS, include_str!("page.css")) })
        .get(ANYONE, "/login.css", || async { file(CSS, include_str!("login.css")) })
        .get(VIEWER, "/page.js", || async { file(SCRIPT, include_str!("page.js")) })
        .get(VIEWER, "/parts.js", || async { file(SCRIPT, include_str!("parts.js")) })
        .get(VIEWER, "/who.js", || async { file(SCRIPT, include_str!("who.js")) })
        .get(VIEWER, "/cases", || async { file(HTML, include_str!("cases.html")) })
        .get(VIEWER, "/cases/{id}", || async { file(HTML, include_str!("case.html")) })
        .get(VIEWER, "/cases.css", || async { file(CSS, include_str!("cases.css")) })
        .get(VIEWER, "/case-parts.js", || async { file(SCRIPT, include_str!("case-parts.js")) })
        .get(VIEWER, "/cases.js", || async { file(SCRIPT, include_str!("cases.js")) })
        .get(VIEWER, "/case.js", || async { file(SCRIPT, include_str!("case.js")) })
        .get(VIEWER, "/sought.js", || async { file(SCRIPT, include_str!("sought.js")) })
        .get(VIEWER, "/boxes.js", || async { file(SCRIPT, include_str!("boxes.js")) })
        .get(VIEWER, "/devices/{name}", || async { file(HTML, include_str!("device.html")) })
        .get(VIEWER, "/device.css", || async { file(CSS, include_str!("device.css")) })
        .get(VIEWER, "/device.js", || async { file(SCRIPT, include_str!("device.js")) })
        .get(VIEWER, "/trend.js", || async { file(SCRIPT, include_str!("trend.js")) })
        .get(VIEWER, "/charts.js", || async { file(SCRIPT, include_str!("charts.js")) })
        .get(VIEWER, "/bundles.js", || async { file(SCRIPT, include_str!("bundles.js")) })
        .get(VIEWER, "/saved.js", || async { file(SCRIPT, include_str!("saved.js")) })
        .get(VIEWER, "/editor.js", || async { file(SCRIPT, include_str!("editor.js")) })
        .get(VIEWER, "/fleet", || async { file(HTML, include_str!("fleet.html")) })
        .get(VIEWER, "/fleet.css", || async { file(CSS, include_str!("fleet.css")) })
        .get(VIEWER, "/fleet.js", || async { file(SCRIPT, include_str!("fleet.js")) })
        .get(VIEWER, "/delete.js", || async { file(SCRIPT, include_str!("delete.js")) })
        .get(VIEWER, "/commands.js", || async { file(SCRIPT, include_str!("commands.js")) })
}

/// The records, read off the async workers.
#[derive(Clone)]
struct Records(Arc<Mutex<Reader>>);

impl Records {
    async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&Reader) -> Result<T, StoreError> + Send + 'static,
    ) -> Result<T, ApiError> {
        let reader = self.0.clone();
        let looked = tokio::task::spawn_blocking(move || look(&reader.lock().unwrap_or_else(PoisonError::into_inner)));
        looked.await.map_err(|_| ApiError::Stopping)?.map_err(ApiError::Records)
    }
}

/// Why a request has no answer.
#[derive(Debug, thiserror::Error)]
enum ApiError {
    #[error(transparent)]
    Refused(#[from] Refused),
    #[error(transparent)]
    NotIn(#[from] NotIn),
    #[error("nothing was done, because it cannot be put on record who did it: {0}")]
    NotNoted(StoreError),
    #[error("nothing is known of a device `{0}`")]
    NoDevice(String),
    #[error("{0}")]
    BadRequest(String),
    #[error("some fields are wrong")]
    WrongFields(Vec<FieldError>),
    #[error("version {wanted} is wanted by now, and this was written on version {seen}; reload the page")]
    Outdated { seen: u64, wanted: u64 },
    #[error("{0} changes and commands are under way already; try again in a moment")]
    TooManyErrands(usize),
    #[error(transparent)]
    NoBroker(#[from] HearingError),
    #[error("the system gives no random numbers: {0}")]
    NoChance(#[from] getrandom::Error),
    #[error("there is no case `{0}` on record")]
    NoCase(String),
    #[error("there are {now} of them now, not {seen}; look again")]
    OtherNumber { seen: usize, now: usize },
    #[error(transparent)]
    NotNow(#[from] NotNow),
    #[error("the payload of `{0}` is no longer kept")]
    PayloadGone(CaseId),
    #[error("what `{0}` sent is no picture")]
    NoPicture(CaseId),
    #[error("{0}")]
    BadName(#[from] hedge_proto::InvalidId),
    #[error("{0} training sets are being written already; try again when one is done")]
    TooManyExports(usize),
    #[error("{0} pages are being served live already; close one")]
    TooManyPages(usize),
    #[error("you have {0} pages open that are served live; close one")]
    TooManyOfYours(usize),
    #[error(transparent)]
    NotReviewed(#[from] NotReviewed),
    #[error(transparent)]
    Records(StoreError),
    #[error(transparent)]
    Export(crate::export::ExportError),
    #[error("this program is stopping")]
    Stopping,
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        let status = match &self {
            Self::Refused(Refused::Name { .. }) => StatusCode::MISDIRECTED_REQUEST,
            Self::Refused(_) | Self::NotIn(NotIn::Role { .. } | NotIn::Stranger(_) | NotIn::Unclear) => {
                StatusCode::FORBIDDEN
            }
            Self::NotIn(NotIn::Nobody | NotIn::Token) => StatusCode::UNAUTHORIZED,
            Self::NotNoted(error) => {
                tracing::error!("who did what cannot be put on record: {error}");
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::NoCase(_) | Self::NoDevice(_) | Self::NotNow(NotNow::Unknown(_)) | Self::NoPicture(_) => {
                StatusCode::NOT_FOUND
            }
            Self::PayloadGone(_) => StatusCode::GONE,
            Self::BadName(_) | Self::BadRequest(_) => StatusCode::BAD_REQUEST,
            Self::WrongFields(_) | Self::NotReviewed(NotReviewed::NoLabel { .. } | NotReviewed::Unread(_)) => {
                StatusCode::UNPROCESSABLE_ENTITY
            }
            Self::OtherNumber { .. }
            | Self::NotNow(_)
            | Self::Outdated { .. }
            | Self::NotReviewed(NotReviewed::NotWaiting | NotReviewed::Outdated { .. }) => StatusCode::CONFLICT,
            Self::NoBroker(_) => StatusCode::BAD_GATEWAY,
            Self::NotReviewed(NotReviewed::NotRecorded)
            | Self::TooManyPages(_)
            | Self::TooManyOfYours(_)
            | Self::TooManyExports(_)
            | Self::TooManyErrands(_)
            | Self::NoChance(_)
            | Self::Export(_)
            | Self::Stopping => StatusCode::SERVICE_UNAVAILABLE,
            Self::Records(error) => {
                tracing::error!("{error}");
                StatusCode::INTERNAL_SERVER_ERROR
            }
        };
        let mut said = serde_json::json!({ "error": self.to_string() });
        if let Self::WrongFields(errors) = &self {
            said["errors"] = serde_json::json!(errors);
        }
        (status, Json(said)).into_response()
    }
}

fn file(content_type: &'static str, text: impl Into<axum::body::Body>) -> Response {
    let headers = [
        (CONTENT_TYPE, content_type),
        (CACHE_CONTROL, "no-cache"),
        (CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (REFERRER_POLICY, "no-referrer"),
    ];
    (headers, text.into()).into_response()
}

/// Which devices are listed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Listed {
    /// Conditions as `hedge-cloud device --where` takes them.
    #[serde(rename = "where")]
    conditions: Option<String>,
    /// `trouble`: what is wrong comes first. By name otherwise.
    order: Option<String>,
    offset: Option<usize>,
    limit: Option<usize>,
}

/// How many there are in all, whatever part of them is listed.
const COUNT: HeaderName = HeaderName::from_static("hedge-count");

async fn devices(
    State(view): State<View>,
    Query(listed): Query<Listed>,
) -> Result<([(HeaderName, String); 1], Json<Vec<DeviceView>>), ApiError> {
    let conditions: Where =
        listed.conditions.as_deref().map_or(Ok(Where::default()), str::parse).map_err(ApiError::BadRequest)?;
    let by_trouble = match listed.order.as_deref() {
        None | Some("name") => false,
        Some("trouble") => true,
        Some(other) => return Err(ApiError::BadRequest(format!("order is name or trouble, not `{other}`"))),
    };
    let shown = view.shown.clone();
    let mut devices = view.records.read(move |reader| Ok(all_devices(reader.devices()?, &shown))).await?;
    devices.retain(|device| conditions.holds_of(&device.facts()));
    if by_trouble {
        devices.sort_by_key(|device| device.trouble);
    }
    let count = devices.len().to_string();
    let part = devices.into_iter().skip(listed.offset.unwrap_or(0)).take(listed.limit.unwrap_or(usize::MAX));
    Ok(([(COUNT, count)], Json(part.collect())))
}

/// By name.
fn all_devices(rows: Vec<DeviceRow>, shown: &Shown) -> Vec<DeviceView> {
    let now_ms = wall_ms();
    rows.into_iter().map(|row| DeviceView::new(row, shown, now_ms)).collect()
}

async fn payload(State(view): State<View>, Path(id): Path<String>) -> Result<Response, ApiError> {
    let (content_type, bytes) = sample(&view, &id.parse()?).await?;
    let (content_type, disposition) = match shape::picture_type(&content_type) {
        Some(picture) => (picture, "inline"),
        // The page plays it.
        None if ContentType::parse(&content_type) == Some(ContentType::Wav) => ("audio/wav", "inline"),
        None => ("application/octet-stream", "attachment"),
    };
    Ok((sample_headers(content_type, disposition), bytes).into_response())
}

/// What came of a case's sample, and its type.
async fn sample(view: &View, id: &CaseId) -> Result<(String, Vec<u8>), ApiError> {
    let looked_up = id.clone();
    let found = view.records.read(move |reader| Ok((reader.payload(&looked_up)?, reader.case(&looked_up)?))).await?;
    match found {
        (Some(found), _) => Ok(found),
        (None, Some(_)) => Err(ApiError::PayloadGone(id.clone())),
        (None, None) => Err(ApiError::NoCase(id.to_string())),
    }
}

fn sample_headers<'a>(content_type: &'a str, disposition: &'a str) -> [(HeaderName, &'a str); 5] {
    [
        (CONTENT_TYPE, content_type),
        (CONTENT_DISPOSITION, disposition),
        (CONTENT_SECURITY_POLICY, "default-src 'none'; sandbox"),
        (X_CONTENT_TYPE_OPTIONS, "nosniff"),
        // A payload never changes under its id.
        (CACHE_CONTROL, "private, max-age=86400, immutable"),
    ]
}

async fn figures(State(view): State<View>) -> Result<Json<FiguresView>, ApiError> {
    let (totals, devices) = view.records.read(|reader| Ok((reader.totals()?, reader.devices()?))).await?;
    let fleet = FleetView::count(&all_devices(devices, &view.shown));
    Ok(Json(FiguresView::new(totals, fleet, &view.shown, wall_ms())))
}

async fn answerers(State(view): State<View>) -> Json<Vec<AnswererView>> {
    Json(view.shown.answerers.borrow().iter().map(AnswererView::from).collect())
}

/// Which acts are listed.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Acts {
    before: Option<u64>,
    limit: Option<u32>,
}

async fn audit(
    State(view): State<View>,
    Query(Acts { before, limit }): Query<Acts>,
) -> Result<Json<Vec<AuditRow>>, ApiError> {
    let limit = limit.unwrap_or(CASES_LIMIT_MAX).min(CASES_LIMIT_MAX);
    Ok(Json(view.records.read(move |reader| reader.audit(before, limit)).await?))
}

async fn healthz(State(view): State<View>) -> (StatusCode, String) {
    match &*view.shown.link.borrow() {
        LinkNow::Connected { .. } if *view.shown.taking.borrow() == Taking::Unhealthy => {
            (StatusCode::SERVICE_UNAVAILABLE, "nothing can be recorded now; its log says why\n".to_owned())
        }
        LinkNow::Connected { .. } => (StatusCode::OK, "ok\n".to_owned()),
        LinkNow::Connecting => (StatusCode::SERVICE_UNAVAILABLE, "connecting to the broker\n".to_owned()),
        LinkNow::Broken(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("no broker: {reason}\n")),
    }
}
