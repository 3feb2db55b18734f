//! The order in which the outbox is walked, as bytes that sort.

use hedge_proto::CaseKey;

use super::log::Pointer;

/// Which walk a case belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub(crate) enum Class {
    Answered = b'a',
    Dead = b'd',
    Open = b'o',
}

/// 17 bytes: the queue keeps keys of up to 22 bytes without an allocation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct OrderKey(pub(crate) [u8; 17]);

impl OrderKey {
    /// The highest sort key first, then the oldest record.
    pub(crate) fn by_sort_key(class: Class, sort_key: f64, body: Pointer) -> Self {
        Self::new(class, (!ordered(sort_key)).to_be_bytes(), body)
    }

    /// The oldest verdict first.
    pub(crate) fn by_age(verdict: Pointer, body: Pointer) -> Self {
        let mut first = [0; 8];
        first[..4].copy_from_slice(&verdict.segment.to_be_bytes());
        first[4..].copy_from_slice(&verdict.offset.to_be_bytes());
        Self::new(Class::Answered, first, body)
    }

    fn new(class: Class, first: [u8; 8], body: Pointer) -> Self {
        let mut bytes = [0; 17];
        bytes[0] = class as u8;
        bytes[1..9].copy_from_slice(&first);
        bytes[9..13].copy_from_slice(&body.segment.to_be_bytes());
        bytes[13..].copy_from_slice(&body.offset.to_be_bytes());
        Self(bytes)
    }

    /// All keys of a class lie from the first to before the second.
    pub(crate) fn range(class: Class) -> (Self, Self) {
        let mut bounds = ([0; 17], [0; 17]);
        bounds.0[0] = class as u8;
        bounds.1[0] = class as u8 + 1;
        (Self(bounds.0), Self(bounds.1))
    }

    /// A number that differs for nearly all pairs of key and case; sums of them compare whole queues.
    pub(crate) fn fingerprint(&self, key: CaseKey) -> u64 {
        let low = crc32c::crc32c_append(crc32c::crc32c(&self.0), &key.to_bytes());
        let high = crc32c::crc32c_append(low, &self.0);
        u64::from(high) << 32 | u64::from(low)
    }
}

/// A number that sorts as the float does. NaN sorts by its bits, which is as good as any place.
pub(crate) fn ordered(float: f64) -> u64 {
    let bits = float.to_bits();
    if bits >> 63 == 1 { !bits } else { bits | 1 << 63 }
}

/// The float that [`ordered`] made the number from.
pub(crate) fn from_ordered(number: u64) -> f64 {
    f64::from_bits(if number >> 63 == 1 { number & !(1 << 63) } else { !number })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn numbers_sort_as_their_floats(a in any::<f64>(), b in any::<f64>()) {
            prop_assume!(!a.is_nan() && !b.is_nan());
            prop_assert_eq!(from_ordered(ordered(a)).to_bits(), a.to_bits());
            if a < b {
                prop_assert!(ordered(a) < ordered(b));
            }
        }
    }
}
