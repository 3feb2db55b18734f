//! hedge-cloud: reads the command line, does what it says, and says by its exit code how it ended.

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{CommandFactory, Parser};
use hedge_cloud::args::{Cli, Command};
use hedge_cloud::fleet::cli;
use hedge_cloud::{ca, check, quickstart, serve};
use hedge_config::LogFormat;
use hedge_proto::in_one_line;
use tracing_subscriber::EnvFilter;

/// Something failed while serving; some device is not as it was meant to be.
const FAILED: u8 = 1;
/// Could not start: a file, an address, a model, the records. (2, a wrong command line, is clap's.)
const NOT_STARTED: u8 = 3;

fn main() -> ExitCode {
    if rustls::crypto::ring::default_provider().install_default().is_err() {
        tracing::debug!("a TLS provider was there already");
    }
    hedge_inference::probe_if_asked();
    match Cli::parse().command {
        Command::Serve(args) => {
            log_to_stderr(args.log_format, "info");
            ended(serve::run(&args, ""))
        }
        Command::Quickstart(args) => {
            log_to_stderr(LogFormat::Text, "info");
            ended(quickstart::run(&args))
        }
        Command::Check(args) => all_well(|| check::run(&args)),
        Command::Export(args) => {
            log_to_stderr(LogFormat::Text, "warn");
            match hedge_cloud::export::cli::run(&args) {
                Ok(said) => {
                    eprintln!("{said}");
                    ExitCode::SUCCESS
                }
                Err(error) => failed(&error, FAILED),
            }
        }
        Command::Ca(args) => {
            log_to_stderr(LogFormat::Text, "info");
            ended(ca::run(&args).map_err(serve::ServeError::Run))
        }
        Command::Device(args) => all_well(|| cli::run(&args)),
        Command::Delete(args) => say(hedge_cloud::fleet::delete::run(&args)),
        Command::User(args) => say(hedge_cloud::access::cli::run(&args)),
        Command::Audit(args) => say(hedge_cloud::access::audit::run(&args)),
        Command::Bundle(args) => {
            log_to_stderr(LogFormat::Text, "warn");
            say(hedge_cloud::bundle::cli::run(&args))
        }
        Command::Answer(args) => {
            log_to_stderr(LogFormat::Text, "warn");
            ended(serve::answer(&args).map_err(serve::ServeError::Run))
        }
        Command::Completions { shell } => {
            clap_complete::generate(shell, &mut Cli::command(), "hedge-cloud", &mut std::io::stdout());
            ExitCode::SUCCESS
        }
    }
}

fn ended(outcome: Result<(), serve::ServeError>) -> ExitCode {
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(serve::ServeError::Start(error)) => {
            tracing::error!("not started: {}", in_one_line(&*error));
            ExitCode::from(NOT_STARTED)
        }
        Err(serve::ServeError::Run(error)) => {
            tracing::error!("stopped: {}", in_one_line(&*error));
            ExitCode::from(FAILED)
        }
    }
}

fn all_well(run: impl FnOnce() -> anyhow::Result<bool>) -> ExitCode {
    log_to_stderr(LogFormat::Text, "warn");
    match run() {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::from(FAILED),
        Err(error) => failed(&error, NOT_STARTED),
    }
}

fn failed(error: &anyhow::Error, code: u8) -> ExitCode {
    eprintln!("hedge-cloud: {}", in_one_line(&**error));
    ExitCode::from(code)
}

#[expect(clippy::print_stdout, reason = "a command's result goes to standard output")]
fn say(ran: anyhow::Result<String>) -> ExitCode {
    match ran {
        Ok(said) => {
            println!("{said}");
            ExitCode::SUCCESS
        }
        Err(error) => failed(&error, FAILED),
    }
}

fn log_to_stderr(format: LogFormat, level: &str) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => logs.with_target(false).with_ansi(std::io::stderr().is_terminal()).init(),
        LogFormat::Json => logs.json().init(),
    }
}
