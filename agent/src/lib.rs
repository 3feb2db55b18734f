//! The Hedge agent: answers on the device when the model is sure, asks the cloud when it is not.
//!
//! The data's path is the list of modules: `capture` → `inference` (decode, tensor, scores, judge) →
//! `outbox` → `uplink` → (the cloud) → `verdict`. `daemon` wires them together and runs the engine of
//! `hedge-core`, which makes every decision; nothing in this crate decides.

pub mod answers;
pub mod capture;
pub mod commands;
pub mod daemon;
pub mod sample;
