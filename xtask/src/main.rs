//! The project's commands: `cargo xtask demo | test | check | bench | compress | retrain | sim | soak | package | emulate`.
//!
//! Each has a module of its own. What they share with the tests (starting programs, breaking links, counting)
//! is in `hedge-tests`.
#![expect(clippy::print_stdout, reason = "commands talk to the person who typed them")]

mod bench;
mod build;
mod camera;
mod check;
mod command;
mod compress;
mod demo;
mod emulate;
mod node;
mod onnxruntime;
mod package;
mod python;
mod retrain;
mod rooms;
mod sim;
mod soak;
mod sources;
mod test;
mod tree;
mod unused;
mod wire;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Shows, tests and checks Hedge.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask", disable_help_subcommand = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Starts a broker, a cloud and three devices on this machine, cuts a link, and counts what arrived.
    Demo(demo::Arguments),
    /// Runs all tests, the end-to-end ones over the real programs.
    Test(test::Arguments),
    /// Format, lints, docs, dependency policy, unit files: everything but the tests.
    Check,
    /// Runs one test file for longer, or again with the chance of a failed run.
    Soak(soak::Arguments),
    /// Measures a part; the last line is JSON.
    Bench(bench::Arguments),
    /// Makes the Debian packages, for this processor or another, and an apt repository around them.
    Package(package::Arguments),
    /// Runs tests with the arm64 programs and library, under qemu.
    Emulate(emulate::Arguments),
    /// Makes smaller bundles of one and measures them side by side: INT8, FP16, pruned, smaller pictures, a student.
    Compress(Box<compress::Arguments>),
    /// Has devices ask about pictures they doubt, retrains their model with the verdicts, and measures it before and after.
    Retrain(retrain::Arguments),
    /// Runs the device's engine through worlds made from seeds, and says which seed breaks a promise.
    Sim(sim::Arguments),
    /// Has this version's programs say one message of each kind, and writes them to tests/wire for later versions to read.
    Wire,
    /// Writes the pictures of a folder to standard output over and over, as a camera would.
    #[command(hide = true)]
    Camera(camera::Arguments),
}

fn main() -> ExitCode {
    let outcome = match Arguments::parse().command {
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Test(arguments) => test::run(&arguments),
        Command::Check => check::run(),
        Command::Soak(arguments) => soak::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Package(arguments) => package::run(&arguments),
        Command::Emulate(arguments) => emulate::run(&arguments),
        Command::Compress(arguments) => compress::run(&arguments),
        Command::Retrain(arguments) => retrain::run(&arguments),
        Command::Sim(arguments) => sim::run(&arguments),
        Command::Wire => wire::run(),
        Command::Camera(arguments) => camera::run(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}
