//! Decides how much of a sample may leave the device.
//!
//! The [`Ceiling`] is the operator's on the device itself; what a state of the link asks for is `policy`'s and may be
//! less. Making thumbnails is the shell's.
//!
//! Invariant: whatever is asked for, and in whatever form a case was stored, nothing richer than the ceiling leaves. What
//! cannot be made poor enough leaves as nothing.

use hedge_proto::{Payload, PayloadForm};

/// The most of any sample that may ever leave the device. A lower one is less than a higher one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ceiling(pub Payload);

impl Ceiling {
    /// Everything may leave.
    pub const NONE: Self = Self(Payload::Whole);

    #[must_use]
    pub fn allows(self, payload: Payload) -> bool {
        payload <= self.0
    }

    /// What is asked for, or the ceiling if that is less.
    #[must_use]
    pub fn hold(self, asked: Payload) -> Payload {
        asked.min(self.0)
    }

    /// What is done with a sample's bytes, which have `form` now, before they are stored or sent.
    #[must_use]
    pub fn treat(self, asked: Payload, form: PayloadForm) -> Treatment {
        match (self.hold(asked), form) {
            (Payload::Nothing, _) => Treatment::Drop,
            (_, PayloadForm::Nothing) | (Payload::Whole, _) => Treatment::Keep,
            (Payload::Thumbnail(side_max), _) if self == Self::NONE => Treatment::Shrink { side_max },
            (Payload::Thumbnail(side_max), PayloadForm::Thumbnail) => Treatment::Fit { side_max },
            (Payload::Thumbnail(side_max), _) => Treatment::Reduce { side_max },
        }
    }
}

/// What is done with a sample's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Treatment {
    /// They stay as they are.
    Keep,
    /// To save bytes: they stay as they are where that would not.
    Shrink { side_max: u32 },
    /// They are pixels of a picture already and stay as they are unless it is longer.
    Fit { side_max: u32 },
    /// Nothing but the pixels of a picture at most so long; what is no picture goes.
    Reduce { side_max: u32 },
    /// They go.
    Drop,
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOADS: [Payload; 4] = [Payload::Nothing, Payload::Thumbnail(64), Payload::Thumbnail(320), Payload::Whole];

    const FORMS: [PayloadForm; 5] =
        [PayloadForm::Nothing, PayloadForm::Embedding, PayloadForm::Thumbnail, PayloadForm::Crop, PayloadForm::Whole];

    /// The richest that may be left of a payload of any form; none if its bytes may leave as they came.
    fn left_at_most(treatment: Treatment, form: PayloadForm) -> Option<Payload> {
        match (treatment, form) {
            (Treatment::Drop, _) | (Treatment::Keep, PayloadForm::Nothing) => Some(Payload::Nothing),
            (Treatment::Reduce { side_max }, _) | (Treatment::Fit { side_max }, PayloadForm::Thumbnail) => {
                Some(Payload::Thumbnail(side_max))
            }
            (Treatment::Keep | Treatment::Shrink { .. } | Treatment::Fit { .. }, _) => None,
        }
    }

    #[test]
    fn whatever_is_asked_for_and_stored_nothing_richer_than_the_ceiling_leaves() {
        for ceiling in PAYLOADS.map(Ceiling) {
            for (asked, form) in PAYLOADS.into_iter().flat_map(|asked| FORMS.map(|form| (asked, form))) {
                assert!(ceiling.allows(ceiling.hold(asked)));
                let treatment = ceiling.treat(asked, form);
                let left = left_at_most(treatment, form);
                let allowed = left.map_or(ceiling == Ceiling::NONE, |left| ceiling.allows(left));
                assert!(allowed, "{ceiling:?}, asked for {asked:?} of {form:?}: {treatment:?}");
            }
        }
    }

    #[test]
    fn a_lower_ceiling_never_lets_more_leave() {
        for (lower, higher) in PAYLOADS.into_iter().zip(PAYLOADS.into_iter().skip(1)) {
            assert!(Ceiling(lower) < Ceiling(higher));
            for asked in PAYLOADS {
                assert!(Ceiling(lower).hold(asked) <= Ceiling(higher).hold(asked));
            }
        }
    }

    #[test]
    fn without_a_ceiling_a_thumbnail_only_saves_bytes_and_what_was_stored_leaves_as_it_is() {
        let side_max = 64;
        let asked = Payload::Thumbnail(side_max);
        assert_eq!(Ceiling::NONE.treat(asked, PayloadForm::Whole), Treatment::Shrink { side_max });
        for form in FORMS {
            assert_eq!(Ceiling::NONE.treat(Payload::Whole, form), Treatment::Keep);
        }
    }
}
