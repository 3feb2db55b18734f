//! Every decision of the Hedge agent, and nothing else.
//!
//! This crate cannot act: it has no sockets, files, threads, clock, randomness or logging. It takes events
//! and the time, and returns actions; `hedge-agent` carries them out. A file here that also stands in
//! `agent/src` is the same stage: core decides, agent does.
#![no_std]

extern crate alloc;
#[cfg(test)]
extern crate std;

pub mod agree;
pub mod budget;
pub mod chance;
pub mod clock;
pub mod control;
pub mod crops;
pub mod delivery;
pub mod engine;
pub mod identity;
pub mod judge;
pub mod link;
pub mod outbox;
pub mod policy;
pub mod privacy;
pub mod release;
pub mod uplink;
pub mod verdict;
