//! People's words on cases, and when they are said again.
//!
//! A device asks for the verdicts it waits for. For a closed case it waits for nothing, so a word on one stays on record as
//! unheard, and is said again over each new connection of the device and after each start of this program, until the
//! device has spoken over the same connection some time after the word was sent.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use hedge_core::verdict::misfit;
use hedge_proto::{Authority, CaseId, DeviceId, DownMessage, Verdict};

use super::desk::{Desk, Word};
use super::{NotReviewed, Review, outcome};
use crate::store::{Closed, Known, Standing, StoreError};

/// What a device says this long after a word was sent shows that the word is not stuck on the way.
const ON_ITS_WAY_MAX: Duration = Duration::from_secs(10);

/// How many words of one device are said again at once.
const AT_ONCE_MAX: usize = 64;

#[derive(Debug, Default)]
pub(super) struct Corrections(HashMap<DeviceId, Vec<Unheard>>);

#[derive(Debug)]
struct Unheard {
    id: CaseId,
    /// Since this program's start, and over the device's present connection.
    sent: Option<Instant>,
}

/// What follows from a device's sign of life.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Follows {
    pub(super) heard: Vec<CaseId>,
    pub(super) say: Vec<CaseId>,
}

impl Corrections {
    pub(super) fn new(unheard: Vec<CaseId>) -> Self {
        let mut corrections = Self::default();
        for id in unheard {
            corrections.0.entry(id.device.clone()).or_default().push(Unheard { id, sent: None });
        }
        corrections
    }

    /// A word was put on its way.
    pub(super) fn sent(&mut self, id: &CaseId, now: Instant) {
        let unheard = self.0.entry(id.device.clone()).or_default();
        unheard.retain(|one| one.id != *id);
        unheard.push(Unheard { id: id.clone(), sent: Some(now) });
    }

    /// A word found no room on its way.
    pub(super) fn not_sent(&mut self, id: &CaseId) {
        let unheard = self.0.get_mut(&id.device).into_iter().flatten();
        unheard.filter(|one| one.id == *id).for_each(|one| one.sent = None);
    }

    /// The device is there, over a new connection or still over the same.
    pub(super) fn alive(&mut self, device: &DeviceId, is_new_connection: bool, now: Instant) -> Follows {
        let mut follows = Follows::default();
        let Some(unheard) = self.0.get_mut(device) else { return follows };
        if is_new_connection {
            unheard.iter_mut().for_each(|one| one.sent = None);
        }
        unheard.retain(|one| {
            let arrived = one.sent.is_some_and(|sent| now.saturating_duration_since(sent) >= ON_ITS_WAY_MAX);
            if arrived {
                follows.heard.push(one.id.clone());
            }
            !arrived
        });
        for one in unheard.iter_mut().filter(|one| one.sent.is_none()).take(AT_ONCE_MAX) {
            one.sent = Some(now);
            follows.say.push(one.id.clone());
        }
        if unheard.is_empty() {
            self.0.remove(device);
        }
        follows
    }
}

impl Desk<'_, '_> {
    /// A person's word on a case that waits for one, or is closed; how many bytes the payload has of one that waited.
    pub(super) fn reviewed(&mut self, review: &Review) -> Result<Result<Option<u64>, NotReviewed>, StoreError> {
        let (waited, closed) = match self.batch.under_review(&review.id)? {
            Some(waited) => (Some(waited), None),
            None => (None, self.batch.closed(&review.id)?),
        };
        let waiting_case = waited.as_ref().map(|(case, _)| case);
        let Some(case) = waiting_case.or(closed.as_ref().map(|closed| &closed.case)) else {
            return Ok(Err(NotReviewed::NotWaiting));
        };
        let workers = self.panels.get(&case.task).into_iter().flat_map(|panel| &panel.workers);
        let labels: Vec<&str> = workers.flat_map(|worker| &worker.labels).map(String::as_str).collect();
        let unknown = review.said.labels().find(|said| !labels.is_empty() && !labels.contains(said));
        if let Some(said) = unknown {
            return Ok(Err(NotReviewed::NoLabel { said: said.to_owned(), labels: labels.join(", ") }));
        }
        let verdict = Word::of(review).on(case);
        let unread = outcome::unread(&verdict).or_else(|| misfit(&case.task, case.said.as_ref(), &verdict));
        if let Some(why) = unread {
            return Ok(Err(NotReviewed::Unread(why)));
        }
        if let Some((case, bytes)) = waited {
            let word = Word { revision: 1, ..Word::of(review) };
            self.closes(&case, word)?;
            self.totals.waiting -= 1;
            return Ok(Ok(Some(bytes)));
        }
        Ok(match closed {
            Some(closed) => self.correct(&closed, review)?.map(|()| None),
            None => Err(NotReviewed::NotWaiting),
        })
    }

    /// Puts a person's word in the place of what closed a case.
    fn correct(&mut self, closed: &Closed, review: &Review) -> Result<Result<(), NotReviewed>, StoreError> {
        let Closed { case, known, agrees } = closed;
        let before = if let Standing::Answered(verdict) = &known.standing { Some(verdict) } else { None };
        let is_said = |said: &&Verdict| {
            said.authority == Authority::Person && said.said == review.said && said.model.name == review.by
        };
        // A click that came twice.
        if before.filter(is_said).is_some() {
            return Ok(Ok(()));
        }
        let now = before.map_or(0, |verdict| verdict.revision);
        if let Some(seen) = review.seen.filter(|seen| *seen != now) {
            return Ok(Err(NotReviewed::Outdated { seen, now }));
        }
        if let Some(agreed) = agrees {
            self.batch.uncount(&case.id.device, *agreed)?;
            let counted = if *agreed { &mut self.totals.agreed } else { &mut self.totals.disagreed };
            *counted -= 1;
        }
        match &known.standing {
            Standing::Failed(_) => self.totals.failed -= 1,
            Standing::Dead(_) => self.totals.dead -= 1,
            Standing::Waiting | Standing::Wanted | Standing::Answered(_) => {}
        }
        self.closes(case, Word { revision: now + 1, ..Word::of(review) })?;
        self.batch.is_unheard(&case.id, self.now_ms)?;
        self.corrections.sent(&case.id, self.begun);
        Ok(Ok(()))
    }

    /// Says again which of its closed cases people have corrected, as far as it may not have heard.
    pub(super) fn correct_again(&mut self, device: &DeviceId, is_new_connection: bool) -> Result<(), StoreError> {
        let follows = self.corrections.alive(device, is_new_connection, self.begun);
        follows.heard.iter().try_for_each(|id| self.batch.is_heard(id))?;
        for id in follows.say {
            if let Some(Known { standing: Standing::Answered(verdict), .. }) = self.batch.known(&id)? {
                self.effects.replies.add(device, DownMessage::Verdict(verdict));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::testing::case;

    #[test]
    fn a_word_is_said_again_until_its_device_has_spoken_well_after_it() {
        let (id, begun) = (case(1).id, Instant::now());
        let (device, later) = (id.device.clone(), begun + ON_ITS_WAY_MAX);
        let said = |ids: &[&CaseId]| Follows { say: ids.iter().map(|&id| id.clone()).collect(), ..Follows::default() };
        let mut corrections = Corrections::new(vec![id.clone()]);
        assert_eq!(corrections.alive(&device, false, begun), said(&[&id]), "nobody knows what the last process sent");
        assert_eq!(corrections.alive(&device, false, begun), said(&[]), "on its way");
        assert_eq!(corrections.alive(&device, true, later), said(&[&id]), "the connection it went over has ended");
        corrections.not_sent(&id);
        assert_eq!(corrections.alive(&device, false, later), said(&[&id]), "there was no room");
        let heard = Follows { heard: vec![id.clone()], ..Follows::default() };
        assert_eq!(corrections.alive(&device, false, later + ON_ITS_WAY_MAX), heard);
        assert_eq!(corrections.alive(&device, true, later + ON_ITS_WAY_MAX), said(&[]), "no more of it");
    }
}
