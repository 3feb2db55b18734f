//! One trace from the device to the verdict, over a crash of the cloud; nothing of it unless it is asked for, and nothing
//! lost over a collector that is down.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result};
use hedge_proto::{CaseId, TraceContext};
use hedge_tests::collector::Span;
use hedge_tests::program::{Program, Recipe};
use hedge_tests::{Agent, Cloud, CloudSetup, Collector, Mosquitto, Scene, Tally, mosquitto_client, skip, wait};

/// For what is no promise in time.
const PATIENCE: Duration = Duration::from_secs(90);

const TAB: char = '\t';

/// The user properties of all messages about cases, as `mosquitto_sub` prints them.
struct Properties {
    _program: Program,
    output: std::path::PathBuf,
}

impl Properties {
    fn listen(mosquitto: &Mosquitto, dir: &Path) -> Result<Self> {
        let (host, port) = (mosquitto.inside().ip().to_string(), mosquitto.inside().port().to_string());
        let format = format!("%t{TAB}%P");
        let arguments = ["-h", &host, "-p", &port, "-V", "mqttv5", "-F", &format, "-t", "hedge/test"];
        let topics = ["-t", "hedge/v1/+/up/case", "-t", "hedge/v1/+/down/verdict"];
        let recipe = Recipe::new("mosquitto_sub", "mosquitto_sub".into(), dir).arguments(arguments).arguments(topics);
        let listener = Self { _program: recipe.start()?, output: dir.join("mosquitto_sub.out") };
        wait::until_true("mosquitto_sub hears", PATIENCE, || {
            mosquitto_client::publish(mosquitto.inside(), "hedge/test", &["-m", "{}"])?;
            Ok(!listener.of("hedge/test")?.is_empty())
        })?;
        Ok(listener)
    }

    /// Those of messages so far whose topic ends in this.
    fn of(&self, topic: &str) -> Result<Vec<String>> {
        let output = std::fs::read_to_string(&self.output)?;
        let whole = output.rfind('\n').map_or("", |end| &output[..end]);
        let lines = whole.lines().filter_map(|line| line.split_once(TAB));
        Ok(lines.filter(|(heard, _)| heard.ends_with(topic)).map(|(_, given)| given.to_owned()).collect())
    }
}

struct Stand {
    cloud: Cloud,
    setup: CloudSetup,
    agent: Agent,
    properties: Properties,
    scene: Scene,
}

/// Cases are answered by a service elsewhere, which is the collector, too.
fn stand(collector: &Collector, is_traced: bool) -> Result<Stand> {
    let mut scene = Scene::stub(&Default::default())?;
    scene.cloud.stop(PATIENCE)?;
    let mosquitto = scene.mosquitto.as_ref().context("there is one")?;
    let properties = Properties::listen(mosquitto, scene.dir())?;
    let config = scene.dir().join("cloud.toml");
    let text = format!(
        "[[answerer]]\nname = \"elsewhere\"\nkind = \"http\"\ntask = \"fashion\"\nurl = \"{}/classify\"\nlabel = \"label\"\n",
        collector.url()
    );
    std::fs::write(&config, text)?;
    let mut setup = CloudSetup { instance: "traced".to_owned(), ..CloudSetup::at(&mosquitto.url(), &[]) };
    setup.more.extend(["--config".to_owned(), config.display().to_string()]);
    let mut agent = scene.doubter("device-1").broker(&mosquitto.url());
    if is_traced {
        setup.more.extend(["--otlp".to_owned(), collector.url()]);
        agent = agent.section("[telemetry]\ntraces = true\n");
    }
    let cloud = Cloud::start(scene.dir(), &setup)?;
    cloud.wait_until_connected()?;
    let mut agent = agent.start()?;
    agent.wait_until_connected()?;
    Ok(Stand { cloud, setup, agent, properties, scene })
}

fn named<'a>(spans: &'a [Span], name: &str, outcome: &str) -> Option<&'a Span> {
    spans.iter().find(|span| span.name == name && span.about("hedge.outcome") == outcome)
}

fn wait_for(collector: &Collector, id: &CaseId, name: &str, outcome: &str) -> Result<Span> {
    let looked = wait::until("a span is told", PATIENCE, || {
        Ok(named(&collector.spans_of(&id.to_string()), name, outcome).cloned())
    });
    looked.with_context(|| format!("`{name}` {outcome}; there are {:#?}", collector.spans_of(&id.to_string())))
}

#[test]
fn one_trace_leads_from_the_device_to_the_verdict_also_over_a_crash_and_costs_no_case() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let collector = Collector::start()?;
    let Stand { mut cloud, setup, mut agent, properties, scene } = stand(&collector, true)?;
    let mut tally = Tally::default();
    let id = scene.post_a_stored_one(&agent, 0, &mut tally)?.id;
    let intake = wait_for(&collector, &id, "intake", "")?;
    let down = wait_for(&collector, &id, "answer elsewhere", "down")?;

    cloud.kill()?;
    collector.answer(Some("Coat"));
    cloud.start_again(&setup)?;
    agent.wait_for_correction(&id, PATIENCE)?;
    let verdict = wait_for(&collector, &id, "verdict", "")?;
    let answer = wait_for(&collector, &id, "answer elsewhere", "verdict")?;

    let spans = collector.spans_of(&id.to_string());
    let (on_device, in_cloud) = (TraceContext::on_device(&id).to_string(), TraceContext::in_cloud(&id).to_string());
    let traceparent = |span: &Span| format!("00-{}-{}-01", span.trace, span.id);
    assert!(spans.iter().all(|span| span.trace == intake.trace), "{spans:#?}");
    let case = named(&spans, "case", "").context("the device's span")?;
    assert_eq!((traceparent(case), case.parent.as_str()), (on_device.clone(), ""));
    assert_eq!((traceparent(&intake), &intake.parent), (in_cloud, &case.id));
    for below in [&down, &answer, &verdict, named(&spans, "wait", "").context("it waited")?] {
        assert_eq!(below.parent, intake.id, "{}", below.name);
    }
    assert_eq!((case.service.as_str(), intake.service.as_str()), ("hedge-agent", "hedge-cloud"));
    assert!(spans.iter().all(|span| span.start_ns <= span.end_ns), "{spans:#?}");
    assert!(case.start_ns <= intake.start_ns && intake.start_ns <= answer.start_ns, "{spans:#?}");

    // Whoever is asked, and whoever listens at the broker, is told where in the trace it is.
    let asked = collector.asked();
    assert!(asked.contains(&traceparent(&down)) && asked.contains(&traceparent(&answer)), "{asked:?}");
    let told = |topic: &str| properties.of(topic).map(|told| told.join("\n"));
    let sent = told("/up/case")?;
    assert!(sent.contains(&format!("traceparent:{on_device}")) && sent.contains("sent_powered_ms:"), "{sent}");
    let verdicts = told("/down/verdict")?;
    assert!(verdicts.contains(&format!("traceparent:{}", traceparent(&verdict))), "{verdicts}");

    // A collector that takes nothing costs no case, and is said once.
    collector.break_down();
    for index in [100, 200] {
        let id = scene.post_a_stored_one(&agent, index, &mut tally)?.id;
        agent.wait_for_correction(&id, PATIENCE)?;
    }
    let complaints = || cloud.log().matches("spans were dropped").count();
    wait::until_true("it is said", PATIENCE, || Ok(complaints() == 1))?;
    let id = scene.post_a_stored_one(&agent, 300, &mut tally)?.id;
    agent.wait_for_correction(&id, PATIENCE)?;
    assert_eq!(complaints(), 1);
    agent.stop()
}

#[test]
fn nothing_is_told_of_a_trace_unless_it_is_asked_for() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let collector = Collector::start()?;
    collector.answer(Some("Coat"));
    let Stand { cloud: _cloud, mut agent, properties, scene, .. } = stand(&collector, false)?;
    let id = scene.post_a_stored_one(&agent, 0, &mut Tally::default())?.id;
    agent.wait_for_correction(&id, PATIENCE)?;
    let told = |topic: &str| properties.of(topic);
    wait::until_true("both are heard", PATIENCE, || {
        Ok(!told("/up/case")?.is_empty() && !told("/down/verdict")?.is_empty())
    })?;
    for given in [told("/up/case")?, told("/down/verdict")?].concat() {
        assert_eq!(given, "");
    }
    assert!(collector.spans_of(&id.to_string()).is_empty());
    assert!(collector.asked().iter().all(String::is_empty));
    agent.stop()
}
