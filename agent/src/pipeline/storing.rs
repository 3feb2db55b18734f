//! A case on its way to the disk, and to the engine once it is there and its local answer has been given.
//!
//! The cloud may be quicker than the caller's turn on a busy device: a verdict must find the answer that it corrects,
//! and whoever listens hears the answer first.

use std::convert::Infallible;
use std::time::Duration;

use hedge_core::engine::Event;
use hedge_core::uplink::Waiting;
use hedge_proto::Refusal;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

/// To be dropped when the answer is given; a caller that goes away before drops it, too.
pub(super) struct Storing {
    stored: oneshot::Receiver<Result<(), Refusal>>,
    _answering: oneshot::Sender<Infallible>,
}

impl Storing {
    /// Goes on by itself, whatever becomes of the caller.
    pub(super) fn begin(
        stored: impl Future<Output = Result<(), Refusal>> + Send + 'static,
        events: mpsc::Sender<Event>,
        waiting: Waiting,
    ) -> Self {
        let (tell, told) = oneshot::channel();
        let (answering, answered) = oneshot::channel();
        tokio::spawn(async move {
            let stored = stored.await;
            let there = stored.is_ok();
            // Nobody may wait for it any more.
            tell.send(stored).ok();
            if there {
                drop(answered.await);
                // If the engine is gone the agent is stopping; the case is on disk for the next start.
                drop(events.send(Event::Stored(waiting)).await);
            }
        });
        Self { stored: told, _answering: answering }
    }

    /// Whether it is there; `None` if nobody knows within `wait`.
    pub(super) async fn known(&mut self, wait: Duration) -> Option<Result<(), Refusal>> {
        Some(timeout(wait, &mut self.stored).await.ok()?.unwrap_or(Err(Refusal::Stopping)))
    }
}

#[cfg(test)]
mod tests {
    use hedge_core::clock::Moment;
    use hedge_proto::{CaseKey, Epoch};

    use super::*;

    const WAITING: Waiting = Waiting {
        key: CaseKey { epoch: Epoch(1), sequence: 7 },
        sort_key: 0.0,
        stored_at: Moment(0),
        payload_bytes: 1,
        sent: false,
        urgent: true,
    };

    /// Everything else that can run does.
    async fn others_run() {
        for _ in 0..100 {
            tokio::task::yield_now().await;
        }
    }

    #[tokio::test]
    async fn a_case_is_sent_only_once_its_answer_is_given() {
        let (events, mut engine) = mpsc::channel(1);
        let mut storing = Storing::begin(async { Ok(()) }, events, WAITING);
        assert_eq!(storing.known(Duration::from_secs(60)).await, Some(Ok(())));
        others_run().await;
        assert!(engine.try_recv().is_err(), "its verdict could come before its answer");
        drop(storing);
        assert!(matches!(engine.recv().await, Some(Event::Stored(WAITING))));
    }

    #[tokio::test(start_paused = true)]
    async fn a_slow_disk_or_a_caller_that_has_gone_keeps_no_case_back() {
        let (events, mut engine) = mpsc::channel(1);
        let slow = async {
            tokio::time::sleep(Duration::from_secs(10)).await;
            Ok(())
        };
        let mut storing = Storing::begin(slow, events, WAITING);
        assert_eq!(storing.known(Duration::from_millis(250)).await, None);
        drop(storing);
        assert!(matches!(engine.recv().await, Some(Event::Stored(WAITING))));
    }

    #[tokio::test]
    async fn what_was_refused_does_not_wait() {
        let (events, mut engine) = mpsc::channel(1);
        let mut storing = Storing::begin(async { Err(Refusal::Disk) }, events, WAITING);
        assert_eq!(storing.known(Duration::from_secs(60)).await, Some(Err(Refusal::Disk)));
        drop(storing);
        assert!(engine.recv().await.is_none());
    }
}
