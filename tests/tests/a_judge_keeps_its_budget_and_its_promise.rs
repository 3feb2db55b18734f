//! A threshold that is steered: to a budget of cases, or to what spot checks allow.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use hedge_proto::{Answer, CaseFate, JudgeFigures, Name, Outcome, Reason, SettingsOutcome, Telemetry, ThresholdMode};
use hedge_tests::agent::AgentConfig;
use hedge_tests::fashion::Fashion;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Agent, Operator, Scene, Tally, skip};
use serde_json::json;

const WITHIN: Duration = Duration::from_secs(60);

const DEVICE: &str = "device-1";

fn sorter(scene: &Scene, device: &str, threshold: &str) -> Result<AgentConfig> {
    let config = AgentConfig::new(scene.dir(), device).model("fashion-small").section(threshold);
    Ok(config.http_source("pictures").corrections_file().broker(&format!("mqtt://{}", scene.broker()?)))
}

/// Shows the device pictures; its answers.
fn show(scene: &Scene, agent: &Agent, from: usize, count: usize) -> Result<Vec<Answer>> {
    let mut tally = Tally::default();
    (from..from + count).map(|index| scene.post(agent, index, &mut tally)).collect()
}

fn asked(answers: &[Answer]) -> usize {
    answers.iter().filter(|answer| answer.decision.outcome == Outcome::Defer).count()
}

fn judge(status: &Telemetry) -> Option<&JudgeFigures> {
    status.model_figures.get(&Name::new("fashion-small").ok()?)?.judge.as_ref()
}

#[test]
fn a_budget_holds_from_settings_sent_to_a_running_device_and_over_kill_9() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let mut agent = sorter(&scene, DEVICE, "")?.start()?;
    agent.wait_until_online()?;
    let operator = Operator::at(scene.broker()?)?;
    let threshold = |budget: serde_json::Value| json!({"model": {"fashion-small": {"threshold": {"mode": "budget", "budget": budget}}}});
    operator.desire(DEVICE, 1, threshold(json!({"share": 0.1})))?;
    operator.wait_for_report(DEVICE, "the budget is in force", WITHIN, |report| report.version == 1)?;
    show(&scene, &agent, 0, 300)?;
    let answers = show(&scene, &agent, 300, 500)?;
    let share = asked(&answers) as f64 / answers.len() as f64;
    ensure!((share - 0.1).abs() <= 0.025, "{share} of the answers were asked about");
    let decision = &answers[0].decision;
    ensure!(decision.mode == ThresholdMode::Budget && decision.because.contains("the budget affords"), "{decision:?}");

    // A number of cases is spent once, whatever is killed.
    operator.desire(DEVICE, 2, threshold(json!({"cases_per_hour": 150})))?;
    operator.wait_for_report(DEVICE, "a number is in force", WITHIN, |report| report.version == 2)?;
    let spent = |status: &Telemetry| judge(status).map_or(0, |judge| judge.cases_per_day);
    let mut made = spent(&agent.http.status()?);
    ensure!(made < 150, "{made} cases of 800 answers");
    // What was not on the disk before the kill was promised to nobody.
    let mut lost = 0;
    for round in 0..3 {
        let answers = show(&scene, &agent, 1000 + round * 300, 300)?;
        made += asked(&answers) as u64;
        lost += answers.iter().filter(|answer| matches!(answer.case, Some(CaseFate::Pending))).count() as u64;
        agent.kill()?;
        agent.start_again()?;
        agent.wait_for_status("the model is there", WITHIN, |status| judge(status).is_some())?;
        let kept = spent(&agent.http.status()?);
        let known = made - lost..=made;
        ensure!(known.contains(&kept), "{kept} cases are known of after kill -9, {made} were made");
    }
    ensure!(made <= 150, "{made} cases were made");
    agent.stop()
}

#[test]
fn under_a_target_nothing_stays_until_spot_checks_allow_it() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::mosquitto()?;
    let target = "threshold = { mode = \"target\", target = { risk = 0.1, confidence = 0.8 } }\n\
                  [telemetry]\ninterval_s = 1";
    let mut agent = sorter(&scene, DEVICE, target)?.start()?;
    agent.wait_until_online()?;
    let first = show(&scene, &agent, 0, 10)?;
    ensure!(asked(&first) == 10, "an answer stayed without any spot check");
    let because = &first[9].decision.because;
    ensure!(because.contains("too few spot checks") && because.contains("more"), "{because}");

    // The checks come back as verdicts, and what they allow grows.
    show(&scene, &agent, 10, 300)?;
    let status = agent.wait_for_status("spot checks are answered", WITHIN, |status| {
        judge(status).is_some_and(|judge| judge.checks >= 30 && judge.score_min.is_some())
    })?;
    let answers = show(&scene, &agent, 1000, 200)?;
    let kept = answers.len() - asked(&answers);
    ensure!(kept > 0, "nothing stays: {:?}", judge(&status));
    let said = answers.iter().find(|answer| answer.decision.outcome == Outcome::Keep).map(|answer| &answer.decision);
    ensure!(said.is_some_and(|said| said.mode == ThresholdMode::Target && said.agreement.is_some()), "{said:?}");

    // What was learned outlives the process.
    let before = agent.http.status()?;
    agent.stop()?;
    agent.start_again()?;
    let after = agent.wait_for_status("the model is there", WITHIN, |status| judge(status).is_some())?;
    let checks = |status: &Telemetry| judge(status).map(|judge| judge.checks);
    ensure!(checks(&after) >= checks(&before), "{:?} after {:?}", judge(&after), judge(&before));

    // A second device with the same model goes by the first one's checks once it knows who answers in the cloud.
    let mut second = sorter(&scene, "device-2", target)?.start()?;
    second.wait_until_online()?;
    show(&scene, &second, 2000, 10)?;
    let told = second.wait_for_status("the fleet's checks are known", WITHIN, |status| {
        judge(status).is_some_and(|judge| judge.fleet_checks > Some(judge.checks))
    })?;
    ensure!(judge(&told).is_some_and(|judge| judge.checks <= 10 && judge.score_min.is_some()), "{:?}", judge(&told));
    let answers = show(&scene, &second, 2010, 50)?;
    let kept = answers.iter().find(|answer| answer.decision.outcome == Outcome::Keep).map(|answer| &answer.decision);
    ensure!(kept.is_some_and(|kept| kept.because.contains("of all devices together")), "{kept:?}");
    second.stop()?;
    agent.stop()
}

#[test]
fn a_budget_or_target_that_says_nothing_is_refused_by_name() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let mut agent = sorter(&scene, DEVICE, "")?.start()?;
    agent.wait_until_online()?;
    let operator = Operator::at(scene.broker()?)?;
    for (version, threshold, part) in [
        (1, json!({"mode": "budget"}), "needs a budget"),
        (2, json!({"mode": "target", "target": {"risk": 0.0}}), "target.risk = 0"),
        (3, json!({"mode": "budget", "budget": {"cases_per_day": -1}}), "cases_per_day"),
    ] {
        operator.desire(DEVICE, version, json!({"model": {"fashion-small": {"threshold": threshold}}}))?;
        let report = operator.wait_for_report(DEVICE, "it is refused", WITHIN, |report| {
            report.last.as_ref().is_some_and(|last| last.version == Some(version))
        })?;
        let last = report.last.as_ref();
        let refused = last.is_some_and(|last| last.outcome == SettingsOutcome::Refused);
        let named = last.is_some_and(|last| format!("{:?}", last.errors).contains(part));
        ensure!(refused && named, "{last:?}");
    }
    agent.stop()
}

#[test]
fn sure_answers_to_the_frames_of_a_camera_that_a_caller_names_count_less_when_they_flicker() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let (dir, fashion) = (tempfile::tempdir()?, Fashion::load()?);
    let mut agent =
        AgentConfig::new(dir.path(), DEVICE).model_keeping("fashion-small", 0.7).http_source("pictures").start()?;
    let post = |index, camera| agent.http.post("pictures", camera, "image/png", &fashion.png(index)?);
    let sure = |index: &usize| Ok::<_, anyhow::Error>(post(*index, "")?.decision.score > Some(0.95));
    let of = |wanted: &str| {
        let mut known = (0..100).filter(|index| fashion.label(*index) == wanted);
        known.find(|index| sure(index).unwrap_or_default()).with_context(|| format!("no sure answer of {wanted}"))
    };
    let (boot, bag) = (of("Ankle boot")?, of("Bag")?);
    for _ in 0..101 {
        post(boot, "&camera=yard")?;
    }
    for _ in 0..5 {
        post(bag, "&camera=yard")?;
        post(boot, "&camera=yard")?;
    }
    let flickers = post(bag, "&camera=yard")?.decision;
    ensure!(flickers.reason == Some(Reason::Flicker), "{flickers:?}");
    for elsewhere in ["", "&camera=porch", "&camera=pictures"] {
        let stays = post(bag, elsewhere)?.decision;
        ensure!(stays.outcome == Outcome::Keep, "{elsewhere}: {stays:?}");
    }
    agent.stop()
}
