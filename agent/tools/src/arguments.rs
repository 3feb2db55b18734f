//! The command line of `hedge-agent`. Manual pages and completions are made from it, too.

use clap::{Parser, Subcommand};

use crate::{ConfigArgument, bench, bundle, check, feed, infer, log, queue, settings, setup, support};

/// Answers on the device when the model is sure, asks the cloud when it is not, loses nothing while the link
/// is down.
#[derive(Parser)]
#[command(
    name = "hedge-agent",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration."
)]
pub struct Arguments {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Subcommand)]
pub enum Command {
    /// Run the daemon until SIGTERM.
    Run(ConfigArgument),
    /// Answer picture files once with a model bundle and explain each decision.
    Infer(infer::InferArgs),
    /// Test everything this device needs, from the configuration to the broker's topics, and say what to do.
    Check(check::CheckArgs),
    /// Write one file to attach to a question: everything about this device except secrets and samples.
    Support(support::SupportArgs),
    /// Measure how fast this board answers, for how long, and which variant of the model suits it.
    Bench(bench::BenchArgs),
    /// Hand the pictures that another program writes to a running agent.
    Feed(feed::FeedArgs),
    /// Show and repair the queue of cases, whether the agent runs or not.
    Queue(queue::QueueArgs),
    /// Enrol this device with a pairing code of `hedge-cloud`, and write what it needs to run.
    Setup(setup::SetupArgs),
    /// Remove all remote settings, when nothing else helps.
    #[command(subcommand)]
    Settings(settings::SettingsCommand),
    /// Show who changed settings and gave commands.
    #[command(subcommand)]
    Log(log::LogCommand),
    /// Print the settings that can be changed remotely, as JSON Schema.
    Schema,
    /// Make, inspect and calibrate model bundles.
    #[command(subcommand)]
    Bundle(bundle::BundleCommand),
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        use clap::CommandFactory as _;
        Arguments::command().debug_assert();
    }
}
