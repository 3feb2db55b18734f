//! Keeps the retained status true about a link that is not as it should be, for whoever looks at a fleet later.
//!
//! Figures tell a change at once, and nobody keeps them.

use std::time::Duration;

use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::link::LinkView;
use crate::uplink::Uplink;

/// What passes sooner is not worth a message that others keep; so a flapping link costs one in so long at most.
const LASTS: Duration = Duration::from_secs(10);

pub(super) async fn run(mut link: watch::Receiver<LinkView>, uplink: Option<Uplink>, stop: CancellationToken) {
    let Some(uplink) = uplink else { return };
    let telling = async {
        while link.wait_for(|view| !uplink.has_told(view.state)).await.is_ok() {
            let passed = tokio::time::timeout(LASTS, link.wait_for(|view| uplink.has_told(view.state))).await.is_ok();
            if !passed {
                // Not connected is no matter: every connection begins with it.
                let state = link.borrow().state;
                drop(uplink.say_link(state).await);
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = telling => {}
    }
}
