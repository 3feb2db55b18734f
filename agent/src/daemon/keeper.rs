//! Keeps the state file fresh: the powered clock and what was spent.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_core::budget::Spent;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, MARK_INTERVAL};
use crate::state::StateFile;

/// How often what was spent is saved while it changes: a crash forgets at most so much of it.
const SPENT_INTERVAL: Duration = Duration::from_secs(60);

/// What is kept and where.
#[derive(Clone)]
pub(super) struct Keeper {
    pub(super) clock: Clock,
    pub(super) state: Arc<Mutex<StateFile>>,
    pub(super) spent: watch::Receiver<Spent>,
}

impl Keeper {
    /// Saves when something was spent, and now and then while `cases_wait`: a power cut loses at most so much ageing.
    pub(super) async fn run(mut self, cases_wait: impl Fn() -> bool, stop: CancellationToken) {
        let mut since_saved = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SPENT_INTERVAL) => since_saved += SPENT_INTERVAL,
            }
            let spent = self.spent.has_changed().unwrap_or(false);
            if spent || (since_saved >= MARK_INTERVAL && cases_wait()) {
                self.save().await;
                since_saved = Duration::ZERO;
            }
        }
    }

    pub(super) async fn save(&mut self) {
        let (mark, spent, state) = (self.clock.mark(), self.spent.borrow_and_update().clone(), self.state.clone());
        let saved = tokio::task::spawn_blocking(move || {
            state.lock().unwrap_or_else(PoisonError::into_inner).update(|state| {
                state.clock = mark;
                state.spent = Some(spent);
            })
        });
        match saved.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the state file"),
            Err(error) => tracing::error!(%error, "writing the state file ended badly"),
        }
    }
}
