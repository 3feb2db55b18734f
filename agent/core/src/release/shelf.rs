//! Decides which of the versions of a model that lie on a device is run, which may be tried, and which may go.
//!
//! ```text
//!  wanted ──verified, tried──▶ current, on probation ──answers──▶ current ──the next is promoted──▶ previous ──▶ gone
//!                 │  ▲                   │                           │                                 │
//!       in shadow ▼  │ better            ▼ too many crashes          ▼ worse than it was before,       │
//!              candidate                 │                           │ or an operator's word           │
//!                 │ worse                │                           │                                 │
//!                 ▼                      ▼                           ▼                                 │
//!              failed ◀──────────────────┴───────────────────────────┘◀── current again ◀──────────────┘
//! ```
//! What failed is remembered and not tried again by itself. Which of two is better is up to [`Comparison`]: between the
//! candidate and the current one, and, once a bundle is promoted, between it and the one before. Files and links are the
//! shell's.
//!
//! [`Comparison`]: super::comparison::Comparison

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hedge_proto::{Digest, Name, RivalRole};
use serde::{Deserialize, Serialize};

use super::comparison::Finding;

/// How often the agent may crash with a promoted bundle before it has answered a sample; one crash may be another's doing.
pub const CRASHES_MAX: u32 = 1;

/// How often the trial of a bundle may begin without coming to an end. What is cut off once or twice may be so by a stop
/// or a power cut; what takes the whole agent with it each time would do so for ever.
pub const TRIALS_MAX: u32 = 3;

/// How many failed bundles are remembered; the oldest are forgotten.
const FAILED_MAX: usize = 32;

/// One bundle, told from every other by its signature.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Held {
    pub name: Name,
    pub version: Name,
    pub signature: Digest,
}

impl Held {
    /// The name of its folder. Another bundle of the same version has another.
    #[must_use]
    pub fn folder(&self) -> String {
        let sum: String = self.signature.to_string().chars().take(16).collect();
        format!("{}-{}-{sum}", self.name, self.version)
    }
}

/// Why a bundle is not tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NotTried {
    #[error("{name}/{version} is the current bundle already")]
    Current { name: Name, version: Name },
    #[error("{name}/{version} has failed here ({reason}); publish a better one, or give --again")]
    Failed { name: Name, version: Name, reason: String },
    #[error("there is no previous bundle to go back to")]
    NoPrevious,
    #[error("there is no candidate to promote")]
    NoCandidate,
}

/// The versions of one model; kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shelf {
    pub current: Option<Held>,
    pub previous: Option<Held>,
    /// It looks at what the current one answers, and nobody hears it.
    pub candidate: Option<Held>,
    /// The current bundle is compared with the previous one.
    watched: bool,
    /// Crashes of the agent with the current bundle before it has answered; none once it has.
    probation: Option<u32>,
    failed: Vec<Failed>,
    /// The bundle whose trial began last and has not ended, and how often it began.
    #[serde(skip_serializing_if = "Option::is_none")]
    trial: Option<(Held, u32)>,
}

/// How a bundle stands that somebody wants, by its name and version alone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Standing {
    Current,
    Candidate,
    Failed(String),
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Failed {
    held: Held,
    reason: String,
}

impl Shelf {
    /// Whether `wanted` may be fetched and tried. A person may insist.
    pub fn may_try(&self, wanted: &Held, insists: bool) -> Result<(), NotTried> {
        let (name, version) = (wanted.name.clone(), wanted.version.clone());
        if self.current.as_ref() == Some(wanted) {
            return Err(NotTried::Current { name, version });
        }
        match self.failed.iter().find(|failed| failed.held == *wanted) {
            Some(Failed { reason, .. }) if !insists => Err(NotTried::Failed { name, version, reason: reason.clone() }),
            _ => Ok(()),
        }
    }

    /// How the bundle stands that is to run, or with `shadow` to look on first; none if it is not here, or is to be more
    /// than it is.
    #[must_use]
    pub fn standing(&self, name: &Name, version: &Name, shadow: bool) -> Option<Standing> {
        let is = |held: &Held| (&held.name, &held.version) == (name, version);
        if self.current.as_ref().is_some_and(is) {
            return Some(Standing::Current);
        }
        if shadow && self.candidate.as_ref().is_some_and(is) {
            return Some(Standing::Candidate);
        }
        let failed = self.failed.iter().rev().find(|failed| is(&failed.held));
        failed.map(|failed| Standing::Failed(failed.reason.clone()))
    }

    /// Its trial begins; to be kept before it does. Or why it has failed: one that never comes to an end is not begun again.
    pub fn trial_begins(&mut self, held: &Held, insists: bool) -> Result<(), &'static str> {
        let before = match &self.trial {
            Some((same, begun)) if same == held && !insists => *begun,
            _ => 0,
        };
        if before >= TRIALS_MAX {
            return Err("its trial was cut off each time it began, as if the device did not bear it");
        }
        self.trial = Some((held.clone(), before + 1));
        Ok(())
    }

    /// It was tried and is not good.
    pub fn fail(&mut self, held: Held, reason: &str) {
        self.trial = None;
        self.failed.retain(|failed| failed.held != held);
        self.failed.push(Failed { held, reason: reason.to_string() });
        let too_many = self.failed.len().saturating_sub(FAILED_MAX);
        self.failed.drain(..too_many);
    }

    /// It was tried, and is to be compared with the current one before it runs. Another candidate is given up.
    pub fn stage(&mut self, held: Held) {
        self.trial = None;
        self.failed.retain(|failed| failed.held != held);
        self.candidate = Some(held);
    }

    /// The candidate runs from now on.
    pub fn promote_candidate(&mut self) -> Result<(), NotTried> {
        let candidate = self.candidate.clone().ok_or(NotTried::NoCandidate)?;
        self.promote(candidate);
        Ok(())
    }

    /// The bundle that the current one is compared with.
    #[must_use]
    pub fn rival(&self) -> Option<(&Held, RivalRole)> {
        let previous = self.previous.as_ref().filter(|_| self.watched && self.current.is_some());
        let candidate = self.candidate.as_ref().filter(|_| self.current.is_some());
        candidate.map(|held| (held, RivalRole::Candidate)).or(previous.map(|held| (held, RivalRole::Previous)))
    }

    /// A comparison with the rival in this folder has ended. Returns whether another bundle is to run now; a candidate that is better
    /// is promoted only where that is `allowed`, and waits for a person otherwise.
    pub fn found(&mut self, folder: &str, finding: &Finding, allowed: bool) -> bool {
        match self.rival() {
            Some((held, role)) if held.folder() == folder => match (role, finding) {
                (RivalRole::Candidate, Finding::NewerBetter(_)) => allowed && self.promote_candidate().is_ok(),
                (RivalRole::Candidate, Finding::NewerWorse(why)) => {
                    self.candidate.take().into_iter().for_each(|candidate| self.fail(candidate, why));
                    false
                }
                (RivalRole::Previous, Finding::NewerWorse(why)) => self.back(why).is_ok(),
                (RivalRole::Candidate, Finding::Alike) => false,
                (RivalRole::Previous, Finding::NewerBetter(_) | Finding::Alike) => {
                    self.watched = false;
                    false
                }
            },
            // Somebody has changed what is compared meanwhile.
            _ => false,
        }
    }

    /// It was tried and is good: it runs from now on, and the one before it is kept.
    pub fn promote(&mut self, held: Held) {
        self.trial = None;
        self.failed.retain(|failed| failed.held != held);
        if self.current.as_ref() != Some(&held) {
            self.candidate = self.candidate.take().filter(|candidate| *candidate != held);
            self.previous = self.current.replace(held);
            self.watched = self.previous.is_some();
        }
        self.probation = Some(0);
    }

    /// The one before runs again; this one has failed.
    pub fn back(&mut self, reason: &str) -> Result<(), NotTried> {
        let previous = self.previous.take().ok_or(NotTried::NoPrevious)?;
        if let Some(current) = self.current.replace(previous) {
            self.fail(current, reason);
        }
        (self.probation, self.watched) = (None, false);
        Ok(())
    }

    /// The same, by somebody's word.
    pub fn back_by_hand(&mut self) -> Result<(), NotTried> {
        self.back("an operator went back to the one before")
    }

    /// The agent starts after a crash. Returns whether it goes back, because the current bundle never came as far as an
    /// answer. A start after a power cut or a word of somebody's is no sign of anything.
    pub fn crashed(&mut self) -> bool {
        let Some(crashes) = &mut self.probation else { return false };
        *crashes += 1;
        *crashes > CRASHES_MAX && self.back("the agent crashed again and again before it had answered a sample").is_ok()
    }

    /// The current bundle has answered a sample. Returns whether that was news.
    pub fn answered(&mut self) -> bool {
        self.probation.take().is_some()
    }

    #[must_use]
    pub fn on_probation(&self) -> bool {
        self.probation.is_some()
    }

    /// Whether the folder of this name belongs to a bundle that is kept.
    #[must_use]
    pub fn keeps(&self, folder: &str) -> bool {
        self.current.iter().chain(&self.previous).chain(&self.candidate).any(|held| held.folder() == folder)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn held(version: &str) -> Held {
        let name = |text| Name::new(text).expect("a name");
        Held { name: name("m"), version: name(version), signature: Digest::of(version.as_bytes()) }
    }

    fn with_two() -> Shelf {
        let mut shelf = Shelf::default();
        shelf.promote(held("1"));
        assert!(shelf.answered());
        shelf.promote(held("2"));
        shelf
    }

    #[test]
    fn what_failed_is_not_tried_again_by_itself() {
        let mut shelf = Shelf::default();
        shelf.fail(held("2"), "its golden samples differ");
        assert!(matches!(shelf.may_try(&held("2"), false), Err(NotTried::Failed { .. })));
        shelf.may_try(&held("2"), true).expect("a person may insist");
        shelf.may_try(&held("3"), false).expect("another may be better");
        let same_version = Held { signature: Digest::of(b"mended"), ..held("2") };
        shelf.may_try(&same_version, false).expect("another bundle of that version is another");
        assert_ne!(same_version.folder(), held("2").folder());
        shelf.promote(held("2"));
        assert!(matches!(shelf.may_try(&held("2"), true), Err(NotTried::Current { .. })));
        for number in 0..100_u32 {
            shelf.fail(held(&format!("x{number}")), "bad");
        }
        assert_eq!(shelf.failed.len(), FAILED_MAX);
    }

    #[test]
    fn a_trial_that_never_ends_is_not_begun_for_ever() {
        let mut shelf = Shelf::default();
        for _ in 0..TRIALS_MAX {
            shelf.trial_begins(&held("2"), false).expect("it may end this time");
        }
        let reason = shelf.trial_begins(&held("2"), false).expect_err("it never ends");
        shelf.fail(held("2"), reason);
        let name = |text| Name::new(text).expect("a name");
        assert!(matches!(shelf.standing(&name("m"), &name("2"), false), Some(Standing::Failed(_))));
        shelf.trial_begins(&held("2"), true).expect("a person may insist");
        shelf.promote(held("2"));
        assert_eq!(shelf.standing(&name("m"), &name("2"), true), Some(Standing::Current));
        for _ in 0..TRIALS_MAX {
            shelf.trial_begins(&held("3"), false).expect("those that ended do not count");
            shelf.stage(held("3"));
        }
        assert_eq!(shelf.standing(&name("m"), &name("3"), true), Some(Standing::Candidate));
        assert_eq!(shelf.standing(&name("m"), &name("3"), false), None, "it is to answer");
        shelf.trial_begins(&held("3"), false).expect("those that ended do not count");
    }

    #[test]
    fn the_previous_bundle_is_kept_and_gone_back_to() {
        let mut shelf = with_two();
        assert!(shelf.keeps(&held("1").folder()) && shelf.keeps(&held("2").folder()));
        shelf.back("an operator").expect("there is one");
        assert_eq!((&shelf.current, &shelf.previous), (&Some(held("1")), &None));
        assert!(matches!(shelf.may_try(&held("2"), false), Err(NotTried::Failed { .. })));
        assert_eq!(shelf.back("again"), Err(NotTried::NoPrevious));
        assert_eq!(shelf.current, Some(held("1")), "it stays");
    }

    #[test]
    fn a_candidate_is_promoted_by_evidence_where_that_is_allowed_and_given_up_when_it_is_worse() {
        let why = || "seen".to_string();
        let mut shelf = with_two();
        shelf.stage(held("3"));
        assert!(shelf.keeps(&held("3").folder()));
        assert_eq!(shelf.rival(), Some((&held("3"), RivalRole::Candidate)));
        assert!(!shelf.found(&held("3").folder(), &Finding::NewerBetter(why()), false), "a person promotes it");
        assert!(!shelf.found(&held("1").folder(), &Finding::NewerWorse(why()), true), "that is not the rival");
        assert!(shelf.found(&held("3").folder(), &Finding::NewerBetter(why()), true));
        assert_eq!((&shelf.current, &shelf.previous, &shelf.candidate), (&Some(held("3")), &Some(held("2")), &None));
        shelf.stage(held("4"));
        assert!(!shelf.found(&held("4").folder(), &Finding::NewerWorse(why()), true));
        assert_eq!((&shelf.current, &shelf.candidate), (&Some(held("3")), &None));
        assert!(matches!(shelf.may_try(&held("4"), false), Err(NotTried::Failed { .. })));
        assert_eq!(shelf.promote_candidate(), Err(NotTried::NoCandidate));
    }

    #[test]
    fn a_promoted_bundle_that_is_worse_than_the_one_before_is_given_back() {
        let mut shelf = with_two();
        assert_eq!(shelf.rival(), Some((&held("1"), RivalRole::Previous)));
        assert!(
            shelf.found(&held("1").folder(), &Finding::NewerWorse("seen".to_string()), false),
            "that needs nobody's leave"
        );
        assert_eq!((&shelf.current, shelf.rival()), (&Some(held("1")), None));
        assert!(matches!(shelf.may_try(&held("2"), false), Err(NotTried::Failed { .. })));
        let mut shelf = with_two();
        assert!(!shelf.found(&held("1").folder(), &Finding::Alike, true));
        assert_eq!((&shelf.current, shelf.rival()), (&Some(held("2")), None), "it has proved itself");
    }

    #[test]
    fn a_bundle_that_never_answers_is_given_back_after_some_crashes() {
        let mut shelf = with_two();
        for _ in 0..CRASHES_MAX {
            assert!(!shelf.crashed());
        }
        assert!(shelf.crashed());
        assert_eq!(shelf.current, Some(held("1")));
        assert!(!shelf.crashed(), "the one before is not on probation");
        let mut shelf = with_two();
        assert!(shelf.answered() && !shelf.answered());
        for _ in 0..10 {
            assert!(!shelf.crashed(), "it has answered: a crash has another reason");
        }
        let mut only = Shelf::default();
        only.promote(held("1"));
        for _ in 0..10 {
            assert!(!only.crashed(), "there is nothing to go back to");
        }
        assert_eq!(only.current, Some(held("1")));
    }
}
