//! Whatever is wrong when a device is switched on: the agent starts, answers what it can, says what is wrong to systemd,
//! over HTTP, on MQTT and in its metrics, and takes the rest up again when the cause has gone. It never crash-loops.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, Faults, Refusal};
use hedge_tests::certificates::Authority;
use hedge_tests::enrolled::{faketime, wall_clock};
use hedge_tests::program::{Program, Recipe};
use hedge_tests::{Agent, AgentConfig, Ext4, Listener, Mosquitto, places, skip, wait};
use rustix::process::Signal;

/// A start, or what the agent looks at every 5 or 10 s, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// `nobody`.
const NOBODY: u32 = 65534;

/// A device that asks the cloud about everything, in a folder of its own.
fn device(dir: &Path) -> AgentConfig {
    AgentConfig::new(dir, "gate").model_keeping("fashion-small", 1.0).http_source("app")
}

/// A running agent, and what it tells systemd.
struct Device {
    agent: Agent,
    systemd: UnixDatagram,
    status: String,
    ready: bool,
}

impl Device {
    fn start(config: &AgentConfig) -> Result<Self> {
        let socket = config.dir().join("notify");
        if socket.exists() {
            fs::remove_file(&socket)?;
        }
        let systemd = UnixDatagram::bind(&socket)?;
        fs::set_permissions(&socket, fs::Permissions::from_mode(0o777))?;
        systemd.set_nonblocking(true)?;
        let config = config.clone().variable("NOTIFY_SOCKET", &socket.display().to_string());
        let mut device = Self { agent: config.start_wrong()?, systemd, status: String::new(), ready: false };
        wait::until_true("systemd is told that it is ready", SOON, || {
            device.agent.program().check_alive()?;
            device.listen();
            Ok(device.ready)
        })?;
        Ok(device)
    }

    fn listen(&mut self) {
        let mut message = [0; 8192];
        while let Ok(bytes) = self.systemd.recv(&mut message) {
            for line in String::from_utf8_lossy(&message[..bytes]).lines() {
                self.ready |= line == "READY=1";
                if let Some(status) = line.strip_prefix("STATUS=") {
                    self.status = status.to_owned();
                }
            }
        }
    }

    /// Waits until systemd is told of this.
    fn tells_systemd(&mut self, part: &str) -> Result<()> {
        let told = wait::until_true(&format!("systemd is told of `{part}`"), SOON, || {
            self.agent.program().check_alive()?;
            self.listen();
            Ok(self.status.contains(part))
        });
        told.with_context(|| format!("STATUS={}; its log:\n{}", self.status, self.agent.log_end()))
    }

    fn faults(&self) -> Result<Faults> {
        Ok(self.agent.http.status()?.faults)
    }

    /// Waits for a fault of this part that says `why`, everywhere it must be said.
    fn is_degraded(&mut self, part: &str, why: &str) -> Result<()> {
        let said = wait::until_true(&format!("`{part}` is a fault: {why}"), SOON, || {
            self.agent.program().check_alive()?;
            let Ok(faults) = self.faults() else { return Ok(false) };
            Ok(faults.get(part).is_some_and(|sentence| sentence.contains(why)))
        });
        said.with_context(|| format!("faults: {:?}; its log:\n{}", self.faults(), self.agent.log_end()))?;
        let (_, health) = self.agent.http.get("/healthz")?;
        ensure!(health.contains("\"degraded\":true") && health.contains(why), "{health}");
        let figure = self.agent.http.scrape()?;
        let line = format!("hedge_agent_fault{{part=\"{part}\"}} 1.0");
        ensure!(figure.text().contains(&line), "no {line}");
        self.tells_systemd(&format!("{part}: "))?;
        ensure!(self.status.starts_with("degraded: "), "STATUS={}", self.status);
        Ok(())
    }

    /// Waits until nothing is wrong any more, with the same process.
    fn heals(&mut self) -> Result<()> {
        let (process, mut last) = (self.agent.program().id(), None);
        let healed = wait::until_true("nothing is wrong any more", SOON, || {
            self.agent.program().check_alive()?;
            last = self.agent.http.get("/healthz").ok();
            self.listen();
            let well = last.as_ref().is_some_and(|(_, health)| health.contains("\"degraded\":false"));
            Ok(well && self.status.starts_with("link "))
        });
        healed.with_context(|| format!("{last:?}; its log:\n{}", self.agent.log_end()))?;
        ensure!(self.agent.program().id() == process, "it was started by somebody else");
        Ok(())
    }

    /// Posts a picture; its status, and what became of its case.
    fn post(&self) -> Result<(u16, Option<CaseFate>)> {
        let picture = fs::read(places::model("fashion-small").join("golden/test-0.png"))?;
        let (status, text) = self.agent.http.try_post("app", "", "image/png", &picture)?;
        let fate = serde_json::from_str::<hedge_proto::Answer>(&text).ok().and_then(|answer| answer.case);
        Ok((status, fate))
    }

    fn stores(&self) -> Result<()> {
        let (status, fate) = self.post()?;
        ensure!(matches!(fate, Some(CaseFate::Stored | CaseFate::Pending)), "{status} {fate:?}");
        Ok(())
    }

    /// It answers and refuses to store.
    fn answers_only(&self) -> Result<()> {
        let (status, fate) = self.post()?;
        ensure!(status == 200 && fate == Some(CaseFate::Refused(Refusal::Disk)), "{status} {fate:?}");
        Ok(())
    }
}

#[test]
fn a_half_written_configuration_gives_way_to_the_last_that_worked() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let config = device(dir.path());
    let mut whole = Device::start(&config.clone().write_first()?)?;
    whole.stores()?;
    let text = fs::read_to_string(config.file())?;
    fs::write(config.file(), &text[..text.len() - 7])?;
    whole.agent.program().signal(Signal::HUP)?;
    whole.is_degraded("config", "what was in force stays so")?;
    whole.stores()?;
    fs::write(config.file(), &text)?;
    whole.agent.program().signal(Signal::HUP)?;
    whole.heals()?;
    whole.agent.stop()?;
    fs::write(config.file(), &text[..text.len() - 7])?;

    let mut half = Device::start(&config)?;
    half.is_degraded("config", "last configuration that worked")?;
    half.stores()?;
    // Written anew in two steps, the first of which is valid and lacks the source.
    let (first, rest) = text.split_once("[[source]]").context("a source")?;
    fs::write(config.file(), first)?;
    fs::write(config.file(), format!("{first}[[source]]{rest}"))?;
    half.heals()?;
    half.stores()
}

#[test]
fn without_any_configuration_that_worked_the_status_is_served() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let config = device(dir.path()).write_first()?;
    let text = fs::read_to_string(config.file())?;
    fs::write(config.file(), text.replace("[http]", "[http"))?;
    let listen = format!("[\"{}\"]", config.http());
    let mut none = Device::start(&config.clone().variable("HEDGE_HTTP__LISTEN", &listen))?;
    none.is_degraded("config", "agent.toml:")?;
    ensure!(none.post()?.0 == 503, "a sender is told to come again");
    fs::write(config.file(), text)?;
    none.heals()?;
    none.stores()
}

#[test]
fn a_full_or_read_only_disk_leaves_it_answering_and_is_used_again() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_ext4() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let disk = Ext4::make(dir.path(), 48)?;
    let config =
        device(dir.path()).state_dir(&disk.path().join("state")).section("[outbox]\nfree_bytes_min = 1_000_000");
    let config = config.write_first()?;
    let hog = disk.path().join("hog");
    let mut bytes = disk.free_bytes()?;
    let file = fs::File::create(&hog)?;
    while bytes > 0 && rustix::fs::fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes).is_err() {
        bytes = bytes.saturating_sub(50_000);
    }
    // Not even a folder can be made: the first start on a full disk.
    let mut fillers = (0..10_000).take_while(|n| fs::create_dir(disk.path().join(format!("filler-{n}"))).is_ok());
    ensure!(fillers.by_ref().count() < 10_000, "the disk is not full");
    drop(file);
    let mut full = Device::start(&config)?;
    full.answers_only()?;
    full.is_degraded("state", "No space left")?;
    fs::remove_file(&hog)?;
    full.heals()?;
    full.stores()?;
    full.agent.stop()?;

    disk.remount("ro")?;
    let mut read_only = Device::start(&config)?;
    read_only.answers_only()?;
    read_only.is_degraded("state", "cannot be used")?;
    read_only.is_degraded("disk", "read-only")?;
    disk.remount("rw")?;
    read_only.heals()?;
    read_only.stores()?;
    let both = "what was stored before is there, and what is stored now";
    read_only.agent.wait_for_status(both, SOON, |status| status.queue.waiting == 2)?;
    read_only.agent.stop()
}

#[test]
fn a_missing_model_is_named_refused_for_the_time_being_and_taken_when_it_comes() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let broker = Mosquitto::start(dir.path())?;
    let listener = Listener::start(broker.inside(), dir.path())?;
    let bundle = dir.path().join("late");
    let model = format!("[[model]]\nname = \"late\"\nbundle = \"{}\"", bundle.display());
    let config = AgentConfig::new(dir.path(), "gate").broker(&broker.url()).section(&model);
    let source = "[[source]]\nname = \"other\"\nkind = \"http\"\nmodel = \"fashion-small\"";
    let config = config.section("threshold = { score_min = 1.0 }").model("fashion-small").section(source);
    let config = config.section("[[source]]\nname = \"app\"\nkind = \"http\"\nmodel = \"late\"").write_first()?;

    let mut missing = Device::start(&config)?;
    missing.is_degraded("model.late", "late")?;
    ensure!(missing.post()?.0 == 503, "a sender is told to come again");
    let picture = fs::read(places::model("fashion-small").join("golden/test-0.png"))?;
    missing.agent.http.post("other", "", "image/png", &picture)?;
    let on_mqtt = |wanted: bool| {
        wait::until_true("the retained status says so", SOON, || {
            let heard = listener.heard()?;
            let last = heard.iter().rev().find(|heard| heard.topic.ends_with("/up/status"));
            Ok(last.is_some_and(|status| status.payload.contains("model.late") == wanted))
        })
    };
    on_mqtt(true)?;
    symlink(places::model("fashion-small"), &bundle)?;
    missing.heals()?;
    on_mqtt(false)?;
    missing.stores()
}

#[test]
fn what_a_sink_lacks_is_a_fault_of_the_sink_and_is_used_when_it_comes() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let [place, token, light, ca] =
        ["answers", "token", "light", "ca.pem"].map(|name| dir.path().join("late").join(name));
    let sinks = format!(
        "[verdicts.jsonl]\npath = \"{}/answers.jsonl\"\nwanted = \"all\"\n\
         [verdicts.webhook]\nurl = \"http://127.0.0.1:9/hook\"\ntoken_file = \"{}\"\n\
         [verdicts.command]\ncommand = [\"{}\"]\n\
         [verdicts.mqtt]\nbroker = {{ url = \"mqtts://127.0.0.1:1\", ca_file = \"{}\" }}",
        place.display(),
        token.display(),
        light.display(),
        ca.display()
    );
    let config = device(dir.path()).section(&sinks).write_first()?;
    let mut lacking = Device::start(&config)?;
    lacking.is_degraded("sink.jsonl", "answers.jsonl")?;
    lacking.is_degraded("sink.webhook", "token_file = ")?;
    lacking.is_degraded("sink.command", "no program")?;
    lacking.is_degraded("sink.mqtt", "ca_file = ")?;
    lacking.stores()?;
    fs::create_dir_all(&place)?;
    fs::write(&token, "secret")?;
    fs::write(&light, "#!/bin/sh\n")?;
    fs::copy(Authority::new(dir.path())?.file(), &ca)?;
    lacking.heals()?;
    let written = || Ok(fs::read_to_string(place.join("answers.jsonl"))?.lines().count() == 1);
    wait::until_true("the answer that waited is written", SOON, written)?;
    lacking.agent.stop()
}

#[test]
fn a_library_that_executes_an_illegal_instruction_is_a_sentence() -> Result<()> {
    let Some(good) = places::onnxruntime() else {
        skip::has_onnxruntime();
        return Ok(());
    };
    let dir = tempfile::tempdir()?;
    let (code, library) = (dir.path().join("trap.c"), dir.path().join("libonnxruntime.so"));
    fs::write(&code, "const void *OrtGetApiBase(void) { __builtin_trap(); }\n")?;
    let built = Command::new("cc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(&code).output();
    let Ok(built) = built else {
        skip::skipped("there is no C compiler; on Debian: apt-get install gcc libc6-dev");
        return Ok(());
    };
    ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
    let config =
        device(dir.path()).section(&format!("[runtime]\nlibrary = \"{}\"", library.display())).write_first()?;

    let mut trapped = Device::start(&config)?;
    trapped.is_degraded("model.fashion-small", "illegal instruction")?;
    ensure!(trapped.post()?.0 == 503, "a sender is told to come again");
    fs::remove_file(&library)?;
    fs::copy(good, &library)?;
    trapped.heals()?;
    trapped.stores()
}

#[test]
fn a_device_that_wakes_up_in_1970_answers_and_says_so() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    if faketime().is_none() {
        skip::skipped("libfaketime is not installed; on Debian: apt-get install faketime");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let clock = dir.path().join("clock");
    fs::write(&clock, "@1970-01-01 00:00:10")?;
    let variables = wall_clock("")?.into_iter().filter(|(name, _)| *name != "FAKETIME");
    let config =
        variables.fold(device(dir.path()).write_first()?, |config, (name, value)| config.variable(name, &value));
    let config = config.variable("FAKETIME_TIMESTAMP_FILE", &clock.display().to_string());
    let mut lost = Device::start(&config.variable("FAKETIME_NO_CACHE", "1"))?;
    lost.is_degraded("clock", "has not been set")?;
    lost.stores()?;
    fs::write(&clock, "+0")?;
    lost.heals()
}

#[test]
fn wrong_permissions_are_named_and_need_no_restart_once_they_are_right() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    if !rustix::process::geteuid().is_root() {
        skip::skipped("running a program as another user needs root");
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755))?;
    let gate = Authority::new(dir.path())?.device("gate")?;
    let socket = dir.path().join("run/agent.sock");
    fs::create_dir(dir.path().join("run"))?;
    let broker = format!(
        "[broker]\nurl = \"mqtts://127.0.0.1:1\"\nca_file = \"{}\"\ncertificate_file = \"{}\"\nkey_file = \"{}\"",
        dir.path().join("ca.pem").display(),
        gate.certificate.display(),
        gate.key.display()
    );
    let config = device(dir.path()).section(&broker).running_as(NOBODY).write_first()?;
    let text = fs::read_to_string(config.file())?;
    let listen = format!("listen = [\"unix:{}\", \"", socket.display());
    fs::write(config.file(), text.replace("listen = [\"", &listen))?;
    fs::create_dir(config.state())?;
    let keys = [&gate.key, &gate.certificate, &config.state().to_owned()];
    keys.iter().try_for_each(|path| fs::set_permissions(path, fs::Permissions::from_mode(0o700)))?;

    let mut barred = Device::start(&config)?;
    barred.answers_only()?;
    barred.is_degraded("state", "Permission denied")?;
    barred.is_degraded("listen", "Permission denied")?;
    barred.is_degraded("broker", "_file = ")?;
    for path in [&gate.key, &gate.certificate, &config.state().to_owned(), &dir.path().join("run")] {
        chown(path, Some(NOBODY), Some(NOBODY))?;
    }
    barred.heals()?;
    barred.stores()?;
    ensure!(socket.exists(), "applications reach it");
    Ok(())
}

#[test]
fn who_the_device_is_may_be_unknown_for_a_while() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let gate = Authority::new(dir.path())?.device("gate")?;
    let broker = format!(
        "[broker]\nurl = \"mqtts://127.0.0.1:1\"\ncertificate_file = \"{}\"\nkey_file = \"{}\"",
        gate.certificate.display(),
        gate.key.display()
    );
    let config = device(dir.path()).section(&broker).write_first()?;
    let text = fs::read_to_string(config.file())?;
    fs::write(config.file(), text.replace("device = \"gate\"\n", ""))?;
    let certificate = fs::read(&gate.certificate)?;
    fs::write(&gate.certificate, &certificate[..100])?;

    let mut nobody = Device::start(&config)?;
    nobody.answers_only()?;
    nobody.is_degraded("identity", "certificate_file = ")?;
    fs::write(&gate.certificate, &certificate)?;
    nobody.heals()?;
    nobody.stores()?;
    nobody.agent.stop()?;
    // From now on it is known.
    fs::write(&gate.certificate, &certificate[..100])?;
    let mut known = Device::start(&config)?;
    known.is_degraded("identity", "goes on as `gate`")?;
    known.stores()
}

#[test]
fn without_any_network_it_starts_and_finds_the_broker_when_there_is_one() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() || !skip::has_namespaces() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let namespace = Namespace::new()?;
    let config = device(dir.path()).broker("mqtt://127.0.0.1:1883").inside(&namespace.0).write_first()?;
    let mut alone = Device::start(&config)?;
    alone.tells_systemd("link offline: there is no network")?;
    namespace.run(&["link", "set", "lo", "up"])?;
    let _broker = broker_inside(&namespace.0, dir.path())?;
    // No cloud is there, which is no fault of the device's.
    alone.tells_systemd("link degraded: connected to the broker")
}

#[test]
fn an_end_for_want_of_memory_is_said_and_a_model_that_keeps_causing_it_rests() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let config = device(dir.path()).write_first()?;
    fs::create_dir(config.state())?;
    // What the unit's ExecStopPost leaves behind.
    let out_of_memory = || fs::write(config.state().join("last-end"), "oom-kill killed KILL\n");
    for run in 1..=2 {
        out_of_memory()?;
        let mut device = Device::start(&config)?;
        device.is_degraded("last_run", "MemoryMax").with_context(|| format!("run {run}"))?;
        device.stores()?;
        device.agent.kill()?;
    }
    out_of_memory()?;
    let mut device = Device::start(&config)?;
    // It rests from the start on, and not for ever.
    ensure!(device.post()?.0 == 503, "a sender is told to come again");
    device.is_degraded("model.fashion-small", "3 runs in a row")?;
    wait::until_true("the model is loaded after its rest", SOON, || Ok(device.post()?.0 == 200))?;
    device.agent.stop()
}

/// A network namespace without any network. Dropping it removes it.
struct Namespace(String);

impl Namespace {
    fn new() -> Result<Self> {
        let namespace = Self(format!("hedge-alone-{}", std::process::id()));
        let made = Command::new("ip").args(["netns", "add", &namespace.0]).status()?;
        ensure!(made.success(), "ip netns add");
        Ok(namespace)
    }

    fn run(&self, words: &[&str]) -> Result<()> {
        let done = Command::new("ip").args(["-n", &self.0]).args(words).status()?;
        ensure!(done.success(), "ip {words:?}");
        Ok(())
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        if let Err(error) = Command::new("ip").args(["netns", "delete", &self.0]).status() {
            eprintln!("cannot delete {}: {error}", self.0);
        }
    }
}

fn broker_inside(namespace: &str, dir: &Path) -> Result<Program> {
    let program = PathBuf::from("/usr/sbin/mosquitto");
    Recipe::new("mosquitto", program, dir).arguments(["-p", "1883"]).inside(Some(namespace)).start()
}
