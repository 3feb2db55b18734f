//! Which devices this process has heard itself, and when. A broker keeps what a device said last for good: that it was
//! there once is no sign that it still is. Kept in memory, for after a restart nobody has been heard.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use hedge_proto::DeviceId;

/// How many devices are kept in mind: names are free to make up.
const DEVICES_MAX: usize = 100_000;

/// Clones share what was heard.
#[derive(Debug, Clone, Default)]
pub struct Heard(Arc<Mutex<HashMap<String, u64>>>);

impl Heard {
    fn at(&self) -> MutexGuard<'_, HashMap<String, u64>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The device has just said something.
    pub fn note(&self, device: &DeviceId, now_ms: u64) {
        let mut at = self.at();
        if let Some(known) = at.get_mut(device.as_str()) {
            *known = now_ms;
        } else if at.len() < DEVICES_MAX {
            at.insert(device.to_string(), now_ms);
        }
    }

    /// When the device was heard last, by the wall clock.
    #[must_use]
    pub fn last_ms(&self, device: &str) -> Option<u64> {
        self.at().get(device).copied()
    }
}
