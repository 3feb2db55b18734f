//! What an operator does to devices: look, set, command. The command line and the dashboard both act through here.
//!
//! ```text
//! operator (one short connection) ─► board (what the broker says) ─► change ─► errand (publish, then wait) ─► report
//! ```
//! A device decides what becomes of what is sent; nothing here knows more of a device than its topics say.

pub mod board;
pub mod carry_out;
pub mod change;
pub mod cli;
pub mod delete;
pub mod differ;
pub mod errand;
pub mod operator;
pub mod rollout;
pub mod rollouts;
pub mod select;
pub mod stages;

/// A command's id, of 96 bits: no two share one.
pub fn random_id() -> Result<String, getrandom::Error> {
    let mut bytes = [0; 12];
    getrandom::fill(&mut bytes)?;
    Ok(hex::encode(bytes))
}
