use super::clouds::INSTANCES_MAX;
use super::*;
use hedge_proto::{CloudState, WIRE_VERSION};
use std::vec::Vec;

fn status(state: CloudState, wire: &[u16]) -> CloudStatus {
    CloudStatus { state, wire: wire.into(), accept: None, retry_after_s: None, payload_bytes_max: None }
}

fn instance() -> Name {
    Name::new("i1").expect("valid")
}

fn connected() -> Link {
    let mut link = Link::new(Moment(0), true, None, Profile::LAN, 1);
    assert!(link.take_dial(Moment(0)).is_some());
    link.connected(Moment(10));
    link
}

#[test]
fn a_broker_without_a_live_cloud_is_degraded() {
    let mut link = connected();
    assert_eq!(link.state(), LinkState::Degraded);
    link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), true);
    assert_eq!(link.state(), LinkState::Online);
    assert!(link.may_send() && !link.proven());
    link.cloud_status(instance(), status(CloudState::Offline, &[WIRE_VERSION]), false);
    assert_eq!(link.state(), LinkState::Degraded);
    assert!(!link.may_send());
}

#[test]
fn what_the_broker_kept_while_we_were_away_proves_no_live_cloud() {
    let mut link = Link::new(Moment(0), true, None, Profile::LAN, 1);
    assert!(link.take_dial(Moment(0)).is_some());
    link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
    link.cloud_spoke();
    link.connected(Moment(10));
    assert!(link.may_send() && !link.proven());
    link.cloud_spoke();
    assert!(link.proven());
}

#[test]
fn an_old_cloud_is_held_for_and_said_so() {
    let mut link = connected();
    link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION + 1]), false);
    assert!(!link.may_send());
    assert!(link.reason().contains("update the cloud"));
}

const DIAL_WAIT_MAX: Duration = Profile::LAN.dial_wait_max;

/// How long the link waits after a connection that held for so long, and when it dials then.
fn after_session(link: &mut Link, now: Moment, held: Duration, proven: bool, loss: Loss) -> (Duration, Moment) {
    assert!(link.take_dial(now).is_some());
    link.connected(now);
    if proven {
        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
    }
    link.lost(now + held, loss);
    let at = link.dial_at().expect("dials again");
    (at.since(now + held), at)
}

#[test]
fn dial_waits_grow_with_the_trouble_and_a_good_connection_ends_it() {
    let mut link = Link::new(Moment(0), true, None, Profile::LAN, 7);
    let mut now = Moment(0);
    for _ in 0..60 {
        assert!(link.take_dial(now).is_some());
        link.lost(now, Loss::Broken);
        let at = link.dial_at().expect("dials again");
        let most = (now.since(Moment(0)) / DIAL_WAIT_SHARE).clamp(DIAL_WAIT_MIN, DIAL_WAIT_MAX);
        let paid = DIAL_WAIT_MAX / DIAL_WAIT_SHARE;
        assert!(at.since(now) <= most.max(paid) && at.since(now) >= most / 2);
        now = at;
    }
    let few_s = Duration::from_secs(3);
    let (wait, now) = after_session(&mut link, now, few_s, false, Loss::Broken);
    assert!(wait >= DIAL_WAIT_MAX / 2, "a short session on which nobody spoke ends nothing");
    let (wait, now) = after_session(&mut link, now, few_s, true, Loss::Closed);
    assert!(wait >= DIAL_WAIT_MAX / 2, "nor one that the broker ended");
    let (wait, now) = after_session(&mut link, now, few_s, true, Loss::Broken);
    assert!(wait >= DIAL_WAIT_MAX / 2, "nor a word from the cloud alone");
    let (wait, _) = after_session(&mut link, now, STABLE_AFTER, false, Loss::Closed);
    assert!(wait <= DIAL_WAIT_MIN, "it was stable");
}

/// How many dials there are in two hours if every connection ends so soon after the cloud's word, and how many of them
/// in the second.
fn dials(profile: Profile, held: Duration, loss: Loss) -> (usize, usize) {
    let mut link = Link::new(Moment(0), true, None, profile, 3);
    let mut dialled = Vec::new();
    while let Some(at) = link.dial_at().filter(|at| *at < at_s(7200)) {
        assert!(link.take_dial(at).is_some());
        link.connected(at);
        link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
        link.lost(at + held, loss);
        link.dial_now(at + held);
        dialled.push(at);
    }
    (dialled.len(), dialled.iter().filter(|at| **at >= at_s(3600)).count())
}

#[test]
fn however_connections_end_there_are_few_dials_in_the_long_run() {
    for held_ms in [0, 200, 1_000, 3_000, 10_000, 59_000] {
        for loss in [Loss::Broken, Loss::Closed, Loss::Refused, Loss::TakenOver] {
            let held = Duration::from_millis(held_ms);
            let (all, late) = dials(Profile::LAN, held, loss);
            assert!(all <= 726 && late <= 360, "lan, {held:?}, {loss:?}: {all}, {late}");
            let (all, late) = dials(Profile::METERED, held, loss);
            assert!(all <= 126 && late <= 60, "metered, {held:?}, {loss:?}: {all}, {late}");
        }
    }
}

#[test]
fn dead_instances_take_no_place_from_a_living_one() {
    let named = |number: usize| Name::new(&std::format!("i{number}")).expect("valid");
    let mut link = connected();
    for number in 0..300 {
        link.cloud_status(named(number), status(CloudState::Offline, &[]), true);
    }
    assert!(link.reason().contains("says it is offline"), "{}", link.reason());
    link.cloud_status(named(999), status(CloudState::Online, &[WIRE_VERSION]), true);
    assert_eq!(link.state(), LinkState::Online);
    // Nor do those that died without a word, once a living one speaks.
    for number in 0..300 {
        link.cloud_status(named(number), status(CloudState::Online, &[WIRE_VERSION + 1]), true);
    }
    link.cloud_status(named(999), status(CloudState::Offline, &[]), false);
    assert!(!link.may_send());
    link.cloud_status(named(1_000), status(CloudState::Online, &[WIRE_VERSION]), false);
    assert!(link.may_send() && link.instances.len() <= INSTANCES_MAX);
}

#[test]
fn a_spent_budget_ends_the_connection_in_good_order_and_dials_when_there_is_room() {
    let reached = |at| Some(Reached { reason: "the ceiling of bytes per hour is reached", until: at });
    let mut link = connected();
    link.budget(reached(at_s(600)), None);
    assert!(!link.take_leave(at_s(1)), "the reserve is for listening");
    link.budget(reached(at_s(600)), reached(at_s(600)));
    assert!(link.take_leave(at_s(2)) && !link.take_leave(at_s(2)), "once");
    assert!(link.is_leaving());
    link.lost(at_s(3), Loss::Broken);
    link.budget(reached(at_s(600)), reached(at_s(600)));
    link.dial_now(at_s(4));
    assert_eq!((link.state(), link.reason()), (LinkState::Offline, "the ceiling of bytes per hour is reached"));
    assert_eq!((link.dial_at(), link.take_dial(at_s(599))), (Some(at_s(600)), None));
    assert!(link.is_closed(at_s(5)));
    link.budget(None, None);
    assert!(link.take_dial(at_s(600)).is_some());
}

#[test]
fn a_link_that_comes_and_goes_is_met_while_it_is_there() {
    const PHASES_MS: [u64; 7] = [1_000, 30_000, 2_000, 20_000, 5_000, 15_000, 3_000];
    for seed in 0..200 {
        let mut link = Link::new(Moment(0), true, None, Profile::LAN, seed);
        let (mut start, mut met, mut dials) = (0, 0, 0);
        for (number, length) in PHASES_MS.iter().cycle().take(50).enumerate() {
            let end = start + length;
            while let Some(at) = link.dial_at().filter(|at| at.0 < end) {
                assert!(link.take_dial(at).is_some());
                dials += 1;
                if number % 2 == 0 {
                    link.lost(at, Loss::Broken);
                } else {
                    link.connected(at);
                    link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
                    met = at.0;
                }
            }
            if link.is_connected() {
                link.lost(Moment(end), Loss::Broken);
            }
            start = end;
            assert!(start - met < 120_000, "seed {seed}: not met from {met} to {start} ms");
        }
        assert!(dials <= 6 * (start / 60_000 + 1) + 6, "seed {seed}: {dials} dials in {start} ms");
    }
}

#[test]
fn a_taken_over_session_waits_minutes() {
    let mut link = connected();
    link.lost(Moment(20), Loss::TakenOver);
    link.dial_now(Moment(30));
    assert!(link.dial_at().expect("dials again").since(Moment(20)) >= TAKEN_OVER_WAIT / 2);
}

#[test]
fn no_loss_makes_the_wait_shorter_than_the_trouble_has_made_it() {
    for loss in [Loss::Broken, Loss::Closed, Loss::Refused, Loss::TakenOver] {
        let mut link = Link::new(Moment(0), true, None, Profile::METERED, 1);
        let mut now = Moment(0);
        while now < at_s(3600) {
            link.take_dial(now).expect("dials");
            link.lost(now, Loss::Broken);
            now = link.dial_at().expect("dials again");
        }
        for _ in 0..SHORT_SESSIONS {
            assert!(link.take_dial(now).is_some());
            link.connected(now);
            link.lost(now, loss);
            let wait = link.dial_at().expect("dials again").since(now);
            assert!(wait >= Profile::METERED.dial_wait_max / 2, "{loss:?}: {wait:?}");
            now = now + wait;
        }
    }
}

#[test]
fn a_few_connections_closed_at_once_look_like_a_twin_but_a_stable_or_broken_one_does_not() {
    let mut link = Link::new(Moment(0), true, None, Profile::LAN, 1);
    let mut session = |held: Duration, loss: Loss| {
        let now = link.dial_at().expect("dials again");
        assert!(link.take_dial(now).is_some());
        link.connected(now);
        link.lost(now + held, loss);
        link.reason().contains("client id")
    };
    let short = Duration::from_secs(5);
    for end in [Loss::Broken, Loss::Closed] {
        let held = if end == Loss::Closed { STABLE_AFTER } else { short };
        (0..SHORT_SESSIONS - 1).for_each(|_| assert!(!session(short, Loss::Closed)));
        assert!(!session(held, end), "{end:?}");
    }
    (0..SHORT_SESSIONS - 1).for_each(|_| assert!(!session(short, Loss::Closed)));
    assert!(session(short, Loss::Closed));
    assert!(!session(short, Loss::Closed), "and then it is tried anew");
}

#[test]
fn late_answers_degrade_and_a_word_from_the_cloud_heals() {
    let mut link = connected();
    link.cloud_status(instance(), status(CloudState::Online, &[WIRE_VERSION]), false);
    link.expects_word(Moment(1_000), true);
    link.expects_word(Moment(1_000) + ANSWER_LATE_AFTER, true);
    assert_eq!(link.state(), LinkState::Degraded);
    link.expects_word(Moment(99_000), false);
    assert_eq!(link.state(), LinkState::Degraded, "only a word heals");
    link.cloud_spoke();
    assert_eq!(link.state(), LinkState::Online);
}

#[test]
fn other_settings_are_dialled_at_once_whatever_the_link_was_doing() {
    let mut link = connected();
    assert!(link.redial(Moment(50)), "a connection is ended for it");
    link.lost(Moment(60), Loss::Broken);
    assert_eq!(link.take_dial(Moment(60)), Some(Way::Usual));
    assert!(link.redial(Moment(70)), "and so is a dial");
    link.lost(Moment(80), Loss::Broken);
    assert_eq!(link.take_dial(Moment(80)), Some(Way::Usual));
    link.lost(Moment(90), Loss::TakenOver);
    assert!(!link.redial(Moment(95)), "a wait is only cut short");
    assert_eq!(link.take_dial(Moment(95)), Some(Way::Usual));
}

#[test]
fn after_long_without_a_connection_every_second_dial_goes_the_recovery_way() {
    let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), Profile::LAN, 1);
    let mut ways = Vec::new();
    let mut now = Moment(0);
    while now < Moment(0) + RECOVERY_AFTER * 2 {
        ways.push((now, link.take_dial(now).expect("dials")));
        link.lost(now, Loss::Broken);
        now = link.dial_at().expect("dials again");
    }
    let early = |at: &Moment| *at < Moment(0) + RECOVERY_AFTER;
    assert!(ways.iter().all(|(at, way)| !early(at) || *way == Way::Usual), "{ways:?}");
    let late: Vec<Way> = ways.iter().filter(|(at, _)| !early(at)).map(|(_, way)| *way).collect();
    assert!(late.chunks_exact(2).all(|pair| pair[0] != pair[1]), "{late:?}");
}

#[test]
fn the_recovery_way_is_left_in_time_to_try_the_usual_one() {
    let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), Profile::LAN, 1);
    assert_eq!(link.take_dial(Moment(0)), Some(Way::Usual));
    let now = Moment(0) + RECOVERY_AFTER;
    link.lost(now, Loss::Broken);
    let now = link.dial_at().expect("dials again");
    assert_eq!(link.take_dial(now), Some(Way::Recovery));
    link.connected(now);
    let at = link.leave_at().expect("is left");
    assert!(!link.take_leave(at - Duration::from_millis(1)));
    assert!(link.take_leave(at));
    assert!(!link.take_leave(at), "once");
    link.lost(at, Loss::Broken);
    assert_eq!(link.take_dial(at), Some(Way::Usual));
}

const HOURLY: Profile = Profile {
    windows: Some(Windows { every: Duration::from_secs(3600), open: Duration::from_secs(120) }),
    ..Profile::METERED
};

fn at_s(seconds: u64) -> Moment {
    Moment(seconds * 1000)
}

#[test]
fn between_windows_the_radio_rests_whatever_the_network_does() {
    let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), HOURLY, 1);
    for hour in 0..20 {
        let begins = at_s(3600 * hour);
        assert_eq!(link.take_dial(begins), Some(Way::Usual), "hour {hour}: a rest is no outage");
        link.connected(begins + Duration::from_secs(5));
        let end = link.leave_at().expect("is left");
        assert_eq!(end, begins + Duration::from_secs(125), "a slow dial does not shorten the stay");
        assert!(!link.take_leave(end - Duration::from_millis(1)) && !link.is_closed(end));
        assert!(link.take_leave(end) && !link.take_leave(end), "once");
        // The broker may be faster than we are.
        link.lost(end, if hour % 2 == 0 { Loss::Closed } else { Loss::Broken });
        link.explain(Trouble::Lost);
        assert_eq!((link.state(), link.reason()), (LinkState::Resting, RESTS), "hour {hour}: no trouble");
        assert!(link.is_closed(end));
        link.dial_now(end + Duration::from_secs(60));
        assert_eq!(link.dial_at(), Some(begins + Duration::from_secs(3600)), "windows do not drift");
    }
}

#[test]
fn a_window_without_a_connection_is_given_up_at_its_end_and_leaves_the_device_offline() {
    let mut link = Link::new(Moment(0), true, Some(RECOVERY_AFTER), HOURLY, 1);
    let (mut now, mut ways) = (Moment(0), Vec::new());
    while now < at_s(4 * 3600) {
        ways.push(link.take_dial(now).expect("dials"));
        link.lost(now, Loss::Broken);
        assert_eq!(link.state(), LinkState::Offline);
        now = link.dial_at().expect("dials again");
        let into = Duration::from_millis(now.0 % 3_600_000);
        assert!(into < Duration::from_secs(120), "{into:?} after a window began");
    }
    assert!(ways.len() >= 16 && ways.contains(&Way::Recovery), "tried, and tried the other way: {ways:?}");
}

#[test]
fn a_connection_that_breaks_in_its_window_is_dialled_anew_but_not_for_longer() {
    let mut link = Link::new(Moment(0), true, None, HOURLY, 1);
    assert!(link.take_dial(Moment(0)).is_some());
    link.connected(Moment(0));
    link.lost(at_s(60), Loss::Broken);
    let again = link.dial_at().expect("dials again");
    assert!(again < at_s(120) && link.take_dial(again).is_some());
    link.connected(again);
    assert_eq!(link.leave_at(), Some(at_s(120)));
    link.lost(at_s(119), Loss::Broken);
    if link.dial_at().expect("dials again") < at_s(120) {
        assert_eq!(link.state(), LinkState::Offline);
        link.lost(at_s(121), Loss::Broken);
    }
    assert_eq!((link.state(), link.dial_at()), (LinkState::Resting, Some(at_s(3600))));
}

#[test]
fn another_client_with_our_name_is_left_in_peace_for_minutes_also_with_short_windows() {
    let windows = Some(Windows { every: Duration::from_secs(60), open: Duration::from_secs(30) });
    let mut link = Link::new(Moment(0), true, None, Profile { windows, ..Profile::LAN }, 1);
    assert!(link.take_dial(Moment(0)).is_some());
    link.connected(Moment(0));
    link.lost(at_s(10), Loss::TakenOver);
    assert_eq!(link.state(), LinkState::Offline);
    assert!(link.dial_at().expect("dials again").since(at_s(10)) >= TAKEN_OVER_WAIT / 2);
}

#[test]
fn other_windows_begin_with_an_open_one_and_none_is_for_good() {
    let mut link = Link::new(Moment(0), true, None, HOURLY, 1);
    assert!(link.take_dial(Moment(0)).is_some());
    link.connected(Moment(0));
    link.set_profile(at_s(100), Profile::METERED);
    assert_eq!(link.leave_at(), None);
    link.set_profile(at_s(1200), HOURLY);
    assert_eq!(link.leave_at(), Some(at_s(1320)));
    assert!(link.take_leave(at_s(1320)));
    link.lost(at_s(1321), Loss::Broken);
    assert_eq!((link.state(), link.dial_at()), (LinkState::Resting, Some(at_s(1200 + 3600))));
    link.set_profile(at_s(2000), Profile::METERED);
    assert_eq!(link.dial_at(), Some(at_s(2000)));
}

#[test]
fn without_a_broker_it_never_dials() {
    let mut link = Link::new(Moment(0), false, None, Profile::LAN, 1);
    link.dial_now(Moment(5));
    assert_eq!(link.take_dial(Moment(1_000_000)), None);
    assert_eq!(link.state(), LinkState::Offline);
}

#[test]
fn the_most_generous_instance_sets_the_pace_and_all_must_ask_for_rest() {
    let mut link = connected();
    let mut first = status(CloudState::Online, &[WIRE_VERSION]);
    (first.accept, first.retry_after_s) = (Some(2.0), Some(9));
    link.cloud_status(instance(), first.clone(), true);
    assert_eq!((link.accept_per_s(), link.retry_after()), (Some(2.0), Some(Duration::from_secs(9))));
    first.retry_after_s = Some(u32::MAX);
    link.cloud_status(instance(), first.clone(), true);
    assert_eq!(link.retry_after(), Some(RETRY_AFTER_MAX), "nobody is silenced for good");
    (first.accept, first.retry_after_s) = (Some(5.0), None);
    link.cloud_status(Name::new("i2").expect("valid"), first.clone(), true);
    assert_eq!((link.accept_per_s(), link.retry_after()), (Some(5.0), None));
    first.accept = None;
    link.cloud_status(Name::new("i3").expect("valid"), first, true);
    assert_eq!(link.accept_per_s(), None);
}

#[test]
fn a_payload_is_no_larger_than_any_instance_takes() {
    let mut link = connected();
    assert_eq!(link.payload_bytes_max(), None);
    for (name, state, bytes) in [
        ("i1", CloudState::Online, Some(2_000)),
        ("i2", CloudState::Online, None),
        ("i3", CloudState::Online, Some(3_000)),
        ("i4", CloudState::Offline, Some(1)),
    ] {
        let status = CloudStatus { payload_bytes_max: bytes, ..status(state, &[WIRE_VERSION]) };
        link.cloud_status(Name::new(name).expect("valid"), status, true);
    }
    assert_eq!(link.payload_bytes_max(), Some(2_000));
}
