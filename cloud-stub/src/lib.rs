//! The cloud side of Hedge: takes cases, answers them with a bigger model, keeps records, shows a page.
//!
//! ```text
//! broker ──► link ──► intake ──► model
//!              ▲        │  ▲       │
//!              └─ reply ◄┘  └───────┘        intake ──► store ◄── view
//! ```
//! One thread, [`intake`], owns the records and all decisions about them; everything else sends it events
//! over a bounded channel or looks at what it committed. [`fleet`] is for operators: it sets and commands devices over
//! a connection of its own.

pub mod access;
pub mod answerers;
pub mod args;
pub mod broker;
pub mod bundle;
pub mod ca;
pub mod check;
pub mod export;
pub mod fleet;
pub mod identity;
pub mod intake;
pub mod link;
pub mod message;
pub mod model;
pub mod payloads;
pub mod presence;
pub mod quickstart;
pub mod reply;
pub mod serve;
pub mod store;
pub mod traces;
pub mod trend;
pub mod turns;
pub mod view;

/// Milliseconds since 1970 UTC. For people and for the age of records; no answer depends on it.
#[must_use]
pub fn wall_ms() -> u64 {
    hedge_identity::wall_ms().unwrap_or(0)
}

/// The date certificates and pairing codes are made and judged at: a clock that restarted in 1970 is not believed.
#[must_use]
pub fn certificate_ms() -> u64 {
    hedge_identity::CertificateClock::since(None).now_ms()
}

/// None of our counts, sizes and sums comes near the difference.
fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// `2026-11-29 17:03:09`, in UTC.
fn utc(ms: u64) -> String {
    let seconds = i64::try_from(ms / 1000).unwrap_or(i64::MAX);
    let Ok(at) = time::OffsetDateTime::from_unix_timestamp(seconds) else { return ms.to_string() };
    let (date, (hour, minute, second)) = (at.date(), at.to_hms());
    format!("{date} {hour:02}:{minute:02}:{second:02}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_written_as_people_read_them() {
        for (ms, text) in [
            (0, "1970-01-01 00:00:00"),
            (951_782_400_000, "2000-02-29 00:00:00"),
            (1_798_761_599_000, "2026-12-31 23:59:59"),
            (4_107_542_400_000, "2100-03-01 00:00:00"),
        ] {
            assert_eq!(utc(ms), text);
        }
    }
}
