//! The main job: a local answer at once, and the cloud's under the same id wherever one looks for it.

use std::time::Duration;

use anyhow::{Result, bail};
use hedge_proto::{Authority, CaseFate, Outcome, Output};
use hedge_tests::{AgentConfig, Cloud, CloudSetup, Scene, Tally, places, skip, tally, wait};
use serde_json::json;

/// Far more than one case takes on an idle link.
const CORRECTION_WAIT_MAX: Duration = Duration::from_secs(60);

#[test]
fn with_mosquitto() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    it_is_corrected(&Scene::mosquitto()?)
}

#[test]
fn with_the_embedded_broker() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    it_is_corrected(&Scene::embedded()?)
}

fn it_is_corrected(scene: &Scene) -> Result<()> {
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    agent.wait_until_online()?;

    // At once, and over the file later.
    let mut tally = Tally::default();
    let local = scene.post_a_stored_one(&agent, 0, &mut tally)?;
    assert_eq!(local.id.device.as_str(), "device-1");
    assert_eq!((local.revision, local.authority), (0, Authority::Device));
    assert!(local.provisional, "a correction may follow");
    assert_eq!(local.case, Some(CaseFate::Stored));
    let line = agent.wait_for_correction(&local.id, CORRECTION_WAIT_MAX)?;
    assert_eq!((line.revision, line.authority, line.provisional), (1, Authority::Model, false));
    assert_eq!(line.model.name, "fashion-large");
    assert_eq!(line.changed, tally::label(&line) != tally::label(&local));

    // The same over GET, which does not wait for the file, nor the file for it.
    let corrected = || Ok(Some(agent.http.answer(&local.id)?).filter(|answer| answer.revision > 0));
    let got = wait::until("a GET shows it", CORRECTION_WAIT_MAX, corrected)?;
    assert_eq!((got.id, got.revision, got.said), (local.id.clone(), 1, line.said));

    // And to a caller that waits, under its own name for the sample.
    let mut waited = None;
    for index in 100..150 {
        let query = format!("&wait_ms=50000&ref=picture-{index}");
        let answer = agent.http.post("pictures", &query, "image/png", &scene.fashion.png(index)?)?;
        if answer.decision.outcome == Outcome::Defer {
            waited = Some((index, answer));
            break;
        }
    }
    let (index, answer) = waited.expect("one of 50 pictures is deferred");
    assert_eq!((answer.revision, answer.authority), (1, Authority::Model));
    assert_eq!(answer.reference, Some(format!("picture-{index}")));

    // The same `ref` is the same sample.
    let query = format!("&ref=picture-{index}");
    let again = agent.http.post("pictures", &query, "image/png", &scene.fashion.png(index)?)?;
    assert_eq!(again.id, answer.id);

    // The cloud's records know it too.
    let record = scene.cloud.get(&format!("/api/cases/{}", answer.id))?;
    assert!(record.to_string().contains("fashion-large"), "{record}");
    agent.stop()
}

#[test]
fn the_cloud_judges_the_part_of_the_picture_that_the_device_judged() -> Result<()> {
    part_and_whole_are_judged_alike("whole", ["whole", "whole"])
}

#[test]
fn the_part_of_the_picture_that_the_device_judged_is_all_that_the_cloud_needs() -> Result<()> {
    part_and_whole_are_judged_alike("crop", ["crop", "whole"])
}

/// `forms` are those of the two cases.
fn part_and_whole_are_judged_alike(ceiling: &str, forms: [&str; 2]) -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    // One model on both sides, so that they say the same if they see the same.
    let dir = tempfile::tempdir()?;
    let mut cloud = Cloud::start(dir.path(), &CloudSetup::embedded(&["objects-small"]))?;
    let mut agent = AgentConfig::new(dir.path(), "device-1")
        .broker(cloud.broker())
        .model_keeping("objects-small", 1.0)
        .http_source("part")
        .section("region = { left = 0.0, top = 0.1, width = 0.7, height = 0.9 }")
        .http_source("whole")
        .section(&format!("[privacy]\nceiling = \"{ceiling}\""))
        .corrections_file()
        .start()?;
    agent.wait_until_online()?;
    let photo = std::fs::read(places::model("pictures").join("camera.png"))?;
    let [part, whole] = ["part", "whole"].map(|source| agent.http.post(source, "", "image/png", &photo));
    let (part, whole) = (part?, whole?);
    assert_ne!(part.said, whole.said, "the part looks like the whole: the test shows nothing");
    for (local, form) in [part, whole].into_iter().zip(forms) {
        let corrected = agent.wait_for_correction(&local.id, CORRECTION_WAIT_MAX)?;
        assert!(!corrected.changed, "{}: {corrected:?}", local.source);
        // As a JPEG the part is not quite the same.
        assert!(form == "crop" || corrected.said == local.said, "{}: {corrected:?}", local.source);
        let case = cloud.get(&format!("/api/cases/{}", local.id))?;
        assert_eq!((&case["form"], &case["picture"]), (&json!(form), &json!(true)), "{case}");
    }
    agent.stop()?;
    cloud.stop(CORRECTION_WAIT_MAX)
}

#[test]
fn what_one_model_finds_another_looks_at_and_the_cloud_sees_the_same() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    // The second model is on both sides, so that they say the same if they see the same.
    let dir = tempfile::tempdir()?;
    let mut cloud = Cloud::start(dir.path(), &CloudSetup::embedded(&["photo-small"]))?;
    let mut agent = AgentConfig::new(dir.path(), "device-1")
        .broker(cloud.broker())
        .model_keeping("objects-small", 0.0)
        .model_keeping("photo-small", 1.0)
        .http_source("whole")
        .section("model = \"objects-small\"")
        .section("[[source]]\nname = \"things\"\nkind = \"crops\"\nof = \"whole\"\nmodel = \"photo-small\"")
        .corrections_file()
        .start()?;
    agent.wait_until_online()?;
    let photo = std::fs::read(places::model("pictures").join("astronaut.png"))?;
    let whole = agent.http.post("whole", "", "image/png", &photo)?;
    let Some(Output::Boxes(found)) = &whole.said else { bail!("nothing is found: {whole:?}") };
    assert!(!whole.crops.is_empty() && whole.crops.len() == found.len(), "{whole:?}");
    assert_eq!((whole.decision.outcome, whole.case), (Outcome::Keep, None), "each model decides for itself");
    for crop in &whole.crops {
        let local = agent.http.answer(&crop.id)?;
        assert_eq!((local.source.as_str(), local.model.name.as_str()), ("things", "photo-small"));
        assert_eq!((&local.said, &local.metadata["crop_of"]), (&crop.said, &whole.id.to_string()));
        let corrected = agent.wait_for_correction(&crop.id, CORRECTION_WAIT_MAX)?;
        assert_eq!((corrected.said.as_ref(), corrected.changed), (crop.said.as_ref(), false), "{:?}", crop.view);
        let record = cloud.get(&format!("/api/cases/{}", crop.id))?;
        assert!(record.to_string().contains("photo-small"), "{record}");
    }
    // Nobody posts to it from outside.
    let refused = agent.http.try_post("things", "", "image/png", &photo);
    assert!(refused.as_ref().is_ok_and(|(status, _)| *status == 404), "{refused:?}");
    agent.stop()?;
    cloud.stop(CORRECTION_WAIT_MAX)
}

#[test]
fn a_sure_answer_stays_on_the_device() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let config = hedge_tests::AgentConfig::new(scene.dir(), "device-1").model_keeping("fashion-small", 0.0);
    let config = config.http_source("pictures").broker(&format!("mqtt://{}", scene.broker()?));
    let mut agent = config.start()?;
    agent.wait_until_online()?;
    let answer = scene.post(&agent, 0, &mut Tally::default())?;
    assert_eq!((answer.decision.outcome, answer.provisional, answer.case), (Outcome::Keep, false, None));
    assert_eq!(agent.http.status()?.queue.waiting, 0);
    agent.stop()
}
