//! How much is under way, and how long each wait is.

use core::time::Duration;

/// The most publishes without PUBACK; fewer if the broker's receive maximum says so. On a slow link what waits in it
/// makes urgent cases late.
pub const WINDOW_MAX: usize = 16;

/// The most publishes on which the cloud has not said a word. The broker holds them while the cloud commits, and
/// mosquitto drops what is over 1,000.
pub const UNCONFIRMED_MAX: usize = 64;

/// The most cases remembered while they wait to be sent, so that the disk is asked rarely.
pub const READY_MAX: usize = 256;

/// The most cases the cloud may owe an answer to. Beyond it the cloud is slower than the device: wait.
pub const OWED_MAX: usize = 512;

/// How long the cloud may take to say `received` before it is asked. Its records commit in well under a second.
pub const RECEIVED_WAIT: Duration = Duration::from_secs(15);

/// How long a verdict may take before it is asked about; doubles each time.
pub const VERDICT_WAIT: Duration = Duration::from_secs(60);

/// The longest wait between two questions about one case, and between two tries of one that failed.
pub const QUIET_MAX: Duration = Duration::from_secs(30 * 60);

/// So often a payload travels without a pause if the cloud wants it again: connections break, and clouds lose records.
pub const SENDS_AT_ONCE: u32 = 3;

/// The wait before it travels once more; doubles each time.
pub const SEND_AGAIN_WAIT: Duration = Duration::from_secs(60);

/// What follows from both for any hour, whoever asks.
pub const SENDS_PER_HOUR_MAX: u32 = 8;

/// While something is too large for a message, it is looked at again so often, which costs no byte on the wire.
pub const LIMIT_WAIT: Duration = Duration::from_secs(10 * 60);

/// The limit that a broker gave a connection is believed for so long; then another connection asks anew.
pub const LIMIT_OUTLIVES: Duration = Duration::from_secs(3600);

/// The wait after the first `failed`; doubles each time.
pub const FAILED_WAIT: Duration = Duration::from_secs(10);

/// How long making a dead letter may take before the cloud is asked again: a full disk may have refused it.
pub const BURY_WAIT: Duration = Duration::from_secs(60);

/// How long no payload is sent when the broker says that nobody subscribes; doubles each time.
pub const NOBODY_WAIT: Duration = Duration::from_secs(5);

/// The longest such wait: a status that a dead cloud left behind costs six payloads an hour.
pub const NOBODY_WAIT_MAX: Duration = Duration::from_secs(10 * 60);

/// How long the other instances get to pick up what a lost one had, before they are asked.
pub const INSTANCE_LOST_WAIT: Duration = Duration::from_secs(5);

/// Every so many publishes one is kept for a fresh case.
pub const FRESH_EVERY: u32 = 4;

/// A case stored less long ago is fresh.
pub const FRESH: Duration = Duration::from_secs(60);

/// Cases whose callers wait, remembered ahead of all others. More callers than that wait like everybody.
pub const URGENT_MAX: usize = 64;

/// A case this small may share a publish: for a larger one the envelope is no cost worth saving.
pub const BATCH_CASE_BYTES_MAX: u32 = 8 * 1024;

/// The wait after a payload could not be brought to the cloud; doubles each time.
pub const STUCK_WAIT: Duration = Duration::from_secs(5);

/// A pace that is slower counts as this: about one case in a quarter of an hour.
pub(super) const PACE_MIN: f32 = 1e-3;

/// A case that failed so often in the cloud is a dead letter.
pub const TRIES_MAX: u32 = 5;
