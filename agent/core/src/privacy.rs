//! Decides how much of a sample may leave the device, and how much of it goes first.
//!
//! The [`Ceiling`] is the operator's on the device itself; what a state of the link asks for is `policy`'s and may be
//! less. Making thumbnails is the shell's. Whether the cloud has asked for the whole is up to `uplink`.
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
        match (asked, self.0) {
            // Nothing is offered that may not follow.
            (Payload::ThumbnailFirst(side), Payload::Thumbnail(most)) => Payload::Thumbnail(side.min(most)),
            (Payload::ThumbnailFirst(side), Payload::Crop) => Payload::Thumbnail(side),
            _ => asked.min(self.0),
        }
    }

    /// What is done with a sample's bytes, which have `form` now, before they are stored.
    #[must_use]
    pub fn treat(self, asked: Payload, form: PayloadForm) -> Treatment {
        match (self.hold(asked), form) {
            (Payload::Nothing, _) => Treatment::Drop,
            (_, PayloadForm::Nothing | PayloadForm::Embedding) => Treatment::Keep,
            (Payload::Embedding, _) => Treatment::Embed,
            (Payload::Whole | Payload::ThumbnailFirst(_), _) => Treatment::Keep,
            (Payload::Crop | Payload::Thumbnail(_), PayloadForm::Crop) if self >= Self(Payload::Crop) => {
                Treatment::Keep
            }
            (Payload::Crop, _) => Treatment::Cut { side_max: None },
            (Payload::Thumbnail(side_max), _) if self.0 == Payload::Crop => Treatment::Cut { side_max: Some(side_max) },
            (Payload::Thumbnail(side_max), _) if self == Self::NONE => Treatment::Shrink { side_max },
            (Payload::Thumbnail(side_max), PayloadForm::Thumbnail) => Treatment::Fit { side_max },
            (Payload::Thumbnail(side_max), _) => Treatment::Reduce { side_max },
        }
    }

    /// The same of what was stored, before it is sent. Thumbnails of `first` pixels go first if that is given.
    #[must_use]
    pub fn treat_stored(self, first: Option<u32>, form: PayloadForm) -> Treatment {
        match (self.treat(Payload::Whole, form), form, first) {
            (Treatment::Keep, PayloadForm::Whole, Some(side_max)) => Treatment::Offer { side_max },
            (treatment, ..) => treatment,
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
    /// To save more bytes: a thumbnail goes and all of it is offered, where the thumbnail is short enough.
    Offer { side_max: u32 },
    /// Nothing but the part of the picture that was judged; what has no such part is judged as a whole and stays, or is
    /// shrunk to so long.
    Cut { side_max: Option<u32> },
    /// They are pixels of a picture already and stay as they are unless it is longer.
    Fit { side_max: u32 },
    /// Nothing but the pixels of a picture at most so long; what is no picture goes.
    Reduce { side_max: u32 },
    /// The model's embedding takes their place; where there is none, nothing does.
    Embed,
    /// They go.
    Drop,
}

impl Treatment {
    /// Whether a picture of `made` bytes takes the place of one of `came` bytes, if it was made to save bytes. If the cloud
    /// asks for every other picture that was offered, a thumbnail of half its bytes has saved nothing.
    #[must_use]
    pub fn saves(self, made: usize, came: usize) -> bool {
        match self {
            Self::Offer { .. } => made <= came / 2,
            _ => made < came,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAYLOADS: [Payload; 8] = [
        Payload::Nothing,
        Payload::Embedding,
        Payload::Thumbnail(64),
        Payload::Thumbnail(320),
        Payload::ThumbnailFirst(64),
        Payload::ThumbnailFirst(320),
        Payload::Crop,
        Payload::Whole,
    ];

    /// Those that a device may have.
    fn ceilings() -> impl Iterator<Item = Ceiling> {
        PAYLOADS.into_iter().filter(|payload| !matches!(payload, Payload::ThumbnailFirst(_))).map(Ceiling)
    }

    const FORMS: [PayloadForm; 5] =
        [PayloadForm::Nothing, PayloadForm::Embedding, PayloadForm::Thumbnail, PayloadForm::Crop, PayloadForm::Whole];

    /// The richest that may be left of a payload of any form; none if its bytes may leave as they came.
    fn left_at_most(treatment: Treatment, form: PayloadForm) -> Option<Payload> {
        match (treatment, form) {
            (Treatment::Drop, _) | (Treatment::Keep, PayloadForm::Nothing) => Some(Payload::Nothing),
            (Treatment::Embed, _) | (Treatment::Keep, PayloadForm::Embedding) => Some(Payload::Embedding),
            (Treatment::Reduce { side_max }, _) | (Treatment::Fit { side_max }, PayloadForm::Thumbnail) => {
                Some(Payload::Thumbnail(side_max))
            }
            (Treatment::Cut { .. }, _) | (Treatment::Keep, PayloadForm::Crop) => Some(Payload::Crop),
            (Treatment::Keep | Treatment::Shrink { .. } | Treatment::Offer { .. } | Treatment::Fit { .. }, _) => None,
        }
    }

    #[test]
    fn whatever_is_asked_for_and_stored_nothing_richer_than_the_ceiling_leaves() {
        for ceiling in ceilings() {
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
    fn an_embedding_stays_one_unless_nothing_may_leave() {
        for ceiling in ceilings() {
            let kept = if ceiling.0 == Payload::Nothing { Treatment::Drop } else { Treatment::Keep };
            assert_eq!(ceiling.treat(Payload::Whole, PayloadForm::Embedding), kept, "{ceiling:?}");
            let made = if ceiling.0 == Payload::Nothing { Treatment::Drop } else { Treatment::Embed };
            assert_eq!(ceiling.treat(Payload::Embedding, PayloadForm::Whole), made, "{ceiling:?}");
        }
    }

    #[test]
    fn the_whole_is_offered_only_where_it_is_stored_and_may_leave() {
        for (ceiling, form) in ceilings().flat_map(|ceiling| FORMS.map(|form| (ceiling, form))) {
            let offers = |first| matches!(ceiling.treat_stored(first, form), Treatment::Offer { side_max: 64 });
            let whole_may_leave = ceiling == Ceiling::NONE && form == PayloadForm::Whole;
            assert_eq!(offers(Some(64)), whole_may_leave, "{ceiling:?} of {form:?}");
            assert!(!offers(None), "the cloud has asked for it");
            if !whole_may_leave {
                assert_eq!(ceiling.treat_stored(Some(64), form), ceiling.treat(Payload::Whole, form));
            }
        }
    }

    #[test]
    fn a_thumbnail_goes_first_only_where_it_is_at_most_half_as_long() {
        let (offer, shrink) = (Treatment::Offer { side_max: 64 }, Treatment::Shrink { side_max: 64 });
        assert_eq!([49, 50, 51, 100].map(|made| offer.saves(made, 100)), [true, true, false, false]);
        assert_eq!([51, 99, 100].map(|made| shrink.saves(made, 100)), [true, true, false]);
    }

    #[test]
    fn a_lower_ceiling_never_lets_more_leave() {
        for (lower, higher) in ceilings().zip(ceilings().skip(1)) {
            assert!(lower < higher);
            for asked in PAYLOADS {
                assert!(lower.hold(asked) <= higher.hold(asked));
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
