//! Remembers which cases of a class are worth least, so that making room does not walk the whole queue.
//!
//! It holds every case from some place in the order to its end. When it has run out it is filled again by one walk
//! from the end. What is worth less than what is decided in core.

use std::collections::BTreeMap;

use hedge_proto::CaseKey;

use super::order::OrderKey;

/// So many are looked up in one walk. In tests few, so that short ones walk often.
const LOOKED_UP: usize = if cfg!(test) { 8 } else { 512 };

#[derive(Debug, Default)]
pub(crate) struct Lowest {
    keys: BTreeMap<OrderKey, CaseKey>,
    /// Every case at this place of the order or behind it is in `keys`; nothing is known before the first walk.
    from: Option<OrderKey>,
}

impl Lowest {
    /// Notes a case that has come to `order`.
    pub(crate) fn note(&mut self, order: OrderKey, key: CaseKey) {
        if self.from.is_some_and(|from| order >= from) {
            self.keys.insert(order, key);
            if self.keys.len() > 2 * LOOKED_UP {
                self.keys.pop_first();
                self.from = self.keys.first_key_value().map(|(first, _)| *first);
            }
        }
    }

    /// Takes out the last in the order; it may have moved since, or be gone.
    pub(crate) fn pop(&mut self) -> Option<(OrderKey, CaseKey)> {
        self.keys.pop_last()
    }

    /// Takes over what a walk from the end of the order has found; it found all there is if it found few.
    pub(crate) fn fill(&mut self, found: impl Iterator<Item = (OrderKey, CaseKey)>, whole_class_from: OrderKey) {
        self.keys = found.take(LOOKED_UP).collect();
        let all = self.keys.len() < LOOKED_UP;
        let first = self.keys.first_key_value().map(|(first, _)| *first);
        self.from = if all { Some(whole_class_from) } else { first };
    }

    /// Knows nothing any more.
    pub(crate) fn reset(&mut self) {
        *self = Self::default();
    }
}
