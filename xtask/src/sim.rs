//! Runs the simulation: the device's engine in worlds made from seeds.

use anyhow::{Result, bail};
use hedge_tests::sim;

#[derive(clap::Args)]
pub(crate) struct Arguments {
    /// How many worlds.
    #[arg(long, default_value_t = 2_000)]
    seeds: u64,
    /// The seed of the first; the others follow it.
    #[arg(long, default_value_t = 1)]
    first_seed: u64,
    /// Prints each step to standard error. For one seed.
    #[arg(long)]
    trace: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let Arguments { seeds, first_seed, trace } = *arguments;
    if trace && seeds == 1 {
        return match sim::explain(first_seed, None, true) {
            Ok(summary) => {
                println!("seed {first_seed}: everything holds. {summary:?}");
                Ok(())
            }
            Err(failure) => bail!("{:?}", failure.broken),
        };
    }
    let report = sim::sweep(first_seed, seeds, threads(), None);
    let sim::Summary { steps, virtual_s, cases, payloads } = report.total;
    println!(
        "{} worlds in {:.1} s, {:.0} a second: {cases} cases, {payloads} payloads sent, {steps} steps, {} virtual days",
        report.seeds,
        report.took.as_secs_f64(),
        report.seeds_per_s(),
        virtual_s / 86_400,
    );
    match report.failure {
        None => Ok(()),
        Some(failure) => {
            println!("{failure}");
            bail!("seed {} fails", failure.seed)
        }
    }
}

fn threads() -> usize {
    std::thread::available_parallelism().map_or(2, usize::from)
}
