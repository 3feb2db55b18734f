//! Structured logs on standard error. Nothing of a sample is ever logged.

use std::io::IsTerminal as _;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use super::config::{LogConfig, LogFormat};

/// Why logging cannot start, or not go on like this: the filter is not one.
#[derive(Debug, thiserror::Error)]
#[error("[log] level = `{level}` is not a log level or filter: {reason}")]
pub struct LogError {
    level: String,
    reason: String,
}

/// Changes what is logged while the agent runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogLevel(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogLevel {
    /// Whether `level` is one.
    pub(crate) fn check(level: &str) -> Result<(), LogError> {
        filter(level).map(drop)
    }

    pub(crate) fn set(&self, level: &str) -> Result<(), LogError> {
        (self.0)(filter(level)?).map_err(|error| LogError { level: level.to_owned(), reason: error.to_string() })
    }
}

/// Starts logging. Under systemd the journal adds the time, so lines carry none.
pub(super) fn start(config: &LogConfig) -> Result<LogLevel, LogError> {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    // Three types of subscriber, one handle.
    macro_rules! started {
        ($builder:expr) => {{
            let builder = $builder.with_env_filter(filter(&config.level)?).with_filter_reloading();
            let handle = builder.reload_handle();
            builder
                .finish()
                .try_init()
                .map_err(|error| LogError { level: config.level.clone(), reason: error.to_string() })?;
            LogLevel(Arc::new(move |filter| handle.reload(filter)))
        }};
    }
    Ok(match config.format {
        LogFormat::Json => started!(builder.json().flatten_event(true)),
        LogFormat::Text if in_journal => started!(builder.without_time().with_ansi(false)),
        LogFormat::Text => started!(builder.with_target(false).with_ansi(std::io::stderr().is_terminal())),
    })
}

fn filter(level: &str) -> Result<EnvFilter, LogError> {
    // The library takes any word for a part of the program, and a misspelt level would silence everything.
    let misspelt = level.split(',').find(|part| !part.contains('=') && part.trim().parse::<LevelFilter>().is_err());
    if let Some(part) = misspelt {
        let reason = format!("`{}` is not off, error, warn, info, debug, trace or PART=LEVEL", part.trim());
        return Err(LogError { level: level.to_owned(), reason });
    }
    EnvFilter::try_new(level).map_err(|error| LogError { level: level.to_owned(), reason: error.to_string() })
}
