//! What answerers elsewhere do, and what becomes of the cases: servers that answer well, wrongly, slowly, or not at all.
#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "tests may panic, and say what they measured")]

mod rig;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use hedge_proto::{Authority, CloudState, DownMessage};
use rig::backend::{Answer, Asked, Backend, answer};
use rig::{Broker, Cloud, Device, label, received};
use serde_json::{Value, json};
use tempfile::TempDir;

const S: fn(u64) -> Duration = Duration::from_secs;

fn start(dir: &Path, broker: &Broker, config: &str) -> Cloud {
    let file = dir.join("cloud.toml");
    std::fs::write(&file, config).unwrap();
    Cloud::start_with(broker, &dir.join("state"), &["--config", file.to_str().unwrap()])
}

fn chat(name: &str, backend: &Backend, more: &str) -> String {
    format!(
        "[[answerer]]\nname = \"{name}\"\nkind = \"chat\"\ntask = \"{name}\"\nurl = \"http://{}/{name}\"\n\
         model = \"m\"\nlabels = [\"cat\", \"dog\"]\n{more}\n",
        backend.addr
    )
}

fn completion(content: &str) -> Value {
    json!({"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}}]})
}

fn said(content: &str) -> Answer {
    answer(200, "Content-Type: application/json\r\n", completion(content).to_string())
}

fn message(finish_reason: &str, message: Value) -> Answer {
    answer(200, "", json!({"choices": [{"finish_reason": finish_reason, "message": message}]}).to_string())
}

const CAT: &str = r#"{"label": "cat"}"#;

/// What becomes of one case.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Meaning {
    Verdict,
    None,
}

/// How a server answers the `n`th time it is shown a picture.
type Fails = fn(usize) -> Answer;

const FIXTURES: [(&str, Meaning, Fails); 20] = [
    ("well", Meaning::Verdict, |_| said(CAT)),
    ("words-around", Meaning::Verdict, |_| said("Of course!\n```json\n{\"label\": \"cat\"}\n```")),
    ("reasoned", Meaning::None, |_| message("stop", json!({"content": "", "reasoning_content": CAT}))),
    ("refused", Meaning::None, |_| message("stop", json!({"content": null, "refusal": "I cannot look at this"}))),
    ("filtered", Meaning::None, |_| message("content_filter", json!({"content": CAT}))),
    ("too-long", Meaning::None, |_| message("length", json!({"content": CAT}))),
    ("none-of-the-list", Meaning::None, |_| said(r#"{"label": "cow"}"#)),
    ("two-labels", Meaning::None, |_| said("{\"label\": \"cat\"} {\"label\": \"dog\"}")),
    ("policy", Meaning::None, |_| answer(400, "", r#"{"error": {"code": "content_policy_violation"}}"#)),
    ("bad-request", Meaning::Verdict, |n| if n == 0 { answer(400, "", "no such field") } else { said(CAT) }),
    ("no-key", Meaning::Verdict, |n| if n == 0 { answer(401, "", "who are you") } else { said(CAT) }),
    ("retry-after", Meaning::Verdict, |n| if n == 0 { answer(429, "Retry-After: 4\r\n", "") } else { said(CAT) }),
    ("too-many", Meaning::Verdict, |n| if n == 0 { answer(429, "", "") } else { said(CAT) }),
    ("unavailable", Meaning::Verdict, |n| if n == 0 { answer(503, "Retry-After: 4\r\n", "") } else { said(CAT) }),
    ("long-excuse", Meaning::Verdict, |n| {
        if n == 0 { answer(503, "Retry-After: 4\r\n", " ".repeat(2 << 20)) } else { said(CAT) }
    }),
    ("too-much", Meaning::Verdict, |n| if n == 0 { answer(200, "", " ".repeat(2 << 20)) } else { said(CAT) }),
    ("busy", Meaning::Verdict, |n| {
        if n == 0 { answer(500, "", "server busy, maximum pending requests exceeded") } else { said(CAT) }
    }),
    ("slow", Meaning::Verdict, |n| said(CAT).after(S(if n == 0 { 5 } else { 0 }))),
    ("cut-once", Meaning::Verdict, |n| if n == 0 { said(CAT).cut() } else { said(CAT) }),
    ("cut-always", Meaning::None, |_| said(CAT).cut()),
];

fn shows_picture(asked: &Asked) -> bool {
    asked.body.windows(9).any(|nine| nine == b"image_url")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_way_a_chat_server_fails_means_one_thing_and_none_is_a_wrong_verdict() {
    let shown = std::sync::Mutex::new(std::collections::BTreeMap::<String, usize>::new());
    let backend = Backend::start(move |asked| {
        if !shows_picture(asked) {
            // It warms up.
            return said(CAT);
        }
        let (name, _, fails) = FIXTURES.iter().find(|(name, ..)| asked.path.starts_with(&format!("/{name}/"))).unwrap();
        let mut shown = shown.lock().unwrap();
        let nth = shown.entry((*name).to_owned()).or_default();
        *nth += 1;
        fails(*nth - 1)
    })
    .await;
    let config: String = FIXTURES.iter().map(|(name, ..)| chat(name, &backend, "deadline_ms = 1000")).collect();
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Embedded);
    let cloud = start(dir.path(), &broker, &config);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    for (n, (name, ..)) in (0..).zip(FIXTURES) {
        let mut case = device.case(n, name.as_bytes());
        case.task = name.to_owned();
        device.send(case).await;
    }
    let mut open: Vec<u64> = (0..FIXTURES.len() as u64).collect();
    while !open.is_empty() {
        let (id, meaning) = match device.hears().await {
            DownMessage::Received { .. } => continue,
            DownMessage::Verdict(verdict) => {
                assert_eq!((verdict.said.headline().as_str(), verdict.authority), ("cat", Authority::Model));
                (verdict.id, Meaning::Verdict)
            }
            DownMessage::Dead { id, .. } => (id, Meaning::None),
            other => panic!("{other:?}"),
        };
        let (name, expected, _) = FIXTURES[usize::try_from(id.key.sequence).unwrap()];
        assert_eq!(meaning, expected, "{name}");
        open.retain(|n| *n != id.key.sequence);
    }
    for name in ["retry-after", "unavailable", "long-excuse"] {
        let asked = backend.asked(&format!("/{name}/chat/completions"));
        let refused = asked.iter().position(shows_picture).unwrap();
        let waited = asked[refused + 1].at.duration_since(asked[refused].at);
        assert!(waited >= S(4), "{name} was asked again after {waited:?}");
    }
    let asked = backend.asked("/well/chat/completions");
    let request: Value =
        serde_json::from_slice(&asked.iter().find(|asked| shows_picture(asked)).unwrap().body).unwrap();
    assert_eq!(
        request["response_format"]["json_schema"]["schema"]["properties"]["label"]["enum"],
        json!(["cat", "dog"])
    );
    assert_eq!(request["messages"][0]["content"][1]["image_url"]["url"], "data:image/png;base64,d2VsbA==");
    assert_eq!(
        asked.iter().filter(|asked| shows_picture(asked)).count(),
        1,
        "an answered case is not asked about again"
    );
}

fn http(name: &str, task: &str, addr: std::net::SocketAddr, more: &str) -> String {
    format!(
        "[[answerer]]\nname = \"{name}\"\nkind = \"http\"\ntask = \"{task}\"\nurl = \"http://{addr}/{name}\"\n\
         label = \"result.0.name\"\nscore = \"result.0.p\"\n{more}\n"
    )
}

fn boot(_: &Asked) -> Answer {
    answer(200, "", r#"{"result": [{"name": "boot", "p": 0.75}]}"#)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_answer_that_no_device_reads_is_none_and_the_next_is_asked() {
    let long = |_: &Asked| answer(200, "", json!({"result": [{"name": "b".repeat(3000), "p": 0.75}]}).to_string());
    let (first, second) = (Backend::start(long).await, Backend::start(boot).await);
    let config = http("long", "shoes", first.addr, "") + &http("boot", "shoes", second.addr, "");
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Embedded);
    let cloud = start(dir.path(), &broker, &config);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    device.send(device.case(0, b"picture")).await;
    assert_eq!(device.hears().await, received(device.id(0)));
    assert_eq!(label(device.hears().await, &device.id(0)), "boot");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_answerer_is_asked_about_many_cases_at_once() {
    const CASES: u64 = 320;
    let backend = Backend::start(|asked| boot(asked).after(Duration::from_millis(300))).await;
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Embedded);
    let cloud = start(dir.path(), &broker, &http("far", "shoes", backend.addr, "concurrency = 32"));
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    device.send(device.case(0, b"first")).await;
    while !matches!(device.hears().await, DownMessage::Verdict(_)) {}
    let begun = Instant::now();
    for n in 1..=CASES {
        device.send(device.case(n, b"picture")).await;
    }
    let mut answered = 0;
    while answered < CASES {
        answered += u64::from(matches!(device.hears().await, DownMessage::Verdict(_)));
    }
    println!("{:.1} cases/s of {:.1} possible", CASES as f64 / begun.elapsed().as_secs_f64(), 32.0 / 0.3);
    assert_eq!(backend.most_under_way(), 32);
    // One at a time they take 96 s, 32 at a time 3 s.
    assert!(begun.elapsed() < S(12), "{:?}", begun.elapsed());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backend_that_is_down_loses_nothing_is_not_hammered_and_devices_are_told() {
    let mut addr = rig::own_addr();
    addr.set_port(8000);
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Embedded);
    let cloud = start(dir.path(), &broker, &http("far", "shoes", addr, "concurrency = 4"));
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    for n in 0..3 {
        device.send(device.case(n, b"picture")).await;
        assert_eq!(device.hears().await, received(device.id(n)));
    }
    device.clouds_before(|status| status.accept == Some(0.0)).await;
    // Devices may be told before the first question has come back: nobody has answered since the start.
    cloud.until("/api/answerers", |all| all[0]["state"] == "down").await;
    let shown = cloud.get("/api/answerers").await;
    assert_eq!(shown[0]["name"], "far");
    assert!(shown[0]["why"].as_str().unwrap().starts_with("it cannot be reached"), "{shown}");
    device.ask(vec![device.id(0)]).await;
    assert_eq!(device.hears().await, received(device.id(0)));

    let backend = Backend::start_on(addr, boot).await;
    device.clouds_before(|status| status.accept.is_none()).await;
    for _ in 0..3 {
        assert!(matches!(device.hears().await, DownMessage::Verdict(_)));
    }
    let (calls, down) = (backend.asked("/far").len(), Instant::now());
    assert_eq!(calls, 4, "a question and three cases");
    // It goes away under load, and comes back.
    drop(backend);
    for n in 3..6 {
        device.send(device.case(n, b"picture")).await;
        assert_eq!(device.hears().await, received(device.id(n)));
    }
    let backend = Backend::start_on(addr, boot).await;
    for _ in 3..6 {
        assert!(matches!(device.hears().await, DownMessage::Verdict(_)));
    }
    let questions = backend.asked("/far").iter().filter(|asked| asked.method == "GET").count();
    assert!(questions <= 1 + usize::try_from(down.elapsed().as_secs()).unwrap(), "{questions} questions");
    cloud.figure("answered", 6).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_months_money_is_never_exceeded_also_across_kills_and_then_the_next_takes_over() {
    let backend = Backend::start(|asked| match asked.path.as_str() {
        "/dear" if asked.method == "POST" => boot(asked).after(Duration::from_millis(300)),
        _ => answer(200, "", r#"{"result": [{"name": "sandal", "p": 0.5}]}"#),
    })
    .await;
    let dear = http("dear", "shoes", backend.addr, "concurrency = 2\nprice = 0.01");
    let config = format!("[money]\nmonth_max = 0.07\n{dear}{}", http("free", "shoes", backend.addr, ""));
    let (dir, broker) = (
        TempDir::new().unwrap(),
        Broker::Mosquitto(match rig::Mosquitto::start() {
            Some(mosquitto) => mosquitto,
            None => return,
        }),
    );
    let calls = || backend.asked("/dear").iter().filter(|asked| asked.method == "POST").count();
    let is_spent = |answerers: &Value| answerers[0]["state"] == "no_money";
    let mut device = None;
    let mut sent = 0;
    for round in 1..=3 {
        let cloud = start(dir.path(), &broker, &config);
        if device.is_none() {
            let mut new = Device::connect("hall-1", cloud.broker).await;
            new.cloud_is(CloudState::Online).await;
            device = Some(new);
        }
        cloud.connected().await;
        let device = device.as_ref().unwrap();
        // What a call costs is on record before it is made: a kill in between has spent it for nothing.
        cloud.until("/api/answerers", |all| all[0]["state"] == "up" || is_spent(all)).await;
        for _ in 0..4 {
            device.send(device.case(sent, b"picture")).await;
            sent += 1;
        }
        cloud.figure("cases", sent).await;
        cloud.until("/api/answerers", |all| calls() >= round * 2 || is_spent(all)).await;
        cloud.kill();
    }
    let cloud = start(dir.path(), &broker, &config);
    cloud.figure("waiting", 0).await;
    cloud.figure("answered", sent).await;
    assert!(calls() <= 7, "{} calls of 0.01 under a ceiling of 0.07", calls());
    let shown = cloud.get("/api/answerers").await;
    assert_eq!((&shown[0]["name"], &shown[0]["state"]), (&json!("dear"), &json!("no_money")), "{shown}");
    let metrics = String::from_utf8(cloud.get_raw("/metrics").await.2).unwrap();
    assert!(metrics.contains("hedge_cloud_spent_this_month_max 0.07"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_person_answers_from_the_review_queue_however_long_it_takes() {
    let config =
        "[[answerer]]\nname = \"people\"\nkind = \"person\"\ntask = \"shoes\"\nlabels = [\"boot\", \"sandal\"]\n";
    let Some(mosquitto) = rig::Mosquitto::start() else { return };
    let (dir, broker) = (TempDir::new().unwrap(), Broker::Mosquitto(mosquitto));
    let cloud = start(dir.path(), &broker, config);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    device.send(device.case(0, b"picture")).await;
    assert_eq!(device.hears().await, received(device.id(0)));
    let id = device.id(0).to_string();
    let waits = |waiting: &Value| waiting[0]["id"] == id.as_str();
    cloud.until("/api/review", waits).await;
    cloud.kill();
    let cloud = start(dir.path(), &broker, config);
    cloud.connected().await;
    cloud.until("/api/review", waits).await;
    device.ask(vec![device.id(0)]).await;
    assert_eq!(device.hears().await, received(device.id(0)), "asked about, it is still received");
    let path = format!("/api/review/{}", device.id(0));
    let (status, why) = cloud.post(&path, json!({"label": "shoe"})).await;
    assert_eq!((status, why["error"].as_str()), (422, Some("`shoe` is none of the labels: boot, sandal")));
    let place = json!({"left": 0, "top": 0, "width": 1, "height": 1});
    let (status, why) = cloud.post(&path, json!({"found": [{"label": "boot", "score": 5, "place": place}]})).await;
    assert_eq!((status, why["error"].as_str()), (422, Some("no device reads this answer: a score is not from 0 to 1")));
    let (status, why) = cloud.post(&path, json!({"found": [{"label": "boot", "score": 1, "place": place}]})).await;
    let why = why["error"].as_str().unwrap_or_default();
    assert!(status == 422 && why.contains("with boxes, and the device's model with labels"), "{status} {why}");
    let (status, done) = cloud.post(&path, json!({"label": "boot", "by": "ann"})).await;
    assert_eq!((status, &done["outcome"]), (200, &json!("answered")), "{done}");
    let DownMessage::Verdict(verdict) = device.hears().await else { panic!("no verdict") };
    assert_eq!((verdict.authority, verdict.model.name.as_str()), (Authority::Person, "ann"));
    assert_eq!(label(DownMessage::Verdict(verdict), &device.id(0)), "boot");
    let (status, _) = cloud.post(&path, json!({"label": "sandal", "by": "bob", "seen": 0})).await;
    assert_eq!(status, 409, "a second word on what somebody else has answered is not taken");
    assert_eq!(cloud.get("/api/review").await, json!([]));
}

/// As a server of the protocol: ready, with the bundle's model, and sure of the class `7`.
fn served(asked: &Asked, logits: &str) -> Answer {
    let json = "Content-Type: application/json\r\n";
    match asked.path.as_str() {
        "/v2/models/fashion/ready" => answer(200, json, "{}"),
        "/v2/models/fashion" => answer(
            200,
            json,
            json!({
                "name": "fashion", "platform": "x",
                "inputs": [{"name": "input", "datatype": "FP32", "shape": [-1, 1, 28, 28]}],
                "outputs": [{"name": "logits", "datatype": "FP32", "shape": [-1, 10]}],
            })
            .to_string(),
        ),
        _ => answer(
            200,
            json,
            format!(
                r#"{{"outputs": [{{"name": "logits", "datatype": "FP32", "shape": [1, 10], "data": [{logits}]}}]}}"#
            ),
        ),
    }
}

fn large() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/fashion-large")
}

/// A cloud that asks this server, by this bundle, about the one case that a device has sent.
async fn with_a_case(backend: &Backend, bundle: &Path) -> (TempDir, Cloud, Device) {
    let config = format!(
        "[[answerer]]\nname = \"far\"\nkind = \"open_inference\"\nbundle = {bundle:?}\nurl = \"http://{}\"\nmodel = \"fashion\"\nconcurrency = 4\n",
        backend.addr
    );
    let dir = TempDir::new().unwrap();
    let cloud = start(dir.path(), &Broker::Embedded, &config);
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    let mut case = device.case(0, &std::fs::read(large().join("golden/test-0.png")).unwrap());
    case.task = "fashion".to_owned();
    device.send(case).await;
    assert_eq!(device.hears().await, received(device.id(0)));
    (dir, cloud, device)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inference_server_that_loads_answers_half_or_restarts_is_waited_for() {
    const LOGITS: &str = "0, 0, 0, 0, 0, 0, 0, 9, 0, 0";
    // What it says of everything is no golden sample's label, so its bundle has none.
    let large = large();
    let bundle = TempDir::new().unwrap();
    let manifest = std::fs::read_to_string(large.join("manifest.toml")).unwrap();
    let (manifest, _) = manifest.split_once("[[golden]]").unwrap();
    std::fs::write(bundle.path().join("manifest.toml"), manifest).unwrap();
    for file in ["labels.txt", "fp32.onnx"] {
        std::fs::copy(large.join(file), bundle.path().join(file)).unwrap();
    }
    let backend = Backend::start(|asked| match (asked.path.as_str(), asked.nth) {
        // It loads its model, and has another one loaded at first.
        ("/v2/models/fashion/ready", 0) => answer(400, "", "model not ready"),
        ("/v2/models/fashion", 0) => {
            answer(200, "", r#"{"inputs": [{"name": "other", "datatype": "FP32"}], "outputs": []}"#)
        }
        ("/v2/models/fashion/infer", 0) => served(asked, "0, 1"),
        ("/v2/models/fashion/infer", 1) => served(asked, LOGITS).cut(),
        ("/v2/models/fashion/infer", 2) => answer(503, "", "restarting"),
        _ => served(asked, LOGITS),
    })
    .await;
    let (_dir, cloud, mut device) = with_a_case(&backend, bundle.path()).await;
    assert_eq!(label(device.hears().await, &device.id(0)), "Sneaker");
    let request: Value = serde_json::from_slice(&backend.asked("/v2/models/fashion/infer")[0].body).unwrap();
    assert_eq!(request["inputs"][0]["shape"], json!([1, 1, 28, 28]));
    assert_eq!(request["inputs"][0]["data"].as_array().map(Vec::len), Some(28 * 28));
    assert_eq!(backend.asked("/v2/models/fashion/infer").len(), 4);
    cloud.figure("waiting", 0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_inference_server_with_another_model_of_the_same_shape_answers_no_case() {
    let backend = Backend::start(|asked| served(asked, "0, 0, 0, 0, 0, 0, 0, 9, 0, 0")).await;
    let (_dir, cloud, device) = with_a_case(&backend, &large()).await;
    let tells = |answerers: &Value| answerers.to_string().contains("test-1.png is Sneaker");
    cloud.until("/api/answerers", tells).await;
    let asked_of = device.id(0).to_string();
    let inferred = backend.asked("/v2/models/fashion/infer");
    assert!(
        inferred.iter().all(|asked| !String::from_utf8_lossy(&asked.body).contains(&asked_of)),
        "it was given a case"
    );
    cloud.figure("waiting", 1).await;
}
