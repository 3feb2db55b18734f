//! What becomes of a case that an answerer was asked about.

use std::time::Instant;

use hedge_core::verdict::misfit;
use hedge_proto::{Authority, DownMessage, Message as _, Verdict, to_cbor};

use super::desk::Word;
use super::forms::Enough;
use super::lanes::Entry;
use crate::answerers::{Choice, Declined, Ending, Ledger};
use crate::model::{ModelFailure, Outcome, Panel};

/// How often an answerer that had been alive just before, and had nothing else, may end over a case.
const ENDS_MAX: u8 = 3;

/// One outcome, decided.
pub(super) struct Decided {
    pub(super) outcome: Box<Outcome>,
    /// The case as it waited.
    pub(super) entry: Entry,
    pub(super) next: Next,
    pub(super) authority: Authority,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Next {
    /// It is answered, or will not be.
    Close,
    /// Its thumbnail is not enough, and its device has more.
    Want,
    /// This answerer will not answer it, and another may.
    Pass { by: String, declined: Declined },
    /// It waits until an answerer is there again.
    Again,
}

/// Why its device would set a verdict aside, whoever's word it is: then it is no answer.
pub(super) fn unread(verdict: &Verdict) -> Option<String> {
    DownMessage::read(&to_cbor(&DownMessage::Verdict(verdict.clone()))).err().map(|error| error.to_string())
}

/// Takes note of how a call ended and decides what becomes of its case. `chance` is between 0 and 1.
pub(super) fn decide(
    mut outcome: Box<Outcome>,
    mut entry: Entry,
    panel: &mut Panel,
    ledger: &mut Ledger,
    enough: &Enough,
    (now, chance): (Instant, f64),
) -> Decided {
    let place = outcome.place;
    let authority = panel.workers.get(place).map_or(Authority::Model, |worker| worker.authority);
    let wrong = outcome.opinion.as_ref().ok().and_then(|opinion| {
        let word = Word { said: &opinion.said, authority, model: opinion.model.clone(), revision: 1 };
        let (case, verdict) = (&outcome.case, word.on(&outcome.case));
        let unread = unread(&verdict).map(|why| ModelFailure::Dead(format!("no device reads its answer: {why}")));
        unread.or_else(|| misfit(&case.task, case.said.as_ref(), &verdict).map(ModelFailure::Failed))
    });
    if let Some(wrong) = wrong {
        outcome.opinion = Err(wrong);
    }
    let ending = match &outcome.opinion {
        Ok(_) | Err(ModelFailure::Dead(_) | ModelFailure::Failed(_) | ModelFailure::NoPayload(_)) => Ending::Answered,
        Err(ModelFailure::Later { after, .. }) => Ending::Later(*after),
        Err(ModelFailure::Down { .. }) => Ending::Down,
    };
    let was_alone = panel.route.ended(place, ending, now, chance);
    let (name, price) =
        panel.route.seats().get(place).map_or_else(Default::default, |seat| (seat.name.clone(), seat.price));
    let was_made = match &outcome.opinion {
        Err(ModelFailure::Later { .. } | ModelFailure::NoPayload(_)) => false,
        Err(ModelFailure::Down { had_it, .. }) => *had_it,
        _ => true,
    };
    if !was_made {
        ledger.give_back(&name, price);
    }
    if let Err(ModelFailure::Down { why, had_it: true }) = &outcome.opinion
        && was_alone
        && panel.route.blames(place, &entry.id)
    {
        entry.ends += 1;
        if entry.ends >= ENDS_MAX {
            let why = format!("`{name}` failed {ENDS_MAX} times while it had this case alone, the last time: {why}");
            outcome.opinion = Err(ModelFailure::Dead(why));
        }
    }
    let has_more = enough.may_ask(&outcome.case);
    let next = match &outcome.opinion {
        Ok(opinion) if has_more && !enough.is_sure(&opinion.said, outcome.case.said.as_ref()) => Next::Want,
        Ok(_) => Next::Close,
        Err(ModelFailure::Later { .. } | ModelFailure::Down { .. } | ModelFailure::NoPayload(_)) => Next::Again,
        Err(ModelFailure::Dead(_) | ModelFailure::Failed(_)) => {
            let declined = entry.declined.with(place);
            match panel.route.choose(declined, ledger) {
                // A person shall see the whole.
                Choice::Nobody | Choice::Review(_) if has_more => Next::Want,
                Choice::Nobody => Next::Close,
                Choice::Ask(_) | Choice::Review(_) | Choice::Wait => Next::Pass { by: name, declined },
            }
        }
    };
    Decided { outcome, entry, next, authority }
}

#[cfg(test)]
mod tests {
    use hedge_proto::{BOXES_MAX, Found, LabelScore, ModelRef, Output, Rect};

    use super::*;
    use crate::store::testing::case;

    #[track_caller]
    fn check(said: Output, wrong: Option<&str>) {
        let model = ModelRef { name: "m".to_owned(), version: "1".to_owned() };
        let word = Word { said: &said, authority: Authority::Model, model, revision: 1 };
        match (unread(&word.on(&case(1))), wrong) {
            (None, None) => {}
            (Some(why), Some(wrong)) if why.contains(wrong) => {}
            (why, _) => panic!("{why:?} for {said:?}"),
        }
    }

    #[test]
    fn what_no_device_reads_is_no_answer() {
        let scored = |score| Output::Classes(vec![LabelScore { label: "boot".to_owned(), score }]);
        let boxes = |label: &str, score, width, count| {
            let place = Rect { left: 0.0, top: 0.0, width, height: 1.0 };
            Output::Boxes(vec![Found { label: label.to_owned(), score, place }; count])
        };
        check(scored(1.0), None);
        check(boxes("boot", 1.0, 1.0, BOXES_MAX), None);
        check(boxes("boot", 1.0, 1.0, 0), None);
        check(Output::label(&"a".repeat(3000)), Some("3000 bytes of `label`"));
        check(Output::label(""), Some("empty"));
        check(scored(5.0), Some("from 0 to 1"));
        check(scored(f32::NAN), Some("from 0 to 1"));
        check(boxes("boot", 5.0, 1.0, 1), Some("from 0 to 1"));
        check(boxes("boot", 1.0, f32::INFINITY, 1), Some("numbers"));
        check(boxes(&"a".repeat(1000), 1.0, 1.0, 90), Some("bytes"));
    }
}
