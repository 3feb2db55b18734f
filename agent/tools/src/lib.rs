//! The commands that run and end: they use the agent's parts, but no daemon. Only `queue` and `settings` touch what
//! is stored, and ask a running agent.
//!
//! Each has its arguments as a type for clap and a `run` that prints to standard output. What a failed command
//! says is its error; `main` prints it.

pub mod arguments;
pub mod bench;
pub mod bundle;
pub mod check;
mod client;
pub mod feed;
mod idx;
pub mod infer;
pub mod log;
pub mod queue;
pub mod samples;
pub mod settings;
pub mod setup;
pub mod support;

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::client::Client;
use hedge_config::Config;

#[derive(Debug, Clone, clap::Args)]
pub struct ConfigArgument {
    /// The configuration file. Any value in it, except those of models and sources, can be overridden from the
    /// environment: HEDGE_BROKER__URL is `url` of the broker.
    #[arg(long, env = "HEDGE_CONFIG", default_value = "/etc/hedge/agent.toml", value_name = "FILE")]
    pub config: PathBuf,
}

/// A running agent that answers on one of its listeners.
async fn running(config: &Config) -> Option<Client> {
    for listen in &config.http.listen {
        if let Ok(client) = Client::connect(listen).await {
            return Some(client);
        }
    }
    None
}

/// The largest sample file: a 24-megapixel JPEG at the highest quality.
const SAMPLE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// Reads a file that must not be larger than `bytes_max`, however large it says it is.
fn read_file(path: &Path, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let file = File::open(path).with_context(|| format!("cannot open {}", path.display()))?;
    read_bounded(file, bytes_max).with_context(|| format!("cannot read {}", path.display()))
}

fn read_bounded(reader: impl Read, bytes_max: u64) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let read = reader.take(bytes_max + 1).read_to_end(&mut bytes)?;
    if read as u64 > bytes_max {
        bail!("it has more than the {bytes_max} bytes allowed");
    }
    Ok(bytes)
}
