//! How long a test goes on, and with which chance: a CI-sized default, more when asked.
//!
//! `cargo xtask soak FILE --rounds N --seed S` runs one file of `tests/` for longer, or again as it was. It sets
//! `HEDGETEST_ROUNDS` and `HEDGETEST_SEED`, which work with any other way to run a test, too. What a round is, the
//! file says.

use std::collections::hash_map::RandomState;
use std::hash::BuildHasher as _;
use std::ops::Range;

/// How many rounds were asked for; `default` if nobody asked.
#[must_use]
pub fn rounds(default: u32) -> u32 {
    number("HEDGETEST_ROUNDS").and_then(|rounds| u32::try_from(rounds).ok()).unwrap_or(default)
}

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    let value = text.parse().ok();
    assert!(value.is_some(), "{variable} = {text} is not a number");
    value
}

/// Chance that a failure can be replayed with: the seed is printed when it is drawn. SplitMix64.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    /// From `HEDGETEST_SEED`, or a new seed each run.
    #[must_use]
    pub fn new() -> Self {
        let seed = number("HEDGETEST_SEED").unwrap_or_else(|| RandomState::new().hash_one(0) >> 16);
        let test = std::thread::current().name().unwrap_or("a test").to_owned();
        eprintln!("{test}: seed {seed}; HEDGETEST_SEED={seed} draws the same again");
        Self(seed)
    }

    /// The next number in `range`, which is not empty.
    pub fn within(&mut self, range: Range<u64>) -> u64 {
        range.start + self.next() % (range.end - range.start)
    }

    /// True `per_cent` times in a hundred.
    pub fn happens(&mut self, per_cent: u64) -> bool {
        self.within(0..100) < per_cent
    }

    /// Another one for another thread, drawn from this.
    #[must_use]
    pub fn branch(&mut self) -> Self {
        Self(self.next())
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }
}

impl Default for Chance {
    fn default() -> Self {
        Self::new()
    }
}
