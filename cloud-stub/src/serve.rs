//! Starts everything in order, waits, stops everything in order.
//!
//! Stopping runs down the path: the intake commits what it has and ends; with it the link loses its last
//! sender of replies, sends what is left, says `offline` and ends. What a model still had is picked up at the
//! next start.

use std::io::Write;
use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::Context;
use hedge_inference::{Runtime, SessionOptions};
use hedge_listen::{Bounds, CancellationToken, Door, Listener};
use hedge_proto::Topics;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::access::Access;
use crate::answerers::{Config, Ledger, Micro, Month};
use crate::args::{Models, Serve};
use crate::fleet::rollouts::Rollouts;
use crate::identity::{self, Authority, Registry, Terms, certificate_in, fresh_certificate, server_config};
use crate::intake::{self, Event, Inlets, Intake, IntakeError, Outlets, Shut, Taking};
use crate::link::{self, Credentials, Dial, Endpoint, Ends, LinkNow, Way};
use crate::model::{self, Answerer, Answering, Fixed, Onnx};
use crate::payloads::Storage;
use crate::presence::Heard;
use crate::store::{Keep, Writer};
use crate::traces::Exporting;
use crate::{broker, view, wall_ms};

/// How long stopping may take before the process ends anyway. What is committed is safe at any moment.
const STOP_MAX: Duration = Duration::from_secs(8);

const DAY_MS: u64 = 24 * 60 * 60 * 1000;

/// How serving ended, when not as asked.
#[derive(Debug)]
pub enum ServeError {
    Start(anyhow::Error),
    Run(anyhow::Error),
}

/// Serves until SIGTERM or SIGINT. `more` is said on stdout once ready.
pub fn run(args: &Serve, more: &str) -> Result<(), ServeError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("the async runtime cannot be started")
        .map_err(ServeError::Start)?;
    let ended = runtime.block_on(async {
        let running = start(args, more).await.map_err(ServeError::Start)?;
        running.until_stopped().await.map_err(ServeError::Run)
    });
    // The embedded broker and open pages have no end of their own.
    runtime.shutdown_background();
    ended
}

struct Running {
    events: mpsc::Sender<Event>,
    intake: oneshot::Receiver<Result<(), IntakeError>>,
    link: tokio::task::JoinHandle<()>,
    exporting: Option<Exporting>,
    stop: [Signal; 2],
}

async fn start(args: &Serve, more: &str) -> anyhow::Result<Running> {
    let topics = Topics::new(&args.broker.prefix).context("--prefix")?;
    let config = args.config.read()?;
    let answerers = load_answerers(&args.models, &config)?;
    let records = args.records.at(&args.state_dir)?;
    prepare_state_dir(&args.state_dir)?;
    let stop = [signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?];
    let file = &config.page;
    let tls = match args
        .page_cert
        .as_ref()
        .zip(args.page_key.as_ref())
        .or(file.certificate_file.as_ref().zip(file.key_file.as_ref()))
    {
        Some((certificate, key)) => Some(server_config(certificate_in(certificate.clone(), key.clone())?, None)?),
        None => None,
    };
    let names = if args.page_name.is_empty() { &file.names } else { &args.page_name }.clone();
    let access = Access::open(&args.entrance(file), args.listen, tls.is_some())?;
    let listener = Listener::tcp(args.listen).await.context("the dashboard")?;
    let dashboard = listener.address().unwrap_or(args.listen);

    // It waits for a server, and for the end of a process that had this name.
    let writer = tokio::task::block_in_place(|| Writer::open(&records, &args.instance))?;
    let (traces, exporting) = args.traces.open(&args.instance)?;
    let (messages, events, mut inlets) = Inlets::open();
    let model_seconds = model::seconds();
    let runtime = tokio::runtime::Handle::current();
    let panels = model::start(answerers, &events, &model_seconds, &traces, &runtime)?;
    let tasks: Vec<String> = panels.keys().cloned().collect();
    let labels = panels.iter().map(|(task, panel)| (task.clone(), panel.labels.clone())).collect();
    if tasks.is_empty() {
        tracing::warn!("no answerer: cases are recorded and held; give one with --model or --config");
    }
    let month = Month::at(wall_ms());
    let ledger = Ledger::new(config.money.and_then(|money| Micro::of(money.month_max)), month, writer.spent(month)?);
    let (settled, settled_inbox) = mpsc::channel(intake::SETTLED_MAX);
    let (replies, replies_inbox) = mpsc::channel(link::REPLIES_MAX);
    let (commits, commits_seen) = watch::channel(0);
    let (taking, taking_seen) = watch::channel(Taking::All);
    let (answerers, answerers_seen) = watch::channel(Vec::new());
    let (now, link_now) = watch::channel(LinkNow::Connecting);
    let heard = Heard::default();
    let shut = Shut::default();
    let outlets = Outlets {
        settled,
        replies,
        commits,
        taking,
        answerers,
        heard: heard.clone(),
        shut: shut.clone(),
        traces: traces.clone(),
    };
    let payloads_dir = args.payloads.payload_dir.clone().unwrap_or_else(|| args.state_dir.join("payloads"));
    let payloads = Storage::open(&payloads_dir).context("--payload-dir")?;
    let payloads_address = args.payloads.serve(payloads.clone()).await?;
    let work = Intake::new(writer, topics.clone(), (keep(args), args.enough), panels, ledger, payloads, outlets)?;
    let (intake_ended, intake) = oneshot::channel();
    std::thread::Builder::new().name("intake".to_owned()).spawn(move || {
        // Nobody waits for it only when the process is ending anyway.
        drop(intake_ended.send(work.run(&mut inlets, &runtime)));
    })?;

    let Brokers { endpoint, credentials, login, said } = brokers(args, &topics).await?;
    start_enrolment(args).await?;
    let status_every = Duration::from_secs(args.status_s.into());
    let way = Way::new(endpoint, &credentials)?;
    let way = match login {
        Some(login) => way.with_login(login),
        None => way,
    };
    let shared = said.is_none();
    let dial = Dial { way, instance: args.instance.clone(), topics, shared, status_every, traces: traces.clone() };
    let shown = view::Shown {
        instance: args.instance.clone(),
        broker: dial.way.endpoint.to_string(),
        tasks,
        labels,
        link: link_now,
        heard,
        model_seconds,
        traces,
        answerers: answerers_seen,
        taking: taking_seen.clone(),
        events: events.clone(),
        bundles: args.payloads.bundles.clone(),
    };
    let rollouts = Rollouts::open(args.state_dir.join(format!("rollouts-{}.json", args.instance)), wall_ms());
    let operating = view::Operating::new(dial.way.clone(), dial.topics.clone(), &dial.instance, rollouts);
    let naming = "to `hedge-cloud serve` with --page-name";
    let door = Door { listen: dashboard, names, naming, look_only: args.look_only };
    let page = view::router(&records, shown, door, access, operating, commits_seen)?;
    let scheme = if tls.is_some() { "https" } else { "http" };
    let ends = Ends {
        messages,
        settled: settled_inbox,
        replies: replies_inbox,
        taking: taking_seen,
        shut,
        memory: link::memory(),
        now,
    };
    let link = tokio::spawn(link::run(dial, ends));
    tokio::spawn(tick(events.clone()));
    tokio::spawn(hedge_listen::serve(listener, PAGE_BOUNDS, tls, page, CancellationToken::new()));
    say_ready(said.as_deref(), payloads_address, &format!("{scheme}://{dashboard}"), more)?;
    Ok(Running { events, intake, link, exporting, stop })
}

impl Running {
    async fn until_stopped(mut self) -> anyhow::Result<()> {
        let [terminate, interrupt] = &mut self.stop;
        tokio::select! {
            ended = &mut self.intake => {
                ended.context("the intake has died; see the log above for why")??;
                anyhow::bail!("the intake has ended by itself");
            }
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        tracing::info!("stopping");
        notify(&[sd_notify::NotifyState::Stopping]);
        let Self { events, intake, link, exporting, .. } = self;
        let stopped = timeout(STOP_MAX, async move {
            if events.send(Event::Stop).await.is_ok() {
                intake.await.context("the intake has died; see the log above for why")??;
            }
            link.await.context("the link has died")?;
            if let Some(exporting) = exporting {
                exporting.finish().await;
            }
            Ok(())
        });
        match stopped.await {
            Ok(ended) => ended,
            Err(_) => {
                tracing::warn!("not everything was said in {} s; devices will ask", STOP_MAX.as_secs());
                Ok(())
            }
        }
    }
}

/// Where the link connects, as whom, and what is said of it.
struct Brokers {
    endpoint: Endpoint,
    credentials: Credentials,
    login: Option<(String, Vec<u8>)>,
    said: Option<String>,
}

async fn brokers(args: &Serve, topics: &Topics) -> anyhow::Result<Brokers> {
    let at = |addr: SocketAddr| Endpoint { host: addr.ip().to_string(), port: addr.port(), tls: false };
    if let Some(listen) = args.guarded_broker {
        let authority = Authority::open(&args.ca_dir())?;
        let (registry, clients) = (Registry::open(&args.ca_dir())?, authority.roots()?);
        let tls = server_config(fresh_certificate(authority, args.host.clone())?, Some(clients))?;
        let guarded = broker::Guarded { listen, tls, topics: topics.clone(), registry };
        let (outside, inside, login) = broker::start_guarded(guarded).await?;
        let said = Some(format!("mqtts://{outside}"));
        return Ok(Brokers { endpoint: at(inside), credentials: Credentials::default(), login: Some(login), said });
    }
    Ok(match args.embedded_broker {
        Some(addr) => {
            let addr = broker::start(addr).await?;
            let said = Some(format!("mqtt://{addr}"));
            Brokers { endpoint: at(addr), credentials: Credentials::default(), login: None, said }
        }
        None => Brokers {
            endpoint: args.broker.url.clone(),
            credentials: args.broker.credentials.clone(),
            login: None,
            said: None,
        },
    })
}

/// Some dozen people with a few pages each, and whoever reads the metrics. 64 of these may be pages that are served
/// live.
const PAGE_BOUNDS: Bounds = Bounds { what: "the dashboard", connections_max: 256, address_max: 128, files_each: 1 };

/// Enrolling takes two small messages. A fleet that comes back at once waits its turn in the kernel's queue, and one
/// address leaves room for others.
const ENROL_BOUNDS: Bounds = Bounds { what: "--enrol", connections_max: 64, address_max: 32, files_each: 2 };

async fn start_enrolment(args: &Serve) -> anyhow::Result<()> {
    let (Some(addr), Some(device_broker)) = (args.enrol, &args.device_broker) else { return Ok(()) };
    let authority = Authority::open(&args.ca_dir())?;
    let terms = Terms {
        dir: args.ca_dir(),
        broker: device_broker.to_string(),
        certificate_days: args.certificate_days,
        grace_days: args.grace_days,
    };
    let tls = server_config(fresh_certificate(authority, args.host.clone())?, None)?;
    let listener = Listener::tcp(addr).await.context("--enrol")?;
    tracing::info!(%addr, "devices can enrol");
    let routes = identity::router(terms);
    tokio::spawn(hedge_listen::serve(listener, ENROL_BOUNDS, Some(tls), routes, CancellationToken::new()));
    Ok(())
}

/// The command line's, each for a task of its own, and behind them the file's.
fn load_answerers(args: &Models, config: &Config) -> anyhow::Result<Vec<Answering>> {
    let mut answerers: Vec<Answering> = Vec::new();
    for model in load_models(args)? {
        let task = model.task().to_owned();
        if answerers.iter().any(|other| other.task == task) {
            anyhow::bail!(
                "two models answer the task `{task}`; give one with --model, and several in the file of --config"
            );
        }
        let way = model::Way::Local(model, Duration::ZERO);
        let (name, price) = ("command-line".to_owned(), Micro::default());
        answerers.push(Answering { name, task, authority: hedge_proto::Authority::Model, price, way });
    }
    for answerer in &config.answerers {
        let loaded = model::load(answerer, args.library.as_deref());
        answerers.push(loaded.map_err(|why| anyhow::anyhow!("answerer `{}`: {why}", answerer.name))?);
    }
    Ok(answerers)
}

fn load_models(args: &Models) -> anyhow::Result<Vec<Box<dyn Answerer>>> {
    let mut models: Vec<Box<dyn Answerer>> = Vec::new();
    for (task, label) in &args.answer_with {
        models.push(Box::new(Fixed::new(task, label)));
    }
    if args.model.is_empty() {
        return Ok(models);
    }
    let runtime = Runtime::find(args.library.as_deref())?;
    for dir in &args.model {
        let options = SessionOptions { threads: args.threads, ..SessionOptions::default() };
        let model = Onnx::load(&runtime, args.library.as_deref(), dir, options);
        models.push(Box::new(model.with_context(|| format!("--model {}", dir.display()))?));
    }
    Ok(models)
}

/// `hedge-cloud answer`: what [`model::alone`] starts for cases left over.
pub fn answer(args: &Models) -> anyhow::Result<()> {
    // It has nothing to do without the process that started it.
    rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL))?;
    let model = load_models(args)?.pop().context("no model is given")?;
    Ok(model::alone::serve(model)?)
}

fn prepare_state_dir(dir: &Path) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    // Samples are for nobody else's eyes.
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir);
    made.with_context(|| format!("the state directory {} cannot be made", dir.display()))
}

fn keep(args: &Serve) -> Keep {
    Keep {
        payload_bytes_max: u64::from(args.payload_mib) * 1024 * 1024,
        payload_age_ms: u64::from(args.payload_days) * DAY_MS,
        record_age_ms: u64::from(args.record_days) * DAY_MS,
    }
}

async fn tick(events: mpsc::Sender<Event>) {
    let mut every = interval(intake::TICK);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if events.send(Event::Tick).await.is_err() {
            return;
        }
    }
}

#[expect(clippy::print_stdout, reason = "these lines are the program's output: scripts read them")]
fn say_ready(broker: Option<&str>, payloads: Option<SocketAddr>, dashboard: &str, more: &str) -> anyhow::Result<()> {
    if let Some(url) = broker {
        println!("broker {url}");
    }
    if let Some(addr) = payloads {
        println!("payloads {addr}");
    }
    println!("dashboard {dashboard}");
    print!("{more}");
    std::io::stdout().flush().context("stdout")?;
    notify(&[sd_notify::NotifyState::Ready]);
    Ok(())
}

fn notify(state: &[sd_notify::NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(state) {
        tracing::warn!("systemd was not told: {error}");
    }
}
