//! Makes the parts from the configuration and connects them. Starts threads, but nothing is served yet.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};

use hedge_core::budget::Budget;
use hedge_core::clock::Moment;
use hedge_core::engine::{Engine, Event, Setup};
use hedge_proto::{Epoch, Name};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::time::Instant;

use super::StartError;
use super::config::{Config, SourceConfig};
use super::driver::{Driver, EVENTS_MAX};
use super::keeper::Keeper;
use super::notify::Watchdog;
use crate::answers::Answers;
use crate::capture::Snapshots;
use crate::clock::Clock;
use crate::control::commands::{Desk, Inbox};
use crate::figures::Figures;
use crate::identity::Renewer;
use crate::inference::{Judge, ModelSetup};
use crate::outbox::{OpenReport, Outbox};
use crate::pipeline::{LinkView, Pipeline, SourceSetup, loaded_models};
use crate::state::StateFile;
use crate::uplink::{Meter, Uplink, UplinkSetup};
use crate::verdict::{Delivery, Sink, Verdicts, sink_bits};

/// Everything that runs.
pub(super) struct Parts {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) uplink: Option<Uplink>,
    pub(super) keeper: Keeper,
    pub(super) verdicts: Verdicts,
    pub(super) driver: Driver,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) deliveries: Vec<Delivery>,
    pub(super) renewer: Option<Renewer>,
    pub(super) commands: Inbox,
}

pub(super) fn wire(config: &Config) -> Result<Parts, StartError> {
    let device = config.device_id().map_err(StartError::Identity)?;
    let (state, outbox, clock) = open_state(config)?;
    let spent_before = state.state().spent.clone();
    let state = Arc::new(Mutex::new(state));
    let (meter, (spent, spent_view)) = (Meter::default(), watch::channel(spent_before.clone().unwrap_or_default()));
    let figures = Arc::new(Figures::default());
    let judges = start_models(config, &figures)?;
    let (events, arrived) = mpsc::channel(EVENTS_MAX);
    let (link, link_view) = watch::channel(LinkView::starting(config.link.policies().offline));
    let (answers, news) = (Answers::default(), Arc::new(Notify::new()));
    let verdicts = Verdicts {
        outbox: outbox.clone(),
        answers: answers.clone(),
        figures: figures.clone(),
        link: link_view.clone(),
        news,
        sinks: sink_bits(&config.verdicts),
    };
    let (desk, commands) = Desk::new();
    let uplink = config.broker.as_ref().map(|broker| {
        let judges = judges.clone();
        Uplink::new(UplinkSetup {
            config: broker.clone(),
            keep_alive: config.link.profile().keep_alive,
            probe: config.link.probe.clone(),
            payloads: config.payloads.clone(),
            meter: meter.clone(),
            device: device.clone(),
            outbox: outbox.clone(),
            verdicts: verdicts.clone(),
            desk,
            state: state.clone(),
            events: events.clone(),
            models: Box::new(move || loaded_models(&judges)),
        })
    });
    let deliveries = Sink::all(&config.verdicts, uplink.as_ref(), &device)?
        .into_iter()
        .map(|(sink, wanted)| Delivery::new(verdicts.clone(), sink, wanted))
        .collect();
    let driver = Driver {
        engine: Engine::new(
            clock.now(),
            Setup {
                has_broker: uplink.is_some(),
                open_cases: outbox.figures().waiting,
                profile: config.link.profile(),
                policies: config.link.policies(),
                budget: Budget::resume(config.link.ceilings(), spent_before.clone(), clock.now()),
                batch_bytes_max: config.link.batch_bytes_max(),
                seed: random_u64()?,
            },
        ),
        clock: clock.clone(),
        outbox: outbox.clone(),
        uplink: uplink.clone(),
        events: events.clone(),
        link,
        watchdog: Watchdog::from_environment(judges.values().cloned().collect()),
        meter,
        spent,
        spent_shown: Instant::now(),
    };
    let pipeline = Arc::new(Pipeline {
        device,
        epoch: Epoch(random_u64()?),
        sequence: AtomicU64::new(0),
        clock: clock.clone(),
        sources: config.sources.iter().filter_map(|source| source_setup(config, source)).collect(),
        judges,
        outbox,
        answers,
        snapshots: Snapshots::default(),
        figures,
        events,
        link: link_view,
        spent: spent_view.clone(),
        ceilings: config.broker.is_some().then(|| config.link.ceilings()),
        store_wait: config.outbox.store_wait(),
        shrinking: Semaphore::new(1),
        started: Instant::now(),
    });
    let renewer = renewer(config, &pipeline.link);
    let keeper = Keeper { clock, state, spent: spent_view };
    Ok(Parts { pipeline, uplink, keeper, verdicts, driver, events: arrived, deliveries, commands, renewer })
}

fn open_state(config: &Config) -> Result<(StateFile, Outbox, Clock), StartError> {
    let dir = &config.state_dir;
    let failed = |reason: String| StartError::State { path: dir.clone(), reason };
    let (state, lost) = StateFile::open(dir).map_err(|error| failed(error.to_string()))?;
    if let Some(lost) = lost {
        tracing::warn!(lost);
    }
    let opened = Outbox::open(&dir.join("outbox"), config.outbox.limits());
    let (outbox, report) = opened.map_err(|error| failed(error.to_string()))?;
    say_report(&report, dir);
    let clock = Clock::resume(&state.state().clock, report.clock.unwrap_or(Moment(0)));
    Ok((state, outbox, clock))
}

fn say_report(report: &OpenReport, dir: &Path) {
    tracing::info!(?report, "outbox open");
    if report.damaged_records > 0 {
        let records = report.damaged_records;
        tracing::warn!(records, dir = %dir.display(), "damaged records were set aside");
    }
}

fn start_models(config: &Config, figures: &Arc<Figures>) -> Result<BTreeMap<Name, Judge>, StartError> {
    let mut judges = BTreeMap::new();
    for model in &config.models {
        let judge = Judge::start(ModelSetup {
            name: model.name.clone(),
            bundle: model.bundle.clone(),
            variant: model.variant.clone(),
            threads: model.threads,
            hung_after: model.hung_after(),
            threshold: model.threshold.map(|threshold| threshold.0),
            library: config.runtime.library.clone(),
            figures: figures.clone(),
        })?;
        judges.insert(model.name.clone(), judge);
    }
    Ok(judges)
}

fn source_setup(config: &Config, source: &SourceConfig) -> Option<(Name, SourceSetup)> {
    let model = config.model_of(source)?.name.clone();
    let setup = SourceSetup { model, region: source.region, metadata: source.metadata.clone() };
    Some((source.name.clone(), setup))
}

fn renewer(config: &Config, link: &watch::Receiver<LinkView>) -> Option<Renewer> {
    let (enrolment, broker) = (config.enrolment.as_ref()?, config.broker.as_ref()?);
    Some(Renewer {
        url: enrolment.url.clone(),
        certificate: broker.certificate_file.clone()?,
        key: broker.key_file.clone()?,
        authorities: broker.ca_file.clone()?,
        link: link.clone(),
    })
}

fn random_u64() -> Result<u64, StartError> {
    getrandom::u64().map_err(|error| StartError::System(std::io::Error::other(error.to_string())))
}
