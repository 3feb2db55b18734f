//! Brings samples in: over HTTP, from a folder, from a command's output.
//!
//! A source hands each sample to its [`Taker`] and does with the answer what its kind promises (an HTTP
//! response, a moved file). It never decodes a picture, decides anything, or holds more than a bounded number
//! of samples. A source that fails says so in one sentence and tries again; it never takes the agent down.

pub mod command;
mod folder;
pub(crate) mod http;
pub(crate) mod open_inference;
mod snapshots;
#[cfg(test)]
pub(crate) mod testing;

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hedge_inference::{ContentType, Tensor, Tensors, what_else};
use hedge_listen::{ListenError, Listener};
use hedge_proto::{Answer, CaseId, Name, Telemetry};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use self::snapshots::{Asking, Snapshots};
use crate::answers::{Answers, Remembered};
use crate::control::Control;
use crate::faults::{Faults, Part};
use crate::link::LinkView;
use crate::queue::Queue;
use crate::sample::{NewSample, SampleError};
use hedge_config::{Config, Listen, Quiet, SourceConfig, SourceKind};

/// What every source hands its samples to: the agent, or the way to one.
pub trait Taker: Send + Sync + 'static {
    /// Answers one sample, after waiting a bounded time for its case to be stored.
    ///
    /// A `reference` already answered for this source gets the answer given then; one for other content is refused.
    fn answer(&self, sample: NewSample) -> impl Future<Output = Result<Arc<Answer>, SampleError>> + Send;

    /// Like [`Self::answer`], for a source that can wait: returns once the files of this machine that are to have every
    /// answer have this one.
    fn answer_and_keep(&self, sample: NewSample) -> impl Future<Output = Result<Arc<Answer>, SampleError>> + Send {
        self.answer(sample)
    }

    /// What a person should know of a source now, in one sentence.
    fn set_source_state(&self, source: &Name, state: String);

    /// A source is on.
    fn begin_source(&self, _source: &Name, _quiet: Option<Quiet>) {}

    /// A source is off.
    fn end_source(&self, _source: &Name) {}

    /// A source has brought a sample; it is not new if it is the one before, byte for byte.
    fn saw(&self, _source: &Name, _is_new: bool) {}

    /// Counts samples passed over: a newer one was there, or they were not whole.
    fn count_skipped(&self, source: &Name, count: u64);

    /// Who asks a source for a sample now; nobody, where there is nobody to ask.
    fn asked(&self, _: &Name) -> mpsc::Receiver<Asking> {
        mpsc::channel(1).1
    }
}

/// The agent, as its HTTP interface sees it.
pub trait Intake: Taker {
    fn answers(&self) -> &Answers;

    /// A local answer with what has become of its case by now, or the correction that has come meanwhile.
    fn as_it_stands(&self, answer: Arc<Answer>) -> Arc<Answer>;

    /// Returns once it is known that no correction of this answer comes.
    fn ended(&self, answer: &Answer) -> impl Future<Output = ()> + Send;

    /// What is known of an id, also from before this process.
    fn lookup(&self, id: &CaseId) -> impl Future<Output = Lookup> + Send;

    fn models(&self) -> Vec<ModelFacts>;

    /// The raw output of a model for one tensor. Nothing is judged, nothing deferred.
    fn run(&self, model: &Name, tensor: Tensor) -> impl Future<Output = Result<Tensors, SampleError>> + Send;

    fn status(&self) -> Telemetry;

    /// What is wrong with the device now.
    fn faults(&self) -> hedge_proto::Faults;

    /// The link and what its state allows, as it changes.
    fn link(&self) -> watch::Receiver<LinkView>;

    /// The same figures as Prometheus text.
    fn metrics(&self) -> String;

    /// The outbox, for an operator.
    fn queue(&self) -> Queue;

    /// The settings, for an operator.
    fn control(&self) -> Control;
}

/// What the agent knows of an id.
#[derive(Debug, Clone, PartialEq)]
pub enum Lookup {
    Found(Remembered),
    /// From an earlier run; its case still waits for the cloud.
    Open,
    /// Given too long ago to be remembered.
    Gone,
    NotOurs,
}

/// A model as the Open Inference Protocol describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelFacts {
    pub name: Name,
    pub version: String,
    /// Why no sample gets an answer of it now.
    pub cannot_answer: Option<String>,
    pub input_name: String,
    /// With the leading 1 of a single sample, if the model has it.
    pub input_shape: Vec<usize>,
    /// Names and shapes of the outputs, -1 where a size is open.
    pub outputs: Vec<(String, Vec<i64>)>,
    pub labels: Vec<String>,
}

/// A place that cannot be listened on is tried again after so long: its folder may come, or its owner go.
const LISTEN_AGAIN_AFTER: Duration = Duration::from_secs(5);

/// How long sources may take to finish what they are doing when the agent stops.
pub const STOP_WAIT_MAX: Duration = Duration::from_secs(5);

/// How long a source waits before it offers a sample again that could not be taken just now.
const RETRY_WAIT: Duration = Duration::from_millis(500);

/// The running sources.
pub struct Capture {
    addresses: Vec<SocketAddr>,
    listening: JoinSet<()>,
    /// Sources of kind http, as the interface knows them.
    posted: http::Sources,
    sources: BTreeMap<Name, Running>,
    /// Told to end; another source of the name waits for it.
    ending: BTreeMap<Name, JoinHandle<()>>,
    stop: CancellationToken,
}

/// A source that is on.
struct Running {
    config: SourceConfig,
    stop: CancellationToken,
    /// None for one that others bring samples to.
    task: Option<JoinHandle<()>>,
}

impl Capture {
    /// Opens every listener, then starts every source. Cancelling `stop` ends them. A place that cannot be listened on
    /// is a fault, and is opened as soon as it can be.
    pub async fn start<I: Intake>(
        config: &Config,
        paused: &BTreeSet<Name>,
        intake: &Arc<I>,
        faults: &Faults,
        stop: &CancellationToken,
    ) -> Self {
        let mut capture = Self {
            addresses: Vec::new(),
            listening: JoinSet::new(),
            posted: http::Sources::default(),
            sources: BTreeMap::new(),
            ending: BTreeMap::new(),
            stop: stop.clone(),
        };
        let routes = http::routes(config, &capture.posted, intake, stop);
        for listen in &config.http.listen {
            let serve = {
                let (routes, names) = (routes.clone(), config.http.names.clone());
                move |listener, stop| http::serve(listener, routes.clone(), names.clone(), stop)
            };
            let first = open(listen).await.inspect_err(|error| faults.set(&Part::Listen, error.to_string())).ok();
            capture.addresses.extend(first.as_ref().and_then(Listener::address));
            let (listen, faults, stop) = (listen.clone(), faults.clone(), stop.clone());
            capture.listening.spawn(keep_open(first, listen, faults, stop, serve));
        }
        capture.apply(config, paused, intake);
        capture
    }

    /// Starts, stops and restarts sources so that they are as `config` says; `paused` ones are off. A source that
    /// stays as it was is not touched.
    pub fn apply<I: Intake>(&mut self, config: &Config, paused: &BTreeSet<Name>, intake: &Arc<I>) {
        self.posted.set(config.sources.iter().filter(|source| matches!(source.kind, SourceKind::Http)));
        let wanted: BTreeMap<&Name, &SourceConfig> = config
            .sources
            .iter()
            .filter(|source| source.enabled && !paused.contains(&source.name))
            .map(|source| (&source.name, source))
            .collect();
        let gone: Vec<Name> = self
            .sources
            .iter()
            .filter(|(name, one)| wanted.get(name) != Some(&&one.config))
            .map(|(name, _)| name.clone())
            .collect();
        for name in gone {
            let Some(running) = self.sources.remove(&name) else { continue };
            running.stop.cancel();
            if !wanted.contains_key(&name) {
                intake.set_source_state(&name, "off".to_owned());
                intake.end_source(&name);
            }
            self.ending.extend(running.task.map(|task| (name, task)));
        }
        for (name, source) in wanted {
            if !self.sources.contains_key(name) {
                let before = self.ending.remove(name);
                self.sources.insert(name.clone(), self.start_source(config, source, intake, before));
            }
        }
    }

    /// Starts once `before`, the same source with other settings, has ended.
    fn start_source<I: Intake>(
        &self,
        config: &Config,
        source: &SourceConfig,
        intake: &Arc<I>,
        before: Option<JoinHandle<()>>,
    ) -> Running {
        let stop = self.stop.child_token();
        intake.begin_source(&source.name, source.quiet_after());
        let common = Source {
            name: source.name.clone(),
            interval: source.interval_ms.filter(|ms| *ms > 0).map(Duration::from_millis),
            quiet: source.quiet_after(),
            sample_bytes_max: usize::try_from(config.http.body_bytes_max).unwrap_or(usize::MAX),
            intake: intake.clone(),
        };
        let task = match &source.kind {
            SourceKind::Http => {
                intake.set_source_state(&source.name, "taking samples over HTTP".to_owned());
                None
            }
            SourceKind::Crops { of, .. } => {
                intake.set_source_state(&source.name, format!("taking what is found in pictures of `{of}`"));
                None
            }
            SourceKind::Folder { path, after } => {
                let answered = config.state_dir.join(format!("folder-{}.answered", source.name));
                let task = folder::run(common, path.clone(), *after, answered, stop.clone());
                Some(tokio::spawn(after_the_one(before, task)))
            }
            SourceKind::Command { command, format } => {
                let task = command::run(common, command.clone(), *format, stop.clone());
                Some(tokio::spawn(after_the_one(before, task)))
            }
        };
        Running { config: source.clone(), stop, task }
    }

    /// The TCP addresses listened on, for whoever configured port 0.
    #[must_use]
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until every source has ended, which they do soon after `stop`; at most [`STOP_WAIT_MAX`].
    pub async fn stopped(mut self) {
        let running = self.sources.into_values().filter_map(|source| source.task);
        let tasks: Vec<JoinHandle<()>> = running.chain(self.ending.into_values()).collect();
        let ended = timeout(STOP_WAIT_MAX, async {
            while self.listening.join_next().await.is_some() {}
            for task in tasks {
                // One that ended badly has said so.
                drop(task.await);
            }
        });
        if ended.await.is_err() {
            tracing::warn!("sources were still busy after {} s and are cut off", STOP_WAIT_MAX.as_secs());
        }
    }
}

async fn open(listen: &Listen) -> Result<Listener, ListenError> {
    match listen {
        Listen::Unix(path) => Listener::unix(path).await,
        Listen::Tcp(address) => Listener::tcp(*address).await,
    }
}

/// Serves a place until `stop`. One that could not be opened is opened as soon as it can be, and so is a socket whose file
/// somebody deleted: who is connected stays so, and nobody else would find it.
async fn keep_open<F: Future<Output = ()> + Send + 'static>(
    mut first: Option<Listener>,
    listen: Listen,
    faults: Faults,
    stop: CancellationToken,
    serve: impl Fn(Listener, CancellationToken) -> F,
) {
    let mut serving = JoinSet::new();
    while !stop.is_cancelled() {
        let opened = match first.take() {
            Some(listener) => Some(listener),
            None => open_later(&listen, &faults, &stop).await,
        };
        let Some(listener) = opened else { break };
        let (file, over) = (listener.file(), stop.child_token());
        serving.spawn(serve(listener, over.clone()));
        let gone = async {
            let Some(file) = &file else { return std::future::pending().await };
            while file.is_there() {
                tokio::time::sleep(LISTEN_AGAIN_AFTER).await;
            }
        };
        tokio::select! {
            () = stop.cancelled() => {}
            () = gone => {}
        }
        over.cancel();
        if let (Listen::Unix(path), false) = (&listen, stop.is_cancelled()) {
            let path = path.display();
            faults.set(&Part::Listen, format!("the socket unix:{path} was deleted or replaced; it is made again"));
        }
    }
    while serving.join_next().await.is_some() {}
}

/// Opens a place that could not be opened, as soon as it can be; `None` when the agent stops.
async fn open_later(listen: &Listen, faults: &Faults, stop: &CancellationToken) -> Option<Listener> {
    loop {
        tokio::select! {
            () = stop.cancelled() => return None,
            () = tokio::time::sleep(LISTEN_AGAIN_AFTER) => {}
        }
        match open(listen).await {
            Ok(listener) => {
                faults.clear(&Part::Listen);
                return Some(listener);
            }
            Err(error) => faults.set(&Part::Listen, error.to_string()),
        }
    }
}

async fn after_the_one(before: Option<JoinHandle<()>>, task: impl Future<Output = ()>) {
    if let Some(before) = before {
        drop(before.await);
    }
    task.await;
}

/// What folder and command sources have in common.
pub struct Source<I> {
    pub name: Name,
    pub interval: Option<Duration>,
    /// None for one that may be quiet.
    pub quiet: Option<Quiet>,
    pub sample_bytes_max: usize,
    pub intake: Arc<I>,
}

impl<I: Taker> Source<I> {
    fn say(&self, state: impl Into<String>) {
        self.say_quoting(state, "");
    }

    /// `quoted` is somebody else's text: it is shown in the status, but not written to the log.
    fn say_quoting(&self, state: impl Into<String>, quoted: &str) {
        let mut state = state.into();
        tracing::info!(source = %self.name, "{state}");
        if !quoted.is_empty() {
            state.push_str(": ");
            state.push_str(quoted);
        }
        self.intake.set_source_state(&self.name, state);
    }
}

/// Media types that say nothing of the bytes. The form is what curl says of `--data-binary` when it is told nothing.
const NOT_SAID: [&str; 8] = [
    "",
    "*/*",
    "image/*",
    "audio/*",
    "application/*",
    "application/octet-stream",
    "binary/octet-stream",
    "application/x-www-form-urlencoded",
];

/// Reads what kind of sample these bytes are, from what the sender says or else from how they begin.
fn content_type(stated: Option<&str>, bytes: &[u8]) -> Result<ContentType, SampleError> {
    let stated = stated.unwrap_or_default().trim();
    let media = stated.split(';').next().unwrap_or_default().trim_end();
    if NOT_SAID.iter().any(|other| media.eq_ignore_ascii_case(other)) {
        let sniffed = ContentType::sniff(bytes).or_else(|| ContentType::sniff_rows(bytes));
        return sniffed.ok_or_else(|| {
            let looks = what_else(bytes).map_or_else(String::new, |what| format!("{what}, "));
            SampleError::Unusable(format!(
                "this is {looks}neither a JPEG nor a PNG picture, no WAV file and no rows of numbers"
            ))
        });
    }
    ContentType::parse(stated).ok_or_else(|| {
        if media.eq_ignore_ascii_case("multipart/form-data") {
            let how = "send the bytes alone as the body, as curl does with --data-binary @FILE and not with -F";
            return SampleError::Unusable(format!("a form with files in it is not read; {how}"));
        }
        let stated: String = stated.chars().take(100).collect();
        SampleError::Unusable(format!(
            "`{stated}` is not read; send image/jpeg, image/png, audio/wav, text/csv, application/json, application/x-ndjson \
             or application/vnd.hedge.tensor; dtype=f32; shape=…"
        ))
    })
}

/// A sample whose kind is read from its first bytes.
fn sample(source: &Name, reference: Option<String>, bytes: Bytes) -> Result<NewSample, SampleError> {
    let content_type = content_type(None, &bytes)?;
    Ok(NewSample {
        source: source.clone(),
        reference,
        metadata: Default::default(),
        urgent: false,
        frame: false,
        camera: None,
        content_type,
        bytes,
        view: None,
    })
}

/// Whether the same sample may be answered later: nothing is wrong with the sample itself.
pub fn passes(error: &SampleError) -> bool {
    match error {
        SampleError::Overloaded(_)
        | SampleError::ModelFailed { .. }
        | SampleError::NoModel { .. }
        | SampleError::NoThreshold { .. }
        | SampleError::SourceOff(_)
        | SampleError::Unreachable(_)
        | SampleError::Stopping => true,
        SampleError::UnknownSource(..)
        | SampleError::Unusable(_)
        | SampleError::TooLarge { .. }
        | SampleError::OtherContent(_)
        | SampleError::MetadataTooLarge { .. } => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_media_type_that_says_nothing_is_read_by_the_first_bytes_however_it_is_written() {
        let png = b"\x89PNG\r\n\x1a\n";
        for stated in [
            None,
            Some(""),
            Some(" "),
            Some("; charset=binary"),
            Some("application/octet-stream"),
            Some("application/octet-stream; charset=binary"),
            Some("Application/Octet-Stream ;charset=binary"),
            Some("binary/octet-stream"),
            Some("image/*"),
            Some("*/*;q=0.8"),
            Some("application/x-www-form-urlencoded; charset=UTF-8"),
        ] {
            assert_eq!(content_type(stated, png), Ok(ContentType::Png), "{stated:?}");
            assert!(content_type(stated, b"text").is_err(), "{stated:?}");
        }
        for stated in ["image/png; charset=binary", "IMAGE/PNG", "image/x-png"] {
            assert_eq!(content_type(Some(stated), png), Ok(ContentType::Png), "{stated}");
        }
        let error = content_type(Some("text/plain; charset=utf-8"), png).expect_err("refused").to_string();
        assert!(error.starts_with("`text/plain; charset=utf-8` is not read; send image/jpeg"), "{error}");
        for stated in [None, Some("application/octet-stream")] {
            assert_eq!(content_type(stated, b"x,y\n1,2\n"), Ok(ContentType::Csv), "{stated:?}");
            assert_eq!(content_type(stated, b"RIFF\0\0\0\0WAVE"), Ok(ContentType::Wav), "{stated:?}");
        }
    }
}
