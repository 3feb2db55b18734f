//! Which form of a payload goes when: a thumbnail first, the whole when the cloud asks for it.

use super::*;
use crate::uplink::SENDS_PER_HOUR_MAX;
use hedge_proto::Payload;

const SIDE: u32 = 320;

/// Over whose link thumbnails go first.
pub(super) fn metered() -> Engine {
    let mut engine = online(0);
    configure(&mut engine, Payload::ThumbnailFirst(SIDE));
    actions(&mut engine);
    engine
}

fn configure(engine: &mut Engine, payload: Payload) {
    let mut policies = Policies::DEFAULT;
    policies.online.payload = payload;
    let configured = Configured { profile: Profile::LAN, policies, ceilings: Ceilings::LAN, batch_bytes_max: 0 };
    engine.handle(Moment(2), Event::Configured(Box::new(configured)));
}

fn wanted(form: PayloadForm) -> Event {
    Event::Wanted { key: key(7), form }
}

/// What goes of case 7: a thumbnail, or the whole.
fn goes(first: Option<u32>) -> [Action; 1] {
    [Action::Send { keys: vec![key(7)], first, offers: true }]
}

fn acknowledge(engine: &mut Engine, at: u64) {
    engine.handle(Moment(at), Event::Published { keys: vec![key(7)], outcome: Publish::Named });
    engine.handle(Moment(at), Event::Received { keys: vec![key(7)] });
    actions(engine);
}

#[test]
fn a_thumbnail_goes_first_and_the_whole_when_the_cloud_asks_for_it() {
    let mut engine = metered();
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    assert_eq!(actions(&mut engine), goes(Some(SIDE)));
    acknowledge(&mut engine, 4);
    engine.handle(Moment(5), wanted(PayloadForm::Whole));
    assert_eq!(actions(&mut engine), goes(None));
    // Its records are gone: it starts with a thumbnail again.
    acknowledge(&mut engine, 6);
    engine.handle(Moment(7), Event::Unknown { keys: vec![key(7)] });
    assert_eq!(actions(&mut engine), goes(Some(SIDE)));
}

#[test]
fn the_last_one_under_a_ceiling_goes_as_a_thumbnail_too() {
    let mut engine = metered();
    let mut policies = Policies::DEFAULT;
    policies.online.payload = Payload::ThumbnailFirst(SIDE);
    let ceilings = Ceilings { cases_per_hour: 1, ..Ceilings::LAN };
    let configured = Configured { profile: Profile::LAN, policies, ceilings, batch_bytes_max: 0 };
    engine.handle(Moment(2), Event::Configured(Box::new(configured)));
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    assert_eq!(actions(&mut engine)[..1], goes(Some(SIDE)));
}

#[test]
fn nothing_richer_than_what_was_offered_is_sent_at_a_word() {
    for form in [PayloadForm::Nothing, PayloadForm::Embedding, PayloadForm::Thumbnail, PayloadForm::Crop] {
        let mut engine = metered();
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        actions(&mut engine);
        acknowledge(&mut engine, 4);
        engine.handle(Moment(5), wanted(form));
        assert_eq!(actions(&mut engine), goes(Some(SIDE)), "{form:?}");
    }
    // Nor for one that was never sent, of which the cloud cannot know.
    let mut engine = metered();
    engine.handle(Moment(3), Event::Busy { after: Duration::from_secs(1) });
    assert!(matches!(actions(&mut engine)[..], [Action::LinkChanged { .. }]));
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    engine.handle(Moment(4), wanted(PayloadForm::Whole));
    assert_eq!(actions(&mut engine), []);
    engine.handle(Moment(2_000), Event::Tick);
    assert_eq!(actions(&mut engine)[..1], goes(Some(SIDE)));
}

#[test]
fn after_a_restart_the_cloud_is_asked_and_its_word_brings_the_whole() {
    let mut engine = metered();
    engine.handle(Moment(3), Event::Stored(waiting(7, true)));
    assert_eq!(actions(&mut engine), [Action::Ask { keys: vec![key(7)] }]);
    engine.handle(Moment(4), wanted(PayloadForm::Whole));
    assert_eq!(actions(&mut engine), goes(None));
}

#[test]
fn thumbnail_and_whole_share_what_a_payload_may_travel_in_an_hour() {
    let mut engine = metered();
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    let (mut now, mut at) = (Moment(3), Vec::new());
    while now < Moment(0) + Duration::from_secs(6 * 3600) {
        let sent = actions(&mut engine).into_iter().filter(|action| matches!(action, Action::Send { .. })).count();
        at.extend(core::iter::repeat_n(now, sent));
        engine.handle(now, Event::Published { keys: vec![key(7)], outcome: Publish::Named });
        engine.handle(now, wanted(PayloadForm::Whole));
        now = now + Duration::from_secs(1);
        engine.handle(now, Event::Tick);
    }
    let within = |first: &Moment| at.iter().filter(|at| *at >= first && at.since(*first).as_secs() < 3600).count();
    let most = at.iter().map(within).max();
    assert!(most <= Some(SENDS_PER_HOUR_MAX as usize) && at.len() > 10, "{most:?} of {}", at.len());
}

#[test]
fn a_whole_that_is_too_large_for_a_message_is_offered_no_more_and_keeps_no_thumbnail_back() {
    let mut engine = metered();
    engine.handle(Moment(3), Event::Stored(waiting(7, false)));
    actions(&mut engine);
    acknowledge(&mut engine, 4);
    engine.handle(Moment(5), wanted(PayloadForm::Whole));
    actions(&mut engine);
    let outcome = Publish::TooLarge { bytes_max: Some(10_000) };
    engine.handle(Moment(6), Event::Published { keys: vec![key(7)], outcome });
    let last = [Action::Send { keys: vec![key(7)], first: Some(SIDE), offers: false }];
    assert_eq!((actions(&mut engine), engine.limit()), (last.to_vec(), None));
    engine.handle(Moment(7), Event::Stored(waiting(8, false)));
    assert_eq!(actions(&mut engine), [Action::Send { keys: vec![key(8)], first: Some(SIDE), offers: true }]);
    // A word that crossed it changes nothing.
    acknowledge(&mut engine, 8);
    engine.handle(Moment(9), wanted(PayloadForm::Whole));
    engine.handle(Moment(9) + Duration::from_secs(3600), Event::Tick);
    assert!(actions(&mut engine).contains(&last[0]));
}

#[test]
fn what_is_stored_goes_as_it_is_unless_thumbnails_go_first_over_this_link() {
    for payload in [Payload::Whole, Payload::Thumbnail(SIDE), Payload::Nothing] {
        let mut engine = metered();
        configure(&mut engine, payload);
        engine.handle(Moment(3), Event::Stored(waiting(7, false)));
        assert_eq!(actions(&mut engine), goes(None), "{payload:?}");
    }
}
