//! Keeps a delivery running for each configured sink, also when the settings change.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use hedge_proto::{DeviceId, Name};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use super::numbers::numbers;
use super::{Delivery, Sink, Verdicts};
use crate::faults::Part;
use crate::state::StateFile;
use crate::uplink::Uplink;
use hedge_config::{SinkConfig, VerdictsConfig};

/// The running deliveries.
pub struct Sinks {
    verdicts: Verdicts,
    /// Remembers the sinks' numbers.
    state: Arc<Mutex<StateFile>>,
    uplink: Option<Uplink>,
    device: DeviceId,
    config: VerdictsConfig,
    running: BTreeMap<Name, Running>,
    stop: CancellationToken,
}

/// A delivery under way.
struct Running {
    number: u8,
    stop: CancellationToken,
    task: JoinHandle<()>,
}

impl Sinks {
    /// Starts a delivery for each sink of `wanted`. Cancelling `stop` ends them. A sink that cannot be used is a fault,
    /// and is used once it can be.
    pub fn start(
        wanted: &VerdictsConfig,
        verdicts: Verdicts,
        state: Arc<Mutex<StateFile>>,
        uplink: Option<Uplink>,
        device: DeviceId,
        stop: CancellationToken,
    ) -> Self {
        let (config, running) = (VerdictsConfig::default(), BTreeMap::new());
        let mut sinks = Self { verdicts, state, uplink, device, config, running, stop };
        sinks.apply(wanted);
        sinks
    }

    /// Goes by `config` from now on. A sink that stays as it was is not touched.
    pub fn apply(&mut self, config: &VerdictsConfig) {
        if *config == self.config {
            return;
        }
        let numbers = numbers(config.sinks.keys(), &self.verdicts.outbox, &self.state);
        let bits = numbers.values().fold(0, |bits, number| bits | 1u16 << number);
        self.verdicts.sinks.store(bits, Ordering::Relaxed);
        let before = std::mem::replace(&mut self.config, config.clone());
        let names: BTreeSet<&Name> = before.sinks.keys().chain(config.sinks.keys()).collect();
        for name in names {
            let wanted = config.sinks.get(name);
            if before.sinks.get(name) != wanted {
                self.replace(name, wanted.map(|sink| (sink, numbers.get(name).copied())));
            }
        }
        // What only waited for a sink that is gone is done with.
        let verdicts = self.verdicts.clone();
        tokio::spawn(async move { verdicts.forget_all_delivered().await });
    }

    fn replace(&mut self, name: &Name, wanted: Option<(&SinkConfig, Option<u8>)>) {
        let (faults, part) = (self.verdicts.faults.clone(), Part::Sink(name.clone()));
        let before = self.running.remove(name);
        let number_before = before.as_ref().map(|before| before.number);
        if let Some(before) = &before {
            before.stop.cancel();
        }
        // One after the other: two at once could deliver one correction twice.
        let none = wanted.is_some_and(|(_, number)| number.is_none());
        let ended = async move {
            if let Some(before) = before {
                drop(before.task.await);
            }
            if none {
                let why = "cases wait that sinks of before have, and these take all the numbers there are; it begins when \
                           they are delivered and the agent has started again";
                return faults.set(&part, why);
            }
            faults.clear(&part);
        };
        let Some((config, Some(number))) = wanted else {
            number_before.into_iter().for_each(|number| self.verdicts.locals.forget(number));
            tokio::spawn(ended);
            return;
        };
        let uplink = self.uplink.clone().map(|uplink| super::Spending { uplink, link: self.verdicts.link.clone() });
        let sink = Sink::new(name.clone(), number, config, uplink, &self.device);
        self.verdicts.locals.serve(&sink);
        self.verdicts.figures.sink(name, |_| {});
        let stop = self.stop.child_token();
        let delivery = Delivery::new(self.verdicts.clone(), sink).run(stop.clone());
        let task = tokio::spawn(async move {
            ended.await;
            delivery.await;
        });
        self.running.insert(name.clone(), Running { number, stop, task });
    }

    /// Waits until every delivery has ended, which they do soon after `stop`.
    pub async fn stopped(self) {
        for running in self.running.into_values() {
            if let Err(error) = running.task.await {
                tracing::error!(%error, "a delivery ended badly");
            }
        }
    }
}
