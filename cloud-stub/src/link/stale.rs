//! Takes back what instances that have gone left behind: their wills, kept by the broker for good, which every device
//! is told of at each connect.
//!
//! An instance counts as gone that is offline and has not said otherwise for a status period. Should it be back at that
//! very moment, it sees its topic emptied and says again that it is there. A broker that does not let us, or ends the
//! connection over it, is not asked again.

use std::collections::BTreeSet;
use std::time::Duration;

use hedge_proto::{CloudState, Name, Topic, Topics};
use rumqttc::{AsyncClient, PublishOptions, QoS, SubscribeFilterInput};
use tokio::time::timeout;

/// How many instances are kept in mind.
const INSTANCES_MAX: usize = 1_000;

/// How many are taken back in one period: replies wait meanwhile.
const CLEARED_MAX: usize = 100;

/// How long the broker may take to grant the subscription.
const GRANT_MAX: Duration = Duration::from_secs(20);

#[derive(Debug)]
pub(super) struct Stale {
    /// Offline since before the last status period, and since within it.
    before: BTreeSet<Name>,
    now: BTreeSet<Name>,
    is_allowed: bool,
}

impl Stale {
    pub(super) fn new() -> Self {
        Self { before: BTreeSet::new(), now: BTreeSet::new(), is_allowed: true }
    }

    /// Begins to listen to all instances. What is retained comes first.
    pub(super) async fn listen(&mut self, client: &AsyncClient, topics: &Topics) {
        self.before.clear();
        self.now.clear();
        // Until the broker has granted it, a connection that ends has ended over it.
        if !std::mem::replace(&mut self.is_allowed, false) {
            return;
        }
        let filter = SubscribeFilterInput::new(topics.cloud_filter(), QoS::AtMostOnce).no_local(true);
        if let Ok(notice) = client.subscribe_many_tracked([filter]).await {
            match timeout(GRANT_MAX, notice.wait_completion_async()).await {
                Ok(Ok(())) => self.is_allowed = true,
                Ok(Err(error)) => tracing::debug!("other instances are not listened to: {error}"),
                Err(_) => tracing::debug!("other instances are not listened to: the broker does not answer"),
            }
        }
    }

    /// Takes note of what an instance says; `None` if its topic was emptied.
    pub(super) fn hear(&mut self, instance: Name, state: Option<CloudState>) {
        if state != Some(CloudState::Offline) {
            self.before.remove(&instance);
            self.now.remove(&instance);
        } else if self.before.len() + self.now.len() < INSTANCES_MAX && !self.before.contains(&instance) {
            self.now.insert(instance);
        }
    }

    /// A status period has passed.
    pub(super) async fn clear(&mut self, client: &AsyncClient, topics: &Topics) {
        let gone: Vec<Name> = std::iter::from_fn(|| self.before.pop_first()).take(CLEARED_MAX).collect();
        self.before.append(&mut self.now);
        if gone.is_empty() || !std::mem::replace(&mut self.is_allowed, false) {
            return;
        }
        for instance in &gone {
            let topic = topics.text(&Topic::CloudStatus(instance.clone()));
            let options = PublishOptions::new(QoS::AtLeastOnce).retained();
            let Ok(notice) = client.publish_tracked(topic, Vec::new(), options).await else { return };
            if let Err(error) = notice.wait_async().await {
                tracing::debug!("the status of an instance that has gone stays: {error}");
                return;
            }
        }
        self.is_allowed = true;
        tracing::info!(instances = gone.len(), "took back the status of instances that have gone");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_stays_offline_for_a_whole_period_has_gone() {
        let name = |text: &str| Name::new(text).expect("valid");
        let mut stale = Stale::new();
        for gone in ["a", "b", "c"] {
            stale.hear(name(gone), Some(CloudState::Offline));
        }
        stale.before = std::mem::take(&mut stale.now);
        stale.hear(name("a"), Some(CloudState::Online));
        stale.hear(name("b"), None);
        stale.hear(name("d"), Some(CloudState::Offline));
        assert_eq!((stale.before, stale.now), (BTreeSet::from([name("c")]), BTreeSet::from([name("d")])));
    }
}
