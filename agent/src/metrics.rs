//! Writes the device's figures as Prometheus text (OpenMetrics 1.0).
//!
//! Everything comes from the telemetry document and the latencies behind it, so a scrape and `up/telemetry` say
//! the same. Labels take their values from fixed lists and from the configuration: no id or error text.

use std::fmt;

use hedge_proto::{
    BoardFigures, BudgetFigures, JudgeFigures, LinkState, QueueFigures, SampleFigures, SinkFigures, SourceFigures,
    Telemetry,
};
use prometheus_client::encoding::{EncodeMetric, MetricEncoder, NoLabelSet, text::encode};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::{MetricType, TypedMetric};
use prometheus_client::registry::Registry;

use crate::board::LIMITS;
use crate::faults::Part;
use crate::figures::{DROPS, Figures, REFUSALS, Spread, Timed, drop_name, refusal_name};

/// How a scraper reads the text.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;

/// All metrics as text.
#[must_use]
pub fn text(now: &Telemetry, figures: &Figures) -> String {
    let mut page = Registry::with_prefix("hedge_agent");
    let version = vec![("version", env!("CARGO_PKG_VERSION").to_owned())];
    page.register("build_info", "The version of the agent", Labelled(vec![(version, gauge(1))]));
    page.register("uptime_seconds", "Time since the process started", gauge(now.uptime_s));
    samples(&mut page, &now.samples);
    latencies(&mut page, figures);
    link(&mut page, now);
    queue(&mut page, &now.queue);
    sinks(&mut page, now);
    sources(&mut page, now);
    models(&mut page, now);
    faults(&mut page, now);
    board(&mut page, &now.board);
    let mut text = String::new();
    if encode(&mut text, &page).is_err() {
        // Writing to a text cannot fail. Half a page would be refused by its reader, which looks for the end.
        tracing::error!("the metrics could not be written");
    }
    text
}

fn samples(page: &mut Registry, now: &SampleFigures) {
    let outcomes = [("kept", now.kept), ("deferred", now.deferred), ("failed", now.failed)];
    let answers = outcomes.map(|(outcome, count)| (label("outcome", outcome), ConstCounter::new(count)));
    page.register("answers", "Samples by what became of them; failed ones got no answer", Labelled(answers.into()));
    page.register(
        "skipped_frames",
        "Samples passed over: a newer one was there, or they were not whole",
        ConstCounter::new(now.skipped),
    );
    page.register("verdicts", "Verdicts applied", ConstCounter::new(now.verdicts));
    page.register("corrected", "Verdicts that said something else than the device", ConstCounter::new(now.corrected));
    page.register("late_verdicts", "Verdicts on cases no longer open", ConstCounter::new(now.late_verdicts));
    let refused = REFUSALS.map(refusal_name).map(|reason| (reason, now.refused.get(reason)));
    page.register("cases_refused", "Cases the outbox did not take", by_reason(&refused));
    let dropped = DROPS.map(drop_name).map(|reason| (reason, now.dropped.get(reason)));
    page.register("cases_dropped", "Stored cases taken out without a verdict", by_reason(&dropped));
}

fn by_reason(counts: &[(&'static str, Option<&u64>)]) -> Labelled<ConstCounter<u64>> {
    let counter = |count: Option<&u64>| ConstCounter::new(count.copied().unwrap_or(0));
    Labelled(counts.iter().map(|(reason, count)| (label("reason", reason), counter(*count))).collect())
}

fn latencies(page: &mut Registry, figures: &Figures) {
    let by = |name, timed: &[Timed]| {
        Labelled(timed.iter().map(|what| (label(name, what.name()), figures.spread(*what))).collect())
    };
    let paths = by("path", &[Timed::Kept, Timed::Deferred]);
    page.register("answer_seconds", "From a sample's arrival to its answer", paths);
    let stages = by("stage", &[Timed::Tensor, Timed::Inference, Timed::Store]);
    page.register("stage_seconds", "Time in each stage of a sample's path", stages);
}

fn link(page: &mut Registry, now: &Telemetry) {
    let each = |value: &dyn Fn(LinkState) -> u64| {
        LinkState::ALL.map(|state| (label("state", state.name()), value(state))).to_vec()
    };
    let states = each(&|state| u64::from(state == now.link));
    let states = states.into_iter().map(|(labels, value)| (labels, gauge(value))).collect();
    page.register("link_state", "1 for the state the link is in", Labelled(states));
    let times = each(&|state| now.link_s.get(state.name()).copied().unwrap_or(0));
    let times = times.into_iter().map(|(labels, value)| (labels, ConstCounter::new(value))).collect();
    page.register("link_seconds", "Time in each state of the link", Labelled(times));
    page.register("link_bytes", "Bytes over the link in both directions", ConstCounter::new(now.link_bytes));
    let each = |value: &dyn Fn(&BudgetFigures) -> ConstGauge<f64>| {
        now.budget.iter().map(|(ceiling, figures)| (label("ceiling", ceiling), value(figures))).collect()
    };
    let spent = Labelled(each(&|figures| gauge(figures.spent)));
    page.register("budget_spent", "Cases and bytes that count against each ceiling", spent);
    let share = Labelled(each(&|figures| ConstGauge::new(ratio(figures.spent, figures.max))));
    page.register("budget_ratio", "Share of each ceiling that is spent", share);
    let unread = ConstCounter::new(now.unread);
    page.register("unread_messages", "Messages of the cloud that this version cannot read", unread);
    page.register("connections", "Connections to the broker that came about", ConstCounter::new(now.connections));
}

fn queue(page: &mut Registry, now: &QueueFigures) {
    let cases = [("waiting", now.waiting), ("answered", now.answered), ("dead", now.dead)];
    let all = cases.iter().map(|(_, count)| count).sum();
    let cases = cases.map(|(state, count)| (label("state", state), gauge(count)));
    page.register("queue_cases", "Cases in the outbox; dead ones are kept for inspection", Labelled(cases.into()));
    page.register("queue_in_flight_cases", "Waiting cases that were sent", gauge(now.in_flight));
    page.register("queue_bytes", "Bytes in the outbox that count against its cap", gauge(now.bytes));
    let share = [("cases", ratio(all, now.cases_max)), ("bytes", ratio(now.bytes, now.bytes_max))];
    let share = share.map(|(cap, share)| (label("cap", cap), ConstGauge::new(share)));
    page.register("queue_cap_ratio", "Share of the outbox's caps in use", Labelled(share.into()));
    let oldest = gauge(now.oldest_s.unwrap_or(0));
    page.register("queue_oldest_seconds", "Age of the oldest unanswered case, 0 when there is none", oldest);
    page.register("disk_bytes", "What the outbox takes on the disk", gauge(now.disk_bytes));
    page.register("written_bytes", "Bytes written to the outbox's log", ConstCounter::new(now.written_bytes));
    page.register("damaged_records", "Records found damaged on the disk", ConstCounter::new(now.damaged_records));
    let in_memory = gauge(u64::from(now.in_memory));
    page.register("queue_in_memory", "1 while the queue's order cannot be written to the disk", in_memory);
}

fn sinks(page: &mut Registry, now: &Telemetry) {
    let each = |value: &dyn Fn(&SinkFigures) -> u64| {
        let counted =
            |(sink, figures): (&String, &SinkFigures)| (label("sink", sink), ConstCounter::new(value(figures)));
        Labelled(now.sinks.iter().map(counted).collect())
    };
    page.register("sink_delivered", "Answers and corrections a sink has confirmed", each(&|sink| sink.delivered));
    page.register("sink_refused", "Deliveries a sink has refused; corrections are kept", each(&|sink| sink.refused));
    page.register("sink_lost", "Local answers a sink did not get and never will", each(&|sink| sink.lost));
}

/// Of what never happened, since the process started.
fn sources(page: &mut Registry, now: &Telemetry) {
    let age = |s: Option<u64>| gauge(s.unwrap_or(now.uptime_s));
    let each = |value: &dyn Fn(&SourceFigures) -> Option<u64>| {
        Labelled(now.source_figures.iter().map(|(name, flow)| (label("source", name), age(value(flow)))).collect())
    };
    let (came, new, answered) = (each(&|flow| flow.sample_s), each(&|flow| flow.new_s), each(&|flow| flow.answer_s));
    page.register("source_sample_age_seconds", "Time since a source brought a sample", came);
    page.register("source_new_age_seconds", "Time since it brought one that differs from the one before", new);
    page.register("source_answer_age_seconds", "Time since a sample of it was answered", answered);
    let models = now.model_figures.iter().map(|(name, model)| (label("model", name), age(model.answer_s)));
    page.register("model_answer_age_seconds", "Time since a model answered a sample", Labelled(models.collect()));
}

fn models(page: &mut Registry, now: &Telemetry) {
    let loaded =
        |(name, model): (&hedge_proto::Name, &Option<_>)| (label("model", name), gauge(u64::from(model.is_some())));
    page.register(
        "model_loaded",
        "1 once a configured model is loaded",
        Labelled(now.models.iter().map(loaded).collect()),
    );
    let facts = now.models.iter().filter_map(|(of, model)| {
        let model = model.as_ref()?;
        let (name, version) = (("name", model.name.clone()), ("version", model.version.clone()));
        let mut labels = vec![("model", of.to_string()), name, version];
        // Without how many steps it takes: a label must not change with every bundle.
        let provider = now.model_figures.get(of).and_then(|figures| figures.provider.as_deref()?.split(' ').next());
        labels.extend(provider.map(|provider| ("provider", provider.to_owned())));
        Some((labels, gauge(1)))
    });
    page.register("model_info", "Which bundle each model is", Labelled(facts.collect()));
    judges(page, now);
}

/// What is learned of each model.
fn judges(page: &mut Registry, now: &Telemetry) {
    let each = |value: &dyn Fn(&JudgeFigures) -> Option<f64>| {
        let of = |(name, figures): (&hedge_proto::Name, &hedge_proto::ModelFigures)| {
            Some((label("model", name), ConstGauge::new(value(figures.judge.as_ref()?)?)))
        };
        Labelled(now.model_figures.iter().filter_map(of).collect())
    };
    let counts = |value: &dyn Fn(&JudgeFigures) -> u64| {
        let of = |(name, figures): (&hedge_proto::Name, &hedge_proto::ModelFigures)| {
            Some((label("model", name), ConstCounter::new(value(figures.judge.as_ref()?))))
        };
        Labelled(now.model_figures.iter().filter_map(of).collect())
    };
    let steered = each(&|judge| judge.score_min.map(f64::from));
    page.register("judge_score_min", "What answers must reach now under a budget or a target", steered);
    page.register("judge_day_cases", "Cases of the last day", each(&|judge| Some(judge.cases_per_day as f64)));
    page.register("judge_spot_checks", "Spot checks that were answered", counts(&|judge| judge.checks));
    page.register("judge_spot_checks_lost", "Spot checks that never will be", counts(&|judge| judge.checks_lost));
    let contradicted = each(&|judge| Some(judge.contradicted));
    page.register("judge_spot_checks_contradicted", "Spot checks that were contradicted or lost", contradicted);
    let shifted = each(&|judge| Some(f64::from(u8::from(judge.shift.is_some()))));
    page.register("judge_shift", "1 while the input looks unlike what the model was checked on", shifted);
    let near = each(&|judge| Some(f64::from(judge.shift_suspicion)));
    page.register("judge_shift_suspicion", "How near that alarm is", near);
    let error = each(&|judge| judge.calibration_error.map(f64::from));
    page.register("judge_calibration_error_ratio", "How far scores are from how often they are right", error);
}

fn faults(page: &mut Registry, now: &Telemetry) {
    let fixed = Part::FIXED.into_iter().map(|part| part.to_string());
    let models = now.models.keys().map(|name| Part::Model(name.clone()).to_string());
    let sinks = now.sinks.keys().map(|name| format!("sink.{name}"));
    let sources = now.source_figures.keys().map(|name| Part::Source(name.clone()).to_string());
    let holds = |part: String| {
        let fault = gauge(u64::from(now.faults.contains_key(&part)));
        (label("part", part), fault)
    };
    let faults = Labelled(fixed.chain(models).chain(sources).chain(sinks).map(holds).collect());
    page.register("fault", "1 while something is wrong with this part of the device", faults);
}

fn board(page: &mut Registry, now: &BoardFigures) {
    if let Some(bytes) = now.rss_bytes {
        page.register("resident_memory_bytes", "Memory of the process", gauge(bytes));
    }
    if let Some(celsius) = now.temperature_c {
        page.register("board_temperature_celsius", "Temperature of the processor", ConstGauge::new(celsius));
    }
    if let Some(throttling) = &now.throttling {
        let limits = |set: &[String]| {
            let holds = |limit: &str| gauge(u64::from(set.iter().any(|name| name == limit)));
            Labelled(LIMITS.iter().map(|limit| (label("limit", limit), holds(limit))).collect())
        };
        page.register("board_throttled", "1 while the board holds its processor back", limits(&throttling.now));
        let since_boot = limits(&throttling.since_boot);
        page.register("board_throttled_since_boot", "1 once it has held it back since the boot", since_boot);
    }
}

fn label(name: &'static str, value: impl ToString) -> Labels {
    vec![(name, value.to_string())]
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes or cases are beyond any device")]
fn gauge(value: u64) -> ConstGauge<f64> {
    ConstGauge::new(value as f64)
}

#[expect(clippy::cast_precision_loss, reason = "2^53 bytes or cases are beyond any device")]
fn ratio(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { part as f64 / whole as f64 }
}

/// One metric with several values, in the order given.
#[derive(Debug)]
struct Labelled<M>(Vec<(Labels, M)>);

impl<M: EncodeMetric + TypedMetric + fmt::Debug> EncodeMetric for Labelled<M> {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(labels, metric)| metric.encode(encoder.encode_family(labels)?))
    }

    fn metric_type(&self) -> MetricType {
        M::TYPE
    }

    fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

impl EncodeMetric for Spread {
    fn encode(&self, mut encoder: MetricEncoder<'_>) -> fmt::Result {
        encoder.encode_histogram::<NoLabelSet>(self.sum_s, self.count, &self.steps, None)
    }

    fn metric_type(&self) -> MetricType {
        Self::TYPE
    }
}

impl TypedMetric for Spread {
    const TYPE: MetricType = MetricType::Histogram;
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use hedge_proto::{ModelRef, Name, Throttling};

    use super::*;

    fn full() -> Telemetry {
        let throttling = Throttling { now: vec!["throttled".into()], since_boot: vec!["under_voltage".into()] };
        let board = BoardFigures { rss_bytes: Some(1), temperature_c: Some(48.5), throttling: Some(throttling) };
        let name = |text: &str| Name::new(text).expect("valid");
        let model = ModelRef { name: "small".into(), version: "3".into() };
        let models = [(name("m"), Some(model)), (name("n"), None)].into();
        let queue = QueueFigures { waiting: 3, dead: 1, cases_max: 8, ..QueueFigures::default() };
        let faults = [("disk".to_owned(), "full".to_owned())].into();
        let flow = SourceFigures { sample_s: Some(1), new_s: Some(90), ..SourceFigures::default() };
        let source_figures = [(name("porch"), flow)].into();
        let on = hedge_proto::ModelFigures {
            provider: Some("xnnpack (3 of 5 steps, the rest on the cpu)".into()),
            ..Default::default()
        };
        let model_figures = [(name("m"), on)].into();
        let uptime_s = 100;
        Telemetry {
            board,
            models,
            model_figures,
            queue,
            faults,
            source_figures,
            uptime_s,
            ..Telemetry::new(LinkState::Degraded)
        }
    }

    #[track_caller]
    fn check(text: &str, lines: &[&str]) {
        for line in lines {
            assert!(text.lines().any(|found| found == *line), "no `{line}` in:\n{text}");
        }
    }

    #[test]
    fn each_figure_has_its_line_and_what_never_happened_is_zero() {
        let figures = Figures::default();
        figures.took(Timed::Kept, Duration::from_millis(2));
        check(
            &text(&full(), &figures),
            &[
                "hedge_agent_answers_total{outcome=\"kept\"} 0",
                "hedge_agent_cases_refused_total{reason=\"too_large\"} 0",
                "hedge_agent_link_state{state=\"degraded\"} 1.0",
                "hedge_agent_link_state{state=\"online\"} 0.0",
                "hedge_agent_queue_cap_ratio{cap=\"cases\"} 0.5",
                "hedge_agent_model_loaded{model=\"m\"} 1.0",
                "hedge_agent_model_loaded{model=\"n\"} 0.0",
                "hedge_agent_fault{part=\"disk\"} 1.0",
                "hedge_agent_fault{part=\"clock\"} 0.0",
                "hedge_agent_fault{part=\"model.n\"} 0.0",
                "hedge_agent_fault{part=\"source.porch\"} 0.0",
                "hedge_agent_source_sample_age_seconds{source=\"porch\"} 1.0",
                "hedge_agent_source_new_age_seconds{source=\"porch\"} 90.0",
                "hedge_agent_source_answer_age_seconds{source=\"porch\"} 100.0",
                "hedge_agent_model_info{model=\"m\",name=\"small\",version=\"3\",provider=\"xnnpack\"} 1.0",
                "hedge_agent_answer_seconds_bucket{le=\"0.001\",path=\"kept\"} 0",
                "hedge_agent_answer_seconds_bucket{le=\"0.0025\",path=\"kept\"} 1",
                "hedge_agent_answer_seconds_bucket{le=\"+Inf\",path=\"kept\"} 1",
                "hedge_agent_board_temperature_celsius 48.5",
                "hedge_agent_board_throttled{limit=\"throttled\"} 1.0",
                "hedge_agent_board_throttled{limit=\"under_voltage\"} 0.0",
                "hedge_agent_board_throttled_since_boot{limit=\"under_voltage\"} 1.0",
                "# EOF",
            ],
        );
    }

    #[test]
    fn a_board_that_tells_nothing_has_no_lines_of_its_own() {
        assert!(!text(&Telemetry::new(LinkState::Offline), &Figures::default()).contains("hedge_agent_board_"));
    }

    #[test]
    fn what_alerts_say_of_boards_exists_where_boards_tell() {
        let page = text(&full(), &Figures::default());
        let rules = include_str!("../../docs/alerts.yml");
        let words = rules.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'));
        let names: Vec<_> = words.filter(|word| word.starts_with("hedge_agent_board_")).collect();
        assert!(!names.is_empty());
        for name in names {
            assert!(page.lines().any(|line| line.starts_with(name)), "no {name}");
        }
    }
}
