//! What the documentation tells people to type does what it says there, against mosquitto, a real agent and a real cloud.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, DownMessage, to_cbor};
use hedge_tests::fashion::Fashion;
use hedge_tests::mosquitto_client::publish;
use hedge_tests::program::{Program, Recipe};
use hedge_tests::recipes::{Desk, fits, path_with_programs};
use hedge_tests::{Agent, AgentConfig, Listener, Mosquitto, Porch, Scene, places, skip};

/// A Python program with its libraries starts in seconds, on a busy machine.
const WAIT_MAX: Duration = Duration::from_secs(90);

fn work_through(mut porch: Porch, page: &str) -> Result<()> {
    let home = porch.scene.dir().join("home");
    std::fs::create_dir_all(&home)?;
    let records = porch.scene.dir().join("cloud-1/state");
    let Scene { cloud, setup, mosquitto, fashion, .. } = &mut porch.scene;
    let broker = mosquitto.as_ref().context("mosquitto")?;
    let desk = Desk {
        home,
        broker,
        means: vec![
            ("new-broker.example:1883".into(), broker.address().to_string()),
            ("broker.example".into(), broker.inside().ip().to_string()),
            ("localhost:8080".into(), page_of(cloud.dashboard())),
            ("/var/lib/hedge-cloud".into(), records.display().to_string()),
            ("/etc/bash_completion.d/".into(), String::new()),
            // The bundle behind the model `photo`.
            ("photo-small".into(), "fashion-small".into()),
        ],
        environment: vec![
            ("PATH".into(), path_with_programs()?),
            ("HEDGE_CLOUD_BROKER".into(), broker.url()),
            ("HEDGE_CONFIG".into(), porch.agent.dir().join("agent.toml").display().to_string()),
        ],
    };
    // The page that tells how to name the broker comes first, as for a reader.
    if page != "mqtt.md" {
        desk.begin_with("mqtt.md")?;
    }
    desk.work_through(page, |wanted| match wanted {
        "a dead letter" => {
            cloud.kill()?;
            a_dead_letter(broker, fashion, &mut porch.agent)?;
            cloud.start_again(setup)
        }
        "the device is gone" => porch.agent.stop(),
        unknown => anyhow::bail!("nobody knows how to bring about {unknown}"),
    })
}

/// Address and port of the dashboard.
fn page_of(url: &str) -> String {
    url.trim_start_matches("http://").trim_end_matches('/').to_owned()
}

/// A case that a cloud gives up; the real one is away.
fn a_dead_letter(broker: &Mosquitto, fashion: &Fashion, agent: &mut Agent) -> Result<()> {
    let posted = |index| agent.http.post("pictures", "", "image/png", &fashion.png(index)?);
    let stored = (0..50).map(posted).find(|one| one.as_ref().map_or(true, |one| one.case == Some(CaseFate::Stored)));
    let id = stored.context("none of 50 pictures was deferred and stored")??.id;
    // Only a cloud that was sent a case can give it up. Somebody takes it, for a cloud that says nothing more.
    let _listener = Listener::start(broker.inside(), agent.dir())?;
    let online = r#"{"state":"online","wire":[1]}"#;
    publish(broker.inside(), "hedge/v1/cloud/another/status", &["-m", online])?;
    agent.wait_for_status("it is sent", WAIT_MAX, |status| status.queue.in_flight == 1)?;
    let dead = DownMessage::Dead { id, reason: "nobody knows what this is".to_owned() };
    let message = agent.dir().join("dead.cbor");
    std::fs::write(&message, to_cbor(&dead))?;
    let message = message.display().to_string();
    publish(broker.inside(), "hedge/v1/porch/down/verdict", &["-f", &message])?;
    agent.wait_for_status("it is a dead letter", WAIT_MAX, |status| status.queue.dead == 1)?;
    Ok(())
}

#[test]
fn a_device_is_watched_over_mqtt_as_the_page_says() -> Result<()> {
    Porch::start()?.map_or(Ok(()), |porch| work_through(porch, "mqtt.md"))
}

#[test]
fn settings_are_changed_as_the_page_says() -> Result<()> {
    Porch::start()?.map_or(Ok(()), |porch| work_through(porch, "settings.md"))
}

#[test]
fn commands_are_given_as_the_page_says() -> Result<()> {
    Porch::start()?.map_or(Ok(()), |porch| work_through(porch, "commands.md"))
}

#[test]
fn a_fleet_is_operated_as_the_page_says() -> Result<()> {
    Porch::start()?.map_or(Ok(()), |porch| work_through(porch, "fleet.md"))
}

/// The most lines of an example: what is longer is not read.
const LINES_MAX: usize = 20;

/// The examples, and which of them were run.
struct Examples {
    dir: PathBuf,
    python: OsString,
    home: PathBuf,
    ran: BTreeSet<PathBuf>,
}

impl Examples {
    fn recipe(&mut self, name: &str, arguments: &[&str]) -> Recipe {
        let path = self.dir.join(name);
        self.ran.insert(path.clone());
        let run = Recipe::new(&name.replace('/', "-"), path.clone(), &self.home);
        let run = if name.ends_with(".py") {
            Recipe { program: PathBuf::from(&self.python), ..run }.argument(path)
        } else {
            run
        };
        run.arguments(arguments)
    }

    /// Runs one to its end and returns what it printed.
    fn run(&mut self, name: &str, arguments: &[&str]) -> Result<String> {
        let mut program = self.recipe(name, arguments).start()?;
        let status = program.wait_for_end(WAIT_MAX).with_context(|| name.to_owned())?;
        let printed = program.output()?;
        ensure!(status.success(), "{name} ended with {status}: {printed}{}", program.log_end());
        Ok(printed)
    }

    fn files(&self) -> Result<BTreeSet<PathBuf>> {
        let mut files = BTreeSet::new();
        for folder in ["python", "curl", "shell"] {
            for entry in std::fs::read_dir(self.dir.join(folder))? {
                files.insert(entry?.path());
            }
        }
        Ok(files)
    }
}

#[track_caller]
fn check_shows(expected: &str, shown: &str) {
    assert!(fits(expected, shown), "expected:\n{expected}\nshown:\n{shown}");
}

#[test]
fn every_example_is_short_and_works() -> Result<()> {
    let Some(python) = std::env::var_os("HEDGETEST_PYTHON") else {
        skip::skipped("no Python environment with requests and paho-mqtt; `cargo xtask test` makes one");
        return Ok(());
    };
    let folders = tempfile::tempdir()?;
    let inbox = folders.path().join("inbox");
    std::fs::create_dir(&inbox)?;
    let more = |config: AgentConfig| {
        let config = config.folder_source("inbox", &inbox).all_answers_file();
        config.section("[telemetry]\ninterval_s = 1")
    };
    let Some(mut porch) = Porch::start_with(more)? else { return Ok(()) };
    let dir = places::root().join("examples");
    let home = folders.path().to_owned();
    let mut examples = Examples { dir, python, home, ran: BTreeSet::new() };
    let broker = porch.scene.mosquitto.as_ref().context("mosquitto")?.inside().ip().to_string();
    let url = porch.agent.http.base().to_owned();
    let photo = places::model("fashion-small").join("golden/test-0.png").display().to_string();

    // Two ways to set a threshold; with the second everything is sent on.
    let set = examples.run("python/set_threshold.py", &["porch", "photo", "0.5", &broker])?;
    assert_eq!(set, "applied\n");
    let refused = examples.run("python/set_threshold.py", &["porch", "photo", "2", &broker])?;
    check_shows("refused {'field': 'model.photo.threshold.score_min', …}", &refused);
    let set = examples.run("shell/set_threshold.sh", &["porch", "photo", "1", "-h", &broker])?;
    check_shows("{\"version\":…,\"outcome\":\"applied\"}}", &set);

    assert_eq!(examples.run("python/send_photo.py", &[&photo, &url])?, "Coat, says the model \n");
    let answer = examples.run("curl/send_photo.sh", &[&photo, &url])?;
    check_shows("{\"id\":\"porch.…\"authority\":\"model\"…\"label\":\"Coat\"…}", &answer);

    let mut listeners = Vec::new();
    for (name, arguments, shows) in [
        ("python/listen.py", vec![&*url], "…correction porch.… pictures Coat…"),
        ("curl/listen.sh", vec![&*url], "…event: correction\n…data: {\"id\":\"porch.…\"label\":\"Coat\"…}…"),
        ("python/watch_fleet.py", vec![&*broker], "…porch: online…porch: online, … cases waiting…"),
        (
            "shell/watch_fleet.sh",
            vec!["-h", &*broker],
            "…porch/up/status {\"state\":\"online\"…porch/up/telemetry {\"link\":\"online\"…",
        ),
    ] {
        listeners.push((examples.recipe(name, &arguments).start()?, shows));
    }
    let picture = std::fs::read(&photo)?;
    for (listener, shows) in &mut listeners {
        let name = listener.name().to_owned();
        // Until it hears: only what is said from its beginning on reaches it.
        listener.wait_for(&format!("{name} shows {shows}"), WAIT_MAX, |listener| {
            porch.agent.http.post("pictures", "&wait_ms=1000", "image/png", &picture)?;
            Ok(fits(shows, &listener.output()?).then_some(()))
        })?;
    }
    drop(listeners);

    let reply = examples.run("python/call_command.py", &["porch", "ping", "{}", &broker])?;
    check_shows("{\"id\": …, \"command\": \"ping\", \"outcome\": \"done\", \"result\": {\"version\": …}}", &reply);
    let reply = examples.run("shell/call_command.sh", &["porch", "pause", "{\"source\":\"camera\"}", "-h", &broker])?;
    check_shows("{\"id\":…,\"command\":\"pause\",\"outcome\":\"done\"}", &reply);

    let folder = inbox.display().to_string();
    let mut camera = examples.recipe("shell/folder_camera.sh", &[&folder, "1", "cp", &photo]).start()?;
    let mut answers = porch.agent.sink();
    camera.wait_for("a picture in the folder is answered", WAIT_MAX, |_| {
        Ok(answers.read_on()?.iter().any(|answer| answer.source == "inbox" && answer.revision == 1).then_some(()))
    })?;
    drop(camera);

    let files = examples.files()?;
    assert_eq!(files, examples.ran, "each example is run, and none is missing");
    for file in files {
        let lines = std::fs::read_to_string(&file)?.lines().count();
        assert!(lines <= LINES_MAX, "{} has {lines} lines", file.display());
    }
    porch.agent.stop()
}

/// Every topic of the wire, as the AsyncAPI document calls it.
const CHANNELS: &str = "cloudStatus downCommand downDesired downVerdict operatorMarker upAnswer upCase upReply upReported \
                        upStatus upTelemetry";

#[test]
fn messages_of_a_real_run_are_as_the_asyncapi_document_says() -> Result<()> {
    let Some(python) = std::env::var_os("HEDGETEST_PYTHON") else {
        skip::skipped("no Python environment with jsonschema; `cargo xtask test` makes one");
        return Ok(());
    };
    let Some(mut porch) = Porch::start_with(|config| config.section("[telemetry]\ninterval_s = 1"))? else {
        return Ok(());
    };
    let mosquitto = porch.scene.mosquitto.as_ref().context("mosquitto")?;
    let (broker, url) = (mosquitto.inside(), mosquitto.url());
    let listen = ["-h", &broker.ip().to_string(), "-V", "mqttv5", "-q", "1", "-t", "hedge/v1/#", "-F", "%t\t%x"];
    let mut listener = Recipe::new("listener", "mosquitto_sub".into(), porch.scene.dir()).arguments(listen).start()?;
    let heard = |what: &str, text: &str, listener: &mut Program| {
        listener.wait_for(what, WAIT_MAX, |listener| Ok(listener.output()?.contains(text).then_some(())))
    };
    heard("what the broker keeps", "porch/up/status\t", &mut listener)?;
    let device = |words: &[&str]| -> Result<()> {
        let mut command = Command::new(places::program("hedge-cloud")?);
        let output = command.arg("device").args(words).args(["--broker", &url]).output()?;
        ensure!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(())
    };
    device(&["set", "porch", "model.photo.threshold.score_min=1", "broker.keep_alive_s=90"])?;
    device(&["command", "porch", "snapshot", "source=camera"])?;
    device(&["command", "porch", "explain", "last=2"])?;
    heard("an answer", "up/answer/camera\t", &mut listener)?;
    heard("a verdict", "down/verdict\t", &mut listener)?;
    heard("figures", "up/telemetry\t", &mut listener)?;
    porch.agent.stop()?;
    // Asked to end it writes down what it has heard, to the end of the line.
    listener.stop(WAIT_MAX)?;
    let script = places::root().join("tests/tests/clients/asyncapi_messages.py");
    let document = places::root().join("docs/asyncapi.json");
    let held = Command::new(python).arg(script).arg(document).arg(porch.scene.dir().join("listener.out")).output()?;
    ensure!(held.status.success(), "{}", String::from_utf8_lossy(&held.stderr));
    assert_eq!(String::from_utf8(held.stdout)?.trim(), CHANNELS, "every channel was used");
    Ok(())
}
