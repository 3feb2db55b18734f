//! Many seeds on a few threads.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Failure, Planted, Summary, run};

/// What a sweep found.
#[derive(Debug)]
pub struct Report {
    /// Worlds lived through.
    pub seeds: u64,
    pub total: Summary,
    pub took: Duration,
    /// The failure with the lowest seed that was reached; the sweep ends with it.
    pub failure: Option<Box<Failure>>,
}

impl Report {
    #[must_use]
    pub fn seeds_per_s(&self) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "a rate")]
        let seeds = self.seeds as f64;
        seeds / self.took.as_secs_f64().max(1e-9)
    }
}

/// Runs `count` seeds from `first` on.
#[must_use]
pub fn sweep(first: u64, count: u64, threads: usize, planted: Option<Planted>) -> Report {
    let began = Instant::now();
    let (next, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    let report = Mutex::new(Report { seeds: 0, total: Summary::default(), took: Duration::ZERO, failure: None });
    std::thread::scope(|scope| {
        for _ in 0..threads.max(1) {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= count {
                        return;
                    }
                    let outcome = run(first.wrapping_add(number), planted);
                    let mut report = report.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                    report.seeds += 1;
                    match outcome {
                        Ok(summary) => report.total.add(&summary),
                        Err(failure) => {
                            stop.store(true, Ordering::Relaxed);
                            if report.failure.as_ref().is_none_or(|known| failure.seed < known.seed) {
                                report.failure = Some(failure);
                            }
                        }
                    }
                }
            });
        }
    });
    let mut report = report.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
    report.took = began.elapsed();
    report
}

impl Summary {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.virtual_s += other.virtual_s;
        self.cases += other.cases;
        self.payloads += other.payloads;
    }
}
