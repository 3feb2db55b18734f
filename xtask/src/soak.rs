//! Runs one file of `tests/tests` for longer than CI has time for, or again with the chance of a failed run.

use anyhow::{Result, ensure};
use hedge_tests::places;

use crate::{build, command, onnxruntime};

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// A file of `tests/tests`, without `.rs`
    name: String,
    /// How many rounds; the file says what a round is. The default is CI's share
    #[arg(long)]
    rounds: Option<u32>,
    /// The seed that a failed run printed
    #[arg(long)]
    seed: Option<u64>,
    /// Only tests of the file whose name contains this
    #[arg(long)]
    only: Option<String>,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let file = places::root().join("tests/tests").join(&arguments.name).with_extension("rs");
    ensure!(file.is_file(), "there is no {}", file.display());
    let library = onnxruntime::library()?;
    let programs = build::programs()?;
    // Not under nextest, which ends tests that take long.
    let mut test = command::cargo(&["test", "--quiet", "--package", "hedge-tests", "--test", &arguments.name, "--"]);
    test.arg("--nocapture").args(&arguments.only);
    test.env("ORT_DYLIB_PATH", library).env("HEDGETEST_PROGRAMS", programs);
    if let Some(rounds) = arguments.rounds {
        test.env("HEDGETEST_ROUNDS", rounds.to_string());
    }
    if let Some(seed) = arguments.seed {
        test.env("HEDGETEST_SEED", seed.to_string());
    }
    command::run(&mut test)
}
