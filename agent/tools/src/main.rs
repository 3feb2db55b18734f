//! `hedge-agent`: see `--help`.

use std::io::Write as _;
use std::os::unix::process::CommandExt as _;
use std::process::ExitCode;

use anyhow::Context;
use clap::Parser as _;
use hedge_agent::daemon::{self, Ending, StartError};
use hedge_agent::restart;
use hedge_config::{Config, ConfigError, Starting};
use hedge_tools::arguments::{Arguments, Command};
use hedge_tools::{bench, bundle, check, feed, infer, log, queue, settings, setup, support};

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
            let starting = Starting::load(&argument.config, &std::env::vars().collect::<Vec<_>>());
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(WORKERS)
                .enable_all()
                .build()
                .context("starting the runtime")?;
            let ending = runtime.block_on(daemon::run(starting))?;
            // A blocking read that hangs must not hold up the exit.
            runtime.shutdown_background();
            match ending {
                Ending::Stop => Ok(ExitCode::SUCCESS),
                Ending::Restart => become_anew(),
            }
        }
        Command::Queue(arguments) => {
            let config = Config::load(&arguments.config, std::env::vars())?;
            alone(queue::run(&arguments, &config))
        }
        Command::Setup(arguments) => alone(setup::run(&arguments)),
        Command::Settings(command) => alone(settings::run(&command)),
        Command::Log(command) => log::run(&command),
        Command::Feed(arguments) => alone(feed::run(arguments)),
        Command::Infer(arguments) => infer::run(&arguments),
        Command::Check(arguments) => alone(check::run(&arguments)),
        Command::Support(arguments) => alone(support::run(&arguments)),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Schema => {
            // A reader that has seen enough is no failure.
            drop(std::io::stdout().write_all(hedge_proto::SETTINGS_SCHEMA.as_bytes()));
            Ok(ExitCode::SUCCESS)
        }
        Command::Bundle(command) => bundle::run(&command),
    }
}

/// Runs a command on this thread.
fn alone(command: impl Future<Output = anyhow::Result<ExitCode>>) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    runtime.context("starting the runtime")?.block_on(command)
}

/// The same process runs the program from its beginning, so a restart needs nobody outside. Files are closed by it.
fn become_anew() -> anyhow::Result<ExitCode> {
    let program = restart::program().context("this process does not know its own program")?;
    let error = std::process::Command::new(&program).args(std::env::args_os().skip(1)).exec();
    Err(error).with_context(|| format!("cannot start {} again", program.display()))
}

/// Two are enough: the work is in the model threads, the log thread and the kernel.
const WORKERS: usize = 2;

fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("hedge-agent: {}", hedge_proto::in_one_line(&**error));
    let wrong_configuration = error.is::<ConfigError>() || matches!(error.downcast_ref(), Some(StartError::Log(_)));
    ExitCode::from(if wrong_configuration { 2 } else { 1 })
}
