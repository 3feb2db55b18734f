//! Structured logs on standard error. Nothing of a sample is ever logged.

use std::io::IsTerminal as _;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::util::SubscriberInitExt;

use super::config::{LogConfig, LogFormat};

/// Why logging cannot start: the filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("[log] level = `{level}` is not a log level or filter: {reason}")]
pub struct LogError {
    level: String,
    reason: String,
}

/// Starts logging. Under systemd the journal adds the time, so lines carry none.
pub(super) fn start(config: &LogConfig) -> Result<(), LogError> {
    let wrong = |reason: String| LogError { level: config.level.clone(), reason };
    let filter = EnvFilter::try_new(&config.level).map_err(|error| wrong(error.to_string()))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let started = match config.format {
        LogFormat::Json => builder.json().flatten_event(true).finish().try_init(),
        LogFormat::Text if in_journal => builder.without_time().with_ansi(false).finish().try_init(),
        LogFormat::Text => builder.with_target(false).with_ansi(std::io::stderr().is_terminal()).finish().try_init(),
    };
    started.map_err(|error| wrong(error.to_string()))
}
