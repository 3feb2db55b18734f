//! Ends cases that have waited longer than `age_max_s`.

use std::time::Duration;

use hedge_core::outbox::stored_too_early;
use tokio_util::sync::CancellationToken;

use crate::clock::Clock;
use hedge_outbox::Outbox;

/// How late a case may go. Looking costs a walk over all cases in memory.
const LOOK_INTERVAL: Duration = Duration::from_secs(60);

/// Looks at once and then every minute, until told to stop.
pub(super) async fn run(outbox: Outbox, clock: Clock, age_max: Duration, stop: CancellationToken) {
    loop {
        let before = outbox.dropped().undelivered;
        match outbox.expire(stored_too_early(clock.now(), age_max)).await {
            Ok(0) => {}
            Ok(cases) => {
                let corrections = outbox.dropped().undelivered - before;
                let age_max_s = age_max.as_secs();
                tracing::warn!(
                    cases,
                    corrections,
                    age_max_s,
                    "cases waited too long and were dropped; so many of them had a \
                    correction that some sink never took"
                );
            }
            Err(error) => tracing::warn!(%error, "old cases cannot be dropped now"),
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
    }
}
