//! `hedge-agent`: see `--help`.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;
use clap::{Parser, Subcommand};
use hedge_agent::commands;
use hedge_agent::daemon::config::{Config, ConfigError};
use hedge_agent::daemon::{self, StartError};

/// Answers on the device when the model is sure, asks the cloud when it is not, loses nothing while the link
/// is down.
#[derive(Parser)]
#[command(version, max_term_width = 100, after_help = "Exit codes: 0 done, 1 failed, 2 wrong usage or configuration.")]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the daemon until SIGTERM.
    Run(ConfigArgument),
    /// Answer picture files once with a model bundle and explain each decision.
    Infer(commands::infer::InferArgs),
    /// Check the configuration, the ONNX Runtime library and every model, and say what to do.
    Check(ConfigArgument),
    /// Enrol this device with a pairing code of `hedge-cloud`, and write what it needs to run.
    Setup(commands::setup::SetupArgs),
    /// See and mend the queue of cases, whether the agent runs or not.
    Queue(commands::queue::QueueArgs),
    /// Make, inspect and calibrate model bundles.
    #[command(subcommand)]
    Bundle(commands::bundle::BundleCommand),
}

#[derive(clap::Args)]
struct ConfigArgument {
    /// The configuration file. Any value in it outside [[model]] and [[source]] can be overridden from the
    /// environment: HEDGE_BROKER__URL is `url` in [broker].
    #[arg(long, env = "HEDGE_CONFIG", default_value = "/etc/hedge/agent.toml", value_name = "FILE")]
    config: PathBuf,
}

impl ConfigArgument {
    fn load(&self) -> Result<Config, ConfigError> {
        Config::load(&self.config, std::env::vars())
    }
}

fn main() -> ExitCode {
    hedge_inference::probe_if_asked();
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        return fail(&anyhow::anyhow!("another TLS provider was installed first"));
    }
    match act(Arguments::parse().command) {
        Ok(code) => code,
        Err(error) => fail(&error),
    }
}

fn act(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(argument) => {
            let config = argument.load()?;
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .context("starting the runtime")?;
            runtime.block_on(daemon::run(config))?;
            // A blocking read that hangs must not hold up the exit.
            runtime.shutdown_background();
            Ok(ExitCode::SUCCESS)
        }
        Command::Queue(arguments) => {
            let config = Config::load(&arguments.config, std::env::vars())?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("starting the runtime")?.block_on(commands::queue::run(&arguments, &config))
        }
        Command::Setup(arguments) => {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
            runtime.context("starting the runtime")?.block_on(commands::setup::run(&arguments))
        }
        Command::Infer(arguments) => commands::infer::run(&arguments),
        Command::Check(argument) => commands::check::run(&argument.load()?),
        Command::Bundle(command) => commands::bundle::run(&command),
    }
}

/// Two are enough: the work is in the model threads, the log thread and the kernel.
const WORKERS: usize = 2;

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("hedge-agent: {error}");
    let wrong_configuration = error.is::<ConfigError>()
        || matches!(error.downcast_ref(), Some(StartError::Config(_) | StartError::Log(_) | StartError::Identity(_)));
    ExitCode::from(if wrong_configuration { 2 } else { 1 })
}
