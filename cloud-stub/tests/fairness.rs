//! One device cannot starve the others, whatever it sends and however much of it.

mod rig;

use std::time::{Duration, Instant};

use hedge_proto::{CaseId, CaseKey, CaseMessage, CloudState, Digest, DownMessage, Epoch, Topic, WIRE_VERSION, to_cbor};
use rig::{Broker, Cloud, Device, Mosquitto};
use rumqttc::{PublishOptions, QoS};
use tempfile::TempDir;

/// How many cases of the good device are timed, idle and under each flood; `HEDGETEST_ROUNDS` times as many, if that is
/// set.
fn cases() -> u64 {
    40 * std::env::var("HEDGETEST_ROUNDS").map_or(1, |rounds| rounds.parse().expect("a number of rounds"))
}

/// What its model takes for each.
const MODEL_MS: u64 = 20;

/// How fast the other one floods: a hundred times what a device sends. What a broker does with more is the broker's.
const PER_10_MS: u64 = 20;

/// Below these nobody notices, and a busy machine's own hiccups are as long.
const MEDIAN_FLOOR: Duration = Duration::from_millis(200);
const SLOWEST_FLOOR: Duration = Duration::from_secs(1);

type Flood = fn(&Device, u64) -> (Topic, Vec<u8>);

fn case(device: &Device, message: CaseMessage) -> (Topic, Vec<u8>) {
    (Topic::UpCase(device.name.clone()), to_cbor(&message))
}

const FLOODS: [(&str, Flood); 7] = [
    ("tiny cases", |evil, n| case(evil, CaseMessage::Case(Box::new(evil.case(n, b"slow!20"))))),
    ("questions", |evil, n| {
        let id = |k| CaseId { device: evil.name.clone(), key: CaseKey { epoch: Epoch(n), sequence: k } };
        case(evil, CaseMessage::Ask { ids: (0..128).map(id).collect() })
    }),
    ("wrong hashes", |evil, n| {
        let mut wrong = evil.case(n, b"picture");
        wrong.payload_sha256 = Digest::of(b"another");
        case(evil, CaseMessage::Case(Box::new(wrong)))
    }),
    ("a later version", |evil, n| {
        let mut later = evil.case(n, b"picture");
        later.v = WIRE_VERSION + 1;
        case(evil, CaseMessage::Case(Box::new(later)))
    }),
    ("tasks without a model", |evil, n| {
        let mut hats = evil.case(n, b"picture");
        hats.task = "hats".to_owned();
        case(evil, CaseMessage::Case(Box::new(hats)))
    }),
    ("the same case again", |evil, _| case(evil, CaseMessage::Case(Box::new(evil.case(0, b"picture"))))),
    ("words about itself", |evil, n| {
        let status = format!("{{\"state\": \"online\", \"connection\": {n}}}");
        (Topic::UpStatus(evil.name.clone()), status.into_bytes())
    }),
];

/// How long the good device waits for each of its verdicts, sorted.
async fn waits(good: &mut Device, first: u64) -> Vec<Duration> {
    let mut waits = Vec::new();
    for n in first..first + cases() {
        let begun = Instant::now();
        good.send(good.case(n, format!("slow!{MODEL_MS} {n}").as_bytes())).await;
        loop {
            match good.hears().await {
                DownMessage::Verdict(verdict) if verdict.id == good.id(n) => break,
                DownMessage::Received { .. } => {}
                other => panic!("the good device is told {other:?}"),
            }
        }
        waits.push(begun.elapsed());
    }
    waits.sort();
    waits
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_good_device_is_still_answered_soon_under_any_flood_of_another() {
    let Some(mosquitto) = Mosquitto::start() else { return };
    let broker = Broker::Mosquitto(mosquitto);
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&broker, dir.path());
    let mut good = Device::connect("good", cloud.broker).await;
    good.cloud_is(CloudState::Online).await;
    waits(&mut good, 0).await;
    let idle = waits(&mut good, cases()).await;
    // Of so few the very slowest is the machine's.
    let at = |waits: &[Duration], percent: usize| waits[waits.len() * percent / 100];
    let (median, slowest) = (|waits: &[Duration]| at(waits, 50), |waits: &[Duration]| at(waits, 90));
    let said = |waits: &[Duration]| {
        format!("median {:.1?}, 90 % within {:.1?}, 99 % {:.1?}", median(waits), slowest(waits), at(waits, 99))
    };
    let mut report = format!("idle: {}", said(&idle));
    let mut too_long = false;
    for (flood, (what, message)) in (2..).zip(FLOODS) {
        let evil = Device::connect(&format!("evil-{flood}"), cloud.broker).await;
        let (flooding, mut sent) = (evil.client.clone(), tokio::sync::watch::channel(0_u64));
        let under_way = tokio::spawn(async move {
            let mut pace = tokio::time::interval(Duration::from_millis(10));
            pace.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
            for n in 0.. {
                if n % PER_10_MS == 0 {
                    pace.tick().await;
                }
                let (topic, payload) = message(&evil, n);
                let options = PublishOptions::new(QoS::AtLeastOnce);
                if evil.client.publish(evil.topics.text(&topic), payload, options).await.is_err() {
                    return;
                }
                sent.0.send_replace(n);
            }
        });
        // It has begun in earnest.
        tokio::time::timeout(rig::PATIENCE, sent.1.wait_for(|n| *n >= 2_000)).await.expect("a flood").expect("a flood");
        let before = *sent.1.borrow();
        let flooded = waits(&mut good, flood * cases()).await;
        let sent = *sent.1.borrow() - before;
        under_way.abort();
        flooding.disconnect().await.expect("a broker");
        let now = (median(&flooded), slowest(&flooded));
        report.push_str(&format!("\n{what}, {sent} of them: {}", said(&flooded)));
        too_long |= now.0 > (median(&idle) * 3).max(MEDIAN_FLOOR) || now.1 > (slowest(&idle) * 3).max(SLOWEST_FLOOR);
    }
    println!("{report}");
    assert!(!too_long, "{report}");
}
