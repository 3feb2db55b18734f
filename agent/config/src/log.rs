//! `[log]`: how much is logged, and how a line looks.

use serde::Deserialize;
use tracing_subscriber::filter::{LevelFilter, Targets};

#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct LogConfig {
    /// `error`, `warn`, `info`, `debug`, or a filter such as `info,hedge_agent::uplink=debug`.
    pub level: String,
    pub format: LogFormat,
}

impl Default for LogConfig {
    fn default() -> Self {
        Self { level: "info".into(), format: LogFormat::Text }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum LogFormat {
    Text,
    Json,
}

/// Why logging cannot start, or not go on like this: the filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("[log] level = `{level}` is not a log level or filter: {reason}")]
pub struct LogError {
    level: String,
    reason: String,
}

impl LogError {
    pub fn new(level: &str, reason: &dyn std::fmt::Display) -> Self {
        Self { level: level.to_owned(), reason: reason.to_string() }
    }
}

/// What `[log] level` means.
pub fn log_filter(level: &str) -> Result<Targets, LogError> {
    // The library takes any word for a part of the program, and a misspelt level would silence everything.
    let misspelt = level.split(',').find(|part| !part.contains('=') && part.trim().parse::<LevelFilter>().is_err());
    if let Some(part) = misspelt {
        let reason = format!("`{}` is not off, error, warn, info, debug, trace or PART=LEVEL", part.trim());
        return Err(LogError::new(level, &reason));
    }
    level.parse::<Targets>().map_err(|error| LogError::new(level, &error))
}
