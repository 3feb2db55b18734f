//! The link as everyone outside the engine sees it. What it means is decided in core.

use std::time::Duration;

use hedge_core::policy::Policy;
use hedge_proto::LinkState;
use tokio::time::Instant;

/// The link now, and how it has been since the process started.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LinkView {
    pub state: LinkState,
    pub reason: &'static str,
    /// What holds in this state.
    pub policy: Policy,
    pub in_flight: usize,
    /// Something that only a live cloud can have sent came over this connection.
    pub proven: bool,
    /// The radio rests: nothing is to go over it.
    pub closed: bool,
    /// Connections that came about since the process started.
    pub connections: u64,
    /// Bytes in both directions since the process started.
    pub bytes: u64,
    /// Time in each state before the present one began, and when that was.
    before: [Duration; LinkState::ALL.len()],
    since: Instant,
}

impl LinkView {
    #[must_use]
    pub fn starting(policy: Policy) -> Self {
        Self {
            state: LinkState::Offline,
            reason: "starting",
            policy,
            in_flight: 0,
            proven: false,
            closed: false,
            connections: 0,
            bytes: 0,
            before: Default::default(),
            since: Instant::now(),
        }
    }

    /// Notes the present state and why, and how long the one before it lasted.
    pub fn enter(&mut self, state: LinkState, reason: &'static str, policy: Policy) {
        if self.state != state {
            self.connections += u64::from(!is_connected(self.state) && is_connected(state));
            self.before[self.state as usize] += self.since.elapsed();
            self.since = Instant::now();
        }
        (self.state, self.reason, self.policy) = (state, reason, policy);
    }

    /// Time spent in `state` since the process started.
    #[must_use]
    pub fn time_in(&self, state: LinkState) -> Duration {
        let now = if self.state == state { self.since.elapsed() } else { Duration::ZERO };
        self.before[state as usize] + now
    }

    /// Time spent without a connection since the process started, rests of the radio aside.
    #[must_use]
    pub fn offline(&self) -> Duration {
        self.time_in(LinkState::Offline) + self.time_in(LinkState::Connecting)
    }
}

fn is_connected(state: LinkState) -> bool {
    match state {
        LinkState::Offline | LinkState::Connecting | LinkState::Resting => false,
        LinkState::Online | LinkState::Degraded | LinkState::OverBudget => true,
    }
}
