mod forms;
mod measure;
mod windows;

use super::*;
use crate::budget::Ceilings;
use hedge_proto::{Epoch, WIRE_VERSION};
use std::vec;

fn key(sequence: u64) -> CaseKey {
    CaseKey { epoch: Epoch(1), sequence }
}

fn waiting(sequence: u64, sent: bool) -> Waiting {
    Waiting { key: key(sequence), sort_key: 0.0, stored_at: Moment(0), payload_bytes: 50_000, sent, urgent: false }
}

fn cloud(state: CloudState) -> Event {
    Event::CloudStatus {
        instance: Name::new("i1").expect("valid"),
        status: CloudStatus {
            state,
            wire: vec![WIRE_VERSION],
            accept: None,
            retry_after_s: None,
            payload_bytes_max: None,
        },
        retained: false,
    }
}

fn actions(engine: &mut Engine) -> Vec<Action> {
    core::iter::from_fn(|| engine.next_action()).collect()
}

fn engine(open_cases: u64, ceilings: Ceilings) -> Engine {
    begun(Moment(0), open_cases, ceilings, Spent::default())
}

/// With what an earlier run has spent, and cases on the disk.
fn restarted(now: Moment, spent: Spent) -> Engine {
    begun(now, 1, Ceilings::LAN, spent)
}

fn begun(now: Moment, open_cases: u64, ceilings: Ceilings, spent: Spent) -> Engine {
    let configured = Configured { profile: Profile::LAN, policies: Policies::DEFAULT, ceilings, batch_bytes_max: 0 };
    let (has_broker, recovery_after) = (true, None);
    Engine::new(now, Setup { has_broker, recovery_after, open_cases, configured, spent: Some(spent), seed: 1 })
}

fn online(open_cases: u64) -> Engine {
    let mut engine = engine(open_cases, Ceilings::LAN);
    engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(2), cloud(CloudState::Online));
    engine.uplink.trust();
    engine
}

#[test]
fn it_dials_at_the_start_and_says_how_the_link_is() {
    let mut engine = engine(0, Ceilings::LAN);
    assert_eq!(actions(&mut engine), [Action::Dial { way: Way::Usual }]);
    engine.handle(Moment(5), Event::Disconnected(Loss::Broken));
    assert!(matches!(actions(&mut engine)[..], [Action::LinkChanged { state: LinkState::Offline, .. }]));
    let wake = engine.wake_at().expect("dials again");
    engine.handle(wake, Event::Tick);
    assert!(actions(&mut engine).contains(&Action::Dial { way: Way::Usual }));
}

#[test]
fn a_case_goes_out_when_the_cloud_is_there_and_is_closed_by_its_verdict() {
    let mut engine = online(0);
    actions(&mut engine);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(7)], first: None, offers: true }]);
    engine.handle(Moment(4), Event::Published { keys: vec![key(7)], outcome: Publish::Acknowledged });
    engine.handle(Moment(5), Event::Received { keys: vec![key(7)] });
    assert_eq!(actions(&mut engine), [Action::MarkReceived { keys: vec![key(7)] }]);
    assert_eq!(engine.in_flight(), 1);
    engine.handle(Moment(6), Event::Closed { key: key(7), spoken: true });
    assert_eq!(engine.in_flight(), 0);
}

#[test]
fn what_an_earlier_run_sent_is_asked_about_first() {
    let mut engine = online(2);
    let fetch = Action::Fetch { count: READY_MAX, below_bytes: u32::MAX };
    assert!(actions(&mut engine).contains(&fetch));
    engine.handle(Moment(3), Event::Fetched(vec![waiting(1, true), waiting(2, false)]));
    assert_eq!(
        actions(&mut engine),
        [Action::Ask { keys: vec![key(1)] }, Action::Send { keys: vec![key(2)], first: None, offers: true }]
    );
    engine.handle(Moment(4), Event::Unknown { keys: vec![key(1)] });
    assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(1)], first: None, offers: true }]);
}

#[test]
fn nothing_is_sent_while_no_cloud_is_known_to_read_it() {
    let mut engine = engine(0, Ceilings::LAN);
    engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(2), Event::Stored(waiting(7, false)));
    assert!(!actions(&mut engine).iter().any(|action| matches!(action, Action::Send { .. })));
    engine.handle(Moment(3), cloud(CloudState::Online));
    assert!(actions(&mut engine).contains(&Action::Send { keys: vec![key(7)], first: None, offers: true }));
}

#[test]
fn a_case_the_cloud_cannot_answer_becomes_a_dead_letter_after_bounded_tries() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    actions(&mut engine);
    let reason = || String::from("out of memory");
    engine.handle(Moment(4), Event::Failed { key: key(7), reason: reason() });
    assert_eq!(actions(&mut engine), [Action::CountTry { key: key(7), reason: reason() }]);
    let tries = crate::uplink::TRIES_MAX;
    engine.handle(Moment(5), Event::TryCounted { key: key(7), tries, reason: reason() });
    assert_eq!(actions(&mut engine), [Action::Bury { key: key(7), reason: reason() }]);
}

#[test]
fn a_dead_letter_that_the_disk_refuses_is_made_later() {
    let mut engine = online(0);
    let dead = || Event::Dead { key: key(7), reason: String::from("unreadable") };
    let bury = Action::Bury { key: key(7), reason: String::from("unreadable") };
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    actions(&mut engine);
    engine.handle(Moment(4), dead());
    assert_eq!(actions(&mut engine), core::slice::from_ref(&bury));
    let wake = engine.wake_at().expect("asks again");
    engine.handle(wake, Event::Tick);
    assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(7)] }]);
    engine.handle(wake, dead());
    assert_eq!(actions(&mut engine), [bury]);
    engine.handle(wake, Event::Closed { key: key(7), spoken: false });
    assert_eq!(engine.wake_at(), None);
}

#[test]
fn a_reached_ceiling_is_a_state_of_the_link_and_ends_by_itself() {
    let mut engine = engine(0, Ceilings { cases_per_hour: 2, ..Ceilings::LAN });
    engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(2), cloud(CloudState::Online));
    engine.uplink.trust();
    for sequence in 0..3 {
        engine.handle(Moment(3), Event::Stored(waiting(sequence, false)));
    }
    let sent =
        |engine: &mut Engine| actions(engine).iter().filter(|action| matches!(action, Action::Send { .. })).count();
    assert_eq!((sent(&mut engine), engine.link().0), (2, LinkState::OverBudget));
    let wake = engine.wake_at().expect("the hour ends");
    engine.handle(wake, Event::Tick);
    assert_eq!((sent(&mut engine), engine.link().0), (1, LinkState::Online));
}

#[test]
fn every_byte_on_the_wire_counts() {
    let mut engine = engine(0, Ceilings { bytes_per_day: 1_000, ..Ceilings::LAN });
    engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(2), cloud(CloudState::Online));
    engine.handle(Moment(3), Event::Spent { bytes: 1_000 });
    assert_eq!(engine.link(), (LinkState::OverBudget, "the ceiling of bytes per day is reached"));
}

#[test]
fn after_an_instance_is_lost_its_cases_are_asked_about_soon() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    engine.handle(Moment(4), Event::Received { keys: vec![key(7)] });
    engine.handle(Moment(5), cloud(CloudState::Offline));
    engine.handle(Moment(6), cloud(CloudState::Online));
    actions(&mut engine);
    let soon = Moment(5) + crate::uplink::INSTANCE_LOST_WAIT;
    assert!(engine.wake_at().is_some_and(|at| at <= soon));
    engine.handle(soon, Event::Tick);
    assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(7)] }]);
}

#[test]
fn a_cloud_that_never_answers_makes_the_link_degraded_while_it_is_asked_again() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    engine.handle(Moment(4), Event::Published { keys: vec![key(7)], outcome: Publish::Acknowledged });
    assert_eq!(engine.link().0, LinkState::Online);
    for second in 1..=40 {
        engine.handle(Moment(second * 1_000), Event::Tick);
    }
    assert_eq!(engine.link().0, LinkState::Degraded);
    engine.handle(Moment(41_000), Event::Received { keys: vec![key(7)] });
    assert_eq!(engine.link().0, LinkState::Online);
}

#[test]
fn what_memory_had_no_room_for_is_fetched_when_there_is_room() {
    let mut engine = engine(0, Ceilings::LAN);
    let later_is_better = |sequence: u64| Waiting { sort_key: sequence as f64, ..waiting(sequence, false) };
    for sequence in 0..=READY_MAX as u64 {
        engine.handle(Moment(1), Event::Stored(later_is_better(sequence)));
    }
    engine.handle(Moment(2), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(3), cloud(CloudState::Online));
    let mut fetches = 0;
    while let Some(action) = engine.next_action() {
        match action {
            Action::Send { keys, .. } => engine.handle(Moment(4), Event::Closed { key: keys[0], spoken: true }),
            Action::Fetch { .. } => fetches += 1,
            _ => {}
        }
    }
    assert_eq!(fetches, 1, "the first case gave way to better ones and lies on the disk alone");
}

#[test]
fn a_case_stored_while_the_disk_is_looked_at_is_not_forgotten() {
    let mut engine = online(1);
    assert!(actions(&mut engine).contains(&Action::Fetch { count: READY_MAX, below_bytes: u32::MAX }));
    for sequence in 0..2 * READY_MAX as u64 {
        engine.handle(Moment(3), Event::Stored(waiting(sequence, false)));
    }
    engine.handle(Moment(4), Event::Fetched(vec![]));
    let mut open: Vec<CaseKey> = (0..2 * READY_MAX as u64).map(key).collect();
    while let Some(action) = engine.next_action() {
        match action {
            Action::Send { keys, .. } => {
                open.retain(|known| *known != keys[0]);
                engine.handle(Moment(5), Event::Closed { key: keys[0], spoken: true });
            }
            Action::Fetch { .. } => {
                let best = open.iter().map(|key| waiting(key.sequence, false)).collect();
                engine.handle(Moment(5), Event::Fetched(best));
            }
            _ => {}
        }
    }
    assert!(open.is_empty(), "{} left", open.len());
}

#[test]
fn a_backlog_larger_than_memory_drains_to_the_last_case() {
    let mut disk: Vec<u64> = (0..3 * READY_MAX as u64).collect();
    let mut engine = online(disk.len() as u64);
    let mut now = Moment(10);
    while let Some(action) = engine.next_action() {
        now = now + Duration::from_millis(1);
        match action {
            Action::Fetch { count, .. } => {
                let best = disk.iter().take(count).map(|&sequence| waiting(sequence, false)).collect();
                engine.handle(now, Event::Fetched(best));
            }
            Action::Send { keys, .. } => {
                let key = keys[0];
                engine.handle(now, Event::Published { keys, outcome: Publish::Acknowledged });
                disk.retain(|&sequence| sequence != key.sequence);
                engine.handle(now, Event::Closed { key, spoken: true });
            }
            _ => {}
        }
    }
    assert!(disk.is_empty(), "{} left", disk.len());
}

#[test]
fn the_slower_of_cloud_and_policy_sets_the_pace_and_a_better_state_ends_it() {
    let mut engine = online(0);
    engine.policies.degraded.drain_per_s = Some(0.01);
    actions(&mut engine);
    for sequence in 0..3 {
        engine.handle(Moment(3), Event::Stored(waiting(sequence, false)));
    }
    let sent =
        |engine: &mut Engine| actions(engine).iter().filter(|action| matches!(action, Action::Send { .. })).count();
    assert_eq!(sent(&mut engine), 3, "online has no pace");
    engine.handle(Moment(4), Event::Published { keys: vec![key(0)], outcome: Publish::Acknowledged });
    let late = Moment(4) + crate::link::ANSWER_LATE_AFTER;
    engine.handle(late, Event::Tick);
    assert_eq!(engine.link().0, LinkState::Degraded);
    for sequence in 3..6 {
        engine.handle(late, Event::Stored(waiting(sequence, false)));
    }
    assert_eq!(sent(&mut engine), 0, "within 100 s of the last one");
    let due = Moment(3) + Duration::from_secs(100);
    assert!(engine.wake_at().is_some_and(|at| at <= due));
    engine.handle(due, Event::Tick);
    assert_eq!(sent(&mut engine), 1);
    engine.handle(due, Event::Received { keys: vec![key(0)] });
    assert_eq!((engine.link().0, sent(&mut engine)), (LinkState::Online, 2));
}

#[test]
fn a_policy_may_hold_the_queue() {
    let mut engine = online(0);
    engine.policies.online.drain_per_s = Some(0.0);
    actions(&mut engine);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    assert_eq!((actions(&mut engine), engine.wake_at()), (vec![], None));
}

#[test]
fn a_drain_dials_at_once() {
    let mut engine = engine(0, Ceilings::LAN);
    engine.handle(Moment(5), Event::Disconnected(Loss::Broken));
    actions(&mut engine);
    engine.handle(Moment(6), Event::Drain);
    assert!(actions(&mut engine).contains(&Action::Dial { way: Way::Usual }));
}

#[test]
fn a_payload_that_cannot_be_brought_waits_alone() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    actions(&mut engine);
    engine.handle(Moment(4), Event::Published { keys: vec![key(7)], outcome: Publish::Stuck });
    assert_eq!(actions(&mut engine), [], "not at once");
    engine.handle(Moment(5), Event::Stored(waiting(8, false)));
    assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(8)], first: None, offers: true }]);
    let again = Moment(4) + crate::uplink::STUCK_WAIT;
    assert!(engine.wake_at().is_some_and(|at| at <= again));
    engine.handle(again, Event::Tick);
    assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(7)], first: None, offers: true }]);
    engine.handle(again, Event::Published { keys: vec![key(7)], outcome: Publish::Stuck });
    engine.handle(again + crate::uplink::STUCK_WAIT, Event::Tick);
    assert_eq!(actions(&mut engine), [], "each time longer");
}

#[test]
fn a_case_that_the_cloud_does_not_read_yet_is_said_until_it_does() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    actions(&mut engine);
    let newer = |version| Event::Published { keys: vec![key(7)], outcome: Publish::Newer { version } };
    engine.handle(Moment(4), newer(hedge_proto::WIRE_VERSION + 1));
    assert_eq!(engine.newer(Moment(5)), Some(hedge_proto::WIRE_VERSION + 1));
    let status = Event::CloudStatus {
        instance: hedge_proto::Name::new("cloud-1").expect("a name"),
        status: CloudStatus {
            state: CloudState::Online,
            wire: vec![hedge_proto::WIRE_VERSION],
            accept: None,
            retry_after_s: None,
            payload_bytes_max: None,
        },
        retained: false,
    };
    engine.handle(Moment(6), newer(hedge_proto::WIRE_VERSION));
    engine.handle(Moment(7), status);
    assert_eq!(engine.newer(Moment(7)), None, "the cloud reads it");
    engine.handle(Moment(8), newer(hedge_proto::WIRE_VERSION + 1));
    let gone = Moment(9) + crate::uplink::QUIET_MAX + crate::uplink::QUIET_MAX;
    assert_eq!(engine.newer(gone), None, "no such case was seen for long");
}

#[test]
fn a_word_that_failed_counts_once_a_try_whatever_is_said_in_between() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    engine.handle(Moment(4), Event::Published { keys: vec![key(7)], outcome: Publish::Acknowledged });
    for at in 5..50 {
        engine.handle(Moment(at), Event::Received { keys: vec![key(7)] });
        engine.handle(Moment(at), Event::Failed { key: key(7), reason: "failed".into() });
    }
    let counted = actions(&mut engine).into_iter().filter(|action| matches!(action, Action::CountTry { .. })).count();
    assert_eq!(counted, 1);
}

#[test]
fn a_limit_that_the_broker_gave_one_connection_is_looked_at_over_another() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    let too_large = || Event::Published { keys: vec![key(7)], outcome: Publish::TooLarge { bytes_max: Some(1_000) } };
    engine.handle(Moment(4), too_large());
    actions(&mut engine);
    let mut now = Moment(4);
    let mut left_at = None;
    while left_at.is_none() && now < Moment(0) + 2 * crate::uplink::LIMIT_OUTLIVES {
        now = engine.wake_at().expect("it looks again").max(now + Duration::from_secs(1));
        engine.handle(now, Event::Tick);
        while let Some(action) = engine.next_action() {
            match action {
                Action::HangUp => left_at = Some(now),
                Action::Fetch { .. } => engine.handle(now, Event::Fetched(vec![waiting(7, false)])),
                Action::Send { .. } => engine.handle(now, too_large()),
                Action::Bury { .. } | Action::CountTry { .. } => panic!("a limit is no fault of a case"),
                _ => {}
            }
        }
    }
    assert!(left_at.expect("it leaves") >= Moment(1) + crate::uplink::LIMIT_OUTLIVES);
    engine.handle(now, Event::Disconnected(Loss::Closed));
    assert!(actions(&mut engine).contains(&Action::Dial { way: Way::Usual }), "it comes back at once");
}
