//! What a person says on the page about a case that is closed comes out of the device's sink, counts in its calibration,
//! and stays on record with who said it and when.

use std::time::Duration;

use anyhow::{Context, Result};
use hedge_proto::{Answer, Authority, CaseId};
use hedge_tests::{Agent, Cloud, Scene, Tally, skip, tally, wait};
use serde_json::{Value, json};

/// Far more than one case takes on an idle link.
const CORRECTION_WAIT_MAX: Duration = Duration::from_secs(60);

#[test]
fn it_comes_out_of_the_sink_and_counts_in_the_calibration() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let scene = Scene::embedded()?;
    let (mut agent, id, said) = a_closed_case(&scene)?;
    let before = labels(&agent)?;
    let other = another_label(&said);
    let reported = correct(&scene.cloud, &id, json!({"label": other, "by": "ann", "seen": 1}))?;
    assert_eq!(reported["outcome"], "answered", "{reported}");

    let line = wait_for(&mut agent, &id, 2)?;
    assert_eq!((line.authority, tally::label(&line)), (Authority::Person, Some(other.to_owned())));
    assert_eq!(line.model.name, "ann");
    // A person counts for more than one word of a model.
    wait::until_true("it counts in the calibration", CORRECTION_WAIT_MAX, || Ok(labels(&agent)? > before + 1.0))?;

    let record = scene.cloud.get(&format!("/api/cases/{id}/words"))?;
    let words: Vec<(&Value, &Value, &Value)> = record
        .as_array()
        .context("what was said of it")?
        .iter()
        .map(|word| (&word["revision"], &word["authority"], &word["model"]["name"]))
        .collect();
    let expected = [(json!(1), json!("model"), json!("fashion-large")), (json!(2), json!("person"), json!("ann"))];
    assert_eq!(words, expected.iter().map(|(a, b, c)| (a, b, c)).collect::<Vec<_>>());
    assert!(record[1]["given_ms"].as_u64() >= record[0]["given_ms"].as_u64());

    // Who saw an older word than the last is told so, and nothing changes.
    let late = correct(&scene.cloud, &id, json!({"label": said, "by": "bob", "seen": 1}))?;
    assert!(late["error"].as_str().is_some_and(|why| why.contains("somebody else")), "{late}");
    agent.stop()
}

#[test]
fn it_survives_kills_of_the_cloud_and_of_the_device_before_it_is_there() -> Result<()> {
    if !skip::has_onnxruntime() {
        return Ok(());
    }
    let mut scene = Scene::embedded()?;
    let (mut agent, id, said) = a_closed_case(&scene)?;
    let other = another_label(&said);
    agent.kill()?;
    correct(&scene.cloud, &id, json!({"label": other, "by": "ann"}))?;
    // The broker is inside the cloud, and what it holds for the device ends with it.
    scene.cloud.kill()?;
    let setup = scene.setup.clone();
    scene.cloud.start_again(&setup)?;
    agent.start_again()?;
    let line = wait_for(&mut agent, &id, 2)?;
    assert_eq!((line.authority, tally::label(&line)), (Authority::Person, Some(other.to_owned())));
    agent.stop()
}

/// A device, a case of its that the cloud's model has answered, and what that said.
fn a_closed_case(scene: &Scene) -> Result<(Agent, CaseId, String)> {
    let mut agent = scene.doubter("device-1").broker(&format!("mqtt://{}", scene.broker()?)).start()?;
    agent.wait_until_online()?;
    let id = scene.post_a_stored_one(&agent, 0, &mut Tally::default())?.id;
    let closed = agent.wait_for_correction(&id, CORRECTION_WAIT_MAX)?;
    let said = tally::label(&closed).context("a label")?;
    Ok((agent, id, said))
}

fn another_label(said: &str) -> &'static str {
    if said == "Sandal" { "Bag" } else { "Sandal" }
}

fn correct(cloud: &Cloud, id: &CaseId, word: Value) -> Result<Value> {
    cloud.post(&format!("/api/review/{id}"), &word)
}

fn wait_for(agent: &mut Agent, id: &CaseId, revision: u32) -> Result<Answer> {
    let sink = |agent: &Agent| -> Result<Option<Answer>> {
        Ok(agent.corrections()?.into_iter().find(|line| line.id == *id && line.revision == revision))
    };
    wait::until("the correction comes out of the sink", CORRECTION_WAIT_MAX, || sink(agent))
}

/// How many labels the device's calibration has.
fn labels(agent: &Agent) -> Result<f64> {
    let figures = agent.http.status()?.model_figures;
    Ok(figures.values().filter_map(|model| model.judge.as_ref()).map(|judge| f64::from(judge.labels)).sum())
}
