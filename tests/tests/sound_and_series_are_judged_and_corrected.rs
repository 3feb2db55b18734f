//! One device with a model for sound and one for series: both answer at once, the doubtful samples of both are corrected
//! by the cloud's bigger models, which judge the same window, and the scores are those that Python gives.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, Authority, CaseFate};
use hedge_tests::interface::Interface;
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, places, skip, wait};

/// Far more than one case takes on an idle link, and a program that is started again.
const SOON: Duration = Duration::from_secs(60);

/// How far a score may be from Python's.
const TOLERANCE: f32 = 0.01;

fn sample(bundle: &str, file: &str) -> PathBuf {
    places::model(bundle).join("golden").join(file)
}

/// What was said first, and how sure.
#[track_caller]
fn check(answer: &Answer, label: &str, score: f32) -> Result<()> {
    let said = answer.said.as_ref().context("an answer")?;
    let near = said.score().is_some_and(|found| (found - score).abs() <= TOLERANCE);
    ensure!(said.headline() == label && near, "not {label} {score}: {answer:?}");
    Ok(())
}

/// Two models, each with samples over HTTP and from a program of its own.
fn device(dir: &std::path::Path, broker: &str) -> Result<AgentConfig> {
    let (sound, rows) = (dir.join("sound"), dir.join("rows"));
    // The golden sample between silences: one window. Its samples follow a header of 44 bytes.
    let file = std::fs::read(sample("digits-small", "doubtful.wav"))?;
    let samples = &file[44..];
    let silence = vec![0; (16_000 - samples.len()) / 2];
    std::fs::write(&sound, [&silence, samples, &silence].concat())?;
    std::fs::copy(sample("speaker-small", "doubtful.csv"), &rows)?;
    // The microphone breaks off within a sample the first time, and comes in odd pieces the second.
    let (microphone, sensor) = (
        format!(
            "if [ -e {0}.broke ]; then head -c 5001 {0}; tail -c +5002 {0}; sleep 1000; else touch {0}.broke; \
             head -c 9001 {0}; fi",
            sound.display()
        ),
        format!("cat {}; sleep 1000", rows.display()),
    );
    let command = |name: &str, model: &str, script: &str, format: &str, window: &str| {
        let command = ["sh", "-c", script];
        format!(
            "[[source]]\nname = \"{name}\"\nkind = \"command\"\nmodel = \"{model}\"\ncommand = {command:?}\n\
             format = \"{format}\"\nwindow = {window}"
        )
    };
    let (digits, speaker) = ("digits-small", "speaker-small");
    let config = AgentConfig::new(dir, "device-1").broker(broker).model(digits).model(speaker);
    let config = config.http_source("calls").section("model = \"digits-small\"");
    let config = config.http_source("voices").section("model = \"speaker-small\"");
    let config = config.section(&command("microphone", digits, &microphone, "pcm", "{ rate = 8000, ms = 1000 }"));
    Ok(config.section(&command("sensor", speaker, &sensor, "rows", "{ rows = 20 }")).corrections_file())
}

#[test]
fn samples_by_http_and_from_programs() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scratch = tempfile::tempdir()?;
    let cloud = Cloud::start(scratch.path(), &CloudSetup::embedded(&["digits-large", "speaker-large"]))?;
    let mut agent = device(scratch.path(), cloud.broker())?.start()?;

    for (source, bundle, kind, file, label, score) in [
        ("calls", "digits-small", "audio/wav", "sure.wav", "eight", 0.9197),
        ("calls", "digits-small", "audio/x-wav", "long.wav", "five", 0.9332),
        ("voices", "speaker-small", "text/csv", "sure.csv", "speaker4", 0.9998),
        ("voices", "speaker-small", "application/octet-stream", "short.csv", "speaker9", 0.9960),
    ] {
        let answer = agent.http.post(source, "", kind, &std::fs::read(sample(bundle, file))?)?;
        check(&answer, label, score)?;
        ensure!(!answer.provisional && answer.case.is_none(), "kept: {answer:?}");
    }
    what_is_no_sample_is_refused(&agent)?;

    agent.wait_until_online()?;
    let sound = std::fs::read(sample("digits-small", "doubtful.wav"))?;
    let call = agent.http.post("calls", "", "audio/wav", &sound)?;
    check(&call, "nine", 0.3903)?;
    // The same rows as a program would post them.
    let csv = std::fs::read_to_string(sample("speaker-small", "doubtful.csv"))?;
    let rows: Vec<String> = csv.lines().skip(1).map(|row| format!("[{row}]")).collect();
    let json = format!("[{}]", rows.join(","));
    let voice = agent.http.post("voices", "", "application/json", json.as_bytes())?;
    check(&voice, "speaker7", 0.5245)?;
    for (local, label, score) in [(&call, "three", 0.9957), (&voice, "speaker9", 0.8263)] {
        ensure!(local.provisional && local.case == Some(CaseFate::Stored), "{local:?}");
        let correction = agent.wait_for_correction(&local.id, SOON)?;
        check(&correction, label, score)?;
        ensure!(correction.authority == Authority::Model && correction.changed, "{correction:?}");
    }

    let page = Interface::new(cloud.dashboard().trim_start_matches("http://").trim_end_matches('/').parse()?);
    let window = std::fs::read(scratch.path().join("sound"))?;
    for (source, label, score, kind, carried) in [
        ("microphone", "three", 0.9957, "audio/wav", window),
        ("sensor", "speaker9", 0.8263, "text/csv", csv.into_bytes()),
    ] {
        let correction = wait::until(&format!("the window of the {source} is corrected"), SOON, || {
            Ok(agent.corrections()?.into_iter().find(|answer| answer.source == source))
        });
        let correction = correction.with_context(|| agent.log_end())?;
        check(&correction, label, score)?;
        let case = cloud.get(&format!("/api/cases/{}", correction.id))?;
        ensure!(case["content_type"] == kind && case["payload_kept"] == true, "{case}");
        let payload = page.bytes(&format!("/api/cases/{}/payload", correction.id))?;
        ensure!(payload.ends_with(&carried) && payload.len() <= carried.len() + 44, "the window is what was carried");
        let archive = page.bytes("/api/export?format=jsonl")?;
        let ending = if kind == "audio/wav" { "wav" } else { "csv" };
        let name = format!("samples/{}.{ending}", correction.id);
        ensure!(archive.windows(name.len()).any(|part| part == name.as_bytes()), "no {name} in the training set");
    }
    agent.stop()
}

fn what_is_no_sample_is_refused(agent: &Agent) -> Result<()> {
    let sound = std::fs::read(sample("digits-small", "sure.wav"))?;
    for (source, kind, body, words) in [
        ("calls", "audio/wav", &sound[..4000], "bytes of samples, and 3956 are there"),
        ("calls", "text/csv", b"1,2", "this is CSV, but the model takes sound (audio/wav)"),
        ("calls", "audio/mpeg", b"ID3", "`audio/mpeg` is not read; send image/jpeg"),
        ("voices", "text/csv", b"c1,c2\n1,2\n", "there is no column `c3`"),
        ("voices", "audio/wav", &sound, "this is WAV, but the model takes rows of numbers"),
    ] {
        let (status, text) = agent.http.try_post(source, "", kind, body)?;
        ensure!(status == 422 && text.contains(words), "{status} {text}");
    }
    Ok(())
}
