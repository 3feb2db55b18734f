//! The Debian packages on a fresh machine with a systemd of its own, under the units as they are shipped.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, CaseFate, LinkState, WantedFigures};
use hedge_tests::certificates::{Authority, Identity};
use hedge_tests::interface::Interface;
use hedge_tests::publisher::Publisher;
use hedge_tests::shelf_server::ShelfServer;
use hedge_tests::webhook::Webhook;
use hedge_tests::{Machine, Mosquitto, MosquittoSetup, Sink, address, places, skip, wait};

const AGENT: &str = "hedge-agent.service";
const CLOUD: &str = "hedge-cloud.service";
const CAMERA: &str = "hedge-camera@camera.service";
const DEVICE: &str = "gate-7";
const SINK: &str = "/var/lib/hedge-agent/answers.jsonl";

/// From a bare system to the first verdict.
const FIRST_VERDICT_MAX: Duration = Duration::from_secs(60);
/// Anything else: a restart, a camera's picture, a drained queue.
const WAIT_MAX: Duration = Duration::from_secs(60);

const CASES: usize = 1000;

#[test]
fn from_a_bare_debian_to_the_first_verdict_within_a_minute() -> Result<()> {
    if !skip::has_machine() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new(dir.path())?;
    let setup = MosquittoSetup { tls: Some(&authority), client_certificates: true, ..Default::default() };
    let broker = Mosquitto::start_with(dir.path(), &setup)?;
    let webhook = Webhook::start()?;
    let machine = Machine::new()?;

    machine.put(&places::root().join("packaging/install.sh"), Path::new("/root/install.sh"))?;

    let begun = Instant::now();
    for role in ["agent", "cloud"] {
        machine.run(&["/root/install.sh", role])?;
    }
    ensure!(machine.property(AGENT, "ActiveState")? == "active", "as installed: {}", machine.journal(AGENT));
    let url = format!("mqtts://{}", broker.address());
    enrol(&machine, &url, &authority)?;
    let http = Interface::new(address::own(8787));
    machine.write("/etc/hedge/agent.toml", &agent_toml(&url, &http, &webhook.url()))?;
    machine.run(&["systemctl", "enable", "--now", CLOUD])?;
    machine.run(&["systemctl", "restart", AGENT])?;
    // Without a live cloud behind the broker nobody is kept waiting for its word.
    machine.wait_for("the device is online", FIRST_VERDICT_MAX, AGENT, || {
        Ok(http.status().is_ok_and(|status| status.link == LinkState::Online))
    })?;
    let photo = fs::read(places::model("pictures/rocket.jpg"))?;
    let answer = http.post("http", "&wait_ms=30000", "image/jpeg", &photo)?;
    ensure!(answer.revision == 1, "no verdict, but {answer:?}; {}", machine.journal(AGENT));
    let took = begun.elapsed();
    println!("from nothing to the first verdict: {:.1} s", took.as_secs_f64());
    ensure!(took <= FIRST_VERDICT_MAX, "it took {took:?}");

    every_way_in_and_out(&machine, &http, &webhook)?;
    the_units_keep_what_is_secret(&machine)?;
    a_new_model_passes_its_trial_in_the_service(&machine, &http, dir.path())?;
    let id = machine.property(AGENT, "MainPID")?;
    machine.run(&["systemctl", "reload", AGENT])?;
    machine.wait_for("a reload is noticed", WAIT_MAX, AGENT, || Ok(machine.journal(AGENT).contains("reload")))?;
    ensure!(machine.property(AGENT, "MainPID")? == id, "a reload is no restart");
    Ok(())
}

#[test]
fn a_32_bit_system_is_refused_in_one_sentence() -> Result<()> {
    let dir = tempfile::tempdir()?;
    let dpkg = dir.path().join("dpkg");
    fs::write(&dpkg, "#!/bin/sh\necho armhf\n")?;
    fs::set_permissions(&dpkg, fs::Permissions::from_mode(0o755))?;
    let mut install = Command::new(places::root().join("packaging/install.sh"));
    let output = install.arg("agent").env("PATH", format!("{}:/usr/bin:/bin", dir.path().display())).output()?;
    let said = String::from_utf8(output.stderr)?;
    ensure!(!output.status.success() && said.lines().count() == 1, "{said}");
    ensure!(said.contains("32-bit (armhf)") && said.contains("64-bit Raspberry Pi OS"), "{said}");
    Ok(())
}

/// Keys where only systemd reads them.
fn enrol(machine: &Machine, url: &str, authority: &Authority) -> Result<()> {
    let place = |identity: &Identity, name: &str, etc: &str| -> Result<()> {
        machine.write(&format!("{etc}/{name}.pem"), &fs::read_to_string(&identity.certificate)?)?;
        machine.write(&format!("{etc}/keys/{name}.key"), &fs::read_to_string(&identity.key)?)?;
        machine.run(&["chmod", "0600", &format!("{etc}/keys/{name}.key")]).map(drop)
    };
    place(&authority.device(DEVICE)?, "device", "/etc/hedge")?;
    place(&authority.device("cloud-1")?, "cloud", "/etc/hedge-cloud")?;
    let ca = fs::read_to_string(authority.file())?;
    machine.write("/etc/hedge/ca.pem", &ca)?;
    // The cloud's user is made at its start and may not read /etc/hedge-cloud: all come as credentials.
    machine.write("/etc/hedge-cloud/keys/ca.pem", &ca)?;
    machine.run(&["mv", "/etc/hedge-cloud/cloud.pem", "/etc/hedge-cloud/keys/cloud.pem"])?;
    let key = "/run/credentials/hedge-cloud.service/key";
    machine.write(
        "/etc/hedge-cloud/cloud.env",
        &format!(
            "HEDGE_CLOUD_BROKER={url}\nHEDGE_CLOUD_CA={key}_ca.pem\nHEDGE_CLOUD_CERT={key}_cloud.pem\n\
             HEDGE_CLOUD_KEY={key}_cloud.key\nHEDGE_CLOUD_MODEL=/usr/share/hedge/models/photo-large\n\
             HEDGE_CLOUD_LISTEN={}\n",
            address::own(8080)
        ),
    )
}

fn agent_toml(url: &str, http: &Interface, webhook: &str) -> String {
    let listen = http.base().trim_start_matches("http://");
    format!(
        r#"device = "{DEVICE}"
[broker]
url = "{url}"
ca_file = "/etc/hedge/ca.pem"
certificate_file = "/etc/hedge/device.pem"
key_file = "/run/credentials/hedge-agent.service/key_device.key"
[http]
listen = ["unix:/run/hedge/agent.sock", "{listen}"]
[[model]]
name = "photo"
bundle = "/usr/share/hedge/models/photo-small"
threshold = {{ score_min = 1.0 }}
[[source]]
name = "http"
kind = "http"
model = "photo"
[[source]]
name = "camera"
kind = "http"
model = "photo"
[[source]]
name = "folder"
kind = "folder"
path = "/var/lib/hedge-agent/in"
model = "photo"
[verdicts.jsonl]
path = "{SINK}"
[verdicts.webhook]
url = "{webhook}"
[verdicts.command]
command = ["/usr/bin/tee", "--append", "/var/lib/hedge-agent/commanded"]
"#
    )
}

fn every_way_in_and_out(machine: &Machine, http: &Interface, webhook: &Webhook) -> Result<()> {
    machine.put(&places::model("pictures/retina.jpg"), Path::new("/var/lib/photo.jpg"))?;
    // Written elsewhere and moved, as the folder source asks.
    machine.run(&["install", "-d", "-o", "hedge", "-g", "hedge", "/var/lib/hedge-agent/in"])?;
    machine.run(&["install", "-o", "hedge", "/var/lib/photo.jpg", "/var/lib/hedge-agent/one.jpg"])?;
    machine.run(&["mv", "/var/lib/hedge-agent/one.jpg", "/var/lib/hedge-agent/in/one.jpg"])?;
    machine.write("/usr/local/bin/camera", "#!/bin/sh\nwhile cat /usr/local/share/photo.jpg; do sleep 0.2; done\n")?;
    machine.run(&["chmod", "0755", "/usr/local/bin/camera"])?;
    machine.put(&places::model("pictures/rocket.jpg"), Path::new("/usr/local/share/photo.jpg"))?;
    machine.write("/etc/hedge/camera-camera.env", "COMMAND=/usr/local/bin/camera\nINTERVAL_MS=500\n")?;
    machine.run(&["systemctl", "enable", "--now", CAMERA])?;
    let sources = ["http", "folder", "camera"].map(str::to_owned);
    let seen = || -> Result<BTreeSet<String>> {
        Ok(corrections(machine)?.into_iter().map(|correction| correction.source).collect())
    };
    let all = |seen: &BTreeSet<String>| sources.iter().all(|source| seen.contains(source));
    machine
        .wait_for("every source is corrected", WAIT_MAX, CAMERA, || Ok(all(&seen()?)))
        .with_context(|| format!("seen {:?}; status {:?}; {}", seen(), http.status(), machine.journal(AGENT)))?;
    for correction in corrections(machine)? {
        let key = correction.idempotency_key();
        machine.wait_for("the webhook has it", WAIT_MAX, AGENT, || Ok(webhook.has(&key)))?;
        let commanded = || fs::read_to_string(machine.path("/var/lib/hedge-agent/commanded")).unwrap_or_default();
        let id = correction.id.to_string();
        machine.wait_for("the command has it", WAIT_MAX, AGENT, || Ok(commanded().contains(&id)))?;
    }
    Ok(())
}

fn the_units_keep_what_is_secret(machine: &Machine) -> Result<()> {
    ensure!(machine.run(&["stat", "-c", "%a %G", "/run/hedge/agent.sock"])? == "660 hedge", "the socket's mode");
    machine.run_to_fail(&["runuser", "-u", "hedge", "--", "cat", "/etc/hedge/keys/device.key"])?;
    machine.run_to_fail(&["runuser", "-u", "nobody", "--", "cat", "/etc/hedge/agent.toml"])?;
    machine.run_to_fail(&["runuser", "-u", "nobody", "--", "ls", "/var/lib/hedge-agent"])?;
    Ok(())
}

/// The trial gives up system calls (`seccomp`), memory and processor; the unit leaves it what that takes.
fn a_new_model_passes_its_trial_in_the_service(machine: &Machine, http: &Interface, dir: &Path) -> Result<()> {
    let publisher = Publisher::new(dir)?;
    publisher.publish("fashion-small", "1", |_| Ok(()), &[])?;
    let server = ShelfServer::start(&publisher.folder())?;
    machine.put(&publisher.folder().join("root/1.json"), Path::new("/etc/hedge/root-1.json"))?;
    let config = fs::read_to_string(machine.path("/etc/hedge/agent.toml"))?;
    let more = format!(
        r#"[[model]]
name = "fashion"
bundle = "/var/lib/hedge-agent/models/fashion/current"
wanted = {{ name = "fashion-small", version = "1" }}
[[source]]
name = "new"
kind = "http"
model = "fashion"
[bundles]
url = "{}"
root = "/etc/hedge/root-1.json"
"#,
        server.url()
    );
    machine.write("/etc/hedge/agent.toml", &format!("{config}{more}"))?;
    machine.run(&["systemctl", "restart", AGENT])?;
    let wanted = || -> Option<WantedFigures> {
        let figures = http.status().ok()?.model_figures.into_iter().find(|(name, _)| name.as_str() == "fashion")?;
        figures.1.wanted
    };
    machine
        .wait_for("it passes its trial", WAIT_MAX, AGENT, || {
            let wanted = wanted();
            ensure!(wanted.as_ref().is_none_or(|wanted| wanted.state != "failed"), "{wanted:?}");
            Ok(wanted.is_some_and(|wanted| wanted.state == "current"))
        })
        .with_context(|| format!("{:?}", wanted()))?;
    let sample = fs::read(places::model("fashion-small/golden/test-0.png"))?;
    // A model that was not there is looked for every few seconds.
    machine.wait_for("it answers", WAIT_MAX, AGENT, || {
        let (status, text) = http.try_post("new", "", "image/png", &sample)?;
        Ok(status == 200 && text.contains("fashion-small"))
    })
}

fn corrections(machine: &Machine) -> Result<Vec<Answer>> {
    let mut answers = Sink::new(&machine.path(SINK)).read_on()?;
    answers.retain(|answer| answer.revision > 0);
    Ok(answers)
}

#[test]
fn kills_upgrades_and_power_cuts_lose_none_of_a_thousand_cases() -> Result<()> {
    if !skip::has_machine() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mut broker = Mosquitto::start(dir.path())?;
    let mut machine = Machine::new()?;
    for bundle in ["fashion-small", "fashion-large"] {
        machine.put(&places::model(bundle), &Path::new("/usr/share/hedge/models").join(bundle))?;
    }
    let http = Interface::new(address::own(8787));
    let config = doubter_toml(&broker, &http);
    machine.put(&places::root().join("tests/endless"), Path::new("/usr/share/hedge/models/endless"))?;
    machine.install(&[&revision("hedge-agent", 1), &revision("hedge-cloud", 1), "hedge-onnxruntime"])?;
    machine.write("/etc/hedge/agent.toml", &config)?;
    machine.write("/etc/systemd/system/hedge-agent.service.d/test.conf", "[Service]\nWatchdogSec=5s\n")?;
    machine.run(&["systemctl", "daemon-reload"])?;
    broker.kill()?;
    machine.run(&["systemctl", "restart", AGENT])?;

    let stored = post_cases(&http)?;
    a_killed_and_a_hung_agent_come_back(&machine, &http)?;
    wait_for_waiting(&machine, &http)?;

    machine.install(&[&revision("hedge-agent", 2), &revision("hedge-cloud", 2)])?;
    ensure!(fs::read_to_string(machine.path("/etc/hedge/agent.toml"))? == config, "an upgrade keeps settings");
    wait_for_waiting(&machine, &http)?;
    let older = machine.packages(&[&revision("hedge-agent", 1)])?;
    let said = machine.run_to_fail(&["dpkg", "--install", &older[0]])?;
    ensure!(said.contains("To go back"), "a downgrade is refused in a sentence: {said}");
    ensure!(machine.property(AGENT, "ActiveState")? == "active", "and changes nothing");

    machine.cut_power()?;
    machine.switch_on()?;
    wait_for_waiting(&machine, &http)?;
    broker.start_again()?;
    let cloud = format!(
        "HEDGE_CLOUD_BROKER={}\nHEDGE_CLOUD_MODEL=/usr/share/hedge/models/fashion-large\nHEDGE_CLOUD_LISTEN={}\n",
        broker.url(),
        address::own(8080)
    );
    machine.write("/etc/hedge-cloud/cloud.env", &cloud)?;
    machine.run(&["systemctl", "enable", "--now", CLOUD])?;
    let arrived = || -> Result<BTreeSet<String>> {
        Ok(corrections(&machine)?.iter().map(|correction| correction.id.to_string()).collect())
    };
    machine.wait_for("all cases are corrected", 3 * WAIT_MAX, AGENT, || Ok(stored.is_subset(&arrived()?)))?;

    removal_keeps_state_and_purge_ends_it(&machine)
}

/// How the file of a package begins, of which there are two.
fn revision(package: &str, revision: u32) -> String {
    format!("{package}_{}-{revision}_", env!("CARGO_PKG_VERSION"))
}

fn doubter_toml(broker: &Mosquitto, http: &Interface) -> String {
    let listen = http.base().trim_start_matches("http://");
    format!(
        r#"device = "{DEVICE}"
[broker]
url = "{}"
[http]
listen = ["{listen}"]
[[model]]
name = "fashion"
bundle = "/usr/share/hedge/models/fashion-small"
threshold = {{ score_min = 1.0 }}
[[model]]
name = "endless"
bundle = "/usr/share/hedge/models/endless"
hung_after_s = 1
[[source]]
name = "http"
kind = "http"
model = "fashion"
[[source]]
name = "endless"
kind = "http"
model = "endless"
[outbox]
store_wait_ms = 20_000
[verdicts.jsonl]
path = "{SINK}"
"#,
        broker.url()
    )
}

/// The ids of all that were said to be stored, which are all.
fn post_cases(http: &Interface) -> Result<BTreeSet<String>> {
    wait::until_true("the agent serves", WAIT_MAX, || Ok(http.status().is_ok()))?;
    let sample = fs::read(places::model("fashion-small/golden/test-0.png"))?;
    let mut stored = BTreeSet::new();
    for _ in 0..CASES {
        let answer = http.post("http", "", "image/png", &sample)?;
        ensure!(answer.case == Some(CaseFate::Stored), "not stored: {answer:?}");
        stored.insert(answer.id.to_string());
    }
    Ok(stored)
}

fn a_killed_and_a_hung_agent_come_back(machine: &Machine, http: &Interface) -> Result<()> {
    let restarts = || machine.property(AGENT, "NRestarts");
    for (signal, wanted) in [("KILL", "1"), ("STOP", "2")] {
        machine.run(&["systemctl", "kill", "--kill-who=main", &format!("--signal={signal}"), AGENT])?;
        machine.wait_for(&format!("it is back after SIG{signal}"), WAIT_MAX, AGENT, || {
            Ok(restarts()? == wanted && machine.property(AGENT, "ActiveState")? == "active")
        })?;
    }
    machine.wait_for_words(AGENT, "Watchdog timeout")?;
    // The driver turns all the time, but one model comes to no end.
    wait::until_true("the agent serves", WAIT_MAX, || Ok(http.status().is_ok()))?;
    let tensor = [0u8; 8];
    let asked = http.try_post("endless", "", "application/vnd.hedge.tensor; dtype=f32; shape=1,2", &tensor);
    ensure!(asked.is_err(), "an answer of a model that never ends: {asked:?}");
    machine.wait_for("it is back after a model hung", WAIT_MAX, AGENT, || {
        Ok(restarts()? == "3" && machine.property(AGENT, "ActiveState")? == "active")
    })?;
    machine.wait_for_words(AGENT, "a model hangs")?;
    wait::until_true("the next run says how the last one ended", WAIT_MAX, || {
        let faults = http.status().map(|status| status.faults).unwrap_or_default();
        Ok(faults.get("last_run").is_some_and(|sentence| sentence.contains("watchdog")))
    })?;
    Ok(())
}

fn wait_for_waiting(machine: &Machine, http: &Interface) -> Result<()> {
    let wanted = u64::try_from(CASES)?;
    machine.wait_for("all cases wait", WAIT_MAX, AGENT, || {
        Ok(http.status().is_ok_and(|status| status.queue.waiting == wanted && status.link != LinkState::Online))
    })
}

fn removal_keeps_state_and_purge_ends_it(machine: &Machine) -> Result<()> {
    machine.run(&["dpkg", "--remove", "hedge-agent", "hedge-cloud"])?;
    ensure!(machine.property(AGENT, "ActiveState")? == "inactive", "a removed agent is stopped");
    ensure!(machine.path("/var/lib/hedge-agent/outbox").is_dir() && machine.path("/etc/hedge/agent.toml").is_file());
    ensure!(machine.path("/var/lib/private/hedge-cloud").is_dir(), "records outlive a removal");
    machine.run(&["dpkg", "--purge", "hedge-agent", "hedge-cloud"])?;
    for gone in ["/var/lib/hedge-agent", "/etc/hedge", "/var/lib/private/hedge-cloud", "/etc/hedge-cloud"] {
        ensure!(!machine.path(gone).exists(), "{gone} outlived a purge");
    }
    Ok(())
}
