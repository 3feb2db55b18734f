//! The flags that say where the broker is.

use clap::Args;

use super::{Credentials, Endpoint};

/// How the broker is reached, and as whom.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Broker")]
pub struct BrokerArgs {
    /// The broker: mqtt://HOST:PORT, or mqtts:// for TLS
    #[arg(
        long = "broker",
        id = "broker",
        value_name = "URL",
        env = "HEDGE_CLOUD_BROKER",
        default_value = "mqtt://127.0.0.1:1883"
    )]
    pub url: Endpoint,

    #[command(flatten)]
    pub credentials: Credentials,

    /// What stands in front of all topics
    #[arg(long, value_name = "P", env = "HEDGE_CLOUD_PREFIX", default_value = "")]
    pub prefix: String,
}
