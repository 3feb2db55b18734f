//! How long buckets of each length are kept, and how they become longer ones.
//!
//! ```text
//! 1 min for an hour ─► 30 min for a day ─► 3 h for a week ─► 12 h for 90 days ─► gone
//! ```
//! Buckets lie in pages, each of which is within one bucket of the next step: a page that has grown old goes into that.

use std::collections::BTreeMap;

use hedge_proto::{DecodeError, from_cbor, to_cbor};
use serde::Serialize;

use super::Bucket;

/// One length of buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    pub bucket_s: u64,
    /// A page is read and written as a whole.
    pub page_s: u64,
    /// A page that ended longer ago is folded.
    pub kept_s: u64,
}

const HOUR: u64 = 3600;
const DAY: u64 = 24 * HOUR;

/// Nothing older is kept.
pub const AGE_MAX_S: u64 = 90 * DAY;

/// From the finest to the coarsest. At most 70, 54, 60 and 188 buckets of a device at any time: about as many as a chart
/// has room for. Pages have about a kilobyte, so that few bytes lie unused between them.
pub const STEPS: [Step; 4] = [
    Step { bucket_s: 60, page_s: HOUR / 6, kept_s: HOUR },
    Step { bucket_s: HOUR / 2, page_s: 3 * HOUR, kept_s: DAY },
    Step { bucket_s: 3 * HOUR, page_s: 12 * HOUR, kept_s: 7 * DAY },
    Step { bucket_s: 12 * HOUR, page_s: 4 * DAY, kept_s: AGE_MAX_S },
];

/// The largest page that is read: ten buckets of full numbers have a tenth of it.
const PAGE_BYTES_MAX: usize = 64 * 1024;

/// Where a page is: the length of its buckets, and when it begins, in seconds since 1970 UTC.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Place {
    pub bucket_s: u64,
    pub at_s: u64,
}

impl Place {
    /// Of the page that has this second in buckets of this length. The coarsest, if there is no such length.
    #[must_use]
    pub fn of(second: u64, bucket_s: u64) -> Self {
        let Step { bucket_s, page_s, .. } = step(bucket_s);
        Self { bucket_s, at_s: second / page_s * page_s }
    }

    /// Whether it is to be folded by now.
    #[must_use]
    pub fn is_old(&self, now_s: u64) -> bool {
        let Step { page_s, kept_s, .. } = step(self.bucket_s);
        self.at_s + page_s + kept_s <= now_s
    }
}

fn step(bucket_s: u64) -> Step {
    let [.., coarsest] = STEPS;
    STEPS.into_iter().find(|step| step.bucket_s == bucket_s).unwrap_or(coarsest)
}

/// The finest step that is kept for what is so old.
pub(super) fn step_of_age(age_s: u64) -> Step {
    let [.., coarsest] = STEPS;
    STEPS.into_iter().find(|step| age_s <= step.kept_s).unwrap_or(coarsest)
}

/// Buckets of one length, by the second in which each begins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Page(BTreeMap<u64, Bucket>);

/// A bucket of a page: its number in it, its numbers, the reason.
type Kept = (u64, Vec<u64>, String);

impl Page {
    /// Adds to the bucket that begins there.
    pub fn add(&mut self, at_s: u64, bucket: &Bucket) {
        self.0.entry(at_s).or_default().merge(bucket);
    }

    /// Adds all of another.
    pub fn merge(&mut self, other: &Self) {
        other.0.iter().for_each(|(at_s, bucket)| self.add(*at_s, bucket));
    }

    /// What is left of a page that has grown old: one bucket of a page of the next step. `None`: nothing.
    #[must_use]
    pub fn folded(&self, place: Place) -> Option<(Place, Self)> {
        let at = STEPS.iter().position(|step| step.bucket_s == place.bucket_s)?;
        let next = STEPS.get(at + 1)?;
        let mut page = Self::default();
        let into_s = place.at_s / next.bucket_s * next.bucket_s;
        self.0.values().for_each(|bucket| page.add(into_s, bucket));
        Some((Place::of(place.at_s, next.bucket_s), page))
    }

    #[must_use]
    pub fn to_bytes(&self, place: Place) -> Vec<u8> {
        let kept = |(at_s, bucket): (&u64, &Bucket)| {
            let mut bucket = bucket.clone();
            let mut numbers: Vec<u64> = bucket.numbers().into_iter().map(|number| *number).collect();
            // A zero at the end is as good as none.
            numbers.truncate(numbers.iter().rposition(|number| *number != 0).map_or(0, |last| last + 1));
            ((at_s - place.at_s) / place.bucket_s, numbers, bucket.why)
        };
        to_cbor(&self.0.iter().map(kept).collect::<Vec<Kept>>())
    }

    /// # Errors
    /// That it is no such page.
    pub fn read(bytes: &[u8], place: Place) -> Result<Self, DecodeError> {
        let kept: Vec<Kept> = from_cbor(bytes, PAGE_BYTES_MAX)?;
        let bucket = |(at, numbers, why): Kept| {
            let mut bucket = Bucket { why, ..Bucket::default() };
            bucket.numbers().into_iter().zip(numbers).for_each(|(number, kept)| *number = kept);
            (place.at_s.saturating_add(at.saturating_mul(place.bucket_s)), bucket)
        };
        Ok(Self(kept.into_iter().map(bucket).collect()))
    }
}

/// A bucket as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Shown {
    pub at_ms: u64,
    /// How long it is: longer than was asked for where nothing finer is kept.
    pub span_s: u64,
    #[serde(flatten)]
    pub bucket: Bucket,
}

/// What lies in pages from `since_s` on, in buckets of `bucket_s` where they are kept as fine: in the order of time.
#[must_use]
pub fn series(pages: impl IntoIterator<Item = (Place, Page)>, since_s: u64, bucket_s: u64) -> Vec<Shown> {
    let mut series: BTreeMap<(u64, u64), Bucket> = BTreeMap::new();
    for (place, page) in pages {
        let span_s = place.bucket_s.max(bucket_s);
        for (at_s, bucket) in page.0 {
            let from_s = at_s / span_s * span_s;
            if from_s + span_s > since_s {
                series.entry((from_s, span_s)).or_default().merge(&bucket);
            }
        }
    }
    series.into_iter().map(|((at_s, span_s), bucket)| Shown { at_ms: at_s * 1000, span_s, bucket }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_page_is_within_a_bucket_of_the_next_step() {
        for pair in STEPS.windows(2) {
            assert_eq!(pair[1].bucket_s % pair[0].page_s, 0);
        }
        for Step { bucket_s, page_s, kept_s } in STEPS {
            assert!(page_s % bucket_s == 0 && kept_s >= page_s);
        }
    }

    #[test]
    fn what_is_kept_reads_back_and_a_shorter_row_of_numbers_is_read_with_zeros() {
        let place = Place::of(1_000_000, 60);
        let mut page = Page::default();
        let full = Bucket { answered: 70_000, agreement: [[3, 2]; 10], why: "slow".to_owned(), ..Bucket::default() };
        page.add(place.at_s, &full);
        page.add(place.at_s + 540, &Bucket::case(5));
        assert_eq!(Page::read(&page.to_bytes(place), place).expect("read"), page);
        let older = to_cbor(&vec![(1_u64, vec![1_u64, 2], String::new())]);
        let mut read = Page::default();
        read.add(place.at_s + 60, &Bucket { reports: 1, answered: 2, ..Bucket::default() });
        assert_eq!(Page::read(&older, place).expect("read"), read);
    }

    #[test]
    fn a_page_that_grows_old_is_one_bucket_of_the_next_step_until_it_is_gone() {
        let mut place = Place::of(86_400 * 1000, 60);
        let mut page = Page::default();
        (0..10).for_each(|minute| page.add(place.at_s + 60 * minute, &Bucket::case(10)));
        let end_s = place.at_s + 600;
        assert!(!place.is_old(end_s + 3599) && place.is_old(end_s + 3600));
        for Step { bucket_s, .. } in &STEPS[1..] {
            (place, page) = page.folded(place).expect("a coarser one");
            assert_eq!(place.bucket_s, *bucket_s);
            assert_eq!(
                page.0.values().collect::<Vec<_>>(),
                [&Bucket { cases: 10, case_bytes: 100, ..Bucket::default() }]
            );
        }
        assert_eq!(page.folded(place), None);
    }

    #[test]
    fn a_series_is_as_fine_as_asked_for_where_that_is_kept() {
        let at_s = 12 * HOUR * 1000;
        let mut fine = Page::default();
        (0..10).for_each(|minute| fine.add(at_s + 1800 + 60 * minute, &Bucket::case(1)));
        let mut coarse = Page::default();
        coarse.add(at_s, &Bucket::case(7));
        let pages = || [(Place::of(at_s + 1800, 60), fine.clone()), (Place::of(at_s, 1800), coarse.clone())];
        let shown = |since_s, bucket_s| -> Vec<(u64, u64, u64)> {
            let series = series(pages(), since_s, bucket_s);
            series.into_iter().map(|shown| (shown.at_ms / 1000 - at_s, shown.span_s, shown.bucket.cases)).collect()
        };
        assert_eq!(shown(at_s, 1800), [(0, 1800, 1), (1800, 1800, 10)]);
        assert_eq!(shown(at_s, 3 * HOUR), [(0, 3 * HOUR, 11)]);
        assert_eq!(shown(at_s + 1800, 60).len(), 10, "what ended before is left out");
        assert_eq!(shown(at_s, 60)[0], (0, 1800, 1), "and what is not kept as fine is as it is");
    }
}
