//! Decides which of the versions of a model that lie on a device is run, which may be tried, and which may go.
//!
//! ```text
//!  wanted ──verified, tried──▶ current, on probation ──answers──▶ current ──the next is promoted──▶ previous ──▶ gone
//!                 │                      │                           │                                 │
//!                 ▼                      ▼ too many crashes          ▼ an operator's word              │
//!              failed ◀──────────────────┴───────────────────────────┘◀── current again ◀──────────────┘
//! ```
//! What failed is remembered and not tried again by itself. Files and links are the shell's.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;

use hedge_proto::{Digest, Name};
use serde::{Deserialize, Serialize};

/// How often the agent may crash with a promoted bundle before it has answered a sample; one crash may be another's doing.
pub const CRASHES_MAX: u32 = 1;

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
}

/// The versions of one model; kept over restarts.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Shelf {
    pub current: Option<Held>,
    pub previous: Option<Held>,
    /// Crashes of the agent with the current bundle before it has answered; none once it has.
    probation: Option<u32>,
    failed: Vec<Failed>,
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

    /// It was tried and is not good.
    pub fn fail(&mut self, held: Held, reason: &str) {
        self.failed.retain(|failed| failed.held != held);
        self.failed.push(Failed { held, reason: reason.to_string() });
        let too_many = self.failed.len().saturating_sub(FAILED_MAX);
        self.failed.drain(..too_many);
    }

    /// It was tried and is good: it runs from now on, and the one before it is kept.
    pub fn promote(&mut self, held: Held) {
        self.failed.retain(|failed| failed.held != held);
        if self.current.as_ref() != Some(&held) {
            self.previous = self.current.replace(held);
        }
        self.probation = Some(0);
    }

    /// The one before runs again; this one has failed.
    pub fn back(&mut self, reason: &str) -> Result<(), NotTried> {
        let previous = self.previous.take().ok_or(NotTried::NoPrevious)?;
        if let Some(current) = self.current.replace(previous) {
            self.fail(current, reason);
        }
        self.probation = None;
        Ok(())
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
        self.current.iter().chain(&self.previous).any(|held| held.folder() == folder)
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
