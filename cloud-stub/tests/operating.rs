//! Devices are changed and commanded from the page, one by one and many in stages.

mod rig;

use rig::double::{Double, Manner};
use rig::{Broker, Cloud};
use serde_json::{Value, json};
use tempfile::TempDir;

async fn hall_becomes(cloud: &Cloud, field: &str, wanted: impl Into<Value>) {
    let wanted = wanted.into();
    cloud.until("/api/devices", |devices| devices[0][field] == wanted).await;
}

/// A cloud, and a device that takes what it is told in this manner, known to it.
async fn cloud_and_double(dir: &TempDir, manner: Manner) -> (Cloud, Double) {
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let double = Double::connect("hall", cloud.broker, manner).await;
    hall_becomes(&cloud, "in_force", 0).await;
    (cloud, double)
}

const SETTINGS: &str = "/api/devices/hall/settings";
const COMMANDS: &str = "/api/devices/hall/commands";

#[tokio::test]
async fn a_change_made_on_the_page_is_in_force_and_in_the_history_with_what_was_before() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, mut hall) = cloud_and_double(&dir, Manner::Obliging).await;
    let (status, report) = cloud.post(SETTINGS, json!({"edits": {"log.level": "info"}, "by": "ann"})).await;
    assert_eq!((status, &report["outcome"], &report["version"]), (200, &json!("applied"), &json!(1)), "{report}");
    let (_, report) =
        cloud.post(SETTINGS, json!({"edits": {"log.level": null, "model.\"a.b\".threshold.score_min": 0.7}})).await;
    assert_eq!(report["outcome"], "applied", "{report}");
    hall.wanted().await;
    let wanted = hall.wanted().await;
    assert_eq!(wanted.settings, json!({"model": {"a.b": {"threshold": {"score_min": 0.7}}}}));
    assert_eq!(wanted.by.as_deref(), Some("page@cloud-1"));

    hall_becomes(&cloud, "in_force", 2).await;
    let page = cloud.get("/api/devices/hall").await;
    assert_eq!(page["reported"]["settings"], wanted.settings);
    assert_eq!((&page["differences"], &page["look_only"]), (&json!([]), &json!(null)));
    let kinds: Vec<_> = page["history"].as_array().expect("a list").iter().map(|event| event["kind"].clone()).collect();
    assert_eq!(kinds, ["reported", "desired", "reported", "desired", "reported"]);
    assert_eq!(
        page["history"][1]["changes"],
        json!([
            {"field": "log.level", "before": "info", "after": null},
            {"field": "model.\"a.b\".threshold.score_min", "before": null, "after": 0.7},
        ])
    );
    assert_eq!(
        (&page["history"][3]["document"]["by"], &page["history"][2]["document"]["last"]["outcome"]),
        (&json!("ann"), &json!("applied"))
    );
}

#[tokio::test]
async fn a_wrong_field_is_named_and_nothing_is_sent() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, mut hall) = cloud_and_double(&dir, Manner::Obliging).await;
    for (request, status, field) in [
        (
            json!({"edits": {"model.a.threshold.score_min": 1.5, "log.level": "info"}}),
            422,
            "model.a.threshold.score_min",
        ),
        (json!({"edits": {"log.levle": "info"}}), 422, "log.levle"),
        (json!({"edits": {"broker.password_file": "/etc/shadow"}}), 422, "broker.password_file"),
        (json!({"edits": {"log..level": "info"}}), 422, "log..level"),
        (json!({"edits": {}}), 422, "edits"),
        (json!({"whole": {"telemetry": {"interval_s": 0}}}), 422, "telemetry.interval_s"),
    ] {
        let (code, report) = cloud.post(SETTINGS, request.clone()).await;
        assert_eq!(
            (code, &report["outcome"], &report["errors"][0]["field"]),
            (status, &json!("refused"), &json!(field)),
            "{request}"
        );
    }
    for (path, request, status, part) in [
        (SETTINGS, json!({"whole": []}), 400, "object"),
        (SETTINGS, json!({}), 400, "either"),
        (SETTINGS, json!({"edits": {}, "whole": {}}), 400, "either"),
        (SETTINGS, json!({"edit": {}}), 400, "edit"),
        (SETTINGS, json!({"edits": {"log.level": "info"}, "by": "x".repeat(200)}), 400, "by"),
        (COMMANDS, json!({"command": "pong"}), 400, "pong"),
        (COMMANDS, json!({"command": "snapshot"}), 400, "source"),
        (COMMANDS, json!({"command": "ping", "id": ""}), 400, "id"),
        ("/api/devices/nobody/settings", json!({"edits": {"log.level": "info"}}), 404, "nobody"),
        ("/api/devices/no%20name/settings", json!({"edits": {"log.level": "info"}}), 400, "no name"),
    ] {
        let (code, error) = cloud.post(path, request.clone()).await;
        assert!(
            code == status && error["error"].as_str().is_some_and(|text| text.contains(part)),
            "{request}: {code} {error}"
        );
    }
    let (host, origin) = (cloud.dashboard.to_string(), format!("http://{}", cloud.dashboard));
    let headers = [("Host", host.as_str()), ("Origin", &origin), ("Hedge-Operate", "yes")];
    assert_eq!(cloud.raw(&format!("POST {SETTINGS}"), &headers, &" ".repeat(200_000)).await.0, 413);
    assert!(hall.heard_nothing());
}

#[tokio::test]
async fn pages_of_elsewhere_change_nothing_and_see_nothing() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, mut hall) = cloud_and_double(&dir, Manner::Obliging).await;
    let ours = cloud.dashboard.to_string();
    let rebound = format!("evil.example:{}", cloud.dashboard.port());
    let from = |host: &str| format!("http://{host}");
    let (settings, command) =
        (json!({"edits": {"log.level": "info"}}).to_string(), json!({"command": "restart"}).to_string());
    for (host, origin, header, status) in [
        (rebound.as_str(), from(&rebound), true, 421),
        (&ours, from("evil.example"), true, 403),
        (&ours, from(&format!("localhost:{}", cloud.dashboard.port())), true, 403),
        (&ours, "null".to_owned(), true, 403),
        (&ours, String::new(), true, 403),
        (&ours, from(&ours), false, 403),
    ] {
        for (path, body) in [(SETTINGS, &settings), (COMMANDS, &command)] {
            let mut headers = vec![("Host", host), ("Content-Type", "application/json")];
            headers.extend((!origin.is_empty()).then_some(("Origin", origin.as_str())));
            headers.extend(header.then_some(("Hedge-Operate", "yes")));
            let (code, _, said) = cloud.raw(&format!("POST {path}"), &headers, body).await;
            assert_eq!(code, status, "{path} of {host} from {origin}: {}", String::from_utf8_lossy(&said));
        }
    }
    // No page is told that it may give the header.
    let headers =
        [("Host", ours.as_str()), ("Origin", "http://evil.example"), ("Access-Control-Request-Method", "POST")];
    let (code, head, _) = cloud.raw(&format!("OPTIONS {SETTINGS}"), &headers, "").await;
    assert!(code != 200 && !head.contains("access-control-allow"), "{code} {head}");
    for path in ["/api/devices/hall", "/api/cases", "/events"] {
        assert_eq!(cloud.raw(&format!("GET {path}"), &[("Host", &rebound)], "").await.0, 421, "{path}");
    }
    assert_eq!(cloud.raw("GET /healthz", &[("Host", &rebound)], "").await.0, 200);
    assert!(hall.heard_nothing());
}

#[tokio::test]
async fn a_page_that_only_looks_changes_nothing_and_one_behind_a_proxy_goes_by_its_name() {
    let dir = TempDir::new().expect("a directory");
    for (args, host, status) in
        [(&["--look-only"][..], "", 403), (&["--page-name", "hedge.example"], "hedge.example", 404)]
    {
        let cloud = Cloud::start_with(&Broker::Embedded, dir.path(), args);
        let host = if host.is_empty() { cloud.dashboard.to_string() } else { host.to_owned() };
        let origin = format!("https://{host}");
        let headers = [("Host", host.as_str()), ("Origin", &origin), ("Hedge-Operate", "yes")];
        let (code, _, said) =
            cloud.raw(&format!("POST {SETTINGS}"), &headers, r#"{"edits": {"log.level": "info"}}"#).await;
        // Let in, it is about a device that nobody knows.
        assert_eq!(code, status, "{args:?}: {}", String::from_utf8_lossy(&said));
    }
}

#[tokio::test]
async fn a_document_written_on_an_older_one_is_refused() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, mut hall) = cloud_and_double(&dir, Manner::Obliging).await;
    let whole = |level: &str, based_on: u64| json!({"whole": {"log": {"level": level}}, "based_on": based_on});
    let (status, report) = cloud.post(SETTINGS, whole("info", 0)).await;
    assert_eq!((status, &report["outcome"]), (200, &json!("applied")), "{report}");
    let (status, error) = cloud.post(SETTINGS, whole("warn", 0)).await;
    assert!(status == 409 && error["error"].as_str().is_some_and(|text| text.contains("version 1")), "{error}");
    assert_eq!(cloud.post(SETTINGS, whole("warn", 1)).await.1["version"], 2);
    assert_eq!((hall.wanted().await.version, hall.wanted().await.version), (1, 2));
}

#[tokio::test]
async fn refusals_trials_and_replies_are_shown_as_the_device_says_them() {
    let dir = TempDir::new().expect("a directory");
    let (cloud, _hall) = cloud_and_double(&dir, Manner::Stubborn).await;
    let _anxious = Double::connect("anxious", cloud.broker, Manner::Anxious).await;
    let (status, report) = cloud.post(SETTINGS, json!({"edits": {"log.level": "info"}})).await;
    assert_eq!(
        (status, &report["outcome"], &report["errors"][0]["field"]),
        (200, &json!("refused"), &json!("log.level"))
    );
    let (_, report) = cloud
        .post(
            "/api/devices/anxious/settings",
            json!({"edits": {"broker.url": "mqtt://nowhere"}, "confirm": "operator"}),
        )
        .await;
    assert_eq!(report["outcome"], "on_trial", "{report}");
    let (status, reply) = cloud.post(COMMANDS, json!({"command": "drain", "by": "bob"})).await;
    assert_eq!((status, &reply["outcome"], &reply["reason"]), (200, &json!("refused"), &json!("not today")));
    assert_eq!(reply["result"]["by"], "bob");
    let (_, reply) = cloud
        .post("/api/devices/anxious/commands", json!({"command": "pause", "args": {"source": "porch"}, "id": "mine"}))
        .await;
    assert_eq!(
        (&reply["outcome"], &reply["id"], &reply["result"]["args"]["source"]),
        (&json!("done"), &json!("mine"), &json!("porch"))
    );
    // The device's word goes to whoever asked and to the page by two ways.
    cloud.until("/api/devices/hall", |device| device["differences"][0]["field"] == "log.level").await;
    let schema = cloud.get("/api/settings-schema").await;
    assert_eq!(schema["title"], "Settings");
}

/// How the newest change in stages is, once this holds of it.
async fn rollout(cloud: &Cloud, holds: impl Fn(&Value) -> bool) -> Value {
    cloud.until("/api/rollouts", |all| holds(&all[0])).await[0].clone()
}

#[tokio::test]
async fn a_change_goes_out_in_stages_from_the_page_stops_at_the_first_refusal_and_goes_on() {
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let mut doubles = Vec::new();
    for n in 0..4 {
        let manner = if n == 3 { Manner::Stubborn } else { Manner::Obliging };
        doubles.push(Double::connect(&format!("hall-{n}"), cloud.broker, manner).await);
    }
    cloud.until("/api/devices", |devices| devices.as_array().is_some_and(|all| all.len() == 4)).await;
    let ask = |edits: Value, devices: Option<usize>| {
        let wanted = json!({"where": "name=hall-*", "edits": edits, "stages": "25,100", "settle_s": 0});
        json!({"wanted": wanted, "devices": devices, "by": "ann"})
    };
    let level = json!({"log.level": "warn"});
    for (request, status, part) in [
        (ask(json!({"log.levle": "warn"}), None), 422, "log.levle"),
        (ask(level.clone(), Some(3)), 409, "4 of them now"),
        (json!({"wanted": {"where": "colour=red", "edits": level}}), 400, "colour"),
        (json!({"wanted": {"where": "name=nobody", "edits": level}}), 400, "no device"),
        (json!({"wanted": {"edits": level, "stages": "50"}}), 400, "ends with 100"),
        (json!({"wanted": {"edits": level, "stage": "100"}}), 400, "stage"),
    ] {
        let (code, said) = cloud.post("/api/rollouts", request.clone()).await;
        assert!(code == status && said.to_string().contains(part), "{request}: {code} {said}");
    }
    let (_, looked) = cloud.post("/api/rollouts", ask(level.clone(), None)).await;
    assert_eq!(looked, json!({"devices": 4, "stages": [1, 3], "away": 0}));
    assert!(doubles.iter_mut().all(Double::heard_nothing), "only looked");

    // One that everybody takes.
    let (_, begun) = cloud.post("/api/rollouts", ask(json!({"telemetry.interval_s": 9}), Some(4))).await;
    assert_eq!((&begun["state"], &begun["by"]), (&json!("running"), &json!("ann")), "{begun}");
    let done = rollout(&cloud, |one| one["state"] == "done").await;
    assert_eq!(
        (&done["outcomes"], &done["stage"], &done["devices"]),
        (&json!({"applied": 4}), &json!(2), &json!([1, 3]))
    );
    let (code, said) =
        cloud.post(&format!("/api/rollouts/{}/resume", begun["id"].as_str().expect("an id")), json!({})).await;
    assert!(code == 409 && said["error"].as_str().is_some_and(|text| text.contains("already")), "{said}");

    // And one that `hall-3` refuses, in whichever stage it is.
    let (_, begun) = cloud.post("/api/rollouts", ask(level, Some(4))).await;
    let stopped = rollout(&cloud, |one| one["id"] == begun["id"] && one["state"] == "stopped").await;
    assert!(stopped["why"].as_str().is_some_and(|why| why.starts_with("not all devices have taken it")), "{stopped}");
    let trouble = &stopped["troubles"][0];
    assert_eq!((&trouble["device"], &trouble["outcome"]), (&json!("hall-3"), &json!("refused")), "{stopped}");
    assert!(trouble["why"].as_str().is_some_and(|why| why.contains("I like mine")), "{stopped}");

    // It is all there after a start, and goes on for those who have not taken it yet.
    cloud.stop();
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let kept = rollout(&cloud, |one| one["id"] == begun["id"]).await;
    assert_eq!(kept, stopped);
    let (code, again) =
        cloud.post(&format!("/api/rollouts/{}/resume", begun["id"].as_str().expect("an id")), json!({})).await;
    assert_eq!((code, &again["by"]), (200, &json!("page@cloud-1")), "{again}");
    rollout(&cloud, |one| one["state"] != "running").await;
}

#[tokio::test]
async fn a_change_in_stages_stops_when_it_is_told_to_and_when_the_program_ends() {
    let dir = TempDir::new().expect("a directory");
    let mosquitto = rig::Mosquitto::start();
    let broker = mosquitto.map_or(Broker::Embedded, Broker::Mosquitto);
    let cloud = Cloud::start(&broker, dir.path());
    let mut doubles = Vec::new();
    for n in 0..2 {
        doubles.push(Double::connect(&format!("hall-{n}"), cloud.broker, Manner::Obliging).await);
    }
    cloud.until("/api/devices", |devices| devices.as_array().is_some_and(|all| all.len() == 2)).await;
    let slow = json!({"wanted": {"edits": {"log.level": "warn"}, "stages": "50,100", "settle_s": 3600}, "devices": 2});
    let (code, begun) = cloud.post("/api/rollouts", slow.clone()).await;
    assert_eq!(code, 200, "{begun}");
    rollout(&cloud, |one| one["watching"] == true && one["outcomes"]["applied"] == 1).await;
    let (code, said) = cloud.post("/api/rollouts", slow).await;
    assert!(code == 409 && said["error"].as_str().is_some_and(|text| text.contains("under way")), "{said}");
    let path = format!("/api/rollouts/{}", begun["id"].as_str().expect("an id"));
    assert_eq!(cloud.post(&format!("{path}/stop"), json!({})).await.0, 200);
    let stopped = rollout(&cloud, |one| one["state"] == "stopped").await;
    assert!(stopped["why"].as_str().is_some_and(|why| why.contains("page@cloud-1 has stopped it")), "{stopped}");
    assert_eq!(cloud.post(&format!("{path}/stop"), json!({})).await.0, 409);

    // The device that has it already is not sent it again.
    assert_eq!(cloud.post(&format!("{path}/resume"), json!({})).await.0, 200);
    rollout(&cloud, |one| one["had_it"] == 1 && one["watching"] == true).await;
    // How far it is goes to the disk behind what is shown.
    let saved = || serde_json::from_slice::<Value>(&std::fs::read(dir.path().join("rollouts-cloud-1.json")).ok()?).ok();
    cloud.until("/api/rollouts", |_| saved().is_some_and(|all| all[0]["stage"] == 1 && all[0]["had_it"] == 1)).await;
    cloud.kill();
    let cloud = Cloud::start(&broker, dir.path());
    let after = rollout(&cloud, |one| one["state"] == "stopped").await;
    assert!(after["why"].as_str().is_some_and(|why| why.contains("ended while this was under way")), "{after}");
    assert_eq!((&after["stage"], &after["devices"]), (&json!(1), &json!([1, 1])));
    let runs = cloud.get("/api/runs").await;
    assert_eq!(runs["models"], json!([{"name": "photo-small", "version": "2", "devices": 2}]), "{runs}");
}
