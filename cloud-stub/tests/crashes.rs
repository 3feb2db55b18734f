//! What survives a killed, stopped or restarted cloud.

mod rig;

use std::collections::BTreeSet;

use hedge_proto::{CaseId, CloudState, DownMessage, Topic};
use rig::{Broker, Cloud, Device, Mosquitto};
use tempfile::TempDir;

/// How many cases are under way when the cloud is killed.
const CASES: u64 = 60;

#[tokio::test]
async fn what_was_received_survives_kill_9_and_the_rest_is_asked_for() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let broker = Broker::Mosquitto(mosquitto);
    let dir = TempDir::new().expect("a directory");
    let mut cloud = Cloud::start(&broker, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    let mut held = BTreeSet::new();
    for round in 0..5_u64 {
        device.cloud_is(CloudState::Online).await;
        let first = round * CASES;
        for n in first..first + CASES {
            device.send(device.case(n, &vec![1; 20_000])).await;
        }
        // Somewhere in the middle: after the first word about this round's cases.
        note(&device.hears().await, &mut held);
        cloud.kill();
        cloud = Cloud::start(&broker, dir.path());
        device.cloud_is(CloudState::Offline).await;
    }
    device.cloud_is(CloudState::Online).await;
    // As a device does: ask about everything that has no verdict, send what is unknown.
    let mut answered = BTreeSet::new();
    let mut open: BTreeSet<CaseId> = (0..5 * CASES).map(|n| device.id(n)).collect();
    let all = open.len();
    for ids in open.iter().cloned().collect::<Vec<_>>().chunks(100) {
        device.ask(ids.to_vec()).await;
    }
    while answered.len() < all {
        match device.hears().await {
            DownMessage::Verdict(verdict) => {
                open.remove(&verdict.id);
                answered.insert(verdict.id);
            }
            DownMessage::Unknown { ids } => {
                for id in ids {
                    assert!(!held.contains(&id), "{id} was received and is unknown now");
                    if open.contains(&id) {
                        device.send(device.case(id.key.sequence, &vec![1; 20_000])).await;
                    }
                }
            }
            other => note(&other, &mut held),
        }
    }
    cloud.figure("cases", 5 * CASES).await;
    cloud.figure("answered", 5 * CASES).await;
    cloud.figure("waiting", 0).await;
}

fn note(message: &DownMessage, held: &mut BTreeSet<CaseId>) {
    match message {
        DownMessage::Received { ids } => held.extend(ids.iter().cloned()),
        DownMessage::Verdict(verdict) => drop(held.insert(verdict.id.clone())),
        other => panic!("unexpected: {other:?}"),
    }
}

#[tokio::test]
async fn a_case_that_was_left_unanswered_is_answered_after_the_next_start() {
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start_with(&Broker::Embedded, dir.path(), &[]);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    for n in 0..10 {
        device.send(device.case(n, b"picture")).await;
    }
    cloud.figure("waiting", 10).await;
    cloud.kill();
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    cloud.figure("answered", 10).await;
    cloud.figure("waiting", 0).await;
}

/// How often a cloud is killed while it has a healthy case. Three were once enough to make a dead letter of it.
const KILLS: usize = 8;

#[tokio::test]
async fn however_often_the_cloud_is_killed_no_healthy_case_is_called_dead() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let broker = Broker::Mosquitto(mosquitto);
    let dir = TempDir::new().expect("a directory");
    let mut cloud = Cloud::start(&broker, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    for n in 0..5 {
        device.send(device.case(n, b"slow!1500")).await;
    }
    cloud.figure("cases", 5).await;
    for _ in 0..KILLS {
        cloud.kill();
        // What is left over is given to the model before the page's address is said.
        cloud = Cloud::start(&broker, dir.path());
    }
    cloud.figure("answered", 5).await;
    cloud.figure("dead", 0).await;
}

#[tokio::test]
async fn a_case_that_ends_the_process_ends_as_a_dead_letter_and_the_others_are_answered() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let broker = Broker::Mosquitto(mosquitto);
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&broker, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    // Behind one that takes its time, so that all of them are on record when the process ends.
    device.send(device.case(0, b"slow!3000")).await;
    device.send(device.case(1, b"crash!")).await;
    for n in 2..6 {
        device.send(device.case(n, b"picture")).await;
    }
    cloud.figure("cases", 6).await;
    cloud.ends().await;

    let cloud = Cloud::start(&broker, dir.path());
    cloud.figure("answered", 5).await;
    cloud.figure("dead", 1).await;
    let known = cloud.get(&format!("/api/cases/{}", device.id(1))).await;
    assert!(known["why"].as_str().is_some_and(|why| why.contains("3 times while it had this case alone")), "{known}");
}

#[tokio::test]
async fn nothing_of_an_instance_that_has_gone_stays_at_the_broker() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let addr = mosquitto.addr;
    let broker = Broker::Mosquitto(mosquitto);
    let dirs = [TempDir::new().expect("a directory"), TempDir::new().expect("a directory")];
    let start = |name: &str, dir: &TempDir| {
        let args = ["--answer-with", "shoes=boot", "--instance", name, "--status-s", "1"];
        Cloud::start_with(&broker, dir.path(), &args)
    };
    let looks = std::cell::Cell::new(0);
    let retained = async || {
        looks.set(looks.get() + 1);
        let mut looker = Device::connect(&format!("looker-{}", looks.get()), addr).await;
        // What it listens to is granted before what it says.
        let granted = looker.client.subscribe_tracked("granted", rumqttc::QoS::AtMostOnce).await.expect("a broker");
        granted.wait_completion_async().await.expect("a SUBACK");
        let marker = Topic::CloudStatus(rig::name("marker"));
        let status = br#"{"state": "online", "retry_after_s": 77}"#.to_vec();
        looker.publish(&marker, status, false).await;
        let said = looker.clouds_before(|status| status.retry_after_s == Some(77)).await;
        looker.client.disconnect().await.expect("a broker");
        said
    };
    for n in 0..3 {
        let killed = start(&format!("old-{n}"), &dirs[0]);
        killed.connected().await;
        killed.kill();
    }
    let until = std::time::Instant::now() + rig::PATIENCE;
    while retained().await.iter().filter(|status| status.state == CloudState::Offline).count() < 3 {
        assert!(std::time::Instant::now() < until, "no wills");
    }
    let cloud = start("new", &dirs[1]);
    cloud.connected().await;
    while retained().await.iter().any(|status| status.state == CloudState::Offline) {
        assert!(std::time::Instant::now() < until, "the old ones stay");
    }
    assert_eq!(cloud.stop(), Some(0));
    assert_eq!(retained().await, []);
}

#[tokio::test]
async fn a_stopped_cloud_says_offline_and_a_killed_one_has_it_said() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let broker = Broker::Mosquitto(mosquitto);
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&broker, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    let status = device.cloud_is(CloudState::Online).await;
    assert_eq!((status.wire, status.accept), ((1..=hedge_proto::WIRE_VERSION).collect(), None));
    assert!(status.payload_bytes_max.is_some_and(|bytes| bytes > 10 << 20));
    assert_eq!(cloud.stop(), Some(0));
    device.cloud_is(CloudState::Offline).await;
    let cloud = Cloud::start(&broker, dir.path());
    device.cloud_is(CloudState::Online).await;
    cloud.kill();
    device.cloud_is(CloudState::Offline).await;
}

#[tokio::test]
async fn the_cloud_finds_its_broker_again_after_a_restart() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let addr = mosquitto.addr;
    let broker = Broker::Mosquitto(mosquitto);
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&broker, dir.path());
    Device::connect("hall-1", addr).await.cloud_is(CloudState::Online).await;
    drop(broker);
    let _mosquitto = Mosquitto::start_on(addr);
    let mut device = Device::connect("hall-1", addr).await;
    device.cloud_is(CloudState::Online).await;
    device.send(device.case(0, b"picture")).await;
    assert_eq!(device.hears().await, rig::received(device.id(0)));
    cloud.figure("answered", 1).await;
}

#[tokio::test]
async fn two_instances_share_the_cases_of_a_fleet() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let broker = Broker::Mosquitto(mosquitto);
    let dirs = [TempDir::new().expect("a directory"), TempDir::new().expect("a directory")];
    let clouds = ["a", "b"].map(|name| {
        let dir = &dirs[usize::from(name == "b")];
        Cloud::start_with(&broker, dir.path(), &["--answer-with", "shoes=boot", "--instance", name])
    });
    // Who came later would not be given what was sent before.
    for cloud in &clouds {
        cloud.connected().await;
    }
    let mut device = Device::connect("hall-1", clouds[0].broker).await;
    device.cloud_is(CloudState::Online).await;
    let mut open: BTreeSet<CaseId> = (0..20).map(|n| device.id(n)).collect();
    for n in 0..20 {
        device.send(device.case(n, b"picture")).await;
    }
    while !open.is_empty() {
        if let DownMessage::Verdict(verdict) = device.hears().await {
            assert!(open.remove(&verdict.id), "{} was answered twice", verdict.id);
        }
    }
    let mut taken = Vec::new();
    for cloud in &clouds {
        taken.push(cloud.get("/api/figures").await["cases"].as_u64().expect("a number"));
    }
    assert_eq!(taken.iter().sum::<u64>(), 20, "{taken:?}");
    assert!(taken.iter().all(|cases| *cases > 0), "{taken:?}");
}
