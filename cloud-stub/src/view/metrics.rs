//! `GET /metrics`: this instance and its records as Prometheus text (OpenMetrics 1.0).
//!
//! Counters come from the records and go on across restarts. Labels take their values from fixed lists and from
//! the tasks that have a model; devices are counted, never named.

use std::sync::atomic::AtomicU64;

use axum::extract::State;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::{ConstCounter, Counter};
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::{ConstGauge, Gauge};
use prometheus_client::registry::Registry;

use super::{ApiError, FleetView, View, all_devices};
use crate::answerers::Condition;
use crate::intake::AnswererNow;
use crate::link::LinkNow;
use crate::signed;
use crate::store::Totals;

const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = [(&'static str, &'static str); 1];

pub(super) async fn metrics(State(view): State<View>) -> Result<impl IntoResponse, ApiError> {
    let looked = view.records.read(|reader| Ok((reader.totals()?, reader.devices()?, reader.bytes()?)));
    let (totals, devices, records_bytes) = looked.await?;
    let fleet = FleetView::count(&all_devices(devices, &view.shown));

    let mut page = Registry::with_prefix("hedge_cloud");
    let connected = matches!(*view.shown.link.borrow(), LinkNow::Connected { .. });
    let version = Family::<Labels, Gauge>::default();
    version.get_or_create(&[("version", env!("CARGO_PKG_VERSION"))]).set(1);
    page.register("build_info", "The version of this program", version);
    page.register("uptime_seconds", "Time since the process started", gauge(view.started.elapsed().as_secs()));
    page.register("broker_connected", "1 while the broker is reached", gauge(u64::from(connected)));
    page.register("tasks", "Tasks that have a model here", gauge(view.shown.tasks.len() as u64));
    page.register("model_seconds", "Time the model takes for one case", view.shown.model_seconds.clone());
    register_answerers(&mut page, &view.shown.answerers.borrow());
    page.register("records_bytes", "Size of the records on the disk", gauge(records_bytes));
    if let Some(bytes) = resident_bytes() {
        page.register("resident_memory_bytes", "Memory of the process", gauge(bytes));
    }
    if let Some(spans) = view.shown.traces.dropped() {
        page.register("dropped_spans", "Spans that the collector did not get", ConstCounter::new(spans));
    }
    register_devices(&mut page, &fleet);
    register_totals(&mut page, &totals);
    let mut text = String::new();
    if encode(&mut text, &page).is_err() {
        // Writing to a text cannot fail. Half a page would be refused by its reader, which looks for the end.
        tracing::error!("the metrics could not be written");
    }
    Ok(([(CONTENT_TYPE, OPENMETRICS)], text))
}

fn register_devices(page: &mut Registry, fleet: &FleetView) {
    let by_state = [
        ("online", fleet.online),
        ("degraded", fleet.degraded),
        ("offline", fleet.offline),
        ("resting", fleet.resting),
        ("unknown", fleet.unknown),
    ];
    page.register(
        "devices",
        "Devices by the state of their link",
        gauges("state", &by_state.map(|(state, devices)| (state, signed(devices)))),
    );
}

fn register_answerers(page: &mut Registry, answerers: &[AnswererNow]) {
    type Named = [(&'static str, String); 2];
    let (up, spent) = (Family::<Named, Gauge>::default(), Family::<Named, Gauge<f64, AtomicU64>>::default());
    for one in answerers {
        let labels = [("task", one.task.clone()), ("answerer", one.name.clone())];
        up.get_or_create(&labels).set(i64::from(one.condition == Condition::Up));
        spent.get_or_create(&labels).set(one.spent);
    }
    page.register("answerer_up", "1 while the answerer can be asked", up);
    page.register("answerer_spent_this_month", "What its calls have cost since the month began (UTC)", spent);
    if let Some(most) = answerers.iter().find_map(|one| one.month_max) {
        let ceiling = Gauge::<f64, AtomicU64>::default();
        ceiling.set(most);
        page.register("spent_this_month_max", "What all calls of a month may cost", ceiling);
    }
}

fn register_totals(page: &mut Registry, now: &Totals) {
    page.register("received_cases", "Cases taken into the records", ConstCounter::new(now.cases));
    let outcomes =
        [("waiting", now.waiting), ("answered", signed(now.answered)), ("failed", now.failed), ("dead", now.dead)];
    page.register("case_outcomes", "Cases by what has become of them", gauges("outcome", &outcomes));
    let verdicts = [("agreed", now.agreed.unsigned_abs()), ("disagreed", now.disagreed.unsigned_abs())];
    page.register("verdicts", "Verdicts by whether they say the same as the device", counters("verdict", &verdicts));
    let away = [("refused", now.refused), ("malformed", now.malformed), ("newer", now.newer), ("busy", now.busy)];
    page.register("turned_away", "Messages and cases that were not taken", counters("reason", &away));
    let repeated = ConstCounter::new(now.repeated);
    page.register("repeated_cases", "Cases that came again and were answered from the records", repeated);
    page.register("received_bytes", "Payload bytes taken in", ConstCounter::new(now.received_bytes));
    page.register("payload_bytes", "Payload bytes kept", ConstGauge::new(now.payload_bytes));
}

fn gauge(value: u64) -> ConstGauge<i64> {
    ConstGauge::new(signed(value))
}

fn gauges(label: &'static str, values: &[(&'static str, i64)]) -> Family<Labels, Gauge> {
    let family = Family::<Labels, Gauge>::default();
    for (name, value) in values {
        family.get_or_create(&[(label, *name)]).set(*value);
    }
    family
}

fn counters(label: &'static str, values: &[(&'static str, u64)]) -> Family<Labels, Counter> {
    let family = Family::<Labels, Counter>::default();
    for (name, value) in values {
        family.get_or_create(&[(label, *name)]).inc_by(*value);
    }
    family
}

/// `VmRSS:     12345 kB`
fn resident_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()? * 1024)
}
