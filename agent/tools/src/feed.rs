//! `hedge-agent feed`: hands the pictures that another program writes to a running agent.
//!
//! A camera so stands in a service of its own, with the devices it needs, and the agent keeps its sandbox. The
//! program is started again when it ends, as a source of kind `command` would be; what there is to know is said on
//! standard error and to systemd.

use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Context;
use axum::http::StatusCode;
use hedge_proto::{Answer, Name};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use super::client::{AskError, Client};
use hedge_agent::capture::{Source, Taker, command};
use hedge_agent::daemon::notify;
use hedge_agent::sample::{NewSample, SampleError};
use hedge_config::{FormatName, HttpConfig, Listen, Quiet, StreamFormat, Window};

/// Hand the pictures another program writes to a running agent
#[derive(Debug, clap::Args)]
pub struct FeedArgs {
    /// Where the agent listens: unix:/path or a loopback address
    #[arg(long, value_name = "ADDR", default_value = "unix:/run/hedge/agent.sock", value_parser = listen)]
    pub to: Listen,
    /// The agent's source of kind `http` that the pictures belong to
    #[arg(long, value_name = "NAME")]
    pub source: Name,
    /// How the pictures follow each other
    #[arg(long, default_value = "mjpeg")]
    pub format: FormatName,
    /// Which windows of sound or rows are samples, as in the configuration: "rate = 8000, ms = 1000"
    #[arg(long, value_name = "WINDOW", value_parser = window)]
    pub window: Option<Window>,
    /// At most one picture in this number of milliseconds; the newest wins
    #[arg(long, value_name = "MS", default_value_t = 1000)]
    pub interval_ms: u64,
    /// The program and its arguments, after `--`
    #[arg(required = true, last = true, value_name = "COMMAND")]
    pub command: Vec<String>,
}

fn listen(text: &str) -> Result<Listen, String> {
    Listen::try_from(text.to_owned())
}

fn window(text: &str) -> Result<Window, String> {
    toml::from_str(&text.replace(',', "\n")).map_err(|error| error.message().to_owned())
}

/// Runs until SIGTERM.
pub async fn run(arguments: FeedArgs) -> anyhow::Result<ExitCode> {
    let format = StreamFormat::new(arguments.format, arguments.window).map_err(anyhow::Error::msg)?;
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let agent = Arc::new(Agent { client: Client::new(&arguments.to), answered: AtomicU64::new(0) });
    let source = Source {
        name: arguments.source,
        interval: Some(Duration::from_millis(arguments.interval_ms)),
        quiet: Some(Quiet::of_command(Some(Duration::from_millis(arguments.interval_ms)))),
        sample_bytes_max: usize::try_from(HttpConfig::default().body_bytes_max).unwrap_or(usize::MAX),
        intake: agent.clone(),
    };
    notify::ready();
    let mut feeding = tokio::spawn(command::run(source, arguments.command, format, stop.clone()));
    tokio::select! {
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
        ended = &mut feeding => ended.context("the feeding ended by itself")?,
    }
    notify::stopping();
    stop.cancel();
    if !feeding.is_finished() {
        feeding.await.context("the feeding ended badly")?;
    }
    eprintln!("{} pictures were answered", agent.answered.load(Ordering::Relaxed));
    Ok(ExitCode::SUCCESS)
}

/// The agent behind its socket.
struct Agent {
    client: Client,
    answered: AtomicU64,
}

impl Taker for Agent {
    async fn answer(&self, sample: NewSample) -> Result<Arc<Answer>, SampleError> {
        let path = format!("/v1/samples?source={}", sample.source);
        let answer = self.client.sample(&path, &sample.content_type.to_header(), sample.bytes).await;
        self.answered.fetch_add(u64::from(answer.is_ok()), Ordering::Relaxed);
        answer.map(Arc::new).map_err(refusal)
    }

    fn set_source_state(&self, _: &Name, state: String) {
        notify::say(&state);
        eprintln!("{state}");
    }

    /// The agent has nobody to tell: pictures that were passed over never reached it.
    fn count_skipped(&self, _: &Name, _: u64) {}
}

/// Only what is wrong with the picture itself is not tried again.
fn refusal(error: AskError) -> SampleError {
    match error {
        AskError::Refused { status: StatusCode::UNPROCESSABLE_ENTITY | StatusCode::PAYLOAD_TOO_LARGE, message } => {
            SampleError::Unusable(message)
        }
        other => SampleError::Unreachable(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hedge_agent::capture::passes;

    #[test]
    fn a_window_is_said_as_in_the_configuration() {
        let said = window("rate = 8000, ms = 1000, hop_ms = 500").expect("valid");
        let expected = hedge_config::PcmWindow { rate: 8000, channels: 1, samples: 8000, hop: 4000 };
        assert_eq!(StreamFormat::new(FormatName::Pcm, Some(said)), Ok(StreamFormat::Pcm(expected)));
        assert!(window("rate: 8000").is_err() && window("rates = 8000").is_err());
    }

    #[test]
    fn a_bad_picture_is_passed_over_and_an_absent_agent_waited_for() {
        let refused = |status| refusal(AskError::Refused { status, message: "too dark".to_owned() });
        assert!(!passes(&refused(StatusCode::UNPROCESSABLE_ENTITY)));
        assert!(passes(&refused(StatusCode::TOO_MANY_REQUESTS)));
        assert!(passes(&refused(StatusCode::NOT_FOUND)), "the source may be configured later");
        assert!(passes(&refusal(AskError::TooSlow)));
    }
}
