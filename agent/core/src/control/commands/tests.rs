//! The book of commands, case by case and against a naive model.

use super::*;
use hedge_proto::DOCUMENT_BYTES_MAX;
use proptest::prelude::*;
use serde_json::json;
use std::collections::HashMap;
use std::vec;

fn book() -> Book {
    Book::new(DeviceId::new("d1").expect("valid"), Topics::new("site").expect("valid"))
}

fn admit(book: &mut Book, text: &str) -> Admission {
    book.admit(Moment(0), None, &Arrived { payload: text.as_bytes(), ..Arrived::default() })
}

/// Begins the command, as the agent does once its intent is on disk.
#[track_caller]
fn begin(book: &mut Book, text: &str) -> String {
    match admit(book, text) {
        Admission::Begin { intent, .. } => {
            let id = intent.id.clone();
            book.begin(intent);
            id
        }
        other => panic!("{text}: {other:?}"),
    }
}

fn done(id: &str, n: u64) -> Reply {
    Reply { id: Some(id.into()), command: None, outcome: CommandOutcome::Done, reason: None, result: json!({"n": n}) }
}

#[track_caller]
fn check_refused(book: &mut Book, arrived: &Arrived<'_>, wall_ms: Option<u64>, part: &str) {
    match book.admit(Moment(0), wall_ms, arrived) {
        Admission::Refuse(refusal) => assert!(refusal.reason.contains(part), "`{}` lacks `{part}`", refusal.reason),
        other => panic!("{arrived:?}: {other:?}"),
    }
}

#[test]
fn a_known_id_gets_the_kept_result_and_never_begins_again() {
    let mut book = book();
    let id = begin(&mut book, r#"{"id": "a", "command": "drain"}"#);
    assert!(matches!(admit(&mut book, r#"{"id": "a", "command": "drain"}"#), Admission::Ignore(_)), "under way");
    book.end(&id, done("a", 1));
    book.end(&id, done("a", 2));
    assert_eq!(book.unsaid().next().map(|(_, _, reply)| reply.clone()), Some(done("a", 1)));
    book.said("a");
    assert_eq!(book.unsaid().count(), 0);
    assert_eq!(admit(&mut book, r#"{"id": "a", "command": "drain", "args": {}}"#), Admission::Again { id });
    assert_eq!(book.unsaid().next().map(|(_, _, reply)| reply.clone()), Some(done("a", 1)));
}

#[test]
fn a_used_id_does_not_pass_for_another_command() {
    let mut book = book();
    begin(&mut book, r#"{"id": "a", "command": "pause", "args": {"source": "x"}}"#);
    for other in [r#"{"id": "a", "command": "drain"}"#, r#"{"id": "a", "command": "pause", "args": {"source": "y"}}"#] {
        check_refused(&mut book, &Arrived { payload: other.as_bytes(), ..Arrived::default() }, None, "another id");
    }
}

#[test]
fn what_must_not_run_is_refused_with_the_reason() {
    let plain = Arrived::default();
    let with = |payload: &'static str| Arrived { payload: payload.as_bytes(), ..plain };
    let book = &mut book();
    check_refused(book, &with("{"), None, "EOF");
    check_refused(book, &with(r#"{"id": "a", "command": "reboot"}"#), None, "reboot");
    check_refused(book, &with(r#"{"id": "a", "command": "explain", "args": {"last": 101}}"#), None, "args.last");
    let level = r#"{"id": "a", "command": "log_level", "args": {"level": "info", "for_s": 0}}"#;
    check_refused(book, &with(level), None, "args.for_s");
    check_refused(book, &with(r#"{"command": "drain"}"#), None, "needs an `id`");
    let retained = Arrived { retained: true, ..with(r#"{"id": "a", "command": "ping"}"#) };
    check_refused(book, &retained, None, "retain");
    let large = vec![b' '; DOCUMENT_BYTES_MAX + 1];
    check_refused(book, &Arrived { payload: &large, ..plain }, None, "65536");
    let long = vec![b'x'; COMMAND_ID_BYTES_MAX + 1];
    let correlated = Arrived { correlation: Some(&long), ..with(r#"{"command": "drain"}"#) };
    check_refused(book, &correlated, None, "correlation");
    let old = with(r#"{"id": "a", "command": "drain", "issued_ms": 1000}"#);
    check_refused(book, &old, Some(1001 + 3_600_000), "60 minutes");
    let rested = Arrived { rest: Duration::from_secs(600), ..old };
    assert!(matches!(book.admit(Moment(0), Some(1000 + 4_200_000), &rested), Admission::Begin { .. }));
    check_refused(book, &rested, Some(1001 + 4_200_000), "70 minutes");
    assert!(matches!(book.admit(Moment(0), None, &old), Admission::Begin { .. }), "no clock, no expiry");
    assert!(matches!(book.admit(Moment(0), Some(1000 + 3_600_000), &old), Admission::Begin { .. }));
}

#[test]
fn an_id_is_not_used_up_by_a_refusal() {
    let mut book = book();
    let payload = br#"{"id": "a", "command": "drain"}"#;
    check_refused(&mut book, &Arrived { payload, retained: true, ..Arrived::default() }, None, "retain");
    assert_eq!(begin(&mut book, r#"{"id": "a", "command": "drain"}"#), "a");
}

#[test]
fn correlation_data_stands_for_an_id_and_comes_back() {
    let mut book = book();
    for (data, id) in [(&b"req-7"[..], "req-7"), (&[0xff, 0x01], "hex:ff01")] {
        let arrived = Arrived { payload: br#"{"command": "drain"}"#, correlation: Some(data), ..Arrived::default() };
        let Admission::Begin { intent, .. } = book.admit(Moment(0), None, &arrived) else { panic!("begins") };
        assert_eq!((intent.id.as_str(), intent.reply_to.correlation.as_deref()), (id, Some(data)));
    }
}

#[test]
fn a_response_topic_is_honoured_only_below_the_devices_own_up() {
    let honoured = |topic: &str| {
        let arrived = Arrived { response_topic: Some(topic), ..Arrived::default() };
        book().reply_to(&arrived).topic.is_some()
    };
    assert!(honoured("site/hedge/v1/d1/up/reply/ops"));
    assert!(honoured("site/hedge/v1/d1/up/x"));
    for topic in [
        "site/hedge/v1/d1/up/",
        "site/hedge/v1/d1/up/status",
        "site/hedge/v1/d1/up/case",
        "site/hedge/v1/d1/up/answer/x",
        "site/hedge/v1/d1/up/+",
        "site/hedge/v1/d1/down/x",
        "site/hedge/v1/d2/up/x",
        "hedge/v1/d1/up/x",
        "elsewhere",
    ] {
        assert!(!honoured(topic), "{topic}");
    }
}

#[test]
fn a_thousand_results_are_kept_and_what_is_under_way_is_never_forgotten() {
    let mut book = book();
    let mut at = 0;
    let mut begin_at = |book: &mut Book, id: &str| {
        at += 1000;
        let payload = json!({"id": id, "command": "drain"}).to_string();
        let arrived = Arrived { payload: payload.as_bytes(), ..Arrived::default() };
        let admission = book.admit(Moment(at), None, &arrived);
        let Admission::Begin { intent, .. } = admission else { panic!("{id}: {admission:?}") };
        book.begin(intent);
    };
    begin_at(&mut book, "slow");
    for n in 0..RESULTS_MAX as u64 {
        let id = format!("{n}");
        begin_at(&mut book, &id);
        book.end(&id, done(&id, n));
    }
    assert_eq!(book.kept.len(), RESULTS_MAX);
    assert!(book.kept.contains_key("slow") && !book.kept.contains_key("0") && book.kept.contains_key("1"));
}

#[test]
fn a_reply_is_never_larger_than_what_is_sent() {
    let list: Vec<String> = (0..1000).map(|n| format!("{n:0100}")).collect();
    let cut = bounded(Reply { result: json!({"cases": list, "more": false}), ..done("a", 0) });
    assert!(to_json(&cut).len() <= REPLY_BYTES_MAX);
    let shown = cut.result["cases"].as_array().expect("still a list").len() as u64;
    assert!(shown > 100 && shown + cut.result["left_out"].as_u64().expect("said") == 1000);
    let text = bounded(Reply { result: json!("x".repeat(REPLY_BYTES_MAX)), ..done("a", 0) });
    assert!(text.result.is_null() && text.reason.expect("said").contains("bytes"));
    assert_eq!(bounded(done("a", 1)), done("a", 1));
}

#[test]
fn a_flood_is_refused_with_the_reason_and_then_not_answered_any_more() {
    let mut book = book();
    let mut count = HashMap::new();
    for n in 0..1000 {
        let what = match admit(&mut book, &json!({"id": format!("{n}"), "command": "ping"}).to_string()) {
            Admission::Begin { .. } => "begin",
            Admission::Refuse(refusal) => {
                assert!(refusal.reason.contains("5 commands a second"), "{}", refusal.reason);
                "refuse"
            }
            Admission::Ignore(_) => "ignore",
            other => panic!("{other:?}"),
        };
        *count.entry(what).or_insert(0) += 1;
    }
    assert_eq!(count, HashMap::from([("begin", 30), ("refuse", 60), ("ignore", 910)]));
    let later = Arrived { payload: br#"{"id": "x", "command": "ping"}"#, ..Arrived::default() };
    assert!(matches!(book.admit(Moment(1000), None, &later), Admission::Begin { .. }));
}

/// What a test does to the book.
#[derive(Debug, Clone)]
enum Step {
    Arrive {
        id: u8,
        order: u8,
        retained: bool,
    },
    EndOldest,
    SayFirst,
    /// The agent goes down; so many of the last records had not reached the disk.
    Crash {
        lost: usize,
    },
    Wait {
        ms: u64,
    },
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        6 => (0..6_u8, 0..3_u8, prop::bool::weighted(0.1))
            .prop_map(|(id, order, retained)| Step::Arrive { id, order, retained }),
        3 => Just(Step::EndOldest),
        2 => Just(Step::SayFirst),
        1 => (0..3_usize).prop_map(|lost| Step::Crash { lost }),
        2 => (0..2000_u64).prop_map(|ms| Step::Wait { ms }),
    ]
}

/// Each id as the naive model sees it: what it is for, and its result.
type Model = HashMap<String, (u8, Option<Reply>)>;

const ORDERS: [&str; 3] = ["drain", "restart", "pause"];

/// What is on disk before a step must be so when the agent acts; only a record of `Said` may get lost.
fn crash(disk: &mut Vec<Record>, lost: usize) -> Book {
    for _ in 0..lost {
        if matches!(disk.last(), Some(Record::Said { .. })) {
            disk.pop();
        }
    }
    let mut after = book();
    disk.iter().cloned().for_each(|record| after.replay(record));
    after
}

proptest! {
    #[test]
    fn no_order_of_messages_and_crashes_runs_an_id_twice(steps in prop::collection::vec(step(), 0..150)) {
        let (mut book, mut disk, mut now) = (book(), Vec::new(), Moment(0));
        let (mut model, mut running, mut effects) = (Model::new(), VecDeque::new(), 0);
        for step in steps {
            match step {
                Step::Wait { ms } => now = now + Duration::from_millis(ms),
                Step::Arrive { id, order, retained } => {
                    let payload = json!({"id": format!("{id}"), "command": ORDERS[usize::from(order)]}).to_string();
                    let arrived = Arrived { payload: payload.as_bytes(), retained, ..Arrived::default() };
                    let id = format!("{id}");
                    match book.admit(now, None, &arrived) {
                        Admission::Begin { intent, .. } => {
                            prop_assert!(!retained && !model.contains_key(&id), "{id} begins");
                            model.insert(id.clone(), (order, None));
                            disk.push(Record::Began(intent.clone()));
                            book.begin(intent);
                            running.push_back(id);
                        }
                        Admission::Again { id } => {
                            let (known, reply) = &model[&id];
                            prop_assert!(*known == order && reply.is_some());
                            let again = book.unsaid().find(|(unsaid, ..)| *unsaid == id).map(|(_, _, reply)| reply);
                            prop_assert_eq!(again, reply.as_ref());
                        }
                        Admission::Refuse(refusal) => {
                            let other = model.get(&id).is_some_and(|(known, _)| *known != order);
                            prop_assert!(retained || other || refusal.reason.contains("a second"), "{}", refusal.reason);
                        }
                        Admission::Ignore(_) => {}
                        Admission::Look { .. } => prop_assert!(false, "it changes something"),
                    }
                }
                Step::EndOldest => if let Some(id) = running.pop_front() {
                    effects += 1;
                    let reply = done(&id, effects);
                    disk.push(Record::Ended { id: id.clone(), reply: reply.clone() });
                    book.end(&id, reply.clone());
                    model.get_mut(&id).expect("begun").1 = Some(reply);
                },
                Step::SayFirst => {
                    let first = book.unsaid().next().map(|(id, _, reply)| (id.to_owned(), reply.clone()));
                    if let Some((id, reply)) = first {
                        prop_assert_eq!(model[&id].1.as_ref(), Some(&reply), "one result");
                        disk.push(Record::Said { id: id.clone() });
                        book.said(&id);
                    }
                }
                Step::Crash { lost } => {
                    book = crash(&mut disk, lost);
                    for (intent, reply) in book.interrupt() {
                        let (order, result) = model.get_mut(&intent.id).expect("begun");
                        prop_assert!(result.is_none());
                        let restart = ORDERS[usize::from(*order)] == "restart";
                        prop_assert_eq!(reply.outcome == CommandOutcome::Done, restart);
                        disk.push(Record::Ended { id: intent.id.clone(), reply: reply.clone() });
                        *result = Some(reply);
                    }
                    running.clear();
                    // A rewritten journal comes to the same.
                    if effects % 2 == 0 {
                        disk = book.records();
                    }
                }
            }
        }
    }

    #[test]
    fn no_message_does_harm(payload in prop::collection::vec(any::<u8>(), 0..200), text in ".{0,80}") {
        let mut book = book();
        for payload in [&payload[..], text.as_bytes()] {
            let arrived = Arrived { payload, correlation: Some(&payload[..payload.len().min(9)]), ..Arrived::default() };
            let admission = book.admit(Moment(0), Some(0), &arrived);
            prop_assert!(matches!(admission, Admission::Refuse(_) | Admission::Ignore(_)), "{admission:?}");
        }
    }
}
