use super::*;
use hedge_proto::{Epoch, PayloadForm};

const PROVEN: Permission = Permission { proven: true, accept_per_s: None };

fn key(sequence: u64) -> CaseKey {
    CaseKey { epoch: Epoch(1), sequence }
}

fn fresh(sequence: u64, sort_key: f64) -> Waiting {
    let stored_at = Moment(0);
    Waiting { key: key(sequence), sort_key, stored_at, payload_bytes: 100_000, sent: false, urgent: false }
}

fn with_cases(count: u64) -> Uplink {
    let mut uplink = Uplink::new(64 * 1024).trusting();
    for sequence in 0..count {
        assert!(uplink.add(Moment(0), fresh(sequence, sequence as f64)));
    }
    uplink
}

fn sends(uplink: &mut Uplink, now: Moment, permission: Permission) -> usize {
    core::iter::from_fn(|| uplink.step(now, permission)).filter(|step| matches!(step, Step::Send(_))).count()
}

#[test]
fn the_most_valuable_case_goes_first() {
    assert_eq!(with_cases(5).step(Moment(1), PROVEN), Some(Step::Send([key(4)].into())));
}

#[test]
fn puback_frees_a_slot_of_the_window_and_the_word_of_the_cloud_one_of_the_unconfirmed() {
    let mut uplink = with_cases(100);
    let mut sent = 0;
    while sent < UNCONFIRMED_MAX {
        assert_eq!(sends(&mut uplink, Moment(1), PROVEN), WINDOW_MAX);
        sent += WINDOW_MAX;
        let acknowledged: Vec<CaseKey> = (0..100).map(key).collect();
        uplink.published(Moment(1), &acknowledged, Publish::Acknowledged);
    }
    assert_eq!(sends(&mut uplink, Moment(2), PROVEN), 0, "the cloud has said nothing");
    uplink.received(Moment(2), &[key(99), key(98)]);
    assert_eq!(sends(&mut uplink, Moment(3), PROVEN), 2);
}

#[test]
fn a_word_that_comes_twice_sends_a_payload_once() {
    let mut uplink = with_cases(1);
    let send = Some(Step::Send([key(0)].into()));
    assert_eq!(uplink.step(Moment(1), PROVEN), send);
    for (at, form) in [(2, PayloadForm::Whole), (3, PayloadForm::Thumbnail)] {
        uplink.received(Moment(at), &[key(0)]);
        uplink.wanted_as(Moment(at), key(0), form);
        assert_eq!(uplink.step(Moment(at), PROVEN), send, "{form:?}");
        for _ in 0..2 {
            uplink.wanted_as(Moment(at), key(0), form);
            uplink.wanted(Moment(at), key(0));
            assert_eq!(uplink.step(Moment(at), PROVEN), None, "{form:?} is on its way");
            uplink.published(Moment(at), &[key(0)], Publish::Acknowledged);
        }
        assert_eq!(uplink.goes_whole(&[key(0)]), form == PayloadForm::Whole);
    }
}

#[test]
fn a_thumbnail_on_its_way_is_not_the_whole_that_is_wanted() {
    let mut uplink = with_cases(1);
    let send = Some(Step::Send([key(0)].into()));
    assert_eq!(uplink.step(Moment(1), PROVEN), send);
    uplink.wanted_as(Moment(2), key(0), PayloadForm::Whole);
    assert_eq!(uplink.step(Moment(2), PROVEN), send);
    assert!(uplink.goes_whole(&[key(0)]));
}

#[test]
fn while_no_cloud_is_proven_one_case_is_the_probe() {
    let mut uplink = with_cases(10);
    assert_eq!(sends(&mut uplink, Moment(1), Permission { proven: false, accept_per_s: None }), 1);
}

#[test]
fn after_a_cut_a_published_case_is_asked_about_not_sent_again() {
    let mut uplink = with_cases(1);
    assert_eq!(uplink.step(Moment(1), PROVEN), Some(Step::Send([key(0)].into())));
    uplink.published(Moment(2), &[key(0)], Publish::Unclear);
    assert_eq!(uplink.disconnected(Moment(2), None), None);
    assert_eq!(uplink.step(Moment(3), PROVEN), Some(Step::Ask([key(0)].into())));
    uplink.wanted(Moment(4), key(0));
    assert_eq!(uplink.step(Moment(5), PROVEN), Some(Step::Send([key(0)].into())));
}

#[test]
fn silence_leads_to_questions_ever_more_rarely_and_never_to_a_second_payload() {
    let mut uplink = with_cases(1);
    assert_eq!(uplink.step(Moment(0), PROVEN), Some(Step::Send([key(0)].into())));
    uplink.published(Moment(0), &[key(0)], Publish::Acknowledged);
    let mut now = Moment(0);
    let mut questions = 0;
    while now < Moment(24 * 3_600_000) {
        now = uplink.wake_at(PROVEN).expect("something is due");
        match uplink.step(now, PROVEN) {
            Some(Step::Ask(_)) => questions += 1,
            other => assert_eq!(other, None),
        }
    }
    assert!((48..70).contains(&questions), "{questions} questions in a day");
}

#[test]
fn nobody_subscribing_means_send_again_later() {
    let mut uplink = with_cases(1);
    assert!(uplink.step(Moment(0), PROVEN).is_some());
    uplink.published(Moment(1), &[key(0)], Publish::Nobody);
    assert_eq!(uplink.step(Moment(2), PROVEN), None);
    assert_eq!(uplink.step(Moment(1) + NOBODY_WAIT, PROVEN), Some(Step::Send([key(0)].into())));
}

#[test]
fn payloads_are_not_poured_out_where_nobody_listens() {
    let mut uplink = with_cases(100);
    let probe = Permission { proven: false, accept_per_s: None };
    let mut now = Moment(0);
    let mut payloads = 0;
    while now < Moment(3_600_000) {
        if let Some(Step::Send(keys)) = uplink.step(now, probe) {
            payloads += 1;
            uplink.published(now, &keys, Publish::Nobody);
        }
        now = uplink.wake_at(probe).expect("tries again");
    }
    assert!((8..16).contains(&payloads), "{payloads} in an hour");
    assert_eq!(uplink.step(now - Duration::from_secs(1), PROVEN), None);
    uplink.somebody_listens();
    assert!(matches!(uplink.step(now - Duration::from_secs(1), PROVEN), Some(Step::Send(_))));
}

#[test]
fn a_case_that_fails_too_often_is_given_up_and_blocks_nobody() {
    let mut uplink = with_cases(2);
    for tries in 1..TRIES_MAX {
        assert!(uplink.failed(Moment(0), key(1), tries));
        assert_eq!(uplink.step(Moment(1), PROVEN).is_some(), tries == 1, "the other case is free to go");
    }
    assert!(!uplink.failed(Moment(0), key(1), TRIES_MAX));
    assert_eq!(uplink.step(Moment(1), PROVEN), None);
    uplink.forget(key(1));
    assert!(!uplink.knows(key(1)));
}

#[test]
fn busy_and_pace_are_obeyed() {
    let mut uplink = with_cases(9);
    uplink.hold(Moment(5_000));
    assert_eq!(uplink.step(Moment(4_999), PROVEN), None);
    uplink.trust();
    let slow = Permission { proven: true, accept_per_s: Some(2.0) };
    assert_eq!(sends(&mut uplink, Moment(5_000), slow), 1);
    assert_eq!(sends(&mut uplink, Moment(5_499), slow), 0);
    assert_eq!(sends(&mut uplink, Moment(5_500), slow), 1);
    assert_eq!(sends(&mut uplink, Moment(9_000), Permission { proven: true, accept_per_s: Some(0.0) }), 0);
}

#[test]
fn memory_is_bounded_and_keeps_the_most_valuable() {
    let mut uplink = with_cases(READY_MAX as u64);
    assert!(!uplink.add(Moment(1), fresh(9_000, -1.0)), "worth less than all");
    assert!(!uplink.add(Moment(1), fresh(9_001, 1e6)), "a lesser one is left to the disk");
    assert_eq!(uplink.len(), READY_MAX);
    assert!(uplink.knows(key(9_001)) && !uplink.knows(key(0)));
}

#[test]
fn what_waits_for_a_slot_or_for_a_cloud_that_takes_nothing_wakes_nobody() {
    let mut uplink = with_cases(WINDOW_MAX as u64 + 1);
    assert_eq!(sends(&mut uplink, Moment(1), PROVEN), WINDOW_MAX);
    assert_eq!(uplink.wake_at(PROVEN), None, "the window is full");
    uplink.published(Moment(2), &[key(3)], Publish::Acknowledged);
    assert_eq!(sends(&mut uplink, Moment(2), PROVEN), 1);
    assert_eq!(uplink.wake_at(PROVEN), Some(Moment(2) + RECEIVED_WAIT));
    let nothing = Permission { proven: true, accept_per_s: Some(0.0) };
    assert_eq!(with_cases(1).wake_at(nothing), None);
}

#[test]
fn small_cases_share_their_first_publish_and_large_or_repeated_ones_do_not() {
    let mut uplink = Uplink::new(10_000).trusting();
    for sequence in 0..5 {
        uplink.add(Moment(0), Waiting { payload_bytes: 3_000, ..fresh(sequence, sequence as f64) });
    }
    uplink.add(Moment(0), fresh(9, -1.0));
    let first = [key(4), key(3), key(2)];
    assert_eq!(uplink.step(Moment(1), PROVEN), Some(Step::Send(first.into())));
    assert_eq!(uplink.step(Moment(1), PROVEN), Some(Step::Send([key(1), key(0)].into())));
    assert_eq!(uplink.step(Moment(1), PROVEN), Some(Step::Send([key(9)].into())));
    uplink.received(Moment(2), &first);
    first.iter().for_each(|key| uplink.wanted(Moment(3), *key));
    assert_eq!(uplink.step(Moment(4), PROVEN), Some(Step::Send([key(4)].into())));
}

#[test]
fn somebody_who_waits_goes_first_and_fresh_cases_get_every_fourth_publish() {
    let mut uplink = Uplink::new(0).trusting();
    let old = |sequence: u64| fresh(sequence, 1_000.0 - sequence as f64);
    (0..50).for_each(|sequence| assert!(uplink.add(Moment(0), old(sequence))));
    let now = Moment(10_000_000);
    for sequence in 100..110 {
        uplink.add(now, Waiting { stored_at: now, ..fresh(sequence, 0.0) });
    }
    uplink.add(now, Waiting { urgent: true, ..fresh(200, -5.0) });
    let order: Vec<u64> = core::iter::from_fn(|| uplink.step(now, PROVEN))
        .filter_map(|step| if let Step::Send(keys) = step { keys.first().map(|key| key.sequence) } else { None })
        .take(9)
        .collect();
    assert_eq!(order, [200, 0, 1, 109, 2, 3, 4, 108, 5]);
}

#[test]
fn a_cloud_slower_than_the_device_stops_new_sends_not_memory() {
    let mut uplink = Uplink::new(64 * 1024).trusting();
    for sequence in 0..2 * OWED_MAX as u64 {
        uplink.add(Moment(0), fresh(sequence, 0.0));
        if let Some(Step::Send(keys)) = uplink.step(Moment(0), PROVEN) {
            uplink.published(Moment(0), &keys, Publish::Acknowledged);
            uplink.received(Moment(0), &keys);
        }
    }
    assert_eq!(uplink.owed(), OWED_MAX);
}

#[test]
fn a_drain_ends_the_waits_of_failures_but_not_a_rest_the_cloud_asked_for() {
    let mut uplink = with_cases(1);
    assert_eq!(uplink.step(Moment(0), PROVEN), Some(Step::Send([key(0)].into())));
    uplink.published(Moment(1), &[key(0)], Publish::Acknowledged);
    assert!(uplink.failed(Moment(2), key(0), 3));
    uplink.hold(Moment(2_000));
    uplink.forget_failures(Moment(3));
    assert_eq!(uplink.step(Moment(4), PROVEN), None, "the cloud rests");
    assert_eq!(uplink.step(Moment(2_000), PROVEN), Some(Step::Ask([key(0)].into())));
}

#[test]
fn what_a_message_or_the_link_does_not_carry_goes_another_way() {
    assert_eq!(travel(1_000, 1_000, None), Travel::Message);
    assert_eq!(travel(1_001, 1_000, None), Travel::Upload);
    assert_eq!(travel(150_001, 1_000_000, Some(2_500.0)), Travel::Upload, "more than a minute at 20 kbit/s");
    assert_eq!(travel(150_000, 1_000_000, Some(2_500.0)), Travel::Message);
}

#[test]
fn a_late_word_that_nobody_listens_keeps_the_next_payload_back_as_well() {
    let mut uplink = with_cases(2);
    assert_eq!(sends(&mut uplink, Moment(1), PROVEN), 2);
    uplink.published(Moment(10), &[key(0)], Publish::Nobody);
    let late = Moment(10) + NOBODY_WAIT / 2;
    uplink.published(late, &[key(1)], Publish::Nobody);
    assert_eq!(sends(&mut uplink, Moment(10) + NOBODY_WAIT, PROVEN), 0, "too soon after the last one");
    assert_eq!(sends(&mut uplink, late + NOBODY_WAIT, PROVEN), 2);
}

#[test]
fn one_case_that_ends_connections_does_not_hold_up_others_of_its_size_for_ever() {
    let mut uplink = with_cases(2);
    let poison = key(1);
    let mut now = Moment(0);
    let mut passed = false;
    // The broker ends each connection over the one, and takes the other.
    for _ in 0..10_000 {
        now = now + Duration::from_secs(30);
        uplink.look_again(now);
        let Some(step) = uplink.step(now, PROVEN) else { continue };
        let keys = match step {
            Step::Send(keys) => keys,
            Step::Ask(keys) => {
                keys.iter().for_each(|key| uplink.wanted(now, *key));
                continue;
            }
        };
        if keys == [poison] || keys.len() > 1 {
            uplink.published(now, &keys, Publish::Unclear);
            uplink.disconnected(now, Some(Loss::Refused));
            uplink.connected(now, 100);
        } else {
            passed = true;
            break;
        }
    }
    assert!(passed, "the other one never set out");
}

/// So many devices come back at once to a cloud that takes one case in `takes`, in the order they came. Returns how many
/// cases were asked about, how many lay before it at most, and when all were answered.
fn herd(devices: usize, cases: u64, takes: Duration) -> (usize, usize, Moment) {
    let mut fleet: Vec<Uplink> = (0..devices).map(|_| Uplink::new(64 * 1024)).collect();
    let (mut queue, mut asked, mut most) = (std::collections::VecDeque::new(), 0, 0);
    for uplink in &mut fleet {
        (0..cases).for_each(|sequence| {
            uplink.add(Moment(0), Waiting { payload_bytes: 1_000, ..fresh(sequence, 0.0) });
        });
        uplink.connected(Moment(0), 100);
    }
    let (mut now, mut left) = (Moment(0), devices * usize::try_from(cases).expect("few"));
    while left > 0 {
        for (device, uplink) in fleet.iter_mut().enumerate() {
            while let Some(step) = uplink.step(now, PROVEN) {
                match step {
                    Step::Ask(keys) => asked += keys.len(),
                    Step::Send(keys) => {
                        uplink.published(now, &keys, Publish::Acknowledged);
                        queue.extend(keys.into_iter().map(|key| (device, key)));
                    }
                }
            }
        }
        most = most.max(queue.len());
        now = now + takes;
        if let Some((device, key)) = queue.pop_front() {
            fleet[device].received(now, &[key]);
            fleet[device].forget(key);
            left -= 1;
        }
    }
    (asked, most, now)
}

#[test]
fn a_fleet_that_comes_back_at_once_lays_no_more_before_the_cloud_than_it_takes_in_time() {
    // Two seconds of work if each device sends one case.
    let (asked, most, done) = herd(200, 20, Duration::from_millis(10));
    assert_eq!((asked, done), (0, Moment(40_000)), "asked about, answered");
    assert!(most <= 1_000, "{most} cases wait");
    // One device finds out within a second that it has the cloud to itself.
    let (_, most, _) = herd(1, 200, Duration::from_millis(1));
    assert!(most >= 64, "{most} cases at once");
}

#[test]
fn words_on_what_was_sent_before_a_rest_do_not_let_more_set_out_after_it() {
    let mut uplink = with_cases(100);
    let sent: Vec<CaseKey> = core::iter::from_fn(|| match uplink.step(Moment(1), PROVEN)? {
        Step::Send(keys) => Some(keys),
        Step::Ask(_) => None,
    })
    .flatten()
    .collect();
    uplink.published(Moment(2), &sent, Publish::Acknowledged);
    uplink.hold(Moment(10_000));
    uplink.received(Moment(3), &sent);
    assert_eq!((sent.len(), sends(&mut uplink, Moment(10_000), PROVEN)), (WINDOW_MAX, 1));
}
