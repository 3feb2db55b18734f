//! Decides what an operator's commands and wanted settings come to.

pub mod commands;
