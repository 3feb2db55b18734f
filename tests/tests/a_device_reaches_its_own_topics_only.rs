//! The shipped mosquitto configuration on a real mosquitto with mutual TLS, and the guarded broker of quickstart:
//! each device writes its own `up`, reads its own `down` and the clouds' status, and nothing else.

use std::collections::BTreeSet;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_tests::certificates::{Authority, Identity};
use hedge_tests::enrolled::{pair, run};
use hedge_tests::mosquitto::Shipped;
use hedge_tests::program::Recipe;
use hedge_tests::scene::all_arrive_once;
use hedge_tests::{AgentConfig, Cloud, CloudSetup, Quickstart, Tally, skip, wait};

/// For a subscription, and for what is to be heard.
const HEARD_WITHIN: Duration = Duration::from_secs(60);

/// How long is listened, once the subscription is granted, for what is not to be heard.
const LISTEN: Duration = Duration::from_secs(3);

/// mosquitto's own clients, as somebody.
struct Client {
    broker: SocketAddr,
    ca: PathBuf,
    identity: Identity,
    /// Where the broker does not take it from the certificate.
    id: Option<String>,
}

impl Client {
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(program);
        command.args([
            "-V",
            "5",
            "-q",
            "1",
            "-h",
            &self.broker.ip().to_string(),
            "-p",
            &self.broker.port().to_string(),
        ]);
        command.arg("--cafile").arg(&self.ca).arg("--cert").arg(&self.identity.certificate);
        command.arg("--key").arg(&self.identity.key);
        if let Some(id) = &self.id {
            command.args(["-i", id]);
        }
        command
    }

    /// Publishes, retained.
    fn publish(&self, topic: &str, text: &str) -> Result<Output> {
        let mut command = self.command("mosquitto_pub");
        command.args(["-r", "-t", topic, "-m", text]).output().context("mosquitto_pub cannot be run")
    }

    fn may_publish(&self, topic: &str) -> Result<()> {
        let done = self.publish(topic, "{}")?;
        ensure!(done.status.success() && done.stderr.is_empty(), "{topic}: {done:?}");
        Ok(())
    }

    /// Every topic of which something retained arrives: those, and what comes besides.
    fn hears(&self, filters: &[&str], those: &[&str]) -> Result<Vec<String>> {
        let heard = |output: &str| {
            let lines = output.lines().filter_map(|line| line.strip_prefix(HEARD)?.split(' ').next());
            lines.map(str::to_owned).collect::<BTreeSet<_>>()
        };
        let output = self.listens(filters, |output| {
            let heard = heard(output);
            those.iter().all(|topic| heard.contains(*topic))
        })?;
        Ok(heard(&output).into_iter().collect())
    }

    /// What mosquitto_sub prints until its subscription is granted or refused, `enough` has come, and a little longer.
    fn listens(&self, filters: &[&str], enough: impl Fn(&str) -> bool) -> Result<String> {
        let dir = tempfile::tempdir()?;
        let words = self.command("mosquitto_sub").get_args().map(ToOwned::to_owned).collect::<Vec<_>>();
        // Line by line; otherwise it would keep to itself that it is subscribed.
        let recipe = Recipe::new("mosquitto_sub", "stdbuf".into(), dir.path()).arguments(["-oL", "mosquitto_sub"]);
        let recipe = recipe.arguments(words).arguments(filters.iter().flat_map(|filter| ["-t", filter]));
        let mut program = recipe.arguments(["-d", "-F", &format!("{HEARD}%t %p")]).start()?;
        wait::until_true("mosquitto_sub is subscribed", HEARD_WITHIN, || {
            Ok(program.output()?.contains("received SUBACK") || program.check_alive().is_err())
        })?;
        let outcome = wait::until_true("what is to be heard", HEARD_WITHIN, || Ok(enough(&program.output()?)));
        outcome.with_context(|| program.output().unwrap_or_default())?;
        wait::pause(LISTEN);
        program.output()
    }
}

/// How a line about a message begins.
const HEARD: &str = "heard ";

/// What a device may not write: another's topics, its own `down`, the clouds' status, anything else.
const NOT_TO_WRITE: [&str; 6] = [
    "hedge/v1/device-1/up/status",
    "hedge/v1/device-1/down/desired",
    "hedge/v1/device-2/down/desired",
    "hedge/v1/cloud/cloud-1/status",
    "hedge/v1/device-2",
    "other/topic",
];

#[test]
fn on_mosquitto_as_shipped() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (ca_dir, files) = (dir.path().join("authority"), dir.path().join("files"));
    std::fs::create_dir_all(&files)?;
    let ca = |words: &[&str]| run("hedge-cloud", &[&["ca", "--ca-dir", &text(&ca_dir)], words].concat());
    ca(&["init"])?;
    let mosquitto = Shipped::start(dir.path(), |address| {
        ca(&["issue", "--server", &address.to_string(), "--out", &text(&files)])?;
        Ok(files.clone())
    })?;
    ca(&["issue", "--cloud", "--out", &text(&files)])?;

    // A cloud with an enrolment endpoint, and two devices that enrolled with it.
    let enrol = hedge_tests::address::own(8443);
    let device_broker = format!("mqtts://{}", mosquitto.devices());
    let cloud_broker = format!("mqtts://{}", mosquitto.clouds());
    let more = [
        ("--ca", text(&files.join("ca.pem"))),
        ("--cert", text(&files.join("cloud.pem"))),
        ("--key", text(&files.join("cloud.key"))),
        ("--ca-dir", text(&ca_dir)),
        ("--enrol", enrol.to_string()),
        ("--device-broker", device_broker.clone()),
        ("--host", enrol.ip().to_string()),
    ];
    let mut setup = CloudSetup::stub(&cloud_broker, "fashion", "Coat");
    setup.more.extend(more.into_iter().flat_map(|(name, value)| [name.to_owned(), value]));
    let cloud = Cloud::start(dir.path(), &setup)?;
    let mut devices = Vec::new();
    for name in ["device-1", "device-2"] {
        let config = device(dir.path(), name);
        let said = ca(&["claim", "--address", &enrol.to_string()])?;
        pair(&config, name, said.split_whitespace().last().unwrap_or_default(), &[])?;
        devices.push(config);
    }
    a_case_is_answered(&devices[0])?;

    let as_device = |index: usize| Client {
        broker: mosquitto.devices(),
        ca: files.join("ca.pem"),
        identity: identity(&devices[index]),
        id: None,
    };
    let cloud_identity = Identity { certificate: files.join("cloud.pem"), key: files.join("cloud.key") };
    let as_cloud = |broker| Client { broker, ca: files.join("ca.pem"), identity: cloud_identity.clone(), id: None };
    let the_cloud = as_cloud(mosquitto.clouds());
    each_keeps_to_itself(&as_device(1), &the_cloud)?;

    // The cloud's rights are on its own listener, and there a device has none.
    let on_the_wrong_side = Client { broker: mosquitto.clouds(), ..as_device(1) };
    refused(&on_the_wrong_side, "hedge/v1/device-2/up/status", &the_cloud)?;
    ensure!(on_the_wrong_side.hears(&["#"], &[])?.is_empty(), "a device hears the cloud's listener");
    refused(&as_cloud(mosquitto.devices()), "hedge/v1/device-1/down/desired", &the_cloud)?;

    // Whoever another authority signed, under a device's very name, is no one; so is who shows nothing.
    let other = tempfile::tempdir()?;
    let forged = Client { identity: Authority::new(other.path())?.device("device-2")?, ..as_device(1) };
    let done = forged.publish("hedge/v1/device-2/up/status", "{}")?;
    ensure!(!done.status.success(), "a strange authority's certificate is let in: {done:?}");
    let bare = Command::new("mosquitto_pub")
        .args(["-V", "5", "-h", &mosquitto.devices().ip().to_string(), "-p", "8883", "-t", "t", "-m", "{}", "--cafile"])
        .arg(files.join("ca.pem"))
        .output()?;
    ensure!(!bare.status.success(), "a client without a certificate is let in: {bare:?}");
    drop(cloud);
    Ok(())
}

#[test]
fn on_the_guarded_broker() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let cloud = Quickstart::start(dir.path())?;
    let mut clients = Vec::new();
    for name in ["device-1", "device-2"] {
        let config = device(dir.path(), name);
        pair(&config, name, &cloud.claim()?, &[])?;
        let ca = config.dir().join("state/identity/ca.pem");
        clients.push(Client { broker: cloud.broker(), ca, identity: identity(&config), id: Some(name.to_owned()) });
    }
    let (one, two) = (&clients[0], &clients[1]);
    one.may_publish("hedge/v1/device-1/up/status")?;
    let status = ["hedge/v1/cloud/cloud-1/status"];
    ensure!(two.hears(&["hedge/v1/cloud/+/status"], &status)? == status);
    for topic in NOT_TO_WRITE {
        let done = two.publish(topic, "{}")?;
        ensure!(!done.stderr.is_empty(), "{topic} may be written by device-2");
    }
    for filter in ["#", "hedge/v1/device-1/#", "hedge/v1/+/up/status", "$share/g/hedge/v1/+/up/#"] {
        ensure!(two.hears(&[filter], &[])?.is_empty(), "{filter} is heard by device-2");
    }
    // Nor may it pose as another towards the broker, or leave a will in another's name.
    let posing =
        Client { broker: two.broker, ca: two.ca.clone(), identity: two.identity.clone(), id: Some("device-1".into()) };
    ensure!(!posing.publish("hedge/v1/device-2/up/status", "{}")?.status.success(), "device-2 is taken for device-1");
    let mut will = two.command("mosquitto_pub");
    will.args(["--will-topic", "hedge/v1/device-1/up/status", "--will-payload", "{}"]);
    will.args(["-t", "hedge/v1/device-2/up/status", "-m", "{}"]);
    ensure!(!will.output()?.status.success(), "device-2 may leave a will in device-1's name");

    let other = tempfile::tempdir()?;
    let forged = Authority::new(other.path())?.device("device-2")?;
    let forged = Client { broker: two.broker, ca: two.ca.clone(), identity: forged, id: Some("device-2".into()) };
    ensure!(!forged.publish("hedge/v1/device-2/up/status", "{}")?.status.success(), "a strange authority is trusted");
    cloud.ca(&["revoke", "device-2"])?;
    ensure!(!two.publish("hedge/v1/device-2/up/status", "{}")?.status.success(), "a revoked device is let in");
    Ok(())
}

/// What `me`, device-2, can do and what it cannot, with everything retained that it must not see.
fn each_keeps_to_itself(me: &Client, the_cloud: &Client) -> Result<()> {
    for topic in ["hedge/v1/device-1/down/desired", "hedge/v1/device-2/down/desired"] {
        the_cloud.may_publish(topic)?;
    }
    me.may_publish("hedge/v1/device-2/up/status")?;
    let own = ["hedge/v1/cloud/cloud-1/status", "hedge/v1/device-2/down/desired"];
    let heard = me.hears(&["#"], &own)?;
    ensure!(heard == own, "device-2 hears {heard:?}");
    let heard = me.hears(&["hedge/v1/device-1/#", "hedge/v1/+/up/#"], &[])?;
    ensure!(heard.is_empty(), "device-2 hears {heard:?}");
    for topic in NOT_TO_WRITE {
        refused(me, topic, the_cloud)?;
    }
    Ok(())
}

/// `client` publishes something of its own making to `topic`, and it reaches nobody.
fn refused(client: &Client, topic: &str, the_cloud: &Client) -> Result<()> {
    let done = client.publish(topic, "forged")?;
    ensure!(String::from_utf8_lossy(&done.stderr).contains("ot authorized"), "{topic}: {done:?}");
    if topic.starts_with("hedge/v1/device-") {
        let heard = the_cloud.listens(&[topic], |_| true)?;
        ensure!(!heard.contains("forged"), "{topic} was written all the same");
    }
    Ok(())
}

fn device(dir: &Path, name: &str) -> AgentConfig {
    let config =
        AgentConfig::new(dir, name).model_keeping("fashion-small", 1.0).http_source("pictures").corrections_file();
    config.write().map(|_| config).expect("a temporary folder can be written")
}

fn identity(config: &AgentConfig) -> Identity {
    let dir = config.dir().join("state/identity");
    Identity { certificate: dir.join("device.pem"), key: dir.join("device.key") }
}

fn a_case_is_answered(config: &AgentConfig) -> Result<()> {
    let mut agent = config.start_as_written()?;
    agent.wait_until_online()?;
    let (mut tally, mut sink) = (Tally::default(), agent.sink());
    let fashion = hedge_tests::fashion::Fashion::load()?;
    sink.read_on()?; // of an earlier start
    for index in 0..20 {
        tally
            .answered(&agent.http.post("pictures", "", "image/png", &fashion.png(index)?)?, Some(fashion.label(index)));
    }
    all_arrive_once(&mut agent, &mut sink, &mut tally)?;
    agent.stop()
}

fn text(path: &Path) -> String {
    path.display().to_string()
}
