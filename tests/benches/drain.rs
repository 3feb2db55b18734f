//! How fast a full queue drains into the cloud, beside what the broker alone can do.
//!
//! ```text
//! cloud away: store N cases ─► broker alone: N messages, publisher to subscriber ─► cloud comes: N cases recorded
//! ```
//! The real programs, mosquitto between them, one case a publish. A case counts when the cloud's records hold it, for
//! that is what `received` says; its verdict is on its way back meanwhile. The publisher and subscriber beside it send
//! as many bytes at the same quality of service (1), through the same broker, in the same run. Rounds alternate, and
//! the median is what counts. Run it by `cargo xtask bench drain`: the programs must be release builds.
#![expect(clippy::print_stdout, reason = "a bench prints what it measured")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use clap::Parser;
use hedge_proto::CaseFate;
use hedge_tests::fashion::noise_png;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Agent, Mosquitto, Scene, wait};
use rumqttc::mqttbytes::QoS;
use rumqttc::mqttbytes::v5::Packet;
use rumqttc::{AsyncClient, Broker, Event, IncomingPacketSizeLimit, MqttOptions, PublishOptions};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

/// Messages between publisher and subscriber: below mosquitto's queue of 1000, over which it drops.
const UNDER_WAY_MAX: usize = 500;

/// Callers that fill the queue.
const CALLERS: u64 = 8;

/// Far more than a drain takes; one that stands still ends the bench.
const DRAIN_WAIT_MAX: Duration = Duration::from_secs(300);

/// Seldom enough that looking costs the cloud nothing.
const LOOK_EVERY: Duration = Duration::from_millis(20);

#[derive(Parser)]
struct Arguments {
    /// Payload sizes; the first is the one that the last line names
    #[arg(long, value_delimiter = ',', default_value = "1024,20480")]
    bytes: Vec<usize>,
    /// Cases a round
    #[arg(long, default_value_t = 4000)]
    cases: u64,
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Given by cargo
    #[arg(long, hide = true)]
    bench: bool,
}

/// High enough to be out of the way.
const NO_CEILINGS: &str = "[link.ceilings]\n\
    cases_per_hour = 1_000_000_000\ncases_per_day = 1_000_000_000\ncases_per_month = 1_000_000_000\n\
    bytes_per_hour = 1_000_000_000_000\nbytes_per_day = 1_000_000_000_000\nbytes_per_month = 1_000_000_000_000";

/// How cases are put into messages.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    OneEach,
    Batched,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    ensure!(arguments.rounds > 0 && !arguments.bytes.is_empty(), "there is nothing to measure");
    let mut rows = Vec::new();
    for bytes in &arguments.bytes {
        rows.extend(measure(&arguments, *bytes, Form::OneEach)?);
    }
    let batched = measure(&arguments, arguments.bytes[0], Form::Batched)?;
    let first = rows.first().context("the agent takes no configuration of this bench")?;
    let last_line = json!({
        "drain_per_s": first["drain_per_s"],
        "pubsub_per_s": first["pubsub_per_s"],
        "ratio": first["ratio"],
        "answered_per_s": first["answered_per_s"],
        "cases": arguments.cases,
        "rounds": arguments.rounds,
        "rows": rows,
        "batched": batched,
    });
    println!("{last_line}");
    Ok(())
}

/// `None` if this agent cannot do it in this form.
fn measure(arguments: &Arguments, bytes: usize, form: Form) -> Result<Option<Value>> {
    let mut scene = Scene::stub(&MosquittoSetup::default())?;
    scene.cloud.kill()?;
    let Some(mut agent) = start(&scene, form)? else {
        println!("{bytes} bytes, {form:?}: this agent has no batches");
        return Ok(None);
    };
    let payload = noise_png(bytes, 1)?.len();
    let mut rounds = Vec::new();
    for round in 0..arguments.rounds {
        fill(&mut agent, arguments.cases, bytes)?;
        let mosquitto = scene.mosquitto.as_ref().context("started with mosquitto")?;
        let pubsub = broker_alone(mosquitto, arguments.cases, payload)?;
        let (drain, answered) = drain(&mut scene, &mut agent, arguments.cases)?;
        println!(
            "{payload:>6} bytes, {form:?}, round {round}: {drain:>6.0} cases/s into the records, {answered:>6.0} \
             answered/s, broker alone {pubsub:>6.0}/s, ratio {:.3}",
            drain / pubsub
        );
        rounds.push((drain, answered, pubsub));
        scene.cloud.kill()?;
    }
    agent.stop()?;
    let of = |part: fn(&(f64, f64, f64)) -> f64| median(rounds.iter().map(part).collect());
    Ok(Some(json!({
        "bytes": payload,
        "drain_per_s": of(|round| round.0).round(),
        "answered_per_s": of(|round| round.1).round(),
        "pubsub_per_s": of(|round| round.2).round(),
        "ratio": (of(|round| round.0 / round.2) * 1000.0).round() / 1000.0,
    })))
}

fn start(scene: &Scene, form: Form) -> Result<Option<Agent>> {
    let config = || anyhow::Ok(scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)));
    let link = match form {
        Form::OneEach => "[link]\nbatch_bytes_max = 0",
        Form::Batched => "[link]",
    };
    match config()?.section(link).section(NO_CEILINGS).start() {
        Ok(agent) => Ok(Some(agent)),
        // An agent from before there were batches sends one case each anyway.
        Err(error) if format!("{error:#}").contains("unknown field `link`") => match form {
            Form::OneEach => Ok(Some(config()?.start()?)),
            Form::Batched => Ok(None),
        },
        Err(error) => Err(error),
    }
}

/// Posts until so many more cases are stored.
fn fill(agent: &mut Agent, cases: u64, bytes: usize) -> Result<()> {
    let stored = AtomicU64::new(0);
    std::thread::scope(|scope| {
        let call = |caller: u64| {
            let (stored, http) = (&stored, agent.http.clone());
            scope.spawn(move || {
                let mut seed = caller;
                while stored.load(Ordering::Relaxed) < cases {
                    seed += CALLERS;
                    let answer = http.post("pictures", "", "image/png", &noise_png(bytes, seed)?)?;
                    if answer.case == Some(CaseFate::Stored) {
                        stored.fetch_add(1, Ordering::Relaxed);
                    }
                }
                anyhow::Ok(())
            })
        };
        let callers: Vec<_> = (1..=CALLERS).map(call).collect();
        callers.into_iter().try_for_each(|caller| caller.join().unwrap_or_else(|_| bail!("a caller panicked")))
    })
}

/// Cases a second into the cloud's records, and answered on the device, from the first one to the last.
fn drain(scene: &mut Scene, agent: &mut Agent, cases: u64) -> Result<(f64, f64)> {
    let waiting = agent.http.status()?.queue.waiting;
    ensure!(waiting >= cases, "only {waiting} cases wait");
    let setup = scene.setup.clone();
    scene.cloud.start_again(&setup)?;
    let before = recorded(scene)?;
    let start = Instant::now();
    let mut all_recorded = None;
    let look = || -> Result<Option<()>> {
        agent.program().check_alive()?;
        if all_recorded.is_none() && recorded(scene)? >= before + waiting {
            all_recorded = Some(start.elapsed());
        }
        let open = agent.http.status()?.queue.waiting;
        wait::pause(LOOK_EVERY);
        Ok((open == 0 && all_recorded.is_some()).then_some(()))
    };
    let outcome = wait::until("the queue drains", DRAIN_WAIT_MAX, look);
    outcome.with_context(|| format!("{:?}\n{}", agent.http.status(), agent.log_end()))?;
    let answered = start.elapsed();
    let per_s = |time: Duration| waiting as f64 / time.as_secs_f64();
    Ok((per_s(all_recorded.unwrap_or(answered)), per_s(answered)))
}

fn recorded(scene: &Scene) -> Result<u64> {
    let figures = scene.cloud.get("/api/figures")?;
    figures["cases"].as_u64().with_context(|| format!("no `cases` in {figures}"))
}

/// Messages a second from one publisher to one subscriber.
fn broker_alone(mosquitto: &Mosquitto, messages: u64, bytes: usize) -> Result<f64> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(async {
        let under_way = Arc::new(Semaphore::new(UNDER_WAY_MAX));
        let connect = |name: &str| {
            let address = mosquitto.address();
            let mut options = MqttOptions::new(name, Broker::tcp(address.ip().to_string(), address.port()));
            options.set_keep_alive(60).set_incoming_packet_size_limit(IncomingPacketSizeLimit::Unlimited);
            AsyncClient::builder(options).capacity(64).build()
        };
        let (subscriber, mut incoming) = connect("bench-subscriber");
        subscriber.subscribe("bench/messages", QoS::AtLeastOnce).await?;
        while !matches!(incoming.poll().await?, Event::Incoming(Packet::SubAck(_))) {}
        let (publisher, mut outgoing) = connect("bench-publisher");
        let polling = tokio::spawn(async move { while outgoing.poll().await.is_ok() {} });
        let permits = Arc::clone(&under_way);
        let publishing = tokio::spawn(async move {
            let payload = vec![7; bytes];
            for _ in 0..messages {
                permits.acquire().await?.forget();
                let options = PublishOptions::new(QoS::AtLeastOnce);
                publisher.publish("bench/messages", payload.clone(), options).await?;
            }
            // Kept until the last one has arrived.
            anyhow::Ok(publisher)
        });
        let start = Instant::now();
        let mut arrived = 0;
        while arrived < messages {
            if let Event::Incoming(Packet::Publish(_)) = incoming.poll().await? {
                arrived += 1;
                under_way.add_permits(1);
            }
        }
        let took = start.elapsed();
        drop(publishing.await??);
        polling.abort();
        Ok(messages as f64 / took.as_secs_f64())
    })
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}
