//! Device and cloud are upgraded at different times: either understands the other's last version, and holds what a later
//! one says, until it is upgraded, too. Nothing becomes a dead letter for it.
//!
//! `tests/wire/N/messages.json` is one message of each kind of wire version N, as they were said; `cargo xtask wire`
//! captures them. A new version gets a new folder, and the old ones stay.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use ciborium::Value;
use hedge_proto::{
    Answer, CaseId, CaseMessage, CloudState, CloudStatus, DownMessage, LinkState, Output, Verdict, WIRE_VERSION,
};
use hedge_tests::wire::{Eavesdropper, Message, committed};
use hedge_tests::{Agent, AgentConfig, Cloud, CloudSetup, Mosquitto, places, skip, wait};
use tempfile::TempDir;

/// A word of a program that is there, on a busy machine.
const SOON: Duration = Duration::from_secs(60);

/// Who said it all.
const DEVICE: &str = "device-1";

fn can_run() -> bool {
    skip::has_onnxruntime() && skip::has_mosquitto()
}

/// The committed messages of one version, by kind.
struct Said(Vec<Message>);

impl Said {
    fn of(version: u16) -> Result<Self> {
        committed(version).map(Self)
    }

    fn message(&self, kind: &str) -> Result<&Message> {
        self.0.iter().find(|message| message.kind == kind).with_context(|| format!("no message of kind {kind}"))
    }

    /// The message of the cloud about another case than it was said of.
    fn about(&self, kind: &str, now: &CaseId) -> Result<Message> {
        let message = self.message(kind)?;
        let before = match hedge_proto::from_cbor::<DownMessage>(&message.payload, usize::MAX)? {
            DownMessage::Verdict(verdict) => verdict.id,
            DownMessage::Received { ids } => ids.first().context("an id")?.clone(),
            other => anyhow::bail!("{other:?}"),
        };
        message.about(&before, now)
    }
}

#[test]
fn every_version_ever_released_is_committed() -> Result<()> {
    for version in 1..=WIRE_VERSION {
        let said = Said::of(version)?;
        for kind in ["status", "telemetry", "reported", "reply", "case", "batch", "ask"] {
            said.message(kind)?;
        }
        for kind in ["verdict", "received", "unknown", "desired", "command", "cloud"] {
            said.message(kind)?;
        }
    }
    Ok(())
}

#[test]
fn a_new_cloud_understands_every_older_device() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for version in 1..=WIRE_VERSION {
        let dir = tempfile::tempdir()?;
        let (said, broker) = (Said::of(version)?, Mosquitto::start(dir.path())?);
        let (cloud, heard) = listening_cloud(&broker, dir.path())?;
        for kind in ["status", "telemetry", "reported", "reply", "case", "batch", "ask"] {
            said.message(kind)?.say(broker.inside(), dir.path())?;
        }
        let answered = |id: &CaseId| {
            wait::until_true(&format!("a verdict on {id}"), SOON, || {
                Ok(heard.verdicts()?.iter().any(|told| told.id == *id))
            })
        };
        let CaseMessage::Case(case) = hedge_proto::from_cbor(&said.message("case")?.payload, usize::MAX)? else {
            anyhow::bail!("no case");
        };
        answered(&case.id)?;
        let CaseMessage::Batch(cases) = hedge_proto::from_cbor(&said.message("batch")?.payload, usize::MAX)? else {
            anyhow::bail!("no batch");
        };
        cases.iter().try_for_each(|case| answered(&case.id))?;
        let scrape = cloud.scrape()?;
        for reason in ["malformed", "newer", "refused"] {
            let counted = scrape.value(&format!("hedge_cloud_turned_away_total{{reason=\"{reason}\"}}"))?;
            ensure!(counted == 0.0, "{counted} {reason}");
        }
        let shown = || Ok(cloud.get("/api/devices")?.to_string().contains(DEVICE));
        wait::until_true("the page shows it", SOON, shown)?;
    }
    Ok(())
}

#[test]
fn a_new_device_understands_every_older_cloud() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    for version in 1..=WIRE_VERSION {
        let (dir, said, broker, heard, mut agent) = connected_device(version)?;
        said.message("cloud")?.say(broker.inside(), dir.path())?;
        agent.wait_until_online()?;
        let answer = post(&agent)?;
        wait::until_true("the case is sent", SOON, || Ok(heard.cases()?.iter().any(|case| case.id == answer.id)))?;
        for kind in ["received", "verdict"] {
            said.about(kind, &answer.id)?.say(broker.inside(), dir.path())?;
        }
        let corrected = agent.wait_for_correction(&answer.id, SOON)?;
        ensure!(corrected.said.as_ref().map(Output::headline).as_deref() == Some("Coat"), "{corrected:?}");
        said.message("desired")?.say(broker.inside(), dir.path())?;
        said.message("command")?.say(broker.inside(), dir.path())?;
        wait::until_true("settings and command are taken", SOON, || {
            let kinds = heard.kinds()?;
            Ok(kinds.contains(&"reported".to_owned()) && kinds.contains(&"reply".to_owned()))
        })?;
        let status = agent.http.status()?;
        ensure!(status.unread == 0 && status.queue.dead == 0 && status.faults.is_empty(), "{status:?}");
        agent.stop()?;
    }
    Ok(())
}

#[test]
fn a_cloud_holds_what_a_later_device_says() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (said, broker) = (Said::of(WIRE_VERSION)?, Mosquitto::start(dir.path())?);
    let (cloud, heard) = listening_cloud(&broker, dir.path())?;
    let case = said.message("case")?;
    let later = later(&case.payload, "case")?;
    let strange = Message { payload: unknown_kind("stream")?, ..case.clone() };
    for (count, message) in [(1.0, Message { payload: later, ..case.clone() }), (2.0, strange)] {
        message.say(broker.inside(), dir.path())?;
        let counted = wait::until_true("it is counted", SOON, || {
            Ok(cloud.scrape()?.value("hedge_cloud_turned_away_total{reason=\"newer\"}")? == count)
        });
        counted.with_context(|| cloud.log_end())?;
    }
    let told = || {
        Ok::<_, anyhow::Error>(
            heard.down()?.into_iter().filter(|told| !matches!(told, DownMessage::Busy { .. })).collect::<Vec<_>>(),
        )
    };
    wait::until_true("the device is told to wait", SOON, || Ok(heard.down()?.len() >= 2))?;
    ensure!(told()?.is_empty(), "it says nothing else: {:?}", told()?);
    ensure!(cloud.log().contains("update the cloud"), "{}", cloud.log());
    // What it does understand is answered as ever.
    case.say(broker.inside(), dir.path())?;
    wait::until_true("a verdict", SOON, || Ok(!heard.verdicts()?.is_empty()))
}

#[test]
fn a_device_holds_what_a_later_cloud_says() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (dir, said, broker, heard, mut agent) = connected_device(WIRE_VERSION)?;

    // A cloud that reads later versions only: hold.
    let status = |wire: &[u16]| cloud_reading(&said, wire);
    status(&[WIRE_VERSION + 1])?.say(broker.inside(), dir.path())?;
    agent.wait_for_status("it says why it holds", SOON, |status| {
        status.link == LinkState::Degraded && status.link_reason.contains("update the cloud")
    })?;
    let answer = post(&agent)?;
    ensure!(heard.cases()?.is_empty(), "nothing is sent that would not be read");

    // One that reads ours, too, and answers in a later version.
    status(&[WIRE_VERSION, WIRE_VERSION + 1])?.say(broker.inside(), dir.path())?;
    wait::until_true("the case is sent", SOON, || Ok(heard.cases()?.iter().any(|case| case.id == answer.id)))?;
    let verdict = said.about("verdict", &answer.id)?;
    Message { payload: later(&verdict.payload, "verdict")?, ..verdict.clone() }.say(broker.inside(), dir.path())?;
    Message { payload: unknown_kind("sketch")?, ..verdict.clone() }.say(broker.inside(), dir.path())?;
    let status = agent.wait_for_status("both are counted", SOON, |status| status.unread == 2)?;
    ensure!(
        status.faults.get("wire").is_some_and(|sentence| sentence.contains("update the agent")),
        "{:?}",
        status.faults
    );
    ensure!(status.queue.waiting == 1 && status.queue.dead == 0 && status.samples.verdicts == 0, "{status:?}");
    ensure!(agent.http.scrape()?.value("hedge_agent_unread_messages_total")? == 2.0, "a figure shows it");
    let what = format!("wire version {}", WIRE_VERSION + 1);
    ensure!(agent.log().contains(&what) || agent.log().contains("sketch"), "{}", agent.log());

    // What it does understand closes the case as ever.
    verdict.say(broker.inside(), dir.path())?;
    agent.wait_for_correction(&answer.id, SOON)?;
    agent.wait_for_status("nothing is wrong any more", SOON, |status| status.faults.is_empty())?;
    agent.stop()
}

#[test]
fn what_answers_another_question_ends_no_case() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let (dir, said, broker, heard, mut agent) = connected_device(WIRE_VERSION)?;
    said.message("cloud")?.say(broker.inside(), dir.path())?;
    agent.wait_until_online()?;
    let answer = post(&agent)?;
    wait::until_true("the case is sent", SOON, || Ok(heard.cases()?.iter().any(|case| case.id == answer.id)))?;
    let right = said.about("verdict", &answer.id)?;
    let DownMessage::Verdict(verdict) = hedge_proto::from_cbor(&right.payload, usize::MAX)? else {
        anyhow::bail!("no verdict");
    };
    let other_task = Verdict { task: "hats".to_owned(), ..verdict.clone() };
    let boxes = Verdict { said: Output::Boxes(Vec::new()), ..verdict };
    for (wrong, why) in [(other_task, "the task `hats`"), (boxes, "with boxes")] {
        let payload = hedge_proto::to_cbor(&DownMessage::Verdict(wrong));
        Message { payload, ..right.clone() }.say(broker.inside(), dir.path())?;
        wait::until_true("it is said", SOON, || Ok(agent.log().contains(why)))?;
    }
    let status = agent.http.status()?;
    ensure!((status.samples.verdicts, status.queue.dead) == (0, 0), "{status:?}");
    right.say(broker.inside(), dir.path())?;
    agent.wait_for_correction(&answer.id, SOON)?;
    agent.stop()
}

#[test]
fn a_case_with_boxes_waits_for_a_cloud_that_reads_them_and_holds_up_no_other() -> Result<()> {
    if !can_run() {
        return Ok(());
    }
    let dir = tempfile::tempdir()?;
    let (said, broker) = (Said::of(WIRE_VERSION)?, Mosquitto::start(dir.path())?);
    let heard = Eavesdropper::start(broker.inside(), dir.path())?;
    let mut agent = AgentConfig::new(dir.path(), DEVICE)
        .broker(&broker.url())
        .model_keeping("fashion-small", 1.0)
        .model_keeping("objects-small", 1.0)
        .http_source("pictures")
        .section("model = \"fashion-small\"")
        .http_source("lane")
        .section("model = \"objects-small\"")
        .start()?;
    agent.wait_until_connected()?;
    cloud_reading(&said, &[1])?.say(broker.inside(), dir.path())?;
    agent.wait_until_online()?;
    let photo = std::fs::read(places::model("pictures").join("camera.png"))?;
    let boxes = agent.http.post("lane", "", "image/png", &photo)?;
    ensure!(matches!(boxes.said, Some(Output::Boxes(_))), "{boxes:?}");
    let fault = || Ok::<_, anyhow::Error>(agent.http.status()?.faults.remove("cloud"));
    let says = |fault: Option<String>| fault.is_some_and(|fault| fault.contains("does not read such cases"));
    wait::until_true("a fault says why it holds the case", SOON, || Ok(says(fault()?)))?;

    let classes = post(&agent)?;
    let sent = |id: &CaseId| Ok::<_, anyhow::Error>(heard.cases()?.into_iter().find(|case| case.id == *id));
    let version = wait::until("what it reads is sent", SOON, || sent(&classes.id))?.v;
    ensure!(version == 1 && sent(&boxes.id)?.is_none(), "boxes went to a cloud that does not read them");
    ensure!(agent.http.status()?.queue.dead == 0, "and are no dead letter");

    cloud_reading(&said, &[1, 2])?.say(broker.inside(), dir.path())?;
    let case = wait::until("the boxes are sent, too", SOON, || sent(&boxes.id))?;
    ensure!((case.v, case.said.as_ref()) == (2, boxes.said.as_ref()), "{case:?}");
    wait::until_true("nothing is wrong any more", SOON, || Ok(fault()?.is_none()))?;
    agent.stop()
}

/// The status of a cloud that reads these versions, with a field that nobody knows yet.
fn cloud_reading(said: &Said, wire: &[u16]) -> Result<Message> {
    let status = CloudStatus {
        state: CloudState::Online,
        wire: wire.to_vec(),
        accept: None,
        retry_after_s: None,
        payload_bytes_max: None,
    };
    let mut json: serde_json::Value = serde_json::from_slice(&hedge_proto::to_json(&status))?;
    json["mood"] = "unknown to this version".into();
    Ok(Message { payload: serde_json::to_vec(&json)?, ..said.message("cloud")?.clone() })
}

/// A cloud that has said it is there, which it does once all its subscriptions are granted.
fn listening_cloud(broker: &Mosquitto, dir: &std::path::Path) -> Result<(Cloud, Eavesdropper)> {
    let heard = Eavesdropper::start(broker.inside(), dir)?;
    let cloud = Cloud::start(dir, &CloudSetup::stub(&broker.url(), "fashion", "Coat"))?;
    wait::until_true("the cloud listens", SOON, || Ok(heard.kinds()?.iter().any(|kind| kind == "cloud")))?;
    Ok((cloud, heard))
}

fn device(broker: &Mosquitto, dir: &std::path::Path) -> AgentConfig {
    let config = AgentConfig::new(dir, DEVICE).broker(&broker.url()).model_keeping("fashion-small", 1.0);
    config.http_source("pictures").corrections_file()
}

/// A device at a broker where all is overheard, and what was said in a version.
fn connected_device(version: u16) -> Result<(TempDir, Said, Mosquitto, Eavesdropper, Agent)> {
    let dir = tempfile::tempdir()?;
    let (said, broker) = (Said::of(version)?, Mosquitto::start(dir.path())?);
    let heard = Eavesdropper::start(broker.inside(), dir.path())?;
    let mut agent = device(&broker, dir.path()).start()?;
    agent.wait_until_connected()?;
    Ok((dir, said, broker, heard, agent))
}

fn post(agent: &Agent) -> Result<Answer> {
    let picture = std::fs::read(places::model("fashion-small").join("golden/test-0.png"))?;
    agent.http.post("pictures", "", "image/png", &picture)
}

/// The same message in the next version, with a field that nobody knows yet.
fn later(payload: &[u8], kind: &str) -> Result<Vec<u8>> {
    let read = ciborium::from_reader::<Value, _>(payload);
    let mut message = read.map_err(|error| anyhow!("{error:?}"))?;
    let fields = message.as_map_mut().context("a map")?;
    let (name, body) = fields.first_mut().context("a kind")?;
    ensure!(name.as_text() == Some(kind), "{name:?}");
    let body = body.as_map_mut().context("fields")?;
    for (name, value) in body.iter_mut() {
        if name.as_text() == Some("v") {
            *value = Value::Integer((WIRE_VERSION + 1).into());
        }
    }
    body.push((Value::Text("mood".into()), Value::Text("new".into())));
    written(&message)
}

fn unknown_kind(kind: &str) -> Result<Vec<u8>> {
    written(&Value::Map(vec![(
        Value::Text(kind.into()),
        Value::Map(vec![(Value::Text("v".into()), Value::Integer(2.into()))]),
    )]))
}

fn written(message: &Value) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    ciborium::into_writer(message, &mut bytes).map_err(|error| anyhow!("{error:?}"))?;
    Ok(bytes)
}
