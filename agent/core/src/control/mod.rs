//! Decides what an operator's commands come to, which wanted settings come into force, and what happens to those that
//! could cut the link.
//!
//! Whether a document's fields mean anything, and putting them in force, is up to the agent.

pub mod commands;
pub mod settings;
pub mod trial;
