//! An operator changes settings by publishing a document; the device goes by it at once, says so, and goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{Outcome, Reported, SettingsOutcome};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::operator::WORD_WAIT_MAX;
use hedge_tests::{Agent, Operator, Scene, Tally, skip};
use serde_json::{Value, json};

const DEVICE: &str = "device-1";

struct Rig {
    scene: Scene,
    operator: Operator,
    agent: Agent,
}

impl Rig {
    fn start() -> Result<Self> {
        let scene = Scene::stub(&MosquittoSetup::default())?;
        let operator = Operator::at(scene.broker()?)?;
        let mut agent = scene.doubter(DEVICE).broker(&format!("mqtt://{}", scene.broker()?)).start()?;
        agent.wait_until_online()?;
        Ok(Self { scene, operator, agent })
    }

    fn desire(&self, version: u64, settings: Value, outcome: SettingsOutcome) -> Result<Reported> {
        self.operator.desire(DEVICE, version, settings)?;
        self.wait_for(version, outcome)
    }

    fn wait_for(&self, version: u64, outcome: SettingsOutcome) -> Result<Reported> {
        let what = format!("version {version} is {outcome:?}");
        self.operator
            .wait_for_report(DEVICE, &what, WORD_WAIT_MAX, |report| {
                report.last.as_ref().is_some_and(|last| last.version == Some(version) && last.outcome == outcome)
            })
            .with_context(|| self.agent.log_end())
    }

    fn outcome_of_a_sample(&self, number: usize) -> Result<(Outcome, f32)> {
        let answer = self.scene.post(&self.agent, number, &mut Tally::default())?;
        Ok((answer.decision.outcome, answer.decision.threshold))
    }
}

fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

fn keep_all() -> Value {
    json!({"model": {"fashion-small": {"threshold": {"score_min": 0.0}}}})
}

#[test]
fn a_document_is_in_force_reported_and_outlives_a_restart() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    assert_eq!(rig.outcome_of_a_sample(0)?, (Outcome::Defer, 1.0));
    let report = rig.desire(1, keep_all(), SettingsOutcome::Applied)?;
    assert_eq!(report.version, 1);
    assert_eq!(rig.outcome_of_a_sample(1)?, (Outcome::Keep, 0.0));

    rig.agent.kill()?;
    rig.agent.start_again()?;
    rig.agent.wait_until_online()?;
    assert_eq!(rig.outcome_of_a_sample(2)?, (Outcome::Keep, 0.0));

    // Whole, not a patch: what the next one leaves out is as in the local file.
    let report = rig.desire(2, json!({"log": {"level": "debug"}}), SettingsOutcome::Applied)?;
    assert_eq!(report.settings.log.and_then(|log| log.level).as_deref(), Some("debug"));
    assert_eq!(rig.outcome_of_a_sample(3)?, (Outcome::Defer, 1.0));
    rig.agent.stop()
}

#[test]
fn a_wrong_or_old_document_changes_nothing_and_names_what_is_wrong() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    let good = rig.desire(5, keep_all(), SettingsOutcome::Applied)?;
    let wrong = json!({
        "model": {"fashion-small": {"threshold": {"score_min": 1.5, "classes": {"Dress": 0.9}}}},
        "link": {"profil": "metered"},
        "state_dir": "/tmp",
    });
    let report = rig.desire(6, wrong, SettingsOutcome::Refused)?;
    let fields: Vec<String> = report.last.context("said")?.errors.into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["state_dir", "link.profil", "model.fashion-small.threshold.score_min"]);
    let no_such_class = json!({"model": {"fashion-small": {"threshold": {"classes": {"Zebra": 0.9}}}}});
    let report = rig.desire(7, no_such_class, SettingsOutcome::Refused)?;
    assert_eq!(report.last.context("said")?.errors[0].field, "model.fashion-small.threshold.classes.Zebra");
    for (document, part) in [
        (r#"{"version": 4, "settings": {}}"#, "old"),
        (r#"{"version": 5, "settings": {}}"#, "another document"),
        ("{", "EOF"),
        ("", ""),
    ] {
        rig.operator.desire_document(DEVICE, document)?;
        if part.is_empty() {
            continue; // a retained document that is taken back says nothing
        }
        rig.operator.wait_for_report(DEVICE, document, WORD_WAIT_MAX, |report| {
            let last = report.last.as_ref();
            last.and_then(|last| last.reason.as_deref()).is_some_and(|reason| reason.contains(part))
        })?;
    }
    let report = rig.operator.reported(DEVICE)?.context("reported")?;
    assert_eq!((report.version, report.hash), (5, good.hash));
    assert_eq!(rig.outcome_of_a_sample(1)?, (Outcome::Keep, 0.0));
    rig.agent.stop()
}

#[test]
fn a_document_sent_while_the_device_was_away_is_in_force_when_it_connects() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let mut rig = Rig::start()?;
    rig.agent.kill()?;
    rig.operator.desire(DEVICE, 3, keep_all())?;
    rig.agent.start_again()?;
    rig.wait_for(3, SettingsOutcome::Applied)?;
    assert_eq!(rig.outcome_of_a_sample(0)?, (Outcome::Keep, 0.0));
    rig.agent.stop()
}

/// No sample is lost to a change or answered by half of one: thresholds come in pairs that belong together.
#[test]
fn two_hundred_changes_under_load_are_quick_and_whole() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    const CHANGES: u64 = 200;
    let mut rig = Rig::start()?;
    let stop = std::sync::atomic::AtomicBool::new(false);
    let load = |from: usize| -> Result<usize> {
        let mut posted = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let (outcome, threshold) = rig.outcome_of_a_sample(from + posted % 1000)?;
            let whole = match outcome {
                Outcome::Keep => threshold == 0.0,
                Outcome::Defer => threshold == 1.0,
            };
            ensure!(whole, "{outcome:?} by {threshold}");
            posted += 1;
        }
        Ok(posted)
    };
    let (mut waits, posted) = std::thread::scope(|scope| -> Result<_> {
        let loads: Vec<_> = [0, 2000].map(|from| scope.spawn(move || load(from))).into();
        let mut waits = Vec::new();
        let changed = (1..=CHANGES).try_for_each(|version| {
            let score = if version % 2 == 0 { 0.0 } else { 1.0 };
            let settings = json!({"model": {"fashion-small": {"threshold": {"score_min": score}}}});
            let begun = Instant::now();
            rig.desire(version, settings, SettingsOutcome::Applied)?;
            waits.push(begun.elapsed());
            Ok(())
        });
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
        let posted = loads.into_iter().map(|load| load.join().expect("no panic")).sum::<Result<usize>>()?;
        changed.map(|()| (waits, posted))
    })?;
    waits.sort_unstable();
    let median = waits[waits.len() / 2];
    eprintln!(
        "{CHANGES} changes, {posted} samples answered meanwhile; in force and reported after {median:?} (median)"
    );
    ensure!(median <= Duration::from_millis(200), "a change takes {median:?} to be in force");
    rig.agent.stop()
}
