//! Structured logs on standard error. Nothing of a sample is ever logged.

use std::io::IsTerminal as _;
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::reload;
use tracing_subscriber::util::SubscriberInitExt;

use hedge_config::{LogConfig, LogError, LogFormat, log_filter};

/// Changes what is logged while the agent runs. Cheap to clone.
#[derive(Clone)]
pub(crate) struct LogLevel(Arc<dyn Fn(EnvFilter) -> Result<(), reload::Error> + Send + Sync>);

impl LogLevel {
    pub(crate) fn set(&self, level: &str) -> Result<(), LogError> {
        (self.0)(log_filter(level)?).map_err(|error| LogError::new(level, &error))
    }
}

/// Starts logging. Under systemd the journal adds the time, so lines carry none.
pub(crate) fn start(config: &LogConfig) -> Result<LogLevel, LogError> {
    let builder = tracing_subscriber::fmt().with_writer(std::io::stderr);
    let in_journal = std::env::var_os("JOURNAL_STREAM").is_some();
    // Three types of subscriber, one handle.
    macro_rules! started {
        ($builder:expr) => {{
            let builder = $builder.with_env_filter(log_filter(&config.level)?).with_filter_reloading();
            let handle = builder.reload_handle();
            builder.finish().try_init().map_err(|error| LogError::new(&config.level, &error))?;
            LogLevel(Arc::new(move |filter| handle.reload(filter)))
        }};
    }
    Ok(match config.format {
        LogFormat::Json => started!(builder.json().flatten_event(true)),
        LogFormat::Text if in_journal => started!(builder.without_time().with_ansi(false)),
        LogFormat::Text => started!(builder.with_target(false).with_ansi(std::io::stderr().is_terminal())),
    })
}
