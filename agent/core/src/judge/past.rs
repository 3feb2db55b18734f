//! Decides what other settings would have made of the answers of the last day.
//!
//! [`Past`] is a bounded sample of them: how doubtful each was, and nothing of what it said. Where there were more than it
//! holds, each stands for several.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{Doubt, ThresholdMode};
use serde::Serialize;

use super::allowance::affords;
use super::bins::bin;
use super::experience::checks_in_the_long_run;
use super::{Asked, Experience, counted};
use crate::budget::{DAY, HOUR};
use crate::clock::Moment;

/// Enough to tell shares of a day apart by three points; less than 100 KB.
const SEEN_MAX: usize = 1024;

#[derive(Debug, Clone, Copy)]
struct Seen {
    at: Moment,
    doubt: Doubt,
    /// Itself, and those before it that are not here.
    stands_for: u32,
}

/// Answers of the last day.
#[derive(Debug, Clone)]
pub struct Past {
    seen: VecDeque<Seen>,
    /// One in so many is taken.
    every: u32,
    passed: u32,
}

impl Default for Past {
    fn default() -> Self {
        // At once, so that no answer waits for memory later.
        Self { seen: VecDeque::with_capacity(SEEN_MAX), every: 1, passed: 0 }
    }
}

impl Past {
    pub fn saw(&mut self, doubt: &Doubt, now: Moment) {
        self.passed += 1;
        if self.passed < self.every {
            return;
        }
        while self.seen.front().is_some_and(|first| now.since(first.at) > DAY) {
            self.seen.pop_front();
        }
        if self.seen.len() == SEEN_MAX {
            self.thin();
        } else if self.every > 1 && self.seen.len() < SEEN_MAX / 4 {
            self.every /= 2;
        }
        self.seen.push_back(Seen { at: now, doubt: *doubt, stands_for: self.passed });
        self.passed = 0;
    }

    /// Each second one stands for the one before it, too.
    fn thin(&mut self) {
        self.every = self.every.saturating_mul(2);
        let (mut at, mut before) = (0_usize, 0);
        self.seen.retain_mut(|seen| {
            at += 1;
            if at % 2 == 1 {
                before = seen.stands_for;
                return false;
            }
            seen.stands_for = seen.stands_for.saturating_add(before);
            true
        });
    }
}

/// What settings would have made of the last day, or of as much of it as is known.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Forecast {
    /// So many answers, in so much powered time.
    pub answers: u64,
    pub over_s: u64,
    /// Which share of them would have been sent, spot checks among them.
    pub deferred: f32,
    pub cases_per_day: f64,
    /// None before the first case: nobody knows how large one is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_day: Option<f64>,
    /// Which share of them would have stayed and been contradicted. None before the cloud has said enough.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub contradicted: Option<f32>,
}

impl Experience {
    /// What these settings would have made of the past. What they say of single classes is not in it, because the past
    /// has no labels. None before the first answer.
    #[must_use]
    pub fn forecast(&self, past: &Past, asked: &Asked<'_>, now: Moment) -> Option<Forecast> {
        let first = past.seen.front()?;
        let over = now.since(first.at).max(Duration::from_secs(1));
        let answers: f64 = past.seen.iter().map(|seen| f64::from(seen.stands_for)).sum();
        let each = |seen: &Seen| f64::from(seen.stands_for) / answers;
        let checks = checks_in_the_long_run(asked.rule);
        let stays = self.staying(past, asked, answers / over.as_secs_f64());
        let (mut deferred, mut contradicted) = (0.0, Some(0.0));
        for (seen, stays) in past.seen.iter().zip(stays) {
            let kept = each(seen) * if stays { 1.0 - f64::from(checks) } else { 0.0 };
            deferred += each(seen) - kept;
            let agrees = self.agreement(&self.seen(&seen.doubt));
            contradicted = contradicted.zip(agrees).map(|(sum, agrees)| sum + kept * f64::from(1.0 - agrees));
        }
        let cases_per_day = deferred * answers * DAY.as_secs_f64() / over.as_secs_f64();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "sums of shares and of counts")]
        Some(Forecast {
            answers: answers as u64,
            over_s: over.as_secs(),
            deferred: deferred as f32,
            cases_per_day,
            bytes_per_day: self.account.case_bytes().map(|bytes| cases_per_day * f64::from(bytes)),
            contradicted: contradicted.map(|share| share as f32),
        })
    }

    /// For each answer of the past, whether it would have stayed but for spot checks.
    fn staying(&self, past: &Past, asked: &Asked<'_>, per_s: f64) -> Vec<bool> {
        let rule = asked.rule;
        let raw = |seen: &Seen| counted(&self.seen(&seen.doubt)).map_or(0.0, |(_, doubt)| doubt);
        match rule.mode {
            ThresholdMode::Fixed => past.seen.iter().map(|seen| asked.limits.exceeded(&seen.doubt).is_none()).collect(),
            ThresholdMode::Target => {
                let mut certificate = self.certificate.clone();
                certificate.aim(rule.target);
                let scaled = |seen: &Seen| bin((raw(seen) * rule.scale.value()).min(1.0));
                past.seen.iter().map(|seen| certificate.keeps(scaled(seen))).collect()
            }
            ThresholdMode::Budget => {
                #[expect(clippy::cast_possible_truncation, reason = "a rate of answers")]
                let per = |period: Duration| (per_s * period.as_secs_f64()) as f32;
                let share = affords(&rule.allowance, per(HOUR), per(DAY), self.account.case_bytes());
                let mut room = f64::from(share * rule.scale.value());
                let answers: f64 = past.seen.iter().map(|seen| f64::from(seen.stands_for)).sum();
                let mut most_first: Vec<usize> = (0..past.seen.len()).collect();
                most_first.sort_by(|a, b| raw(&past.seen[*b]).total_cmp(&raw(&past.seen[*a])));
                let mut stays = alloc::vec![true; past.seen.len()];
                for at in most_first {
                    room -= f64::from(past.seen[at].stands_for) / answers;
                    if room < -1e-9 {
                        break;
                    }
                    stays[at] = false;
                }
                stays
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use hedge_proto::Measure;

    use super::*;

    #[test]
    fn the_past_is_bounded_and_stands_for_every_answer_of_the_last_day() {
        let mut past = Past::default();
        let doubt = Doubt::NONE.with(Measure::Score, 0.5);
        for second in 0..200_000_u64 {
            past.saw(&doubt, Moment(second * 1000));
            assert!(past.seen.len() <= SEEN_MAX);
        }
        let all: u64 = past.seen.iter().map(|seen| u64::from(seen.stands_for)).sum::<u64>() + u64::from(past.passed);
        assert!((86_000..=86_900).contains(&all), "{all} of 86400");
        // A slow day after a busy one is seen in full again.
        for minute in 0..3000_u64 {
            past.saw(&doubt, Moment((200_000 + minute * 60) * 1000));
        }
        let all: u64 = past.seen.iter().map(|seen| u64::from(seen.stands_for)).sum::<u64>() + u64::from(past.passed);
        assert!(past.seen.len() > SEEN_MAX / 4 && (1300..=1500).contains(&all), "{} for {all}", past.seen.len());
    }
}
