//! What an operator does with `hedge-cloud device`, over a real broker, to devices that behave well and badly.

mod rig;

use std::net::SocketAddr;
use std::process::Stdio;

use hedge_proto::{Confirm, DOCUMENT_BYTES_MAX, Desired, DeviceId, Topic, Topics, to_json};
use rig::double::{Double, Manner};
use rig::{Broker, Cloud, Mosquitto, PATIENCE};
use rumqttc::{AsyncClient, MqttOptions, PublishOptions, QoS};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::process::Command;
use tokio::time::timeout;

/// What a finished command has said.
struct Said {
    code: i32,
    out: String,
    err: String,
}

impl Said {
    /// Its lines of `--json`, by device.
    fn line(&self, device: &str) -> Value {
        let lines = self.out.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON"));
        lines.into_iter().find(|line| line["device"] == device).unwrap_or_else(|| panic!("{device}: {}", self.out))
    }
}

fn command(broker: SocketAddr, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"));
    command.arg("device").args(args).args(["--broker", &format!("mqtt://{broker}")]);
    command.env("USER", "ann").stdin(Stdio::null()).kill_on_drop(true);
    command
}

async fn device(broker: SocketAddr, args: &[&str]) -> Said {
    let ended = timeout(PATIENCE, command(broker, args).output()).await.expect("it ends").expect("it runs");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    Said { code: ended.status.code().expect("a code"), out: text(ended.stdout), err: text(ended.stderr) }
}

#[tokio::test]
async fn set_changes_what_is_named_and_waits_for_the_devices_word() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let mut hall = Double::connect("hall", mosquitto.addr, Manner::Obliging).await;
    let said =
        device(mosquitto.addr, &["set", "hall", "model.a.threshold.score_min=0.7", "link.profile=metered"]).await;
    assert_eq!((said.code, said.out.as_str()), (0, "hall: applied, version 1\n"), "{}", said.err);
    let first = hall.wanted().await;
    assert!(first.by.as_deref().is_some_and(|who| who.starts_with("ann@")), "{first:?}");
    assert_eq!(
        first.settings,
        json!({"model": {"a": {"threshold": {"score_min": 0.7}}}, "link": {"profile": "metered"}})
    );

    let args = ["set", "hall", "link.profile=", "log.level=info", "--confirm", "operator", "--by", "bob"];
    assert_eq!(device(mosquitto.addr, &args).await.code, 0);
    let second = hall.wanted().await;
    assert_eq!((second.version, second.confirm, second.by.as_deref()), (2, Confirm::Operator, Some("bob")));
    assert_eq!(second.settings, json!({"model": {"a": {"threshold": {"score_min": 0.7}}}, "log": {"level": "info"}}));

    let got = device(mosquitto.addr, &["get", "hall", "model.a.threshold.score_min"]).await;
    assert_eq!((got.code, got.out.as_str()), (0, "0.7\n"));
    let got = device(mosquitto.addr, &["get", "hall", "log.level", "--json"]).await;
    assert_eq!(got.line("hall")["from"], "desired");
    assert_eq!(device(mosquitto.addr, &["get", "hall", "log.levle"]).await.code, 1);
}

#[tokio::test]
async fn a_typo_does_not_reach_the_device() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let mut hall = Double::connect("hall", mosquitto.addr, Manner::Obliging).await;
    let said = device(mosquitto.addr, &["set", "hall", "log.levle=info", "model.a.threshold.score_min=7"]).await;
    assert_eq!(said.code, 1);
    let lines: Vec<_> = said.out.lines().collect();
    assert!(
        lines[1].starts_with("  log.levle: ") && lines[2].starts_with("  model.a.threshold.score_min: "),
        "{lines:?}"
    );
    for (args, part) in [
        (&["command", "hall", "pong"][..], "pong"),
        (&["command", "hall", "explain", "lst=3"], "lst"),
        (&["set", "halll", "log.level=info"], "halll"),
        (&["set", "log.level=info"], "not a device"),
        (&["status"], "no device is named"),
        (&["set", "--where", "link=offline", "log.level=info"], "no device"),
    ] {
        let said = device(mosquitto.addr, args).await;
        assert!(said.code == 3 && said.err.contains(part), "{args:?}: {} {}", said.code, said.err);
    }
    assert!(hall.heard_nothing());
}

#[tokio::test]
async fn a_refusal_names_each_field_and_a_failed_trial_says_why() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let _stubborn = Double::connect("stubborn", mosquitto.addr, Manner::Stubborn).await;
    let _anxious = Double::connect("anxious", mosquitto.addr, Manner::Anxious).await;
    let said = device(mosquitto.addr, &["set", "stubborn", "log.level=info"]).await;
    assert_eq!((said.code, said.out.as_str()), (1, "stubborn: refused, version 1\n  log.level: I like mine\n"));
    let said = device(mosquitto.addr, &["set", "anxious", "broker.url=mqtt://nowhere"]).await;
    assert_eq!((said.code, said.out.as_str()), (1, "anxious: failed, version 1; no cloud\n"));
    assert!(said.err.contains("on trial"), "{}", said.err);
    let diff = device(mosquitto.addr, &["diff", "anxious"]).await;
    assert_eq!(diff.code, 1);
    assert!(diff.out.contains("broker.url: wanted \"mqtt://nowhere\", in force nothing"), "{}", diff.out);
    // The next version is above the one that failed.
    let said = device(mosquitto.addr, &["set", "anxious", "broker.url=", "--json"]).await;
    assert_eq!(said.line("anxious")["version"], 2);
}

#[tokio::test]
async fn of_a_fleet_each_device_is_answered_for() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let _good = Double::connect("good", mosquitto.addr, Manner::Obliging).await;
    let _stubborn = Double::connect("stubborn", mosquitto.addr, Manner::Stubborn).await;
    let mut mute = Double::connect("mute", mosquitto.addr, Manner::Mute).await;
    let mut away = Double::connect("away", mosquitto.addr, Manner::Obliging).await;
    away.leave().await;

    let all = device(mosquitto.addr, &["set", "--all", "log.level=info", "--json", "--timeout", "8"]).await;
    assert_eq!(all.code, 1, "{}", all.out);
    for (name, outcome) in [("good", "applied"), ("stubborn", "refused"), ("mute", "no_answer"), ("away", "offline")] {
        assert_eq!(all.line(name)["outcome"], outcome);
    }
    assert_eq!(mute.wanted().await.version, 1, "it was told all the same");
    let one = device(mosquitto.addr, &["set", "away", "log.level=warn"]).await;
    assert!(one.code == 1 && one.out.contains("when it connects"), "{}", one.out);
    away = Double::connect("away", mosquitto.addr, Manner::Obliging).await;
    assert_eq!(away.wanted().await.version, 2);

    let some = device(mosquitto.addr, &["set", "--where", "link=online,name=g*", "log.level=debug"]).await;
    assert_eq!((some.code, some.out.as_str()), (0, "good: applied, version 2\n"));
    let list = device(mosquitto.addr, &["list", "--where", "model=photo-*"]).await;
    assert_eq!(list.out.lines().count(), 5, "{}", list.out);
    let mixed = device(mosquitto.addr, &["set", "--where", "name=*o*", "telemetry.interval_s=9"]).await;
    // What one of them has refused before does not come along.
    assert!(mixed.code == 0 && mixed.err.contains("2 devices: 2 applied"), "{} {}", mixed.out, mixed.err);
    assert!(mixed.out.contains("version 1 by ann@") && mixed.out.contains("was refused"), "{}", mixed.out);
}

#[tokio::test]
async fn a_command_has_an_id_an_end_and_a_reply() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let mut hall = Double::connect("hall", mosquitto.addr, Manner::Obliging).await;
    let said = device(mosquitto.addr, &["command", "hall", "pause", "source=porch", "--json", "--by", "ann"]).await;
    assert_eq!(said.code, 0, "{} {}", said.out, said.err);
    let reply = said.line("hall");
    assert_eq!(
        (&reply["outcome"], &reply["result"]),
        (&json!("done"), &json!({"args": {"source": "porch"}, "by": "ann"}))
    );
    let came = hall.hears().await;
    let properties = came.properties.expect("properties");
    assert_eq!(properties.response_topic.as_deref(), Some("hedge/v1/hall/up/reply"));
    assert!(properties.message_expiry_interval.is_some_and(|s| (3500..=3600).contains(&s)), "{properties:?}");
    let message: Value = serde_json::from_slice(&came.payload).expect("JSON");
    assert_eq!(message["id"], reply["id"]);
    assert_eq!(properties.correlation_data.as_deref(), message["id"].as_str().map(str::as_bytes));
    assert!(message["issued_ms"].as_u64().is_some() && !came.retain);

    let again = device(mosquitto.addr, &["command", "hall", "ping", "--id", "mine", "--json"]).await;
    assert_eq!(again.line("hall")["id"], "mine");
    let _stubborn = Double::connect("stubborn", mosquitto.addr, Manner::Stubborn).await;
    let refused = device(mosquitto.addr, &["command", "stubborn", "restart"]).await;
    assert!(refused.code == 1 && refused.out.starts_with("stubborn: refused; not today"), "{}", refused.out);
    let nobody = device(mosquitto.addr, &["command", "nobody", "ping"]).await;
    assert!(nobody.code == 1 && nobody.out.contains("no device of this name listens"), "{}", nobody.out);
    let status = device(mosquitto.addr, &["status", "hall"]).await;
    assert!(status.code == 0 && status.out.contains("online, connection 1"), "{}", status.out);
    let status = device(mosquitto.addr, &["status", "hall", "--json"]).await;
    assert_eq!(status.line("hall")["answer"]["outcome"], "done");
}

#[tokio::test]
async fn two_operators_at_once_are_both_told() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let mut mute = Double::connect("mute", mosquitto.addr, Manner::Mute).await;
    let mut first = command(mosquitto.addr, &["set", "mute", "log.level=info", "--json"]);
    let first = first.stdout(Stdio::piped()).spawn().expect("it runs");
    let wanted = mute.wanted().await;
    let rival =
        Desired { version: wanted.version, settings: json!({}), confirm: Confirm::Auto, by: Some("bob".to_owned()) };
    mute.say(&Topic::DownDesired(mute.name.clone()), to_json(&rival)).await;
    let ended = timeout(PATIENCE, first.wait_with_output()).await.expect("it ends").expect("it ran");
    let said: Value = serde_json::from_slice(&ended.stdout).expect("JSON");
    assert_eq!((&said["outcome"], ended.status.code()), (&json!("overtaken"), Some(1)));
    assert!(said["reason"].as_str().is_some_and(|reason| reason.contains("bob")), "{said}");
}

#[tokio::test]
async fn a_file_replaces_all_that_is_wanted() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let mut hall = Double::connect("hall", mosquitto.addr, Manner::Obliging).await;
    let dir = TempDir::new().expect("a directory");
    let file = |name: &str, text: &str| {
        let path = dir.path().join(name);
        std::fs::write(&path, text).expect("written");
        path.to_str().expect("text").to_owned()
    };
    let toml = file("a.toml", "[log]\nlevel = \"info\"\n\n[model.\"photo.v2\".threshold]\nscore_min = 0.5\n");
    let said = device(mosquitto.addr, &["apply", "hall", &toml]).await;
    assert_eq!((said.code, said.out.as_str()), (0, "hall: applied, version 1\n"), "{}", said.err);
    assert_eq!(hall.wanted().await.settings["model"]["photo.v2"]["threshold"]["score_min"], 0.5);
    let json = file("b.json", "{\"telemetry\": {\"interval_s\": 5}}");
    assert_eq!(device(mosquitto.addr, &["apply", "--all", &json]).await.code, 0);
    assert_eq!(hall.wanted().await.settings, json!({"telemetry": {"interval_s": 5}}));
    for (name, text) in [("c.json", "{"), ("d.toml", "= 1"), ("e.json", "[]")] {
        assert_eq!(device(mosquitto.addr, &["apply", "hall", &file(name, text)]).await.code, 3, "{name}");
    }
    assert_eq!(device(mosquitto.addr, &["diff", "--all"]).await.code, 0);
    let new = device(mosquitto.addr, &["apply", "tomorrow", &json, "--new", "--timeout", "1", "--json"]).await;
    assert_eq!(new.line("tomorrow")["outcome"], "no_answer");
    let mut tomorrow = Double::connect("tomorrow", mosquitto.addr, Manner::Obliging).await;
    assert_eq!(tomorrow.wanted().await.version, 1);
}

#[tokio::test]
async fn every_retained_message_is_in_before_anything_is_said() {
    const DEVICES: usize = 400;
    for broker in Broker::all() {
        let dir = TempDir::new().expect("a directory");
        let cloud = Cloud::start(&broker, dir.path());
        let filler =
            AsyncClient::builder(MqttOptions::new("filler", (cloud.broker.ip().to_string(), cloud.broker.port())))
                .capacity(DEVICES);
        let (client, mut events) = filler.build();
        tokio::spawn(async move { while events.poll().await.is_ok() {} });
        let topics = Topics::new("").expect("valid");
        let mut notices = Vec::new();
        for n in 0..DEVICES {
            let desired =
                Desired { version: 7, settings: json!({}), confirm: Confirm::Auto, by: Some("x".repeat(100)) };
            let topic = topics.text(&Topic::DownDesired(DeviceId::new(&format!("d{n}")).expect("valid")));
            let options = PublishOptions::new(QoS::AtLeastOnce).retained();
            notices.push(client.publish_tracked(topic, to_json(&desired), options).await.expect("published"));
        }
        for notice in notices {
            drop(timeout(PATIENCE, notice.wait_async()).await.expect("a PUBACK"));
        }
        let list = device(cloud.broker, &["list", "--json"]).await;
        assert_eq!(list.out.lines().count(), DEVICES, "{}", list.err);
    }
}

#[tokio::test]
async fn garbage_on_a_devices_topics_does_not_lose_its_settings() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let mut hall = Double::connect("hall", mosquitto.addr, Manner::Mute).await;
    let other = Double::connect("other", mosquitto.addr, Manner::Mute).await;
    let garbage =
        [b"{".to_vec(), b"\xff".to_vec(), b"[".repeat(10_000), b"{}".to_vec(), vec![b' '; DOCUMENT_BYTES_MAX + 1]];
    for (n, garbage) in garbage.into_iter().enumerate() {
        other.say(&Topic::DownDesired(hall.name.clone()), garbage).await;
        hall.hears().await;
        let said = device(mosquitto.addr, &["diff", "hall", "--json"]).await;
        assert!(said.code == 1 && said.line("hall")["note"].is_string(), "garbage {n}: {} {}", said.out, said.err);
    }
    let said = device(mosquitto.addr, &["set", "hall", "log.level=info", "--timeout", "1", "--json"]).await;
    assert!(said.line("hall")["note"].is_string(), "{}", said.out);
    assert_eq!(hall.wanted().await.settings, json!({"log": {"level": "info"}}));
}

#[tokio::test]
async fn watch_tells_what_happens_and_goes_on_after_a_cut() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let addr = mosquitto.addr;
    let mut watching = command(addr, &["watch", "hall", "--json"]).stdout(Stdio::piped()).spawn().expect("it runs");
    let mut lines = BufReader::new(watching.stdout.take().expect("its output")).lines();
    let mut line_with = async |what: &str| loop {
        let line = timeout(PATIENCE, lines.next_line()).await.expect(what).expect("text").expect("more");
        if line.contains(what) {
            return line;
        }
    };
    let hall = Double::connect("hall", addr, Manner::Obliging).await;
    line_with("\"what\":\"status\"").await;
    device(addr, &["command", "hall", "ping", "--id", "seen"]).await;
    line_with("\"id\":\"seen\"").await;
    drop((mosquitto, hall));
    let _mosquitto = Mosquitto::start_on(addr);
    let _hall = Double::connect("hall", addr, Manner::Obliging).await;
    line_with("\"retained\":").await;
}

#[tokio::test]
async fn without_a_broker_it_says_so() {
    let nobody = rig::own_addr();
    let said = device(nobody, &["list"]).await;
    assert!(said.code == 3 && said.err.contains(&nobody.to_string()), "{}", said.err);
    assert!(said.out.is_empty());
}

#[tokio::test]
async fn what_was_wanted_and_what_became_of_it_is_on_record() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let dir = TempDir::new().expect("a directory");
    let addr = mosquitto.addr;
    let broker = Broker::Mosquitto(mosquitto);
    let cloud = Cloud::start(&broker, dir.path());
    cloud.connected().await;
    let _hall = Double::connect("hall", addr, Manner::Stubborn).await;
    device(addr, &["set", "hall", "log.level=info", "--by", "ann"]).await;
    device(addr, &["command", "hall", "drain"]).await;
    let state_dir = dir.path().to_str().expect("text");
    let kinds = async || {
        let said = Command::new(env!("CARGO_BIN_EXE_hedge-cloud"))
            .args(["device", "history", "hall", "--json", "--state-dir", state_dir])
            .output();
        let said = timeout(PATIENCE, said).await.expect("it ends").expect("it runs");
        let text = String::from_utf8(said.stdout).expect("text");
        text.lines().map(|line| serde_json::from_str::<Value>(line).expect("JSON")).collect::<Vec<_>>()
    };
    let until = std::time::Instant::now() + PATIENCE;
    let mut events = kinds().await;
    while events.len() < 4 {
        assert!(std::time::Instant::now() < until, "{events:?}");
        events = kinds().await;
    }
    let kinds_seen: Vec<_> = events.iter().map(|event| event["kind"].as_str().expect("a kind")).collect();
    assert_eq!(kinds_seen, ["reported", "desired", "reported", "reply"]);
    assert_eq!(events[1]["document"]["by"], "ann");
    assert_eq!(events[2]["document"]["last"]["errors"][0]["field"], "log.level");
    assert_eq!(events[3]["document"]["outcome"], "refused");
    // It is there after a stop, too, and what comes again at the next connect is not news.
    assert_eq!(cloud.stop(), Some(0));
    assert_eq!(kinds().await.len(), 4);
}

#[test]
fn every_shell_has_completions() {
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let made = std::process::Command::new(env!("CARGO_BIN_EXE_hedge-cloud")).args(["completions", shell]).output();
        let made = made.expect("it runs");
        let text = String::from_utf8(made.stdout).expect("text");
        assert!(made.status.success() && text.contains("device") && text.contains("history"), "{shell}");
    }
}
