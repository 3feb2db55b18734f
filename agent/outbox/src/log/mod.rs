//! The log: what is true about every case, in append-only segments.
//!
//! A segment is a file header (twice, so that one flipped byte costs nothing) and records one after the
//! other. A record is never changed; later ones add to it or end it. What they mean together is decided in
//! `table`; when a segment may go is decided in `retire`.

pub(crate) mod reader;
pub(crate) mod record;
pub(crate) mod segment;
pub(crate) mod writer;

/// Where a record begins.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Pointer {
    /// Counted from 1; 0 is nowhere.
    pub(crate) segment: u32,
    pub(crate) offset: u32,
}

impl Pointer {
    pub(crate) const NOWHERE: Self = Self { segment: 0, offset: 0 };
}
