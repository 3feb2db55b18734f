//! `hedge-agent bundle`: make, look at, calibrate and compare model bundles, and take signed ones from afar.

mod calibrate;
mod calibration;
mod compare;
mod confine;
mod derive;
mod detector;
mod draft;
mod fetch;
mod init;
mod inspect;
mod pace;
mod part;
mod preprocessing;
mod proof;
mod registry;
mod tensors;
mod trial;
mod update;

use std::process::ExitCode;

use hedge_core::release::shelf::Shelf;

pub use calibrate::CalibrateArgs;
pub use compare::CompareArgs;
pub use derive::DeriveArgs;
pub use draft::Size;
pub use init::{InitArgs, Preset};
pub use inspect::InspectArgs;
pub use proof::ProveArgs;
pub use tensors::TensorsArgs;
pub use update::{ShelfArgs, UpdateArgs};

/// Make, look at, calibrate and compare model bundles; fetch signed ones.
#[derive(Debug, clap::Subcommand)]
pub enum BundleCommand {
    Init(Box<InitArgs>),
    Inspect(InspectArgs),
    Calibrate(CalibrateArgs),
    Compare(CompareArgs),
    Derive(DeriveArgs),
    Tensors(TensorsArgs),
    Update(Box<UpdateArgs>),
    /// Make the candidate the bundle that is run, from the agent's next reload on
    Promote(ShelfArgs),
    /// Run the bundle before the current one again, from the agent's next reload on
    Back(ShelfArgs),
    #[command(name = proof::COMMAND, hide = true)]
    Prove(ProveArgs),
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
        BundleCommand::Compare(args) => compare::write(args, out),
        BundleCommand::Derive(args) => derive::write(args, out),
        BundleCommand::Tensors(args) => tensors::write(args, out),
        BundleCommand::Update(args) => update::update(args, out),
        BundleCommand::Promote(args) => update::turn(args, "promoted", Shelf::promote_candidate, out),
        BundleCommand::Back(args) => update::turn(args, "back", Shelf::back_by_hand, out),
        BundleCommand::Prove(args) => proof::write(args, out),
    }
}
