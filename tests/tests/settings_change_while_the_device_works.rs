//! An operator changes settings by publishing a document; the device goes by it at once, says so, and goes on.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use hedge_proto::{DeviceId, Outcome, Reported, SettingsOutcome, Topic};
use hedge_tests::operated::DEVICE;
use hedge_tests::operator::WORD_WAIT_MAX;
use hedge_tests::{Operated, Tally};
use serde_json::{Value, json};

/// Publishes the settings and waits for the device's word on them.
fn desire(rig: &Operated, version: u64, settings: Value, outcome: SettingsOutcome) -> Result<Reported> {
    rig.operator.desire(DEVICE, version, settings)?;
    rig.wait_for(version, outcome, WORD_WAIT_MAX)
}

fn outcome_of_a_sample(rig: &Operated, number: usize) -> Result<(Outcome, f32)> {
    let answer = rig.scene.post(&rig.agent, number, &mut Tally::default())?;
    Ok((answer.decision.outcome, answer.decision.threshold))
}

fn keep_all() -> Value {
    json!({"model": {"fashion-small": {"threshold": {"score_min": 0.0}}}})
}

#[test]
fn a_document_is_in_force_reported_and_outlives_a_restart() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    assert_eq!(outcome_of_a_sample(&rig, 0)?, (Outcome::Defer, 1.0));
    let report = desire(&rig, 1, keep_all(), SettingsOutcome::Applied)?;
    assert_eq!(report.version, 1);
    assert_eq!(outcome_of_a_sample(&rig, 1)?, (Outcome::Keep, 0.0));

    rig.agent.kill()?;
    rig.agent.start_again()?;
    rig.agent.wait_until_online()?;
    assert_eq!(outcome_of_a_sample(&rig, 2)?, (Outcome::Keep, 0.0));

    // Whole, not a patch: what the next one leaves out is as in the local file.
    let report = desire(&rig, 2, json!({"log": {"level": "debug"}}), SettingsOutcome::Applied)?;
    assert_eq!(report.settings.log.and_then(|log| log.level).as_deref(), Some("debug"));
    assert_eq!(outcome_of_a_sample(&rig, 3)?, (Outcome::Defer, 1.0));
    rig.agent.stop()
}

#[test]
fn a_wrong_or_old_document_changes_nothing_and_names_what_is_wrong() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    let good = desire(&rig, 5, keep_all(), SettingsOutcome::Applied)?;
    let wrong = json!({
        "model": {"fashion-small": {"threshold": {"score_min": 1.5, "classes": {"Dress": 0.9}}}},
        "link": {"profil": "metered"},
        "state_dir": "/tmp",
    });
    let report = desire(&rig, 6, wrong, SettingsOutcome::Refused)?;
    let fields: Vec<String> = report.last.context("said")?.errors.into_iter().map(|error| error.field).collect();
    assert_eq!(fields, ["state_dir", "link.profil", "model.fashion-small.threshold.score_min"]);
    let no_such_class = json!({"model": {"fashion-small": {"threshold": {"classes": {"Zebra": 0.9}}}}});
    let report = desire(&rig, 7, no_such_class, SettingsOutcome::Refused)?;
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
    assert_eq!(outcome_of_a_sample(&rig, 1)?, (Outcome::Keep, 0.0));
    rig.agent.stop()
}

/// Every field that the committed schema names, as nested objects around something that is wrong there.
fn wrong_documents() -> Vec<(String, Value)> {
    fn walk(schema: &Value, whole: &Value, path: &[&str], found: &mut Vec<(String, Value)>) {
        let name = schema["$ref"].as_str().and_then(|name| name.strip_prefix("#/$defs/"));
        let schema = name.map_or(schema, |name| &whole["$defs"][name]);
        if !path.is_empty() {
            let wrap = |inner, name: &&str| json!({*name: inner});
            found.push((path.join("."), path.iter().rev().fold(json!({"surprise": {}}), wrap)));
        }
        for choice in schema["anyOf"].as_array().into_iter().flatten() {
            walk(choice, whole, path, found);
        }
        let own = if path == ["model"] { "fashion-small" } else { "pictures" };
        let known = schema["properties"].as_object().into_iter().flatten().map(|(name, inner)| (name.as_str(), inner));
        let named = schema["patternProperties"].as_object().into_iter().flatten().map(|(_, inner)| (own, inner));
        for (name, inner) in known.chain(named) {
            walk(inner, whole, &[path, &[name]].concat(), found);
        }
    }
    let whole = serde_json::from_str(hedge_proto::SETTINGS_SCHEMA).expect("JSON");
    let mut found = Vec::new();
    walk(&whole, &whole, &[], &mut found);
    found.dedup_by(|one, other| one.0 == other.0);
    found
}

#[test]
fn no_message_changes_a_setting_unless_it_is_valid() -> Result<()> {
    const GARBAGE: u64 = 300;
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    let before = desire(&rig, 1, keep_all(), SettingsOutcome::Applied)?;
    let mut version = 1;
    for (name, settings) in wrong_documents() {
        version += 1;
        let report = desire(&rig, version, settings, SettingsOutcome::Refused)?;
        let errors = report.last.context("said")?.errors;
        ensure!(errors.iter().any(|error| error.field.starts_with(&name)), "{name} is not named in {errors:?}");
        ensure!(report.hash == before.hash, "{name} changed the settings");
    }
    ensure!(version > 60, "the schema names only {version} fields");

    // Bent messages and garbage, the same ones every time, on everything the device reads.
    let device = DeviceId::new(DEVICE)?;
    let mut state = 0x6865_6467_u64;
    let mut random = move |below: usize| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        usize::try_from(state >> 33).expect("31 bits") % below
    };
    for round in 0..GARBAGE {
        let right = json!({"version": version, "settings": {"model": {"fashion-small": {"threshold": {"score_min": 1}}}},
            "id": format!("{round}"), "command": "pause", "args": {"source": "pictures"}});
        let mut bytes = right.to_string().into_bytes();
        for _ in 0..=random(4) {
            let (at, to) = (random(bytes.len()), random(bytes.len()));
            bytes[at] = u8::try_from(random(256))?;
            bytes.swap(at, to);
        }
        bytes.truncate(1 + random(2 * bytes.len()).min(bytes.len() - 1));
        for topic in [Topic::DownDesired, Topic::DownCommand, Topic::DownVerdict] {
            rig.operator.publish(&topic(device.clone()), bytes.clone(), false)?;
        }
    }
    let report = desire(&rig, version + 1, keep_all(), SettingsOutcome::Applied)?;
    ensure!(report.hash == before.hash && report.paused.is_empty(), "{report:?}");
    let status = rig.agent.http.status()?;
    ensure!(status.connections == 1, "the device had to connect again: {status:?}");
    assert_eq!(outcome_of_a_sample(&rig, 1)?, (Outcome::Keep, 0.0));
    rig.agent.stop()
}

#[test]
fn a_document_sent_while_the_device_was_away_is_in_force_when_it_connects() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    rig.agent.kill()?;
    rig.operator.desire(DEVICE, 3, keep_all())?;
    rig.agent.start_again()?;
    rig.wait_for(3, SettingsOutcome::Applied, WORD_WAIT_MAX)?;
    assert_eq!(outcome_of_a_sample(&rig, 0)?, (Outcome::Keep, 0.0));
    rig.agent.stop()
}

#[test]
fn a_connect_brings_one_report_and_a_repeated_document_another() -> Result<()> {
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    desire(&rig, 1, keep_all(), SettingsOutcome::Applied)?;
    let mut reports = rig.operator.reports(DEVICE)?;
    for version in 2..5 {
        rig.agent.kill()?;
        rig.agent.start_again()?;
        rig.agent.wait_until_online()?;
        // One word at the connect; where the model was loaded only after it, another on what its bundle suggests.
        rig.operator.wait_for_report(DEVICE, "a word at the connect", WORD_WAIT_MAX, |report| {
            !report.suggested.is_empty() && rig.operator.reports(DEVICE).is_ok_and(|now| now > reports)
        })?;
        let connected = rig.operator.reports(DEVICE)?;
        ensure!(connected <= reports + 2, "{} reports for a connect", connected - reports);
        // The retained document comes with the connection and changes nothing; then comes a new one.
        desire(&rig, version, keep_all(), SettingsOutcome::Applied)?;
        let now = rig.operator.reports(DEVICE)?;
        ensure!(now == connected + 1, "{} reports for a change", now - connected);
        reports = now;
    }
    // Whoever publishes it once more waits for a word, too.
    rig.operator.desire(DEVICE, 4, keep_all())?;
    let heard = "a word on the repeated document";
    rig.operator.wait_for_report(DEVICE, heard, WORD_WAIT_MAX, |_| {
        rig.operator.reports(DEVICE).is_ok_and(|now| now == reports + 1)
    })?;
    rig.agent.stop()
}

/// No sample is lost to a change or answered by half of one: thresholds come in pairs that belong together.
#[test]
fn two_hundred_changes_under_load_are_quick_and_whole() -> Result<()> {
    const CHANGES: u64 = 200;
    let Some(mut rig) = Operated::start()? else { return Ok(()) };
    let stop = std::sync::atomic::AtomicBool::new(false);
    let load = |from: usize| -> Result<usize> {
        let mut posted = 0;
        while !stop.load(std::sync::atomic::Ordering::Relaxed) {
            let (outcome, threshold) = outcome_of_a_sample(&rig, from + posted % 1000)?;
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
            desire(&rig, version, settings, SettingsOutcome::Applied)?;
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
