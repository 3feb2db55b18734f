//! Makes the parts from the configuration and connects them. Starts threads, but nothing is served yet.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use hedge_core::budget::Spent;
use hedge_core::engine::{Engine, Event, Setup};
use hedge_proto::{Epoch, Name};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::StartError;
use super::down::Addressees;
use super::driver::{Driver, EVENTS_MAX};
use super::health::Cause;
use super::keeper::Keeper;
use super::notify::Watchdog;
use super::renewer::Renewer;
use super::store::{self, Identified, Store};
use crate::answers::Answers;
use crate::audit::Audit;
use crate::bundles::{self, Deliveries};
use crate::capture::Snapshots;
use crate::clock::Clock;
use crate::commands::{Desk, Inbox};
use crate::control::{Control, Request};
use crate::faults::Faults;
use crate::figures::Figures;
use crate::in_force::InForce;
use crate::inference::{Judge, ModelSetup, Place};
use crate::learned::Learned;
use crate::link::LinkView;
use crate::pipeline::{Pipeline, loaded_models};
use crate::privacy::Reducer;
use crate::settings;
use crate::state::Remembered;
use crate::uplink::{Meter, Uplink, UplinkSetup};
use crate::verdict::{Locals, Sinks, Verdicts};
use hedge_config::{BrokerConfig, Config, ConfigFile};

/// Everything that runs.
pub(super) struct Parts {
    pub(super) pipeline: Arc<Pipeline>,
    pub(super) uplink: Option<Uplink>,
    pub(super) keeper: Keeper,
    pub(super) driver: Driver,
    pub(super) events: mpsc::Receiver<Event>,
    pub(super) settings: Settings,
    pub(super) sinks: Sinks,
    pub(super) renewer: Option<Renewer>,
    pub(super) audit: Audit,
    /// None where nothing can be kept.
    pub(super) deliveries: Option<Deliveries>,
    pub(super) commands: Inbox,
    /// What could not be used, and is looked at again.
    pub(super) causes: Vec<Cause>,
    /// Why the state folder is not used, if it is not.
    pub(super) closed: Option<String>,
}

/// What the task that owns the settings is made from.
pub(super) struct Settings {
    pub(super) control: Control,
    pub(super) requests: mpsc::Receiver<Request>,
    pub(super) in_force: watch::Sender<Arc<InForce>>,
    pub(super) remembered: Remembered,
}

pub(super) fn wire(file: &ConfigFile, stop: &CancellationToken) -> Result<Parts, StartError> {
    let faults = Faults::default();
    let mut store = store::open(&file.config, &faults)?;
    let Identified { device, is_guess } = store::identify(&file.config, &mut store, &faults);
    let Store { mut state, outbox, clock, causes, closed, rest, gone } = store;
    let (mut in_force, remembered) = settings::resume(file, &mut state, &clock);
    if is_guess {
        in_force.config.broker = None;
        in_force.config.verdicts.sinks.retain(|_, sink| !sink.on_uplink());
    }
    let in_force = watch::Sender::new(Arc::new(in_force));
    let settings = in_force.subscribe();
    let config = &settings.borrow().config.clone();
    let (control, requests) = Control::new();
    let (spent_before, crashed) = (state.state().spent.clone(), state.state().crashes > 0);
    let state = Arc::new(Mutex::new(state));
    let (meter, (spent, spent_view)) = (Meter::default(), watch::channel(spent_before.clone().unwrap_or_default()));
    let figures = Arc::new(Figures::default());
    figures.count_gone(gone);
    let (load, loaded) = watch::channel(0);
    let wanted = watch::Sender::default();
    let dir = closed.is_none().then_some(config.state_dir.as_path());
    let learned = learned(config, dir, &clock)?;
    let (events, arrived) = mpsc::channel(EVENTS_MAX);
    let (link, link_view) = watch::channel(LinkView::starting(config.policies().offline));
    let (answers, locals) = (Answers::default(), Locals::new(figures.clone()));
    let verdicts = Verdicts {
        outbox: outbox.clone(),
        answers: answers.clone(),
        figures: figures.clone(),
        link: link_view.clone(),
        settings: settings.clone(),
        learned: learned.clone(),
        news: watch::Sender::new(()),
        locals: locals.clone(),
        faults: faults.clone(),
        sinks: Arc::default(),
    };
    // Before the models are there: they learn of it when they begin.
    verdicts.recall(clock.now());
    bundles::start(config, crashed);
    let judges = start_models(config, &figures, rest.as_ref(), &faults, &load, &learned)?;
    let (desk, commands) = Desk::new();
    let reducer = Reducer::default();
    let addressees = Addressees { verdicts: verdicts.clone(), control: control.clone(), desk, events: events.clone() };
    let uplink = config.broker.as_ref().map(|broker| {
        let judges = judges.clone();
        Uplink::new(UplinkSetup {
            settings: settings.clone(),
            prefix: broker.prefix.clone(),
            probe: config.link.probe.clone(),
            payloads: config.payloads.clone(),
            reducer: reducer.clone(),
            meter: meter.clone(),
            clock: clock.clone(),
            device: device.clone(),
            outbox: outbox.clone(),
            takes: addressees.takes(),
            figures: figures.clone(),
            state: state.clone(),
            events: events.clone(),
            faults: faults.clone(),
            models: Box::new(move || loaded_models(&judges)),
        })
    });
    let sinks = Sinks::start(&config.verdicts, verdicts, state.clone(), uplink.clone(), device.clone(), stop.clone());
    let driver = Driver {
        engine: engine(config, &clock, spent_before, uplink.is_some(), outbox.figures().waiting)?,
        clock: clock.clone(),
        outbox: outbox.clone(),
        uplink: uplink.clone(),
        events: events.clone(),
        link,
        watchdog: Watchdog::from_environment(judges.values().cloned().collect()),
        meter: meter.clone(),
        spent,
        spent_shown: Instant::now(),
        bytes_not_shown: 0,
        faults: faults.clone(),
        limit_seen: None,
    };
    let pipeline = Arc::new(Pipeline {
        device,
        epoch: Epoch(random_u64()?),
        sequence: AtomicU64::new(0),
        clock: clock.clone(),
        judges,
        loaded,
        outbox: outbox.clone(),
        answers,
        locals,
        snapshots: Snapshots::default(),
        figures,
        events,
        link: link_view,
        spent: spent_view.clone(),
        wanted: wanted.subscribe(),
        settings,
        control: control.clone(),
        reducer,
        faults,
        started: Instant::now(),
    });
    let renewer = renewer(config, &pipeline.link);
    let keeper = Keeper { clock, state, spent: spent_view, learned: learned.into_values().collect(), outbox };
    let settings = Settings { control, requests, in_force, remembered };
    let audit = Audit::new(&config.state_dir, keeper.clock.clone());
    let deliveries = (closed.is_none() && !is_guess).then(|| Deliveries {
        clock: pipeline.clock.clone(),
        settings: pipeline.settings.clone(),
        link: pipeline.link.clone(),
        spent: pipeline.spent.clone(),
        judges: pipeline.judges.clone(),
        faults: pipeline.faults.clone(),
        events: pipeline.events.clone(),
        meter,
        shown: wanted,
        audit: audit.clone(),
        config_file: file.path().to_owned(),
    });
    Ok(Parts {
        pipeline,
        uplink,
        keeper,
        driver,
        events: arrived,
        settings,
        sinks,
        commands,
        renewer,
        audit,
        deliveries,
        causes,
        closed,
    })
}

fn engine(
    config: &Config,
    clock: &Clock,
    spent: Option<Spent>,
    has_broker: bool,
    open_cases: u64,
) -> Result<Engine, StartError> {
    let setup = Setup {
        has_broker,
        recovery_after: config.broker.as_ref().and_then(BrokerConfig::recovery_after),
        open_cases,
        configured: config.configured(),
        spent,
        seed: random_u64()?,
    };
    Ok(Engine::new(clock.now(), setup))
}

fn learned(config: &Config, dir: Option<&Path>, clock: &Clock) -> Result<BTreeMap<Name, Learned>, StartError> {
    let of = |model: &hedge_config::ModelConfig| {
        Ok((model.name.clone(), Learned::new(model.name.clone(), dir, clock.clone(), random_u64()?)))
    };
    config.models.iter().map(of).collect()
}

fn start_models(
    config: &Config,
    figures: &Arc<Figures>,
    rest: Option<&(Duration, String)>,
    faults: &Faults,
    loaded: &watch::Sender<usize>,
    learned: &BTreeMap<Name, Learned>,
) -> Result<BTreeMap<Name, Judge>, StartError> {
    let mut judges = BTreeMap::new();
    for (model, learned) in config.models.iter().filter_map(|model| Some((model, learned.get(&model.name)?.clone()))) {
        let judge = Judge::start(ModelSetup {
            name: model.name.clone(),
            place: Place {
                bundle: model.bundle.clone(),
                variant: model.variant.clone(),
                session: model.session(),
                library: config.runtime.library.clone(),
            },
            hung_after: model.hung_after(),
            rest: rest.cloned(),
            faults: faults.clone(),
            figures: figures.clone(),
            loaded: loaded.clone(),
            learned,
        })?;
        judges.insert(model.name.clone(), judge);
    }
    Ok(judges)
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
