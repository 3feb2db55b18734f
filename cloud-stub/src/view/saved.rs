//! `GET /api/devices/{name}/saved?span=day&call_price=0.002`: what hybrid saved, and what that rests on. `GET /api/saved`: for
//! the whole fleet.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Path, State};
use hedge_proto::DeviceId;
use serde::{Deserialize, Serialize};

use super::query::Query;
use super::trend::Span;
use super::{ApiError, View};
use crate::store::{CaseRow, Sought};
use crate::trend::{Assumptions, Bucket, Given, Saved, Shown, saved, series};
use crate::wall_ms;

/// How many of its latest cases tell how long the cloud takes.
const LOOKED_AT: u32 = 24;

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    span: Span,
    call_price: Option<f64>,
    gb_price: Option<f64>,
    sample_bytes: Option<f64>,
    cloud_ms: Option<f64>,
}

impl Asked {
    /// What is given, once it is amounts.
    fn given(&self) -> Result<Given, ApiError> {
        let Self { call_price, gb_price, sample_bytes, cloud_ms, .. } = *self;
        let given = Given { call_price, gb_price, sample_bytes, cloud_ms };
        given.check().map_err(ApiError::BadRequest)?;
        Ok(given)
    }
}

#[derive(Serialize)]
pub(super) struct SavedView {
    saved: Saved,
    assumed: Assumptions,
    /// Whether each of them is `given`, `measured` or `assumed`.
    known: BTreeMap<&'static str, &'static str>,
}

pub(super) async fn of_device(
    State(view): State<View>,
    Path(name): Path<String>,
    Query(asked): Query<Asked>,
) -> Result<Json<SavedView>, ApiError> {
    let device = DeviceId::new(&name)?;
    let given = asked.given()?;
    let (since_s, bucket_s) = asked.span.since(wall_ms());
    let looked = view.records.read(move |reader| {
        let sought = Sought { device: Some(device.clone()), ..Sought::default() };
        Ok(match reader.device(&device)? {
            Some(_) => Some((reader.trend(&device, since_s)?, reader.find(&sought, LOOKED_AT)?.unwrap_or_default())),
            None => None,
        })
    });
    let (pages, cases) = looked.await?.ok_or(ApiError::NoDevice(name))?;
    Ok(Json(SavedView::new(given, series(pages, since_s, bucket_s), &cases.rows)))
}

pub(super) async fn of_fleet(
    State(view): State<View>,
    Query(asked): Query<Asked>,
) -> Result<Json<SavedView>, ApiError> {
    let given = asked.given()?;
    let (since_s, bucket_s) = asked.span.since(wall_ms());
    let looked = view.records.read(move |reader| {
        Ok((reader.fleet_trend(since_s)?, reader.find(&Sought::default(), LOOKED_AT)?.unwrap_or_default()))
    });
    let (pages, cases) = looked.await?;
    Ok(Json(SavedView::new(given, series(pages, since_s, bucket_s), &cases.rows)))
}

impl SavedView {
    fn new(given: Given, buckets: Vec<Shown>, cases: &[CaseRow]) -> Self {
        let mut passed = Bucket::default();
        buckets.iter().for_each(|shown| passed.merge(&shown.bucket));
        let measured_ms = mean_ms(cases);
        let assumed = given.over(&passed, measured_ms);
        let known = |given: Option<f64>, measured: bool| match (given, measured) {
            (Some(_), _) => "given",
            (None, true) => "measured",
            (None, false) => "assumed",
        };
        let known = BTreeMap::from([
            ("call_price", known(given.call_price, false)),
            ("gb_price", known(given.gb_price, false)),
            ("sample_bytes", known(given.sample_bytes, passed.case_bytes > 0)),
            ("cloud_ms", known(given.cloud_ms, measured_ms.is_some())),
        ]);
        Self { saved: saved(&passed, &assumed), assumed, known }
    }
}

/// From the arrival of a case to the first word on it. What waited for a person is not what a model takes.
fn mean_ms(cases: &[CaseRow]) -> Option<f64> {
    let took: Vec<u64> = cases
        .iter()
        .filter(|row| row.verdict().is_some_and(|verdict| verdict.revision == 1))
        .filter_map(|row| row.given_ms?.checked_sub(row.received_ms))
        .collect();
    (!took.is_empty()).then(|| took.iter().sum::<u64>() as f64 / took.len() as f64)
}
