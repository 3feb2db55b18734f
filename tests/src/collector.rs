//! A collector of traces that takes OTLP over HTTP, and a service that answers cases and is told their traces.

use std::io::{BufReader, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;

use crate::address;
use crate::request::Request;

/// What a head or body has at most.
const PART_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// An idle client is let go, so that its thread ends.
const IDLE_MAX: Duration = Duration::from_secs(60);

/// A running server; it lives as long as the process.
pub struct Collector {
    address: SocketAddr,
    state: Arc<Mutex<State>>,
}

#[derive(Default)]
struct State {
    spans: Vec<Span>,
    /// What it says of a case; nothing: it is down.
    label: Option<String>,
    /// The `traceparent` of each case that it was asked about.
    asked: Vec<String>,
    is_down: bool,
}

/// A span as it came.
#[derive(Debug, Clone)]
pub struct Span {
    pub service: String,
    pub name: String,
    pub trace: String,
    pub id: String,
    /// Empty at the root.
    pub parent: String,
    pub start_ns: u64,
    pub end_ns: u64,
    pub about: Vec<(String, String)>,
}

impl Span {
    /// The value of an attribute, or nothing.
    #[must_use]
    pub fn about(&self, name: &str) -> &str {
        self.about.iter().find(|(given, _)| given == name).map_or("", |(_, value)| value)
    }
}

impl Collector {
    pub fn start() -> Result<Self> {
        let listener = TcpListener::bind(address::own(4318)).context("cannot open the collector")?;
        let address = listener.local_addr()?;
        let state = Arc::<Mutex<State>>::default();
        let served = state.clone();
        std::thread::Builder::new().name("collector".into()).spawn(move || {
            for client in listener.incoming().flatten() {
                let state = served.clone();
                // A client that was killed says nothing more; what it said is kept.
                std::thread::spawn(move || serve(&client, &state).ok());
            }
        })?;
        Ok(Self { address, state })
    }

    #[must_use]
    pub fn url(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What has come of the trace of one case.
    #[must_use]
    pub fn spans_of(&self, case: &str) -> Vec<Span> {
        self.state().spans.iter().filter(|span| span.about("hedge.case") == case).cloned().collect()
    }

    #[must_use]
    pub fn asked(&self) -> Vec<String> {
        self.state().asked.clone()
    }

    /// What it answers from now on; without one it answers no case.
    pub fn answer(&self, label: Option<&str>) {
        self.state().label = label.map(str::to_owned);
    }

    /// From now on it takes no spans.
    pub fn break_down(&self) {
        self.state().is_down = true;
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn serve(client: &TcpStream, state: &Mutex<State>) -> Result<()> {
    client.set_read_timeout(Some(IDLE_MAX))?;
    let mut reader = BufReader::new(client);
    while let Some(request) = Request::read(&mut reader, PART_BYTES_MAX)? {
        let (status, body) = answer(request, &mut state.lock().unwrap_or_else(PoisonError::into_inner))?;
        let mut writer = client;
        write!(writer, "HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{body}", body.len())?;
    }
    Ok(())
}

fn answer(request: Request, state: &mut State) -> Result<(&'static str, String)> {
    const DOWN: (&str, String) = ("503 Service Unavailable", String::new());
    if request.path == "/v1/traces" {
        if state.is_down {
            return Ok(DOWN);
        }
        let told = ExportTraceServiceRequest::decode(request.body.as_slice()).context("it is no OTLP")?;
        state.spans.extend(spans(told));
        return Ok(("200 OK", String::new()));
    }
    if request.method == "GET" {
        // Whether it is alive: it says so also while it answers no case.
        return Ok(("404 Not Found", String::new()));
    }
    state.asked.push(request.header("traceparent").to_owned());
    Ok(match &state.label {
        Some(label) => ("200 OK", serde_json::json!({ "label": label }).to_string()),
        None => DOWN,
    })
}

fn spans(told: ExportTraceServiceRequest) -> Vec<Span> {
    let text = |value: Option<Value>| match value {
        Some(Value::StringValue(text)) => text,
        Some(Value::BoolValue(value)) => value.to_string(),
        Some(Value::IntValue(value)) => value.to_string(),
        other => format!("{other:?}"),
    };
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let mut spans = Vec::new();
    for of_resource in told.resource_spans {
        let about = of_resource.resource.map(|resource| resource.attributes).unwrap_or_default();
        let service = about.into_iter().find(|one| one.key == "service.name").and_then(|one| one.value?.value);
        for span in of_resource.scope_spans.into_iter().flat_map(|of_scope| of_scope.spans) {
            let about = span.attributes.into_iter();
            spans.push(Span {
                service: text(service.clone()),
                name: span.name,
                trace: hex(&span.trace_id),
                id: hex(&span.span_id),
                parent: hex(&span.parent_span_id),
                start_ns: span.start_time_unix_nano,
                end_ns: span.end_time_unix_nano,
                about: about.map(|one| (one.key, text(one.value.and_then(|value| value.value)))).collect(),
            });
        }
    }
    spans
}
