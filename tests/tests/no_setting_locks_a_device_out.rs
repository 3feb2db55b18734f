//! Settings that cut the link are given back by the device itself, whatever happens in between.

use std::time::Duration;

use anyhow::Result;
use hedge_proto::SettingsOutcome;
use hedge_tests::Operated;
use hedge_tests::operated::DEVICE;
use hedge_tests::operator::WORD_WAIT_MAX;
use serde_json::{Value, json};

/// The deadline of a trial, and what a device may need to be back.
const BACK_WITHIN: Duration = Duration::from_secs(180 + 60);

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

#[test]
fn a_wrong_broker_is_given_back_in_time() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    // Nobody listens on port 9 of the loopback network.
    rig.operator.desire(DEVICE, 1, json!({"broker": {"url": "mqtt://127.0.0.1:9"}}))?;
    let report = rig.wait_for(1, SettingsOutcome::Failed, BACK_WITHIN)?;
    assert_eq!(report.version, 0);
    rig.agent.wait_until_online()?;
    rig.agent.stop()
}
