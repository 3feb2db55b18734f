//! Where a case stands in a trace, in the words of W3C Trace Context.
//!
//! Everything follows from the case's id, so that whoever has a case also has its trace: the device, an instance that
//! takes a case over from another, and a person with `sha256sum`.

use core::fmt;

use crate::{CaseId, Digest};

/// The name of the MQTT user property and of the HTTP header that carry a [`TraceContext`].
pub const TRACEPARENT: &str = "traceparent";

/// The MQTT user property in which a device says when it sends a message: milliseconds on its powered clock, as in
/// [`crate::Captured`].
pub const SENT_POWERED_MS: &str = "sent_powered_ms";

/// One span of a case's trace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TraceContext {
    pub trace: [u8; 16],
    pub span: [u8; 8],
}

impl TraceContext {
    /// The case on its device: the trace is the first half of the SHA-256 sum of the id's text, the span is the third
    /// quarter.
    #[must_use]
    pub fn on_device(id: &CaseId) -> Self {
        let Digest(sum) = sum(id);
        Self { trace: part(&sum, 0), span: part(&sum, 16) }
    }

    /// The case in the cloud: the same trace, and the last quarter.
    #[must_use]
    pub fn in_cloud(id: &CaseId) -> Self {
        let Digest(sum) = sum(id);
        Self { trace: part(&sum, 0), span: part(&sum, 24) }
    }
}

fn sum(id: &CaseId) -> Digest {
    Digest::of(alloc::format!("{id}").as_bytes())
}

fn part<const N: usize>(sum: &[u8; 32], from: usize) -> [u8; N] {
    core::array::from_fn(|at| sum[from + at])
}

/// As `traceparent` has it: version 0, and recorded.
impl fmt::Display for TraceContext {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let hex = |f: &mut fmt::Formatter<'_>, bytes: &[u8]| bytes.iter().try_for_each(|byte| write!(f, "{byte:02x}"));
        f.write_str("00-")?;
        hex(f, &self.trace)?;
        f.write_str("-")?;
        hex(f, &self.span)?;
        f.write_str("-01")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use alloc::string::ToString as _;

    /// `printf lane-camera.fdb1c30b4b49f616.691 | sha256sum`
    #[test]
    fn the_trace_of_a_case_is_what_sha256sum_says_of_its_id() {
        let id: CaseId = "lane-camera.fdb1c30b4b49f616.691".parse().expect("an id");
        let sum = Digest::of(b"lane-camera.fdb1c30b4b49f616.691").to_string();
        let (trace, device, cloud) = (&sum[..32], &sum[32..48], &sum[48..]);
        assert_eq!(TraceContext::on_device(&id).to_string(), alloc::format!("00-{trace}-{device}-01"));
        assert_eq!(TraceContext::in_cloud(&id).to_string(), alloc::format!("00-{trace}-{cloud}-01"));
    }
}
