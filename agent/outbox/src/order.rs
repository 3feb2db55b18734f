//! The order in which the cases of a class are walked.

use std::collections::BTreeSet;

use hedge_proto::CaseKey;

use super::log::Pointer;

/// Which walk a case belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Class {
    Open,
    Answered,
    Dead,
}

/// The place of one case; the least comes first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Rank {
    first: u64,
    pub(crate) key: CaseKey,
}

impl Rank {
    /// The highest sort key first.
    pub(crate) fn by_sort_key(sort_key: f64, key: CaseKey) -> Self {
        Self { first: !ordered(sort_key), key }
    }

    /// The oldest verdict first.
    pub(crate) fn by_age(verdict: Pointer, key: CaseKey) -> Self {
        Self { first: u64::from(verdict.segment) << 32 | u64::from(verdict.offset), key }
    }
}

/// All cases, those of each class in their order.
#[derive(Debug, Default)]
pub(crate) struct Order {
    open: BTreeSet<Rank>,
    answered: BTreeSet<Rank>,
    dead: BTreeSet<Rank>,
}

impl Order {
    pub(crate) fn insert(&mut self, class: Class, rank: Rank) {
        self.class_mut(class).insert(rank);
    }

    pub(crate) fn remove(&mut self, class: Class, rank: Rank) {
        self.class_mut(class).remove(&rank);
    }

    pub(crate) fn class(&self, class: Class) -> impl DoubleEndedIterator<Item = CaseKey> {
        let ranks = match class {
            Class::Open => &self.open,
            Class::Answered => &self.answered,
            Class::Dead => &self.dead,
        };
        ranks.iter().map(|rank| rank.key)
    }

    fn class_mut(&mut self, class: Class) -> &mut BTreeSet<Rank> {
        match class {
            Class::Open => &mut self.open,
            Class::Answered => &mut self.answered,
            Class::Dead => &mut self.dead,
        }
    }
}

/// A number that sorts as the float does. NaN sorts by its bits, which is as good as any place.
fn ordered(float: f64) -> u64 {
    let bits = float.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_sort_as_their_floats(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            if a < b {
                prop_assert!(ordered(a) < ordered(b));
            }
        }
    }
}
