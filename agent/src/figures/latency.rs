//! Counts how long something takes in fixed steps: constant memory, no lock, any number of writers.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hedge_proto::LatencyFigures;

/// Upper ends of the steps in seconds: a small model on a fast board to a picture on a slow one.
pub const BOUNDS_S: [f64; 13] = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];

/// One thing whose times are counted.
#[derive(Debug, Default)]
pub struct Latency {
    /// Not cumulative; the last counts what took longer than every bound.
    steps: [AtomicU64; BOUNDS_S.len() + 1],
    sum_us: AtomicU64,
}

/// What was counted until now.
#[derive(Debug, Clone, PartialEq)]
pub struct Spread {
    pub count: u64,
    pub sum_s: f64,
    /// Upper end and count of each step, not cumulative; the last has no end.
    pub steps: Vec<(f64, u64)>,
}

impl Latency {
    pub fn record(&self, time: Duration) {
        let seconds = time.as_secs_f64();
        let step = BOUNDS_S.iter().position(|bound| seconds <= *bound).unwrap_or(BOUNDS_S.len());
        self.steps[step].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(u64::try_from(time.as_micros()).unwrap_or(u64::MAX), Relaxed);
    }

    #[must_use]
    pub fn spread(&self) -> Spread {
        let counts = self.steps.iter().map(|count| count.load(Relaxed));
        let steps: Vec<_> = BOUNDS_S.into_iter().chain([f64::INFINITY]).zip(counts).collect();
        Spread {
            // From the steps, so that count and steps agree although both are written meanwhile.
            count: steps.iter().map(|(_, count)| count).sum(),
            sum_s: Duration::from_micros(self.sum_us.load(Relaxed)).as_secs_f64(),
            steps,
        }
    }
}

impl Spread {
    /// The upper end of the step in which `share` of all is reached; the longest bound if it is beyond.
    #[must_use]
    fn quantile_s(&self, per_cent: u64) -> f64 {
        let wanted = (self.count * per_cent).div_ceil(100);
        let mut seen = 0;
        let reached = self.steps.iter().find(|(_, count)| {
            seen += count;
            seen >= wanted
        });
        reached.map_or(0.0, |(bound, _)| bound.min(BOUNDS_S[BOUNDS_S.len() - 1]))
    }

    #[must_use]
    pub fn figures(&self) -> LatencyFigures {
        #[expect(clippy::cast_precision_loss, reason = "a mean of 2^52 times needs no last digit")]
        let mean_s = if self.count == 0 { 0.0 } else { self.sum_s / self.count as f64 };
        LatencyFigures {
            count: self.count,
            mean_ms: (mean_s * 1e6).round() / 1e3,
            p50_ms: self.quantile_s(50) * 1e3,
            p99_ms: self.quantile_s(99) * 1e3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_one_in_fifty_shows_in_the_last_hundredth_and_not_in_the_middle() {
        let latency = Latency::default();
        (0..98).for_each(|_| latency.record(Duration::from_millis(2)));
        (0..2).for_each(|_| latency.record(Duration::from_millis(800)));
        let figures = latency.spread().figures();
        assert_eq!((figures.count, figures.p50_ms, figures.p99_ms), (100, 2.5, 1000.0));
        assert!((figures.mean_ms - 17.96).abs() < 0.01, "{figures:?}");
    }

    #[test]
    fn what_takes_longer_than_every_bound_is_still_counted() {
        let latency = Latency::default();
        latency.record(Duration::from_secs(3600));
        let spread = latency.spread();
        assert_eq!((spread.count, spread.steps.last().map(|step| step.1)), (1, Some(1)));
        assert_eq!(spread.figures().p99_ms, 5000.0);
    }
}
