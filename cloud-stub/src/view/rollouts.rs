//! Changes of many devices in stages, begun, watched and stopped on the page: the same as `hedge-cloud device set --stages`.
//!
//! Without a number of devices nothing is begun; it is told how many there are. With the number, exactly these are changed.
//! A change goes on also when the page is closed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{Path, State};
use axum::response::{IntoResponse as _, Response};
use axum::{Extension, Json};
use hedge_proto::{DeviceId, ModelRef};
use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use super::operate::{fields, read};
use super::routes::{Admitted, Note};
use super::{ApiError, View};
use crate::fleet::board::Device;
use crate::fleet::carry_out::Patience;
use crate::fleet::change::{Change, draft};
use crate::fleet::operator::Operator;
use crate::fleet::random_id;
use crate::fleet::rollout::{Plan, Step, in_stages};
use crate::fleet::rollouts::{Rollout, Rollouts, Wanted, why};
use crate::fleet::select::Where;
use crate::fleet::stages::Stages;
use crate::link::HearingError;
use crate::wall_ms;

/// How long a device may take for its first word, and for the end of a trial: as on the command line.
const PATIENCE: Patience =
    Patience { answer: Duration::from_secs(30), trial: Some(Duration::from_secs(240)), offline: false };

/// The longest time a stage is watched, or a bundle waited for.
const WAIT_S_MAX: u32 = 7 * 86_400;

/// What a page asks for.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Asked {
    wanted: Wanted,
    /// How many devices it was told that there are; absent: only look.
    devices: Option<usize>,
    by: Option<String>,
}

/// What would be done.
#[derive(Debug, Serialize)]
struct Looked {
    devices: usize,
    stages: Vec<usize>,
    /// They are changed last, and take it when they connect.
    away: usize,
}

/// What of a request is understood.
struct Meant {
    wanted: Wanted,
    conditions: Where,
    stages: Stages,
    plan: Plan,
}

impl Meant {
    fn new(wanted: Wanted, by: String) -> Result<Self, ApiError> {
        let conditions = match wanted.conditions.trim() {
            "" => Ok(Where::default()),
            text => text.parse(),
        };
        let conditions = conditions.map_err(ApiError::BadRequest)?;
        let stages = wanted.stages.parse().map_err(ApiError::BadRequest)?;
        for (name, seconds) in [("settle_s", wanted.settle_s), ("within_s", wanted.within_s)] {
            if seconds > WAIT_S_MAX {
                return Err(ApiError::BadRequest(format!("{name} is at most {WAIT_S_MAX}, a week")));
            }
        }
        let change = Change::Edits(fields(wanted.edits.clone()).map_err(ApiError::WrongFields)?);
        let (settle, within) =
            (Duration::from_secs(wanted.settle_s.into()), Duration::from_secs(wanted.within_s.into()));
        let (onto, confirm) = (wanted.onto, wanted.confirm);
        let plan = Plan { change, onto, confirm, by, settle, within, patience: PATIENCE };
        // A field that no device takes is named before anything is dialled.
        draft(&Device::default(), &plan.change, None, confirm, &plan.by).map_err(ApiError::WrongFields)?;
        Ok(Self { wanted, conditions, stages, plan })
    }

    fn stages(&self, operator: &Operator) -> Vec<Vec<DeviceId>> {
        let known = operator.board.devices.iter().filter(|(_, device)| **device != Device::default());
        let meant = known.filter(|(name, device)| self.conditions.holds(name, device));
        self.stages.of(&meant.map(|(name, device)| (name.clone(), device.clone())).collect())
    }
}

/// `POST /api/rollouts`
pub(super) async fn begin(
    State(view): State<View>,
    Extension(who): Admitted,
    Extension(note): Extension<Note>,
    body: Bytes,
) -> Result<Response, ApiError> {
    let Asked { wanted, devices, by } = read(&body)?;
    let by = view.operating.who(&who, by)?;
    note.say(in_words(&wanted));
    let meant = Meant::new(wanted, by)?;
    let operator = view.operating.everywhere().await?;
    let stages = meant.stages(&operator);
    let now: usize = stages.iter().map(Vec::len).sum();
    if now == 0 {
        operator.close().await;
        return Err(ApiError::BadRequest("no device at the broker is like that".to_owned()));
    }
    let Some(seen) = devices else {
        let away = stages.iter().flatten().filter(|name| operator.board.devices[*name].is_offline()).count();
        operator.close().await;
        return Ok(Json(Looked { devices: now, stages: stages.iter().map(Vec::len).collect(), away }).into_response());
    };
    if seen != now {
        operator.close().await;
        return Err(ApiError::OtherNumber { seen, now });
    }
    let id = random_id()?;
    note.say(format!("{id}: {} on {now} devices", in_words(&meant.wanted)));
    let rollouts = view.operating.rollouts.clone();
    let stop = rollouts.begin(id.clone(), meant.wanted.clone(), meant.plan.by.clone(), wall_ms())?;
    let shown = rollouts.find(&id)?;
    tokio::spawn(run(rollouts, id, meant, stop, async move { Ok(operator) }));
    Ok(Json(shown).into_response())
}

/// `POST /api/rollouts/{id}/stop`
pub(super) async fn stop(
    State(view): State<View>,
    Path(id): Path<String>,
    Extension(who): Admitted,
) -> Result<Json<Rollout>, ApiError> {
    view.operating.rollouts.stop(&id, view.operating.who(&who, None)?)?;
    Ok(Json(view.operating.rollouts.find(&id)?))
}

/// `POST /api/rollouts/{id}/resume`
pub(super) async fn resume(
    State(view): State<View>,
    Path(id): Path<String>,
    Extension(who): Admitted,
) -> Result<Json<Rollout>, ApiError> {
    let by = view.operating.who(&who, None)?;
    let rollouts = view.operating.rollouts.clone();
    // Understood once, but perhaps by an earlier version: what is not any more is no change under way.
    let meant = Meant::new(rollouts.find(&id)?.wanted, by.clone())?;
    let stop = rollouts.resume(&id, by, wall_ms())?;
    let (shown, operating) = (rollouts.find(&id)?, view.operating.clone());
    tokio::spawn(async move { run(rollouts, id, meant, stop, operating.everywhere()).await });
    Ok(Json(shown))
}

/// `GET /api/rollouts`
pub(super) async fn list(State(view): State<View>) -> Json<Vec<Rollout>> {
    Json(view.operating.rollouts.list())
}

fn in_words(wanted: &Wanted) -> String {
    let edits: Vec<String> = wanted.edits.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let on = if wanted.conditions.is_empty() { "all" } else { &wanted.conditions };
    format!("{} in stages {} where {on}", edits.join(" "), wanted.stages)
}

async fn run(
    rollouts: Arc<Rollouts>,
    id: String,
    meant: Meant,
    stop: oneshot::Receiver<String>,
    operator: impl Future<Output = Result<Operator, HearingError>>,
) {
    save(&rollouts).await;
    let ended = async {
        let mut operator = operator.await?;
        let stages = meant.stages(&operator);
        rollouts.note(&id, |one| one.devices = stages.iter().map(Vec::len).collect());
        let (told, shown) = (rollouts.clone(), id.clone());
        let doing = in_stages(&mut operator, stages, &meant.plan, |step| {
            told.note(&shown, |one| one.take(&step));
            if matches!(step, Step::Stage { .. }) {
                let told = told.clone();
                tokio::spawn(async move { save(&told).await });
            }
        });
        let ended = tokio::select! {
            ended = doing => ended.map(|stopped| stopped.as_ref().map(why)),
            Ok(who) = stop => Ok(Some(format!("{who} has stopped it; what was sent stays"))),
        };
        operator.close().await;
        ended
    };
    let why = ended.await.unwrap_or_else(|error| Some(error.to_string()));
    rollouts.note(&id, |one| one.end(why, wall_ms()));
    save(&rollouts).await;
}

async fn save(rollouts: &Arc<Rollouts>) {
    let rollouts = rollouts.clone();
    let written = tokio::task::spawn_blocking(move || rollouts.write()).await;
    if let Err(error) = written.map_err(std::io::Error::other).flatten() {
        tracing::error!("how far changes in stages are is not on disk: {error}");
    }
}

/// Who runs what.
#[derive(Debug, Serialize)]
pub(super) struct Runs {
    /// Bundles by name and version, and how many devices have loaded each.
    models: Vec<Run>,
    /// Versions of the agent.
    agents: Vec<Run>,
    /// Devices that have said neither.
    silent: usize,
}

#[derive(Debug, Serialize)]
struct Run {
    name: String,
    version: String,
    devices: usize,
}

/// The most that are told: a fleet that runs more has no picture.
const RUNS_MAX: usize = 200;

/// `GET /api/runs`
pub(super) async fn runs(State(view): State<View>) -> Result<Json<Runs>, ApiError> {
    let devices = view.records.read(|reader| reader.versions()).await?;
    let (mut models, mut agents, mut silent) = (BTreeMap::new(), BTreeMap::new(), 0);
    for (version, loaded) in devices {
        silent += usize::from(version.is_none() && loaded.is_empty());
        for ModelRef { name, version } in loaded {
            *models.entry((name, version)).or_insert(0) += 1;
        }
        if let Some(version) = version {
            *agents.entry(("hedge-agent".to_owned(), version)).or_insert(0) += 1;
        }
    }
    let list = |all: BTreeMap<(String, String), usize>| {
        all.into_iter().take(RUNS_MAX).map(|((name, version), devices)| Run { name, version, devices }).collect()
    };
    Ok(Json(Runs { models: list(models), agents: list(agents), silent }))
}
