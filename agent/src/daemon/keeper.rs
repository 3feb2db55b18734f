//! Keeps what must outlive the process: the powered clock, what was spent, and what was learned of the models.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_core::budget::Spent;
use hedge_outbox::{Outbox, State};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::clock::{Clock, MARK_INTERVAL};
use crate::learned::Learned;
use crate::state::StateFile;

/// How often what changes is saved: a crash forgets at most so much of it.
const SAVE_INTERVAL: Duration = Duration::from_secs(30);

/// A case that was made longer ago than this and is not in the outbox has ended: by then it was stored or refused.
const STORED_WITHIN: Duration = Duration::from_secs(60);

/// What is kept and where.
#[derive(Clone)]
pub(super) struct Keeper {
    pub(super) clock: Clock,
    pub(super) state: Arc<Mutex<StateFile>>,
    pub(super) spent: watch::Receiver<Spent>,
    pub(super) learned: Vec<Learned>,
    pub(super) outbox: Outbox,
}

impl Keeper {
    /// Saves what has changed; now and then also what was only used, and the clock while `cases_wait`: a power cut loses
    /// at most so much ageing.
    pub(super) async fn run(mut self, cases_wait: impl Fn() -> bool, stop: CancellationToken) {
        let mut since_saved = Duration::ZERO;
        loop {
            tokio::select! {
                () = stop.cancelled() => return,
                () = tokio::time::sleep(SAVE_INTERVAL) => since_saved += SAVE_INTERVAL,
            }
            self.look_for_ends();
            self.save_learned(since_saved >= MARK_INTERVAL).await;
            let spent = self.spent.has_changed().unwrap_or(false);
            if spent || (since_saved >= MARK_INTERVAL && cases_wait()) {
                self.save_state().await;
            }
            if since_saved >= MARK_INTERVAL {
                since_saved = Duration::ZERO;
            }
        }
    }

    pub(super) async fn save(&mut self) {
        self.save_learned(true).await;
        self.save_state().await;
    }

    /// Cases end in many ways: evicted, expired, given up, deleted with their folder. One look at the outbox sees all of
    /// them; a verdict was heard before its case could go.
    fn look_for_ends(&self) {
        let before = self.clock.now() - STORED_WITHIN;
        for learned in &self.learned {
            for key in learned.open_since_before(before) {
                match self.outbox.lookup(key).map(|entry| entry.state) {
                    Some(State::Waiting) => {}
                    // Of a verdict is heard elsewhere.
                    Some(State::Sent | State::Received | State::Answered { .. }) => learned.sent(key),
                    Some(State::Dead) => {
                        learned.sent(key);
                        learned.ended_unanswered(key);
                    }
                    None => learned.ended_unanswered(key),
                }
            }
        }
    }

    async fn save_learned(&self, also_if_used: bool) {
        let learned = self.learned.clone();
        let saved = tokio::task::spawn_blocking(move || learned.iter().for_each(|learned| learned.save(also_if_used)));
        if let Err(error) = saved.await {
            tracing::error!(%error, "keeping what was learned ended badly");
        }
    }

    async fn save_state(&mut self) {
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
