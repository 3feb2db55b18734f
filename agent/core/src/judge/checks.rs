//! How many spot checks were drawn and what became of them, and how far apart they must be to say something each.

use serde::{Deserialize, Serialize};

/// Ranks of independent answers differ by so much on average, squared; those of frames that hardly change by less.
const INDEPENDENT: f32 = 1.0 / 6.0;
const ALIKE_STEP: f32 = 1.0 / 200.0;
const SPACING_MAX: f32 = 100.0;

/// Spot checks that were drawn, and what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Checks {
    pub(super) drawn: u64,
    pub(super) answered: u64,
    pub(super) lost: u64,
    /// A sum of losses: of boxes an answer may be wrong in part.
    pub(super) contradicted: f64,
    /// Answers since the last one.
    pub(super) since: u32,
    /// Answers since the alarm looked at one.
    pub(super) unlooked: u32,
    /// How much ranks differ from one answer to the next, squared, on average.
    differs: Option<f32>,
    last_rank: f32,
}

impl Checks {
    pub(super) fn saw(&mut self, rank: f32) {
        let by = (rank - self.last_rank) * (rank - self.last_rank);
        let before = self.differs.unwrap_or(INDEPENDENT);
        (self.differs, self.last_rank) = (Some(before + ALIKE_STEP * (by - before)), rank);
        self.since = self.since.saturating_add(1);
    }

    /// From one answer to another that is as good as independent of it.
    pub(super) fn spacing(&self) -> f32 {
        let alike = (1.0 - self.differs.unwrap_or(INDEPENDENT) / INDEPENDENT).clamp(0.0, 0.98);
        libm::roundf((1.0 + alike) / (1.0 - alike)).min(SPACING_MAX)
    }
}
