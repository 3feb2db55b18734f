//! What the device tells about itself: one document behind `/v1/status`, `up/telemetry` and `/metrics`.
//!
//! It only gathers: figures are counted in `figures`, the outbox counts itself, the board is read.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hedge_proto::{
    BudgetFigures, LinkState, ModelFigures, ModelRef, Name, PrivacyFigures, QueueFigures, SampleFigures, Share,
    Telemetry, ThresholdMode,
};

use super::Pipeline;
use crate::board;
use crate::bundles;
use crate::figures::{Dropped, drop_name};
use crate::inference::Judge;
use hedge_outbox::Drops;

/// Everything as it is now.
#[must_use]
pub(super) fn of(pipeline: &Pipeline) -> Telemetry {
    let link = *pipeline.link.borrow();
    Telemetry {
        link: link.state,
        link_reason: link.reason.to_owned(),
        uptime_s: pipeline.started.elapsed().as_secs(),
        offline_s: link.offline().as_secs(),
        samples: samples(pipeline),
        queue: queue(pipeline, link.in_flight as u64),
        sources: pipeline.figures.sources(),
        sinks: pipeline.figures.sinks(),
        source_figures: pipeline.figures.source_figures(),
        link_s: LinkState::ALL
            .into_iter()
            .map(|state| (state.name().to_owned(), link.time_in(state).as_secs()))
            .collect(),
        connections: link.connections,
        link_bytes: link.bytes,
        budget: budget(pipeline),
        latency: pipeline.figures.latency(),
        models: pipeline.judges.iter().map(model).collect(),
        model_figures: model_figures(pipeline),
        unread: pipeline.figures.unread.load(Ordering::Relaxed),
        board: board::read(),
        faults: pipeline.faults.now(),
        privacy: Some(PrivacyFigures {
            ceiling: pipeline.settings.borrow().config.privacy.ceiling().0.to_string(),
            payload: link.policy.payload.to_string(),
        }),
    }
}

fn samples(pipeline: &Pipeline) -> SampleFigures {
    let mut samples = pipeline.figures.samples();
    let Drops { evicted, expired, undelivered } = pipeline.outbox.dropped();
    let counted = [(Dropped::Evicted, evicted), (Dropped::Expired, expired), (Dropped::Undelivered, undelivered)];
    let happened = counted.into_iter().filter(|(_, count)| *count > 0);
    samples.dropped.extend(happened.map(|(why, count)| (drop_name(why).to_owned(), count)));
    samples
}

fn budget(pipeline: &Pipeline) -> BTreeMap<String, BudgetFigures> {
    let settings = pipeline.settings.borrow().clone();
    if settings.config.broker.is_none() {
        return BTreeMap::new();
    }
    let used = pipeline.spent.borrow().used(pipeline.clock.now(), &settings.config.link.ceilings());
    used.map(|used| (used.ceiling.to_owned(), BudgetFigures { spent: used.spent, max: used.max })).into()
}

fn model((name, judge): (&Name, &Judge)) -> (Name, Option<ModelRef>) {
    (name.clone(), judge.card().map(|card| card.model.clone()))
}

fn model_figures(pipeline: &Pipeline) -> BTreeMap<Name, ModelFigures> {
    let settings = pipeline.settings.borrow().clone();
    let is_local = |name: &Name| {
        settings.config.models.iter().any(|model| model.name == *name && bundles::is_local(&settings.config, model))
    };
    let figures = |(name, judge): (&Name, &Judge)| {
        let threshold = settings.thresholds.get(name).map(|threshold| threshold.given().clone()).unwrap_or_default();
        let (given, mode) = (threshold.score_min, threshold.mode.unwrap_or(ThresholdMode::Fixed));
        let suggested = judge.card().and_then(|card| card.suggested).map(|threshold| threshold.score_min());
        let figures = ModelFigures {
            answer_s: judge.answered_at().map(|at| at.elapsed().as_secs()),
            score_min: given.or_else(|| Share::new(suggested?).ok()),
            suggested: given.is_none() && suggested.is_some(),
            judge: judge.learned().look(|experience| experience.figures(mode)),
            local: is_local(name),
            provider: judge.card().map(|card| card.runs_on.to_string()),
            rival: judge.learned().rival(),
            wanted: pipeline.wanted.borrow().get(name).cloned(),
        };
        (name.clone(), figures)
    };
    pipeline.judges.iter().map(figures).collect()
}

fn queue(pipeline: &Pipeline, in_flight: u64) -> QueueFigures {
    let (now, limits) = (pipeline.outbox.figures(), pipeline.outbox.limits());
    QueueFigures {
        waiting: now.waiting,
        waiting_bytes: now.waiting_bytes,
        in_flight,
        dead: now.dead,
        oldest_s: now.oldest_stored_at.map(|at| pipeline.clock.now().since(at).as_secs()),
        answered: now.answered,
        bytes: now.live_bytes,
        bytes_max: limits.bytes_max,
        cases_max: limits.cases_max,
        disk_bytes: now.disk_bytes,
        written_bytes: now.written_bytes,
        damaged_records: now.damaged_records,
        in_memory: now.queue_broken,
    }
}
