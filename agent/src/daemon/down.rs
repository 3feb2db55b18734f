//! Brings what comes down from the cloud to whom it is for. It is acknowledged once that is done.

use hedge_core::engine::Event;
use tokio::sync::mpsc;

use crate::commands::Desk;
use crate::control::Control;
use crate::uplink::{Down, Takes};
use crate::verdict::{ApplyError, Verdicts};

/// Everyone that something comes down for.
#[derive(Clone)]
pub(super) struct Addressees {
    pub(super) verdicts: Verdicts,
    pub(super) control: Control,
    pub(super) desk: Desk,
    pub(super) events: mpsc::Sender<Event>,
}

impl Addressees {
    pub(super) fn takes(self) -> Takes {
        Box::new(move |down| {
            let addressees = self.clone();
            Box::pin(async move { addressees.take(down).await })
        })
    }

    async fn take(&self, down: Down) -> Result<(), String> {
        match down {
            Down::Verdict(verdict) => {
                let key = verdict.id.key;
                let event = match self.verdicts.apply(verdict).await {
                    Ok(true) => Event::Closed { key, spoken: true },
                    Ok(false) => return Ok(()),
                    Err(ApplyError::Misfit(reason)) => Event::Failed { key, reason },
                    Err(error @ ApplyError::NotDurable(_)) => return Err(error.to_string()),
                };
                // Without its engine the agent is stopping, and nobody needs to know.
                drop(self.events.send(event).await);
            }
            Down::Checks(checks) => self.verdicts.learned.values().for_each(|learned| learned.heard(&checks)),
            Down::Desired { bytes, by, retained } => self.control.desired(bytes, by, retained).await,
            Down::Command(command) => {
                if !self.desk.take(command).await {
                    return Err("the agent is stopping".to_owned());
                }
            }
        }
        Ok(())
    }
}
