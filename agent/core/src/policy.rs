//! Decides what the device does differently in each state of its link.
//!
//! Which state that is, `link` decides; what a state changes is all here: how much is worth asking, how long a
//! caller waits for the cloud, in which form a case is stored, how fast the queue drains.
//!
//! Invariant: without a connection nobody waits for the cloud unless the operator says so.

use core::time::Duration;

use hedge_proto::{LinkState, Payload};

use crate::judge::ThresholdScale;
use crate::privacy::Ceiling;

/// What holds as long as the link is in one state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policy {
    /// For samples judged in this state.
    pub threshold: ThresholdScale,
    /// The longest a caller waits for a verdict; also ends waits that began in another state.
    pub wait_max: Duration,
    /// For cases stored in this state. What goes first counts for cases sent in it.
    pub payload: Payload,
    /// Cases per second; none for as fast as the cloud takes them, 0 for none at all.
    pub drain_per_s: Option<f32>,
}

impl Policy {
    /// The pixels of the thumbnails that go first over this link, if they do.
    #[must_use]
    pub fn thumbnail_first(&self) -> Option<u32> {
        if let Payload::ThumbnailFirst(side_max) = self.payload { Some(side_max) } else { None }
    }
}

/// One policy for each state.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Policies {
    pub online: Policy,
    pub degraded: Policy,
    pub offline: Policy,
    pub over_budget: Policy,
}

/// Longer than any verdict takes that comes at all soon; applications rarely wait so long.
const WAIT_ONLINE: Duration = Duration::from_secs(60);

/// Nobody may be there to answer. A verdict that is only just late still comes.
const WAIT_DEGRADED: Duration = Duration::from_secs(2);

/// Enough to keep trying while the cloud is silent, and little to ask about when it is back.
const DRAIN_DEGRADED_PER_S: f32 = 2.0;

impl Policies {
    /// What the device does unless the operator says otherwise.
    pub const DEFAULT: Self = {
        let online = Policy {
            threshold: ThresholdScale::ONE,
            wait_max: WAIT_ONLINE,
            payload: Payload::Whole,
            drain_per_s: None,
        };
        let nobody_waits = Policy { wait_max: Duration::ZERO, ..online };
        Self {
            online,
            degraded: Policy { wait_max: WAIT_DEGRADED, drain_per_s: Some(DRAIN_DEGRADED_PER_S), ..online },
            offline: nobody_waits,
            over_budget: nobody_waits,
        }
    };

    /// The same, with no payload over the ceiling.
    #[must_use]
    pub fn under(mut self, ceiling: Ceiling) -> Self {
        for policy in [&mut self.online, &mut self.degraded, &mut self.offline, &mut self.over_budget] {
            policy.payload = ceiling.hold(policy.payload);
        }
        self
    }

    /// Dialling is no connection yet, and a radio that rests is as good as none.
    #[must_use]
    pub fn of(&self, state: LinkState) -> &Policy {
        match state {
            LinkState::Offline | LinkState::Connecting | LinkState::Resting => &self.offline,
            LinkState::Online => &self.online,
            LinkState::Degraded => &self.degraded,
            LinkState::OverBudget => &self.over_budget,
        }
    }
}

/// Whether figures and answers go over the wire at their own pace in this state. Over its budget a device tells that it
/// is, and leaves the rest to whoever must reach it.
#[must_use]
pub fn tells(state: LinkState) -> bool {
    state != LinkState::OverBudget
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn over_its_budget_a_device_leaves_the_rest_to_whoever_must_reach_it() {
        assert!(!tells(LinkState::OverBudget));
        assert!([LinkState::Online, LinkState::Degraded].into_iter().all(tells));
    }

    #[test]
    fn without_a_connection_nobody_waits_and_with_one_the_queue_is_not_held() {
        for state in LinkState::ALL {
            let policy = Policies::DEFAULT.of(state);
            let waits = !policy.wait_max.is_zero();
            assert_eq!(waits, matches!(state, LinkState::Online | LinkState::Degraded), "{state:?}");
            assert_ne!(policy.drain_per_s, Some(0.0), "{state:?}");
        }
    }
}
