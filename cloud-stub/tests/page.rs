//! What the dashboard and its API show.

mod rig;

use hedge_proto::{
    CloudState, DeviceState, DeviceStatus, LinkState, ModelRef, QueueFigures, SampleFigures, Telemetry, Topic, to_json,
};
use rig::{Broker, Cloud, Device, PATIENCE};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader};
use tokio::net::TcpStream;
use tokio::time::timeout;

async fn cloud_and_device(dir: &TempDir) -> (Cloud, Device) {
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    (cloud, device)
}

fn status(state: DeviceState, connection: u64) -> DeviceStatus {
    let models = vec![ModelRef { name: "small".to_owned(), version: "1".to_owned() }];
    DeviceStatus {
        state,
        connection,
        version: Some("0.1.0".to_owned()),
        wire: vec![1],
        models,
        faults: Default::default(),
    }
}

fn telemetry(link: LinkState) -> Telemetry {
    Telemetry {
        link_reason: "all is well".to_owned(),
        uptime_s: 60,
        samples: SampleFigures { answered: 100, kept: 90, deferred: 10, ..SampleFigures::default() },
        queue: QueueFigures { waiting: 3, ..QueueFigures::default() },
        ..Telemetry::new(link)
    }
}

async fn device_becomes(cloud: &Cloud, field: &str, wanted: &str) {
    let until = std::time::Instant::now() + PATIENCE;
    loop {
        let devices = cloud.get("/api/devices").await;
        if devices[0][field] == wanted {
            return;
        }
        assert!(std::time::Instant::now() < until, "{field} is not {wanted}: {devices}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn an_offline_older_than_the_last_online_is_ignored() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let topic = Topic::UpStatus(device.name.clone());
    device.publish(&topic, to_json(&status(DeviceState::Online, 5)), true).await;
    device_becomes(&cloud, "state", "online").await;
    device.publish(&topic, to_json(&status(DeviceState::Offline, 4)), true).await;
    let degraded = Topic::UpTelemetry(device.name.clone());
    device.publish(&degraded, to_json(&telemetry(LinkState::Degraded)), false).await;
    // The stale offline came before the telemetry, so it has been judged by now.
    device_becomes(&cloud, "state", "degraded").await;
    device.publish(&topic, to_json(&status(DeviceState::Offline, 5)), true).await;
    device_becomes(&cloud, "state", "offline").await;
    device.publish(&topic, to_json(&status(DeviceState::Online, 6)), true).await;
    device_becomes(&cloud, "state", "degraded").await;
    let shown = cloud.get("/api/devices").await;
    assert_eq!(shown[0]["telemetry"]["queue"]["waiting"], 3);
    assert_eq!(shown[0]["connection"], 6);
}

#[tokio::test]
async fn a_case_is_shown_with_both_answers_and_its_payload() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    device.send(device.case(0, b"\x89PNG not really")).await;
    let mut agreeing = device.case(1, b"numbers");
    agreeing.content_type = "application/vnd.hedge.tensor; dtype=f32; shape=1,2".to_owned();
    agreeing.scores.swap(0, 1);
    device.send(agreeing).await;
    cloud.figure("answered", 2).await;

    let cases = cloud.get("/api/cases?limit=10").await;
    assert_eq!(cases.as_array().map(Vec::len), Some(2));
    let (newest, oldest) = (&cases[0], &cases[1]);
    assert_eq!((&newest["agrees"], &newest["picture"]), (&true.into(), &false.into()));
    assert_eq!((&oldest["agrees"], &oldest["picture"]), (&false.into(), &true.into()));
    assert_eq!(oldest["local"][0]["label"], "sandal");
    assert_eq!(oldest["verdict"]["result"]["classify"]["label"], "boot");
    assert_eq!(cloud.get(&format!("/api/cases/{}", device.id(0))).await, *oldest);
    assert_eq!(cloud.get("/api/cases?device=other").await, serde_json::json!([]));

    let (code, head, body) = cloud.get_raw(&format!("/api/cases/{}/payload", device.id(0))).await;
    assert_eq!((code, body.as_slice()), (200, &b"\x89PNG not really"[..]));
    assert!(head.contains("content-type: image/png") && head.contains("nosniff"), "{head}");
    let (_, head, _) = cloud.get_raw(&format!("/api/cases/{}/payload", device.id(1))).await;
    assert!(head.contains("application/octet-stream") && head.contains("attachment"), "{head}");
    for (path, code) in [("/api/cases/nonsense", 400), ("/api/cases/d.0000000000000001.1", 404), ("/nowhere", 404)] {
        assert_eq!(cloud.get_raw(path).await.0, code, "{path}");
    }
}

#[tokio::test]
async fn what_a_device_calls_html_is_never_served_as_html() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let mut case = device.case(0, b"<script>alert(1)</script>");
    case.content_type = "text/html".to_owned();
    device.send(case).await;
    cloud.figure("cases", 1).await;
    let (_, head, _) = cloud.get_raw(&format!("/api/cases/{}/payload", device.id(0))).await;
    assert!(head.contains("octet-stream") && head.contains("sandbox") && !head.contains("text/html"), "{head}");
}

#[tokio::test]
async fn the_page_needs_nothing_from_elsewhere_and_never_writes_markup() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, _device) = cloud_and_device(&dir).await;
    for path in ["/", "/page.css", "/page.js"] {
        let (code, head, body) = cloud.get_raw(path).await;
        let text = String::from_utf8(body).expect("text");
        assert_eq!(code, 200, "{path}");
        assert!(head.contains("default-src 'none'"), "{head}");
        for foreign in ["http://", "https://", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval("] {
            assert!(!text.contains(foreign), "{path} contains {foreign}");
        }
    }
    assert_eq!(cloud.get_raw("/healthz").await.0, 200);
}

#[tokio::test]
async fn an_open_page_is_told_of_a_case_by_itself() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let mut stream = TcpStream::connect(cloud.dashboard).await.expect("a connection");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: x\r\n\r\n").await.expect("written");
    let mut lines = BufReader::new(stream).lines();
    let mut line_with = async |what: &str| loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect(what).expect("text").expect("more");
        if line.contains(what) {
            return line;
        }
    };
    line_with("\"cases\":0").await;
    device.send(device.case(0, b"picture")).await;
    let told = line_with("\"answered\":1").await;
    assert!(told.contains("\"disagreed\":1"), "{told}");
    line_with(&device.id(0).to_string()).await;
}
