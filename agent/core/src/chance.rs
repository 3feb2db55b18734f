//! Chance as an argument: a small generator seeded from outside.

/// SplitMix64 (Steele, Lea, Flood 2014): the same seed gives the same run.
#[derive(Debug, Clone)]
pub struct Chance(u64);

impl Chance {
    #[must_use]
    pub fn from_seed(seed: u64) -> Self {
        Self(seed)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        mixed ^ (mixed >> 31)
    }

    /// Uniform in [0, 1).
    pub fn share(&mut self) -> f64 {
        // 53 bits fill a double's mantissa.
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }
}
