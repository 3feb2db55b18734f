//! What others say is obeyed with measure, and what the world is like now is no property of a case.

use super::*;
use crate::budget::Tariff;
use crate::uplink::{ALONE_AFTER, HELD_WAIT, LIMIT_WAIT, NOBODY_WAIT, SENDS_PER_HOUR_MAX, STUCK_WAIT, TRIES_MAX};

const HOUR: Duration = Duration::from_secs(3600);

fn sized(sequence: u64, payload_bytes: u32) -> Event {
    Event::Stored(Waiting { payload_bytes, ..waiting(sequence, false) })
}

fn sent(engine: &mut Engine) -> Vec<u64> {
    let sends = actions(engine).into_iter().filter_map(|action| match action {
        Action::Send { keys, .. } => Some(keys),
        _ => None,
    });
    sends.flatten().map(|key| key.sequence).collect()
}

fn published(engine: &mut Engine, at: Moment, sequence: u64, outcome: Publish) {
    engine.handle(at, Event::Published { keys: vec![key(sequence)], outcome });
}

fn too_large() -> Publish {
    Publish::TooLarge { bytes_max: Some(1_000) }
}

fn reconnect(engine: &mut Engine, at: Moment, loss: Loss) -> Moment {
    engine.handle(at, Event::Disconnected(loss));
    // What we end ourselves is dialled at once.
    let dialled = engine.wake_at().map_or(at, |wake| wake.max(at));
    engine.handle(dialled, Event::Tick);
    engine.handle(dialled, Event::Connected { receive_maximum: 100 });
    engine.handle(dialled, cloud(CloudState::Online));
    dialled
}

#[test]
fn one_payload_travels_at_most_so_often_in_any_hour_whoever_asks() {
    let taken = || Event::Received { keys: vec![key(7)] };
    for words in [
        vec![taken(), Event::Wanted { key: key(7), form: PayloadForm::Whole }],
        vec![taken(), Event::Unknown { keys: vec![key(7)] }],
        vec![Event::Published { keys: vec![key(7)], outcome: Publish::Nobody }],
    ] {
        let mut engine = online(0);
        engine.handle(Moment(3), sized(7, 100));
        let (mut now, mut at) = (Moment(3), Vec::new());
        while now < Moment(0) + 12 * HOUR {
            at.extend(sent(&mut engine).iter().map(|_| now));
            words.iter().for_each(|word| engine.handle(now, word.clone()));
            engine.handle(now, Event::Drain);
            now = now + Duration::from_secs(1);
            engine.handle(now, Event::Tick);
        }
        let most =
            at.iter().map(|first| at.iter().filter(|at| **at >= *first && at.since(*first) < HOUR).count()).max();
        assert!(most <= Some(SENDS_PER_HOUR_MAX as usize) && at.len() > 20, "{most:?} of {}", at.len());
    }
}

#[test]
fn how_often_a_payload_travelled_is_known_after_a_restart() {
    let mut engine = online(0);
    engine.handle(Moment(3), sized(7, 100));
    for at in 4..10 {
        engine.handle(Moment(at), Event::Received { keys: vec![key(7)] });
        engine.handle(Moment(at), Event::Wanted { key: key(7), form: PayloadForm::Whole });
        engine.handle(Moment(at), Event::Tick);
    }
    assert_eq!(sent(&mut engine).len(), 3, "what may travel at once");
    let mut engine = restarted(Moment(10), engine.spent(Moment(10)));
    engine.handle(Moment(11), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(12), cloud(CloudState::Online));
    engine.handle(Moment(13), Event::Stored(Waiting { payload_bytes: 100, ..waiting(7, true) }));
    engine.handle(Moment(14), Event::Unknown { keys: vec![key(7)] });
    assert!(sent(&mut engine).is_empty(), "it waits as it would have without the restart");
    engine.handle(Moment(10) + crate::uplink::SEND_AGAIN_WAIT, Event::Tick);
    assert_eq!(sent(&mut engine), [7]);
}

#[test]
fn a_hostile_cloud_keeps_no_other_case_back() {
    let mut engine = online(0);
    for sequence in 0..100 {
        engine.handle(Moment(3), sized(sequence, 100));
        for _ in 0..20 {
            sent(&mut engine);
            engine.handle(Moment(3), Event::Received { keys: vec![key(sequence)] });
            engine.handle(Moment(3), Event::Wanted { key: key(sequence), form: PayloadForm::Whole });
        }
    }
    engine.handle(Moment(4), sized(1_000, 100));
    assert_eq!(sent(&mut engine), [1_000]);
}

#[test]
fn a_repeated_failed_about_one_try_counts_once() {
    let mut engine = online(0);
    engine.handle(Moment(3), sized(7, 100));
    actions(&mut engine);
    let failed = || Event::Failed { key: key(7), reason: String::from("out of memory") };
    let counted =
        |engine: &mut Engine| actions(engine).iter().filter(|action| matches!(action, Action::CountTry { .. })).count();
    for _ in 0..6 {
        engine.handle(Moment(4), failed());
    }
    assert_eq!(counted(&mut engine), 1);
    engine.handle(Moment(5), Event::TryCounted { key: key(7), tries: 1, reason: String::new() });
    engine.handle(Moment(6), failed());
    assert_eq!(counted(&mut engine), 0);
    let asks = engine.wake_at().expect("asks");
    engine.handle(asks, Event::Tick);
    assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(7)] }]);
    (0..6).for_each(|_| engine.handle(asks, failed()));
    assert_eq!(counted(&mut engine), 1, "the next try is another one");
}

#[test]
fn the_cloud_ends_no_case_that_it_was_never_sent() {
    let mut engine = engine(0, Ceilings::LAN);
    engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(2), sized(7, 100));
    actions(&mut engine);
    for sequence in [7, 8] {
        engine.handle(Moment(3), Event::Dead { key: key(sequence), reason: String::new() });
        engine.handle(Moment(3), Event::Failed { key: key(sequence), reason: String::new() });
    }
    assert!(!actions(&mut engine).iter().any(|action| matches!(action, Action::Bury { .. } | Action::CountTry { .. })));
}

#[test]
fn busy_lasts_an_hour_at_most() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Busy { after: Duration::from_secs(u32::MAX.into()) });
    engine.handle(Moment(4), sized(7, 100));
    assert!(sent(&mut engine).is_empty());
    assert_eq!(engine.wake_at(), Some(Moment(3) + RETRY_AFTER_MAX));
}

#[test]
fn what_is_too_large_now_waits_lets_others_by_and_goes_when_the_limit_has_gone() {
    let mut engine = online(0);
    actions(&mut engine);
    engine.handle(Moment(3), sized(1, 5_000));
    engine.handle(Moment(3), sized(2, 9_000));
    engine.handle(Moment(3), sized(3, 500));
    assert_eq!(sent(&mut engine).len(), 3);
    published(&mut engine, Moment(4), 1, too_large());
    published(&mut engine, Moment(4), 2, too_large());
    published(&mut engine, Moment(4), 3, Publish::Acknowledged);
    assert_eq!(engine.limit().map(|limit| (limit.from_bytes, limit.bytes_max)), Some((5_000, Some(1_000))));
    // Not even as many as memory holds keep small ones out of it, nor is the disk asked for them.
    for sequence in 10..10 + 2 * READY_MAX as u64 {
        engine.handle(Moment(5), sized(sequence, 6_000));
    }
    assert_eq!(actions(&mut engine), []);
    engine.handle(Moment(6), sized(9, 600));
    assert_eq!(sent(&mut engine), [9]);
    assert!(engine.wake_at().is_some_and(|at| at > Moment(6)));
    // Another connection, another limit.
    reconnect(&mut engine, Moment(7_000), Loss::Broken);
    let all = actions(&mut engine);
    let fetch = |action: &Action| matches!(action, Action::Fetch { below_bytes: u32::MAX, .. });
    assert!(engine.limit().is_none() && all.iter().any(fetch), "{all:?}");
}

#[test]
fn a_limit_is_looked_at_again_by_time_and_by_an_operators_word() {
    for word in [Event::Tick, Event::Drain, Event::BrokerChanged] {
        let mut engine = online(0);
        engine.handle(Moment(3), sized(1, 5_000));
        actions(&mut engine);
        published(&mut engine, Moment(4), 1, too_large());
        let at = if matches!(word, Event::Tick) { Moment(4) + LIMIT_WAIT } else { Moment(5) };
        engine.handle(at, word.clone());
        assert!(actions(&mut engine).iter().any(|action| matches!(action, Action::Fetch { .. })), "{word:?}");
    }
}

#[test]
fn a_case_that_the_broker_refuses_by_itself_keeps_no_other_back() {
    let mut engine = online(0);
    engine.handle(Moment(3), sized(1, 100));
    actions(&mut engine);
    published(&mut engine, Moment(4), 1, Publish::Refused);
    engine.handle(Moment(5), sized(2, 100));
    assert!(sent(&mut engine).is_empty(), "it may be all that it refuses");
    engine.handle(Moment(4) + STUCK_WAIT - Duration::from_millis(1), Event::Tick);
    assert!(sent(&mut engine).is_empty());
    engine.handle(Moment(4) + STUCK_WAIT, Event::Tick);
    assert!(sent(&mut engine).contains(&2));
}

#[test]
fn a_broker_that_takes_cases_to_nobody_is_said_until_it_takes_one() {
    for (outcome, said) in [(Publish::Refused, "refuses this device's cases"), (Publish::Nobody, "has nobody for")] {
        let mut engine = online(0);
        engine.handle(Moment(3), sized(1, 100));
        actions(&mut engine);
        published(&mut engine, Moment(4), 1, outcome);
        let (state, reason) = engine.link();
        assert!(state == LinkState::Degraded && reason.contains(said), "{reason}");
        engine.handle(Moment(4) + NOBODY_WAIT, Event::Tick);
        assert_eq!(sent(&mut engine), [1]);
        assert!(engine.link().1.contains(said), "nothing has been taken yet");
        published(&mut engine, Moment(5) + NOBODY_WAIT, 1, Publish::Acknowledged);
        assert_eq!(engine.link().0, LinkState::Online);
    }
}

#[test]
fn that_a_cloud_asked_for_rest_is_said_and_is_no_fault_of_the_link() {
    let mut engine = online(0);
    engine.handle(Moment(3), Event::Busy { after: Duration::from_secs(u32::MAX.into()) });
    let (state, reason) = engine.link();
    assert!(state == LinkState::Online && reason.contains("asked for rest"), "{reason}");
    engine.handle(Moment(3) + RETRY_AFTER_MAX, Event::Tick);
    assert_eq!(engine.link().1, "connected, and a cloud is there");
}

/// Six cases, of which the broker ends the connection over number 9.
fn poisoned(mut engine: Engine, loss: Loss, bytes: u32) -> (Engine, Moment, usize) {
    for sequence in 0..5 {
        engine.handle(Moment(3), sized(sequence, 5_000));
    }
    engine.handle(Moment(3), sized(9, bytes));
    let (mut now, mut travelled) = (Moment(1_000), 0);
    for _ in 0..3_000 {
        let mut ends = false;
        for action in actions(&mut engine) {
            match action {
                Action::Send { keys, first, .. } => {
                    ends |= keys.contains(&key(9));
                    travelled += usize::from(keys.contains(&key(9)));
                    let passed: Vec<_> = keys.into_iter().filter(|key| key.sequence != 9).collect();
                    let outcome = if first.is_some() { Publish::Named } else { Publish::Acknowledged };
                    engine.handle(now, Event::Published { keys: passed.clone(), outcome });
                    passed.into_iter().for_each(|key| engine.handle(now, Event::Closed { key, spoken: true }));
                }
                Action::Ask { keys } => engine.handle(now, Event::Unknown { keys }),
                _ => {}
            }
        }
        if ends && engine.payload_bytes_max(now).is_some_and(|max| max < bytes.into()) {
            travelled -= 1; // the shell knows better than to send it
            published(&mut engine, now, 9, Publish::TooLarge { bytes_max: None });
        } else if ends {
            now = reconnect(&mut engine, now + Duration::from_millis(300), loss);
        }
        now = now + Duration::from_secs(1);
        engine.handle(now, Event::Tick);
    }
    (engine, now, travelled)
}

#[test]
fn a_case_that_ends_the_connection_is_tried_alone_and_then_held() {
    for loss in [Loss::Broken, Loss::Closed, Loss::Refused] {
        let (mut engine, now, travelled) = poisoned(online(0), loss, 50_000);
        assert_eq!(travelled, 2, "{loss:?}");
        assert_eq!(engine.payload_bytes_max(now), Some(49_999), "others as large may go another way");
        assert_eq!(engine.limit().map(|limit| (limit.from_bytes, limit.bytes_max)), Some((50_000, None)));
        engine.handle(now, sized(20, 60_000));
        engine.handle(now, sized(21, 6_000));
        assert_eq!(sent(&mut engine), [21], "the link is there for the others");
        // Held for an hour, not for good.
        assert!(engine.wake_at().is_some());
        assert_eq!(engine.payload_bytes_max(now + HELD_WAIT), None);
    }
}

#[test]
fn a_case_that_ends_the_connection_whatever_its_size_is_a_dead_letter_in_the_end() {
    let (mut engine, now, travelled) = poisoned(online(0), Loss::Closed, 50);
    assert_eq!((travelled, engine.payload_bytes_max(now), engine.limit()), (2, None, None));
    engine.handle(now, Event::TryCounted { key: key(9), tries: TRIES_MAX, reason: String::from("cut") });
    assert!(actions(&mut engine).contains(&Action::Bury { key: key(9), reason: String::from("cut") }));
}

#[test]
fn a_thumbnail_that_ends_the_connection_is_held_alone() {
    let (mut engine, now, travelled) = poisoned(forms::metered(), Loss::Closed, 2_000);
    assert_eq!((travelled, engine.payload_bytes_max(now), engine.limit()), (2, None, None));
    engine.handle(now, sized(20, 60_000));
    assert_eq!(sent(&mut engine), [20], "the link is there for the others");
    published(&mut engine, now, 20, Publish::Named);
    let again = now + HELD_WAIT;
    assert!(engine.wake_at() <= Some(again), "held for an hour, not for good");
    engine.handle(again, Event::Tick);
    assert_eq!(sent(&mut engine), [9]);
}

#[test]
fn a_link_that_is_cut_at_any_time_holds_nothing_back() {
    let mut engine = online(0);
    let mut now = Moment(10);
    for sequence in 0..200 {
        engine.handle(now, sized(sequence, 50_000));
        sent(&mut engine);
        // Each is cut on its way, far into its send or on a connection that was young.
        let far = sequence % 2 == 0;
        now = now + if far { ALONE_AFTER * 3 } else { Duration::from_secs(1) };
        now = reconnect(&mut engine, now, Loss::Broken);
        for action in actions(&mut engine) {
            if let Action::Ask { keys } = action {
                keys.into_iter().for_each(|key| engine.handle(now, Event::Closed { key, spoken: true }));
            }
        }
    }
    assert_eq!((engine.payload_bytes_max(now), engine.limit()), (None, None));
}

#[test]
fn what_we_end_ourselves_makes_no_suspect() {
    let mut engine = online(0);
    for _ in 0..5 {
        engine.handle(Moment(20_000), sized(1, 5_000));
        engine.handle(Moment(20_000), Event::BrokerChanged);
        reconnect(&mut engine, Moment(20_001), Loss::Broken);
        engine.handle(Moment(20_002), Event::Unknown { keys: vec![key(1)] });
    }
    assert_eq!(engine.payload_bytes_max(Moment(20_003)), None);
}

#[test]
fn nothing_goes_over_the_wire_beyond_a_ceiling_dials_included() {
    const DIAL_BYTES: u64 = 2_400;
    for (tariff, ceiling) in [(Tariff::Metered, 20_000), (Tariff::Metered, 200_000), (Tariff::Lan, 1_000_000)] {
        let mut engine = engine(0, Ceilings { tariff, bytes_per_hour: ceiling, ..Ceilings::LAN });
        let (mut now, mut spent) = (Moment(0), Vec::new());
        while now < Moment(0) + 6 * HOUR {
            let all = actions(&mut engine);
            if all.iter().any(|action| matches!(action, Action::Dial { .. })) {
                spent.push(now);
                engine.handle(now, Event::Connected { receive_maximum: 100 });
                engine.handle(now, cloud(CloudState::Online));
                engine.handle(now, Event::Spent { bytes: DIAL_BYTES });
                engine.handle(now + Duration::from_millis(200), Event::Disconnected(Loss::Broken));
            }
            now = engine.wake_at().expect("dials again").max(now + Duration::from_millis(200));
            engine.handle(now, Event::Tick);
        }
        for first in &spent {
            let within = spent.iter().filter(|at| **at >= *first && at.since(*first) < HOUR).count() as u64;
            assert!(within * DIAL_BYTES < ceiling + DIAL_BYTES, "{within} dials in an hour under {ceiling}");
        }
        assert!(spent.len() > 6, "{} dials: it is tried as soon as there is room", spent.len());
    }
}

#[test]
fn an_operator_reaches_a_device_over_its_budget_as_long_as_the_reserve_lasts() {
    let ceilings = Ceilings::METERED;
    let mut engine = engine(0, ceilings);
    engine.handle(Moment(1), Event::Connected { receive_maximum: 100 });
    engine.handle(Moment(2), cloud(CloudState::Online));
    engine.handle(
        Moment(3),
        Event::Spent { bytes: ceilings.bytes_per_hour - Ceilings::reserve(ceilings.bytes_per_hour) },
    );
    assert_eq!(engine.link().0, LinkState::OverBudget);
    // Half a megabyte: a keep-alive in ten minutes, and a hundred commands with their replies.
    let mut now = Moment(3);
    for _ in 0..100 {
        now = now + Duration::from_secs(30);
        engine.handle(now, Event::Spent { bytes: 4_900 });
        assert_eq!(engine.link().0, LinkState::OverBudget);
    }
    assert!(!actions(&mut engine).contains(&Action::HangUp));
    engine.handle(now, Event::Spent { bytes: 10_000 });
    assert!(actions(&mut engine).contains(&Action::HangUp), "and no byte more");
    engine.handle(now, Event::Disconnected(Loss::Broken));
    let again = engine.wake_at().expect("dials when there is room");
    engine.handle(again, Event::Tick);
    let until = engine.wake_at().map_or(again, |at| at.max(again));
    engine.handle(until, Event::Tick);
    assert!(actions(&mut engine).contains(&Action::Dial { way: Way::Usual }));
}

#[test]
fn a_case_that_cannot_be_read_becomes_a_dead_letter_through_the_engine() {
    let mut engine = online(0);
    engine.handle(Moment(3), sized(7, 100));
    actions(&mut engine);
    engine.handle(Moment(4), Event::Unsendable { key: key(7), reason: String::from("no case") });
    assert_eq!(actions(&mut engine), [Action::Bury { key: key(7), reason: String::from("no case") }]);
}
