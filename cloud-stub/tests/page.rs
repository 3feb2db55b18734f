//! What the dashboard and its API show.

mod rig;

use std::process::Command;

use hedge_proto::{
    Case, CloudState, DeviceState, DeviceStatus, LinkState, ModelRef, Output, PayloadForm, QueueFigures, Rect,
    SampleFigures, Telemetry, Topic, to_json,
};
use rig::{Broker, Cloud, Device, PATIENCE};
use serde_json::{Value, json};
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
        window_every_s: None,
        link: None,
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

async fn device_becomes(cloud: &Cloud, field: &str, wanted: impl Into<Value>) {
    let wanted = wanted.into();
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
async fn what_is_wrong_with_a_device_is_shown_until_it_is_well_again() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let topic = Topic::UpStatus(device.name.clone());
    let faults = [("disk".to_owned(), "it is mounted read-only".to_owned())].into();
    let ill = DeviceStatus { faults, ..status(DeviceState::Online, 5) };
    device.publish(&topic, to_json(&ill), true).await;
    device_becomes(&cloud, "faults", json!({"disk": "it is mounted read-only"})).await;
    device.publish(&topic, to_json(&status(DeviceState::Online, 5)), true).await;
    device_becomes(&cloud, "faults", json!({})).await;
}

#[tokio::test]
async fn a_case_is_shown_with_both_answers_and_its_payload() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    device.send(device.case(0, b"\x89PNG not really")).await;
    let mut agreeing = device.case(1, b"numbers");
    agreeing.content_type = "application/vnd.hedge.tensor; dtype=f32; shape=1,2".to_owned();
    if let Some(Output::Classes(scores)) = &mut agreeing.said {
        scores.swap(0, 1);
    }
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
    let scripts = ["/page.js", "/parts.js", "/who.js", "/delete.js", "/device.js", "/editor.js", "/commands.js"];
    let of_fleet = ["/fleet.js", "/bundles.js", "/trend.js", "/saved.js"];
    let of_cases = ["/cases.js", "/case.js", "/case-parts.js", "/boxes.js", "/sought.js"];
    let scripts = scripts.into_iter().chain(of_cases).chain(of_fleet);
    let pages = [
        "/",
        "/devices/hall-1",
        "/cases",
        "/fleet",
        "/cases/hall-1.0000000000000007.0",
        "/page.css",
        "/device.css",
        "/cases.css",
        "/fleet.css",
    ];
    for path in pages.into_iter().chain(scripts) {
        let (code, head, body) = cloud.get_raw(path).await;
        let text = String::from_utf8(body).expect("text");
        assert_eq!(code, 200, "{path}");
        assert!(head.contains("default-src 'none'"), "{head}");
        for foreign in
            ["http://", "https://", "innerHTML", "outerHTML", "insertAdjacent", "document.write", "eval(", "style="]
        {
            assert!(!text.contains(foreign), "{path} contains {foreign}");
        }
    }
    assert_eq!(cloud.get_raw("/healthz").await.0, 200);
}

#[tokio::test]
async fn half_requests_leave_the_cloud_its_broker_and_others_the_page() {
    let Some(mosquitto) = rig::Mosquitto::start() else { return };
    let (dir, addr) = (TempDir::new().expect("a directory"), mosquitto.addr);
    let broker = rig::Broker::Mosquitto(mosquitto);
    let cloud = rig::Cloud::start_with_files(256, &broker, dir.path());
    cloud.connected().await;
    let mut held = Vec::new();
    for _ in 0..400 {
        let mut stream = TcpStream::connect(cloud.dashboard).await.expect("a connection");
        drop(stream.write_all(b"GET / HTTP/1.1\r\nHost:").await);
        held.push(stream);
    }
    drop(broker);
    let mosquitto = rig::Mosquitto::start_on(addr);
    // It keeps nothing, so this status is a new one.
    let mut device = rig::Device::connect("hall", mosquitto.addr).await;
    device.cloud_is(hedge_proto::CloudState::Online).await;
    assert_eq!(cloud.get_raw("/").await.0, 200);
    drop(held);
}

#[tokio::test]
async fn an_open_page_is_told_of_a_case_by_itself() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let mut stream = TcpStream::connect(cloud.dashboard).await.expect("a connection");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let mut lines = BufReader::new(stream).lines();
    let mut line_with = async |what: &str| loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect(what).expect("text").expect("more");
        if line.contains(what) {
            return line;
        }
    };
    line_with("\"cases\":0").await;
    device.send(device.case(0, b"picture")).await;
    // Its answer is in both lists, in whichever order they are told.
    let (mut counted, mut shown) = (false, false);
    while !(counted && shown) {
        let told = line_with("data: ").await;
        if told.contains("\"answered\":1") {
            assert!(told.contains("\"disagreed\":1"), "{told}");
            counted = true;
        }
        shown |= told.contains(&device.id(0).to_string()) && told.contains("\"verdict\":{");
    }
}

#[tokio::test]
async fn a_page_that_stays_open_hears_only_what_is_new() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    device.send(device.case(0, b"picture")).await;
    cloud.figure("answered", 1).await;
    let mut stream = TcpStream::connect(cloud.dashboard).await.expect("a connection");
    stream.write_all(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n").await.expect("written");
    let mut lines = BufReader::new(stream).lines();
    let mut event = async |name: &str| loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect(name).expect("text").expect("more");
        if line == format!("event: {name}") {
            return lines.next_line().await.expect("text").expect("more");
        }
    };
    assert!(event("cases").await.contains(&device.id(0).to_string()));
    device.send(device.case(1, b"picture")).await;
    loop {
        let told = event("changed_cases").await;
        assert!(!told.contains(&device.id(0).to_string()), "{told}");
        if told.contains(&device.id(1).to_string()) && told.contains("\"verdict\":{") {
            return;
        }
    }
}

#[tokio::test]
async fn a_fleet_is_listed_in_parts_and_what_is_wrong_comes_first() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let fault = [("disk".to_owned(), "it is full".to_owned())].into();
    let others = [
        ("yard-1", status(DeviceState::Offline, 1)),
        ("yard-2", DeviceStatus { faults: fault, ..status(DeviceState::Online, 1) }),
    ];
    device.publish(&Topic::UpStatus(device.name.clone()), to_json(&status(DeviceState::Online, 1)), true).await;
    for (name, status) in others {
        let other = Device::connect(name, cloud.broker).await;
        other.publish(&Topic::UpStatus(other.name.clone()), to_json(&status), true).await;
    }
    for (how, count) in [("fleet/with_faults", 1), ("fleet/offline", 1), ("fleet/online", 2)] {
        cloud.figure(how, count).await;
    }
    let listed = async |query: &str| {
        let (code, head, body) = cloud.get_raw(&format!("/api/devices?{query}")).await;
        assert_eq!(code, 200);
        let devices: Vec<Value> = serde_json::from_slice(&body).expect("a list");
        let count = head.lines().find_map(|line| line.strip_prefix("hedge-count: ")).expect("a count").to_owned();
        let names: Vec<String> = devices.iter().map(|one| one["device"].as_str().expect("a name").to_owned()).collect();
        (names.join(" "), count)
    };
    assert_eq!(listed("order=trouble").await, ("yard-1 yard-2 hall-1".to_owned(), "3".to_owned()));
    assert_eq!(listed("order=trouble&offset=1&limit=1").await, ("yard-2".to_owned(), "3".to_owned()));
    assert_eq!(listed("where=name=yard-*,link=online").await, ("yard-2".to_owned(), "1".to_owned()));
    for (query, part) in [("where=link=up", "link is one of"), ("order=size", "name or trouble")] {
        let (code, _, body) = cloud.get_raw(&format!("/api/devices?{query}")).await;
        assert!(code == 400 && String::from_utf8_lossy(&body).contains(part), "{query}");
    }
}

#[tokio::test]
async fn bundles_on_the_shelf_are_told_with_who_signed_and_runs_them_and_a_change_is_in_the_history() {
    let dir = TempDir::new().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    let bundle = |args: &[&str]| {
        let mut bundle = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
        let done = bundle.arg("bundle").args(args).current_dir(dir.path()).output().unwrap();
        assert!(done.status.success(), "{args:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    let small = concat!(env!("CARGO_MANIFEST_DIR"), "/../models/fashion-small");
    bundle(&["key", "owner"]);
    bundle(&["key", "release"]);
    bundle(&["root", "--to", "shelf", "--root-key", "owner.pub", "--release-key", "release.pub", "--key", "owner.key"]);
    bundle(&["pack", small, "packed"]);
    bundle(&["sign", "packed", "--key", "release.key"]);
    bundle(&["publish", "packed", "--to", "shelf", "--key", "release.key"]);
    let listen = rig::own_addr().to_string();
    let args = ["--payload-listen", &listen, "--bundles", &at("shelf")];
    let cloud = Cloud::start_with(&Broker::Embedded, dir.path(), &args);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    let tell = async |version: &str, connection| {
        let models = vec![ModelRef { name: "fashion-small".to_owned(), version: version.to_owned() }];
        let status = DeviceStatus { models, ..status(DeviceState::Online, connection) };
        device.publish(&Topic::UpStatus(device.name.clone()), to_json(&status), true).await;
    };
    tell("0", 1).await;
    device_becomes(&cloud, "state", "online").await;
    let shelf = cloud.get("/api/bundles").await;
    let (one, devices) = (&shelf["bundles"][0], &shelf["devices"][0]);
    assert_eq!((&one["name"], &one["version"], &devices["run"]), (&json!("fashion-small"), &json!("1"), &json!(0)));
    let key = hedge_proto::Digest::of(&std::fs::read(at("release.pub")).unwrap()).to_string();
    assert_eq!(one["signed_by"], json!([key[..12]]), "{shelf}");

    // It takes what is on the shelf, and then the signature there is no longer what the list says.
    tell("1", 2).await;
    let page = cloud.until("/api/devices/hall-1", |page| page["history"][0]["kind"] == "bundle").await;
    let change = json!({"bundle": "fashion-small", "from": "0", "to": "1"});
    assert_eq!(page["history"][0]["document"], change, "{page}");
    std::fs::write(at("shelf/fashion-small/1/model.sig"), "{}").unwrap();
    let shelf = cloud.get("/api/bundles").await;
    assert_eq!(shelf["devices"][0]["run"], 1, "{shelf}");
    assert!(shelf["bundles"][0]["wrong"].as_str().is_some_and(|why| why.contains("list says")), "{shelf}");
}

#[tokio::test]
async fn a_list_of_cases_costs_a_few_kilobytes_a_picture() {
    let photo: &[u8] = include_bytes!("../../models/photo-small/golden/rocket.jpg");
    let dir = TempDir::new().expect("a directory");
    let (cloud, device) = cloud_and_device(&dir).await;
    let mut case = device.case(0, photo);
    case.content_type = "image/jpeg".to_owned();
    device.send(case).await;
    device.send(device.case(1, b"\x89PNG not really")).await;
    let mut numbers = device.case(2, b"numbers");
    numbers.content_type = "application/vnd.hedge.tensor; dtype=f32; shape=1,2".to_owned();
    device.send(numbers).await;
    cloud.figure("cases", 3).await;
    for _ in 0..2 {
        let (code, head, body) = cloud.get_raw(&format!("/api/cases/{}/preview", device.id(0))).await;
        assert!(code == 200 && head.contains("content-type: image/jpeg") && head.contains("immutable"), "{head}");
        assert!(body.starts_with(&[0xff, 0xd8]) && body.len() <= 8 << 10, "{} of {} bytes", body.len(), photo.len());
    }
    // What is small goes as it came, and the browser says what it thinks of it.
    assert_eq!(cloud.get_raw(&format!("/api/cases/{}/preview", device.id(1))).await.2, b"\x89PNG not really");
    let (code, _, body) = cloud.get_raw(&format!("/api/cases/{}/preview", device.id(2))).await;
    assert!(code == 404 && String::from_utf8_lossy(&body).contains("no picture"));
}

#[tokio::test]
async fn a_person_may_correct_a_case_that_is_closed() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, mut device) = cloud_and_device(&dir).await;
    device.send(device.case(0, b"\x89PNG not really")).await;
    cloud.figure("disagreed", 1).await;
    for _ in 0..2 {
        device.hears().await;
    }
    let path = format!("/api/review/{}", device.id(0));
    let word = json!({"label": "sandal", "by": "ann", "seen": 1});
    for _ in 0..2 {
        assert_eq!(cloud.post(&path, word.clone()).await.0, 200, "a click that came twice is one");
    }
    let hedge_proto::DownMessage::Verdict(verdict) = device.hears().await else { panic!("no verdict") };
    assert_eq!((verdict.revision, verdict.authority), (2, hedge_proto::Authority::Person));
    let figures = cloud.get("/api/figures").await;
    assert_eq!((&figures["answered"], &figures["agreed"], &figures["disagreed"]), (&json!(1), &json!(1), &json!(0)));
    assert_eq!(cloud.get("/api/devices").await[0]["agreed"], 1);
    let (status, why) = cloud.post(&path, json!({"label": "boot", "by": "bob", "seen": 1})).await;
    assert_eq!(status, 409, "{why}");
    assert_eq!(cloud.post(&path, json!({"label": "boot", "by": "bob", "seen": 2})).await.0, 200);
    let words = cloud.get(&format!("/api/cases/{}/words", device.id(0))).await;
    assert_eq!((&words[1]["model"]["name"], &words[2]["model"]["name"]), (&json!("ann"), &json!("bob")));
    let (status, why) = cloud.post("/api/review/hall-1.0000000000000007.9", json!({"label": "boot"})).await;
    assert_eq!(status, 409, "{why}");
    let found = cloud.get("/api/cases?label=boot&authority=person&order=disagreement").await;
    assert_eq!(found.as_array().map(Vec::len), Some(1));
    for query in ["authority=anna", "after=x", "colour=red"] {
        assert_eq!(cloud.get_raw(&format!("/api/cases?{query}")).await.0, 400, "{query}");
    }
}

/// The upper right quarter.
const VIEW: Rect = Rect { left: 0.5, top: 0.0, width: 0.5, height: 0.5 };

#[tokio::test]
async fn an_export_has_each_answered_picture_once_and_no_device_in_both_halves() {
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    cloud.connected().await;
    let mut cases = 0;
    for n in 0..12 {
        let device = Device::connect(&format!("hall-{n}"), cloud.broker).await;
        for sequence in 0..3 {
            let case = device.case(sequence, format!("\x7fPNG not really {n} {sequence}").as_bytes());
            let form = if sequence == 2 { PayloadForm::Crop } else { PayloadForm::Whole };
            device.send(Case { view: (sequence > 0).then_some(VIEW), form, ..case }).await;
            cases += 1;
        }
        let mut numbers = device.case(3, b"numbers");
        numbers.content_type = "application/vnd.hedge.tensor; dtype=f32; shape=1,2".to_owned();
        device.send(numbers).await;
    }
    cloud.figure("answered", cases + 12).await;
    let (code, head, archive) = cloud.get_raw("/api/export?format=csv").await;
    assert_eq!(code, 200, "{head}");
    let unpacked = TempDir::new().expect("a directory");
    let chunks = dechunked(&archive);
    tar::Archive::new(&*chunks).unpack(unpacked.path()).expect("a tar archive");
    let counts: Value =
        serde_json::from_slice(&std::fs::read(unpacked.path().join("counts.json")).expect("counts")).expect("JSON");
    assert_eq!(counts["left_out"], json!({"no_picture": 12}));
    let mut devices = [std::collections::BTreeSet::new(), std::collections::BTreeSet::new()];
    let mut pictures = 0;
    for (half, devices) in ["train", "test"].into_iter().zip(&mut devices) {
        let dir = unpacked.path().join(half);
        let labels = std::fs::read_to_string(dir.join("labels.csv")).expect("both halves have devices");
        let lines: Vec<Vec<&str>> = labels.lines().skip(1).map(|line| line.split(',').collect()).collect();
        assert_eq!(counts[half], lines.len());
        for line in lines {
            let (file, id, device, label) = (line[0], line[1], line[2], line[5]);
            assert_eq!(label, "boot");
            // A label is about a part where the device judged one, and that is not all that came.
            let part = match id.rsplit_once('.') {
                Some((_, "1")) => ("0.5", "whole"),
                Some((_, "2")) => ("", "crop"),
                _ => ("", "whole"),
            };
            assert_eq!((line[7], line[17]), part, "{id}");
            devices.insert(device.to_owned());
            let picture = std::fs::read_to_string(dir.join(file)).expect("its picture");
            let number = device.trim_start_matches("hall-");
            assert!(picture.starts_with(&format!("\x7fPNG not really {number} ")), "{picture}");
            pictures += 1;
        }
    }
    assert_eq!(pictures, cases);
    assert!(devices[0].is_disjoint(&devices[1]), "{devices:?}");
    assert_eq!(devices[0].len() + devices[1].len(), 12);

    for path in ["/api/export?limit=2", "/api/export?colour=red"] {
        assert_eq!(cloud.get_raw(path).await.0, 400, "{path}");
    }

    // The same from the command line, beside the running cloud.
    let file = unpacked.path().join("set.tar");
    let out = std::process::Command::new(env!("CARGO_BIN_EXE_hedge-cloud"))
        .args(["export", "--format", "jsonl", "--device", "hall-0", "--state-dir"])
        .arg(dir.path())
        .arg("--out")
        .arg(&file)
        .output()
        .expect("it runs");
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut set = tar::Archive::new(std::fs::File::open(&file).expect("an archive"));
    let names: Vec<String> = set
        .entries()
        .expect("entries")
        .map(|entry| entry.expect("one").path().expect("a path").display().to_string())
        .collect();
    assert_eq!(names.iter().filter(|name| name.ends_with(".png")).count(), 3, "{names:?}");
    assert_eq!(names.iter().filter(|name| name.ends_with("labels.jsonl")).count(), 1, "{names:?}");
}

/// The body of an answer in chunks.
fn dechunked(mut body: &[u8]) -> Vec<u8> {
    let mut whole = Vec::new();
    loop {
        let head = body.windows(2).position(|two| two == b"\r\n").expect("a chunk's length");
        let length = usize::from_str_radix(std::str::from_utf8(&body[..head]).expect("text"), 16).expect("a length");
        if length == 0 {
            return whole;
        }
        whole.extend(&body[head + 2..head + 2 + length]);
        body = &body[head + 2 + length + 2..];
    }
}
