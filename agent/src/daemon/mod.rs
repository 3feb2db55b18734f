//! Start, wiring, stop.

pub mod config;
