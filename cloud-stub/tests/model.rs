//! What a real model answers. Needs ONNX Runtime: name its library in `ORT_DYLIB_PATH`.
#![allow(clippy::print_stdout, reason = "a skipped test says so")]

mod rig;

use std::path::{Path, PathBuf};

use hedge_proto::{CloudState, DownMessage};
use rig::{Broker, Cloud, Device, label};
use tempfile::TempDir;

fn bundle() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fashion-large")
}

#[tokio::test]
async fn the_fashion_model_names_its_golden_samples_and_survives_what_is_no_picture() {
    if std::env::var_os("ORT_DYLIB_PATH").is_none() {
        println!("skipped: ORT_DYLIB_PATH does not name ONNX Runtime's library");
        return;
    }
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start_with(&Broker::Embedded, dir.path(), &["--model", bundle().to_str().expect("text")]);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    let golden = [("test-0.png", "Ankle boot"), ("test-1.png", "Pullover"), ("test-2.png", "Trouser")];
    for (n, (file, expected)) in (0..).zip(golden) {
        let picture = std::fs::read(bundle().join("golden").join(file)).expect("a golden sample");
        let mut case = device.case(n, &picture);
        case.task = "fashion".to_owned();
        device.send(case).await;
        assert!(matches!(device.hears().await, DownMessage::Received { .. }));
        let id = device.id(n);
        assert_eq!(label(device.hears().await, &id), expected);
    }
    let hopeless: [(&str, &[u8]); 4] = [
        ("image/png", b"no picture"),
        ("image/jpeg", b"\xff\xd8\xff\xe0 cut off"),
        ("application/vnd.hedge.tensor; dtype=f32; shape=1,2", &[0; 8]),
        ("text/plain", b"words"),
    ];
    for (n, (content_type, payload)) in (10..).zip(hopeless) {
        let mut case = device.case(n, payload);
        case.task = "fashion".to_owned();
        case.content_type = content_type.to_owned();
        device.send(case).await;
        assert!(matches!(device.hears().await, DownMessage::Received { .. }));
        let answer = device.hears().await;
        assert!(
            matches!(&answer, DownMessage::Dead { id, reason } if *id == device.id(n) && !reason.is_empty()),
            "{answer:?}"
        );
    }
    cloud.figure("answered", 3).await;
    cloud.figure("dead", 4).await;
}
