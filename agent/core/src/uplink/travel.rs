//! Decides how a payload travels: within its case's message, or before it.

use core::time::Duration;

/// How a payload travels.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Travel {
    /// Within the case's message.
    Message,
    /// By HTTPS before it; the message only names it.
    Upload,
}

/// What the link carries in this time may travel as one message; a larger one would keep all others waiting, and be
/// lost whole with its connection.
pub const MESSAGE_TIME_MAX: Duration = Duration::from_secs(60);

/// How a message of so many bytes is sent. `bytes_per_s` is what the link was seen to carry, if it was.
#[must_use]
pub fn travel(bytes: usize, packet_bytes_max: usize, bytes_per_s: Option<f64>) -> Travel {
    let slow = bytes_per_s.is_some_and(|per_s| bytes as f64 > per_s * MESSAGE_TIME_MAX.as_secs_f64());
    if bytes > packet_bytes_max || slow { Travel::Upload } else { Travel::Message }
}
