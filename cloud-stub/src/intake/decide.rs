//! Decides what becomes of one case, one question, one status. No IO and no time: records in, answer out.
//!
//! Invariants: a case is answered from its record whenever the record is of the same payload; a case that
//! could still be answered one day is never called dead; nothing is said about one device's case to another.

use hedge_proto::{
    Authority, Case, CaseId, DeviceId, DeviceState, DeviceStatus, Digest, DownMessage, ModelRef, PayloadForm,
    RivalFigures, SpotChecks, Telemetry, Verdict, WIRE_VERSION,
};

use serde::Serialize;

use crate::store::{Known, Standing};

/// How long a device is told to wait at least, and one that sends more than its share.
pub const BUSY_S: u32 = 10;

/// How long a device is told to hold cases of a wire version this program does not read.
pub const HOLD_S: u32 = 300;

/// The most a case may have besides its payload: names, scores and metadata come to about 2 KiB.
pub const HEADER_BYTES_MAX: usize = 16 * 1024;

/// What to do with a case that has arrived.
#[derive(Debug, Clone, PartialEq)]
pub enum Step {
    /// It is new: record it, then say `received`.
    Record,
    /// It is new and has nothing of its sample: record it and answer at once, for no model can.
    Note,
    /// It failed before and comes again: try again, and say `received`.
    Reopen,
    /// It is the whole that was wanted: put it in the thumbnail's place, and say `received`.
    Complete,
    /// Its device has no more to give than the thumbnail: answer from that, and say `received`.
    MakeDo,
    /// It is on record: say this.
    Repeat(DownMessage),
    /// It is not taken: say this.
    Refuse(DownMessage),
    /// It is not taken now: say this.
    Hold(DownMessage),
}

/// Whether there is room for one more case.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Room {
    Free,
    /// As many cases as may wait are waiting; there may be room after so long.
    Full {
        after_s: u32,
    },
    /// No model here answers this task, and as many such cases as may wait are waiting.
    NoModel,
}

/// Whether a fleet's spot checks are worth telling a device that has these of its own and knows of so many.
#[must_use]
pub fn is_news(fleet: &SpotChecks, own: &SpotChecks, known: u64) -> bool {
    fleet.devices > 1 && fleet.checks > own.checks && fleet.checks >= 1.1 * known as f64 + 10.0
}

/// A bundle that answers on a device in another version than before.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BundleChange {
    pub bundle: String,
    pub from: String,
    pub to: String,
    /// How the two compared when the device told last: why it has changed, if nobody has asked for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rival: Option<RivalFigures>,
}

/// What a device's new status says of its bundles that the one before did not.
#[must_use]
pub fn bundle_changes(before: &[ModelRef], after: &[ModelRef], told: Option<&Telemetry>) -> Vec<BundleChange> {
    let changed = after.iter().filter_map(|now| {
        // Two models of one bundle may have different versions of it: what of them changed is not known.
        let mut old = before.iter().filter(|old| old.name == now.name);
        let (Some(old), None) = (old.next(), old.next()) else { return None };
        if old.version == now.version || after.iter().filter(|other| other.name == now.name).count() > 1 {
            return None;
        }
        let rivals =
            told.into_iter().flat_map(|told| told.model_figures.values()).filter_map(|model| model.rival.as_ref());
        let rival = rivals.filter(|rival| rival.version == now.version).max_by_key(|rival| rival.compared).cloned();
        Some(BundleChange { bundle: now.name.clone(), from: old.version.clone(), to: now.version.clone(), rival })
    });
    changed.collect()
}

/// A case as it came, and its payload's real hash.
pub struct Arrived<'a> {
    pub from: &'a DeviceId,
    pub case: &'a Case,
    pub payload_sha256: Option<Digest>,
    pub header_bytes: usize,
}

/// Decides on one case.
#[must_use]
pub fn on_case(arrived: &Arrived<'_>, known: Option<&Known>, room: Room) -> Step {
    let Arrived { from, case, .. } = arrived;
    // Whatever is older is read for good.
    if case.v > WIRE_VERSION {
        return Step::Hold(DownMessage::Busy { after_s: HOLD_S });
    }
    if case.id.device != **from {
        return Step::Refuse(dead(&case.id, "the case names another device than the one that sent it"));
    }
    if let Some(known) = known {
        return on_known(arrived, known);
    }
    if let Err(what) = case.check() {
        return untaken(case, &what);
    }
    if case.form == PayloadForm::Nothing {
        return on_nothing(arrived);
    }
    if let Some(reason) = wrong_payload(arrived) {
        return Step::Refuse(failed(&case.id, reason));
    }
    match room {
        _ if arrived.header_bytes > HEADER_BYTES_MAX => too_much(arrived),
        Room::Free => Step::Record,
        Room::Full { after_s } => Step::Hold(DownMessage::Busy { after_s }),
        Room::NoModel => {
            let reason = format!("no model here answers the task `{}`, and too many such cases wait", case.task);
            Step::Refuse(failed(&case.id, &reason))
        }
    }
}

fn untaken(case: &Case, what: &str) -> Step {
    Step::Refuse(dead(&case.id, &format!("the case is not taken: {what}")))
}

fn wrong_payload(arrived: &Arrived<'_>) -> Option<&'static str> {
    match arrived.payload_sha256 {
        None => Some("the payload is neither in the message nor in this cloud's --payload-dir"),
        Some(sum) if sum != arrived.case.payload_sha256 => Some("the payload is not the one its SHA-256 sum names"),
        Some(_) => None,
    }
}

/// No wait and no model: what there is to know has come.
fn on_nothing(arrived: &Arrived<'_>) -> Step {
    if arrived.payload_sha256.is_some_and(|sum| sum != Digest::of(b"")) {
        let reason = "the case says that nothing of its sample is sent, and has a payload all the same";
        return Step::Refuse(dead(&arrived.case.id, reason));
    }
    if arrived.header_bytes > HEADER_BYTES_MAX { too_much(arrived) } else { Step::Note }
}

/// The answer to a case without its sample: the device's own stands. Without one nobody can ever answer.
pub fn standing_answer(case: &Case) -> Result<Verdict, &'static str> {
    let Some(said) = case.said.clone() else {
        return Err("nothing of the sample was sent, and the device had no answer of its own");
    };
    Ok(Verdict {
        v: said.wire_version(),
        id: case.id.clone(),
        revision: 1,
        authority: Authority::Device,
        task: case.task.clone(),
        said,
        model: case.model.clone(),
    })
}

fn too_much(arrived: &Arrived<'_>) -> Step {
    let text = format!("the case has {} bytes besides its payload, more than {HEADER_BYTES_MAX}", arrived.header_bytes);
    Step::Refuse(dead(&arrived.case.id, &text))
}

fn on_known(arrived: &Arrived<'_>, known: &Known) -> Step {
    let case = arrived.case;
    // It has its place already, whatever the room.
    if known.wants(case) {
        return match wrong_payload(arrived) {
            Some(reason) => Step::Refuse(failed(&case.id, reason)),
            None => case.check().map_or_else(|what| untaken(case, &what), |()| Step::Complete),
        };
    }
    if known.standing == Standing::Wanted && case.offer.is_none() && case.form < PayloadForm::Whole {
        return Step::MakeDo;
    }
    // A device whose operator has lowered what may leave it sends a case anew without its sample.
    if !known.is_of(case) && case.form != PayloadForm::Nothing {
        return Step::Refuse(dead(&case.id, "another payload is on record under this id"));
    }
    match standing(&case.id, &known.standing) {
        Some(message) => Step::Repeat(message),
        None => Step::Reopen,
    }
}

/// What to do about an id a device asks about.
#[derive(Debug, Clone, PartialEq)]
pub enum Told {
    Say(DownMessage),
    /// It failed before and its payload is here: try again, and say `received`.
    Reopen,
    /// It is another device's: say nothing.
    Nothing,
}

/// Decides on one id of a question.
#[must_use]
pub fn on_ask(from: &DeviceId, id: &CaseId, known: Option<&Known>) -> Told {
    if id.device != *from {
        return Told::Nothing;
    }
    match known {
        None => Told::Say(DownMessage::Unknown { ids: vec![id.clone()] }),
        Some(known) => standing(id, &known.standing).map_or(Told::Reopen, Told::Say),
    }
}

/// What a record says; `None` for a failed case, which is tried again instead.
fn standing(id: &CaseId, standing: &Standing) -> Option<DownMessage> {
    match standing {
        Standing::Waiting => Some(DownMessage::Received { ids: vec![id.clone()] }),
        Standing::Wanted => Some(DownMessage::Send { id: id.clone(), form: PayloadForm::Whole }),
        Standing::Answered(verdict) => Some(DownMessage::Verdict(verdict.clone())),
        Standing::Dead(reason) => Some(dead(id, reason)),
        Standing::Failed(_) => None,
    }
}

/// Whether a status replaces the one on record. An `offline` of an earlier connection than the last `online`
/// is old news: a will that fired after the device was back.
#[must_use]
pub fn replaces(new: &DeviceStatus, on_record: Option<&DeviceStatus>) -> bool {
    match (new.state, on_record) {
        (DeviceState::Offline, Some(known)) => new.connection >= known.connection,
        _ => true,
    }
}

pub(super) fn dead(id: &CaseId, reason: &str) -> DownMessage {
    DownMessage::Dead { id: id.clone(), reason: reason.to_owned() }
}

pub(super) fn failed(id: &CaseId, reason: &str) -> DownMessage {
    DownMessage::Failed { id: id.clone(), reason: reason.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_proto::{Authority, ModelRef, Name, Offer, Output, Verdict};

    fn device(name: &str) -> DeviceId {
        Name::new(name).expect("valid")
    }

    fn case() -> Case {
        crate::store::testing::case(1)
    }

    fn verdict() -> Verdict {
        Verdict {
            v: WIRE_VERSION,
            id: case().id,
            revision: 1,
            authority: Authority::Model,
            task: "t".to_owned(),
            said: Output::label("a"),
            model: case().model,
        }
    }

    #[test]
    fn a_bundle_that_changed_is_told_with_how_the_two_compared() {
        let model = |name: &str, version: &str| ModelRef { name: name.to_owned(), version: version.to_owned() };
        let rival = |version: &str, compared| RivalFigures {
            version: version.to_owned(),
            role: hedge_proto::RivalRole::Candidate,
            compared,
            differed: 40,
            newer: 31.0,
            older: 4.0,
            slower: 1.0,
            finding: Some("better".to_owned()),
        };
        let mut told = Telemetry::new(hedge_proto::LinkState::Online);
        let figures = hedge_proto::ModelFigures { rival: Some(rival("2", 812)), ..Default::default() };
        told.model_figures.insert(device("front"), figures);
        let before = [model("small", "1"), model("other", "1")];
        let change = |from: &str, to: &str, rival| BundleChange {
            bundle: "small".to_owned(),
            from: from.to_owned(),
            to: to.to_owned(),
            rival,
        };
        let after = [model("small", "2"), model("other", "1")];
        assert_eq!(bundle_changes(&before, &after, Some(&told)), [change("1", "2", Some(rival("2", 812)))]);
        // What compared another version says nothing of this one.
        assert_eq!(bundle_changes(&after, &before, Some(&told)), [change("2", "1", None)]);
        assert_eq!(bundle_changes(&before, &after, None), [change("1", "2", None)]);
        // Nor is it known which of two has changed, or from what a new one has.
        assert_eq!(bundle_changes(&before, &[model("small", "2"), model("small", "1")], None), []);
        assert_eq!(bundle_changes(&[], &after, None), []);
    }

    fn known(standing: Standing) -> Known {
        Known { payload_sha256: Digest::of(b"p"), other_sha256: None, standing }
    }

    const FULL: Room = Room::Full { after_s: 70 };

    fn every_standing() -> [Standing; 5] {
        let why = "why".to_owned();
        [
            Standing::Waiting,
            Standing::Wanted,
            Standing::Answered(verdict()),
            Standing::Failed(why.clone()),
            Standing::Dead(why),
        ]
    }

    fn decide(case: &Case, known: Option<&Known>, room: Room) -> Step {
        let payload_sha256 = Some(Digest::of(b"p"));
        on_case(&Arrived { from: &device("d"), case, payload_sha256, header_bytes: 100 }, known, room)
    }

    #[test]
    fn a_device_is_told_of_its_fleet_s_checks_when_they_are_clearly_more_than_it_knows() {
        let it = || ModelRef { name: "m".to_owned(), version: "1".to_owned() };
        let checks =
            |devices, checks| SpotChecks { model: it(), cloud: it(), devices, checks, lost: vec![], held: vec![] };
        for (fleet, own, known, news) in [
            (checks(2, 100.0), 20.0, 0, true),
            (checks(2, 100.0), 20.0, 81, true),
            (checks(2, 100.0), 20.0, 82, false),
            (checks(1, 100.0), 20.0, 0, false),
            (checks(2, 20.0), 20.0, 0, false),
        ] {
            assert_eq!(is_news(&fleet, &checks(1, own), known), news, "{fleet:?} {own} {known}");
        }
    }

    /// Of the whole `w`.
    fn thumbnail() -> Case {
        let offer = Offer { form: PayloadForm::Whole, payload_sha256: Digest::of(b"w"), payload_bytes: 1 };
        Case { form: PayloadForm::Thumbnail, offer: Some(offer), ..case() }
    }

    fn known_thumbnail(standing: Standing) -> Known {
        Known { other_sha256: Some(Digest::of(b"w")), ..known(standing) }
    }

    #[test]
    fn while_the_whole_is_wanted_it_is_asked_for_again_whatever_its_device_says() {
        let known = known_thumbnail(Standing::Wanted);
        let send = DownMessage::Send { id: case().id, form: PayloadForm::Whole };
        for room in [Room::Free, FULL, Room::NoModel] {
            assert_eq!(decide(&thumbnail(), Some(&known), room), Step::Repeat(send.clone()));
        }
        assert_eq!(on_ask(&device("d"), &case().id, Some(&known)), Told::Say(send));
    }

    #[test]
    fn the_whole_takes_the_thumbnails_place_once_and_only_if_it_is_what_was_offered() {
        let whole = Case { payload_sha256: Digest::of(b"w"), ..case() };
        let arrives = |known: &Known, sum: &[u8]| {
            let payload_sha256 = Some(Digest::of(sum));
            on_case(&Arrived { from: &device("d"), case: &whole, payload_sha256, header_bytes: 100 }, Some(known), FULL)
        };
        assert_eq!(arrives(&known_thumbnail(Standing::Wanted), b"w"), Step::Complete, "it has its place");
        let wrong = arrives(&known_thumbnail(Standing::Wanted), b"x");
        assert!(matches!(wrong, Step::Refuse(DownMessage::Failed { .. })), "{wrong:?}");
        // Whatever comes late is answered from the record.
        for standing in every_standing().into_iter().filter(|standing| *standing != Standing::Wanted) {
            let step = arrives(&known_thumbnail(standing.clone()), b"w");
            assert!(matches!(step, Step::Repeat(_) | Step::Reopen), "{step:?}");
            let completed = Known { payload_sha256: Digest::of(b"w"), ..known(standing) };
            let step = decide(&thumbnail(), Some(&completed), Room::Free);
            assert!(matches!(step, Step::Repeat(_) | Step::Reopen), "{step:?}");
        }
        let other = Case { payload_sha256: Digest::of(b"o"), ..case() };
        let step = decide(&other, Some(&known_thumbnail(Standing::Answered(verdict()))), Room::Free);
        assert!(matches!(step, Step::Refuse(DownMessage::Dead { .. })), "{step:?}");
    }

    #[test]
    fn a_device_that_offers_no_more_is_answered_from_the_thumbnail() {
        let known = known_thumbnail(Standing::Wanted);
        let smaller = Case { payload_sha256: Digest::of(b"s"), form: PayloadForm::Thumbnail, ..case() };
        let nothing = Case { payload_sha256: Digest::of(b""), form: PayloadForm::Nothing, ..case() };
        for less in [Case { offer: None, ..thumbnail() }, smaller, nothing] {
            assert_eq!(decide(&less, Some(&known), Room::Free), Step::MakeDo, "{:?}", less.form);
        }
    }

    #[test]
    fn a_new_case_is_recorded_only_where_there_is_room() {
        assert_eq!(decide(&case(), None, Room::Free), Step::Record);
        assert!(matches!(decide(&case(), None, FULL), Step::Hold(DownMessage::Busy { after_s: 70 })));
        assert!(matches!(decide(&case(), None, Room::NoModel), Step::Refuse(DownMessage::Failed { .. })));
    }

    #[test]
    fn a_known_case_is_answered_from_its_record_whatever_the_room() {
        for room in [Room::Free, FULL, Room::NoModel] {
            for standing in every_standing() {
                let step = decide(&thumbnail(), Some(&known(standing.clone())), room);
                match standing {
                    Standing::Failed(_) => assert_eq!(step, Step::Reopen),
                    _ => assert!(matches!(step, Step::Repeat(_)), "{step:?}"),
                }
            }
        }
    }

    #[test]
    fn a_known_id_with_another_hash_is_never_answered_from_its_record() {
        let other = Case { payload_sha256: Digest::of(b"q"), ..case() };
        for standing in every_standing() {
            let step = decide(&other, Some(&known(standing)), Room::Free);
            assert!(matches!(step, Step::Refuse(DownMessage::Dead { .. })), "{step:?}");
        }
    }

    #[test]
    fn what_is_asked_and_what_is_sent_again_get_the_same_answer() {
        for standing in every_standing() {
            let known = known(standing);
            let told = on_ask(&device("d"), &case().id, Some(&known));
            match decide(&thumbnail(), Some(&known), Room::Free) {
                Step::Repeat(message) => assert_eq!(told, Told::Say(message)),
                Step::Reopen => assert_eq!(told, Told::Reopen),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn nothing_is_said_about_one_devices_case_to_another() {
        for standing in every_standing() {
            assert_eq!(on_ask(&device("e"), &case().id, Some(&known(standing))), Told::Nothing);
        }
        let arrived = Arrived { from: &device("e"), case: &case(), payload_sha256: None, header_bytes: 0 };
        let step = on_case(&arrived, Some(&known(Standing::Answered(verdict()))), Room::Free);
        assert!(matches!(step, Step::Refuse(DownMessage::Dead { .. })), "{step:?}");
    }

    #[test]
    fn a_case_of_an_older_version_is_read_like_any_other() {
        assert_eq!(decide(&Case { v: WIRE_VERSION - 1, ..case() }, None, Room::Free), Step::Record);
    }

    #[test]
    fn an_unread_version_and_a_missing_or_wrong_payload_are_never_dead() {
        let newer = Case { v: WIRE_VERSION + 1, ..case() };
        assert!(matches!(decide(&newer, None, Room::Free), Step::Hold(_)));
        for payload_sha256 in [None, Some(Digest::of(b"q"))] {
            let arrived = Arrived { from: &device("d"), case: &case(), payload_sha256, header_bytes: 0 };
            let step = on_case(&arrived, None, Room::Free);
            assert!(matches!(step, Step::Refuse(DownMessage::Failed { .. })), "{step:?}");
        }
    }

    #[test]
    fn a_case_that_has_more_than_a_case_may_have_is_dead_with_the_reason() {
        let metadata = [("k".to_owned(), "v".repeat(2000))].into();
        let step = decide(&Case { metadata, ..case() }, None, Room::Free);
        assert!(
            matches!(&step, Step::Refuse(DownMessage::Dead { reason, .. }) if reason.contains("metadata")),
            "{step:?}"
        );
    }

    #[test]
    fn only_an_offline_below_the_last_connection_is_old_news() {
        let status = |state, connection| DeviceStatus {
            state,
            connection,
            window_every_s: None,
            link: None,
            version: None,
            wire: Vec::new(),
            models: Vec::new(),
            faults: Default::default(),
        };
        let online = status(DeviceState::Online, 5);
        for (new, expected) in [
            (status(DeviceState::Offline, 4), false),
            (status(DeviceState::Offline, 5), true),
            (status(DeviceState::Offline, 6), true),
            // A device that lost its count starts again.
            (status(DeviceState::Online, 1), true),
        ] {
            assert_eq!(replaces(&new, Some(&online)), expected, "{new:?}");
        }
        assert!(replaces(&status(DeviceState::Offline, 0), None));
    }
}
