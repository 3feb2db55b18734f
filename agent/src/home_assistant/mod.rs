//! Home Assistant's MQTT discovery, if the configuration asks for it: at every connect, and when the settings change.
//!
//! What was announced is remembered, so that it is taken back when it is no longer wanted, also after a restart.

mod discovery;

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hedge_proto::DeviceId;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use self::discovery::{Announcement, announcement};
use crate::in_force::InForce;
use crate::state::{Announced, StateFile};
use crate::uplink::{PublishError, Uplink};

/// An announcement that found no place among what waits to be sent is offered again after so long.
const AGAIN_AFTER: Duration = Duration::from_millis(500);

/// Tells Home Assistant of this device.
pub(crate) struct HomeAssistant {
    pub uplink: Uplink,
    pub device: DeviceId,
    pub settings: watch::Receiver<Arc<InForce>>,
    pub state: Arc<Mutex<StateFile>>,
}

impl HomeAssistant {
    /// Announces until told to stop.
    pub(crate) async fn run(mut self, stop: CancellationToken) {
        let mut sessions = self.uplink.sessions();
        loop {
            let connected = sessions.borrow_and_update().is_some();
            let wanted = announcement(&self.settings.borrow_and_update().config, &self.device);
            let mut again = false;
            if connected && let Err(error) = self.announce(wanted.as_ref()).await {
                again = matches!(error, PublishError::NotConnected);
                if matches!(error, PublishError::Refused(_) | PublishError::TooLarge { .. }) {
                    let topic = wanted.map(|wanted| wanted.announced.topic);
                    tracing::warn!(%error, topic, "Home Assistant is not told of this device; may it write there?");
                }
            }
            tokio::select! {
                () = stop.cancelled() => return,
                changed = sessions.changed() => if changed.is_err() { return },
                changed = self.settings.changed() => if changed.is_err() { return },
                () = tokio::time::sleep(AGAIN_AFTER), if again => {}
            }
        }
    }

    async fn announce(&self, wanted: Option<&Announcement>) -> Result<(), PublishError> {
        let before = self.remembered();
        if let Some(before) =
            before.as_ref().filter(|before| wanted.is_none_or(|wanted| wanted.announced.topic != before.topic))
        {
            self.uplink.announce(before.topic.clone(), Vec::new()).await?;
            self.remember(None).await;
        }
        let Some(wanted) = wanted else { return Ok(()) };
        let before = before.filter(|before| before.topic == wanted.announced.topic);
        // Remembered before it is said: what was said and forgotten would stay for ever.
        let mut all = wanted.announced.clone();
        all.parts.extend(before.iter().flat_map(|before| before.parts.clone()));
        self.remember(Some(all)).await;
        let document = hedge_proto::to_json(&wanted.with_removed(before.as_ref()));
        self.uplink.announce(wanted.announced.topic.clone(), document).await?;
        self.remember(Some(wanted.announced.clone())).await;
        Ok(())
    }

    fn remembered(&self) -> Option<Announced> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).state().announced.clone()
    }

    async fn remember(&self, announced: Option<Announced>) {
        let state = self.state.clone();
        let written = tokio::task::spawn_blocking(move || {
            let mut file = state.lock().unwrap_or_else(PoisonError::into_inner);
            if file.state().announced == announced {
                return Ok(());
            }
            file.update(|state| state.announced = announced)
        });
        match written.await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => tracing::warn!(%error, "cannot write the state file"),
            Err(error) => tracing::error!(%error, "what Home Assistant was told could not be noted"),
        }
    }
}
