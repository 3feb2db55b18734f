//! A metered link carries thumbnails, and of a picture the whole only where the cloud is not sure of its thumbnail. Whatever
//! dies between the two, each picture has one verdict.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{Answer, Authority, CaseFate, CaseId};
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, FaultProxy, Mosquitto, places, skip, wait};
use serde_json::Value;

/// Ten pictures, two models and a kill of each program, in a debug build on a busy machine.
const WITHIN: Duration = Duration::from_secs(120);

/// From here on the cloud is sure of a thumbnail, unless it is told otherwise.
const SURE_FROM: f64 = 0.5;

/// Pictures by their names, each of another size and kind of scene.
fn pictures() -> Result<BTreeMap<String, (String, Vec<u8>)>> {
    let dir = places::root().join("models/pictures");
    let mut pictures = BTreeMap::new();
    for entry in std::fs::read_dir(&dir).with_context(|| dir.display().to_string())? {
        let path: PathBuf = entry?.path();
        let kind = match path.extension().and_then(|ending| ending.to_str()) {
            Some("png") => "image/png",
            Some("jpg") => "image/jpeg",
            _ => continue,
        };
        let name = path.file_stem().and_then(|name| name.to_str()).context("a name")?.to_owned();
        pictures.insert(name, (kind.to_owned(), std::fs::read(&path)?));
    }
    ensure!(pictures.len() > 5, "there are only {} pictures in {}", pictures.len(), dir.display());
    Ok(pictures)
}

/// A device that is never sure, over a link of its own.
fn device(name: &str, dir: &std::path::Path, link: &FaultProxy, section: &str) -> Result<Agent> {
    let config = AgentConfig::new(dir, name).broker(&format!("mqtt://{}", link.address())).section(section);
    let mut agent = config.model_keeping("photo-small", 1.0).http_source("photos").corrections_file().start()?;
    agent.wait_until_online()?;
    Ok(agent)
}

fn post(agent: &Agent, (kind, bytes): &(String, Vec<u8>)) -> Result<CaseId> {
    let answer = agent.http.post("photos", "", kind, bytes)?;
    ensure!(answer.case == Some(CaseFate::Stored), "{answer:?}");
    Ok(answer.id)
}

/// The device's corrections by id, each of which came once and is a model's.
fn corrections(agent: &Agent) -> Result<BTreeMap<String, Answer>> {
    let mut corrections = BTreeMap::new();
    for answer in agent.corrections()? {
        ensure!((answer.revision, answer.authority) == (1, Authority::Model), "{answer:?}");
        let before = corrections.insert(answer.id.to_string(), answer);
        ensure!(before.is_none(), "answered twice: {before:?}");
    }
    Ok(corrections)
}

/// Posts all pictures, waits for their verdicts, and returns their ids and how many bytes that took up the link.
fn post_all(agent: &mut Agent, link: &FaultProxy) -> Result<(BTreeMap<String, CaseId>, u64)> {
    let before = link.meter();
    let mut ids = BTreeMap::new();
    for (name, picture) in pictures()? {
        let id = post(agent, &picture)?;
        agent.wait_for_correction(&id, WITHIN)?;
        ids.insert(name, id);
    }
    Ok((ids, link.meter().since(&before).up_bytes))
}

fn record(cloud: &Cloud, id: &CaseId) -> Result<Value> {
    cloud.get(&format!("/api/cases/{id}"))
}

#[test]
fn the_whole_goes_only_where_the_cloud_is_not_sure_of_the_thumbnail_and_nothing_is_lost_in_between() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mosquitto = Mosquitto::start_with(dir.path(), &MosquittoSetup::default())?;
    let setup = CloudSetup::at(&mosquitto.url(), &["photo-large"]);
    let mut cloud = Cloud::start(dir.path(), &setup)?;
    let [whole_link, link] = [FaultProxy::start(mosquitto.address())?, FaultProxy::start(mosquitto.address())?];

    let mut wholes = device("whole", dir.path(), &whole_link, "")?;
    let (_, whole_bytes) = post_all(&mut wholes, &whole_link)?;
    wholes.stop()?;

    let first = "[link.states.online]\npayload = { thumbnail_first = 320 }\n\
                 [link.states.degraded]\npayload = { thumbnail_first = 320 }";
    let mut agent = device("metered", dir.path(), &link, first)?;
    let (ids, bytes) = post_all(&mut agent, &link)?;
    let (pictures, mut unsure) = (pictures()?, Vec::new());
    for (name, id) in &ids {
        let case = record(&cloud, id)?;
        let score = case["verdict"]["result"]["classify"]["scores"][0]["score"].as_f64().context("a score")?;
        let (form, kept) = (case["form"].as_str().context("a form")?, case["payload_bytes"].as_u64());
        eprintln!("{name}: {form}, {kept:?} of {} bytes, {score:.3}", pictures[name].1.len());
        match form {
            "thumbnail" => ensure!(score >= SURE_FROM, "{name} was answered from a thumbnail: {case}"),
            "whole" => {
                ensure!(kept == Some(pictures[name].1.len() as u64), "{name}: {case}");
                unsure.push(name);
            }
            other => anyhow::bail!("{name} came as {other}"),
        }
    }
    ensure!(!unsure.is_empty() && unsure.len() < ids.len(), "of {} pictures {} went whole", ids.len(), unsure.len());
    let all: usize = pictures.values().map(|(_, picture)| picture.len()).sum();
    println!(
        "{} pictures of {all} bytes: {whole_bytes} bytes up the link whole, {bytes} with thumbnails first; {} went whole",
        ids.len(),
        unsure.len()
    );
    ensure!(bytes < whole_bytes, "{bytes} bytes with thumbnails first, {whole_bytes} without");

    // The cloud's wish does not reach the device, and the cloud dies, and the device does.
    let name = unsure[0];
    link.deafen();
    let id = post(&agent, &pictures[name])?;
    let wanted = "the cloud has the thumbnail, and wants the whole";
    wait::until_true(wanted, WITHIN, || Ok(record(&cloud, &id).is_ok_and(|case| case["whole_wanted"] == true)))?;
    let case = record(&cloud, &id)?;
    ensure!(case["form"] == "thumbnail" && case["state"] == "waiting" && case["verdict"].is_null(), "{case}");
    cloud.kill()?;
    agent.kill()?;
    link.pass();
    cloud.start_again(&setup)?;
    agent.start_again()?;
    agent.wait_for_correction(&id, WITHIN)?;
    let case = record(&cloud, &id)?;
    ensure!(case["form"] == "whole" && case["whole_wanted"] == false, "{case}");
    ensure!(case["payload_bytes"] == pictures[name].1.len(), "{case}");
    let corrections = corrections(&agent)?;
    let all = ids.values().chain([&id]);
    ensure!(all.clone().all(|id| corrections.contains_key(&id.to_string())), "one is missing: {corrections:?}");
    ensure!(corrections.len() == all.count(), "{corrections:?}");
    agent.stop()
}
