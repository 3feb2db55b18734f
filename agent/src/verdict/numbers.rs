//! Gives each sink its number: the bit that says on disk whether it has a correction.
//!
//! Sinks of a kind's own table have fixed numbers. Every other name is given one when it is first seen, and the state
//! file remembers it. A number passes to another name only when no case says that its sink has the correction; so a sink
//! never takes over what another was given, and one that is removed and comes back, or whose number was lost with the
//! state file, gets at worst a correction twice.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

use hedge_config::KIND_TABLES;
use hedge_outbox::{Outbox, SINKS_MAX, State};
use hedge_proto::Name;

use crate::state::StateFile;

/// The numbers of these names. One that gets none is left out: all are taken by sinks of before.
pub(super) fn numbers<'a>(
    names: impl Iterator<Item = &'a Name> + Clone,
    outbox: &Outbox,
    state: &Mutex<StateFile>,
) -> BTreeMap<Name, u8> {
    let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
    let known = state.state().sinks.clone();
    let told = names.clone().all(|name| fixed(name).is_some() || known.contains_key(name));
    // Most starts end here; all others look through the answered cases once.
    let given = if told { known.clone() } else { given(names.clone(), &known, taken(outbox)) };
    if given != known
        && let Err(error) = state.update(|state| state.sinks = given.clone())
    {
        tracing::warn!(%error, "cannot write the state file: after a restart a sink may get a correction twice");
    }
    let number = |name: &Name| Some((name.clone(), fixed(name).or_else(|| given.get(name).copied())?));
    names.filter_map(number).collect()
}

fn fixed(name: &Name) -> Option<u8> {
    KIND_TABLES.iter().zip(0..).find(|(table, _)| **table == name.as_str()).map(|(_, number)| number)
}

/// The bits that any case has set.
fn taken(outbox: &Outbox) -> u16 {
    outbox.all_answered().iter().fold(0, |bits, entry| match entry.state {
        State::Answered { delivered, .. } => bits | delivered,
        _ => bits,
    })
}

/// What is known, without names that nothing on disk needs any more, and with a number for each new one.
fn given<'a>(
    names: impl Iterator<Item = &'a Name> + Clone,
    known: &BTreeMap<Name, u8>,
    taken: u16,
) -> BTreeMap<Name, u8> {
    let is_taken = |number: u8| taken & (1 << number) != 0;
    let is_named = |name: &Name| names.clone().any(|other| other == name);
    let mut given = known.clone();
    given.retain(|name, number| is_named(name) || is_taken(*number));
    let first = u8::try_from(KIND_TABLES.len()).unwrap_or(SINKS_MAX);
    for name in names.clone().filter(|name| fixed(name).is_none()) {
        let mut free =
            (first..SINKS_MAX).filter(|number| !is_taken(*number) && given.values().all(|used| used != number));
        if !given.contains_key(name)
            && let Some(number) = free.next()
        {
            given.insert(name.clone(), number);
        }
    }
    given
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> Name {
        Name::new(text).expect("a name")
    }

    #[track_caller]
    fn check(names: &[&str], known: &[(&str, u8)], taken: u16, expected: &[(&str, u8)]) {
        let names: Vec<Name> = names.iter().map(|text| name(text)).collect();
        let map = |pairs: &[(&str, u8)]| pairs.iter().map(|(text, number)| (name(text), *number)).collect();
        assert_eq!(given(names.iter(), &map(known), taken), map(expected));
    }

    #[test]
    fn a_number_passes_to_another_sink_only_when_no_case_says_it_was_served() {
        check(&["jsonl", "a", "b"], &[], 0b1111, &[("a", 4), ("b", 5)]);
        check(&["b", "c"], &[("a", 4), ("b", 5)], 0, &[("b", 5), ("c", 4)]);
        // Cases wait that `a` has: it may come back, and `c` has none of them.
        check(&["b", "c"], &[("a", 4), ("b", 5)], 1 << 4, &[("a", 4), ("b", 5), ("c", 6)]);
        // The state file was lost.
        check(&["b"], &[], 1 << 4 | 1 << 5, &[("b", 6)]);
        // None is left.
        check(&["b"], &[], u16::MAX, &[]);
    }
}
