//! `hedge-agent check`: looks at everything a device needs, and says what to do about what is missing.
//!
//! It disturbs nothing: beside a running agent it connects under a client id of its own, publishes an empty question
//! and subscribes for a moment. Nothing secret is printed: files are named, not shown.

mod broker;
mod closer;
mod host;
mod report;
mod tls;

use std::process::ExitCode;

use hedge_inference::Runtime;

use self::report::Report;
use crate::arguments::ConfigArgument;
use crate::commands::running;
use crate::daemon::config::{Config, Starting};

/// What `check` takes.
#[derive(clap::Args)]
#[command(
    after_help = "Exit codes: 0 all is well, or only warnings; 1 something failed; 2 the configuration is wrong."
)]
pub struct CheckArgs {
    #[command(flatten)]
    pub config: ConfigArgument,
    /// Print one JSON document instead of lines: `outcome` is the worst of `checks`.
    #[arg(long)]
    pub json: bool,
    /// Leave the broker alone: nothing is sent from this device.
    #[arg(long)]
    pub offline: bool,
}

/// Looks at everything and prints what was found.
pub async fn run(args: &CheckArgs) -> anyhow::Result<ExitCode> {
    let (report, readable) = look(args).await;
    report.print(args.json);
    Ok(match (readable, report.has_failed()) {
        (false, _) => ExitCode::from(2),
        (true, true) => ExitCode::FAILURE,
        (true, false) => ExitCode::SUCCESS,
    })
}

/// Everything that was found, and whether the configuration file could be read at all.
pub(super) async fn look(args: &CheckArgs) -> (Report, bool) {
    let starting = Starting::load(&args.config.config, &std::env::vars().collect::<Vec<_>>());
    let config = &starting.file.config;
    let mut report = Report::default();
    let readable = starting.fault.is_none();
    match &starting.fault {
        None => report.ok("configuration", host::summary(config)),
        Some(fault) => {
            let advice = format!("put {} right; what follows is checked without it", args.config.config.display());
            report.failed("configuration", fault, advice);
        }
    }
    let agent = running(config).await;
    let status = host::agent(&mut report, agent.as_ref()).await;
    host::clock(&mut report).await;
    host::state_folder(&mut report, config);
    host::keys(&mut report, config);
    host::sources(&mut report, config);
    host::privacy(&mut report, config, status.as_ref());
    models(&mut report, config);
    if !args.offline {
        broker::check(&mut report, config, status.as_ref()).await;
    }
    (report, readable)
}

fn models(report: &mut Report, config: &Config) {
    match Runtime::find(config.runtime.library.as_deref()) {
        Ok(runtime) => {
            report.ok("ONNX Runtime", format!("{} at {}", runtime.version(), runtime.path().display()));
            for model in &config.models {
                host::model(report, &runtime, model);
            }
        }
        Err(error) => report.failed("ONNX Runtime", error, "install the package `hedge-onnxruntime`, or do as it says"),
    }
}
