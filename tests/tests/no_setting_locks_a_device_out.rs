//! Settings that cut the link are given back by the device itself, whatever happens in between.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{DeviceId, LinkState, Reported, SettingsOutcome, Telemetry, Topic, VERSION_MAX, highest_after};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::operated::DEVICE;
use hedge_tests::operator::WORD_WAIT_MAX;
use hedge_tests::{Agent, Mosquitto, Operated, Operator, Scene, skip};
use serde_json::{Value, json};

/// How long trials take here; core's tests know the usual length.
const TRIAL: Duration = Duration::from_secs(10);

/// What devices may need to be back once their trial has ended: dial waits of up to 40 s, and a busy machine.
const BACK_WITHIN: Duration = Duration::from_secs(120);

/// Dial waits of up to 40 s, every second one to the recovery broker.
const REACHED_WITHIN: Duration = Duration::from_secs(120);

/// A first connection on a busy machine, and its report.
const ONLINE_WITHIN: Duration = Duration::from_secs(60);

fn keep_alive(seconds: u16) -> Value {
    json!({"broker": {"keep_alive_s": seconds}})
}

#[test]
fn good_settings_of_the_link_are_kept_once_a_live_cloud_has_answered() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    rig.operator.desire(DEVICE, 1, keep_alive(30))?;
    let report = rig.wait_for(1, SettingsOutcome::Applied, WORD_WAIT_MAX)?;
    assert_eq!(report.settings.broker.and_then(|broker| broker.keep_alive_s), Some(30));
    rig.agent.stop()
}

#[test]
fn an_operators_trial_is_kept_by_the_operators_word_only() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    let document = json!({"version": 1, "settings": keep_alive(30), "confirm": "operator"});
    rig.operator.desire_document(DEVICE, document.to_string())?;
    rig.wait_for(1, SettingsOutcome::OnTrial, WORD_WAIT_MAX)?;
    rig.agent.kill()?;
    rig.agent.start_again()?;
    rig.agent.wait_until_online()?;
    rig.wait_for(1, SettingsOutcome::OnTrial, WORD_WAIT_MAX)?;
    // Started too often during a trial, it is given back without anybody's word.
    for _ in 0..2 {
        rig.agent.kill()?;
        rig.agent.start_again()?;
    }
    let report = rig.wait_for(1, SettingsOutcome::Failed, WORD_WAIT_MAX)?;
    assert_eq!((report.version, report.settings.broker.and_then(|broker| broker.keep_alive_s)), (0, Some(20)));
    // The retained document is still there and is not tried again.
    rig.agent.kill()?;
    rig.agent.start_again()?;
    rig.agent.wait_until_online()?;
    let report = rig.wait_for(1, SettingsOutcome::Failed, WORD_WAIT_MAX)?;
    assert_eq!(report.version, 0);
    rig.agent.stop()
}

/// Several devices, each with another setting that cuts the link; every second one is killed meanwhile.
#[test]
fn settings_that_cut_the_link_are_given_back_in_time() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let (broker, operator) = (scene.broker()?, Operator::at(scene.broker()?)?);
    let silent = std::net::TcpListener::bind("127.0.0.1:0")?;
    let wrong = [
        // Nobody listens on port 9 of the loopback network.
        json!({"broker": {"url": "mqtt://127.0.0.1:9"}}),
        // Somebody accepts and says nothing.
        json!({"broker": {"url": format!("mqtt://{}", silent.local_addr()?)}}),
        // Another protocol.
        json!({"broker": {"url": format!("wss://{broker}")}}),
        json!({"broker": {"proxy": "http://127.0.0.1:9"}}),
        json!({"broker": {"credentials": "wrong"}}),
    ];
    let mut devices = Vec::new();
    for (number, settings) in wrong.into_iter().enumerate() {
        let name = format!("device-{number}");
        let config = scene.doubter(&name).broker(&format!("mqtt://{broker}"));
        let missing = scene.dir().join("no-such-file");
        let config = config
            .section(&format!("[credentials.wrong]\nusername = \"x\"\npassword_file = \"{}\"", missing.display()))
            .section(&format!("[settings]\ntrial_s = {}", TRIAL.as_secs()));
        devices.push((name, config.start()?, settings));
    }
    for (_, agent, _) in &mut devices {
        agent.wait_until_online()?;
    }
    for (name, _, settings) in &devices {
        operator.desire(name, 1, settings.clone())?;
    }
    let wanted = Instant::now();
    for (number, (_, agent, settings)) in devices.iter_mut().enumerate() {
        let what = format!("the link is cut by {settings}");
        // Or was: the trial of one that is looked at late is over, and it has connected anew.
        let cut = |status: &Telemetry| status.link != LinkState::Online || status.connections > 1;
        agent.wait_for_status(&what, WORD_WAIT_MAX, cut)?;
        if number % 2 == 0 {
            agent.kill()?;
            agent.start_again()?;
        }
    }
    for (name, agent, settings) in &mut devices {
        let what = format!("{settings} is given back");
        let left = (TRIAL + BACK_WITHIN).saturating_sub(wanted.elapsed());
        let failed = |report: &Reported| {
            report.version == 0 && report.last.as_ref().is_some_and(|last| last.outcome == SettingsOutcome::Failed)
        };
        operator.wait_for_report(name, &what, left, failed).with_context(|| agent.log_end())?;
        agent.wait_until_online()?;
    }
    eprintln!("{} devices back after {:?}, of which {TRIAL:?} on trial", devices.len(), wanted.elapsed());
    // The retained document is there at every connect and is not tried again.
    for (name, agent, settings) in &mut devices {
        agent.kill()?;
        agent.start_again()?;
        agent.wait_until_online()?;
        operator.desire(name, 1, settings.clone())?;
        operator.desire(name, 2, json!({"log": {"level": "debug"}}))?;
        let what = "the next document is taken";
        operator.wait_for_report(name, what, WORD_WAIT_MAX, |report| report.version == 2)?;
        let log = audit_log(agent)?;
        ensure!(log.matches("\"begun\"").count() == 1, "{settings} was tried again: {log}");
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn the_recovery_broker_is_found_and_the_device_set_right_over_it() -> Result<()> {
    let other = tempfile::tempdir()?;
    if !skip::has_mosquitto() {
        return Ok(());
    }
    let second = Mosquitto::start(other.path())?;
    let recovery = format!("recovery_after_s = 5\n[broker.recovery]\nurl = \"{}\"", second.url());
    let Some(mut rig) = Operated::start_with(|config| config.section(&recovery))? else { return Ok(()) };
    let operator = Operator::at(second.address())?;
    // The usual broker is gone for good.
    rig.scene.mosquitto.as_mut().context("there is one")?.kill()?;
    let found = "it reports over the recovery broker";
    operator.wait_for_report(DEVICE, found, REACHED_WITHIN, |_| true).with_context(|| rig.agent.log_end())?;
    let document = json!({"version": 1, "settings": {"broker": {"url": second.url()}}, "confirm": "operator"});
    operator.desire_document(DEVICE, document.to_string())?;
    let outcome = |wanted: SettingsOutcome| {
        move |report: &Reported| report.last.as_ref().is_some_and(|last| last.outcome == wanted)
    };
    operator.wait_for_report(DEVICE, "the new broker is tried", REACHED_WITHIN, outcome(SettingsOutcome::OnTrial))?;
    let command = Topic::DownCommand(DeviceId::new(DEVICE)?);
    operator.publish(&command, r#"{"id": "1", "command": "confirm", "args": {"version": 1}}"#, false)?;
    operator.wait_for_report(DEVICE, "the new broker is kept", REACHED_WITHIN, outcome(SettingsOutcome::Applied))?;
    rig.agent.stop()
}

/// A device whose versions were used up, on purpose, takes nothing any more; whoever stands before it helps.
#[test]
fn a_device_whose_versions_are_used_up_is_brought_back_on_the_device() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    let level = |level: &str| json!({"log": {"level": level}});
    // No single document uses them up.
    rig.operator.desire(DEVICE, VERSION_MAX, level("debug"))?;
    rig.wait_for(VERSION_MAX, SettingsOutcome::Refused, WORD_WAIT_MAX)?;
    let mut version = 0;
    while version < VERSION_MAX {
        version = highest_after(version);
        rig.operator.desire(DEVICE, version, level("debug"))?;
        rig.wait_for(version, SettingsOutcome::Applied, WORD_WAIT_MAX)?;
    }
    // Locked in.
    let desired = Topic::DownDesired(DeviceId::new(DEVICE)?);
    rig.operator.publish(&desired, json!({"version": 7, "settings": level("warn")}).to_string(), false)?;
    let report = rig.wait_for(7, SettingsOutcome::Refused, WORD_WAIT_MAX)?;
    let reason = report.last.and_then(|last| last.reason).context("said")?;
    ensure!(report.version == VERSION_MAX && reason.contains("settings reset"), "{reason}");
    // The way out, on a running agent.
    let said = reset(&rig.agent)?;
    ensure!(said.contains(&VERSION_MAX.to_string()), "{said}");
    rig.operator.wait_for_report(DEVICE, "nothing is set", WORD_WAIT_MAX, |report| report.version == 0)?;
    // The broker still holds what was in force.
    rig.agent.kill()?;
    rig.agent.start_again()?;
    let report = rig.wait_for(VERSION_MAX, SettingsOutcome::Refused, ONLINE_WITHIN)?;
    ensure!(report.version == 0, "{report:?}");
    rig.operator.desire(DEVICE, 1, level("debug"))?;
    rig.wait_for(1, SettingsOutcome::Applied, WORD_WAIT_MAX)?;
    // And on a stopped one.
    rig.agent.stop()?;
    let said = reset(&rig.agent)?;
    ensure!(said.contains("version 1 is out of force"), "{said}");
    rig.agent.start_again()?;
    let report = rig.wait_for(1, SettingsOutcome::Refused, ONLINE_WITHIN)?;
    ensure!(report.version == 0, "{report:?}");
    rig.operator.desire(DEVICE, 2, level("debug"))?;
    rig.wait_for(2, SettingsOutcome::Applied, WORD_WAIT_MAX)?;
    let log = audit_log(&rig.agent)?;
    ensure!(log.matches("\"reset\"").count() == 2, "{log}");
    rig.agent.stop()
}

/// `hedge-agent settings reset`, and what it says.
fn reset(agent: &Agent) -> Result<String> {
    ours(agent, &["settings", "reset"])
}

fn audit_log(agent: &Agent) -> Result<String> {
    ours(agent, &["log", "settings", "--json", "--last", "200"])
}

fn ours(agent: &Agent, arguments: &[&str]) -> Result<String> {
    let program = hedge_tests::places::program("hedge-agent")?;
    let config = agent.dir().join("agent.toml");
    let done = std::process::Command::new(program).args(arguments).arg("--config").arg(config).output()?;
    ensure!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    Ok(String::from_utf8(done.stdout)?)
}
