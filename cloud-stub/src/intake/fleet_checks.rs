//! Adds the spot checks of a fleet up, and tells its devices what they have come to.
//!
//! A sum is remembered for a while: ten thousand devices tell theirs in a minute, and adding up takes the longer the more there
//! are.

use std::time::{Duration, Instant};

use hedge_proto::{DeviceId, DownMessage, JudgeFigures, LOSSES_MAX, SpotChecks};

use super::decide;
use super::desk::Desk;
use crate::store::{Batch, StoreError};

/// How old a sum may be, for each device in it: a minute for as many as are added up.
const KEPT_FOR_EACH: Duration = Duration::from_millis(60);

/// Models, each with another in the cloud, that are remembered. Names are free to make up.
const SUMS_MAX: usize = 64;

#[derive(Default)]
pub(super) struct FleetChecks(Vec<(Instant, SpotChecks)>);

impl FleetChecks {
    /// Of all devices with the model of these, compared with the same in the cloud.
    fn of(&mut self, batch: &Batch<'_>, own: &SpotChecks, now: Instant) -> Result<&SpotChecks, StoreError> {
        self.0.retain(|(at, sum)| now.saturating_duration_since(*at) < KEPT_FOR_EACH * sum.devices);
        let known = self.0.iter().position(|(_, sum)| (&sum.model, &sum.cloud) == (&own.model, &own.cloud));
        let at = if let Some(at) = known {
            at
        } else {
            self.0.truncate(SUMS_MAX - 1);
            self.0.push((now, batch.fleet_checks(&own.model, &own.cloud)?));
            self.0.len() - 1
        };
        Ok(&self.0[at].1)
    }
}

impl Desk<'_, '_> {
    /// Adds a device's own to the fleet's, and tells it of these if they are news to it.
    pub(super) fn spot_checks(&mut self, device: &DeviceId, judge: &JudgeFigures) -> Result<(), StoreError> {
        let fits = |own: &&SpotChecks| own.lost.len().max(own.held.len()) <= LOSSES_MAX;
        let Some(own) = judge.spot_checks.as_ref().filter(fits) else { return Ok(()) };
        self.batch.set_spot_checks(device, own, self.now_ms)?;
        let Some(known) = judge.fleet_checks else { return Ok(()) };
        let fleet = self.fleet_checks.of(self.batch, own, self.begun)?;
        if decide::is_news(fleet, own, known) {
            self.effects.replies.add(device, DownMessage::Checks(fleet.clone()));
        }
        Ok(())
    }
}
