//! Settings that cut the link are given back by the device itself, whatever happens in between.

use std::time::Duration;

use anyhow::{Context, Result};
use hedge_proto::SettingsOutcome;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::operator::WORD_WAIT_MAX;
use hedge_tests::{Agent, Operator, Scene, skip};
use serde_json::{Value, json};

const DEVICE: &str = "device-1";

/// The deadline of a trial, and what a device may need to be back.
const BACK_WITHIN: Duration = Duration::from_secs(180 + 60);

struct Rig {
    _scene: Scene,
    operator: Operator,
    agent: Agent,
}

impl Rig {
    fn start() -> Result<Self> {
        let scene = Scene::stub(&MosquittoSetup::default())?;
        let operator = Operator::at(scene.broker()?)?;
        let broker = format!("mqtt://{}", scene.broker()?);
        let mut agent = scene.doubter(DEVICE).broker(&broker).start()?;
        agent.wait_until_online()?;
        Ok(Self { _scene: scene, operator, agent })
    }

    fn wait_for(&self, version: u64, outcome: SettingsOutcome, bound: Duration) -> Result<hedge_proto::Reported> {
        let what = format!("version {version} is {outcome:?}");
        self.operator
            .wait_for_report(DEVICE, &what, bound, |report| {
                report.last.as_ref().is_some_and(|last| last.version == Some(version) && last.outcome == outcome)
            })
            .with_context(|| self.agent.log_end())
    }
}

fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

fn keep_alive(seconds: u16) -> Value {
    json!({"broker": {"keep_alive_s": seconds}})
}

#[test]
fn good_settings_of_the_link_are_kept_once_a_live_cloud_has_answered() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    rig.operator.desire(DEVICE, 1, keep_alive(30))?;
    let report = rig.wait_for(1, SettingsOutcome::Applied, WORD_WAIT_MAX)?;
    assert_eq!(report.settings.broker.and_then(|broker| broker.keep_alive_s), Some(30));
    rig.agent.stop()
}

#[test]
fn an_operators_trial_is_kept_by_the_operators_word_only() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut rig = Rig::start()?;
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

#[test]
fn a_wrong_broker_is_given_back_in_time() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    // Nobody listens on port 9 of the loopback network.
    rig.operator.desire(DEVICE, 1, json!({"broker": {"url": "mqtt://127.0.0.1:9"}}))?;
    let report = rig.wait_for(1, SettingsOutcome::Failed, BACK_WITHIN)?;
    assert_eq!(report.version, 0);
    rig.agent.wait_until_online()?;
    rig.agent.stop()
}
