//! Decides whether a verdict counts, and whether it replaces the device's answer.

use alloc::format;
use alloc::string::String;

use hedge_proto::{Authority, Output, Share, Verdict};

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
    /// The case is closed with this or a later word, or long forgotten, or this is no verdict. Counted, nothing else.
    Late,
}

/// A verdict counts if its case is open or given up on, or if it is a later word on an answered one. Revisions begin
/// with 1: what is none ends no case.
#[must_use]
pub fn rule(known: Known, revision: u32) -> Ruling {
    match known {
        _ if revision == 0 => Ruling::Late,
        Known::Open => Ruling::Apply,
        Known::Answered { revision: before } if revision > before => Ruling::Apply,
        Known::Answered { .. } | Known::Nothing => Ruling::Late,
    }
}

/// Why a verdict is no answer to what was asked, for people. It ends no case: the cloud has failed at it, and a case that it
/// answers like this again and again is a dead letter with this reason. `task` is the case's, `local` what its device says.
#[must_use]
pub fn misfit(task: &str, local: Option<&Output>, verdict: &Verdict) -> Option<String> {
    if verdict.task != task {
        return Some(format!("the cloud answers the task `{}` where `{task}` was asked", verdict.task));
    }
    let kind = |output: &Output| match output {
        Output::Classes(_) => "labels",
        Output::Boxes(_) => "boxes",
    };
    let (ours, theirs) = (local.map(kind)?, kind(&verdict.said));
    (ours != theirs).then(|| {
        format!("it answers `{task}` with {theirs}, and the device's model with {ours}; a task needs one kind of model")
    })
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
    use alloc::borrow::ToOwned;
    use alloc::vec::Vec;

    use hedge_proto::{CaseId, CaseKey, Epoch, ModelRef, Name};

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

    #[test]
    fn a_verdict_about_another_task_or_of_another_kind_is_no_answer() {
        let id = CaseId { device: Name::new("gate").expect("a name"), key: CaseKey { epoch: Epoch(1), sequence: 1 } };
        let model = ModelRef { name: "large".to_owned(), version: "1".to_owned() };
        let (labels, boxes) = (Output::label("boot"), Output::Boxes(Vec::new()));
        let verdict = |task: &str, said: &Output| Verdict {
            v: 1,
            id: id.clone(),
            revision: 1,
            authority: Authority::Model,
            task: task.to_owned(),
            said: said.clone(),
            model: model.clone(),
        };
        assert_eq!(misfit("shoes", Some(&labels), &verdict("shoes", &labels)), None);
        let other = misfit("shoes", Some(&labels), &verdict("hats", &labels));
        assert_eq!(other.as_deref(), Some("the cloud answers the task `hats` where `shoes` was asked"));
        let kind = misfit("shoes", Some(&labels), &verdict("shoes", &boxes)).expect("another kind");
        assert!(kind.contains("with boxes, and the device's model with labels"), "{kind}");
        assert_eq!(misfit("shoes", None, &verdict("shoes", &boxes)), None, "the device had no answer of any kind");
    }

    #[test]
    fn revision_zero_ends_no_case() {
        for known in [Known::Open, Known::Answered { revision: 1 }, Known::Nothing] {
            assert_eq!(rule(known, 0), Ruling::Late);
        }
    }
}
