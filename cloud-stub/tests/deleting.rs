//! Cases that somebody wants gone are gone: from the records, and from what their device still has.

mod rig;

use std::process::Command;

use hedge_proto::{CommandMessage, Topic, Topics};
use rig::double::{Double, Manner};
use rig::{Broker, Cloud, Device};
use serde_json::json;
use tempfile::TempDir;

async fn cloud_with_cases(dir: &TempDir, args: &[&str]) -> (Cloud, Device, Double) {
    let cloud = Cloud::start_with(&Broker::Embedded, dir.path(), args);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(hedge_proto::CloudState::Online).await;
    let double = Double::connect("hall-1", cloud.broker, Manner::Obliging).await;
    for n in 0..3 {
        device.send(device.case(n, b"picture")).await;
    }
    cloud.figure("cases", 3).await;
    (cloud, device, double)
}

/// What the device is told to do first.
async fn command(double: &mut Double) -> CommandMessage {
    let topic = Topics::new("").expect("topics").text(&Topic::DownCommand(double.name.clone()));
    loop {
        let publish = double.hears().await;
        if publish.topic == topic {
            return CommandMessage::read(&publish.payload).expect("a command");
        }
    }
}

#[tokio::test]
async fn a_case_is_deleted_only_by_the_number_that_was_told_and_its_device_forgets_it_too() {
    let dir = TempDir::new().unwrap();
    let (cloud, device, mut double) = cloud_with_cases(&dir, &["--answer-with", "shoes=boot"]).await;
    cloud.figure("answered", 3).await;
    for all in ["/api/delete", "/api/delete?order=newest"] {
        assert_eq!(cloud.post(all, json!({"cases": 3})).await.0, 400, "nothing named is not everything");
    }
    let some = "/api/delete?label=boot&device=hall-1";
    let (status, found) = cloud.post(some, json!({})).await;
    assert_eq!((status, &found["cases"], &found["devices"]), (200, &json!(3), &json!(1)), "{found}");
    assert!(found["deleted"].is_null(), "{found}");
    let (status, said) = cloud.post(some, json!({"cases": 2})).await;
    assert_eq!(status, 409, "{said}");
    assert_eq!(cloud.get("/api/cases").await.as_array().unwrap().len(), 3);

    let one = format!("/api/cases/{}", device.id(1));
    assert_eq!(cloud.post(&format!("{one}/delete"), json!({"cases": 1})).await.1["deleted"], 1);
    let told = command(&mut double).await;
    assert_eq!((told.command.as_str(), &told.args["ids"]), ("forget", &json!([device.id(1)])));
    for gone in [&one, &format!("{one}/payload"), &format!("{one}/preview")] {
        assert_eq!(cloud.get_raw(gone).await.0, 404, "{gone}");
    }
    let (_, done) = cloud.post(some, json!({"cases": 2})).await;
    assert_eq!((&done["deleted"], &done["told"][0]["outcome"]), (&json!(2), &json!("done")), "{done}");
    assert_eq!(cloud.get("/api/cases").await, json!([]));
    cloud.figure("payload_bytes", 0).await;
    // The device still works, and what was counted stays counted.
    device.send(device.case(7, b"picture")).await;
    cloud.figure("answered", 4).await;
}

#[tokio::test]
async fn cases_that_wait_give_their_places_back_and_a_whole_device_forgets_everything() {
    let dir = TempDir::new().unwrap();
    let (cloud, device, mut double) = cloud_with_cases(&dir, &[]).await;
    cloud.figure("waiting", 3).await;
    let mut delete = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
    delete.args(["delete", "--device", "hall-1", "--url", &format!("http://{}", cloud.dashboard)]);
    let said = tokio::task::spawn_blocking(move || {
        let looked = delete.output().unwrap();
        (looked, delete.arg("--yes").output().unwrap())
    });
    let (looked, done) = said.await.unwrap();
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
    assert_eq!(text(looked.stdout), "3 cases of 1 device; with --yes they are deleted\n");
    let done = text(done.stdout);
    assert!(done.starts_with("3 cases deleted\nhall-1: done"), "{done}");
    assert_eq!(command(&mut double).await.args, json!({"all": true}));
    cloud.figure("waiting", 0).await;
    // They would come again if their device still had them: there is room.
    for n in 0..3 {
        device.send(device.case(n, b"picture")).await;
    }
    cloud.figure("waiting", 3).await;
    let acts = cloud.get("/api/audit").await;
    let detail = acts[0]["detail"].as_str().unwrap();
    assert!(acts[0]["act"] == "delete" && detail.starts_with("device=hall-1 "), "{acts}");
    assert!(detail.ends_with(": 3 deleted"), "{acts}");
}
