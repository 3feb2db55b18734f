//! The Hedge agent: answers on the device when the model is sure, asks the cloud when it is not.
//!
//! The data's path is the list of modules: `capture` → `inference` (decode, tensor, scores, judge) →
//! `hedge-outbox` → `uplink` → (the cloud) → `verdict`. `pipeline` is the path of one sample; `daemon` wires everything
//! together and turns the engine of `hedge-core`, which makes every decision; nothing in this crate decides.

pub mod answers;
pub mod audit;
pub mod board;
pub mod bundles;
pub mod capture;
pub mod child;
pub mod clock;
mod commands;
pub mod control;
pub mod daemon;
#[cfg(any(test, fuzzing))]
pub mod decoders;
pub mod faults;
pub mod figures;
pub mod home_assistant;
pub mod in_force;
pub mod inference;
pub mod learned;
pub mod link;
mod log;
pub mod metrics;
pub mod pipeline;
pub mod privacy;
pub mod queue;
pub mod restart;
pub mod sample;
pub mod settings;
pub mod state;
pub mod uplink;
pub mod verdict;
