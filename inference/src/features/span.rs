//! Which part of a longer recording or series a model sees, and where a shorter one lies in its input.

use std::ops::Range;

use serde::Deserialize;

/// What happens to a sample that is longer or shorter than the model's input.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Span {
    /// The middle of a longer one is seen; a shorter one lies in the middle of zeros.
    Middle,
    /// The beginning of a longer one is seen; zeros follow a shorter one.
    Start,
    /// The end of a longer one is seen; zeros go before a shorter one.
    End,
    /// Any other length is refused.
    Exact,
}

impl Span {
    /// The part that is seen of `found`, and at which place of the `wanted` it begins. None if it is refused.
    pub(super) fn fit(self, found: usize, wanted: usize) -> Option<(Range<usize>, usize)> {
        let (longer, shorter) = (found.saturating_sub(wanted), wanted.saturating_sub(found));
        let (skipped, padded) = match self {
            Self::Middle => (longer / 2, shorter / 2),
            Self::Start => (0, 0),
            Self::End => (longer, shorter),
            Self::Exact => (longer == 0 && shorter == 0).then_some((0, 0))?,
        };
        Some((skipped..skipped + found.min(wanted), padded))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_longer_sample_is_cut_and_a_shorter_one_is_padded_where_the_manifest_says() {
        for (span, long, short) in [
            (Span::Middle, Some((2..6, 0)), Some((0..1, 1))),
            (Span::Start, Some((0..4, 0)), Some((0..1, 0))),
            (Span::End, Some((5..9, 0)), Some((0..1, 3))),
            (Span::Exact, None, None),
        ] {
            assert_eq!(span.fit(9, 4), long);
            assert_eq!(span.fit(1, 4), short);
            assert_eq!(span.fit(4, 4), Some((0..4, 0)));
        }
    }
}
