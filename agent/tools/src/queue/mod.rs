//! `hedge-agent queue`: the outbox seen and mended by hand, on a running agent or a stopped one.

mod export;
pub(super) mod reach;
mod text;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context, bail};
use serde::Serialize;

use self::reach::Reach;
use hedge_agent::queue::{CHANGES_MAX, Changed, Id, LINES_MAX, Selection, Stage};
use hedge_config::Config;

#[derive(clap::Args)]
pub struct QueueArgs {
    /// The agent's configuration file: says where it listens and where its state lies.
    #[arg(long, global = true, env = "HEDGE_CONFIG", default_value = "/etc/hedge/agent.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// One JSON document instead of text.
    #[arg(long, global = true)]
    pub json: bool,
    #[command(subcommand)]
    pub command: QueueCommand,
}

#[derive(clap::Subcommand)]
pub enum QueueCommand {
    /// Show the first cases, in the order in which they are sent.
    List {
        /// Only cases that have come so far.
        #[arg(long)]
        stage: Option<Stage>,
        #[arg(long, default_value_t = 50, value_name = "N")]
        limit: usize,
    },
    /// Show everything about one case but its payload.
    Show { id: Id },
    /// Write each case's payload, and the rest of it as JSON, into a folder. The queue stays as it is.
    Export {
        dir: PathBuf,
        /// Only cases that have come so far.
        #[arg(long)]
        stage: Option<Stage>,
    },
    /// Let dead letters wait for the cloud again.
    Requeue {
        #[arg(required_unless_present = "all_dead")]
        ids: Vec<Id>,
        #[arg(long, conflicts_with = "ids")]
        all_dead: bool,
    },
    /// Delete cases: they are neither sent nor answered.
    Drop {
        #[arg(required_unless_present = "all_dead")]
        ids: Vec<Id>,
        /// Every dead letter.
        #[arg(long, conflicts_with = "ids")]
        all_dead: bool,
    },
    /// Read the whole log and report damage. Changes nothing.
    Check,
    /// Count cases and bytes.
    Stats,
}

/// Runs one command. Exits with 1 if something was not done, or `check` found damage.
pub async fn run(arguments: &QueueArgs, config: &Config) -> anyhow::Result<ExitCode> {
    if let QueueCommand::Check = arguments.command {
        let report = reach::check(config).await?;
        say(arguments, &report, text::check(&report))?;
        return Ok(exit_code(report.damaged == 0));
    }
    let reach = Reach::find(config).await?;
    let done = act(arguments, &reach).await;
    reach.close().await;
    done
}

async fn act(arguments: &QueueArgs, reach: &Reach) -> anyhow::Result<ExitCode> {
    match &arguments.command {
        QueueCommand::List { stage, limit } => {
            if *limit > LINES_MAX {
                bail!("--limit is at most {LINES_MAX}; `export` writes all cases");
            }
            let listing = reach.list(*stage, *limit).await?;
            say(arguments, &listing, text::listing(&listing))?;
        }
        QueueCommand::Show { id } => {
            let case = reach.show(*id).await?.with_context(|| no_case(*id))?;
            say(arguments, &case, text::case(&case))?;
        }
        QueueCommand::Export { dir, stage } => {
            let exported = export::run(reach, dir, *stage).await?;
            say(arguments, &exported, exported.text(dir))?;
            return Ok(exit_code(exported.problems.is_empty()));
        }
        QueueCommand::Requeue { ids, all_dead } => {
            let selection = Selection { ids: ids.clone(), all_dead: *all_dead };
            return changed(arguments, "waits again", reach.requeue(&selection).await?);
        }
        QueueCommand::Drop { ids, all_dead } => {
            let selection = Selection { ids: ids.clone(), all_dead: *all_dead };
            return changed(arguments, "dropped", reach.drop_cases(&selection).await?);
        }
        QueueCommand::Check => {}
        QueueCommand::Stats => {
            let stats = reach.stats().await?;
            say(arguments, &stats, text::stats(&stats))?;
        }
    }
    Ok(ExitCode::SUCCESS)
}

/// Counts and sizes, as JSON.
pub(super) async fn stats(config: &Config) -> anyhow::Result<String> {
    let reach = Reach::find(config).await?;
    let stats = reach.stats().await;
    reach.close().await;
    Ok(serde_json::to_string_pretty(&stats?)?)
}

fn changed(arguments: &QueueArgs, done: &str, changed: Vec<Changed>) -> anyhow::Result<ExitCode> {
    say(arguments, &changed, text::changed(done, &changed))?;
    if changed.len() == CHANGES_MAX {
        eprintln!("{CHANGES_MAX} cases are done; there may be more: run the command again");
    }
    Ok(exit_code(changed.iter().all(|case| case.problem.is_none())))
}

fn no_case(id: Id) -> String {
    format!("there is no case {id} in the outbox: it was answered, dropped, or never stored")
}

fn exit_code(fine: bool) -> ExitCode {
    if fine { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn say(arguments: &QueueArgs, document: &impl Serialize, text: String) -> anyhow::Result<()> {
    let text = if arguments.json { serde_json::to_string_pretty(document)? } else { text };
    match writeln!(std::io::stdout(), "{}", text.trim_end()) {
        // Whoever reads has seen enough: `… | head`.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => written.context("cannot write to standard output"),
    }
}
