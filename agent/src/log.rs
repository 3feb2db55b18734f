//! Structured logs on standard error. Nothing of a sample is ever logged.

use std::io::IsTerminal as _;

use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{Layer as _, Registry, fmt, registry, reload};

use hedge_config::{LogConfig, LogError, LogFormat, log_filter};

/// Changes what is logged while the agent runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogLevel(reload::Handle<Targets, Registry>);

impl LogLevel {
    pub(crate) fn set(&self, level: &str) -> Result<(), LogError> {
        self.0.reload(log_filter(level)?).map_err(|error| LogError::new(level, &error))
    }
}

/// Starts logging. Under systemd the journal adds the time, so lines carry none.
pub(crate) fn start(config: &LogConfig) -> Result<LogLevel, LogError> {
    let (filter, handle) = reload::Layer::new(log_filter(&config.level)?);
    let lines = fmt::layer().with_writer(std::io::stderr);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let lines = match config.format {
        LogFormat::Json => lines.json().flatten_event(true).boxed(),
        LogFormat::Text if in_journal => lines.without_time().with_ansi(false).boxed(),
        LogFormat::Text => lines.with_target(false).with_ansi(std::io::stderr().is_terminal()).boxed(),
    };
    let started = registry().with(filter).with(lines).try_init();
    started.map_err(|error| LogError::new(&config.level, &error))?;
    Ok(LogLevel(handle))
}
