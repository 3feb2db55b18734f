//! Changes devices and gives them commands for whoever has the page open: the same errands as the command line's,
//! each over a short connection of its own.
//!
//! A request waits for the device's first word. Once it is let in, its errand goes on to its end also when the page
//! is closed; settings on trial are reported as such, and the records tell the page how the trial ended.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use axum::{Extension, Json};
use hedge_proto::{
    COMMAND_ID_BYTES_MAX, CommandMessage, Confirm, DOCUMENT_BYTES_MAX, DeviceId, FieldError, Topics, from_json,
};
use serde::Deserialize;
use serde_json::Value;
use tokio::sync::Semaphore;

use super::routes::{Admitted, Note};
use super::{ApiError, View};
use crate::access::Who;
use crate::fleet::board::Device;
use crate::fleet::carry_out::{Patience, carry_out};
use crate::fleet::change::{Change, Edit, Onto, draft};
use crate::fleet::errand::{Errand, Report};
use crate::fleet::operator::{ACTING, Operator, Scope};
use crate::fleet::random_id;
use crate::fleet::rollouts::Rollouts;
use crate::link::HearingError;
use crate::link::Way;
use crate::wall_ms;

/// How many errands are under way at once: people click, they do not flood.
const UNDER_WAY_MAX: usize = 8;

/// The longest request: a whole document with the words around it.
pub(super) const BODY_BYTES_MAX: usize = 2 * DOCUMENT_BYTES_MAX;

/// How long a device may take for its first word. Somebody is looking at the page.
const ANSWER_WAIT: Duration = Duration::from_secs(20);

/// The way to devices.
#[derive(Clone)]
pub struct Operating {
    way: Way,
    topics: Topics,
    places: Arc<Semaphore>,
    /// Who acts, if the page does not say.
    by: String,
    pub(super) rollouts: Arc<Rollouts>,
}

impl Operating {
    #[must_use]
    pub fn new(way: Way, topics: Topics, instance: &hedge_proto::Name, rollouts: Rollouts) -> Self {
        let (places, by) = (Arc::new(Semaphore::new(UNDER_WAY_MAX)), format!("page@{instance}"));
        Self { way, topics, places, by, rollouts: Arc::new(rollouts) }
    }

    /// A connection on which every device is heard.
    pub(super) async fn everywhere(&self) -> Result<Operator, HearingError> {
        Operator::connect(&self.way, self.topics.clone(), &Scope { device: None, topics: ACTING }).await
    }

    /// Connects, and does what follows from what the broker says of the device.
    pub(super) async fn act(
        self,
        device: DeviceId,
        errand: impl FnOnce(Option<&Device>) -> Result<Errand, ApiError> + Send + 'static,
    ) -> Result<Report, ApiError> {
        let place = self.places.clone().try_acquire_owned().map_err(|_| ApiError::TooManyErrands(UNDER_WAY_MAX))?;
        let doing = tokio::spawn(async move {
            let _place = place;
            let scope = Scope { device: Some(device.clone()), topics: ACTING };
            let mut operator = Operator::connect(&self.way, self.topics, &scope).await?;
            let known = operator.board.devices.get(&device).filter(|known| **known != Device::default());
            let done = match errand(known) {
                Ok(errand) => {
                    let patience = Patience { answer: ANSWER_WAIT, trial: None, offline: false };
                    let ended = carry_out(&mut operator, vec![errand], patience, |_| {}).await;
                    ended.into_iter().next().ok_or(ApiError::Stopping)
                }
                Err(error) => Err(error),
            };
            operator.close().await;
            done
        });
        doing.await.map_err(|_| ApiError::Stopping)?
    }

    /// Who signs: who is logged in, whatever a request says.
    pub(super) fn who(&self, who: &Who, by: Option<String>) -> Result<String, ApiError> {
        let by = who.name().map(str::to_owned).or(by);
        let by = by.filter(|by| !by.is_empty()).unwrap_or_else(|| self.by.clone());
        if by.len() <= COMMAND_ID_BYTES_MAX {
            return Ok(by);
        }
        Err(ApiError::BadRequest(format!("`by` has {} bytes; it takes {COMMAND_ID_BYTES_MAX}", by.len())))
    }
}

/// What a page wants changed: some fields, or everything.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct SettingsRequest {
    /// Fields by their dotted names; `null` restores the local value.
    edits: Option<BTreeMap<String, Value>>,
    /// The whole overlay.
    whole: Option<Value>,
    /// With `whole`: the version that was wanted when it was written, 0 for none. Another one is there now: refused.
    based_on: Option<u64>,
    /// With `edits`, where the device has not taken yet what is wanted of it: `in_force` or `wanted`.
    onto: Option<Onto>,
    confirm: Confirm,
    by: Option<String>,
}

/// `POST /api/devices/{name}/settings`
pub(super) async fn settings(
    State(view): State<View>,
    Path(name): Path<String>,
    Extension(who): Admitted,
    Extension(note): Extension<Note>,
    body: Bytes,
) -> Result<(StatusCode, Json<Report>), ApiError> {
    let device = DeviceId::new(&name)?;
    let request: SettingsRequest = read(&body)?;
    let by = view.operating.who(&who, request.by)?;
    note.say(request.edits.as_ref().map_or("all settings".to_owned(), |edits| {
        edits.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(" ")
    }));
    let change = match (request.edits, request.whole) {
        (Some(edits), None) => match fields(edits) {
            Ok(edits) => Change::Edits(edits),
            Err(errors) => return Ok(wrong(&device, errors)),
        },
        (None, Some(whole)) if whole.is_object() => Change::Whole(whole),
        (None, Some(_)) => return Err(ApiError::BadRequest("`whole` takes an object, such as {}".to_owned())),
        _ => return Err(ApiError::BadRequest("give either `edits` or `whole`".to_owned())),
    };
    let (onto, confirm, based_on, target) = (request.onto, request.confirm, request.based_on, device.clone());
    let done = view.operating.act(device.clone(), move |known| {
        let known = known.ok_or_else(|| ApiError::NoDevice(target.to_string()))?;
        let wanted = known.desired.as_ref().map_or(0, |desired| desired.version);
        if let Some(seen) = based_on.filter(|seen| *seen != wanted) {
            return Err(ApiError::Outdated { seen, wanted });
        }
        let draft = draft(known, &change, onto, confirm, &by).map_err(ApiError::WrongFields)?;
        Ok(Errand::settings(target, draft))
    });
    match done.await {
        Ok(report) => Ok((StatusCode::OK, Json(report))),
        Err(ApiError::WrongFields(errors)) => Ok(wrong(&device, errors)),
        Err(error) => Err(error),
    }
}

pub(super) fn fields(edits: BTreeMap<String, Value>) -> Result<Vec<Edit>, Vec<FieldError>> {
    let edits = edits.into_iter().map(|(key, value)| Edit::new(&key, value).map_err(|why| FieldError::new(key, why)));
    let edits = edits.collect::<Result<Vec<_>, _>>().map_err(|error| vec![error])?;
    if edits.is_empty() { Err(vec![FieldError::new("edits", "nothing is set")]) } else { Ok(edits) }
}

/// Nothing reaches the device with one wrong field.
fn wrong(device: &DeviceId, errors: Vec<FieldError>) -> (StatusCode, Json<Report>) {
    (StatusCode::UNPROCESSABLE_ENTITY, Json(Report::not_sent(device, errors)))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CommandRequest {
    command: String,
    #[serde(default)]
    args: Value,
    /// The same id again brings the same result again; without one it is random.
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    by: Option<String>,
}

/// `POST /api/devices/{name}/commands`
pub(super) async fn command(
    State(view): State<View>,
    Path(name): Path<String>,
    Extension(who): Admitted,
    Extension(note): Extension<Note>,
    body: Bytes,
) -> Result<Json<Report>, ApiError> {
    let device = DeviceId::new(&name)?;
    let CommandRequest { command, args, id, by } = read(&body)?;
    let id = id.map_or_else(random_id, Ok)?;
    let by = Some(view.operating.who(&who, by)?);
    note.say(if args.is_null() { command.clone() } else { format!("{command} {args}") });
    let message = CommandMessage { id: Some(id), command, args, issued_ms: Some(wall_ms()), by };
    let errand = Errand::command(device.clone(), message).map_err(ApiError::BadRequest)?;
    Ok(Json(view.operating.act(device, |_| Ok(errand)).await?))
}

pub(super) fn read<T: serde::de::DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    from_json(body, BODY_BYTES_MAX).map_err(|error| ApiError::BadRequest(error.to_string()))
}
