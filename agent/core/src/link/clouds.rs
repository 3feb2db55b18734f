//! What the cloud's instances say of themselves. Any of them may get the next case.

use core::time::Duration;

use hedge_proto::{CloudState, CloudStatus, Name, WIRE_VERSION};

use super::Link;

/// How many living cloud instances are remembered. A fleet's cloud has a handful.
pub(super) const INSTANCES_MAX: usize = 64;

/// The longest rest a status may ask for; it may say so again.
pub const RETRY_AFTER_MAX: Duration = Duration::from_secs(3600);

impl Link {
    /// A cloud instance's status. A retained one may be older than the instance's death.
    pub fn cloud_status(&mut self, instance: Name, status: CloudStatus, retained: bool) {
        // Before the session is ready the broker hands over what it kept while we were away.
        self.proven |= self.is_connected() && !retained && status.state == CloudState::Online;
        if status.state == CloudState::Offline {
            self.instances.remove(&instance);
            self.gone = true;
        } else if self.has_place(&instance, retained) {
            self.instances.insert(instance, (status, retained));
        }
        self.weigh();
    }

    /// Whether this one is remembered, if need be in the place of one that may have died long ago.
    fn has_place(&mut self, instance: &Name, retained: bool) -> bool {
        if self.instances.len() < INSTANCES_MAX || self.instances.contains_key(instance) {
            return true;
        }
        let old = self.instances.iter().find(|(_, (_, retained))| *retained).map(|(name, _)| name.clone());
        !retained && old.is_some_and(|name| self.instances.remove(&name).is_some())
    }

    /// The cases per second the cloud takes from one device: the most any instance offers, none for no limit.
    #[must_use]
    pub fn accept_per_s(&self) -> Option<f32> {
        self.readers().map(|status| status.accept).reduce(|a, b| Some(a?.max(b?))).flatten()
    }

    /// The largest payload that each instance takes within a message: any of them may get it.
    #[must_use]
    pub fn payload_bytes_max(&self) -> Option<u64> {
        self.readers().filter_map(|status| status.payload_bytes_max).min()
    }

    /// How long the cloud asks to be left alone, when all its instances do.
    #[must_use]
    pub fn retry_after(&self) -> Option<Duration> {
        let seconds = self.readers().map(|status| status.retry_after_s).reduce(|a, b| Some(a?.min(b?))).flatten()?;
        Some(Duration::from_secs(u64::from(seconds)).min(RETRY_AFTER_MAX))
    }

    /// The highest version of the wire that every instance reads which reads anything of ours: any of them may get the
    /// next case.
    #[must_use]
    pub fn wire_max(&self) -> u16 {
        let highest =
            |status: &CloudStatus| status.wire.iter().copied().filter(|version| *version <= WIRE_VERSION).max();
        self.readers().filter_map(highest).min().unwrap_or(WIRE_VERSION)
    }

    /// The instances that read at least the version which carries classes.
    pub(super) fn readers(&self) -> impl Iterator<Item = &CloudStatus> {
        let reads = |status: &&CloudStatus| status.wire.iter().any(|version| (1..=WIRE_VERSION).contains(version));
        self.instances.values().map(|(status, _)| status).filter(reads)
    }
}
