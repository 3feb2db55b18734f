//! What the broker does not take travels by HTTPS, in pieces that survive a cut of the link and a kill of the cloud.

use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use hedge_proto::{CaseFate, CaseId, CloudState, CloudStatus, LinkState, WIRE_VERSION, to_json};
use hedge_tests::certificates::Authority;
use hedge_tests::fashion::{Fashion, noise_png};
use hedge_tests::faults::Shape;
use hedge_tests::mosquitto::MosquittoSetup;
use hedge_tests::mosquitto_client::publish;
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, FaultProxy, Listener, Mosquitto, address, skip, wait};

/// What the broker takes.
const PACKET_BYTES_MAX: u32 = 100_000;

/// Twenty times as much.
const PAYLOAD_BYTES: usize = 2_000_000;

/// Slow enough to be interrupted: five seconds for all of it.
const SLOW: Shape = Shape { latency: Duration::ZERO, bytes_per_s: Some(400_000) };

const ARRIVES_WITHIN: Duration = Duration::from_secs(90);

/// A broker that says nothing is found out by connections that end, and each dial waits longer.
const LEARNED_WITHIN: Duration = Duration::from_secs(180);

/// What is still on its way to a busy disk would be sent, too.
const STORED_OR_REFUSED: &str = "[outbox]\nstore_wait_ms = 20_000";

/// TLS, headers, and the pieces that were under way at the cut and at the kill.
const SENT_AGAIN_MAX: u64 = 300_000;

#[test]
fn by_https_going_on_where_it_was() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let authority = Authority::new(dir.path())?;
    let mosquitto = Mosquitto::start_with(
        dir.path(),
        &MosquittoSetup { packet_bytes_max: Some(PACKET_BYTES_MAX), ..Default::default() },
    )?;
    let listen = address::own(8443);
    let link = FaultProxy::start(listen)?;
    let token = dir.path().join("token");
    fs::write(&token, "secret\n")?;
    let mut setup = CloudSetup::stub(&mosquitto.url(), "fashion", "Coat");
    let identity = authority.server(link.address().ip())?;
    for (flag, value) in [
        ("--payload-listen", listen.to_string()),
        ("--payload-cert", identity.certificate.display().to_string()),
        ("--payload-key", identity.key.display().to_string()),
        ("--payload-token-file", token.display().to_string()),
    ] {
        setup.more.extend([flag.to_owned(), value]);
    }
    let mut cloud = Cloud::start(dir.path(), &setup)?;
    let config = |token: &std::path::Path| {
        AgentConfig::new(dir.path(), "device-1")
            .model_keeping("fashion-small", 1.0)
            .http_source("pictures")
            .corrections_file()
            .section(STORED_OR_REFUSED)
            .broker(&mosquitto.url())
            .section(&format!(
                "[payloads]\nurl = \"https://{}\"\nca_file = \"{}\"\ntoken_file = \"{}\"",
                link.address(),
                authority.file().display(),
                token.display()
            ))
    };
    let mut agent = config(&token).start()?;
    agent.wait_until_online()?;
    link.shape(SLOW);
    let before = link.meter().up_bytes;
    let id = post_a_stored_one(&agent)?;
    let sent = || link.meter().up_bytes - before;
    wait::until_true("the upload has begun", ARRIVES_WITHIN, || Ok(sent() > 300_000))?;
    link.reset();
    link.pass();
    wait::until_true("it goes on after the cut", ARRIVES_WITHIN, || Ok(sent() > 900_000))?;
    cloud.kill()?;
    cloud.start_again(&setup)?;
    agent.wait_for_correction(&id, ARRIVES_WITHIN).context(cloud.log_end())?;
    let again = sent().saturating_sub(PAYLOAD_BYTES as u64);
    eprintln!("{} bytes up, {again} of them more than the payload", sent());
    ensure!(again < SENT_AGAIN_MAX, "{again} bytes were sent again");
    let case = cloud.get(&format!("/api/cases/{id}"))?;
    ensure!(case["payload_bytes"].as_u64() >= Some(PAYLOAD_BYTES as u64), "{case}");
    let left = || Ok(fs::read_dir(dir.path().join("cloud-1/state/payloads"))?.count() == 0);
    wait::until_true("no file is left, because the case is on record", ARRIVES_WITHIN, left)?;

    // Small ones are not held up by one that is not let in.
    agent.stop()?;
    let wrong = dir.path().join("wrong");
    fs::write(&wrong, "guessed")?;
    let mut agent = config(&wrong).start()?;
    agent.wait_until_online()?;
    let large = post_a_stored_one(&agent)?;
    let fashion = Fashion::load()?;
    let small = (0..50)
        .map(|index| agent.http.post("pictures", "", "image/png", &fashion.png(index)?))
        .find(|answer| answer.as_ref().map_or(true, |answer| answer.case == Some(CaseFate::Stored)))
        .context("none of 50 pictures was stored")??;
    agent.wait_for_correction(&small.id, ARRIVES_WITHIN)?;
    agent.wait_for_status("only the large one waits", ARRIVES_WITHIN, |status| {
        status.queue.waiting == 1 && status.queue.dead == 0 && status.link == LinkState::Online
    })?;
    ensure!(agent.corrections()?.iter().all(|correction| correction.id != large));
    agent.stop()
}

/// What a cloud names as its largest payload is not exceeded: a case that has no other way waits, a fault says why,
/// smaller ones travel on, and it goes when the cloud takes more.
#[test]
fn or_waits_while_the_cloud_takes_less_and_there_is_no_other_way() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let mosquitto = Mosquitto::start(dir.path())?;
    // Somebody takes the cases, for a cloud that says nothing more.
    let _listener = Listener::start(mosquitto.inside(), dir.path())?;
    let config = AgentConfig::new(dir.path(), "device-1").model_keeping("fashion-small", 1.0);
    let config = config.http_source("pictures").section(STORED_OR_REFUSED).broker(&mosquitto.url());
    let mut agent = config.start()?;
    agent.wait_until_connected()?;
    let small = CloudStatus {
        state: CloudState::Online,
        wire: vec![WIRE_VERSION],
        accept: None,
        retry_after_s: None,
        payload_bytes_max: Some(10_000),
    };
    let status = String::from_utf8(to_json(&small))?;
    publish(mosquitto.inside(), "hedge/v1/cloud/small/status", &["-m", &status])?;
    agent.wait_until_online()?;
    post_a_stored(&agent, 20_000)?;
    agent.wait_for_status("a fault says why it waits", ARRIVES_WITHIN, |status| {
        status.faults.get("limit").is_some_and(|fault| fault.contains("give `[payloads] url` another way"))
    })?;
    post_a_stored(&agent, 1_000)?;
    agent.wait_for_status("a smaller one is sent", ARRIVES_WITHIN, |status| {
        status.queue.in_flight == 1 && status.queue.waiting == 2 && status.queue.dead == 0
    })?;
    let more = CloudStatus { payload_bytes_max: None, ..small };
    publish(mosquitto.inside(), "hedge/v1/cloud/small/status", &["-m", &String::from_utf8(to_json(&more))?])?;
    agent.wait_for_status("the large one is sent", ARRIVES_WITHIN, |status| status.queue.in_flight == 2)?;
    agent.stop()
}

/// A limit of the broker, told at the connection or kept to itself, makes no dead letter: the case waits, a fault says why,
/// smaller ones travel on, and it goes when the limit does.
#[test]
fn or_waits_while_the_broker_takes_less() -> Result<()> {
    if !skip::has_onnxruntime() || !skip::has_mosquitto() {
        return Ok(());
    }
    for (told, setup) in [
        (true, MosquittoSetup { packet_bytes_max: Some(12_000), ..Default::default() }),
        (false, MosquittoSetup { message_bytes_max: Some(12_000), ..Default::default() }),
    ] {
        let dir = tempfile::tempdir()?;
        let mut mosquitto = Mosquitto::start_with(dir.path(), &setup)?;
        let cloud = Cloud::start(dir.path(), &CloudSetup::stub(&mosquitto.url(), "fashion", "Coat"))?;
        let mut agent = AgentConfig::new(dir.path(), "device-1")
            .model_keeping("fashion-small", 1.0)
            .http_source("pictures")
            .corrections_file()
            .section(STORED_OR_REFUSED)
            .broker(&mosquitto.url())
            .start()?;
        agent.wait_until_online()?;
        let large = post_a_stored(&agent, 20_000)?;
        agent.wait_for_status("a fault says why it waits", LEARNED_WITHIN, |status| {
            status.faults.get("limit").is_some_and(|fault| fault.contains("give `[payloads] url` another way"))
        })?;
        let small = post_a_stored(&agent, 1_000)?;
        agent.wait_for_correction(&small, LEARNED_WITHIN).with_context(|| format!("told: {told}"))?;
        let status = agent.http.status()?;
        ensure!((status.queue.waiting, status.queue.dead) == (1, 0), "told: {told}, {:?}", status.queue);
        ensure!(agent.corrections()?.iter().all(|correction| correction.id != large));

        mosquitto.start_again_with(&MosquittoSetup::default())?;
        // A command of an operator, so that the test need not wait for the hour that a limit is believed.
        if !told {
            agent.stop()?;
            agent.start_again()?;
        }
        agent.wait_for_correction(&large, LEARNED_WITHIN).with_context(|| cloud.log_end())?;
        let dead = agent.http.status()?.queue.dead;
        ensure!(dead == 0, "{dead} dead letters");
        agent.stop()?;
    }
    Ok(())
}

fn post_a_stored_one(agent: &Agent) -> Result<CaseId> {
    post_a_stored(agent, PAYLOAD_BYTES)
}

fn post_a_stored(agent: &Agent, bytes: usize) -> Result<CaseId> {
    for seed in 1..50 {
        let answer = agent.http.post("pictures", "", "image/png", &noise_png(bytes, seed)?)?;
        if answer.case == Some(CaseFate::Stored) {
            return Ok(answer.id);
        }
    }
    anyhow::bail!("none of 50 pictures was deferred and stored")
}
