//! Brings spans to the collector: a bounded queue, a batch each second at most, and a rest that grows while the collector
//! takes nothing. It is telemetry: what a collector does not take is dropped, counted and said.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use clap::Args;
use hedge_listen::CancellationToken;
use hedge_proto::Name;
use opentelemetry::KeyValue;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::mpsc;
use tokio::time::{Instant, timeout, timeout_at};

use super::{By, Open, Traces, threshold};

/// Spans that wait for the collector: about 8 MiB, or a second of a thousand cases.
const SPANS_MAX: usize = 8 * 1024;

/// Spans of one request: about half a MiB.
const BATCH_MAX: usize = 1024;

/// How long the first span of a batch waits for others.
const GATHER: Duration = Duration::from_secs(1);

/// How long one request may take.
const REQUEST_MAX: Duration = Duration::from_secs(10);

/// The rest after a request that failed, doubled each time.
const REST_MIN: Duration = Duration::from_secs(1);
const REST_MAX: Duration = Duration::from_secs(60);

/// How often it is said that spans were dropped.
const SAID_EVERY: Duration = Duration::from_secs(60);

/// How long stopping waits for the last spans.
const LAST_MAX: Duration = Duration::from_secs(2);

/// Where traces go, if anywhere.
#[derive(Debug, Args)]
pub struct TracesArgs {
    /// Send traces of cases to this collector, by OTLP over HTTP: http://HOST:4318, to which /v1/traces is added. Without
    /// it nothing is traced. See docs/traces.md
    #[arg(long = "otlp", value_name = "URL", env = "OTEL_EXPORTER_OTLP_ENDPOINT")]
    pub collector: Option<String>,

    /// Which share of all cases is traced. Instances with the same share trace the same cases
    #[arg(long = "otlp-share", value_name = "SHARE", env = "HEDGE_CLOUD_OTLP_SHARE", default_value_t = 1.0, value_parser = share)]
    pub share: f64,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|share| (0.0..=1.0).contains(share));
    share.ok_or_else(|| "a share is a number from 0 to 1, for example 0.01 for one case in a hundred".to_owned())
}

/// Why there can be no traces.
#[derive(Debug, thiserror::Error)]
pub enum NoTraces {
    #[error(
        "--otlp {0}: it must be the address of a collector that takes OTLP over HTTP, for example http://127.0.0.1:4318"
    )]
    NoUrl(String),
    #[error("--otlp: {0}")]
    NoClient(String),
}

/// The task that exports; told to end, it sends what is left.
pub struct Exporting {
    task: tokio::task::JoinHandle<()>,
    stop: CancellationToken,
}

impl TracesArgs {
    /// Starts exporting, if a collector is given. Nothing is dialled before there is a span.
    pub fn open(&self, instance: &Name) -> Result<(Traces, Option<Exporting>), NoTraces> {
        // As OpenTelemetry has it, an empty variable is none.
        let Some(base) = self.collector.as_deref().filter(|url| !url.is_empty()) else {
            return Ok((Traces::default(), None));
        };
        let is_http = |url: &reqwest::Url| matches!(url.scheme(), "http" | "https") && url.has_host();
        let url = format!("{}/v1/traces", base.trim_end_matches('/'));
        if !reqwest::Url::parse(&url).is_ok_and(|url| is_http(&url)) {
            return Err(NoTraces::NoUrl(base.to_owned()));
        }
        let exporter = |service: &'static str| exporter(&url, service, instance);
        let (device, cloud) = (exporter("hedge-agent")?, exporter("hedge-cloud")?);
        let (queue, spans) = mpsc::channel(SPANS_MAX);
        let (dropped, stop) = (Arc::<AtomicU64>::default(), CancellationToken::new());
        let work =
            Work { spans, device, cloud, dropped: dropped.clone(), stop: stop.clone(), collector: base.to_owned() };
        let task = tokio::spawn(work.run());
        let open = Open { queue, dropped, threshold: threshold(self.share) };
        Ok((Traces(Some(Arc::new(open))), Some(Exporting { task, stop })))
    }
}

fn exporter(url: &str, service: &'static str, instance: &Name) -> Result<SpanExporter, NoTraces> {
    let no_client = |error: &(dyn std::error::Error + 'static)| NoTraces::NoClient(hedge_proto::in_one_line(error));
    let client = hedge_identity::http_client(url, None).map_err(NoTraces::NoClient)?;
    let client = client.timeout(REQUEST_MAX).build().map_err(|error| no_client(&error))?;
    let builder = SpanExporter::builder().with_http().with_http_client(client).with_protocol(Protocol::HttpBinary);
    let mut exporter =
        builder.with_endpoint(url).with_timeout(REQUEST_MAX).build().map_err(|error| no_client(&error))?;
    let resource = Resource::builder_empty().with_service_name(service).with_attributes([
        KeyValue::new("service.version", env!("CARGO_PKG_VERSION")),
        KeyValue::new("hedge.instance", instance.to_string()),
    ]);
    exporter.set_resource(&resource.build());
    Ok(exporter)
}

impl Exporting {
    /// Sends what is left, for a moment.
    pub async fn finish(self) {
        self.stop.cancel();
        if timeout(LAST_MAX, self.task).await.is_err() {
            tracing::warn!("the last spans were not taken in time");
        }
    }
}

struct Work {
    spans: mpsc::Receiver<(By, SpanData)>,
    device: SpanExporter,
    cloud: SpanExporter,
    dropped: Arc<AtomicU64>,
    stop: CancellationToken,
    collector: String,
}

impl Work {
    async fn run(mut self) {
        let (mut rest, mut complaint) = (REST_MIN, Complaint::default());
        loop {
            let batch = self.gather().await;
            if batch.is_empty() {
                return;
            }
            let count = batch.len() as u64;
            match self.export(batch).await {
                Ok(()) => rest = REST_MIN,
                Err(error) => {
                    self.dropped.fetch_add(count, Ordering::Relaxed);
                    complaint.say(&self.collector, &error, &self.dropped);
                    // Meanwhile the queue keeps what it has room for.
                    tokio::select! {
                        () = tokio::time::sleep(rest) => {}
                        () = self.stop.cancelled() => {}
                    }
                    rest = (rest * 2).min(REST_MAX);
                }
            }
            complaint.say(&self.collector, "more spans come than it takes", &self.dropped);
        }
    }

    /// The next batch; empty at the end.
    async fn gather(&mut self) -> Vec<(By, SpanData)> {
        let mut batch = Vec::new();
        tokio::select! {
            _ = self.spans.recv_many(&mut batch, BATCH_MAX) => {}
            () = self.stop.cancelled() => {}
        }
        let until = Instant::now() + GATHER;
        while !self.stop.is_cancelled() && !batch.is_empty() && batch.len() < BATCH_MAX {
            let room = BATCH_MAX - batch.len();
            tokio::select! {
                come = timeout_at(until, self.spans.recv_many(&mut batch, room)) => {
                    if matches!(come, Err(_) | Ok(0)) {
                        return batch;
                    }
                }
                () = self.stop.cancelled() => {}
            }
        }
        while batch.len() < BATCH_MAX
            && let Ok(span) = self.spans.try_recv()
        {
            batch.push(span);
        }
        batch
    }

    async fn export(&self, batch: Vec<(By, SpanData)>) -> Result<(), String> {
        let (device, cloud): (Vec<_>, Vec<_>) = batch.into_iter().partition(|(by, _)| *by == By::Device);
        for (exporter, spans) in [(&self.device, device), (&self.cloud, cloud)] {
            if !spans.is_empty() {
                let spans = spans.into_iter().map(|(_, span)| span).collect();
                exporter.export(spans).await.map_err(|error| hedge_proto::in_one_line(&error))?;
            }
        }
        Ok(())
    }
}

/// What was said last of dropped spans.
#[derive(Default)]
struct Complaint {
    said: Option<(Instant, u64)>,
}

impl Complaint {
    fn say(&mut self, collector: &str, why: &str, dropped: &AtomicU64) {
        let dropped = dropped.load(Ordering::Relaxed);
        let (is_due, known) = match self.said {
            None => (true, 0),
            Some((at, known)) => (at.elapsed() >= SAID_EVERY, known),
        };
        if is_due && dropped > known {
            tracing::warn!(collector, dropped, "spans were dropped: {why}; cases are answered all the same");
            self.said = Some((Instant::now(), dropped));
        }
    }
}
