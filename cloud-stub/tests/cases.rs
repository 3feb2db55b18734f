//! What a device can count on when it sends a case.

mod rig;

use hedge_cloud::store::FILE_NAME;
use hedge_proto::{
    Authority, Case, CaseMessage, CloudState, Digest, DownMessage, MESSAGE_BYTES_MAX, Output, PayloadForm, Topic,
};
use rig::{Broker, Cloud, Device, label, received};
use tempfile::TempDir;

/// A cloud on each broker there is, with a device that has seen it online.
async fn on_each_broker<F: Future>(promise: impl Fn(Cloud, Device) -> F) {
    for broker in Broker::all() {
        let dir = TempDir::new().expect("a directory");
        let cloud = Cloud::start(&broker, dir.path());
        let mut device = Device::connect("hall-1", cloud.broker).await;
        device.cloud_is(CloudState::Online).await;
        promise(cloud, device).await;
    }
}

#[tokio::test]
async fn a_case_is_received_then_answered() {
    on_each_broker(async |cloud, mut device| {
        device.send(device.case(0, b"picture")).await;
        assert_eq!(device.hears().await, received(device.id(0)));
        let id = device.id(0);
        assert_eq!(label(device.hears().await, &id), "boot");
        cloud.figure("answered", 1).await;
        cloud.figure("disagreed", 1).await;
        cloud.figure("waiting", 0).await;
    })
    .await;
}

#[tokio::test]
async fn a_repeated_case_is_answered_from_records_without_a_second_run() {
    on_each_broker(async |cloud, mut device| {
        let id = device.id(0);
        device.send(device.case(0, b"picture")).await;
        device.hears().await;
        let first = device.hears().await;
        for _ in 0..3 {
            device.send(device.case(0, b"picture")).await;
            assert_eq!(device.hears().await, first);
        }
        device.ask(vec![id]).await;
        assert_eq!(device.hears().await, first);
        cloud.figure("cases", 1).await;
        cloud.figure("answered", 1).await;
        cloud.figure("repeated", 3).await;
    })
    .await;
}

#[tokio::test]
async fn a_case_without_its_sample_is_noted_at_once_and_the_devices_answer_stands() {
    on_each_broker(async |cloud, mut device| {
        let nothing = |case: Case| Case {
            form: PayloadForm::Nothing,
            payload_sha256: Digest::of(b""),
            payload: Some(Vec::new().into()),
            ..case
        };
        let (id, unusable) = (device.id(0), Case { said: None, ..nothing(device.case(1, b"")) });
        for task in ["shoes", "a task without a model"] {
            device.send(Case { task: task.to_owned(), ..nothing(device.case(0, b"")) }).await;
            let DownMessage::Verdict(verdict) = device.hears().await else { panic!("no verdict") };
            assert_eq!((verdict.id, verdict.authority, verdict.revision), (id.clone(), Authority::Device, 1));
            assert_eq!(verdict.said.headline(), "sandal");
        }
        device.send(unusable).await;
        assert!(
            matches!(device.hears().await, DownMessage::Dead { reason, .. } if reason.contains("no answer of its own"))
        );
        let says_otherwise = Case { payload: Some(b"picture".to_vec().into()), ..nothing(device.case(2, b"")) };
        device.send(says_otherwise).await;
        assert!(matches!(device.hears().await, DownMessage::Dead { reason, .. } if reason.contains("all the same")));
        for (figure, count) in [("cases", 2), ("answered", 1), ("dead", 1), ("waiting", 0), ("refused", 1)] {
            cloud.figure(figure, count).await;
        }
        for figure in ["agreed", "disagreed", "payload_bytes"] {
            cloud.figure(figure, 0).await;
        }

        // A case that was taken whole before is answered from its record.
        device.send(device.case(3, b"picture")).await;
        device.hears().await;
        let verdict = device.hears().await;
        device.send(nothing(device.case(3, b""))).await;
        assert_eq!(device.hears().await, verdict);
    })
    .await;
}

#[tokio::test]
async fn another_payload_under_a_known_id_is_refused_and_the_record_stays() {
    on_each_broker(async |cloud, mut device| {
        device.send(device.case(0, b"picture")).await;
        device.hears().await;
        let verdict = device.hears().await;
        device.send(device.case(0, b"another")).await;
        assert!(matches!(device.hears().await, DownMessage::Dead { .. }));
        device.ask(vec![device.id(0)]).await;
        assert_eq!(device.hears().await, verdict);
        cloud.figure("refused", 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_question_is_answered_for_each_id_and_never_about_another_device() {
    on_each_broker(async |cloud, mut device| {
        device.send(device.case(0, b"picture")).await;
        device.hears().await;
        device.hears().await;
        let stranger = Device::connect("hall-2", cloud.broker).await;
        device.ask(vec![device.id(0), device.id(1), device.id(2), stranger.id(0)]).await;
        assert_eq!(device.hears().await, DownMessage::Unknown { ids: vec![device.id(1), device.id(2)] });
        let id = device.id(0);
        assert_eq!(label(device.hears().await, &id), "boot");
        cloud.figure("refused", 1).await;
    })
    .await;
}

#[tokio::test]
async fn a_batch_is_received_as_one_and_each_case_answered() {
    on_each_broker(async |_cloud, mut device| {
        let cases = (0..20_u64).map(|n| device.case(n, &n.to_le_bytes())).collect();
        device.say(&CaseMessage::Batch(cases)).await;
        let all = (0..20).map(|n| device.id(n)).collect();
        assert_eq!(device.hears().await, DownMessage::Received { ids: all });
        for n in 0..20 {
            let id = device.id(n);
            assert_eq!(label(device.hears().await, &id), "boot");
        }
    })
    .await;
}

#[tokio::test]
async fn a_payload_that_is_not_what_its_sum_names_is_not_recorded() {
    on_each_broker(async |cloud, mut device| {
        let mut case = device.case(0, b"picture");
        case.payload_sha256 = Digest::of(b"other");
        device.send(case).await;
        assert!(matches!(device.hears().await, DownMessage::Failed { .. }));
        let mut case = device.case(1, b"picture");
        case.payload = None;
        device.send(case).await;
        assert!(matches!(device.hears().await, DownMessage::Failed { .. }));
        cloud.figure("refused", 2).await;
        cloud.figure("cases", 0).await;
    })
    .await;
}

#[tokio::test]
async fn labels_are_no_answer_to_a_device_whose_model_finds_boxes() {
    on_each_broker(async |cloud, mut device| {
        device.send(Case { v: 2, said: Some(Output::Boxes(Vec::new())), ..device.case(0, b"picture") }).await;
        assert_eq!(device.hears().await, received(device.id(0)));
        let told = device.hears().await;
        let DownMessage::Failed { reason, .. } = told else { panic!("{told:?}") };
        assert!(reason.contains("with labels, and the device's model with boxes"), "{reason}");
        cloud.figure("answered", 0).await;
    })
    .await;
}

#[tokio::test]
async fn while_nothing_can_be_recorded_its_health_says_so() {
    let Some(mosquitto) = rig::Mosquitto::start() else { return };
    let (dir, broker) = (TempDir::new().expect("a directory"), Broker::Mosquitto(mosquitto));
    let cloud = Cloud::start(&broker, dir.path());
    let mut device = Device::connect("hall-1", cloud.broker).await;
    device.cloud_is(CloudState::Online).await;
    let (records, aside) = (dir.path().join(FILE_NAME), dir.path().join("aside"));
    std::fs::rename(&records, &aside).expect("moved");
    device.send(device.case(0, b"picture")).await;
    assert!(matches!(device.hears().await, DownMessage::Busy { .. }));
    let (status, _, body) = cloud.get_raw("/healthz").await;
    assert!(status == 503 && body.starts_with(b"nothing can be recorded"), "{status}");
    device.clouds_before(|status| status.retry_after_s.is_some()).await;
    std::fs::rename(&aside, &records).expect("put back");
    device.clouds_before(|status| status.retry_after_s.is_none()).await;
    assert_eq!(cloud.get_raw("/healthz").await.0, 200);
}

#[tokio::test]
async fn a_newer_wire_version_is_held_not_refused() {
    on_each_broker(async |cloud, mut device| {
        let mut case = device.case(0, b"picture");
        case.v = 99;
        device.send(case).await;
        assert!(matches!(device.hears().await, DownMessage::Busy { after_s } if after_s >= 60));
        cloud.figure("cases", 0).await;
    })
    .await;
}

#[tokio::test]
async fn unreadable_messages_are_counted_and_do_no_harm() {
    on_each_broker(async |cloud, mut device| {
        let up_case = Topic::UpCase(device.name.clone());
        let status = Topic::UpStatus(device.name.clone());
        for rubbish in [&b""[..], b"\xff", b"{\"case\":1}", &[0x9f; 5000]] {
            device.publish(&up_case, rubbish.to_vec(), false).await;
        }
        // Retained rubbish comes back at every connect; it must not become a loop.
        device.publish(&up_case, b"rubbish".to_vec(), true).await;
        device.publish(&status, vec![b'{'; 100_000], true).await;
        let ids = (0..1000).map(|n| device.id(n)).collect();
        device.ask(ids).await;
        cloud.figure("malformed", 7).await;
        // As large as may be sent.
        device.send(device.case(1, &vec![1; MESSAGE_BYTES_MAX - 64 * 1024])).await;
        assert_eq!(device.hears().await, received(device.id(1)));
        let id = device.id(1);
        assert_eq!(label(device.hears().await, &id), "boot");
        device.send(device.case(2, b"still here")).await;
        assert_eq!(device.hears().await, received(device.id(2)));
    })
    .await;
}

#[tokio::test]
async fn a_case_of_a_task_without_a_model_waits_for_one() {
    for broker in Broker::all() {
        let dir = TempDir::new().expect("a directory");
        let cloud = Cloud::start_with(&broker, dir.path(), &["--answer-with", "hats=cap"]);
        let mut device = Device::connect("hall-1", cloud.broker).await;
        device.cloud_is(CloudState::Online).await;
        device.send(device.case(0, b"picture")).await;
        assert_eq!(device.hears().await, received(device.id(0)));
        cloud.figure("waiting", 1).await;
        assert_eq!(cloud.stop(), Some(0));

        let cloud = Cloud::start(&broker, dir.path());
        cloud.figure("answered", 1).await;
    }
}

#[tokio::test]
async fn a_message_larger_than_is_read_never_reaches_the_cloud_and_does_no_harm() {
    // Mosquitto passes on what the receiver takes and drops the rest; the embedded broker closes on the sender.
    for broker in Broker::all() {
        let dir = TempDir::new().expect("a directory");
        let cloud = Cloud::start(&broker, dir.path());
        let mut device = Device::connect("hall-1", cloud.broker).await;
        device.cloud_is(CloudState::Online).await;
        let sender = Device::connect("hall-2", cloud.broker).await;
        let too_large = sender.case(0, &vec![1; MESSAGE_BYTES_MAX + 1024 * 1024]);
        let message = hedge_proto::to_cbor(&CaseMessage::Case(Box::new(too_large)));
        let topic = sender.topics.text(&Topic::UpCase(sender.name.clone()));
        let options = rumqttc::PublishOptions::new(rumqttc::QoS::AtLeastOnce);
        let notice = sender.client.publish_tracked(topic, message, options).await.expect("queued");
        // Taken by one broker and refused by the other: either way it must be over before the next case.
        drop(tokio::time::timeout(rig::PATIENCE, notice.wait_async()).await.expect("an end"));
        device.send(device.case(0, b"picture")).await;
        assert_eq!(device.hears().await, received(device.id(0)));
        cloud.figure("cases", 1).await;
        assert_eq!(cloud.stop(), Some(0));
    }
}
