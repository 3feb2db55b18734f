//! `hedge-agent log settings`: who changed or commanded what. Reads the audit log of a running agent or a stopped one.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

use hedge_agent::audit::{self, Line};
use hedge_config::Config;

/// What is logged.
#[derive(Debug, clap::Subcommand)]
pub enum LogCommand {
    /// Show who changed settings or gave commands, when, and what became of it; the newest last.
    Settings(SettingsLogArgs),
}

#[derive(Debug, clap::Args)]
pub struct SettingsLogArgs {
    /// The configuration file; it says where the state folder is.
    #[arg(long, env = "HEDGE_CONFIG", default_value = "/etc/hedge/agent.toml", value_name = "FILE")]
    config: PathBuf,
    /// How many entries to show.
    #[arg(long, default_value_t = 50, value_name = "N")]
    last: usize,
    /// One JSON object a line, as they stand in the file.
    #[arg(long)]
    json: bool,
}

pub fn run(command: &LogCommand) -> anyhow::Result<ExitCode> {
    let LogCommand::Settings(args) = command;
    let config = Config::load(&args.config, std::env::vars())?;
    let (lines, unreadable) = audit::read(&config.state_dir, args.last)
        .with_context(|| format!("cannot read the audit log in {}", config.state_dir.display()))?;
    let mut out = std::io::stdout().lock();
    for line in &lines {
        if args.json {
            writeln!(out, "{}", serde_json::to_string(line)?)?;
        } else {
            writeln!(out, "{}", text(line))?;
        }
    }
    if lines.is_empty() && !args.json {
        writeln!(out, "nothing was changed or commanded yet")?;
    }
    if unreadable > 0 {
        eprintln!("hedge-agent: {unreadable} lines of the audit log cannot be read");
    }
    Ok(ExitCode::SUCCESS)
}

/// `2026-11-25T14:36:05Z  command  pause  done  by ana  id=7`; `?` behind a time whose clock was not set.
fn text(line: &Line) -> String {
    let at = line.at.as_deref().unwrap_or("at an unknown time");
    let entry = &line.entry;
    let mut text = format!(
        "{at}{}  {}  {}  {}  by {}",
        if line.synced { "" } else { "?" },
        hedge_proto::word(&entry.kind),
        entry.what,
        entry.outcome,
        entry.by.as_deref().unwrap_or("unknown"),
    );
    let (id, reason) =
        (entry.id.as_ref().map(|id| format!("  id={id}")), entry.reason.as_ref().map(|why| format!("  {why}")));
    text.extend(id.into_iter().chain(reason));
    for (name, value) in [("before", &entry.before), ("after", &entry.after)] {
        if !value.is_null() {
            text.push_str(&format!("  {name}={value}"));
        }
    }
    text
}
