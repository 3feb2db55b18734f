//! Decides whether a verdict counts, and whether it replaces the device's answer.

use hedge_proto::{Authority, Share};

/// What a device knows about the case a verdict is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Known {
    /// On its way to the cloud, or given up on.
    Open,
    /// Already answered with this revision.
    Answered { revision: u32 },
    /// Forgotten, or never stored.
    Nothing,
}

/// What becomes of a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ruling {
    Apply,
    /// The case is closed with this or a later word, or long forgotten. Counted, nothing else.
    Late,
}

/// A verdict counts if its case is open, or if it is a later word on an answered one.
#[must_use]
pub fn rule(known: Known, revision: u32) -> Ruling {
    match known {
        Known::Open => Ruling::Apply,
        Known::Answered { revision: before } if revision > before => Ruling::Apply,
        Known::Answered { .. } | Known::Nothing => Ruling::Late,
    }
}

/// Whether a verdict replaces the device's own answer. If not, the case is closed and that answer stands.
///
/// `score` is the verdict's best, `None` where it has none. A model that is not sure itself corrects nothing; a
/// person always does, and a verdict is better than no answer at all.
#[must_use]
pub fn corrects(authority: Authority, score: Option<f32>, score_min: Share, has_local_answer: bool) -> bool {
    authority == Authority::Person || !has_local_answer || score.is_none_or(|score| score >= score_min.value())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_model_that_is_not_sure_itself_corrects_nothing() {
        let half = Share::new(0.5).expect("a share");
        assert!(!corrects(Authority::Model, Some(0.1), half, true));
        assert!(!corrects(Authority::StrongerModel, Some(0.49), half, true));
        assert!(corrects(Authority::Model, Some(0.5), half, true));
        assert!(corrects(Authority::Person, Some(0.1), half, true), "a person always does");
        assert!(corrects(Authority::Model, Some(0.1), half, false), "better than no answer");
        assert!(corrects(Authority::Model, None, half, true), "what has no score cannot be below one");
        assert!(corrects(Authority::Model, Some(0.0), Share::ZERO, true), "the default: every verdict does");
    }

    #[test]
    fn a_repeated_verdict_is_applied_once_and_a_higher_revision_again() {
        assert_eq!(rule(Known::Open, 1), Ruling::Apply);
        assert_eq!(rule(Known::Answered { revision: 1 }, 1), Ruling::Late);
        assert_eq!(rule(Known::Answered { revision: 1 }, 2), Ruling::Apply);
        assert_eq!(rule(Known::Answered { revision: 2 }, 1), Ruling::Late);
        assert_eq!(rule(Known::Nothing, 1), Ruling::Late);
    }
}
