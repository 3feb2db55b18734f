//! What broker and cloud say of cases under way.

use hedge_proto::{CaseKey, PayloadForm};

use super::tracked::{Phase, Whole};
use super::*;

const REFUSED: &str =
    "the broker refuses this device's cases; let it write hedge/v1/ID/up/#, see docs/brokers.md and the broker's log";

const NOBODY: &str =
    "the broker has nobody for this device's cases; see that the cloud runs and subscribes at this broker";

impl Uplink {
    /// A publish of these cases has ended.
    pub fn published(&mut self, now: Moment, keys: &[CaseKey], outcome: Publish) {
        match outcome {
            Publish::Nobody | Publish::Refused => {
                self.nobody_listens(now);
                self.not_taken = Some(if outcome == Publish::Refused { REFUSED } else { NOBODY });
            }
            Publish::Acknowledged => {
                self.passed(keys);
                self.not_taken = None;
            }
            // Its thumbnail did fit, and so do those of others.
            Publish::TooLarge { .. } if self.goes_whole(keys) => {}
            Publish::TooLarge { bytes_max } => self.exceeds(now, keys, bytes_max),
            // A case is offered again at the latest after `QUIET_MAX`; one that is gone by then is no fault any more.
            Publish::Newer { version } => self.newer = Some((version, now + QUIET_MAX + QUIET_MAX)),
            Publish::Named => {
                self.cleared(keys);
                (self.carried_small, self.not_taken) = (true, None);
            }
            Publish::Unclear | Publish::Stuck => {}
        }
        for key in keys {
            let Some(case) = self.cases.get_mut(key).filter(|case| case.phase == Phase::Publishing) else { continue };
            match outcome {
                Publish::Acknowledged | Publish::Named => case.enter(now, Phase::Published),
                Publish::Nobody => case.enter(now, Phase::Ready { not_before: now }),
                Publish::Unclear => {
                    self.cut.push(*key);
                    case.enter(now, Phase::Doubtful { not_before: now });
                }
                Publish::Stuck | Publish::Newer { .. } | Publish::Refused => {
                    let not_before = now + doubled(STUCK_WAIT, case.stuck, QUIET_MAX);
                    case.stuck = case.stuck.saturating_add(1);
                    case.sends -= u32::from(outcome != Publish::Refused);
                    case.enter(now, Phase::Ready { not_before });
                }
                // The cloud is told, and makes do.
                Publish::TooLarge { .. } if case.whole == Whole::Wanted => {
                    case.sends -= 1;
                    case.whole = Whole::TooLarge;
                    case.enter(now, Phase::Ready { not_before: now });
                }
                Publish::TooLarge { .. } => {
                    case.sends -= 1;
                    case.enter(now, Phase::Ready { not_before: now });
                }
            }
        }
        if matches!(outcome, Publish::TooLarge { .. }) {
            self.leave_to_the_disk();
        }
    }

    fn exceeds(&mut self, now: Moment, keys: &[CaseKey], bytes_max: Option<u32>) {
        let seen = keys.iter().filter_map(|key| self.cases.get(key)).map(|case| case.case.payload_bytes).min();
        let known = self.limit.map(|limit| limit.from_bytes);
        if let Some(from_bytes) = seen.into_iter().chain(known).min() {
            // What was learnt from connections that ended holds longer than one of them; nobody has said it.
            let suspected = self.suspicion.filter(|limit| now < limit.until && limit.from_bytes <= from_bytes);
            let until = suspected.map_or(now + LIMIT_WAIT, |limit| limit.until.min(now + LIMIT_WAIT));
            self.limit = Some(Limit { from_bytes, bytes_max: bytes_max.filter(|_| suspected.is_none()), until });
        }
    }

    /// What does not fit would keep others out of memory. Whoever waits for one of them is told by time.
    fn leave_to_the_disk(&mut self) {
        let Some(limit) = self.limit else { return };
        self.cases.retain(|_, case| !case.is_ready() || case.case.payload_bytes < limit.from_bytes);
    }

    /// The question never reached anybody.
    pub fn ask_failed(&mut self, now: Moment, keys: &[CaseKey]) {
        for key in keys {
            if let Some(case) = self.cases.get_mut(key).filter(|case| case.phase == Phase::Asked) {
                case.enter(now, Phase::Doubtful { not_before: now + NOBODY_WAIT });
            }
        }
    }

    /// The cloud's records hold these.
    pub fn received(&mut self, now: Moment, keys: &[CaseKey]) {
        let used_up = 2 * self.unconfirmed_left() <= self.congestion.cases_max();
        for key in keys {
            let Some(case) = self.cases.get_mut(key) else { continue };
            if case.is_unconfirmed() {
                // Its word may come before the broker's.
                let took = if case.is_publishing() { Duration::ZERO } else { now.since(case.since) };
                self.congestion.confirmed(now, case.sent_at, took, used_up);
            }
            case.enter(now, Phase::Held);
        }
    }

    /// The cloud lacks this case's payload, or wants it again. It has no use for more of it than it had before.
    pub fn wanted(&mut self, now: Moment, key: CaseKey) {
        self.goes_again(now, key, Whole::Offered);
    }

    /// The cloud wants a payload in this form. Of what it was never sent it cannot know that it wants more.
    pub fn wanted_as(&mut self, now: Moment, key: CaseKey, form: PayloadForm) {
        let is_asked_for = form == PayloadForm::Whole && self.was_sent(key);
        let whole = match self.cases.get(&key).map(|case| case.whole) {
            _ if !is_asked_for => Whole::Offered,
            Some(Whole::TooLarge) => Whole::TooLarge,
            _ => Whole::Wanted,
        };
        self.goes_again(now, key, whole);
    }

    fn goes_again(&mut self, now: Moment, key: CaseKey, whole: Whole) {
        let Some(case) = self.cases.get_mut(&key) else { return };
        // The word came twice, or crossed what it asks for. Should that be lost, the cloud is asked, and says so again.
        if case.is_unconfirmed() && (whole == case.whole || whole == Whole::Offered) {
            return;
        }
        (case.again, case.whole) = (true, whole);
        case.enter(now, Phase::Ready { not_before: now });
    }

    /// Whether what is being sent goes whole, although thumbnails go first. It goes alone, as everything that goes again.
    pub(super) fn goes_whole(&self, keys: &[CaseKey]) -> bool {
        keys.iter().filter_map(|key| self.cases.get(key)).any(|case| case.whole == Whole::Wanted)
    }

    /// Whether the whole may follow what is being sent.
    #[must_use]
    pub fn offers(&self, keys: &[CaseKey]) -> bool {
        keys.iter().filter_map(|key| self.cases.get(key)).all(|case| case.whole != Whole::TooLarge)
    }

    /// The cloud says that it tried and could not: true if that is news. Each try is one send or question, and counts
    /// once however often the word is repeated; on one that was never sent it counts nothing.
    pub fn fails(&mut self, now: Moment, key: CaseKey) -> bool {
        let Some(case) = self.cases.get_mut(&key).filter(|case| case.tried) else { return false };
        case.tried = false;
        case.enter(now, Phase::Doubtful { not_before: now + FAILED_WAIT });
        true
    }

    /// Whether the cloud was ever sent this case, as far as is remembered.
    #[must_use]
    pub fn was_sent(&self, key: CaseKey) -> bool {
        self.cases.get(&key).is_some_and(|case| !case.is_ready() || case.sends > 0)
    }

    /// The cloud tried and could not, now `tries` times. False: it has failed too often. It is remembered until it
    /// is forgotten, so that a dead letter the disk refuses is made later.
    pub fn failed(&mut self, now: Moment, key: CaseKey, tries: u32) -> bool {
        if let Some(case) = self.cases.get_mut(&key) {
            let not_before = now + doubled(FAILED_WAIT, tries.saturating_sub(1), QUIET_MAX);
            case.enter(now, Phase::Doubtful { not_before });
        }
        tries < TRIES_MAX
    }

    /// The cloud will never answer it, and it is being made a dead letter.
    pub fn dying(&mut self, now: Moment, key: CaseKey) {
        if let Some(case) = self.cases.get_mut(&key) {
            case.enter(now, Phase::Doubtful { not_before: now + BURY_WAIT });
        }
    }
}
