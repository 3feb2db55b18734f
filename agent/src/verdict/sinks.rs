//! Keeps a delivery running for each configured sink, also when the settings change.

use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

use hedge_proto::DeviceId;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::{Delivery, Sink, Verdicts, sink_bits, sink_name};
use crate::faults::Part;
use crate::uplink::Uplink;
use hedge_config::VerdictsConfig;
use hedge_proto::SinkWants;

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
    /// Starts a delivery for each sink of `config`. Cancelling `stop` ends them. A sink that cannot be used is a fault,
    /// and is used once it can be.
    pub fn start(
        config: &VerdictsConfig,
        verdicts: Verdicts,
        uplink: Option<Uplink>,
        device: DeviceId,
        stop: CancellationToken,
    ) -> Self {
        let mut sinks =
            Self { verdicts, uplink, device, config: VerdictsConfig::default(), running: BTreeMap::new(), stop };
        sinks.apply(config);
        sinks
    }

    /// Goes by `config` from now on. A sink that stays as it was is not touched.
    pub fn apply(&mut self, config: &VerdictsConfig) {
        if *config == self.config {
            return;
        }
        self.verdicts.sinks.store(sink_bits(config), Ordering::Relaxed);
        for number in self.changed(config) {
            self.replace(number, Sink::configured(number, config, self.uplink.as_ref(), &self.device));
        }
        self.config = config.clone();
        // What only waited for a sink that is gone is done with.
        let verdicts = self.verdicts.clone();
        tokio::spawn(async move { verdicts.forget_all_delivered().await });
    }

    fn replace(&mut self, number: u8, made: Option<(Sink, SinkWants)>) {
        let (faults, part) = (self.verdicts.faults.clone(), Part::Sink(sink_name(number)));
        let before = self.running.remove(&number);
        if let Some((stop, _)) = &before {
            stop.cancel();
        }
        // One after the other: two at once could deliver one correction twice.
        let ended = async move {
            if let Some((_, before)) = before {
                drop(before.await);
            }
            faults.clear(&part);
        };
        let Some((sink, wanted)) = made else {
            self.verdicts.locals.forget(number);
            tokio::spawn(ended);
            return;
        };
        self.verdicts.locals.serve(number, wanted);
        self.verdicts.figures.sink(sink.name(), |_| {});
        let stop = self.stop.child_token();
        let delivery = Delivery::new(self.verdicts.clone(), sink, wanted).run(stop.clone());
        let task = tokio::spawn(async move {
            ended.await;
            delivery.await;
        });
        self.running.insert(number, (stop, task));
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
