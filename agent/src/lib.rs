//! The Hedge agent: answers on the device when the model is sure, asks the cloud when it is not.
//!
//! The data's path is the list of modules: `capture` → `inference` (decode, tensor, scores, judge) →
//! `outbox` → `uplink` → (the cloud) → `verdict`. `pipeline` is the path of one sample; `daemon` wires everything
//! together and turns the engine of `hedge-core`, which makes every decision; nothing in this crate decides.

pub mod answers;
pub mod arguments;
pub mod board;
pub mod capture;
mod child;
pub mod clock;
pub mod commands;
pub mod control;
pub mod daemon;
#[cfg(any(test, fuzzing))]
pub mod decoders;
pub mod faults;
pub mod figures;
mod files;
pub mod home_assistant;
pub mod identity;
pub mod inference;
pub mod metrics;
pub mod outbox;
pub mod pipeline;
pub mod privacy;
pub mod queue;
pub mod sample;
pub mod state;
pub mod telemetry;
pub mod uplink;
pub mod verdict;
