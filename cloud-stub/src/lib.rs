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
mod files;
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
    #[expect(clippy::disallowed_methods, reason = "the one place of the cloud that reads the wall clock")]
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
