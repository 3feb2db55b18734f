//! One device's page: what is wanted of it and what is in force, and its history.

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::{Extension, Json};
use hedge_proto::{Desired, DeviceId, Reported};
use serde::Serialize;
use serde_json::Value;

use super::routes::Admitted;
use super::{ApiError, DeviceView, Shown, View};
use crate::access::Role;
use crate::fleet::board::Device;
use crate::fleet::change::base;
use crate::fleet::differ::{self, Changed, Difference};
use crate::store::{DeviceEvent, DeviceRow, SettingsRow};
use crate::wall_ms;

/// How many events of the history the page gets: more than anyone scrolls through.
const EVENTS_MAX: usize = 200;

/// Everything the page of one device shows.
#[derive(Debug, Serialize)]
pub struct DevicePage {
    pub device: DeviceView,
    pub reported: Option<Value>,
    pub reported_ms: Option<u64>,
    pub desired: Option<Value>,
    pub desired_ms: Option<u64>,
    /// What an edit builds on; absent while settings are on trial.
    pub base: Option<Value>,
    /// What is to be known about that.
    pub base_note: Option<String>,
    /// What is wanted is not taken yet: an edit must say whether it includes it.
    pub pending: bool,
    /// Where wanted and in force are not the same.
    pub differences: Vec<Difference>,
    /// Newest first.
    pub history: Vec<HistoryView>,
    /// Why devices cannot be changed from where this is read; absent if they can.
    pub look_only: Option<String>,
}

/// One event of a device's history.
#[derive(Debug, Serialize)]
pub struct HistoryView {
    #[serde(flatten)]
    pub event: DeviceEvent,
    /// For `desired`: against the one wanted before it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub changes: Option<Vec<Changed>>,
}

pub(super) async fn device(
    State(view): State<View>,
    Path(name): Path<String>,
    Extension(who): Admitted,
    headers: HeaderMap,
) -> Result<Json<DevicePage>, ApiError> {
    let device = DeviceId::new(&name)?;
    let role = (who.role < Role::Operator).then(|| {
        let name = who.name().unwrap_or_default();
        format!("{name} is {}: an operator changes devices", who.role.name())
    });
    let look_only = role.or_else(|| view.door.may_act(&headers).err().map(|refused| refused.to_string()));
    let looked = view.records.read(move |reader| {
        Ok(match reader.device(&device)? {
            Some(row) => Some((row, reader.settings(&device)?, reader.history(&device)?)),
            None => None,
        })
    });
    let (row, settings, events) = looked.await?.ok_or(ApiError::NoDevice(name))?;
    Ok(Json(page(row, settings, events, &view.shown, look_only)))
}

fn page(
    row: DeviceRow,
    settings: SettingsRow,
    events: Vec<DeviceEvent>,
    shown: &Shown,
    look_only: Option<String>,
) -> DevicePage {
    let SettingsRow { reported, reported_ms, desired, desired_ms } = settings;
    // Both were read by these types before they came on record; what does not read is told by neither.
    let known = Device {
        status: row.status.clone(),
        reported: reported.clone().and_then(|json| serde_json::from_value::<Reported>(json).ok()),
        desired: desired.clone().and_then(|json| serde_json::from_value::<Desired>(json).ok()),
        desired_unreadable: None,
    };
    let (base, base_note, pending) = match base(&known) {
        Ok(base) => (Some(base.settings), base.note, base.pending.is_some()),
        Err(reason) => (None, Some(reason), false),
    };
    DevicePage {
        base,
        base_note,
        pending,
        differences: differ::differences(&known),
        device: DeviceView::new(row, shown, wall_ms()),
        reported,
        reported_ms,
        desired,
        desired_ms,
        history: history(events),
        look_only,
    }
}

/// Adds to each wanted document what it changed. Events come newest first.
fn history(events: Vec<DeviceEvent>) -> Vec<HistoryView> {
    let settings = |event: &DeviceEvent| {
        let whole = event.document["left_out_bytes"].is_null();
        (event.kind == "desired" && whole).then(|| event.document["settings"].clone())
    };
    let wanted: Vec<Option<Value>> = events.iter().map(settings).collect();
    let is_wanted: Vec<bool> = events.iter().map(|event| event.kind == "desired").collect();
    let changes = |index: usize| {
        let after = wanted[index].as_ref()?;
        // Without an earlier one on record it is told whole.
        let before = (index + 1..is_wanted.len()).find(|earlier| is_wanted[*earlier]);
        let before = before.map_or(Some(&Value::Null), |earlier| wanted[earlier].as_ref())?;
        Some(differ::changes(before, after))
    };
    let changes: Vec<Option<Vec<Changed>>> = (0..events.len().min(EVENTS_MAX)).map(changes).collect();
    events.into_iter().zip(changes).map(|(event, changes)| HistoryView { event, changes }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn event(kind: &str, document: Value) -> DeviceEvent {
        DeviceEvent { at_ms: 0, kind: kind.to_owned(), document }
    }

    #[test]
    fn each_wanted_document_is_told_by_what_it_changed() {
        let wanted = |level: &str| event("desired", json!({"settings": {"log": {"level": level}}}));
        let long = event("desired", json!({"settings": null, "left_out_bytes": {"settings": 9000}}));
        let emptied = event("desired", json!({"emptied": true}));
        let told = history(vec![
            wanted("warn"),
            emptied,
            wanted("info"),
            long,
            wanted("debug"),
            event("reply", json!({"outcome": "done"})),
            wanted("info"),
        ]);
        let befores: Vec<Value> = told
            .iter()
            .map(|view| view.changes.as_ref().map_or(json!("-"), |changes| json!(changes.first().map(|c| &c.before))))
            .collect();
        // Against an emptied topic; itself emptied; against one too long to be kept; too long; ordinary; none; the first.
        assert_eq!(
            befores,
            [json!(null), json!("info"), json!("-"), json!("-"), json!("info"), json!("-"), json!(null)]
        );
    }
}
