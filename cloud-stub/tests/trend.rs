//! What became of a device over time, as its page asks for it.

mod rig;

use hedge_proto::{CloudState, LinkState, SampleFigures, Telemetry, Topic, to_json};
use rig::{Broker, Cloud, Device};
use serde_json::Value;
use tempfile::TempDir;

async fn report(device: &Device, uptime_s: u64, answered: u64, deferred: u64) {
    let telemetry = Telemetry {
        uptime_s,
        link_reason: "answers are late".to_owned(),
        samples: SampleFigures { answered, kept: answered - deferred, deferred, ..SampleFigures::default() },
        link_s: [("online".to_owned(), uptime_s)].into(),
        ..Telemetry::new(LinkState::Degraded)
    };
    device.publish(&Topic::UpTelemetry(device.name.clone()), to_json(&telemetry), false).await;
}

/// Added up over all buckets.
fn sum(trend: &Value, of: impl Fn(&Value) -> u64) -> u64 {
    trend["buckets"].as_array().expect("a list").iter().map(of).sum()
}

/// Waits until so many answers are on record, which a tick later they are.
async fn answered(cloud: &Cloud, span: &str, wanted: u64) -> Value {
    let path = format!("/api/devices/hall-1/trend?span={span}");
    cloud.until(&path, |trend| sum(trend, |bucket| bucket["answered"].as_u64().unwrap_or(0)) == wanted).await
}

#[tokio::test]
async fn what_a_device_reports_and_what_the_cloud_answers_is_kept_over_time() {
    let dir = TempDir::new().expect("a directory");
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    report(&device, 600, 100, 10).await;
    report(&device, 601, 130, 15).await;
    let mut sure = device.case(0, b"\x89PNG not really");
    sure.doubt = hedge_proto::Doubt::NONE.with(hedge_proto::Measure::Score, 0.25);
    device.send(sure).await;
    cloud.figure("answered", 1).await;
    // It has started again since.
    report(&device, 5, 7, 7).await;
    for span in ["hour", "day", "week", "month"] {
        let trend = answered(&cloud, span, 137).await;
        assert_eq!(sum(&trend, |bucket| bucket["deferred"].as_u64().unwrap_or(0)), 22, "{trend}");
        // What it says of the time before it could say so is where it was.
        let online =
            trend["states"].as_array().expect("names").iter().position(|state| state == "online").expect("one");
        assert_eq!(sum(&trend, |bucket| bucket["link_s"][online].as_u64().unwrap_or(0)), 606, "{trend}");
    }
    let hour = answered(&cloud, "hour", 137).await;
    assert!(hour["buckets"].as_array().expect("a list").len() >= 10, "ten minutes: {hour}");
    let last = hour["buckets"].as_array().and_then(|all| all.last()).expect("one");
    assert_eq!(last["why"], "answers are late");
    // One case, contradicted.
    let case = |trend: &Value| {
        let agreement = |at: usize| sum(trend, |bucket| bucket["agreement"][7][at].as_u64().unwrap_or(0));
        (sum(trend, |bucket| bucket["cases"].as_u64().unwrap_or(0)), agreement(0), agreement(1)) == (1, 1, 0)
    };
    cloud.until("/api/devices/hall-1/trend?span=hour", case).await;

    // It survives the program.
    cloud.stop();
    let cloud = Cloud::start(&Broker::Embedded, dir.path());
    answered(&cloud, "day", 137).await;
    let (status, _, body) = cloud.get_raw("/api/devices/nobody/trend").await;
    assert!(status == 404 && String::from_utf8_lossy(&body).contains("nobody"));
    let (status, _, body) = cloud.get_raw("/api/devices/hall-1/trend?span=year").await;
    assert!(status == 400 && String::from_utf8_lossy(&body).contains("month"), "{}", String::from_utf8_lossy(&body));
}
