//! What lies before one model: cases with their payloads, a few ahead, taken in turns by device.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hedge_proto::DeviceId;

use super::Job;
use crate::turns::Turns;

/// How many cases may lie before one model. One device alone gets half of it: enough to keep the model busy during a
/// commit.
pub(super) const JOBS_MAX: usize = 256;

/// How many bytes of payloads.
const BYTES_MAX: u64 = 256 * 1024 * 1024;

struct Bench {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    jobs: Turns<Job>,
    /// The other side has gone: nobody will put, or nobody will take.
    over: bool,
}

impl Bench {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self) {
        self.state().over = true;
        self.changed.notify_all();
    }
}

/// The side of the intake. Dropping it ends the model's thread.
pub struct Jobs(Arc<Bench>);

/// The side of the model.
pub(super) struct Taker(Arc<Bench>);

pub(super) fn bench() -> (Jobs, Taker) {
    let state = Mutex::new(State { jobs: Turns::one_each(JOBS_MAX, BYTES_MAX), over: false });
    let bench = Arc::new(Bench { state, changed: Condvar::new() });
    (Jobs(bench.clone()), Taker(bench))
}

impl Jobs {
    #[must_use]
    pub fn has_room(&self, device: &DeviceId) -> bool {
        self.0.state().jobs.has_room(device, 0)
    }

    /// `false`: the model's thread has gone.
    #[must_use]
    pub fn put(&self, job: Job) -> bool {
        let mut state = self.0.state();
        if state.over {
            return false;
        }
        let bytes = job.payload.len() as u64;
        state.jobs.put(&job.case.id.device.clone(), job, bytes);
        self.0.changed.notify_one();
        true
    }
}

impl Drop for Jobs {
    fn drop(&mut self) {
        self.0.end();
    }
}

impl Taker {
    /// The next case; `Ok(None)` if there was none for so long, an error when no more will come.
    pub(super) fn take(&self, wait: Duration) -> Result<Option<Job>, Over> {
        let state = self.0.state();
        let waiting = |state: &mut State| state.jobs.is_empty() && !state.over;
        let (mut state, _) =
            self.0.changed.wait_timeout_while(state, wait, waiting).unwrap_or_else(PoisonError::into_inner);
        if state.over { Err(Over) } else { Ok(state.jobs.pop()) }
    }
}

impl Taker {
    /// More cases for the same run, until there are `most` or the wait is over.
    pub(super) fn take_more(&self, jobs: &mut Vec<Job>, most: usize, wait: Duration) {
        let until = Instant::now() + wait;
        while jobs.len() < most {
            match self.take(until.saturating_duration_since(Instant::now())) {
                Ok(Some(job)) => jobs.push(job),
                _ => return,
            }
        }
    }
}

/// Nobody puts any more.
pub(super) struct Over;

impl Drop for Taker {
    fn drop(&mut self) {
        self.0.end();
    }
}
