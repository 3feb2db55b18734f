//! Decides whether a verdict counts.

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeated_verdict_is_applied_once_and_a_higher_revision_again() {
        assert_eq!(rule(Known::Open, 1), Ruling::Apply);
        assert_eq!(rule(Known::Answered { revision: 1 }, 1), Ruling::Late);
        assert_eq!(rule(Known::Answered { revision: 1 }, 2), Ruling::Apply);
        assert_eq!(rule(Known::Answered { revision: 2 }, 1), Ruling::Late);
        assert_eq!(rule(Known::Nothing, 1), Ruling::Late);
    }

    #[test]
    fn revision_zero_ends_no_case() {
        for known in [Known::Open, Known::Answered { revision: 1 }, Known::Nothing] {
            assert_eq!(rule(known, 0), Ruling::Late);
        }
    }
}
