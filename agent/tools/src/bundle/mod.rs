//! `hedge-agent bundle`: make, look at and calibrate model bundles.

mod calibrate;
mod calibration;
mod detector;
mod draft;
mod init;
mod inspect;
mod preprocessing;
mod trial;

use std::process::ExitCode;

pub use calibrate::CalibrateArgs;
pub use draft::Size;
pub use init::{InitArgs, Preset};
pub use inspect::InspectArgs;

/// Make, look at and calibrate model bundles.
#[derive(Debug, clap::Subcommand)]
pub enum BundleCommand {
    Init(Box<InitArgs>),
    Inspect(InspectArgs),
    Calibrate(CalibrateArgs),
}

/// Runs one of them and prints to standard output.
pub fn run(command: &BundleCommand) -> anyhow::Result<ExitCode> {
    write_outcome(command, &mut std::io::stdout().lock())
}

/// Like [`run`], into any writer.
pub fn write_outcome(command: &BundleCommand, out: &mut impl std::io::Write) -> anyhow::Result<ExitCode> {
    match command {
        BundleCommand::Init(args) => init::write(args, out),
        BundleCommand::Inspect(args) => inspect::write(args, out),
        BundleCommand::Calibrate(args) => calibrate::write(args, out),
    }
}
