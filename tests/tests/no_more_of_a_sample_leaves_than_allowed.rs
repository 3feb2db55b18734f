//! What leaves a device is looked at byte by byte: no more of a sample than its `[privacy]` ceiling allows, whichever way
//! out it takes, and whatever was stored before the ceiling was lowered.

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, Authority, CaseFate, Digest, LinkState, PayloadForm, SettingsOutcome};
use hedge_tests::fashion::noise_png;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::webhook::Webhook;
use hedge_tests::wire::Eavesdropper;
use hedge_tests::{
    Agent, AgentConfig, Cloud, CloudSetup, FaultProxy, Listener, Mosquitto, Operator, Scene, Tally, mosquitto_client,
    places, skip, wait,
};
use rustix::process::Signal;
use serde_json::{Value, json};

/// A word of a program that is there, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Longer than the longest ordinary wait between two dials.
const CORRECTED_WITHIN: Duration = Duration::from_secs(90);

/// 100 pixels square.
const PICTURE_BYTES: usize = 10_000;

/// So many bytes of a picture in a row are no chance.
const TRACE_BYTES: usize = 8;

fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

/// The operator's way to the broker.
fn inside(scene: &Scene) -> Result<SocketAddr> {
    Ok(scene.mosquitto.as_ref().context("mosquitto")?.inside())
}

/// What every picture begins with, and what the encoder of thumbnails writes.
fn signs() -> Vec<(&'static str, Vec<u8>)> {
    vec![("a PNG", b"\x89PNG".to_vec()), ("a PNG's head", b"IHDR".to_vec()), ("a JPEG's head", b"JFIF".to_vec())]
}

/// A part of the picture's bytes, or its sum, which tells whoever has the same picture.
fn traces(picture: &[u8]) -> Vec<(&'static str, Vec<u8>)> {
    let sum = Digest::of(picture);
    let parts = picture[64..].chunks_exact(TRACE_BYTES).map(|part| ("a part of the picture", part.to_vec()));
    parts
        .chain([("the picture's sum", sum.0.to_vec()), ("the picture's sum in hex", sum.to_string().into_bytes())])
        .collect()
}

#[track_caller]
fn check_without(what: &str, bytes: &[u8], traces: &[(&'static str, Vec<u8>)]) -> Result<()> {
    ensure!(!bytes.is_empty(), "{what}: nothing was overheard");
    for (name, trace) in traces {
        let found = bytes.windows(trace.len()).any(|window| window == &trace[..]);
        ensure!(!found, "{what} carried {name}");
    }
    Ok(())
}

/// A camera that shows the same picture twice a second.
fn camera(dir: &Path, picture: &[u8]) -> Result<[String; 3]> {
    let frame = dir.join("frame");
    std::fs::write(&frame, [&u32::try_from(picture.len())?.to_be_bytes()[..], picture].concat())?;
    Ok(["sh".to_owned(), "-c".to_owned(), format!("while cat {}; do sleep 0.5; done", frame.display())])
}

#[test]
fn under_a_ceiling_of_nothing_no_byte_of_a_sample_leaves_by_any_way() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let second_dir = tempfile::tempdir()?;
    let second = Mosquitto::start_with(second_dir.path(), &MosquittoSetup::default())?;
    let webhook = Webhook::start()?;
    let hook: SocketAddr = webhook.url().trim_start_matches("http://").trim_end_matches("/corrections").parse()?;
    let taps = [scene.broker()?, second.address(), hook].map(FaultProxy::start);
    let [link, to_second, to_hook] = taps;
    let (link, to_second, to_hook) = (link?, to_second?, to_hook?);
    [&link, &to_second, &to_hook].into_iter().for_each(FaultProxy::record);

    let picture = noise_png(PICTURE_BYTES, 1)?;
    let sinks = format!(
        "[privacy]\nceiling = \"nothing\"\n[payloads]\nurl = \"http://{}\"\n[telemetry]\ninterval_s = 1\n\
         [verdicts.webhook]\nurl = \"http://{}/corrections\"\nwanted = \"all\"\n\
         [verdicts.mqtt]\nwanted = \"all\"\nbroker = {{ url = \"mqtt://{}\" }}",
        to_hook.address(),
        to_hook.address(),
        to_second.address()
    );
    let config = scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).section(&sinks);
    let mut agent = config.command_source("porch", &camera(scene.dir(), &picture)?).start()?;
    agent.wait_until_online()?;
    let status = agent.http.status()?.privacy.context("privacy")?;
    ensure!((&*status.ceiling, &*status.payload) == ("nothing", "nothing"), "{status:?}");

    let (local, case) = closed_without_a_model(&scene, &mut agent, &picture)?;
    wait::until_true("the webhook has it", SOON, || Ok(webhook.has(&format!("{}/1", local.id))))?;
    loosening_from_afar_is_refused(&scene)?;
    every_command_is_answered(&scene)?;
    ensure!(agent.http.status()?.queue.dead == 0, "nothing is a dead letter for it");

    let traces = [traces(&picture), signs()].concat();
    for (what, tap) in [("the link", &link), ("the second broker's link", &to_second), ("the webhook's way", &to_hook)]
    {
        check_without(what, &tap.recorded(), &traces)?;
    }
    check_without("the log", &std::fs::read(agent.dir().join("hedge-agent.log"))?, &traces)?;
    check_without("the record", case.to_string().as_bytes(), &traces)?;
    agent.stop()
}

/// The cloud notes the case, has no picture to show, and lets the device's answer stand.
fn closed_without_a_model(scene: &Scene, agent: &mut Agent, picture: &[u8]) -> Result<(Answer, Value)> {
    let local = agent.http.post("pictures", "&ref=sample-1", "image/png", picture)?;
    ensure!(local.case == Some(CaseFate::Stored) && local.provisional, "{local:?}");
    let answer = agent.wait_for_correction(&local.id, CORRECTED_WITHIN)?;
    ensure!((answer.revision, answer.authority) == (1, Authority::Device), "{answer:?}");
    ensure!(!answer.changed && !answer.provisional && answer.said == local.said, "{answer:?}");
    ensure!(answer.decision.because.contains("lets the device's answer stand"), "{answer:?}");
    let case = scene.cloud.get(&format!("/api/cases/{}", local.id))?;
    ensure!(case["state"] == "answered" && case["form"] == "nothing" && case["agrees"] == Value::Null, "{case}");
    ensure!(case["picture"] == false && case["payload_kept"] == false && case["payload_bytes"] == 0, "{case}");
    ensure!(case["ref"] == "sample-1" && case["local"].as_array().is_some_and(|scores| !scores.is_empty()), "{case}");
    Ok((local, case))
}

fn loosening_from_afar_is_refused(scene: &Scene) -> Result<()> {
    let operator = Operator::at(inside(scene)?)?;
    let settings =
        json!({"link": {"states": {"online": {"payload": {"thumbnail": 16}}}}, "privacy": {"ceiling": "whole"}});
    for (version, settings, field, part) in [
        (1, settings.clone(), "privacy", "set on the device only"),
        (2, json!({"link": settings["link"]}), "link.states.online.payload", "ceiling is `nothing`"),
    ] {
        operator.desire("device-1", version, settings)?;
        let report = operator.wait_for_report("device-1", "refused", SOON, |report| {
            report.last.as_ref().is_some_and(|last| last.version == Some(version))
        })?;
        let last = report.last.context("an outcome")?;
        let named = last.errors.iter().any(|error| error.field == field && error.reason.contains(part));
        ensure!(last.outcome == SettingsOutcome::Refused && named, "{last:?}");
    }
    Ok(())
}

fn every_command_is_answered(scene: &Scene) -> Result<()> {
    let listener = Listener::start(inside(scene)?, scene.dir())?;
    for (id, command, args) in [
        ("1", "snapshot", json!({"source": "porch"})),
        ("2", "explain", json!({"last": 20})),
        ("3", "status", json!({})),
        ("4", "dead_letters", json!({})),
        ("5", "queue_stats", json!({})),
    ] {
        let text = json!({"id": id, "command": command, "args": args}).to_string();
        mosquitto_client::publish(inside(scene)?, "hedge/v1/device-1/down/command", &["-m", &text])?;
        listener.wait_for_reply(id)?;
    }
    Ok(())
}

#[test]
fn a_case_stored_before_the_ceiling_was_lowered_leaves_under_the_lower_one() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    link.record();
    link.cut();
    let heard = Eavesdropper::start(inside(&scene)?, scene.dir())?;
    let config = |privacy: &str| -> AgentConfig {
        scene.doubter("device-1").broker(&format!("mqtt://{}", link.address())).section(privacy)
    };
    let (first, second) = (noise_png(PICTURE_BYTES, 1)?, noise_png(PICTURE_BYTES, 2)?);

    // Stored whole, sent as a thumbnail of a size that is allowed now.
    let mut agent = config("").start()?;
    let whole = agent.http.post("pictures", "", "image/png", &first)?;
    ensure!(whole.case == Some(CaseFate::Stored), "{whole:?}");
    agent.stop()?;
    let lower = config("[privacy]\nceiling = { thumbnail = 40 }");
    let mut agent = lower.start()?;
    link.pass();
    agent.wait_for_correction(&whole.id, CORRECTED_WITHIN)?;
    let case = heard.cases()?.into_iter().find(|case| case.id == whole.id).context("the case")?;
    let (form, kind) = (case.form, &*case.content_type);
    ensure!((form, kind) == (PayloadForm::Thumbnail, "image/jpeg"), "{form:?}, {kind}");
    ensure!(case.payload.is_some_and(|jpeg| jpeg.starts_with(&[0xFF, 0xD8]) && jpeg.len() < PICTURE_BYTES / 2));

    // Stored as that thumbnail, and the file is read again by a running agent: nothing of it is sent.
    link.cut();
    agent.wait_for_status("the cut is seen", SOON, |status| {
        matches!(status.link, LinkState::Offline | LinkState::Connecting)
    })?;
    let thumbnail = agent.http.post("pictures", "", "image/png", &second)?;
    ensure!(thumbnail.case == Some(CaseFate::Stored), "{thumbnail:?}");
    let text = std::fs::read_to_string(lower.file())?;
    std::fs::write(lower.file(), text.replace("{ thumbnail = 40 }", "\"nothing\""))?;
    agent.program().signal(Signal::HUP)?;
    agent.wait_for_status("the lower ceiling is in force", SOON, |status| {
        status.privacy.as_ref().is_some_and(|privacy| privacy.ceiling == "nothing" && privacy.payload == "nothing")
    })?;
    let before = link.recorded().len();
    link.pass();
    let answer = agent.wait_for_correction(&thumbnail.id, CORRECTED_WITHIN)?;
    ensure!(answer.authority == Authority::Device, "{answer:?}");
    let bytes = link.recorded();
    ensure!(check_without("the link", &bytes[..before], &signs()).is_err(), "a thumbnail would be seen");
    check_without("the link", &bytes, &[traces(&first), traces(&second)].concat())?;
    check_without("the link under the lower ceiling", &bytes[before..], &signs())?;
    agent.stop()
}

/// Made by models/recipes/halves.py.
const HALVES: [(&str, &[u8]); 2] =
    [("device_half", include_bytes!("device_half.onnx")), ("cloud_half", include_bytes!("cloud_half.onnx"))];

/// Bundles of the two, as their owner makes them.
fn halves(dir: &Path) -> Result<[PathBuf; 2]> {
    let made = HALVES.map(|(name, model)| {
        let file = |ending: &str| dir.join(format!("{name}{ending}"));
        std::fs::write(file(".onnx"), model)?;
        std::fs::write(file(".txt"), "red\ngreen\nblue\n")?;
        let mut init = Command::new(places::program("hedge-agent")?);
        init.args(["bundle", "init", "--task", "colours", "--out"]).arg(dir.join(name)).arg(file(".onnx"));
        init.arg("--labels").arg(file(".txt")).env("ORT_DYLIB_PATH", places::onnxruntime().context("a library")?);
        if name == "device_half" {
            init.args(["--embedding", "means"]);
        }
        let output = init.output()?;
        ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        Ok(dir.join(name))
    });
    let [device, cloud] = made;
    Ok([device?, cloud?])
}

#[test]
fn an_embedding_leaves_instead_of_the_picture_and_a_model_that_takes_it_answers() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let [device, cloud] = halves(dir.path())?;
    let mosquitto = Mosquitto::start_with(dir.path(), &MosquittoSetup::default())?;
    let (broker, link) = (format!("mqtt://{}", mosquitto.inside()), FaultProxy::start(mosquitto.inside())?);
    link.record();
    let heard = Eavesdropper::start(mosquitto.inside(), dir.path())?;
    // The first one takes pictures, and has nothing to say of the embedding.
    let file = dir.path().join("cloud.toml");
    std::fs::write(&file, format!("[[answerer]]\nname = \"half\"\nkind = \"onnx\"\nbundle = {cloud:?}\n"))?;
    let more = ["--model".into(), device.display().to_string(), "--config".into(), file.display().to_string()];
    let mut cloud = Cloud::start(dir.path(), &CloudSetup { more: more.into(), ..CloudSetup::at(&broker, &[]) })?;

    let model = |name: &str, bundle: &Path| {
        format!("[[model]]\nname = \"{name}\"\nbundle = {bundle:?}\nthreshold = {{ score_min = 1.0 }}")
    };
    let mut agent = AgentConfig::new(dir.path(), "device-1")
        .broker(&format!("mqtt://{}", link.address()))
        .section(&model("half", &device))
        .section(&model("fashion", &places::model("fashion-small")))
        .section("[[source]]\nname = \"pictures\"\nkind = \"http\"\nmodel = \"half\"")
        .section("[[source]]\nname = \"clothes\"\nkind = \"http\"\nmodel = \"fashion\"")
        .section("[privacy]\nceiling = \"embedding\"")
        .corrections_file()
        .start()?;
    agent.wait_until_online()?;
    let picture = std::fs::read(places::model("pictures").join("camera.png"))?;
    let [local, other] = ["pictures", "clothes"].map(|source| agent.http.post(source, "", "image/png", &picture));
    let (local, other) = (local?, other?);
    let answer = agent.wait_for_correction(&local.id, CORRECTED_WITHIN)?;
    ensure!(answer.authority == Authority::Model && !answer.changed, "{answer:?} after {local:?}");
    let record = cloud.get(&format!("/api/cases/{}", local.id))?;
    ensure!(record.to_string().contains("cloud_half") && record["picture"] == false, "{record}");
    let case = heard.cases()?.into_iter().find(|case| case.id == local.id).context("the case")?;
    let kind = "application/vnd.hedge.tensor; dtype=f32; shape=1,3";
    ensure!(
        (case.form, &*case.content_type) == (PayloadForm::Embedding, kind),
        "{:?}, {}",
        case.form,
        case.content_type
    );

    // Of what a model without one has judged nothing leaves, and that is said.
    let answer = agent.wait_for_correction(&other.id, CORRECTED_WITHIN)?;
    ensure!(answer.authority == Authority::Device, "{answer:?}");
    agent.wait_for_status("the fault", SOON, |status| {
        status.faults.get("model.fashion").is_some_and(|fault| fault.contains("makes none"))
    })?;
    check_without("the link", &link.recorded(), &[traces(&picture), signs()].concat())?;
    agent.stop()?;
    cloud.stop(SOON)
}

#[test]
fn a_class_that_never_leaves_stays_whatever_is_asked_and_whatever_was_stored_before() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let scene = Scene::stub(&MosquittoSetup::default())?;
    let link = FaultProxy::start(scene.broker()?)?;
    link.cut();
    let heard = Eavesdropper::start(inside(&scene)?, scene.dir())?;
    let config = |policies: &str| -> AgentConfig {
        let threshold = format!("threshold = {{ score_min = 1.0, policies = {{ {policies} }} }}");
        let config = AgentConfig::new(scene.dir(), "device-1").model("fashion-small").section(&threshold);
        config.http_source("pictures").corrections_file().broker(&format!("mqtt://{}", link.address()))
    };
    let mut tally = Tally::default();
    let label = |answer: &Answer| answer.said.as_ref().and_then(|said| said.labels().next().map(str::to_owned));

    let mut agent = config("").start()?;
    let stored = (0..12).map(|index| scene.post(&agent, index, &mut tally)).collect::<Result<Vec<_>>>()?;
    let stored: Vec<Answer> = stored.into_iter().filter(|answer| answer.case == Some(CaseFate::Stored)).collect();
    let kept_back = stored.first().and_then(label).context("an answer with a label")?;
    ensure!(stored.iter().any(|answer| label(answer).as_ref() != Some(&kept_back)), "all are {kept_back}");
    agent.stop()?;

    let mut agent = config(&format!("\"{kept_back}\" = \"never_leave\"")).start()?;
    link.pass();
    for answer in &stored {
        agent.wait_for_correction(&answer.id, CORRECTED_WITHIN)?;
    }
    for case in heard.cases()? {
        let stays = case.said.as_ref().is_some_and(|said| said.labels().any(|label| label == kept_back));
        let form = if stays { PayloadForm::Nothing } else { PayloadForm::Whole };
        ensure!(case.form == form, "{} left as {:?}", case.id, case.form);
    }
    let again: Vec<Answer> = (0..12).map(|index| scene.post(&agent, index, &mut tally)).collect::<Result<_>>()?;
    let mut seen = 0;
    for answer in again.iter().filter(|answer| label(answer).as_ref() == Some(&kept_back)) {
        let because = &answer.decision.because;
        ensure!(answer.case.is_none() && because.contains("never leaves this device"), "{answer:?}");
        seen += 1;
    }
    ensure!(seen > 0, "no {kept_back} was seen again");

    // It is taken back by the device's own file alone.
    let operator = Operator::at(inside(&scene)?)?;
    let freed = json!({kept_back.as_str(): "always_ask"});
    operator.desire("device-1", 1, json!({"model": {"fashion-small": {"threshold": {"policies": freed}}}}))?;
    let report = operator.wait_for_report("device-1", "refused", SOON, |report| report.last.is_some())?;
    let last = report.last.context("an outcome")?;
    ensure!(
        last.outcome == SettingsOutcome::Refused && format!("{:?}", last.errors).contains("never_leave"),
        "{last:?}"
    );
    agent.stop()
}
