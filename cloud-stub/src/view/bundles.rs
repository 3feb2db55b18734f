//! The bundles that devices can fetch from here, and who runs and wants each.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use serde::Serialize;

use super::{ApiError, View};
use crate::bundle::{Published, PublishedBundle, published};

/// The folder as it is, or why it cannot be read; nothing where none is served.
#[derive(Debug, Default, Serialize)]
pub(super) struct Shelf {
    #[serde(flatten)]
    list: Option<Published>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// In the order of the bundles.
    devices: Vec<Devices>,
}

#[derive(Debug, Default, Clone, Copy, Serialize)]
struct Devices {
    /// Have loaded it.
    run: usize,
    /// Are to run it and do not yet.
    want: usize,
    /// Could not take it.
    failed: usize,
}

/// `GET /api/bundles`
pub(super) async fn shelf(State(view): State<View>) -> Result<Json<Shelf>, ApiError> {
    let Some(folder) = view.shown.bundles.clone() else { return Ok(Json(Shelf::default())) };
    let read = tokio::task::spawn_blocking(move || published(&folder)).await.map_err(|_| ApiError::Stopping)?;
    let list = match read {
        Ok(list) => list,
        Err(error) => return Ok(Json(Shelf { error: Some(format!("{error:#}")), ..Shelf::default() })),
    };
    let mut counts: BTreeMap<(String, String), Devices> = BTreeMap::new();
    for device in view.records.read(|reader| reader.devices()).await? {
        for model in device.status.into_iter().flat_map(|status| status.models) {
            counts.entry((model.name, model.version)).or_default().run += 1;
        }
        let figures = device.telemetry.into_iter().flat_map(|telemetry| telemetry.model_figures.into_values());
        for wanted in figures.filter_map(|figures| figures.wanted) {
            let count = counts.entry((wanted.name.to_string(), wanted.version.to_string())).or_default();
            match wanted.state.as_str() {
                "current" => {}
                "failed" => count.failed += 1,
                _ => count.want += 1,
            }
        }
    }
    let of = |bundle: &PublishedBundle| {
        counts.get(&(bundle.name.to_string(), bundle.version.to_string())).copied().unwrap_or_default()
    };
    let devices = list.bundles.iter().map(of).collect();
    Ok(Json(Shelf { list: Some(list), error: None, devices }))
}
