use std::string::ToString as _;
use std::vec;
use std::vec::Vec;

use proptest::prelude::*;

use super::*;

const DAY: u64 = 24 * 3600 * 1000;
const NOW: u64 = 20_000 * DAY;

fn key(number: u8) -> PublicKey {
    let mut point = [number; 65];
    point[0] = 4;
    PublicKey(point)
}

fn role(threshold: usize, keys: &[u8]) -> Role {
    Role { threshold, keys: keys.iter().map(|number| key(*number)).collect() }
}

/// Root keys 1 to 3, of which two must sign; release keys 11 and 12, of which one must.
fn root(version: u64) -> Root {
    let (root, release) = (role(2, &[1, 2, 3]), role(1, &[11, 12]));
    Root { version, issued_ms: NOW - 10 * DAY, expires_ms: NOW + 300 * DAY, root, release }
}

fn entry(version: &str) -> Entry {
    let name = |text| Name::new(text).expect("a name");
    Entry { name: name("m"), version: name(version), signature: Digest::of(b"sig"), bytes: 9, devices: None }
}

fn list(version: u64) -> List {
    List { version, issued_ms: NOW - DAY, expires_ms: NOW + 29 * DAY, bundles: vec![entry("1")] }
}

fn clock() -> Dates {
    Dates { wall_ms: NOW, built_ms: NOW - 100 * DAY, certificate_ms: 0, powered: Moment(1000) }
}

fn none() -> Dates {
    Dates { wall_ms: 0, built_ms: 0, ..clock() }
}

/// Signed by the keys of these numbers, whoever asks.
fn by(keys: &[u8]) -> impl Fn(&BTreeSet<PublicKey>) -> BTreeSet<PublicKey> {
    let signed: BTreeSet<_> = keys.iter().map(|number| key(*number)).collect();
    move |asked| asked.intersection(&signed).copied().collect()
}

fn bytes<T: Serialize>(document: &T) -> Vec<u8> {
    serde_json::to_vec(document).expect("JSON")
}

fn trusted() -> Trusted {
    Trusted::begin(root(1)).expect("a root")
}

fn with_list(version: u64) -> Trusted {
    let mut trusted = trusted();
    trusted.next_list(&bytes(&list(version)), by(&[11]), clock()).expect("a list");
    trusted
}

fn ask(trusted: &Trusted, version: &str, dates: Dates) -> Result<(), Refused> {
    let name = |text| Name::new(text).expect("a name");
    trusted.entry(&name("m"), &name(version), &name("gate-7"), dates).map(drop)
}

/// Whether it is refused, and with it nothing changes.
#[track_caller]
fn refused(trusted: &mut Trusted, attempt: impl FnOnce(&mut Trusted) -> Result<(), Refused>) -> Refused {
    let before = trusted.clone();
    let why = attempt(trusted).expect_err("it is refused");
    assert_eq!(*trusted, before, "what is refused changes nothing");
    why
}

#[test]
fn a_list_of_a_wrong_or_revoked_key_is_refused() {
    let mut trusted = trusted();
    let payload = bytes(&list(1));
    let why = refused(&mut trusted, |trusted| trusted.next_list(&payload, by(&[99, 1, 2, 3]), clock()));
    assert!(matches!(why, Refused::TooFewSignatures { valid: 0, threshold: 1, .. }), "{why}");
    let next = Root { release: role(1, &[12]), ..root(2) };
    trusted.next_root(&bytes(&next), by(&[1, 2])).expect("the next root");
    let why = refused(&mut trusted, |trusted| trusted.next_list(&payload, by(&[11]), clock()));
    assert!(matches!(why, Refused::TooFewSignatures { .. }), "a revoked key: {why}");
    trusted.next_list(&payload, by(&[12]), clock()).expect("the key that is left");
}

#[test]
fn nothing_is_parsed_before_enough_keys_have_signed() {
    let mut trusted = trusted();
    let why = refused(&mut trusted, |trusted| trusted.next_list(b"\xff{{{", by(&[]), clock()));
    assert!(matches!(why, Refused::TooFewSignatures { .. }), "{why}");
    let why = refused(&mut trusted, |trusted| trusted.next_root(b"\xff{{{", by(&[1])));
    assert!(matches!(why, Refused::TooFewSignatures { valid: 1, threshold: 2, .. }), "{why}");
    let why = refused(&mut trusted, |trusted| trusted.next_root(b"\xff{{{", by(&[1, 2])));
    assert!(matches!(why, Refused::Malformed { .. }), "{why}");
}

#[test]
fn a_root_needs_the_keys_before_it_and_its_own_and_comes_in_turn() {
    let mut trusted = trusted();
    let next = Root { root: role(2, &[3, 4, 5]), ..root(2) };
    for keys in [&[3, 4, 5][..], &[1, 2], &[1, 2, 4], &[1, 3]] {
        let why = refused(&mut trusted, |trusted| trusted.next_root(&bytes(&next), by(keys)));
        assert!(matches!(why, Refused::TooFewSignatures { .. }), "{keys:?}: {why}");
    }
    for version in [0, 1, 3, u64::MAX] {
        let other = bytes(&Root { version, ..next.clone() });
        let why = refused(&mut trusted, |trusted| trusted.next_root(&other, by(&[1, 3, 4])));
        assert!(matches!(why, Refused::RootOutOfTurn { expected: 2, .. }), "{why}");
    }
    trusted.next_root(&bytes(&next), by(&[1, 3, 4])).expect("both sets agree");
    let third = Root { version: 3, ..next };
    let why = refused(&mut trusted, |trusted| trusted.next_root(&bytes(&third), by(&[1, 2, 3])));
    assert!(matches!(why, Refused::TooFewSignatures { .. }), "keys that were rotated out: {why}");
}

#[test]
fn a_role_that_nobody_must_sign_for_is_no_role() {
    for wrong in [role(0, &[1]), role(2, &[1]), role(1, &[])] {
        assert!(Trusted::begin(Root { root: wrong.clone(), ..root(1) }).is_err());
        assert!(Trusted::begin(Root { release: wrong, ..root(1) }).is_err());
    }
    let twice = std::format!("[\"{0}\",\"{0}\"]", key(1));
    let keys: BTreeSet<PublicKey> = serde_json::from_str(&twice).expect("keys");
    assert_eq!(keys.len(), 1, "one key does not count twice");
    let upper = std::format!("\"{}\"", key(0xab).to_string().to_uppercase());
    assert_eq!(serde_json::from_str::<PublicKey>(&upper).ok(), Some(key(0xab)), "however it is written");
}

#[test]
fn an_older_list_is_refused_and_one_version_says_one_thing() {
    let mut trusted = with_list(5);
    let why = refused(&mut trusted, |trusted| trusted.next_list(&bytes(&list(4)), by(&[11]), clock()));
    assert_eq!(why, Refused::Rollback { found: 4, known: 5 });
    let other = List { bundles: vec![entry("2")], ..list(5) };
    let why = refused(&mut trusted, |trusted| trusted.next_list(&bytes(&other), by(&[11]), clock()));
    assert_eq!(why, Refused::TwoLists { version: 5 });
    trusted.next_list(&bytes(&list(5)), by(&[12]), clock()).expect("the same again");
}

#[test]
fn a_list_that_has_run_out_lets_nothing_new_in() {
    let mut trusted = trusted();
    let late = Dates { wall_ms: NOW + 29 * DAY, ..clock() };
    let why = refused(&mut trusted, |trusted| trusted.next_list(&bytes(&list(1)), by(&[11]), late));
    assert!(matches!(why, Refused::Expired { .. }), "{why}");
    let trusted = with_list(1);
    assert!(ask(&trusted, "1", clock()).is_ok());
    assert!(matches!(ask(&trusted, "1", late), Err(Refused::Expired { .. })));
    let root_ends = Dates { wall_ms: NOW + 300 * DAY, ..clock() };
    assert_eq!(ask(&trusted, "1", root_ends), Err(Refused::Expired { what: "the root" }));
}

#[test]
fn a_list_runs_out_also_on_a_device_without_a_clock() {
    let mut trusted = trusted();
    trusted.next_list(&bytes(&list(1)), by(&[11]), none()).expect("it may be new");
    let later = |days: u64| Dates { powered: Moment(1000 + days * DAY), ..none() };
    assert!(ask(&trusted, "1", later(29)).is_ok());
    assert!(matches!(ask(&trusted, "1", later(30)), Err(Refused::Expired { .. })), "30 days powered");
    // The same list again, as who withholds the next one sends it, is no younger.
    let again = bytes(&list(1));
    assert!(trusted.next_list(&again, by(&[11]), later(30)).is_err());
    trusted.next_list(&again, by(&[11]), later(20)).expect("still good");
    assert!(ask(&trusted, "1", later(30)).is_err(), "not counted from the second time");
    // What the device was told over an authenticated link is a date, too.
    let certified = Dates { certificate_ms: NOW + 29 * DAY, ..none() };
    assert!(ask(&trusted, "1", certified).is_err());
    // And what a signed document told.
    let next = Root { issued_ms: NOW + 40 * DAY, ..root(2) };
    trusted.next_root(&bytes(&next), by(&[1, 2])).expect("a root");
    assert!(ask(&trusted, "1", none()).is_err());
}

#[test]
fn a_clock_that_was_ahead_poisons_nothing() {
    let mut trusted = with_list(1);
    let ahead = Dates { wall_ms: NOW + 9000 * DAY, ..clock() };
    assert!(trusted.next_list(&bytes(&list(2)), by(&[11]), ahead).is_err());
    assert!(ask(&trusted, "1", ahead).is_err());
    trusted.next_list(&bytes(&list(2)), by(&[11]), clock()).expect("the clock is right again");
    assert!(ask(&trusted, "1", clock()).is_ok());
}

#[test]
fn recovery_after_a_stolen_release_key_undoes_its_fast_forward() {
    let mut trusted = with_list(5);
    // The thief's list says that it is of the far future and that nothing will ever be newer.
    let far = List { issued_ms: NOW + 5000 * DAY, expires_ms: NOW + 9000 * DAY, ..list(u64::MAX) };
    let long = Root { expires_ms: NOW + 9000 * DAY, ..root(2) };
    trusted.next_root(&bytes(&long), by(&[1, 2])).expect("a root");
    trusted.next_list(&bytes(&far), by(&[11]), clock()).expect("the thief has a key that counts");
    assert!(trusted.next_list(&bytes(&list(6)), by(&[12]), clock()).is_err(), "the device is held");
    let next = Root { release: role(1, &[12, 13]), ..root(3) };
    trusted.next_root(&bytes(&next), by(&[2, 3])).expect("the owners' root");
    assert_eq!(ask(&trusted, "1", clock()), Err(Refused::NoList), "what the thief said is forgotten");
    trusted.next_list(&bytes(&list(6)), by(&[12]), clock()).expect("the owners' list");
    assert!(ask(&trusted, "1", clock()).is_ok());
    assert!(trusted.next_list(&bytes(&far), by(&[11]), clock()).is_err(), "the thief is out");
}

#[test]
fn a_root_that_changes_no_release_key_keeps_the_list() {
    let mut trusted = with_list(5);
    trusted.next_root(&bytes(&root(2)), by(&[1, 2])).expect("a root");
    assert!(trusted.next_list(&bytes(&list(4)), by(&[11]), clock()).is_err(), "no way back through a root");
}

#[test]
fn a_bundle_is_taken_only_if_it_is_listed_for_this_device() {
    let mut trusted = trusted();
    let only = BTreeSet::from([Name::new("gate-8").expect("a name")]);
    let bundles = vec![entry("1"), Entry { devices: Some(only), ..entry("2") }];
    trusted.next_list(&bytes(&List { bundles, ..list(1) }), by(&[11]), clock()).expect("a list");
    assert!(ask(&trusted, "1", clock()).is_ok());
    assert!(matches!(ask(&trusted, "2", clock()), Err(Refused::WrongDevice { .. })));
    assert!(matches!(ask(&trusted, "3", clock()), Err(Refused::NotListed { .. })));
    let twice = List { bundles: vec![entry("1"), entry("1")], ..list(2) };
    assert!(trusted.next_list(&bytes(&twice), by(&[11]), clock()).is_err(), "which of the two?");
}

#[test]
fn path_tricks_in_names_are_refused_while_they_are_read() {
    for name in ["../m", "/m", ".m", "a/b", "", "a\\u0000"] {
        let text = std::format!(
            r#"{{"version":1,"issued_ms":1,"expires_ms":{},"bundles":[{{"name":"{name}","version":"1","signature":"{}","bytes":1}}]}}"#,
            2 * NOW,
            Digest::of(b"")
        );
        assert!(trusted().next_list(text.as_bytes(), by(&[11]), clock()).is_err(), "{name}");
    }
}

#[test]
fn what_is_trusted_survives_a_restart() {
    let trusted = with_list(7);
    let read: Trusted = serde_json::from_slice(&bytes(&trusted)).expect("it reads back");
    assert_eq!(read, trusted);
}

proptest! {
    /// Whatever comes in whatever order, the version of the list never falls while the release role is the same, and the
    /// root's never falls at all.
    #[test]
    fn versions_never_fall(steps in proptest::collection::vec((any::<bool>(), 0_u64..6, proptest::collection::vec(1_u8..14, 0..4)), 0..40)) {
        let mut trusted = trusted();
        for (a_root, version, keys) in steps {
            let before = trusted.clone();
            let release = role(1, if version % 2 == 0 { &[11, 12] } else { &[12, 13] });
            let taken = if a_root {
                trusted.next_root(&bytes(&Root { release, ..root(version) }), by(&keys))
            } else {
                trusted.next_list(&bytes(&list(version)), by(&keys), clock())
            };
            if taken.is_err() {
                prop_assert_eq!(&trusted, &before);
            }
            prop_assert!(trusted.root().version >= before.root().version);
            if trusted.root().release == before.root().release {
                prop_assert!(trusted.list().map(|list| list.version) >= before.list().map(|list| list.version));
            }
        }
    }
}
