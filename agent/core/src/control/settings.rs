//! Decides what becomes of a desired document, by its version and content.
//!
//! ```text
//!   wanted ──▶ refused (old, a replay, failed before)
//!      │
//!      ├──▶ in force                                    nothing in it could cut the link
//!      └──▶ on trial ──▶ in force
//!               └─────▶ failed: the last good settings return, the version is remembered
//! ```
//!
//! Invariant: whatever arrives in whatever order, the version in force only grows, but for a trial that fails; and a
//! version that failed is never tried again.

use alloc::format;
use alloc::string::String;
use alloc::vec::Vec;
use core::time::Duration;

use hedge_proto::{Confirm, Digest, Settings, VERSION_MAX, highest_after, to_json};
use serde::{Deserialize, Serialize};

use super::trial::Trial;
use crate::clock::Moment;

/// How many failed versions are remembered; the latest, because a broker holds one document.
const FAILED_MAX: usize = 64;

/// An overlay and its version.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Overlay {
    pub version: u64,
    pub settings: Settings,
}

impl Overlay {
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest::of(&to_json(&self.settings))
    }
}

/// What is remembered of settings over a restart.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Book {
    /// The last good overlay; none for the local file alone.
    good: Option<Overlay>,
    /// In force now, but not good yet.
    trial: Option<(Overlay, Trial)>,
    /// Those that failed, and those that a reset took out of force; the latest last.
    failed: Vec<u64>,
}

/// What becomes of a document.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Weighed {
    /// It may come into force.
    Wanted,
    /// It is in force, or on trial, already.
    Known,
    /// Why not, in one sentence for people.
    Refused(String),
}

impl Book {
    /// Weighs an overlay whose fields are valid.
    #[must_use]
    pub fn weigh(&self, overlay: &Overlay) -> Weighed {
        let version = overlay.version;
        if let Some(same) = self.overlays().find(|known| known.version == version) {
            return if same.digest() == overlay.digest() {
                Weighed::Known
            } else {
                Weighed::Refused(format!(
                    "version {version} was another document; publish this one as a higher version"
                ))
            };
        }
        let newest = self.overlays().map(|known| known.version).max().unwrap_or(0);
        if version < newest && newest == VERSION_MAX {
            return Weighed::Refused(format!(
                "no version is left after {newest}; `hedge-agent settings reset` on the device starts again"
            ));
        }
        if version < newest {
            return Weighed::Refused(format!("version {version} is old: {newest} is here; publish a higher one"));
        }
        if self.failed.contains(&version) {
            return Weighed::Refused(format!(
                "version {version} has failed before, or was reset on the device; publish a higher one"
            ));
        }
        let highest = highest_after(newest);
        if version > highest {
            return Weighed::Refused(format!(
                "version {version} leaves too few for later documents: the highest after {newest} is {highest}"
            ));
        }
        Weighed::Wanted
    }

    /// Takes an overlay in force for good.
    pub fn accept(&mut self, overlay: Overlay) {
        self.trial = None;
        self.good = Some(overlay);
    }

    /// Takes an overlay in force on trial. A trial under way gives way to it, and has not failed.
    pub fn begin_trial(&mut self, now: Moment, length: Duration, overlay: Overlay, confirm: Confirm) {
        let trial = Trial::begin(now, length, overlay.version, confirm);
        self.trial = Some((overlay, trial));
    }

    /// The settings on trial are good.
    pub fn confirm(&mut self) {
        if let Some((overlay, _)) = self.trial.take() {
            self.good = Some(overlay);
        }
    }

    /// The settings on trial are not kept, and not tried again.
    pub fn fail(&mut self) {
        if let Some((overlay, _)) = self.trial.take() {
            self.never_again(overlay.version);
        }
    }

    /// The local file alone is in force, and the comparison of versions begins anew. The broker may still hold what
    /// was in force, so that does not come back; any other version may.
    pub fn reset(&mut self) {
        let good = self.good.take();
        self.fail();
        if let Some(overlay) = good {
            self.never_again(overlay.version);
        }
    }

    fn never_again(&mut self, version: u64) {
        self.failed.retain(|known| *known != version);
        self.failed.push(version);
        if self.failed.len() > FAILED_MAX {
            self.failed.remove(0);
        }
    }

    /// What is in force: the overlay on trial, or else the last good one.
    #[must_use]
    pub fn in_force(&self) -> Option<&Overlay> {
        self.trial.as_ref().map(|(overlay, _)| overlay).or(self.good.as_ref())
    }

    /// The last overlay that is not on trial.
    #[must_use]
    pub fn good(&self) -> Option<&Overlay> {
        self.good.as_ref()
    }

    #[must_use]
    pub fn trial(&self) -> Option<&Trial> {
        self.trial.as_ref().map(|(_, trial)| trial)
    }

    pub fn trial_mut(&mut self) -> Option<&mut Trial> {
        self.trial.as_mut().map(|(_, trial)| trial)
    }

    fn overlays(&self) -> impl Iterator<Item = &Overlay> {
        self.good.iter().chain(self.trial.iter().map(|(overlay, _)| overlay))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::trial::TRIAL;
    use alloc::string::ToString;
    use hedge_proto::LogSettings;
    use proptest::prelude::*;

    fn overlay(version: u64, level: &str) -> Overlay {
        let log = Some(LogSettings { level: Some(level.to_string()) });
        Overlay { version, settings: Settings { log, ..Settings::default() } }
    }

    #[track_caller]
    fn check_refused(book: &Book, version: u64, level: &str, part: &str) {
        match book.weigh(&overlay(version, level)) {
            Weighed::Refused(reason) => assert!(reason.contains(part), "`{reason}` does not say `{part}`"),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn old_versions_and_other_documents_of_a_version_are_refused_and_replays_are_known() {
        let mut book = Book::default();
        assert_eq!(book.weigh(&overlay(5, "info")), Weighed::Wanted);
        book.accept(overlay(5, "info"));
        assert_eq!(book.weigh(&overlay(5, "info")), Weighed::Known);
        check_refused(&book, 5, "debug", "another document");
        check_refused(&book, 4, "debug", "old: 5");
        assert_eq!(book.weigh(&overlay(6, "debug")), Weighed::Wanted);
    }

    #[test]
    fn a_version_that_failed_is_not_tried_again_and_a_higher_one_is() {
        let mut book = Book::default();
        book.accept(overlay(1, "info"));
        book.begin_trial(Moment(0), TRIAL, overlay(2, "warn"), Confirm::Auto);
        assert_eq!(book.in_force().map(|overlay| overlay.version), Some(2));
        book.fail();
        assert_eq!(book.in_force().map(|overlay| overlay.version), Some(1));
        check_refused(&book, 2, "warn", "failed before");
        check_refused(&book, 2, "info", "failed before");
        assert_eq!(book.weigh(&overlay(3, "warn")), Weighed::Wanted);
    }

    #[test]
    fn a_typo_does_not_use_up_the_versions() {
        let mut book = Book::default();
        check_refused(&book, VERSION_MAX, "info", "leaves too few");
        check_refused(&book, 9_000_000_000_000_000, "info", "the highest after 0 is 4503599627370496");
        // Milliseconds since 1970 make good versions.
        assert_eq!(book.weigh(&overlay(1_795_000_000_000, "info")), Weighed::Wanted);
        let mut documents = 0;
        while let version @ 0..VERSION_MAX = book.in_force().map_or(0, |overlay| overlay.version) {
            let next = overlay(highest_after(version), "info");
            assert_eq!(book.weigh(&next), Weighed::Wanted);
            book.accept(next);
            documents += 1;
        }
        assert_eq!(documents, 53, "on purpose, and by as many steps as there are bits");
        check_refused(&book, 7, "info", "no version is left");
    }

    #[test]
    fn after_a_reset_any_version_may_come_but_those_that_were_in_force() {
        let mut book = Book::default();
        book.accept(overlay(VERSION_MAX, "info"));
        book.reset();
        assert_eq!(book.in_force(), None);
        check_refused(&book, VERSION_MAX, "info", "reset on the device");
        book.accept(overlay(1, "info"));
        book.begin_trial(Moment(0), TRIAL, overlay(2, "warn"), Confirm::Auto);
        book.reset();
        for version in [1, 2] {
            check_refused(&book, version, "warn", "reset on the device");
        }
        assert_eq!(book.weigh(&overlay(3, "warn")), Weighed::Wanted);
    }

    #[test]
    fn a_trial_gives_way_to_a_newer_document_and_the_last_good_one_stays() {
        let mut book = Book::default();
        book.accept(overlay(1, "info"));
        book.begin_trial(Moment(0), TRIAL, overlay(2, "warn"), Confirm::Auto);
        assert_eq!(book.weigh(&overlay(3, "warn")), Weighed::Wanted);
        book.begin_trial(Moment(1), TRIAL, overlay(3, "warn"), Confirm::Auto);
        book.fail();
        assert_eq!(book.in_force().map(|overlay| overlay.version), Some(1));
    }

    proptest! {
        #[test]
        fn no_order_of_documents_brings_an_old_or_failed_version_into_force(
            steps in proptest::collection::vec((0_u8..5, 1_u64..12), 0..60),
        ) {
            let mut book = Book::default();
            let mut failed = Vec::new();
            let mut good = 0;
            for (step, version) in steps {
                let wanted = book.weigh(&overlay(version, "info")) == Weighed::Wanted;
                match step {
                    0 | 1 if wanted => {
                        prop_assert!(version > good && !failed.contains(&version));
                        if step == 0 {
                            book.accept(overlay(version, "info"));
                            good = version;
                        } else {
                            book.begin_trial(Moment(0), TRIAL, overlay(version, "info"), Confirm::Auto);
                        }
                    }
                    2 => {
                        good = book.in_force().map_or(good, |overlay| overlay.version);
                        book.confirm();
                    }
                    3 => {
                        failed.extend(book.trial().map(|trial| trial.version));
                        book.fail();
                    }
                    4 => {
                        let kept = hedge_proto::to_json(&book);
                        book = hedge_proto::from_json(&kept, 1 << 20).expect("reads back");
                    }
                    _ => {}
                }
                let in_force = book.in_force().map_or(0, |overlay| overlay.version);
                prop_assert!(in_force >= good && !failed.contains(&in_force));
            }
        }
    }
}
