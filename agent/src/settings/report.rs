//! Publishes `up/reported`: the newest one, whenever it changes and at every connect.

use std::collections::BTreeMap;
use std::time::Duration;

use hedge_proto::{LastDesired, Name, Reported, Settings, ThresholdSettings, to_json};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::effective::effective;
use crate::in_force::InForce;
use crate::uplink::{PublishError, SessionView, Uplink};

/// A report that found no place among what waits to be sent is offered again after so long.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// What there is to report.
#[must_use]
pub(super) fn reported(
    in_force: &InForce,
    overlay: Settings,
    suggested: BTreeMap<Name, ThresholdSettings>,
    last: Option<LastDesired>,
) -> Reported {
    let settings = effective(&in_force.config);
    Reported {
        version: in_force.version,
        hash: hedge_proto::Digest::of(&to_json(&settings)),
        settings,
        overlay,
        suggested,
        paused: in_force.paused.iter().cloned().collect(),
        last,
    }
}

/// Publishes until told to stop. `acknowledged` shows the connection over which the broker last took a report.
pub(super) async fn run(
    uplink: Uplink,
    mut newest: watch::Receiver<Reported>,
    acknowledged: watch::Sender<Option<SessionView>>,
    stop: CancellationToken,
) {
    let mut sessions = uplink.sessions();
    loop {
        let session = *sessions.borrow_and_update();
        let mut again = false;
        if session.is_some() {
            let report = newest.borrow_and_update().clone();
            match uplink.reported(&report).await {
                Ok(()) => drop(acknowledged.send_replace(session)),
                // The end of this connection, or a newer report, brings the next try; a refusal would only be repeated.
                Err(error) => {
                    again = matches!(error, PublishError::NotConnected);
                    if matches!(error, PublishError::Refused(_) | PublishError::TooLarge { .. }) {
                        tracing::warn!(%error, "the broker does not take the retained report of settings (up/reported)");
                    } else {
                        tracing::debug!(%error, "the report was not acknowledged");
                    }
                }
            }
        }
        tokio::select! {
            () = stop.cancelled() => return,
            changed = sessions.changed() => if changed.is_err() { return },
            changed = newest.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(AGAIN_AFTER), if again => {}
        }
    }
}
