//! Keeps a delivery running for each configured sink, also when the settings change.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hedge_proto::DeviceId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Delivery, Sink, SinkConfigError, Verdicts, sink_bits};
use crate::daemon::config::VerdictsConfig;
use crate::uplink::Uplink;

/// The running deliveries.
pub struct Sinks {
    verdicts: Verdicts,
    uplink: Option<Uplink>,
    device: DeviceId,
    config: VerdictsConfig,
    /// By the sink's number.
    running: BTreeMap<u8, (CancellationToken, JoinHandle<()>)>,
    stop: CancellationToken,
}

impl Sinks {
    /// Starts a delivery for each sink of `config`. Cancelling `stop` ends them.
    pub fn start(
        config: &VerdictsConfig,
        verdicts: Verdicts,
        uplink: Option<Uplink>,
        device: DeviceId,
        stop: CancellationToken,
    ) -> Result<Self, SinkConfigError> {
        let (config, none) = (config.clone(), VerdictsConfig::default());
        let mut sinks = Self { verdicts, uplink, device, config: none, running: BTreeMap::new(), stop };
        sinks.change(config)?;
        Ok(sinks)
    }

    /// Goes by `config` from now on. A sink that stays as it was is not touched.
    pub fn apply(&mut self, config: &VerdictsConfig) {
        if *config == self.config {
            return;
        }
        if let Err(error) = self.change(config.clone()) {
            tracing::error!(%error, "the sinks stay as they are");
        }
    }

    fn change(&mut self, config: VerdictsConfig) -> Result<(), SinkConfigError> {
        let changed = self.changed(&config);
        let new = |number: u8| Sink::configured(number, &config, self.uplink.as_ref(), &self.device);
        let mut made = Vec::with_capacity(changed.len());
        for number in changed {
            made.push((number, new(number)?));
        }
        self.verdicts.sinks.store(sink_bits(&config), Ordering::Relaxed);
        for (number, made) in made {
            let before = self.running.remove(&number);
            if let Some((stop, _)) = &before {
                stop.cancel();
            }
            let Some((sink, wanted)) = made else { continue };
            let stop = self.stop.child_token();
            let delivery = Delivery::new(self.verdicts.clone(), sink, wanted).run(stop.clone());
            // One after the other: two at once could deliver one correction twice.
            let task = tokio::spawn(async move {
                if let Some((_, before)) = before {
                    drop(before.await);
                }
                delivery.await;
            });
            self.running.insert(number, (stop, task));
        }
        self.config = config;
        // What only waited for a sink that is gone is done with.
        let verdicts = self.verdicts.clone();
        tokio::spawn(async move { verdicts.forget_all_delivered().await });
        Ok(())
    }

    fn changed(&self, config: &VerdictsConfig) -> Vec<u8> {
        let same = [
            self.config.jsonl == config.jsonl,
            self.config.webhook == config.webhook,
            self.config.command == config.command,
            self.config.mqtt == config.mqtt,
        ];
        (0..).zip(same).filter(|(_, same)| !same).map(|(number, _)| number).collect()
    }

    /// Waits until every delivery has ended, which they do soon after `stop`.
    pub async fn stopped(self) {
        for (_, task) in self.running.into_values() {
            if let Err(error) = task.await {
                tracing::error!(%error, "a delivery ended badly");
            }
        }
    }
}
