//! `hedge-agent settings reset`: the way out when nothing can be set from afar any more. Asks a running agent, or writes
//! the state of a stopped one.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use hedge_core::clock::Moment;

use super::queue::reach::{cannot_open, check_owner, outbox_dir};
use super::running;
use hedge_agent::audit::Audit;
use hedge_agent::clock::Clock;
use hedge_agent::control::Reset;
use hedge_agent::state::StateFile;
use hedge_config::Config;
use hedge_outbox::Outbox;

/// What is done with the settings.
#[derive(Debug, clap::Subcommand)]
pub enum SettingsCommand {
    /// Remove all remote settings: only the local file counts, and versions start again. Noted in the audit log.
    Reset(ResetArgs),
}

#[derive(Debug, clap::Args)]
pub struct ResetArgs {
    /// The configuration file; it says where the agent listens and where the state folder is.
    #[arg(long, env = "HEDGE_CONFIG", default_value = "/etc/hedge/agent.toml", value_name = "FILE")]
    config: PathBuf,
}

pub async fn run(command: &SettingsCommand) -> anyhow::Result<ExitCode> {
    let SettingsCommand::Reset(args) = command;
    let config = Config::load(&args.config, std::env::vars())?;
    let Reset { version } = match running(&config).await {
        Some(client) => client.post("/v1/settings/reset", b"{}".to_vec()).await?,
        None => stopped(&config).await?,
    };
    let text = match version {
        Some(version) => format!(
            "version {version} is out of force; the local file alone counts. The next document may have any version \
             but this one. The broker may still hold it; an empty retained message on down/desired takes it back."
        ),
        None => "no remote settings were in force; versions start again".to_owned(),
    };
    writeln!(std::io::stdout(), "{text}")?;
    Ok(ExitCode::SUCCESS)
}

/// The outbox's lock says that no agent runs, and keeps one from starting meanwhile.
async fn stopped(config: &Config) -> anyhow::Result<Reset> {
    let dir = outbox_dir(config)?;
    check_owner(&dir)?;
    let opened = Outbox::open(&dir, config.outbox.limits());
    let (outbox, report) = opened.map_err(|error| cannot_open(config, error))?;
    let (mut state, lost) = StateFile::open(&config.state_dir)?;
    if let Some(lost) = lost {
        eprintln!("hedge-agent: {lost}");
    }
    let clock = Clock::resume(&state.state().clock, report.clock.unwrap_or(Moment(0)));
    let mut settings = state.state().settings.clone();
    let (version, entry) = settings.reset();
    state.commit(|state| state.settings = settings)?;
    Audit::new(&config.state_dir, clock).note(entry).await;
    outbox.close().await;
    Ok(Reset { version })
}
