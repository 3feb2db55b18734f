//! `GET /api/devices/{name}/trend?span=day`: what became of a device in the last hour, day, week or month.

use axum::Json;
use axum::extract::{Path, State};
use hedge_proto::{DeviceId, LinkState};
use serde::{Deserialize, Serialize};

use super::query::Query;
use super::{ApiError, View};
use crate::trend::{STAGES, Shown, THROTTLING, series};
use crate::wall_ms;

/// How far back is looked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Span {
    Hour,
    #[default]
    Day,
    Week,
    Month,
}

impl Span {
    /// In seconds: when it begins, and how long a bucket is. At the beginning of a bucket, for half a bucket would look
    /// like half as much.
    pub(super) fn since(self, now_ms: u64) -> (u64, u64) {
        let (span_s, bucket_s) = match self {
            Self::Hour => (3600, 60),
            Self::Day => (86_400, 30 * 60),
            Self::Week => (7 * 86_400, 3 * 3600),
            Self::Month => (30 * 86_400, 12 * 3600),
        };
        ((now_ms / 1000).saturating_sub(span_s) / bucket_s * bucket_s, bucket_s)
    }
}

/// What is asked for.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Asked {
    #[serde(default)]
    span: Span,
}

/// What became of one device.
#[derive(Serialize)]
pub(super) struct TrendView {
    span: Span,
    since_ms: u64,
    now_ms: u64,
    bucket_s: u64,
    /// What the numbers of `link_s` and `stages` in each bucket are about, and the bits of `throttling`.
    states: [&'static str; LinkState::ALL.len()],
    stages: [&'static str; STAGES.len()],
    throttling: [&'static str; THROTTLING.len()],
    /// Those in which there was anything, in the order of time. A number that is missing is 0.
    buckets: Vec<Shown>,
}

pub(super) async fn trend(
    State(view): State<View>,
    Path(name): Path<String>,
    Query(Asked { span }): Query<Asked>,
) -> Result<Json<TrendView>, ApiError> {
    let device = DeviceId::new(&name)?;
    let now_ms = wall_ms();
    let (since_s, bucket_s) = span.since(now_ms);
    let pages = view.records.read(move |reader| match reader.device(&device)? {
        Some(_) => Ok(Some(reader.trend(&device, since_s)?)),
        None => Ok(None),
    });
    let pages = pages.await?.ok_or(ApiError::NoDevice(name))?;
    Ok(Json(TrendView {
        span,
        since_ms: since_s * 1000,
        now_ms,
        bucket_s,
        states: LinkState::ALL.map(LinkState::name),
        stages: STAGES,
        throttling: THROTTLING,
        buckets: series(pages, since_s, bucket_s),
    }))
}
