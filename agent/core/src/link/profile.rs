//! What a link costs to keep and to try.

use core::time::Duration;

use super::Windows;

/// What kind of link the device has: what it costs to keep and to try.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Profile {
    /// The longest wait between two dials. A repaired link must be noticed within this time.
    pub dial_wait_max: Duration,
    /// How often the device shows that it is alive; a cut that nothing else shows is seen within twice that.
    pub keep_alive: Duration,
    /// How often live figures are sent while nothing changes.
    pub telemetry: Duration,
    /// None: the link is used at any time.
    pub windows: Option<Windows>,
}

impl Profile {
    /// Costs nothing: a cut is seen within 45 s, a repaired link used within 60 s.
    pub const LAN: Self = Self {
        dial_wait_max: Duration::from_secs(40),
        keep_alive: Duration::from_secs(20),
        telemetry: Duration::from_secs(60),
        windows: None,
    };

    /// Paid by the byte: at most 300 KB a day while idle.
    pub const METERED: Self = Self {
        dial_wait_max: Duration::from_secs(300),
        keep_alive: Duration::from_secs(600),
        telemetry: Duration::from_secs(6 * 3600),
        windows: None,
    };
}
