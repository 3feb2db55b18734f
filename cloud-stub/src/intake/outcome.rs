//! What becomes of a case that an answerer was asked about.

use std::time::Instant;

use hedge_proto::Authority;

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
    let authority = panel.workers.get(place).map_or(Authority::Model, |worker| worker.authority);
    Decided { outcome, entry, next, authority }
}
