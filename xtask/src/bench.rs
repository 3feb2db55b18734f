//! Runs one measurement and passes its output through; the last line is one JSON object.

use anyhow::Result;

use crate::command;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    #[arg(value_enum)]
    name: Name,
    /// Passed on to the measurement.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    arguments: Vec<String>,
}

#[derive(Debug, Clone, Copy, clap::ValueEnum)]
enum Name {
    /// Durable cases per second of log and queue, beside a bare log on the same disk.
    Outbox,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Name::Outbox = arguments.name;
    let mut bench = command::cargo(&["bench", "--quiet", "--package", "hedge-agent", "--bench", "outbox", "--"]);
    command::run(bench.args(&arguments.arguments))
}
