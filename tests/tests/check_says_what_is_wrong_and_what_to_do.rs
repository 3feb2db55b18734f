//! `hedge-agent check` names each thing that is wrong with a device, says what to do, and disturbs nothing.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use hedge_proto::LinkState;
use hedge_tests::certificates::Authority;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Agent, AgentConfig, Mosquitto, Scene, places, skip};
use serde_json::Value;

/// What no output of the program may hold.
const PASSWORD: &str = "correct-horse-battery";

/// What a check found, and how it ended.
struct Checked {
    lines: Vec<Value>,
    code: i32,
}

fn check(config: &AgentConfig) -> Result<Checked> {
    let run = |more: &[&str]| {
        let program = Command::new(places::program("hedge-agent")?)
            .args(["check", "--config"])
            .arg(config.file())
            .args(more)
            .output()?;
        let said = [program.stdout, program.stderr].concat();
        let said = String::from_utf8(said)?;
        ensure!(!said.contains(PASSWORD), "a secret is printed: {said}");
        Ok((said, program.status.code().unwrap_or(-1)))
    };
    let (json, code) = run(&["--json"])?;
    let document: Value = serde_json::from_str(&json).with_context(|| json.clone())?;
    let lines = document["checks"].as_array().context("checks")?.clone();
    // For people it is the same.
    let (text, code_of_text) = run(&[])?;
    ensure!(code == code_of_text, "{code} {code_of_text}");
    for line in lines.iter().filter(|line| line["outcome"] == "failed") {
        let advice = line["advice"].as_str().context("a failed line says what to do")?;
        ensure!(text.contains("FAILED") && text.contains(advice), "{text}");
    }
    Ok(Checked { lines, code })
}

impl Checked {
    /// Whether a line of this check and outcome says so.
    #[track_caller]
    fn says(&self, check: &str, outcome: &str, text: &str) -> Result<()> {
        let found = self.lines.iter().any(|line| {
            let whole = format!("{} -> {}", line["text"], line["advice"]);
            line["check"] == check && line["outcome"] == outcome && whole.contains(text)
        });
        ensure!(found, "no `{check}` that is {outcome} and says `{text}` in {:#?}", self.lines);
        Ok(())
    }

    /// Nothing else failed.
    #[track_caller]
    fn failed_only(&self, checks: &[&str]) -> Result<()> {
        let failed = self.lines.iter().filter(|line| line["outcome"] == "failed");
        let others: Vec<_> = failed.filter(|line| !checks.iter().any(|check| line["check"] == *check)).collect();
        ensure!(others.is_empty(), "{others:#?}");
        ensure!(self.code == i32::from(!checks.is_empty()), "exit code {}", self.code);
        Ok(())
    }
}

fn device(dir: &Path, broker: &str) -> Result<AgentConfig> {
    let config = AgentConfig::new(dir, "device-1").model("fashion-small").http_source("app");
    config.section("[outbox]\nbytes_max = 10_000_000").section(&format!("[broker]\n{broker}")).write_first()
}

fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

#[test]
fn a_device_that_is_well_has_nothing_to_do_and_a_running_one_is_not_disturbed() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    scene.cloud.wait_until_connected()?;
    let config = scene.doubter("device-1").section("[outbox]\nbytes_max = 10_000_000");
    let config = config.broker(&format!("mqtt://{}", scene.broker()?)).write_first()?;
    let stopped = check(&config)?;
    stopped.failed_only(&[])?;
    stopped.says("agent", "ok", "stopped device")?;
    stopped.says("ONNX Runtime", "ok", "libonnxruntime.so")?;
    stopped.says("model fashion-small", "ok", "3 of 3 golden samples agree")?;
    stopped.says("DNS", "ok", "is 127.")?;
    stopped.says("login", "ok", "device-1-check")?;
    stopped.says("topics", "ok", "may write hedge/v1/device-1/up/case")?;
    stopped.says("cloud", "ok", "is online")?;
    stopped.says("TLS", "warning", "mqtts://")?;

    let mut agent = config.start()?;
    agent.wait_until_online()?;
    let connections = agent.http.status()?.connections;
    let running = check(&config)?;
    running.failed_only(&[])?;
    running.says("agent", "ok", "it runs; link online")?;
    running.says("topics", "ok", "may subscribe to hedge/v1/device-1/down/#")?;
    undisturbed(&mut agent, connections)
}

fn undisturbed(agent: &mut Agent, connections: u64) -> Result<()> {
    let status = agent.http.status()?;
    ensure!(status.connections == connections && status.link == LinkState::Online, "{status:?}");
    agent.stop()
}

#[test]
fn a_configuration_that_cannot_be_read_is_named_with_its_line() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let config = AgentConfig::new(dir.path(), "device-1").section("[outbox]\nbites_max = 1").write_first()?;
    let wrong = check(&config)?;
    wrong.says("configuration", "failed", "bites_max")?;
    ensure!(wrong.code == 2, "exit code {}", wrong.code);
    Ok(())
}

#[test]
fn what_is_wrong_on_the_device_is_named() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let library = dir.path().join("libonnxruntime.so");
    std::fs::write(&library, "no library")?;
    let sources = "[[source]]\nname = \"drop\"\nkind = \"folder\"\npath = \"/nowhere/pictures\"\n\
        [[source]]\nname = \"cam\"\nkind = \"command\"\ncommand = [\"no-such-camera\"]";
    let config = AgentConfig::new(dir.path(), "device-1").model("fashion-small").section(sources);
    let config = config.section(&format!("[runtime]\nlibrary = \"{}\"", library.display()));
    let config = config.section("[outbox]\nfree_bytes_min = 9_000_000_000_000_000").write_first()?;
    std::fs::create_dir(config.state())?;
    let wrong = check(&config)?;
    wrong.says("ONNX Runtime", "failed", "not a shared library")?;
    wrong.says("source drop", "failed", "/nowhere/pictures")?;
    wrong.says("source cam", "failed", "no-such-camera")?;
    wrong.says("disk", "failed", "make room")?;
    wrong.failed_only(&["ONNX Runtime", "source drop", "source cam", "disk"])?;

    let sinks = "[verdicts.jsonl]\npath = \"/nowhere/answers.jsonl\"\n\
        [verdicts.webhook]\nurl = \"http://127.0.0.1:9/h\"\ntoken_file = \"/nowhere/token\"\n\
        [verdicts.command]\ncommand = [\"no-such-light\"]\n\
        [verdicts.mqtt]\nbroker = { url = \"mqtts://127.0.0.1:1\", ca_file = \"/nowhere/ca.pem\" }\n\
        [payloads]\nurl = \"https://127.0.0.1:1\"\ntoken_file = \"/nowhere/payloads\"";
    let config = AgentConfig::new(&dir.path().join("sinks"), "device-1").section(sinks).write_first()?;
    let wrong = check(&config)?;
    wrong.says("sink jsonl", "failed", "/nowhere/answers.jsonl")?;
    wrong.says("sink webhook", "failed", "token_file = /nowhere/token")?;
    wrong.says("sink command", "failed", "no-such-light")?;
    wrong.says("sink mqtt", "failed", "ca_file = /nowhere/ca.pem")?;
    wrong.says("payloads", "failed", "token_file = /nowhere/payloads")?;
    ensure!(wrong.code == 1, "exit code {}", wrong.code);

    let bundle = dir.path().join("bundle");
    copy_of_the_bundle(&bundle)?;
    let manifest = std::fs::read_to_string(bundle.join("manifest.toml"))?;
    let (before, after) = manifest.split_once("label = \"").context("a golden sample")?;
    let (_, after) = after.split_once('"').context("its label")?;
    std::fs::write(bundle.join("manifest.toml"), format!("{before}label = \"Bag\"{after}"))?;
    let config = AgentConfig::new(dir.path(), "other")
        .section(&format!("[[model]]\nname = \"m\"\nbundle = \"{}\"", bundle.display()));
    let config = config.write_first()?;
    check(&config)?.says("model m", "failed", "a golden sample is")?;
    std::fs::remove_file(bundle.join("manifest.toml"))?;
    check(&config)?.says("model m", "failed", "manifest.toml")
}

fn copy_of_the_bundle(to: &Path) -> Result<()> {
    let from = places::model("fashion-small");
    std::fs::create_dir_all(to.join("golden"))?;
    for folder in ["", "golden"] {
        for entry in std::fs::read_dir(from.join(folder))? {
            let entry = entry?;
            if entry.file_type()?.is_file() {
                std::fs::copy(entry.path(), to.join(folder).join(entry.file_name()))?;
            }
        }
    }
    Ok(())
}

#[test]
fn a_broker_that_is_not_there_is_told_from_a_name_that_is_not_known() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let nobody = check(&device(dir.path(), "url = \"mqtt://127.0.0.1:1\"")?)?;
    nobody.says("broker", "failed", "Connection refused")?;
    nobody.failed_only(&["broker"])?;
    // No resolver is asked: a name of 300 letters is none.
    let long = "a".repeat(300);
    let unknown = check(&device(dir.path(), &format!("url = \"mqtt://{long}:1883\""))?)?;
    unknown.says("DNS", "failed", "is not known")?;
    unknown.failed_only(&["DNS"])
}

#[test]
fn a_wrong_password_and_a_key_that_others_can_read_are_named() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let setup = MosquittoSetup { user: Some(("device-1", "another")), ..Default::default() };
    let broker = Mosquitto::start_with(dir.path(), &setup)?;
    let file = dir.path().join("password");
    std::fs::write(&file, format!("{PASSWORD}\n"))?;
    let url = format!("url = \"mqtt://{}\"\nusername = \"device-1\"", broker.address());
    let wrong = check(&device(dir.path(), &format!("{url}\npassword_file = \"{}\"", file.display()))?)?;
    wrong.says("login", "failed", "password_file")?;
    wrong.says("password_file", "warning", "chmod 600")?;
    wrong.failed_only(&["login"])?;
    let missing = check(&device(dir.path(), &format!("{url}\npassword_file = \"/nowhere\""))?)?;
    missing.says("password_file", "failed", "/nowhere")
}

#[test]
fn certificates_that_are_not_trusted_or_have_expired_are_told_apart() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (dir, other) = (tempfile::tempdir()?, tempfile::tempdir()?);
    let (authority, stranger) = (Authority::new(dir.path())?, Authority::new(other.path())?);
    let broker = Mosquitto::start_with(dir.path(), &MosquittoSetup { tls: Some(&authority), ..Default::default() })?;
    let url = format!("url = \"mqtts://{}\"", broker.address());
    let with_ca = |ca: &Path| format!("{url}\nca_file = \"{}\"", ca.display());

    let good = check(&device(dir.path(), &with_ca(&authority.file()))?)?;
    good.says("TLS", "ok", "more days")?;
    good.failed_only(&[])?;
    let unknown = check(&device(dir.path(), &with_ca(&stranger.file()))?)?;
    unknown.says("TLS", "failed", "an authority this device does not know")?;
    unknown.failed_only(&["TLS"])?;
    let half = dir.path().join("half.pem");
    std::fs::write(&half, "-----BEGIN CERT")?;
    check(&device(dir.path(), &with_ca(&half))?)?.says("TLS files", "failed", "half.pem")?;
    drop(broker);

    let expired = tempfile::tempdir()?;
    let authority = Authority::expiring(expired.path(), -1)?;
    let broker =
        Mosquitto::start_with(expired.path(), &MosquittoSetup { tls: Some(&authority), ..Default::default() })?;
    let url = format!("url = \"mqtts://{}\"\nca_file = \"{}\"", broker.address(), authority.file().display());
    let old = check(&device(dir.path(), &url)?)?;
    old.says("TLS", "failed", "has expired")?;
    old.failed_only(&["TLS"])?;
    drop(broker);

    let soon = tempfile::tempdir()?;
    let authority = Authority::expiring(soon.path(), 5)?;
    let setup = MosquittoSetup { tls: Some(&authority), client_certificates: true, ..Default::default() };
    let broker = Mosquitto::start_with(soon.path(), &setup)?;
    let gate = authority.device("device-1")?;
    let url = format!("url = \"mqtts://{}\"\nca_file = \"{}\"", broker.address(), authority.file().display());
    let own = format!("certificate_file = \"{}\"\nkey_file = \"{}\"", gate.certificate.display(), gate.key.display());
    let late = check(&device(dir.path(), &format!("{url}\n{own}"))?)?;
    late.says("TLS", "warning", "hold 4 more days")?;
    late.says("certificate", "warning", "expires in 4 days")?;
    late.failed_only(&[])?;
    // Without its own the broker does not let the device in.
    let none = check(&device(dir.path(), &url)?)?;
    ensure!(none.code == 1, "exit code {}", none.code);
    none.says("login", "failed", "broker").or_else(|_| none.says("TLS", "failed", "this device's certificate"))
}

#[test]
fn a_topic_that_the_access_rules_refuse_is_named() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let barred_by = |rules: &str| {
        let dir = tempfile::tempdir()?;
        let broker = Mosquitto::start_with(dir.path(), &MosquittoSetup { access: Some(rules), ..Default::default() })?;
        let cloud = r#"{"state":"online","wire":[1]}"#;
        hedge_tests::mosquitto_client::publish(broker.inside(), "hedge/v1/cloud/c/status", &["-r", "-m", cloud])?;
        check(&device(dir.path(), &format!("url = \"mqtt://{}\"", broker.address()))?)
    };
    let mute = barred_by("topic read hedge/v1/device-1/down/#\ntopic read hedge/v1/cloud/+/status\n")?;
    mute.says("topics", "failed", "may not write hedge/v1/device-1/up/case")?;
    mute.says("cloud", "ok", "instance `c` is online")?;
    mute.failed_only(&["topics"])?;
    // This broker grants every subscription, and delivers nothing that the rules forbid.
    let deaf = barred_by("topic write hedge/v1/device-1/up/#\n")?;
    deaf.says("topics", "ok", "may write hedge/v1/device-1/up/case")?;
    deaf.says("cloud", "warning", "access rules")?;
    deaf.failed_only(&[])
}
