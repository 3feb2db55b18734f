//! Spans of a case's life, for a collector that takes OTLP over HTTP.
//!
//! ```text
//! case (the device's) ─┬─ broker
//!                      └─ intake ─┬─ wait
//!                                 ├─ answer NAME    its id is also in the call's `traceparent` header
//!                                 └─ verdict        its id is also in the verdict's `traceparent` property
//! ```
//! The ids of the trace, of `case` and of `intake` follow from the case's id: see [`TraceContext`]. So another instance,
//! or the process after a crash, adds to the same trace and remembers nothing for it.
//!
//! No case waits for any of this. What finds no place in the queue before the exporter is dropped and counted.

mod export;

pub use export::{Exporting, NoTraces, TracesArgs};

use std::borrow::Cow;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use hedge_proto::{Captured, Case, CaseId, SENT_POWERED_MS, TRACEPARENT, TraceContext, word};
use opentelemetry::trace::{SpanContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator as _, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};
use tokio::sync::mpsc;

use crate::{signed, wall_ms};

/// The longest text of an attribute: an answerer's own words may be long.
const TEXT_CHARS_MAX: usize = 300;

/// How many bits of a trace's id are compared with the share: the last 56, which W3C Trace Context calls random.
const RANDOM_BITS: u32 = 56;

/// Whose work a span tells of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum By {
    Device,
    Cloud,
}

/// Where spans go; nowhere, unless a collector is given. Clones go to the same.
#[derive(Debug, Clone, Default)]
pub struct Traces(Option<Arc<Open>>);

#[derive(Debug)]
struct Open {
    queue: mpsc::Sender<(By, SpanData)>,
    dropped: Arc<AtomicU64>,
    /// Traces below it are left out.
    threshold: u64,
}

impl Traces {
    /// How many spans the collector did not get; none where nothing is traced.
    #[must_use]
    pub fn dropped(&self) -> Option<u64> {
        self.0.as_ref().map(|open| open.dropped.load(Ordering::Relaxed))
    }
}

/// The trace of one case.
pub struct Trace<'a> {
    open: &'a Open,
    id: &'a CaseId,
    /// Of its `intake`.
    context: TraceContext,
}

/// When a message came, and what it says of its way.
#[derive(Debug, Clone, Copy, Default)]
pub struct Came {
    at_ms: u64,
    /// The device's powered clock as it sent the message, if the device traces its cases.
    sent_powered_ms: Option<u64>,
}

impl Came {
    #[must_use]
    pub fn now(properties: &[(String, String)]) -> Self {
        let given = |name: &str| properties.iter().find(|(given, _)| given == name).map(|(_, value)| value);
        let sent = given(TRACEPARENT).and(given(SENT_POWERED_MS)).and_then(|value| value.parse().ok());
        Self { at_ms: wall_ms(), sent_powered_ms: sent }
    }
}

/// A case that is about to be recorded.
pub struct TakenIn {
    id: CaseId,
    came: Came,
    captured: Captured,
    about: Vec<KeyValue>,
}

/// A call that an answerer has made of a case.
pub struct Called<'a> {
    pub answerer: &'a str,
    pub is_remote: bool,
    /// Since when the case waited for it, and whether a process before this one had it.
    pub since_ms: u64,
    pub left_over: bool,
    pub began_ms: u64,
    pub took: Duration,
    /// The call's own span, if it was told one.
    pub span: Option<TraceContext>,
    pub outcome: &'static str,
    /// Why there is no verdict.
    pub why: Option<String>,
}

/// One span, in the words of this module.
struct Span {
    by: By,
    context: TraceContext,
    parent: Option<[u8; 8]>,
    name: Cow<'static, str>,
    kind: SpanKind,
    from_ms: u64,
    took: Duration,
    about: Vec<KeyValue>,
    status: Status,
}

impl Traces {
    /// The trace of this case, if it is one of those that are told.
    #[must_use]
    pub fn of<'a>(&'a self, id: &'a CaseId) -> Option<Trace<'a>> {
        let open = self.0.as_deref()?;
        let context = TraceContext::in_cloud(id);
        is_told(&context.trace, open.threshold).then_some(Trace { open, id, context })
    }

    /// What there is to tell of a case once it is on record.
    #[must_use]
    pub fn taking_in(&self, case: &Case, came: Came, payload_bytes: u64) -> Option<TakenIn> {
        self.of(&case.id)?;
        let about = vec![
            KeyValue::new("hedge.source", case.source.clone()),
            KeyValue::new("hedge.task", case.task.clone()),
            KeyValue::new("hedge.model", format!("{} {}", case.model.name, case.model.version)),
            KeyValue::new("hedge.reason", word(&case.decision.reason)),
            KeyValue::new("hedge.form", word(&case.form)),
            KeyValue::new("hedge.payload_bytes", signed(payload_bytes)),
        ];
        Some(TakenIn { id: case.id.clone(), came, captured: case.captured.clone(), about })
    }

    /// A case is on record: its life up to now.
    pub fn taken_in(&self, taken: TakenIn) {
        let TakenIn { id, came, captured, about } = taken;
        let Some(trace) = self.of(&id) else { return };
        let device = came.sent_powered_ms.map(|sent_ms| trace.on_device(&captured, sent_ms, came.at_ms, &about));
        trace.tell(Span {
            by: By::Cloud,
            context: trace.context,
            parent: device,
            name: "intake".into(),
            kind: SpanKind::Consumer,
            from_ms: came.at_ms,
            took: since(came.at_ms),
            about,
            status: Status::Unset,
        });
    }
}

impl Trace<'_> {
    /// A span below `intake` that is about to begin.
    #[must_use]
    pub fn begin(&self) -> TraceContext {
        TraceContext { span: RandomIdGenerator::default().new_span_id().to_bytes(), ..self.context }
    }

    /// How the case came here, by the device's clocks as far as they are known. Returns the device's span.
    fn on_device(&self, captured: &Captured, sent_powered_ms: u64, arrived_ms: u64, about: &[KeyValue]) -> [u8; 8] {
        let context = TraceContext::on_device(self.id);
        let kept_ms = sent_powered_ms.saturating_sub(captured.powered_ms);
        let wall_ms = captured.wall_ms.filter(|_| captured.synced);
        // A device that does not know the time is placed by ours: as if its message had taken no time.
        let sent_ms = wall_ms.map_or(arrived_ms, |wall_ms| wall_ms.saturating_add(kept_ms));
        let clock = if wall_ms.is_some() { "device" } else { "cloud" };
        self.tell(Span {
            by: By::Device,
            context,
            parent: None,
            name: "case".into(),
            kind: SpanKind::Producer,
            from_ms: sent_ms.saturating_sub(kept_ms),
            took: Duration::from_millis(kept_ms),
            about: [&[KeyValue::new("hedge.clock", clock)], about].concat(),
            status: Status::Unset,
        });
        // Where the two clocks differ by more than the way took, how long it took is not known.
        if wall_ms.is_some() && sent_ms <= arrived_ms {
            self.tell(Span {
                by: By::Cloud,
                context: self.begin(),
                parent: Some(context.span),
                name: "broker".into(),
                kind: SpanKind::Internal,
                from_ms: sent_ms,
                took: Duration::from_millis(arrived_ms - sent_ms),
                about: Vec::new(),
                status: Status::Unset,
            });
        }
        context.span
    }

    /// An answerer is through with the case.
    pub fn called(&self, called: Called<'_>) {
        let Called { answerer, is_remote, since_ms, left_over, began_ms, took, span, outcome, why } = called;
        let about = [KeyValue::new("hedge.answerer", answerer.to_owned())];
        let below = |name: Cow<'static, str>, kind, context, from_ms, took, about, status| Span {
            by: By::Cloud,
            context,
            parent: Some(self.context.span),
            name,
            kind,
            from_ms,
            took,
            about,
            status,
        };
        let waited = Duration::from_millis(began_ms.saturating_sub(since_ms));
        let waiting = [&about[..], &[KeyValue::new("hedge.left_over", left_over)]].concat();
        self.tell(below("wait".into(), SpanKind::Internal, self.begin(), since_ms, waited, waiting, Status::Unset));
        let status = why.map_or(Status::Unset, |why| Status::error(shortened(&why)));
        let kind = if is_remote { SpanKind::Client } else { SpanKind::Internal };
        let calling = [&about[..], &[KeyValue::new("hedge.outcome", outcome)]].concat();
        let (name, context) = (format!("answer {answerer}").into(), span.unwrap_or_else(|| self.begin()));
        self.tell(below(name, kind, context, began_ms, took, calling, status));
    }

    /// The broker has the verdict, or does not take it.
    pub fn published(&self, context: TraceContext, begun_ms: u64, refused: Option<String>) {
        self.tell(Span {
            by: By::Cloud,
            context,
            parent: Some(self.context.span),
            name: "verdict".into(),
            kind: SpanKind::Producer,
            from_ms: begun_ms,
            took: since(begun_ms),
            about: Vec::new(),
            status: refused.map_or(Status::Unset, |why| Status::error(shortened(&why))),
        });
    }

    fn tell(&self, span: Span) {
        let Span { by, context, parent, name, kind, from_ms, took, mut about, status } = span;
        about.push(KeyValue::new("hedge.case", self.id.to_string()));
        about.push(KeyValue::new("hedge.device", self.id.device.to_string()));
        let start_time = SystemTime::UNIX_EPOCH + Duration::from_millis(from_ms);
        let data = SpanData {
            span_context: SpanContext::new(
                TraceId::from_bytes(context.trace),
                SpanId::from_bytes(context.span),
                TraceFlags::SAMPLED,
                false,
                TraceState::NONE,
            ),
            parent_span_id: parent.map_or(SpanId::INVALID, SpanId::from_bytes),
            parent_span_is_remote: parent == Some(TraceContext::on_device(self.id).span),
            span_kind: kind,
            name,
            start_time,
            end_time: start_time + took,
            attributes: about,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status,
            instrumentation_scope: InstrumentationScope::builder("hedge-cloud")
                .with_version(env!("CARGO_PKG_VERSION"))
                .build(),
        };
        if self.open.queue.try_send((by, data)).is_err() {
            self.open.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// The same for one trace wherever it is asked, as the consistent sampling of OpenTelemetry wants it.
fn is_told(trace: &[u8; 16], threshold: u64) -> bool {
    let random = trace[9..].iter().fold(0, |bits, byte| bits << 8 | u64::from(*byte));
    random >= threshold
}

/// Below which value of their last bits traces are left out.
fn threshold(share: f64) -> u64 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a share is between 0 and 1")]
    let left_out = ((1.0 - share) * 2f64.powi(RANDOM_BITS.cast_signed())) as u64;
    left_out
}

fn since(from_ms: u64) -> Duration {
    Duration::from_millis(wall_ms().saturating_sub(from_ms))
}

fn shortened(text: &str) -> String {
    text.chars().take(TEXT_CHARS_MAX).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT_MS: u64 = 1_700_000_000_000;

    fn traces(places: usize, share: f64) -> (Traces, mpsc::Receiver<(By, SpanData)>) {
        let (queue, spans) = mpsc::channel(places);
        let open = Open { queue, dropped: Arc::default(), threshold: threshold(share) };
        (Traces(Some(Arc::new(open))), spans)
    }

    fn case(synced: bool, wall_ms: u64) -> Case {
        let mut case = crate::store::testing::case(1);
        case.captured = Captured { powered_ms: 5_000, boot: "b".to_owned(), wall_ms: Some(wall_ms), synced };
        case
    }

    fn told(case: &Case, came: Came) -> Vec<SpanData> {
        let (traces, mut spans) = traces(8, 1.0);
        traces.taken_in(traces.taking_in(case, came, 7).expect("told"));
        std::iter::from_fn(|| spans.try_recv().ok()).map(|(_, span)| span).collect()
    }

    fn ms(span: &SpanData) -> (u64, u64) {
        let at = |time: SystemTime| time.duration_since(SystemTime::UNIX_EPOCH).expect("later").as_millis();
        (u64::try_from(at(span.start_time)).expect("now"), u64::try_from(at(span.end_time)).expect("now"))
    }

    /// A case that was kept for two seconds, by a clock that is right, wrong by a second, or unknown.
    #[test]
    fn a_device_s_time_is_told_by_its_own_clock_where_that_is_known_and_the_way_only_where_both_are() {
        let came = Came { at_ms: AT_MS, sent_powered_ms: Some(7_000) };
        for (synced, wall_ms, kept, way) in [
            (true, AT_MS - 2_300, (AT_MS - 2_300, AT_MS - 300), Some((AT_MS - 300, AT_MS))),
            (true, AT_MS - 1_000, (AT_MS - 1_000, AT_MS + 1_000), None),
            (false, 12, (AT_MS - 2_000, AT_MS), None),
        ] {
            let case = case(synced, wall_ms);
            let spans = told(&case, came);
            let of = |name: &str| spans.iter().find(|span| span.name == name);
            let (device, intake) = (of("case").expect("told"), of("intake").expect("told"));
            assert_eq!((ms(device), of("broker").map(ms)), (kept, way), "{synced} {wall_ms}");
            assert_eq!(device.parent_span_id, SpanId::INVALID);
            assert_eq!(intake.parent_span_id, device.span_context.span_id());
            assert!(of("broker").is_none_or(|way| way.parent_span_id == device.span_context.span_id()));
            assert_eq!(intake.span_context.span_id().to_bytes(), TraceContext::in_cloud(&case.id).span);
            assert!(
                spans
                    .iter()
                    .all(|span| { span.span_context.trace_id().to_bytes() == TraceContext::on_device(&case.id).trace })
            );
        }
    }

    #[test]
    fn of_a_device_that_traces_nothing_the_trace_begins_in_the_cloud() {
        let spans = told(&case(true, AT_MS), Came { at_ms: AT_MS, sent_powered_ms: None });
        assert_eq!(spans.len(), 1);
        assert_eq!((spans[0].name.as_ref(), spans[0].parent_span_id), ("intake", SpanId::INVALID));
    }

    #[test]
    fn what_finds_no_place_is_counted_and_nobody_waits() {
        let (traces, spans) = traces(1, 1.0);
        let (id, open) = (case(true, AT_MS).id, traces.0.clone().expect("open"));
        for _ in 0..3 {
            let trace = traces.of(&id).expect("told");
            trace.published(trace.begin(), AT_MS, None);
        }
        drop(spans);
        assert_eq!(open.dropped.load(Ordering::Relaxed), 2);
    }

    #[test]
    fn a_share_of_all_cases_is_told_and_the_same_ones_everywhere() {
        let ((some, _spans), (others, _more)) = (traces(1, 0.25), traces(1, 0.25));
        let ids: Vec<CaseId> =
            (0..4_000).map(|number| format!("d.00000000000000aa.{number}").parse().expect("an id")).collect();
        let told = |traces: &Traces| ids.iter().map(|id| traces.of(id).is_some()).collect::<Vec<_>>();
        let told_here = told(&some);
        assert_eq!(told_here, told(&others));
        let count = told_here.iter().filter(|is_told| **is_told).count();
        assert!((900..1_100).contains(&count), "{count} of 4000");
        assert!(ids.iter().all(|id| traces(1, 1.0).0.of(id).is_some() && traces(1, 0.0).0.of(id).is_none()));
    }
}
