//! Overload is a state: it is waited out, and nothing that arrived is lost over it.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic, and say what they measured")]

mod rig;

use std::path::Path;
use std::time::{Duration, Instant};

use hedge_proto::{CloudState, DeviceId, DeviceState, DeviceStatus, DownMessage, Topic, to_json};
use rig::{Broker, Cloud, Device, Mosquitto, PATIENCE};
use rumqttc::{PublishOptions, QoS};
use tempfile::TempDir;
use tokio::task::JoinSet;

/// A fleet that comes back at once, each with what it has kept. Together far more than the intake holds.
const DEVICES: usize = 250;
const CASES: u64 = 40;

/// None of them sends anything twice, so each case that was dropped on its way would never be answered.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fleet_that_comes_back_at_once_is_answered_without_sending_anything_twice() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Mosquitto(mosquitto));
    let cloud = Cloud::start(&broker, dir.path());
    cloud.connected().await;
    let mut devices = Vec::new();
    for n in 0..DEVICES {
        let mut device = Device::connect(&format!("device-{n}"), cloud.broker).await;
        device.cloud_is(CloudState::Online).await;
        devices.push(device);
    }
    let (begun, mut fleet) = (Instant::now(), JoinSet::new());
    for mut device in devices {
        fleet.spawn(async move {
            for n in 0..CASES {
                device.throw(device.case(n, &[7; 1024])).await;
            }
            let mut answered = std::collections::BTreeSet::new();
            while answered.len() < usize::try_from(CASES).unwrap() {
                match device.hears().await {
                    DownMessage::Verdict(verdict) => assert!(answered.insert(verdict.id), "answered twice"),
                    DownMessage::Received { .. } => {}
                    other => panic!("{} is told {other:?}", device.name),
                }
            }
        });
    }
    while let Some(ended) = fleet.join_next().await {
        ended.unwrap();
    }
    let cases = DEVICES as u64 * CASES;
    println!("{cases} cases of {DEVICES} devices in {:?}", begun.elapsed());
    for (figure, count) in [("cases", cases), ("answered", cases), ("waiting", 0), ("repeated", 0), ("busy", 0)] {
        cloud.figure(figure, count).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(120), "{:?}", begun.elapsed());
}

/// Far more than mosquitto's queue, as it comes, and the cloud's window hold together.
const KEPT: usize = 10_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fresh_cloud_knows_every_device_that_an_ordinary_broker_keeps() {
    if !Path::new(rig::MOSQUITTO).exists() {
        eprintln!("skipped: mosquitto is not installed (apt-get install mosquitto)");
        return;
    }
    let broker = Broker::Mosquitto(Mosquitto::start_with(rig::own_addr(), ""));
    let Broker::Mosquitto(mosquitto) = &broker else { unreachable!() };
    let speaker = Device::connect("speaker", mosquitto.addr).await;
    let status = to_json(&DeviceStatus { state: DeviceState::Online, ..DeviceStatus::offline(1) });
    for n in 1..KEPT {
        let topic = speaker.topics.text(&Topic::UpStatus(DeviceId::new(&format!("device-{n}")).unwrap()));
        let options = PublishOptions::new(QoS::AtLeastOnce).retained();
        speaker.client.publish(topic, status.clone(), options).await.unwrap();
    }
    // The broker has them all once it has the last.
    speaker.publish(&Topic::UpStatus(speaker.name.clone()), status, true).await;
    let (dir, begun) = (TempDir::new().unwrap(), Instant::now());
    let cloud = Cloud::start(&broker, dir.path());
    let until = begun + 2 * PATIENCE;
    loop {
        let known = cloud.get("/api/devices").await.as_array().unwrap().len();
        if known == KEPT {
            break;
        }
        assert!(Instant::now() < until, "it knows {known} of {KEPT} devices");
        tokio::time::sleep(Duration::from_millis(250)).await;
    }
    println!("{KEPT} devices known after {:?}", begun.elapsed());
}
