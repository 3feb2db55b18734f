//! The commands besides `run`.

pub mod check;
